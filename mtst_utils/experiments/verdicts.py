"""The verdict on a claim follows from numbers by rule, and by nothing else.

Taught in data/METHOD.md.
"""

from typing import Literal

import pandas as pd

from mtst_utils.experiments.intervals import Estimate, holm

VERDICTS = ("holds", "does not hold", "no difference", "cannot tell", "depends", "by construction")
# What a claim promises of its arm over the rival: a gain large enough to matter, any gain, or only
# that nothing is lost.
Promise = Literal["practical gain", "gain", "no loss"]
PROMISES = ("practical gain", "gain", "no loss")
ALPHA = 0.05


def verdict(estimate: Estimate, margin: float, promise: Promise) -> str:
    """The verdict on one comparison, turned so that above zero is what the claim promises.

    margin: the practical equivalence margin, in the estimate's unit. In this order: *no difference*
    if no more than "no loss" was promised and the 90 % interval is within the margin (a loss too
    small to matter is none); *holds* if the 95 % interval is above zero (above the margin where a
    practical gain is promised); *does not hold* if it is below zero, or if a gain was promised and
    the 90 % interval is within the margin; *cannot tell* otherwise. Raises ValueError for an
    unknown promise, a margin that is not above 0, or an effect that is not a number.
    """
    if promise not in PROMISES:
        raise ValueError(f"promise must be one of {', '.join(PROMISES)}; got {promise!r}")
    if not margin > 0:
        raise ValueError(f"margin must be above 0; got {margin!r}")
    low, high = estimate.interval()
    if not low <= high:
        raise ValueError(f"an effect and a standard error are needed; got {estimate}")
    if promise == "no loss" and estimate.equivalent(margin):
        return "no difference"
    if low > (margin if promise == "practical gain" else 0):
        return "holds"
    if high < 0 or estimate.equivalent(margin):
        return "does not hold"
    return "cannot tell"


def p_value(estimate: Estimate, margin: float, promise: Promise) -> float:
    """p of the test that the verdict's sign rests on: against the margin where a practical gain is
    promised, else against zero.
    """
    return estimate.p_against(margin if promise == "practical gain" else 0.0)


def carries_over(first: str, second: str, low: float, high: float) -> str:
    """Whether a verdict on one corpus is that on another: "yes"; "no" if one of them holds, or is
    no difference, the other does not hold, and the two effects differ; else "cannot tell".

    low, high: the 95 % interval of the difference of the two effects (`intervals.apart`). Without
    it two verdicts may differ where the effects hardly do, on either side of a border.
    """
    if first == second != "cannot tell":
        return "yes"
    kept, broken = {"holds", "no difference"}, {"does not hold"}
    if {first, second} & kept and {first, second} & broken and not low <= 0 <= high:
        return "no"
    return "cannot tell"


def over_settings(rows: pd.DataFrame) -> str:
    """One verdict from several settings of one claim: rows with the columns sign (1 or -1 if the
    95 % interval is above or below zero, else 0), metric and verdict.

    *depends* if in one metric the claim is kept in one setting (holds, or no difference where no
    more was promised) and does not hold, with a sign below zero, in another; else the verdict they
    share; *holds* if no more than "no loss" was promised, and it is a gain in some settings and no
    difference in the others; else *cannot tell*. A clear sign that is too small to matter breaks
    nothing. Raises ValueError for no rows.
    """
    if rows.empty:
        raise ValueError("a verdict needs one setting or more; got none")
    kept = rows.verdict.isin(["holds", "no difference"])
    broken = (rows.verdict == "does not hold") & (rows.sign < 0)
    if set(rows.metric[kept]) & set(rows.metric[broken]):
        return "depends"
    found = set(rows.verdict)
    if found == {"holds", "no difference"}:
        return "holds"
    return found.pop() if len(found) == 1 else "cannot tell"


def with_holm(ledger: pd.DataFrame) -> pd.DataFrame:
    """The ledger with p_holm (p adjusted over all its rows that have one), and survives: whether
    what is clear is clear still.

    survives is True, False, or None where the verdict rests on no such test: on equivalence, or on
    nothing.
    """
    adjusted = holm(ledger.p)
    below = (ledger.row_verdict == "does not hold") & (ledger.sign < 0)
    clear = (ledger.row_verdict == "holds") | below
    survives = [bool(p < ALPHA) if sign else None for p, sign in zip(adjusted, clear, strict=True)]
    return ledger.assign(p_holm=adjusted, survives=survives)
