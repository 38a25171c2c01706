"""Train the small task in processes that are killed at random moments; tell what came of it.

Run by forked.py: training processes are forked from one that has only imported.
"""

import os
import random
import signal
import time
from pathlib import Path

import small
import torch

import mtst_utils as mtst
from mtst_utils import checkpoints

EPOCHS = 30


def train(folder, save_seconds):
    torch.set_num_threads(1)
    checkpoints.SAVE_SECONDS = save_seconds
    model = small.model()
    mtst.fit(
        model,
        small.frame(),
        epochs=EPOCHS,
        batch_size=8,
        precision="float32",
        checkpoint=folder,
        progress=False,
    )


def child(folder, save_seconds=checkpoints.SAVE_SECONDS):
    process = os.fork()
    if process == 0:
        train(folder, save_seconds)
        os._exit(0)
    return process


def reached(folder):
    file = Path(folder, "checkpoint.pt")
    if not file.is_file():
        return 0, None
    state = torch.load(file, weights_only=True)
    return state["step"], state["model"]


def changed(file, since):
    return file.is_file() and file.stat().st_mtime_ns != since


def train_and_kill(folder):
    rng, steps, file = random.Random(0), [], folder / "killed" / "checkpoint.pt"
    while len(steps) < 10:
        before = file.stat().st_mtime_ns if file.is_file() else None
        # saved after every step, so that many kills fall into the writing
        process = child(folder / "killed", save_seconds=float("-inf"))
        while not changed(file, before):  # until it trains
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        assert os.WIFSIGNALED(status), "it had finished before it was killed: nothing is tested"
        steps.append(reached(folder / "killed")[0])
    for name in ("killed", "whole"):
        os.waitpid(child(folder / name), 0)
    (last, a), (_, b) = reached(folder / "killed"), reached(folder / "whole")
    same = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    return {"kills": len(steps), "steps at the kills": steps, "steps": last, "same weights": same}
