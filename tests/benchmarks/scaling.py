"""Training in one, two and four processes of one thread each: what exchanging gradients costs, and
what more processes than cores do.

python -m tests.benchmarks.scaling
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mtst_utils as mtst
from mtst_utils.experiments.transfer import new_model, split
from tests.benchmarks.common import compare

TIMED = "MTST_TIMED"  # where the main process of several writes its seconds


def in_processes(count):
    """Seconds of an epoch, everything trainable, in so many processes of one thread each."""

    def measured(sentences):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "seconds"
            settings = {"ACCELERATE_USE_CPU": "yes", "OMP_NUM_THREADS": "1", TIMED: str(file)}
            launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
            module = ["--module", "tests.benchmarks.scaling", str(sentences)]
            command = [sys.executable, "-m", *launch, *module]
            subprocess.run(command, env=os.environ | settings, check=True, capture_output=True)
            return float(file.read_text())

    return measured


def train(sentences):
    """What each of the processes does."""
    frame, ends = split("train", sentences), []

    class Epochs:
        def on_epoch(self, run):
            ends.append(time.perf_counter())

    mtst.fit(new_model(), frame, epochs=2, callbacks=[Epochs()], progress=False)
    if os.environ.get("RANK", "0") == "0":
        Path(os.environ[TIMED]).write_text(str(time.perf_counter() - ends[1]))


if __name__ == "__main__":
    if TIMED in os.environ:
        train(int(sys.argv[1]))
    else:
        runs = {f"processes: {count}": in_processes(count) for count in (1, 2, 4)}
        compare(
            "training in several processes",
            "tests.benchmarks.scaling",
            runs,
            "processes: 1",
            960,
            __doc__,
        )
