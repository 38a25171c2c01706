"""Train the small task in two ways, in processes that share the work; for test_training.py, run by
forked.py.
"""

import json

import small
import torch
from accelerate import debug_launcher

import mtst_utils as mtst
from mtst_utils.processes import Processes


def losses():
    found = {"processes": Processes().size}
    callbacks = {"gradual": [mtst.GradualUnfreezing(0.25, 0.75)]}
    few = small.frame()
    few.loc[few.index % 16 != 0, "letter"] = (
        None  # in most batches at most one process has a label of this task
    )
    for name, frame in {
        "everything": small.frame(),
        "gradual": small.frame(),
        "few labels": few,
        "in parts": few,
    }.items():
        model = small.model(dropout=0)
        options = {
            "epochs": 1,
            "batch_size": 8,
            "precision": "float32",
            "progress": False,
            "callbacks": callbacks.get(name, []),
            "parts": 2 if name == "in parts" else 1,
        }
        found[name] = mtst.fit(model, frame, **options)["loss"].tolist()
    return found


def _write(path):
    found = losses()
    if Processes().is_main:
        path.write_text(json.dumps(found))


def launch(path):
    """Train in two processes, as `accelerate launch` would; the losses are written to path."""
    torch.set_num_threads(1)
    debug_launcher(_write, args=(path,), num_processes=2)
