"""Intervals over seeds and test groups together: checked by simulation, with known truth."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

from mtst_utils.experiments.intervals import (
    Estimate,
    accuracy_of,
    detectable_ratio,
    difference,
    gradient,
    group_values,
    holm,
    macro_f1_of,
    seeds_needed,
    t_interval,
    two_way,
)

# Standard deviations in points of a score: between seeds, between groups, and the rest, with 60
# groups of test rows. In turn: few labels (seeds differ most), some thousand labels, all labels
# (test rows differ most), two like recipes.
VARIANCES = {
    "few": (3.0, 5.0, 8.0),
    "some": (1.0, 5.0, 8.0),
    "all": (0.5, 5.0, 6.0),
    "like": (0.5, 1.0, 6.0),
}


def simulated(rng, seeds, spreads, truth=0.0, runs=4000, groups=60):
    """Paired differences [runs, seeds, groups] whose true mean is known."""
    seed, group, rest = spreads
    values = rng.normal(truth, seed, (runs, seeds, 1)) + rng.normal(0, group, (runs, 1, groups))
    return values + rng.normal(0, rest, (runs, seeds, groups))


@pytest.mark.parametrize("seeds", [5, 10, 20])
def test_the_95_percent_interval_covers_the_truth(seeds):
    for name, spreads in VARIANCES.items():
        effect, se, df, *_ = two_way(simulated(np.random.default_rng(0), seeds, spreads))
        covered = np.mean(np.abs(effect) <= stats.t.ppf(0.975, df) * se)
        assert 0.93 <= covered <= 0.97, (name, covered)


def test_an_interval_over_seeds_alone_covers_too_little():
    """What the other source of error is worth: of 95 % promised, a t interval over seeds keeps two
    thirds or less.
    """
    values = simulated(np.random.default_rng(0), 20, VARIANCES["all"])
    by_seed = values.mean(-1)
    width = stats.t.ppf(0.975, 19) * stats.sem(by_seed, axis=1)
    assert np.mean(np.abs(by_seed.mean(1)) <= width) < 0.67


@pytest.mark.parametrize("seeds", [5, 10, 20])
def test_two_arms_that_differ_by_the_margin_are_seldom_called_equivalent(seeds):
    """The equivalence test's error rate at its worst case: at most 5 %, and no more than two
    standard errors of this simulation above it.
    """
    for name, spreads in VARIANCES.items():
        parts = np.array(spreads) ** 2 / (seeds, 60, seeds * 60)
        margin = 3.5 * np.sqrt(parts.sum())  # so that it could be told at all
        values = simulated(np.random.default_rng(1), seeds, spreads, truth=margin)
        effect, se, df, *_ = two_way(values)
        width = stats.t.ppf(0.95, df) * se
        wrong = np.mean((effect - width > -margin) & (effect + width < margin))
        assert 0.01 <= wrong <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / len(values)), (name, wrong)


def experiment(rng, seeds, groups=80):
    """Two classifiers on the rows of some documents: codes truth [N], group [N], a and b [S, N].

    Rows differ in difficulty, documents too, and to each classifier its own way; each seed has a
    skill and leanings.
    """
    group = np.repeat(np.arange(groups), rng.integers(1, 6, groups))
    n = len(group)
    truth = rng.choice(3, n, p=[0.38, 0.19, 0.43])
    shared = rng.normal(0, 1, n) + rng.normal(0, 0.6, groups)[group]
    guesses = []
    for skill in (1.4, 1.2):
        logits = rng.gumbel(size=(seeds, n, 3)) + rng.normal(0, 0.3, (seeds, 1, 3))
        own = rng.normal(0, 0.5, groups)[group] + rng.normal(0, 0.25, (seeds, 1))
        logits[:, np.arange(n), truth] += skill + shared + own
        guesses.append(logits.argmax(-1))
    return truth, group, *guesses


@pytest.mark.parametrize("score", [macro_f1_of, accuracy_of])
def test_scores_that_are_no_means_over_rows_are_covered_too(score):
    rng = np.random.default_rng(2)
    found = []
    for seeds in (5, 10, 20):
        for _ in range(150):
            truth, group, a, b = experiment(rng, seeds)
            found.append((seeds, difference(truth, a, b, group, score, 3)))
    expected = np.mean([estimate.effect for _, estimate in found])  # 450 experiments: near enough
    covered = pd.Series([low <= expected <= high for low, high in (e.interval() for _, e in found)])
    assert 0.93 <= covered.mean() <= 0.97
    by_seeds = covered.groupby([seeds for seeds, _ in found]).mean()
    assert by_seeds.between(0.91, 0.99).all()


def test_group_values_are_the_score_and_what_each_group_does_to_it():
    truth, group, a, _ = experiment(np.random.default_rng(0), 3)
    for score, theirs in [
        (accuracy_of, accuracy_score),
        (macro_f1_of, lambda t, p: f1_score(t, p, average="macro")),
    ]:
        values = group_values(truth, a, group, score, 3)
        assert values.shape == (3, 80)
        assert values.mean(1) == pytest.approx([theirs(truth, row) for row in a])
        # Against the slow way: leave each group out, and see what the score becomes.
        left = [theirs(truth[group != g], a[0][group != g]) for g in range(80)]
        slow = values[0].mean() + 79 * (values[0].mean() - np.array(left))
        assert np.corrcoef(slow, values[0])[0, 1] > 0.999
        assert slow.std() == pytest.approx(values[0].std(), rel=0.05)


def test_gradient_is_the_derivative():
    confusion, step = np.array([[20.0, 3, 2], [4, 9, 1], [5, 6, 30]]), 1e-5
    for score in (accuracy_of, macro_f1_of):
        found = gradient(confusion, score)
        for cell in np.ndindex(3, 3):
            more = confusion.copy()
            more[cell] += step
            slope = (score(more) - score(confusion)) / step
            assert found[cell] == pytest.approx(slope, abs=1e-6)
        assert (found * confusion).sum() == pytest.approx(0)
    with pytest.raises(ValueError, match="no derivative"):
        gradient(confusion, np.mean)


def test_with_one_source_of_error_it_is_the_usual_interval():
    by_seed = np.random.default_rng(0).normal(1, 2, 6)
    effect, se, df, seed_se, group_se = two_way(np.tile(by_seed[:, None], 40))
    low, high = t_interval(by_seed)[1:]
    assert effect == pytest.approx(by_seed.mean())
    assert df == pytest.approx(5)
    assert group_se == pytest.approx(0)
    assert Estimate(effect, se, df, seed_se, group_se, 6, 40).interval() == pytest.approx(
        (low, high)
    )


def test_identical_arms_differ_by_nothing():
    truth, group, a, _ = experiment(np.random.default_rng(0), 5)
    same = difference(truth, a, a, group)
    assert (same.effect, same.se, same.interval(), same.p, same.mde) == (0, 0, (0, 0), 1, 0)
    assert same.equivalent(0.01)


def test_difference_refuses_what_is_not_paired():
    truth, group, a, b = experiment(np.random.default_rng(0), 5)
    with pytest.raises(ValueError, match="needed are a and b"):
        difference(truth, a, b[:4], group)
    with pytest.raises(ValueError, match="two of each or more; got 1 and 80"):
        difference(truth, a[:1], b[:1], group)


def test_detectable_effects_are_those_of_the_standard():
    """3.26, 1.68 and 0.66 standard deviations of the paired difference at 3, 5 and 20 seeds."""
    found = [detectable_ratio(seeds - 1) / seeds**0.5 for seeds in (3, 5, 20)]
    assert found == pytest.approx([3.26, 1.68, 0.66], abs=0.005)
    values = simulated(np.random.default_rng(0), 10, VARIANCES["some"], truth=0)
    truth = detectable_ratio(1e6) * np.sqrt(1 / 10 + 25 / 60 + 64 / 600)
    effect, se, df, *_ = two_way(values + truth)
    assert np.mean(effect - stats.t.ppf(0.975, df) * se > 0) == pytest.approx(0.8, abs=0.03)


def test_seeds_needed():
    assert [seeds_needed(sd, 0.02) for sd in (0.01, 0.02, 0.03)] == [5, 10, 20]
    assert seeds_needed(0.02, 0.02, group_se=0.005) > 10
    assert seeds_needed(0.02, 0.02, group_se=0.02, most=50) == 50  # the test rows alone hide it


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, np.nan, 0.6]) == pytest.approx([1, np.nan, 1], nan_ok=True)
