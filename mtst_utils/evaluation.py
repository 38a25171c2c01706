"""The one place where a model's scores are computed.

Taught in notebook 02, section 2.
"""

import numpy as np
import pandas as pd
from pandas.api.types import is_hashable

from mtst_utils import checks
from mtst_utils.frames import is_missing, read_frame


def evaluate(
    model, frame: pd.DataFrame, by: str | None = None, *, precision: str = "auto"
) -> pd.DataFrame:
    """Score a model on a frame of text and labels, through the model's own `forward`.

    Returns one row per task that the frame has a column for: task, n (sentences with a label),
    accuracy, macro F1 (unweighted mean over all the task's labels); a regression task has mean
    absolute error and r instead. With by, a column of the frame, there are further rows, one per
    task and value of that column, which stands in a column of the same name; it is missing in the
    rows over all sentences. A task is not divided by its own column. Scores over no label at all
    are NaN, with n = 0.
    Raises ValueError as `fit` does, and for a `by` that is no column.
    Taught in notebook 02, section 2.
    """
    return pd.DataFrame(scored(model, frame, by, precision))


def scored(model, frame: pd.DataFrame, by=None, precision: str = "auto") -> list[dict]:
    """The rows of `evaluate`, each with the scores of its task's kind only."""
    by = checks.plain(by)
    labels, sentences = read_frame(model, frame)
    groups = _groups(frame, by)
    rows = []
    for name, probabilities in model.probabilities(sentences, precision).items():
        if name not in labels:
            continue
        task, truth = model.tasks[name], labels[name].numpy()
        known = task.labelled(labels[name]).numpy()
        # Within one of its own labels a task has one class, and a macro F1 that says nothing.
        for value, chosen in groups[:1] if name == by else groups:
            rated = known & chosen
            found = task.scores(truth[rated], probabilities[rated])
            checks.instance(f"what scores of task {name!r} returns", found, dict)
            scores = {"n": int(rated.sum())} | found
            if by in scores:
                raise ValueError(f"by must not be called as a score is; rename the column {by!r}")
            rows.append({"task": name} | ({} if by is None else {by: value}) | scores)
    return rows


def _groups(frame: pd.DataFrame, by: str | None) -> list[tuple[object, np.ndarray]]:
    """(None, all rows), then (value, its rows) for every value of the column."""
    groups: list[tuple[object, np.ndarray]] = [(None, np.ones(len(frame), bool))]
    if by is None:
        return groups
    no_name = is_missing(by) or not is_hashable(by)
    if no_name or list(frame.columns).count(by) != 1 or by in ("text", "task"):
        raise ValueError(
            "by must be a column of the frame, there once, and not called text or task; "
            f"got {by!r}, it has {list(frame.columns)}"
        )
    for i, value in enumerate(frame[by]):
        if not is_hashable(value):
            raise ValueError(f"by: column {by!r}, row {i}: {value!r:.60} cannot name a group")
    codes, values = pd.factorize(frame[by])  # -1 where there is none
    missing = int((codes == -1).sum())
    if missing:
        checks.warn(
            f"{missing} of {len(frame)} rows have no {by}: "
            "they count in the scores over all rows only"
        )
    return groups + [(value, codes == i) for i, value in enumerate(values)]
