"""A frame of sentences as token ids, labels, and shuffled batches of like length.

Taught in notebook 02, section 5.
"""

import numpy as np
import pandas as pd

from mtst_utils import checks
from mtst_utils.encoder import checked_sentences
from mtst_utils.multitask import NO_LABEL

POOL = 50  # batches: sentences are shuffled, then sorted by length within pools of this many batches


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
