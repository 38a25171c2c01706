"""README's figure: pieces of popular advice with what came of them on two corpora, from the ledger:
where a claim has a comparison whose arms were all tuned, that one is drawn, and where an arm was
added later, the one that was declared first as well. Made anew by `python -m
mtst_utils.experiments.headlines`.
"""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from mtst_utils.experiments import claims, plots
from mtst_utils.experiments.corpora import DATA
from mtst_utils.experiments.designs import RATED, TWEETS
from mtst_utils.packaged_weights import DEFAULT

FIGURE = DATA / "headlines.png"
HARD = "head A frozen alone (B: movie reviews)"
ADVICE = {  # in plain words: the claim, arm, and number of training sentences
    "Average the tokens, not [CLS]\n(frozen, 1,000 sentences)": (3, "frozen, mean", 1000),
    "Average the tokens, not [CLS]\n(fine-tuned, 1,000 sentences)": (3, "trained, mean", 1000),
    "With 128 labels, train only a classifier\n(searched)": (13, "tuned probe", 128),
    "With 128 labels, train only a classifier\n(set; added later)": (13, "set probe", 128),
    "With 512 labels, train only a classifier\n(set; added later)": (13, "set probe", 512),
    "One model for two tasks loses nothing\n(sentiment, 500 sentences)": (5, "joint", 500),
    "Unfreeze layer by layer\n(200 sentences)": (17, "gradual", 200),
    "Unfreeze layer by layer\n(4,000 sentences)": (17, "gradual", 4000),
    "Give lower layers lower rates\n(decay .95, 200 sentences)": (23, "decay 0.95", 200),
    "Give lower layers lower rates\n(decay .95, 4,000 sentences)": (23, "decay 0.95", 4000),
    "A frozen head keeps its task\n(rate tuned for both tasks)": (15, "head A frozen alone", 500),
    "A frozen head keeps its task\n(new task: movie reviews alone)": (15, HARD, 500),
}
MARKERS = {RATED: "o", TWEETS: "^"}
CORPORA = {RATED: "tweets, reviews, editorials", TWEETS: "second corpus: other tweets"}


def headlines() -> pd.DataFrame:
    """One row a piece of advice and corpus on which it was tried: advice, corpus, the ledger's
    effect, low, high (points of the score), verdict of that comparison alone, mark (° where not
    every arm was tuned, † where a clear sign is one no longer under Holm's correction),
    carries_over (of the second corpus).
    """
    ledger = claims.ledger()
    ledger = ledger[(ledger.backbone == DEFAULT) & ledger.corpus.isin(MARKERS)]
    found = []
    for advice, (number, arm, n) in ADVICE.items():
        own = ledger[(ledger.number == number) & (ledger.arm == arm) & (ledger.n == n)]
        # A claim may have a second metric or rival: the ledger's first row is the claim's own.
        found.append(own.drop_duplicates("corpus").assign(advice=advice))
    table = pd.concat(found, ignore_index=True)
    assert (table.unit == "points").all()
    marks = table.tuned.map({"yes": "", "no": " °"})
    marks += table.survives.map(lambda holds: " †" if str(holds) == "False" else "")
    table = table.assign(verdict=table.row_verdict, mark=marks)
    columns = ["advice", "corpus", "effect", "low", "high", "verdict", "mark", "carries_over"]
    return table[columns]


def figure() -> Axes:
    """Effects written out beside their verdicts, legible at a width of 900 pixels."""
    table, places = headlines(), {advice: row for row, advice in enumerate(ADVICE)}
    both = table.advice.duplicated(keep=False)
    drawn, ax = plt.subplots(figsize=(9, 0.66 * len(places) + 1.6), layout="none")
    drawn.subplots_adjust(left=0.41, right=0.73, top=0.86, bottom=0.11)
    for row, shares in zip(table.itertuples(), both, strict=True):
        side = {RATED: -0.2, TWEETS: 0.2}[row.corpus] if shares else 0
        place, color = places[row.advice] + side, plots.VERDICT_COLORS[row.verdict]
        errors = [[row.effect - row.low], [row.high - row.effect]]
        bar = {"fmt": MARKERS[row.corpus], "ms": 9, "lw": 2.5, "color": color, "capsize": 4}
        ax.errorbar(row.effect, place, xerr=errors, **bar)
        beside = {"transform": ax.get_yaxis_transform(), "va": "center", "color": color}
        effect = f"{row.effect:+.1f}".replace("-", "−")
        effect = "0.0" if effect.strip("+−") == "0.0" else effect
        ax.text(1.2, place, effect, ha="right", weight="bold", fontsize=12, **beside)
        ax.text(1.25, place, row.verdict + row.mark, fontsize=12, **beside)
    ax.axvline(0, color="black", linewidth=1)
    ax.set(yticks=range(len(places)), ylim=(len(places) - 0.5, -0.6))
    ax.set_yticklabels(places, fontsize=12.5)
    ax.set_xlabel("points, of 100; above zero: as promised (bars: 95 % interval)", fontsize=12)
    black = {"color": "black", "ls": "", "ms": 9}
    marks = [plt.Line2D([], [], marker=MARKERS[c], label=CORPORA[c], **black) for c in MARKERS]
    drawn.legend(
        handles=marks, loc="upper left", bbox_to_anchor=(0.01, 0.935), ncols=2, fontsize=12
    )
    drawn.suptitle(
        "Popular advice, measured on two kinds of text",
        fontsize=16,
        weight="bold",
        x=0.02,
        ha="left",
    )
    return ax


if __name__ == "__main__":
    figure().figure.savefig(FIGURE, dpi=100)
