"""What does a second task cost in training? A step for both tasks and one for sentiment alone on
the same batch, in turn and in one process, so that whatever else the machine does meets both; each
is first as often as last, which in the study `cost` it is not.

python -m tests.benchmarks.second_task [--repeats 10]
"""

import argparse
import statistics
import time

import torch

import mtst_utils as mtst
from mtst_utils.experiments.transfer import new_model, split
from mtst_utils.frames import TrainingData
from mtst_utils.learning_rates import default_optimizer
from mtst_utils.precision import autocast
from tests.benchmarks.common import keep

TASKS = {"both tasks": ["domain", "sentiment"], "one task": ["sentiment"]}
PAIRS, BATCH = 20, 16  # steps of each run in a repeat; sentences in a step


class Training:
    """A model, its data and its optimizer; `step` is one of `fit`'s, without its records."""

    def __init__(self, tasks):
        self.model = new_model(tasks=tasks).train()
        self.data = TrainingData(self.model, split("train", PAIRS * BATCH), BATCH, seed=0)
        self.optimizer = default_optimizer(self.model)

    def step(self, rows):
        inputs = self.model.encoder.collate([self.data.ids[i] for i in rows])
        with autocast("auto", torch.device("cpu")):
            loss = self.model(*inputs, labels=self.data.truth(rows)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def repeat(runs, order):
    """{run: its median step of PAIRS, in seconds}; the order of runs turns from step to step."""
    seconds = {name: [] for name in order}
    for batch in next(iter(runs.values())).data.epoch(0):
        for name in order:
            started = time.perf_counter()
            runs[name].step(batch.rows)
            seconds[name].append(time.perf_counter() - started)
        order = order[::-1]
    return {name: statistics.median(values) for name, values in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
    mtst.seed_everything(0)
    runs = {name: Training(tasks) for name, tasks in TASKS.items()}
    repeat(runs, list(TASKS))  # a warm-up
    found = [repeat(runs, list(TASKS)) for _ in range(repeats)]
    ratios = [seconds["both tasks"] / seconds["one task"] for seconds in found]
    print(
        f"a step for both tasks takes {statistics.median(ratios):.3f} ({min(ratios):.3f} to "
        f"{max(ratios):.3f}) times as long as one for sentiment alone"
    )
    by_run = {name: [seconds[name] for seconds in found] for name in TASKS}
    keep("a training step for both tasks or one", by_run, BATCH)


if __name__ == "__main__":
    main()
