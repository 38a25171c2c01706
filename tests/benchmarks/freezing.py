"""One epoch with a part of the backbone frozen: without the frozen-prefix cache, and with the cache filled.

python -m tests.benchmarks.freezing [--backbone all-mpnet-base-v2]
"""

import os
import statistics
import sys
import time

import mtst_utils as mtst
from mtst_utils import prefix
from mtst_utils.transfer import new_model, split
from tests.benchmarks.common import compare

WITHOUT, FILLED = "without the cache", "with the cache filled"


class Epochs:
    def __init__(self):
        self.starts = []

    def on_epoch(self, run):
        self.starts.append(time.perf_counter())


def epoch(blocks, cached, batch_size=32):
    """Seconds of an epoch: the median of the second, third and fourth, since the first one fills the cache."""

    def measured(sentences):
        prefix.MEMORY = 0.5 if cached else 0
        model, epochs = new_model(os.environ.get("MTST_BACKBONE")), Epochs()
        if blocks is not None:
            mtst.unfreeze_top_blocks(model, blocks)
        mtst.fit(model, split("train", sentences), epochs=4, callbacks=[epochs], batch_size=batch_size, progress=False)
        ends = [*epochs.starts[1:], time.perf_counter()]
        return statistics.median(end - start for start, end in list(zip(epochs.starts, ends, strict=True))[1:])

    return measured


PARTS = {"heads alone": 0, "heads + top block": 1, "heads + top 2 blocks": 2, "heads + top 4 blocks": 4}
RUNS = {f"{name}, {how}": epoch(blocks, how == FILLED) for name, blocks in PARTS.items() for how in (WITHOUT, FILLED)}
RUNS |= {f"heads alone in batches of 128, {how}": epoch(0, how == FILLED, 128) for how in (WITHOUT, FILLED)}
RUNS["everything"] = epoch(None, cached=False)

if __name__ == "__main__":
    if "--backbone" in sys.argv:  # the processes that measure must see it, too
        os.environ["MTST_BACKBONE"] = sys.argv.pop(sys.argv.index("--backbone") + 1)
        sys.argv.remove("--backbone")
    question = f"one epoch with a part frozen, {os.environ.get('MTST_BACKBONE', 'all-MiniLM-L6-v2')}"
    compare(question, "tests.benchmarks.freezing", RUNS, lambda name: name.replace(FILLED, WITHOUT), 640, __doc__)
