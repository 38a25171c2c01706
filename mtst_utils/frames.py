"""Frames of sentences: from a CSV, as token ids and labels, and in shuffled batches of like length.

Taught in notebook 02, section 5.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mtst_utils import checks
from mtst_utils.encoder import checked_sentences, warn_of_cuts

NO_LABEL = -100  # what torch's cross-entropy passes over, too
POOL = 50  # batches: sentences are shuffled, then sorted by length within pools of this many


def is_missing(label: object) -> bool:
    """True for None, NaN and pandas' NA: the sentence has no label."""
    # NaN is the value that differs from itself; NA's comparisons are neither true nor false.
    return label is None or label is pd.NA or bool(np.isscalar(label) and label != label)


def load_csv(path: str | Path, text: str, tasks: Mapping[str, str]) -> pd.DataFrame:
    """Your own sentences: a CSV file with one column of text and one column of labels per task.

    text: the name of the text column; tasks: {task name: column of its labels}. An empty label
    means "not known".
    Returns a frame with the columns text and one per task (None where not known), ready for `fit`.
    Raises ValueError, naming the line (the header is line 1) and the column; FileNotFoundError.
    Taught in notebook 02, section 10.
    """
    path = Path(path).expanduser()
    if not isinstance(tasks, dict) or not tasks:
        raise ValueError(
            f"tasks must be a dict {{task name: column}} with at least one task; got {tasks!r}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    rows, lines = _rows_of_csv(path, text, list(tasks.values()))
    if not rows:
        raise ValueError(f"{path.name} has no rows under its header")
    frame = pd.DataFrame(rows, columns=["text", *tasks], dtype=object)
    for line, sentence in zip(lines, frame["text"], strict=True):
        if not sentence.strip():
            raise ValueError(f"{path.name}, line {line}, column {text!r}: the text is empty")
    for task, column in tasks.items():
        if frame[task].nunique() < 2:
            found = sorted(frame[task].dropna().unique())
            raise ValueError(
                f"{path.name}, column {column!r}: a task needs two different labels or more; "
                f"found {found}"
            )
    return frame


def _rows_of_csv(
    path: Path, text: str, columns: list[str]
) -> tuple[list[list[str | None]], list[int]]:
    """Of every row its text and its labels, and the number of the line on which it ends."""
    rows, lines = [], []
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            header = reader.fieldnames or []
            _check_header(path.name, header, [text, *columns])
            for row in reader:
                # A field too many comes under the key None, one too few has the value None.
                if None in row or None in row.values():
                    raise ValueError(
                        f"{path.name}, line {reader.line_num}: the header has {len(header)} "
                        "columns, this row has not. Put quotes around text that holds a comma"
                    )
                rows.append([row[text], *(row[column].strip() or None for column in columns)])
                lines.append(reader.line_num)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name} is not UTF-8 (byte {error.start}: {error.reason}); save it as 'CSV UTF-8'"
        ) from error
    except csv.Error as error:
        raise ValueError(
            f"{path.name}, near line {reader.line_num + 1}: not a regular CSV ({error})"
        ) from error
    return rows, lines


def _check_header(name: str, header: Sequence[str], columns: list[str]) -> None:
    """Raises ValueError for the first of the columns that the header of the file has not."""
    for column in columns:
        if column not in header:
            raise ValueError(
                f"{name} has no column {column!r}; it has {', '.join(map(repr, header)) or 'none'}"
            )


def encode_labels(model, frame: pd.DataFrame) -> dict[str, Tensor]:
    """{task name: its labels as a tensor [N, ...]} for the tasks the frame has a column for.

    Raises ValueError if it has none, TypeError for what is no MultiTaskModel or no frame.
    """
    if not hasattr(model, "tasks"):
        raise TypeError(f"model must be a MultiTaskModel; got {type(model).__name__}")
    checks.instance("frame", frame, pd.DataFrame)
    if len(frame) == 0:
        raise ValueError("the frame has no rows")
    if "text" not in frame:
        raise ValueError(f"the frame has no column 'text'; it has {list(frame.columns)}")
    labels = {name: task.encode(frame[name]) for name, task in model.tasks.items() if name in frame}
    if not labels:
        raise ValueError(
            f"the frame has a column for none of the tasks {list(model.tasks)}; "
            f"it has {list(frame.columns)}"
        )
    return labels


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
        self.labels, sentences = _labels_and_sentences(model, frame)
        self.validates = valid is not None
        if valid is not None:
            _labels_and_sentences(model, valid)  # now, and not at the end of an epoch
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
            length = -(-len(own) // self.parts)  # rounded up
            parts = [own[k : k + length] for k in range(0, len(own), length)]
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


def _labels_and_sentences(model, frame: pd.DataFrame) -> tuple[dict[str, Tensor], list[str]]:
    return encode_labels(model, frame), checked_sentences(frame["text"], "text")


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
