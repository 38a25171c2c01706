"""Each notebook's whole run: seconds and peak memory, its kernel's included. python -m
tests.benchmarks.notebooks --repeats 1
"""

import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.benchmarks.common import compare

FOLDER = Path(__file__).parents[2] / "notebooks"


def execute(path):
    def measured(_):
        started = time.perf_counter()
        NotebookClient(
            nbformat.read(path, 4), timeout=900, resources={"metadata": {"path": str(FOLDER)}}
        ).execute()
        return time.perf_counter() - started

    return measured


if __name__ == "__main__":
    runs = {path.stem: execute(path) for path in sorted(FOLDER.glob("*.ipynb"))}
    compare("a notebook's whole run", "tests.benchmarks.notebooks", runs, min(runs), 1, __doc__)
