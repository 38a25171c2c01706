"""README's figure: eight pieces of popular advice with what came of them, from the ledger: where a
claim has a comparison whose arms were all tuned, that one is drawn. Made anew by `python -m
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
# In plain words: the claim, arm, number of training sentences, and corpus (if not the first).
ADVICE = {
    "Average the tokens, do not take [CLS]\n(frozen encoder)": (3, "mean", 4000),
    "With 128 labels, train only a classifier\n(reviews, news, tweets)": (13, "set probe", 128),
    "With 128 labels, train only a classifier\n(another corpus: tweets)": (
        13,
        "set probe",
        128,
        TWEETS,
    ),
    "One model for two tasks loses nothing\n(sentiment, 500 sentences)": (5, "joint", 500),
    "Unfreeze layer by layer\n(200 sentences)": (17, "gradual", 200),
    "Unfreeze layer by layer\n(4,000 sentences)": (17, "gradual", 4000),
    "Give lower layers lower rates\n(decay .95, 200 sentences)": (23, "decay 0.95", 200),
    "A frozen head keeps its task\n(rate tuned for both tasks)": (15, "head A frozen alone", 500),
}
COUNT = ("none", "one", "two", "three", "four", "five", "six", "seven", "all")


def headlines() -> pd.DataFrame:
    """One row a piece of advice: the ledger's effect, low, high (points of the score), verdict of
    that comparison alone, mark (° where not every arm was tuned,
    † where a clear sign is one no longer under Holm's correction over the ledger).
    """
    ledger = claims.ledger()
    ledger = ledger[ledger.backbone == DEFAULT].set_index(["number", "arm", "n", "corpus"])
    places = [place if len(place) == 4 else (*place, RATED) for place in ADVICE.values()]
    # A claim may have a second metric or rival: the ledger's first row is the claim's own.
    found = pd.DataFrame([ledger.loc[[place]].iloc[0] for place in places])
    assert (found.unit == "points").all()
    marks = found.tuned.map({"yes": "", "no": " °"})
    marks += found.survives.map(lambda holds: " †" if str(holds) == "False" else "")
    found = found.assign(verdict=found.row_verdict, mark=marks)
    return found.set_axis(list(ADVICE))[["effect", "low", "high", "verdict", "mark"]]


def figure() -> Axes:
    """Effects written out beside their verdicts, legible at a width of 900 pixels."""
    table = headlines()
    drawn, ax = plt.subplots(figsize=(9, 0.58 * len(table) + 1.3), layout="none")
    drawn.subplots_adjust(left=0.41, right=0.73, top=0.9, bottom=0.12)
    for position, row in enumerate(table.itertuples()):
        color = plots.VERDICT_COLORS[row.verdict]
        errors = [[row.effect - row.low], [row.high - row.effect]]
        ax.errorbar(
            row.effect, position, xerr=errors, fmt="o", ms=9, lw=2.5, color=color, capsize=4
        )
        beside = {"transform": ax.get_yaxis_transform(), "va": "center", "color": color}
        effect = f"{row.effect:+.1f}".replace("-", "−")
        ax.text(1.2, position, effect, ha="right", weight="bold", fontsize=13, **beside)
        ax.text(1.25, position, row.verdict + row.mark, fontsize=13, **beside)
    ax.axvline(0, color="black", linewidth=1)
    ax.set(yticks=range(len(table)), ylim=(len(table) - 0.5, -0.6))
    ax.set_yticklabels(table.index, fontsize=13)
    ax.set_xlabel("points, of 100; above zero: as promised (bars: 95 % interval)", fontsize=12)
    kept = (table.verdict == "holds").sum()
    title = f"Of eight pieces of popular advice {COUNT[kept]} hold here"
    drawn.suptitle(title, fontsize=16, weight="bold", x=0.02, ha="left")
    return ax


if __name__ == "__main__":
    figure().figure.savefig(FIGURE, dpi=100)
