"""A study in processes that are killed at random moments; tell what each kill left, and the end.

Run by forked.py: the processes are forked from one that has only imported.
"""

import os
import random
import signal
import time

from mtst_utils.experiments import results, studies

METRICS = {
    f"metric number {i}, which has a long name": i / 7 for i in range(400)
}  # rows of 60 KB: more than one buffer
SEEDS = 40


def run(backbone, seed, scale):
    time.sleep(0.01)
    return 10, METRICS


def child():
    process = os.fork()
    if process == 0:
        studies.run_study("toy", "b", seeds=SEEDS)
        os._exit(0)
    return process


def finished():
    return results.load("toy").groupby("seed").size().to_dict()


def run_and_kill(folder):
    results.RESULTS, studies.STUDIES["toy"] = folder, {"only": run}
    results._commit = lambda: "none"  # asking git takes longer than the run
    rng, left = random.Random(0), []
    while len(left) < 8:
        before, process = len(finished()), child()
        while len(finished()) == before:  # until it works
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        assert os.WIFSIGNALED(status), "it had finished before it was killed: nothing is tested"
        left.append(finished())
    os.waitpid(child(), 0)
    return {
        "rows per run": sorted({rows for kill in left for rows in kill.values()}),
        "runs at the kills": [len(kill) for kill in left],
        "rows in the end": finished(),
    }
