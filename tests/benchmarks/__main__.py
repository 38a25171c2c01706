"""All benchmarks, one after the other, about two hours on 2 cores: python -m tests.benchmarks"""

import subprocess
import sys

QUESTIONS = (
    "training",
    "encoding --repeats 3",
    "encoding --backbone all-mpnet-base-v2 --repeats 3 --sentences 500",
    "variants --repeats 3",
    "variants --backbone all-mpnet-base-v2 --repeats 3 --sentences 500",
    "tasks",
    "second_task",
    "freezing --repeats 3",
    "freezing --backbone all-mpnet-base-v2 --repeats 3 --sentences 320",
    "bill --repeats 1",
    "scaling --repeats 3",
    "growth --repeats 1",
    "notebooks --repeats 1",
    "profile",
    "profile --backbone all-mpnet-base-v2",
    "figure",
)

for question in QUESTIONS:
    subprocess.run([sys.executable, "-m", *f"tests.benchmarks.{question}".split()], check=True)
