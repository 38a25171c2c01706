"""Frames of sentences: from a CSV, as token ids and labels, and in shuffled batches of like length.

Taught in notebook 02, section 2.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pandas.api.types import is_scalar
from torch import Tensor

from mtst_utils import checks
from mtst_utils.encoder import checked_sentences, warn_of_cuts

NO_LABEL = -100  # what torch's cross-entropy passes over, too
POOL = 50  # batches: sentences are shuffled, then sorted by length within pools of this many


def is_missing(label: object) -> bool:
    """True for None, NaN and pandas' NA: the sentence has no label."""
    return is_scalar(label) and bool(pd.isna(label))


def load_csv(path: str | Path, text: str, tasks: Mapping[str, str]) -> pd.DataFrame:
    """Your own sentences: a CSV file with one column of text and one column of labels per task.

    text: the name of the text column; tasks: {task name: column of its labels}.
    Returns a frame with the columns text and one per task (None where not known), ready for `fit`.
    `pandas.read_csv` does the reading, so that .gz, .zip and "~" work, with these choices: every
    value is a string, as it stands ("NA", "null", "007" are words; only labels lose space at their
    ends); an empty label means "not known"; UTF-8, with or without a byte order mark; commas;
    empty lines count for nothing; other columns, also several of one name, are passed over.
    Refused: a row that is longer or shorter than the header, an empty text, a named column that is
    not there or there twice, a task called "text", fewer than two labels.
    Raises ValueError, naming the line (the header is line 1) and the column; FileNotFoundError.
    Taught in notebook 02, section 8.
    """
    checks.instance("path", path, (str, Path))
    checks.instance("text", text, str)
    path = Path(path).expanduser()
    words = [*tasks, *tasks.values()] if isinstance(tasks, dict) else []
    if not words or not all(isinstance(word, str) for word in words):
        raise ValueError(
            f"tasks must be a dict {{task name: column}} with at least one task; got {tasks!r}"
        )
    if "text" in tasks:
        raise ValueError("tasks: none can be called 'text', the column of the sentences")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    table = _table_of_csv(path)
    header = [] if table.empty else table.iloc[0].tolist()
    for column in (text, *tasks.values()):
        _check_column(path.name, column, header)
    rows = table[1:].dropna(how="all")
    if rows.empty:
        raise ValueError(f"{path.name} has no rows under its header")
    for row in rows.index[rows.isna().any(axis=1)]:
        raise _wrong_length(path, _line(table, row), table)
    frame = pd.DataFrame({"text": rows[header.index(text)]}, dtype=object)
    for row in frame.index[frame.text.str.strip() == ""]:
        line = _line(table, row)
        raise ValueError(f"{path.name}, line {line}, column {text!r}: the text is empty")
    for task, column in tasks.items():
        labels = rows[header.index(column)].str.strip().astype(object)
        frame[task] = labels.where(labels != "", None)
        if frame[task].nunique() < 2:
            found = sorted(frame[task].dropna().unique())
            raise ValueError(
                f"{path.name}, column {column!r}: a task needs two different labels or more; "
                f"found {found}"
            )
    return frame.reset_index(drop=True)


def _table_of_csv(path: Path, rows: int | None = None) -> pd.DataFrame:
    """The header and all rows (or so many) as strings; NaN is what a row lacks."""
    try:
        # Python's engine notices rows that are too short. The header as a row: its names as given.
        options = {"header": None, "dtype": str, "keep_default_na": False, "engine": "python"}
        return pd.read_csv(
            path, encoding="utf-8-sig", skip_blank_lines=False, nrows=rows, **options
        )
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name} is not UTF-8 (byte {error.start}: {error.reason}); save it as 'CSV UTF-8'"
        ) from error
    except Exception as error:  # an open quote, a damaged archive: many kinds
        too_long = re.search(r"Expected \d+ fields in line (\d+), saw", str(error))
        if too_long:  # pandas counts rows
            before = _table_of_csv(path, int(too_long[1]) - 1)
            raise _wrong_length(path, _line(before, len(before) - 1) + 1, before) from error
        raise ValueError(f"{path.name} is not a regular CSV ({error})") from error


def _wrong_length(path: Path, line: int, table: pd.DataFrame) -> ValueError:
    alone = table.shape[1] == 1
    hint = " (or are its columns not separated by commas?)" if alone else ""
    return ValueError(
        f"{path.name}, line {line}: the header has {table.shape[1]} columns, this row has not. "
        f"Put quotes around text that holds a comma or a new line{hint}"
    )


def _line(table: pd.DataFrame, row: int) -> int:
    """The number of the line on which a row ends, as an editor counts."""
    return row + 1 + sum(str(value).count("\n") for value in table[: row + 1].to_numpy().flat)


def _check_column(place: str, column: str, columns: list) -> None:
    """Raises ValueError for a column that is not there, or there twice."""
    if column not in columns:
        names = ", ".join(map(repr, columns)) or "none"
        hint = ". Are its columns separated by commas?" if len(columns) == 1 else ""
        raise ValueError(f"{place} has no column {column!r}; it has {names}{hint}")
    if columns.count(column) > 1:
        raise ValueError(f"{place} has the column {column!r} {columns.count(column)} times")


def read_frame(model, frame: pd.DataFrame) -> tuple[dict[str, Tensor], list[str]]:
    """The one door that frames go through: ({task name: its labels [N, ...]}, N sentences).

    Labels are those of the tasks the frame has a column for. Raises ValueError for none, for a
    column that is there twice, an unknown label; TypeError for text that is no string, for what is
    no MultiTaskModel or no pandas frame.
    """
    if not hasattr(model, "tasks"):
        raise TypeError(f"model must be a MultiTaskModel; got {type(model).__name__}")
    if not isinstance(frame, pd.DataFrame) and hasattr(frame, "to_pandas"):
        raise TypeError(
            f"frame must be a pandas frame; got one of {type(frame).__module__.partition('.')[0]}: "
            "give frame.to_pandas()"
        )
    checks.instance("frame", frame, pd.DataFrame)
    if len(frame) == 0:
        raise ValueError("the frame has no rows")
    present, columns = [name for name in model.tasks if name in frame], list(frame.columns)
    for column in ("text", *present):
        _check_column("the frame", column, columns)
    if not present:
        raise ValueError(
            f"the frame has a column for none of the tasks {list(model.tasks)}; it has {columns}"
        )
    labels = {name: model.tasks[name].encode(frame[name]) for name in present}
    return labels, checked_sentences(frame["text"], "text")


@dataclass(frozen=True)
class Batch:
    """The rows of one optimizer step, over all processes, and this process's share of them."""

    rows: list[int]
    parts: list[list[int]]  # what this process runs at once, one part after the other
    is_last: bool  # of its epoch


class TrainingData:
    """A frame as token ids, labels, and the batches of every epoch.

    rank, size: this process's number, and how many there are. parts: forward passes a step.
    valid: a frame that is only looked at for errors. Raises ValueError if no row has a label,
    TypeError for text that is not a string, both frames' errors before anything is trained.
    """

    def __init__(
        self,
        model,
        frame: pd.DataFrame,
        batch_size: int,
        seed: int,
        rank: int = 0,
        size: int = 1,
        parts: int = 1,
        valid: pd.DataFrame | None = None,
    ) -> None:
        self.labels, sentences = read_frame(model, frame)
        self.validates = valid is not None
        if valid is not None:
            try:
                read_frame(model, valid)  # now, and not at the end of an epoch
            except (TypeError, ValueError) as error:
                error.add_note("This is about valid, the validation sentences.")
                raise
        if not any(model.tasks[name].labelled(t).any() for name, t in self.labels.items()):
            raise ValueError(
                f"the frame has not one label for any of the tasks {list(self.labels)}"
            )
        self.ids, cut = model.encoder.tokenize(sentences)
        warn_of_cuts(cut, len(self.ids), model.encoder.max_length)
        self.batch_size, self.seed, self.parts = batch_size, seed, parts
        self.rank, self.size = rank, size
        self.steps_per_epoch = len(self._batches(0))

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, shuffled anew; skip: those trained on before an interruption."""
        batches = self._batches(epoch)
        for i, rows in enumerate(batches[skip:], skip):
            own = rows[self.rank :: self.size]
            count = min(self.parts, len(rows) // self.size)  # the same in every process
            edges = [len(own) * k // count for k in range(count + 1)]
            parts = [own[start:end] for start, end in pairwise(edges)]
            yield Batch(rows, parts, is_last=i == len(batches) - 1)

    def truth(self, rows: list[int]) -> Mapping[str, Tensor]:
        """{task: labels} of some rows."""
        index = torch.tensor(rows)
        return {name: values[index] for name, values in self.labels.items()}

    def weight_in_batch(self, model, name: str, rows: list[int], batch: Batch) -> float:
        """What a loss, averaged over these rows of a batch, counts for in the batch's mean.

        A task's loss counts by its labels; any other (of a subclass) by its sentences.
        """
        if name not in self.labels:
            return len(rows) / len(batch.rows)
        known = model.tasks[name].labelled(self.labels[name])
        return float(known[rows].sum() / known[batch.rows].sum().clamp(min=1))

    def _batches(self, epoch: int) -> list[list[int]]:
        lengths = [len(row) for row in self.ids]
        return bucketed_batches(lengths, self.batch_size, self.size, (self.seed, epoch))


def bucketed_batches(
    lengths: list[int], batch_size: int, size: int = 1, seed: int | tuple[int, int] = 0
) -> list[list[int]]:
    """Shuffled batches (row numbers) of like length: shuffled, sorted within pools, cut, shuffled.

    A last batch with fewer sentences than there are processes (size) is left out.
    """
    rng = np.random.default_rng(seed)
    order, batches = rng.permutation(len(lengths)), []
    for start in range(0, len(order), POOL * batch_size):
        pool = sorted(order[start : start + POOL * batch_size].tolist(), key=lambda i: lengths[i])
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    rng.shuffle(batches)
    return [batch for batch in batches if len(batch) >= size]
