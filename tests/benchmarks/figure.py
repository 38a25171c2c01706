"""The committed benchmarks as one figure of ratios, data/benchmarks.png: python -m tests.benchmarks.figure"""

import matplotlib.pyplot as plt
import pandas as pd

from mtst_utils import plots
from mtst_utils.corpora import DATA

MINI, MPNET = "all-MiniLM-L6-v2", "all-mpnet-base-v2"
# (question, ours, peer): how many times as fast ours is. Rows without committed runs are left out.
ROWS = [
    *((f"encoding, {name}", f"SentenceEncoder, {kind}", "sentence-transformers, float32")
      for name in (MINI, MPNET) for kind in ("float32", "bfloat16")),
    ("one epoch, everything trainable", "fit", "HF Trainer, plain"),
    ("one epoch, everything trainable", "fit", "HF Trainer, best"),
    *((f"one epoch with a part frozen, {name}", f"{part}, with the cache filled", f"{part}, HF Trainer")
      for name in (MINI, MPNET) for part in ("heads + top 4 blocks", "heads + top 2 blocks", "heads + top block", "heads alone")),
    ("both tasks answered", "one encoder, two heads", "two models"),
]  # fmt: skip


def ratios():
    """One row a comparison: median, lowest and highest ratio over repeats, each within one repeat."""
    rows = pd.read_csv(DATA / "results" / "benchmarks.csv")
    seconds = (rows.seconds / rows.sentences).groupby([rows.question, rows.run, rows.repeat]).first()
    table = {}
    for question, ours, peer in ROWS:
        if (question, ours) in seconds.index and (question, peer) in seconds.index:
            ratio = seconds[question, peer] / seconds[question, ours]
            label = f"{question}: {ours} against {peer}"
            table[label] = {"effect": ratio.median(), "low": ratio.min(), "high": ratio.max()}
    return pd.DataFrame(table).T


def main():
    table = ratios()
    axes = plots.forest(table, "How many times as fast as the peer, in one run each", "times as fast (log scale); median, lowest and highest of the repeats")  # fmt: skip
    axes.set(xscale="log", xticks=[1, 1.5, 2, 4, 10, 50, 200])
    axes.set_xticklabels(["1", "1.5", "2", "4", "10", "50", "200"])
    axes.minorticks_off()
    axes.axvline(1, color="black", linewidth=1)
    axes.figure.savefig(DATA / "benchmarks.png", dpi=100, bbox_inches="tight")
    plt.close(axes.figure)
    print(table.round(2).to_string())


if __name__ == "__main__":
    main()
