"""The notebook tests under seven settings of one machine, kept in data/results/settings.csv.

python -m tests.settings [names of settings; default: all, one after the other, three hours]

float32 is had by hiding the processor's 16-bit arithmetic from torch, another processor by telling
its libraries to use no instructions newer than AVX2 (2013). A busy machine has four other jobs of
two threads, which multiply matrices as long as the tests run. With another backbone every cell has
to run; what it prints is not compared.
"""

import contextlib
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from mtst_utils.experiments.results import RESULTS
from mtst_utils.experiments.starts import LARGER
from tests.benchmarks.common import machine

ROOT = Path(__file__).parents[1]
# read by every Python that starts, the kernels' too
NO_BFLOAT16 = "import torch\ntorch.cpu.get_capabilities = dict\n"
OLD = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
# One of the other jobs; it ends with the process that started it, too.
JOB = """
import os, torch
torch.set_num_threads(2)
a, parent = torch.randn(1000, 1000), os.getppid()
while os.getppid() == parent:
    a @ a
"""
# name: (threads, 16-bit arithmetic, further environment, other jobs)
SETTINGS = {
    "bfloat16, 2 threads": (2, True, {}, 0),
    "bfloat16, 1 thread": (1, True, {}, 0),
    "float32, 2 threads": (2, False, {}, 0),
    "float32, 1 thread": (1, False, {}, 0),
    "an older processor (AVX2), float32, 1 thread": (1, False, OLD, 0),
    "busy: bfloat16, 2 threads, beside four jobs of two threads": (2, True, {}, 4),
    "MPNet: bfloat16, 1 thread, outputs not compared": (1, True, {"MTST_BACKBONE": LARGER}, 0),
}


@contextlib.contextmanager
def busy(jobs):
    """Other jobs beside what is done inside; threads of theirs that wait sleep."""
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "2"}
    running = []
    try:
        for _ in range(jobs):
            running.append(subprocess.Popen([sys.executable, "-c", JOB], env=environment))
        yield
        if ended := [job.returncode for job in running if job.poll() is not None]:
            raise RuntimeError(f"{len(ended)} of the {jobs} other jobs had ended: {ended}")
    finally:
        for job in running:
            job.kill()
            job.wait()


def outcome(threads, bfloat16, environment, jobs, notebooks="notebooks"):
    """Cells that passed and that failed, minutes, and the memory of the largest process."""
    with tempfile.TemporaryDirectory() as folder, busy(jobs):
        if not bfloat16:
            (Path(folder) / "sitecustomize.py").write_text(NO_BFLOAT16)
        path = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = (
            os.environ | environment | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
        )
        started = time.perf_counter()
        command = [sys.executable, "-m", "pytest", "--color=no", "-n", "0", notebooks]
        # An older processor is slow by itself; beside other jobs the usual limit must do.
        command += [] if jobs else ["--nbval-cell-timeout=1800"]
        command += ["--nbval-lax"] if "MTST_BACKBONE" in environment else []
        out = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True
        ).stdout
    count = {
        word: int(number)
        for number, word in re.findall(r"(\d+) (passed|failed)", out.splitlines()[-1])
    }
    if not count:
        raise RuntimeError(f"pytest did not run the notebooks:\n{out[-2000:]}")
    failed = re.findall(r"^FAILED (.*)$", out, re.M)
    return {
        "passed": count.get("passed", 0),
        "failed": count.get("failed", 0),
        "which": "; ".join(failed),
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "peak MiB, so far": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
    }


def main(names):
    path = RESULTS / "settings.csv"
    for name in names or SETTINGS:
        row = {
            "setting": name,
            **outcome(*SETTINGS[name]),
            "machine": machine().replace(" 2 threads,", ""),
        }
        print(row, flush=True)
        old = pd.read_csv(path).query("setting != @name") if path.is_file() else None
        pd.concat([old, pd.DataFrame([row])]).to_csv(path, index=False)


if __name__ == "__main__":
    main(sys.argv[1:])
