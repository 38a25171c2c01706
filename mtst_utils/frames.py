"""A frame of sentences as token ids, labels, and shuffled batches of like length.

Taught in notebook 02, section 5.
"""

import csv
from pathlib import Path

import numpy as np
import pandas as pd

from mtst_utils import checks
from mtst_utils.encoder import checked_sentences
from mtst_utils.multitask import NO_LABEL

POOL = 50  # batches: sentences are shuffled, then sorted by length within pools of this many batches


def load_csv(path, text, tasks):
    """Your own sentences: a CSV file with one column of text and one column of labels per task.

    text: the name of the text column; tasks: {task name: column of its labels}. An empty label means "not known".
    Returns a frame with the columns text and one per task (None where not known), ready for `fit`.
    Raises ValueError, naming the line (the header is line 1) and the column; FileNotFoundError.
    Taught in notebook 02, section 10.
    """
    path = Path(path)
    if not isinstance(tasks, dict) or not tasks:
        raise ValueError(f"tasks must be a dict {{task name: column}} with at least one task; got {tasks!r}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    rows, lines = [], []
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            header = reader.fieldnames or []
            for column in [text, *tasks.values()]:
                if column not in header:
                    raise ValueError(
                        f"{path.name} has no column {column!r}; it has {', '.join(map(repr, header)) or 'none'}"
                    )
            for row in reader:  # a field too many comes under the key None, one too few has the value None
                if None in row or None in row.values():
                    raise ValueError(f"{path.name}, line {reader.line_num}: the header has {len(header)} columns, this "
                                     "row has not. Put quotes around text that holds a comma")  # fmt: skip
                rows.append([row[text], *(row[column].strip() or None for column in tasks.values())])
                lines.append(reader.line_num)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name} is not UTF-8 (byte {error.start}: {error.reason}); save it as 'CSV UTF-8'"
        ) from error
    except csv.Error as error:
        raise ValueError(f"{path.name}, near line {reader.line_num + 1}: not a regular CSV ({error})") from error
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
                f"{path.name}, column {column!r}: a task needs two different labels or more; found {found}"
            )
    return frame


def encode_labels(model, frame):
    """{task name: LongTensor [N]} for the tasks the frame has a column for. Raises ValueError if it has none."""
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
            f"the frame has a column for none of the tasks {list(model.tasks)}; it has {list(frame.columns)}"
        )
    return labels


def encode_frame(model, frame):
    """A frame as token id lists [N] and {task name: LongTensor [N]}. Raises ValueError if no row has a label."""
    labels = encode_labels(model, frame)
    if all((values == NO_LABEL).all() for values in labels.values()):
        raise ValueError(f"the frame has not one label for any of the tasks {list(labels)}")
    ids, cut = model.encoder.tokenize(checked_sentences(frame["text"], "text"))
    model.encoder.warn_of_cuts(cut, len(ids), stacklevel=4)
    return ids, labels


def bucketed_batches(lengths, batch_size, world=1, seed=0):
    """Shuffled batches (lists of row numbers) of like length: shuffled, sorted within pools, cut, and shuffled again.

    A last batch with fewer sentences than there are processes (world) is left out.
    """
    rng = np.random.default_rng(seed)
    order, batches = rng.permutation(len(lengths)), []
    for start in range(0, len(order), POOL * batch_size):
        pool = sorted(order[start : start + POOL * batch_size].tolist(), key=lambda i: lengths[i])
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    rng.shuffle(batches)
    return [batch for batch in batches if len(batch) >= world]
