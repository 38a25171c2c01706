"""How encoding grows: 1,000, 10,000 and 100,000 sentences. Time is linear, memory flat. python -m
tests.benchmarks.growth
"""

import time

from mtst_utils.encoder import SentenceEncoder
from mtst_utils.experiments.corpora import load_rated_sentences
from tests.benchmarks.common import compare


def encode(count):
    def measured(_):
        encoder = SentenceEncoder.from_pretrained()
        texts = load_rated_sentences().text.sample(count, replace=True, random_state=0).tolist()
        encoder.encode(texts[:64], precision="auto")
        started = time.perf_counter()
        encoder.encode(texts, precision="auto")
        return (time.perf_counter() - started) / count * 1000  # of a thousand sentences

    return measured


if __name__ == "__main__":
    runs = {
        f"a thousand of {count:,} sentences": encode(count) for count in (1_000, 10_000, 100_000)
    }
    compare(
        "how encoding grows",
        "tests.benchmarks.growth",
        runs,
        "a thousand of 1,000 sentences",
        1000,
        __doc__,
    )
