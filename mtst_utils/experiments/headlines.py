"""README's figure: eight pieces of popular advice with what they were measured to gain, from the
ledger. Made anew by `python -m mtst_utils.experiments.headlines`.
"""

import pandas as pd
from matplotlib.axes import Axes

from mtst_utils.experiments import claims, plots
from mtst_utils.experiments.corpora import DATA
from mtst_utils.packaged_weights import DEFAULT

FIGURE = DATA / "headlines.png"
ADVICE = {  # in plain words: the ledger's claim, arm and number of training sentences
    "Average the tokens, do not take [CLS]\n(frozen encoder)": (3, "mean", 4000),
    "With 32 labels, train only a classifier": (13, "tuned probe", 32),
    "With 512 labels, train only a classifier": (13, "two-block probe", 512),
    "One model for two tasks loses nothing\n(sentiment)": (5, "joint", 3000),
    "Unfreeze layer by layer\n(1,000 sentences)": (17, "gradual, 0.0003", 1000),
    "Unfreeze layer by layer\n(4,000 sentences)": (17, "gradual, decay 1, rate 0.0002", 4000),
    "Give lower layers lower rates\n(decay .95)": (23, "decay 0.95, rate 0.0001", 4000),
    "Freeze a head to protect its task": (15, "after task B", 3840),
}


def headlines() -> pd.DataFrame:
    """One row a piece of advice: the ledger's effect, low, high (points of the score), verdict of
    that comparison alone, mark (° where not every arm was tuned).
    """
    ledger = claims.ledger()
    ledger = ledger[ledger.backbone == DEFAULT].set_index(["number", "arm", "n"]).sort_index()
    # A claim may have a second metric or rival: the ledger's first row is the claim's own.
    found = pd.DataFrame([ledger.loc[[place]].iloc[0] for place in ADVICE.values()])
    assert (found.unit == "points").all()
    marks = found.tuned.map({"yes": "", "no": " °"})
    found = found.assign(verdict=found.row_verdict, mark=marks)
    return found.set_axis(list(ADVICE))[["effect", "low", "high", "verdict", "mark"]]


def figure() -> Axes:
    """The figure, legible at a width of 900 pixels."""
    return plots.headlines(
        headlines(),
        "Little of the popular advice gains anything here",
        "points gained, of 100, by following it (bars: 95 % interval)",
    )


if __name__ == "__main__":
    figure().figure.savefig(FIGURE, dpi=100)
