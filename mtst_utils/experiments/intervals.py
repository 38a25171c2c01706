"""Every interval of the series, each by a named method; equivalence, minimal detectable effects,
Holm's correction.

Taught in notebook 01, section 5.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats
from sklearn.metrics import confusion_matrix


def wilson(successes, n):
    """A share with its Wilson interval: (value, low, high). For counts, such as right answers out
    of n.
    """
    low, high = stats.binomtest(int(successes), int(n)).proportion_ci(method="wilson")
    return successes / n, low, high


def accuracy_of(confusion):
    """Accuracy from confusion matrices [..., K, K], rows the truth."""
    return np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum((-2, -1))


def macro_f1_of(confusion):
    """Unweighted mean of the classes' F1 from confusion matrices [..., K, K]; a class never seen
    nor said counts 0.
    """
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    return (2 * right / np.maximum(confusion.sum(-1) + confusion.sum(-2), 1)).mean(-1)


def bootstrap_score(truth, predicted, score=macro_f1_of, resamples=2000, seed=0):
    """A score of predictions with its percentile bootstrap interval over the test rows: (value,
    low, high).

    Drawing N rows with replacement is drawing the confusion matrix's cells from a multinomial,
    which is quick.
    """
    table = confusion_matrix(truth, predicted)
    drawn = np.random.default_rng(seed).multinomial(
        table.sum(), (table / table.sum()).ravel(), resamples
    )
    low, high = np.percentile(score(drawn.reshape(-1, *table.shape)), [2.5, 97.5])
    return float(score(table)), float(low), float(high)


def t_interval(values):
    """Mean over seeds with its t interval: (mean, low, high). Paired comparisons pass the
    differences, seed by seed.
    """
    values = np.asarray(values, float)
    if len(values) < 2:
        raise ValueError(f"an interval needs two values or more; got {len(values)}")
    margin = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(values.mean()), float(values.mean() - margin), float(values.mean() + margin)


def spread_ratio(values, rival):
    """Standard deviation of values over that of rival, paired by seed, with its 95 % interval:
    (ratio, low, high).

    Pitman 1939, Morgan 1939: two spreads are equal where sum and difference do not correlate. For
    scores that are normal; of long tails too few intervals hold the truth.
    """
    values, rival = np.asarray(values, float), np.asarray(rival, float)
    n = len(values)
    if n != len(rival) or n < 4:
        raise ValueError(f"spreads need four pairs of values or more; got {n} and {len(rival)}")
    if not values.std() or not rival.std():
        raise ValueError("a ratio of spreads needs two; all values of one side are the same")
    together = np.corrcoef(values, rival)[0, 1]
    k = 1 + 2 * (1 - together**2) * stats.t.ppf(0.975, n - 2) ** 2 / (n - 2)
    ratio, factor = values.std(ddof=1) / rival.std(ddof=1), np.sqrt(k + np.sqrt(k**2 - 1))
    return float(ratio), float(ratio / factor), float(ratio * factor)


# --- Seeds and test groups together ---------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A mean difference with everything a verdict needs; scores from 0 to 1, as everywhere in the
    package.

    se and df: standard error and degrees of freedom, both sources of error together. seed_se,
    group_se: what the choice of seeds, and of test groups, contributes alone. p: two-sided, of no
    difference. mde: the smallest true difference that would be told from zero with 80 % power.
    """

    effect: float
    se: float
    df: float
    seed_se: float
    group_se: float
    seeds: int
    groups: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The t interval (low, high) of this level."""
        width = stats.t.ppf((1 + level) / 2, self.df) * self.se
        return float(self.effect - width), float(self.effect + width)

    def equivalent(self, margin: float) -> bool:
        """Two one-sided tests at 5 % each: is the 90 % interval within the margin?"""
        low, high = self.interval(0.90)
        return -margin < low and high < margin

    @property
    def p(self) -> float:
        return self.p_against(0.0)

    def p_against(self, value: float) -> float:
        """Two-sided p of a true difference of `value`."""
        apart = abs(self.effect - value)
        return float(2 * stats.t.sf(apart / self.se, self.df)) if self.se else float(apart == 0)

    @property
    def mde(self) -> float:
        return detectable_ratio(self.df) * self.se

    def numbers(self, unit: str) -> dict[str, float]:
        """effect, low, high, low90, high90, mde as the ledger shows them, with their sign and p.

        unit: "points" or "hundredths" of a score; "times", of an estimate that is of logarithms;
        anything else as it is. sign: 1 or -1 if the 95 % interval is above or below zero, else 0.
        """
        (low, high), (low90, high90) = self.interval(), self.interval(0.90)
        found = {"effect": self.effect, "low": low, "high": high}
        found |= {"low90": low90, "high90": high90, "mde": self.mde}
        found = {name: in_unit(value, unit) for name, value in found.items()}
        return found | {"sign": int(low > 0) - int(high < 0), "p": self.p}


def in_unit(value: float, unit: str) -> float:
    """A difference of scores in points or hundredths, or a logarithm in times."""
    if unit == "times":
        return float(np.exp(value))
    return float(100 * value if unit in ("points", "hundredths") else value)


def apart(one: Any, other: Any) -> tuple[float, float, float]:
    """one - other of two independent effects, from their intervals: (effect, low, high).

    Both are rows of a ledger, or anything else with effect, low and high. The interval is MOVER's
    (Zou & Donner 2008): for t intervals its half width is the root of the sum of the two squared
    ones.
    """
    effect = one.effect - other.effect
    low = effect - float(np.hypot(one.effect - one.low, other.high - other.effect))
    high = effect + float(np.hypot(one.high - one.effect, other.effect - other.low))
    return effect, low, high


def of_seeds(values: np.ndarray) -> Estimate:
    """The mean over seeds [S] with the seeds' spread as its only source of error.

    For costs, which have no test sentences, and for runs that kept no predictions. Raises
    ValueError for fewer than two.
    """
    values = np.asarray(values, float)
    if len(values) < 2:
        raise ValueError(f"an interval needs two values or more; got {len(values)}")
    se, count = float(stats.sem(values)), len(values)
    return Estimate(float(values.mean()), se, count - 1, se, 0.0, count, 0)


def two_way(
    values: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean of values [..., S, G], where both the S seeds and the G test groups are samples.

    Crossed random effects, value = mean + seed + group + rest. The mean of the squares between
    seeds holds the seeds' variance and the rest's, that between groups the groups' and the rest's;
    so their sum counts the rest twice, and it is taken off the groups' once, which then are 0 at
    least. Degrees of freedom are Satterthwaite's (1946). Returns effect, standard error, degrees of
    freedom, and the standard errors from seeds and from groups alone, each [...]. Raises ValueError
    for fewer than two seeds or groups.
    """
    values = np.asarray(values, float)
    s, g = values.shape[-2:]
    if min(s, g) < 2:
        raise ValueError(
            f"an interval over seeds and groups needs two of each or more; got {s} and {g}"
        )
    by_seed, by_group = values.mean(-1), values.mean(-2)
    effect = by_seed.mean(-1)
    seed, group = by_seed.var(-1, ddof=1) / s, by_group.var(-1, ddof=1) / g
    total = np.square(values - effect[..., None, None]).sum((-2, -1))
    rest = total - g * (s - 1) * s * seed - s * (g - 1) * g * group  # sums of squares
    rest = np.maximum(rest, 0) / ((s - 1) * (g - 1)) / (s * g)
    variance = seed + np.maximum(group - rest, 0)
    spread = seed**2 / (s - 1) + group**2 / (g - 1) + rest**2 / ((s - 1) * (g - 1))
    df = np.divide(variance**2, spread, out=np.full_like(variance, s - 1.0), where=spread > 0)
    return effect, np.sqrt(variance), df, np.sqrt(seed), np.sqrt(group)


def gradient(confusion: np.ndarray, score: Callable = macro_f1_of) -> np.ndarray:
    """How much one more row in each cell would move a score: derivatives [..., K, K] at confusion
    matrices [..., K, K].

    score: accuracy_of or macro_f1_of. Both stay the same when all counts are doubled, so the
    derivatives, weighed by the counts, add up to zero. Raises ValueError for another score.
    """
    confusion = np.asarray(confusion, float)
    eye, total = np.eye(confusion.shape[-1]), confusion.sum((-2, -1))[..., None, None]
    if score is accuracy_of:
        return (eye - accuracy_of(confusion)[..., None, None]) / total
    if score is not macro_f1_of:
        raise ValueError(
            f"no derivative is known of {score!r}; known are accuracy_of and macro_f1_of"
        )
    size = np.maximum(
        confusion.sum(-1) + confusion.sum(-2), 1
    )  # of a class, by truth and by prediction together
    slope = 2 * np.diagonal(confusion, axis1=-2, axis2=-1) / size / size
    return (
        2 * eye / size[..., None, :] - slope[..., :, None] - slope[..., None, :]
    ) / confusion.shape[-1]


def group_values(
    truth, predicted, groups, score: Callable = macro_f1_of, classes: int | None = None
) -> np.ndarray:
    """A score of each seed as a mean over test groups: [S, G] whose mean over groups is the score
    itself.

    truth: codes [N]; predicted: codes [S, N]; groups: any labels [N]. Accuracy is a mean over rows;
    macro F1 is not, so each group gets its influence, the score's derivative summed over the
    group's rows (the infinitesimal jackknife, Jaeckel 1972), on top of the score.
    """
    truth, predicted = np.asarray(truth, int), np.atleast_2d(np.asarray(predicted, int))
    k = classes or int(max(truth.max(), predicted.max())) + 1
    cells = truth * k + predicted
    offset = k * k * np.arange(len(predicted))[:, None]
    confusion = np.bincount((cells + offset).ravel(), minlength=len(predicted) * k * k).reshape(
        -1, k, k
    )
    influence = np.take_along_axis(gradient(confusion, score).reshape(-1, k * k), cells, axis=1)
    code = pd.factorize(np.asarray(groups))[0]
    g = int(code.max()) + 1
    sums = np.stack([np.bincount(code, weights=row, minlength=g) for row in influence])
    return score(confusion)[:, None] + g * sums


def difference(
    truth, a, b, groups, score: Callable = macro_f1_of, classes: int | None = None
) -> Estimate:
    """score(a) - score(b) over the same seeds and test rows: a and b codes [S, N], paired by seed
    and by row.

    The interval is one for other seeds *and* other test groups (documents, clusters of near
    duplicates). Raises ValueError for shapes that differ, or fewer than two seeds or groups.
    """
    a, b = np.atleast_2d(a), np.atleast_2d(b)
    if a.shape != b.shape or a.shape[1:] != np.shape(truth) or len(groups) != a.shape[1]:
        shapes = (a.shape, b.shape, np.shape(truth), len(groups))
        raise ValueError(f"needed are a and b [S, N], truth and groups [N]; got {shapes}")
    classes = classes or int(max(np.max(truth), a.max(), b.max())) + 1
    values = group_values(truth, a, groups, score, classes) - group_values(
        truth, b, groups, score, classes
    )
    effect, se, df, seed_se, group_se = (float(x) for x in two_way(values))
    return Estimate(effect, se, df, seed_se, group_se, *values.shape)


@lru_cache
def detectable_ratio(df: float, power: float = 0.8, level: float = 0.95) -> float:
    """The true difference, in standard errors, that a two-sided t test of this level detects with
    this power.
    """
    # Over the equally likely values of the estimated standard error: scipy's noncentral t is NaN
    # far out.
    estimated = np.sqrt(stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, df) / df)
    critical = stats.t.ppf((1 + level) / 2, df) * estimated

    def missing(ratio):
        return (stats.norm.sf(critical - ratio) + stats.norm.cdf(-critical - ratio)).mean() - power

    return float(optimize.brentq(missing, 0, 10 * critical.max() + 10))


def seeds_needed(sd: float, margin: float, group_se: float = 0.0, most: int = 1000) -> int:
    """The fewest seeds with which a true difference of the margin is detected with 80 % power;
    `most` if none is enough.

    sd: standard deviation of the paired difference between seeds. group_se: what the test rows add,
    which no number of seeds takes away.
    """
    for seeds in range(2, most):
        if detectable_ratio(seeds - 1) * np.hypot(sd / np.sqrt(seeds), group_se) <= margin:
            return seeds
    return most


def holm(p) -> np.ndarray:
    """p values adjusted for their number, in the order given; NaN stays NaN and is not counted.
    Holm 1979.
    """
    p = np.asarray(p, float)
    adjusted, known = np.full(p.shape, np.nan), np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted
