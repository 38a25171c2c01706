"""All benchmarks, one after the other, each with its own number of repeats: python -m tests.benchmarks"""

import subprocess
import sys

QUESTIONS = ("encoding", "encoding --backbone all-mpnet-base-v2", "training", "freezing",
             "freezing --backbone all-mpnet-base-v2 --repeats 3", "tasks", "growth --repeats 3", "notebooks --repeats 1")  # fmt: skip

for question in QUESTIONS:
    subprocess.run([sys.executable, "-m", *f"tests.benchmarks.{question}".split()], check=True)
