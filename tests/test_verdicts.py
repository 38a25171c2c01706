"""The rule that turns numbers into verdicts, at its borders."""

import numpy as np
import pandas as pd
import pytest

from mtst_utils.experiments.intervals import Estimate
from mtst_utils.experiments.verdicts import carries_over, over_settings, p_value, verdict, with_holm

T95, T90 = 2.262157, 1.833113  # t quantiles of nine degrees of freedom


def estimate(effect, se=1.0):
    return Estimate(effect, se, 9.0, se, 0.0, 10, 100)


def bounds(low=None, high=None):
    """The estimate whose 95 % interval has this low, or this high, end."""
    return estimate(low + T95) if low is not None else estimate(high - T95)


@pytest.mark.parametrize(
    ("promise", "found"),
    [("gain", "holds"), ("no loss", "holds"), ("practical gain", "cannot tell")],
)
def test_an_interval_just_above_zero(promise, found):
    assert verdict(bounds(low=0.001), 1, promise) == found
    assert verdict(bounds(low=-0.001), 1, promise) == "cannot tell"


def test_a_practical_gain_is_above_the_margin():
    assert verdict(bounds(low=1.001), 1, "practical gain") == "holds"
    assert verdict(bounds(low=0.999), 1, "practical gain") == "cannot tell"


@pytest.mark.parametrize("promise", ["gain", "no loss", "practical gain"])
def test_an_interval_below_zero_does_not_hold(promise):
    assert verdict(bounds(high=-0.001), 1, promise) == "does not hold"
    assert verdict(bounds(high=0.001), 1, promise) == "cannot tell"


@pytest.mark.parametrize("side", [1, -1])
def test_equivalence_is_the_90_percent_interval_within_the_margin(side):
    inside, outside = estimate(side * (2 - T90 - 0.001)), estimate(side * (2 - T90 + 0.001))
    assert verdict(inside, 2, "no loss") == "no difference"
    assert verdict(inside, 2, "gain") == "does not hold"
    assert verdict(inside, 2, "practical gain") == "does not hold"
    for promise in ("no loss", "gain", "practical gain"):
        assert verdict(outside, 2, promise) == "cannot tell"


def test_a_clear_but_small_gain_is_a_gain_and_not_a_practical_one():
    small = estimate(0.5, 0.1)
    assert verdict(small, 1, "gain") == "holds"
    assert verdict(small, 1, "practical gain") == "does not hold"


def test_what_cannot_be_judged_is_refused():
    for margin, promise, lacks in [(0, "gain", "margin"), (1, "improvement", "promise must be")]:
        with pytest.raises(ValueError, match=lacks):
            verdict(estimate(1), margin, promise)
    with pytest.raises(ValueError, match="an effect and a standard error"):
        verdict(estimate(np.nan), 1, "gain")


def test_two_settings_with_opposite_clear_signs():
    rows = pd.DataFrame({"sign": [1, -1], "verdict": ["holds", "does not hold"], "metric": "F1"})
    assert over_settings(rows) == "depends"
    assert over_settings(rows.assign(verdict=["no difference", "does not hold"])) == "depends"
    assert over_settings(rows.assign(sign=[1, 0])) == "cannot tell"  # equivalent is not worse
    assert over_settings(rows.assign(verdict=["cannot tell", "does not hold"])) == "cannot tell"
    assert over_settings(rows.assign(metric=["F1", "accuracy"])) == "cannot tell"
    assert over_settings(rows[:1]) == "holds"
    with pytest.raises(ValueError, match="one setting or more"):
        over_settings(rows[:0])


def test_what_does_not_survive_the_correction_says_so():
    verdicts = ["holds", "does not hold", "no difference", "does not hold", "cannot tell"]
    ledger = pd.DataFrame({"p": [0.001, 0.03, 0.5, 0.5, np.nan], "sign": [1, -1, 1, 0, 0]})
    table = with_holm(ledger.assign(row_verdict=verdicts))
    assert table.p_holm.tolist() == pytest.approx([0.004, 0.09, 1, 1, np.nan], nan_ok=True)
    assert table.survives.tolist() == [True, False, None, None, None]  # equivalence: no such test


def test_p_is_of_what_was_promised():
    found = estimate(3.0)
    assert p_value(found, 1, "gain") == p_value(found, 1, "no loss") == pytest.approx(found.p)
    assert p_value(found, 1, "practical gain") == pytest.approx(estimate(2.0).p)
    assert verdict(bounds(low=1), 1, "practical gain") in ("holds", "cannot tell")
    assert p_value(bounds(low=1), 1, "practical gain") == pytest.approx(0.05, abs=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ("holds", "holds", "yes"),
        ("does not hold", "does not hold", "yes"),
        ("holds", "does not hold", "no"),
        ("does not hold", "no difference", "no"),
        ("holds", "no difference", "cannot tell"),
        ("cannot tell", "cannot tell", "cannot tell"),
        ("holds", "cannot tell", "cannot tell"),
    ],
)
def test_whether_a_verdict_carries_over(first, second, found):
    apart = (0.3, 2.0)
    assert carries_over(first, second, *apart) == carries_over(second, first, *apart) == found


@pytest.mark.parametrize(("low", "high", "found"), [(-1.0, 0.0, "cannot tell"), (-1.0, -0.1, "no")])
def test_two_verdicts_that_differ_are_not_yet_a_difference(low, high, found):
    assert carries_over("no difference", "does not hold", low, high) == found
