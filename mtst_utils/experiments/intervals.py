"""Every 95 % interval of the series, each by a named method.

Taught in notebook 01, section 5.
"""

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import confusion_matrix


def wilson(successes, n):
    """A share with its Wilson interval: (value, low, high). For counts, such as right answers out of n."""
    low, high = stats.binomtest(int(successes), int(n)).proportion_ci(method="wilson")
    return successes / n, low, high


def accuracy_of(confusion):
    """Accuracy from confusion matrices [..., K, K], rows the truth."""
    return np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum((-2, -1))


def macro_f1_of(confusion):
    """Unweighted mean of the classes' F1 from confusion matrices [..., K, K]; a class never seen nor said counts 0."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    return (2 * right / np.maximum(confusion.sum(-1) + confusion.sum(-2), 1)).mean(-1)


def bootstrap_score(truth, predicted, score=macro_f1_of, resamples=2000, seed=0):
    """A score of predictions with its percentile bootstrap interval over the test rows: (value, low, high).

    Drawing N rows with replacement is drawing the confusion matrix's cells from a multinomial, which is quick.
    """
    table = confusion_matrix(truth, predicted)
    drawn = np.random.default_rng(seed).multinomial(table.sum(), (table / table.sum()).ravel(), resamples)
    low, high = np.percentile(score(drawn.reshape(-1, *table.shape)), [2.5, 97.5])
    return float(score(table)), float(low), float(high)


def bootstrap_difference(truth, a, b, score=macro_f1_of, resamples=2000, seed=0):
    """score(a) - score(b) for two predictions of the same rows, with its paired bootstrap interval: (value, low, high)."""
    labels = sorted(set(truth) | set(a) | set(b))
    truth, a, b = (pd.Categorical(x, categories=labels).codes.astype(int) for x in (truth, a, b))
    k = len(labels)
    cells = np.bincount((truth * k + a) * k + b, minlength=k**3)
    drawn = np.random.default_rng(seed).multinomial(cells.sum(), cells / cells.sum(), resamples)
    drawn = np.concatenate([cells[None], drawn]).reshape(-1, k, k, k)
    difference = score(drawn.sum(3)) - score(drawn.sum(2))
    return float(difference[0]), *(float(x) for x in np.percentile(difference[1:], [2.5, 97.5]))


def t_interval(values):
    """Mean over seeds with its t interval: (mean, low, high). Paired comparisons pass the differences, seed by seed."""
    values = np.asarray(values, float)
    if len(values) < 2:
        raise ValueError(f"an interval needs two values or more; got {len(values)}")
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)
