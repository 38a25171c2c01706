"""The rule that turns numbers into verdicts, at its borders."""

import numpy as np
import pandas as pd
import pytest

from mtst_utils.experiments.intervals import Estimate
from mtst_utils.experiments.verdicts import over_settings, verdict, with_holm

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
    rows = pd.DataFrame({"sign": [1, -1], "verdict": ["holds", "does not hold"]})
    assert over_settings(rows) == "depends"
    assert over_settings(rows.assign(sign=[1, 0])) == "cannot tell"
    assert over_settings(rows[:1]) == "holds"
    with pytest.raises(ValueError, match="one setting or more"):
        over_settings(rows[:0])


def test_what_does_not_survive_the_correction_says_so():
    ledger = pd.DataFrame({"p": [0.001, 0.03, 0.5, np.nan], "sign": [1, -1, 0, 0]})
    table = with_holm(ledger)
    assert table.p_holm.tolist() == pytest.approx([0.003, 0.06, 0.5, np.nan], nan_ok=True)
    assert table.survives.tolist() == [True, False, None, None]
