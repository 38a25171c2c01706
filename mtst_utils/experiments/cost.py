"""What each way of freezing costs, from the first sentence to the trained model: seconds and
memory.

As many epochs as in `few_labels`, filling the cache of frozen layers included. Every run is a
process of its own, so that the memory's peak is the run's. For a machine that does nothing else.
Claims 4, 7 and 12. Taught in notebook 03; method in data/METHOD.md.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import partial

from mtst_utils import fit, freeze, unfreeze_top_blocks
from mtst_utils.experiments import common
from mtst_utils.experiments.bake_off import optimizer_of
from mtst_utils.experiments.designs import RATED, Arm, Comparison, Job, Outcome, Study
from mtst_utils.experiments.few_labels import EPOCHS

STRATEGIES = {  # what is frozen before training
    "everything trained": lambda model: None,
    "one task": lambda model: None,
    "everything frozen": freeze,
    "backbone frozen": lambda model: freeze(model.encoder.backbone),
    "head A frozen": lambda model: freeze(model.heads["domain"]),
    "top 2 blocks": lambda model: unfreeze_top_blocks(model, 2),
}


def measured(
    strategy: str, backbone: str, n: int, seed: int, epochs: int | None = None
) -> dict[str, float]:
    """Train once: seconds and cpu_seconds of `fit`, and memory, the process's peak in MiB.

    "one task" learns sentiment alone, all others both. The optimizer knows every parameter, as if
    nobody had thought of it.
    """
    tasks = ("sentiment",) if strategy == "one task" else ("domain", "sentiment")
    frame = common.training_rows(Job(backbone, n, seed, {}))[["text", *tasks]]
    model = common.new_model(backbone, tasks, seed)
    optimizer = optimizer_of(model, 2e-4, 1e-3)
    STRATEGIES[strategy](model)
    start, cpu = time.perf_counter(), time.process_time()
    epochs = epochs or EPOCHS[n]
    fit(model, frame, epochs=epochs, optimizer=optimizer, seed=seed, progress=False)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1024 if sys.platform != "darwin" else 1024**2
    )
    return {"seconds": seconds, "cpu_seconds": cpu, "memory": peak}


def run(job: Job, strategy: str) -> Outcome:
    """`measured` in a process of its own (in this one at scale "quick")."""
    if job.scale == "quick":
        return Outcome({}, details=measured(strategy, job.backbone, job.n, job.seed, 1))
    command = [
        sys.executable,
        "-m",
        "mtst_utils.experiments.cost",
        strategy,
        job.backbone,
        str(job.n),
        str(job.seed),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Outcome({}, details=json.loads(done.stdout.splitlines()[-1]))


COST = Study(
    name="cost",
    claims=("4", "7", "12"),
    question="What does each way of freezing cost, end to end, and what does a second task?",
    corpus=RATED,
    arms={
        name: Arm(partial(run, strategy=name), {}, "cache filling included") for name in STRATEGIES
    },
    comparisons=(
        Comparison(
            "4", "everything trained", "one task", "no loss", "seconds", "the reference text"
        ),
        *(
            Comparison(claim, arm, rival, "practical gain", metric, "the reference text", later)
            for claim, arm, rival, later in (
                ("7", "everything frozen", "everything trained", False),
                ("7", "everything frozen", "backbone frozen", True),  # the nearest rival
                ("12", "backbone frozen", "everything trained", False),
                ("12", "top 2 blocks", "everything trained", False),
            )
            for metric in ("seconds", "memory")
        ),
        Comparison("head A's cost", "head A frozen", "everything trained", "no loss", "seconds"),
    ),
    metric="seconds",
    validation=("nothing is tuned",),
    margins={128: 0.05, 2048: 0.05},
    seeds={128: 10, 2048: 10},
    why="10 repeats show a ratio of 1.05 where they differ by 5 %, as on a quiet machine",
    tuned_at={128: 128, 2048: 2048},
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mtst_utils.experiments.cost")
    parser.add_argument("strategy", choices=list(STRATEGIES))
    parser.add_argument("backbone")
    parser.add_argument("n", type=int)
    parser.add_argument("seed", type=int)
    given = parser.parse_args()
    print(json.dumps(measured(given.strategy, given.backbone, given.n, given.seed)))


if __name__ == "__main__":
    main()
