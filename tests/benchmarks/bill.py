"""Heads alone, the whole bill: tokenizing, filling the cache and all epochs, beside HF Trainer at
its best with the same parts frozen, at the same precision.

python -m tests.benchmarks.bill [--runs "128 sentences" ...] [--repeats 3]
"""

import torch

from mtst_utils.precision import has_quick_bfloat16
from tests.benchmarks.common import compare
from tests.benchmarks.freezing import FILLED, PEER, end_to_end

PRECISION = "bfloat16" if has_quick_bfloat16(torch.device("cpu")) else "float32"
SENTENCES, EPOCHS = (128, 2_000, 16_600), (1, 5, 20)


def run(sentences, epochs, how):
    return lambda _: end_to_end(how, epochs)(sentences)


RUNS = {
    f"{sentences:,} sentences, {epochs} epoch{'s' * (epochs > 1)}, {how}": run(
        sentences, epochs, how
    )
    for sentences in SENTENCES
    for epochs in EPOCHS
    for how in (PEER, FILLED)
}

if __name__ == "__main__":
    compare(
        f"the bill of heads alone, {PRECISION}",
        "tests.benchmarks.bill",
        RUNS,
        lambda name: name.replace(FILLED, PEER),
        1,
        __doc__,
    )
