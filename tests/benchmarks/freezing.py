"""One epoch with a part of the backbone frozen: HF Trainer at its best, `fit` without the
frozen-prefix cache, and with it.

python -m tests.benchmarks.freezing [--backbone all-mpnet-base-v2]
"""

import os
import statistics
import sys
import time

from transformers import TrainerCallback

import mtst_utils as mtst
from mtst_utils.experiments.transfer import new_model, split
from tests.benchmarks.common import compare
from tests.benchmarks.training import trainer

WITHOUT, FILLED, PEER = "without the cache", "with the cache filled", "HF Trainer"


class Epochs(TrainerCallback):
    """When each epoch began: a callback of `fit` and of HF Trainer."""

    def __init__(self):
        self.starts = []

    def on_epoch(self, run):
        self.starts.append(time.perf_counter())

    def on_epoch_begin(self, *_, **__):
        self.starts.append(time.perf_counter())


def epoch(blocks, how, batch_size=32):
    """Seconds of an epoch: the median of the second, third and fourth, since the first one fills
    the cache.
    """

    def measured(sentences):
        model, epochs = new_model(os.environ.get("MTST_BACKBONE")), Epochs()
        if blocks is not None:
            mtst.unfreeze_top_blocks(model, blocks)
        frame = split("train", sentences)
        if how == PEER:
            trainer(frame, True, model, 4, [epochs])
        else:
            options = {"batch_size": batch_size, "acceleration": how == FILLED, "progress": False}
            mtst.fit(model, frame, epochs=4, callbacks=[epochs], **options)
        ends = [*epochs.starts[1:], time.perf_counter()]
        return statistics.median(
            end - start for start, end in list(zip(epochs.starts, ends, strict=True))[1:]
        )

    return measured


def end_to_end(how, count=10):
    """Seconds of all epochs of heads alone, tokenizing and filling the cache included."""

    def measured(sentences):
        model, frame = new_model(os.environ.get("MTST_BACKBONE")), split("train", sentences)
        mtst.freeze(model.encoder)
        started = time.perf_counter()
        if how == PEER:
            trainer(frame, True, model, count)
        else:
            mtst.fit(model, frame, epochs=count, acceleration=how == FILLED, progress=False)
        return time.perf_counter() - started

    return measured


PARTS = {
    "heads alone": 0,
    "heads + top block": 1,
    "heads + top 2 blocks": 2,
    "heads + top 4 blocks": 4,
}
RUNS = {
    f"{name}, {how}": epoch(blocks, how)
    for name, blocks in PARTS.items()
    for how in (PEER, WITHOUT, FILLED)
}
RUNS |= {f"heads alone in batches of 128, {how}": epoch(0, how, 128) for how in (WITHOUT, FILLED)}
TEN = "ten epochs of heads alone end to end"
RUNS |= {f"{TEN}, {how}": end_to_end(how) for how in (PEER, FILLED)}
RUNS["everything"] = epoch(None, WITHOUT)


def peer(name):
    other = f"{name.rpartition(', ')[0]}, {PEER}"
    return other if other in RUNS else name.replace(FILLED, WITHOUT)


if __name__ == "__main__":
    if "--backbone" in sys.argv:  # the processes that measure must see it, too
        os.environ["MTST_BACKBONE"] = sys.argv.pop(sys.argv.index("--backbone") + 1)
        sys.argv.remove("--backbone")
    question = (
        f"one epoch with a part frozen, {os.environ.get('MTST_BACKBONE', 'all-MiniLM-L6-v2')}"
    )
    compare(question, "tests.benchmarks.freezing", RUNS, peer, 640, __doc__)
