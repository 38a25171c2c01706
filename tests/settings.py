"""The notebook tests under five settings of one machine, kept in data/results/settings.csv.

python -m tests.settings [names of settings; default: all five, one after the other, about an hour]

float32 is had by hiding the processor's 16-bit arithmetic from torch, another processor by telling
its libraries to use no instructions newer than AVX2 (2013).
"""

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
from tests.benchmarks.common import machine

ROOT = Path(__file__).parents[1]
# read by every Python that starts, the kernels' too
NO_BFLOAT16 = "import torch\ntorch.cpu.get_capabilities = dict\n"
OLD = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
# name: (threads, 16-bit arithmetic, further environment)
SETTINGS = {
    "bfloat16, 2 threads": (2, True, {}),
    "bfloat16, 1 thread": (1, True, {}),
    "float32, 2 threads": (2, False, {}),
    "float32, 1 thread": (1, False, {}),
    "an older processor (AVX2), float32, 1 thread": (1, False, OLD),
}


def outcome(threads, half, environment):
    """Cells that passed and that failed, minutes, and the memory of the largest process."""
    with tempfile.TemporaryDirectory() as folder:
        if not half:
            (Path(folder) / "sitecustomize.py").write_text(NO_BFLOAT16)
        environment = (
            os.environ | environment | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": folder}
        )
        started = time.perf_counter()
        command = [sys.executable, "-m", "pytest", "notebooks", "--nbval-cell-timeout=1800"]
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
