"""The committed benchmarks as one table of ratios in tests/README.md, and as one figure,
data/benchmarks.png: ours beside a peer at the same precision.

python -m tests.benchmarks.figure
"""

import re
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import pandas as pd

from mtst_utils.experiments import plots
from mtst_utils.experiments.corpora import DATA
from mtst_utils.experiments.results import RESULTS
from tests.benchmarks.common import OPENVINO, PEERS

README = Path(__file__).parents[1] / "README.md"  # that of tests/
AMX, SLOW, EPYC = "Intel, AMX", "Intel, slow at bfloat16", "AMD, AVX-512"  # processors
HF, TORCH = "HF Trainer", "sentence-transformers"
FILLED = "with the cache filled"


class Ratio(NamedTuple):
    """Two runs of one question whose times are compared, both at this precision."""

    what: str
    rival: str
    precision: str
    processor: str
    question: str
    ours: str
    peer: str
    drawn: bool = True


def _encoding(short: str, name: str, processor: str, note: str = "", drawn: bool = True):
    question = f"encoding, {name}{note}"
    for precision, peer in PEERS.items():
        for rival, run in ((TORCH, peer), (OPENVINO, f"{OPENVINO}, {precision}")):
            ours = f"SentenceEncoder, {precision}"
            yield Ratio(
                f"encoding, {short}", rival, precision, processor, question, ours, run, drawn
            )


def _frozen(short: str, name: str):
    question = f"one epoch with a part frozen, {name}"
    for part, said in {
        "heads + top 4 blocks": "an epoch of heads and the top 4 blocks",
        "heads + top 2 blocks": "an epoch of heads and the top 2 blocks",
        "heads + top block": "an epoch of heads and the top block",
        "heads alone": "an epoch of heads alone, its cache filled before",
        "ten epochs of heads alone end to end": "ten epochs of heads alone, filling included",
    }.items():
        runs = f"{part}, {FILLED}", f"{part}, {HF}"
        yield Ratio(f"{said}, {short}", HF, "bfloat16", AMX, question, *runs)


def _bill(precision: str, processor: str, note: str = ""):
    for n in ("128", "2,000", "16,600"):
        for epochs in ("1 epoch", "5 epochs", "20 epochs"):
            runs = f"{n} sentences, {epochs}, {FILLED}", f"{n} sentences, {epochs}, {HF}"
            what = f"heads alone, {n} sentences, {epochs}, filling included"
            question = f"the bill of heads alone, {precision}{note}"
            yield Ratio(what, HF, precision, processor, question, *runs, drawn=False)


WHOLE, PROCESSES = "one epoch, everything trainable", "training in several processes"
# Those without committed runs are left out.
RATIOS = (
    *_encoding("MiniLM", "all-MiniLM-L6-v2", AMX),
    *_encoding("MPNet", "all-mpnet-base-v2", AMX),
    *_encoding("MiniLM", "all-MiniLM-L6-v2", SLOW, ", where bfloat16 is slow", False),
    *_encoding("MiniLM", "all-MiniLM-L6-v2", EPYC, ", quick by AVX-512", False),
    *_encoding("MiniLM, 100,000 sentences", "all-MiniLM-L6-v2", AMX, ", a hundred thousand", False),
    Ratio("training everything, MiniLM", HF, "bfloat16", AMX, WHOLE, "fit", f"{HF}, best"),
    *_frozen("MiniLM", "all-MiniLM-L6-v2"),
    *_frozen("MPNet", "all-mpnet-base-v2"),
    *_bill("float32", SLOW),
    *_bill("bfloat16", EPYC),
    *_bill("bfloat16", AMX, ", all sentences"),
    Ratio(
        "two tasks answered by one model, MiniLM",
        "two models",
        "bfloat16",
        AMX,
        "both tasks answered",
        "one encoder, two heads",
        "two models",
    ),
    *(
        Ratio(
            f"training in {count} processes of one thread, MiniLM",
            "one process of one thread",
            "bfloat16",
            AMX,
            PROCESSES,
            f"processes: {count}",
            "processes: 1",
            drawn=False,
        )
        for count in (2, 4)
    ),
)


def ratios() -> pd.DataFrame:
    """One row a comparison that was measured: effect (the median over repeats, how many times as
    fast as the rival), low, high, each within one repeat, repeats, and the comparison's own fields.
    """
    rows, table = pd.read_csv(RESULTS / "benchmarks.csv"), []
    seconds = rows.set_index(["question", "run", "repeat"])
    seconds = (seconds.seconds / seconds.sentences).sort_index()
    for one in RATIOS:
        if (one.question, one.ours) in seconds.index and (one.question, one.peer) in seconds.index:
            times = seconds[one.question, one.peer] / seconds[one.question, one.ours]
            found = {"effect": times.median(), "low": times.min(), "high": times.max()}
            table.append({**one._asdict(), **found, "repeats": len(times)})
    return pd.DataFrame(table)


def times(value: float) -> str:
    """As it is written, in the table and in the figure."""
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def markdown(table: pd.DataFrame) -> str:
    """The table of tests/README.md."""
    lines = [
        "| what | beside | precision | times as fast | repeats | processor |",
        "|---|---|---|---|---|---|",
    ]
    for row in table.itertuples():
        spread = f" ({times(row.low)} to {times(row.high)})" if row.repeats > 1 else ""
        lines.append(
            f"| {row.what} | {row.rival} | {row.precision} | {times(row.effect)}{spread} | "
            f"{row.repeats} | {row.processor} |"
        )
    return "\n".join(lines)


def main() -> None:
    table = ratios()
    text = re.sub(
        r"\| what \| beside \|.*?(?=\n\n)",
        lambda _: markdown(table),
        README.read_text(),
        flags=re.DOTALL,
    )
    README.write_text(text)
    drawn = table[table.drawn].sort_values("effect", ascending=False)
    drawn.index = drawn.what + ", " + drawn.precision + ", beside " + drawn.rival
    axes = plots.forest(
        drawn,
        "Not computing anew what is frozen gains most",
        "times as fast (log scale); median, lowest and highest of the repeats",
    )
    axes.set(xscale="log", xlim=(0.9, 450), xticks=[1, 1.5, 2, 4, 10, 50, 200])
    axes.set_xticklabels(["1", "1.5", "2", "4", "10", "50", "200"])
    axes.minorticks_off()
    for height, (_, row) in zip(axes.get_yticks(), drawn.iterrows(), strict=True):
        axes.annotate(
            times(row.effect), (row.high, height), (8, -4), textcoords="offset points", fontsize=9
        )
    axes.axvline(1, color="black", linewidth=1)
    axes.figure.savefig(DATA / "benchmarks.png", dpi=100, bbox_inches="tight")
    plt.close(axes.figure)
    print(markdown(table))


if __name__ == "__main__":
    main()
