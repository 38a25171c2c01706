"""A study in processes that are killed at random moments; print as JSON what each kill left, and the end.

Forked from one process that has only imported, since importing takes longer than the study.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from mtst_utils import results, studies

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


def main(folder):
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
    print(json.dumps({"rows per run": sorted({rows for kill in left for rows in kill.values()}),
                      "runs at the kills": [len(kill) for kill in left], "rows in the end": finished()}))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
