"""The committed benchmarks as one figure of ratios, data/benchmarks.png, and the sentence on
encoding.

python -m tests.benchmarks.figure
"""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from mtst_utils.experiments import plots
from mtst_utils.experiments.corpora import DATA
from mtst_utils.experiments.results import RESULTS
from tests.benchmarks.common import OPENVINO, PEERS

README = Path(__file__).parents[1] / "README.md"  # that of tests/
MODELS = {"MiniLM": "all-MiniLM-L6-v2", "MPNet": "all-mpnet-base-v2"}
PARTS = ("top 4 blocks", "top block", "top 2 blocks", "alone")
# label: (question, ours, peer). Rows without committed runs are left out.
ROWS = (
    {
        f"{short}: encoding, both {kind}, against sentence-transformers": (
            f"encoding, {name}",
            f"SentenceEncoder, {kind}",
            peer,
        )
        for short, name in MODELS.items()
        for kind, peer in PEERS.items()
    }
    | {
        "MiniLM: encoding, both float32, against OpenVINO": (
            "encoding, all-MiniLM-L6-v2, where bfloat16 is slow",
            "SentenceEncoder, float32",
            f"{OPENVINO}, float32",
        )
    }
    | {
        f"MiniLM: training everything, against HF Trainer {how}": (
            "one epoch, everything trainable",
            "fit",
            f"HF Trainer, {how}",
        )
        for how in ("plain", "best")
    }
    | {
        f"{short}: training heads {'+ ' * (part != 'alone')}{part}, against HF Trainer": (
            f"one epoch with a part frozen, {name}",
            f"heads {'+ ' * (part != 'alone')}{part}, with the cache filled",
            f"heads {'+ ' * (part != 'alone')}{part}, HF Trainer",
        )
        for short, name in MODELS.items()
        for part in PARTS
    }
    | {
        f"{short}: ten epochs of heads alone end to end, against HF Trainer": (
            f"one epoch with a part frozen, {name}",
            "ten epochs of heads alone end to end, with the cache filled",
            "ten epochs of heads alone end to end, HF Trainer",
        )
        for short, name in MODELS.items()
    }
    | {
        "MiniLM: one encoder with two heads, against two models": (
            "both tasks answered",
            "one encoder, two heads",
            "two models",
        )
    }
)


def ratios():
    """One row a comparison: median, lowest and highest ratio over repeats, each within one
    repeat.
    """
    rows = pd.read_csv(RESULTS / "benchmarks.csv")
    seconds = (
        (rows.seconds / rows.sentences).groupby([rows.question, rows.run, rows.repeat]).first()
    )
    table = {}
    for label, (question, ours, peer) in ROWS.items():
        if (question, ours) in seconds.index and (question, peer) in seconds.index:
            ratio = seconds[question, peer] / seconds[question, ours]
            table[label] = {"effect": ratio.median(), "low": ratio.min(), "high": ratio.max()}
    return pd.DataFrame(table).T.sort_values("effect", ascending=False)


def sentence(table):
    """What README says of encoding, number by number from the ratios; nothing of what was not
    measured.
    """
    said = []
    for kind in PEERS:
        rows = {
            short: f"{short}: encoding, both {kind}, against sentence-transformers"
            for short in MODELS
        }
        parts = [
            f"{table.effect[row]:.1f} ({short}, {table.low[row]:.2f} to {table.high[row]:.2f})"
            for short, row in rows.items()
            if row in table.index
        ]
        said += [f"{' and '.join(parts)} in {kind}"] if parts else []
    return (
        f"Beside sentence-transformers at the same precision, encoding is faster by a "
        f"factor of {', of '.join(said)}."
    )


def main():
    table = ratios()
    README.write_text(
        re.sub(
            r"^Beside sentence-transformers .*$",
            sentence(table),
            README.read_text(),
            flags=re.MULTILINE,
        )
    )
    axes = plots.forest(
        table,
        "Not computing anew what is frozen gains most",
        "times as fast (log scale); median, lowest and highest of the repeats",
    )
    axes.set(xscale="log", xlim=(0.9, 450), xticks=[1, 1.5, 2, 4, 10, 50, 200])
    axes.set_xticklabels(["1", "1.5", "2", "4", "10", "50", "200"])
    axes.minorticks_off()
    for height, (_, row) in zip(axes.get_yticks(), table.iterrows(), strict=True):
        axes.annotate(
            f"{row.effect:.3g}", (row.high, height), (8, -4), textcoords="offset points", fontsize=9
        )
    axes.axvline(1, color="black", linewidth=1)
    axes.figure.savefig(DATA / "benchmarks.png", dpi=100, bbox_inches="tight")
    plt.close(axes.figure)
    print(table.round(2).to_string())


if __name__ == "__main__":
    main()
