"""What every benchmark does: each run in a process of its own, in turn, several repeats; a table of
ratios, kept as CSV.
"""

import argparse
import platform
import resource
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pandas as pd
import torch

from mtst_utils.experiments.results import RESULTS

# Encoding is compared at the same precision; loading its weights in bfloat16 is the peer's quickest
# way there.
PEERS = {
    "float32": "sentence-transformers, float32",
    "bfloat16": "sentence-transformers, weights in bfloat16",
}
OPENVINO = "sentence-transformers with OpenVINO"


def machine():
    """The processor, its threads, and the versions that matter, in one line."""
    names = [
        line.split(":")[1].strip()
        for line in _lines("/proc/cpuinfo")
        if line.startswith("model name")
    ]
    versions = " ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    return (
        f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} "
        f"threads, {versions}"
    )


def _lines(path):
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def compare(question, module, runs, peer, items, description):
    """The command line of a benchmark. runs: {name: function(items) -> seconds}; peer: the name
    others are compared with, or a function from a run's name to that name. Each run starts anew,
    since one may change what helps the next (how malloc keeps memory). items: sentences by default.
    Prints speed relative to the peer, and replaces this question's rows in
    data/results/benchmarks.csv.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--sentences", type=int, default=items)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=runs, help="measure this one and print its seconds")
    parser.add_argument(
        "--runs", nargs="*", help="only the runs whose names begin with one of these"
    )
    parser.add_argument(
        "--note", default="", help="added to the question: rows of their own, as of another machine"
    )
    arguments = parser.parse_args()
    question += arguments.note
    if arguments.only:
        seconds = runs[arguments.only](arguments.sentences)
        peak = max(
            resource.getrusage(who).ru_maxrss
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        print("\n", seconds, peak / 1024)
        return
    runs = [name for name in runs if name.startswith(tuple(arguments.runs or [""]))]
    seconds, peak = {name: [] for name in runs}, {name: [] for name in runs}
    for _ in range(arguments.repeats):
        for name in runs:
            command = [
                sys.executable,
                "-m",
                module,
                "--sentences",
                str(arguments.sentences),
                "--only",
                name,
            ]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            seconds[name].append(float(out.split()[-2]))
            peak[name].append(float(out.split()[-1]))
    print(
        f"{question}: {arguments.sentences} sentences, {arguments.repeats} repeats in turn, "
        f"{machine()}"
    )
    for name, values in seconds.items():
        other = peer(name) if callable(peer) else peer
        ratios = [theirs / own for theirs, own in zip(seconds[other], values, strict=True)]
        print(
            f"{name:40} {arguments.sentences / statistics.median(values):8.0f} sentences/s; "
            f"{statistics.median(ratios):7.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) times {other}; peak "
            f"{statistics.median(peak[name]):.0f} MiB"
        )
    keep(question, seconds, arguments.sentences, peak)


def keep(question, seconds, items, peak=None):
    """Replace a question's rows in data/results/benchmarks.csv. seconds, peak (MiB): {run: one
    value a repeat}.
    """
    path = RESULTS / "benchmarks.csv"
    old = pd.read_csv(path).query("question != @question") if path.is_file() else None
    rows = [
        {
            "question": question,
            "run": name,
            "repeat": i,
            "sentences": items,
            "seconds": round(value, 4),
            "peak MiB": round(peak[name][i]) if peak else float("nan"),
            "machine": machine(),
        }
        for name, values in seconds.items()
        for i, value in enumerate(values)
    ]
    pd.concat([old, pd.DataFrame(rows)]).to_csv(path, index=False)
