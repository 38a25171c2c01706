"""What does a second task cost? `python -m tests.benchmarks.tasks`: one encoder with two heads,
against the same with one head, and against a model per task.
"""

import time

from mtst_utils.experiments.corpora import load_rated_sentences
from mtst_utils.experiments.transfer import new_model
from tests.benchmarks.common import compare


def answer(models, sentences):
    """Seconds in which these models answer for so many sentences, a short warm-up aside."""
    texts = load_rated_sentences().text.sample(sentences, random_state=0)
    for model in models:
        model.probabilities(texts[:64])
    started = time.perf_counter()
    for model in models:
        model.probabilities(texts)
    return time.perf_counter() - started


def shared(sentences):
    return answer([new_model()], sentences)


def alone(sentences):
    return answer([new_model(tasks=["sentiment"])], sentences)


def separate(sentences):
    return answer([new_model(tasks=[task]) for task in ("domain", "sentiment")], sentences)


if __name__ == "__main__":
    runs = {"one encoder, two heads": shared, "one model, one task": alone, "two models": separate}
    compare("both tasks answered", "tests.benchmarks.tasks", runs, "two models", 2000, __doc__)
