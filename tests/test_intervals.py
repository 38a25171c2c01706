"""Intervals: against scikit-learn, against theory, and against the slow way."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from mtst_utils.experiments.intervals import (
    accuracy_of,
    apart,
    bootstrap_score,
    macro_f1_of,
    of_seeds,
    spread_ratio,
    t_interval,
    wilson,
)

RNG = np.random.default_rng(0)
TRUTH = RNG.integers(0, 3, 600)
GUESS = np.where(RNG.random(600) < 0.7, TRUTH, RNG.integers(0, 3, 600))
OTHER = np.where(RNG.random(600) < 0.5, TRUTH, RNG.integers(0, 3, 600))


def test_scores_are_scikit_learns():
    table = confusion_matrix(TRUTH, GUESS)
    assert accuracy_of(table) == pytest.approx(accuracy_score(TRUTH, GUESS))
    assert macro_f1_of(table) == pytest.approx(f1_score(TRUTH, GUESS, average="macro"))


def test_bootstrap_is_the_bootstrap_over_rows():
    value, low, high = bootstrap_score(TRUTH, GUESS)
    rows = [RNG.integers(0, 600, 600) for _ in range(2000)]
    tables = (np.bincount(3 * TRUTH[r] + GUESS[r], minlength=9).reshape(3, 3) for r in rows)
    slow = np.percentile([macro_f1_of(table) for table in tables], [2.5, 97.5])
    assert value == pytest.approx(f1_score(TRUTH, GUESS, average="macro"))
    assert [low, high] == pytest.approx(slow, abs=0.005)


def test_wilson_and_t():
    assert wilson(8, 10) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)  # a textbook's example
    assert t_interval([1, 2, 3]) == pytest.approx((2, -0.4841, 4.4841), abs=1e-4)
    with pytest.raises(ValueError, match="two values or more; got 1"):
        t_interval([1])


def test_intervals_cover_the_truth():
    covered = []
    for _ in range(200):
        truth = RNG.integers(0, 2, 300)
        guess = np.where(RNG.random(300) < 0.8, truth, 1 - truth)
        _, low, high = bootstrap_score(truth, guess, accuracy_of, resamples=400)
        covered.append(low <= 0.8 <= high)
    assert 0.9 <= np.mean(covered) <= 0.99


def test_the_difference_of_two_studies_holds_the_truth_in_95_of_100_cases():
    """Spreads that differ by three, and the truth far from zero."""

    def study(truth, spread):
        found = of_seeds(RNG.normal(truth, spread, 10))
        return SimpleNamespace(**found.numbers("points"))

    held = 0
    for _ in range(2000):
        effect, low, high = apart(study(3.0, 1.0), study(1.0, 3.0))
        assert low < effect < high
        held += low <= 200 <= high  # points
    assert 0.935 <= held / 2000 <= 0.975  # a little above 95 %: the narrower side adds to the wider


@pytest.mark.parametrize("seeds", [5, 10, 20])
def test_a_ratio_of_spreads_is_covered(seeds):
    """One arm's spread is 1.5 times the other's, and their seeds go together."""
    rng, held = np.random.default_rng(seeds), []
    for _ in range(2000):
        shared = rng.normal(size=seeds)
        rival = 0.8 * shared + 0.6 * rng.normal(size=seeds)
        values = 1.5 * (0.8 * shared + 0.6 * rng.normal(size=seeds))
        ratio, low, high = spread_ratio(values, rival)
        assert low < ratio < high
        held.append(low < 1.5 < high)
    assert 0.935 < np.mean(held) < 0.965
    with pytest.raises(ValueError, match="four pairs of values"):
        spread_ratio([1, 2, 3], [1, 2, 3])
    with pytest.raises(ValueError, match="all values of one side are the same"):
        spread_ratio([1, 1, 1, 1], [1, 2, 3, 4])
