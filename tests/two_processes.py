"""Train the small task in processes that share the work; for test_training.py, run by forked.py."""

import contextlib
import json

import small
import torch
from accelerate import debug_launcher
from accelerate.utils import patch_environment

import mtst_utils as mtst
from mtst_utils.processes import PIECES, Processes


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
        "in uneven parts": small.frame(18),  # of nine rows one process has five, the other four
    }.items():
        model = small.model(dropout=0)
        options = {
            "epochs": 1,
            "batch_size": 9 if name == "in uneven parts" else 8,
            "precision": "float32",
            "progress": False,
            "callbacks": callbacks.get(name, []),
            "parts": {"in parts": 2, "in uneven parts": 4}.get(name, 1),
        }
        # accelerate's own backward would divide by it, where there are several processes.
        # And it would scale gradients, of a loss that is not scaled.
        asked = {"gradient_accumulation_steps": "4", "mixed_precision": "fp16"}
        with patch_environment(**{f"accelerate_{name}": value for name, value in asked.items()}):
            found[name] = mtst.fit(model, frame, **options)["loss"].tolist()
    return found


def write_losses(folder):
    found = losses()
    if Processes().is_main:
        (folder / "losses.json").write_text(json.dumps(found))


def write_refusals(folder):
    """What a process is told that asks for pieces of the model, and whether that is as before."""
    rank, told = Processes().rank, {}
    for kind in PIECES:
        model = small.model()
        weights = [parameter.clone() for parameter in model.parameters()]
        with patch_environment(**{f"ACCELERATE_USE_{kind}": "true"}):
            try:
                mtst.fit(model, small.frame(), epochs=1, progress=False)
            except ValueError as error:
                told[kind] = str(error)
        told[f"{kind}: as before"] = all(map(torch.equal, model.parameters(), weights))
    (folder / f"{rank}.json").write_text(json.dumps(told))


class Counting(mtst.MultiTaskModel):
    """Its forward sets an attribute on itself."""

    def forward(self, *inputs, **options):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(*inputs, **options)


def write_calls(folder):
    """How often a subclass's forward says it was called, on a filled cache, and in bfloat16."""
    model = Counting(small.model(dropout=0).encoder, small.model().tasks.values())
    mtst.freeze(model.encoder)
    options = {"epochs": 3, "batch_size": 8, "precision": "bfloat16", "progress": False}
    seen = 0

    def count(module, inputs, output):
        nonlocal seen
        seen += len(inputs[0])

    model.encoder.backbone.encoder.layer[0].register_forward_hook(count)
    history = mtst.fit(model, small.frame(), **options)
    finite = bool(history.loss.notna().all())
    found = [model.calls, len(history), finite, seen]
    (folder / f"{Processes().rank}.json").write_text(json.dumps(found))


def write_disagreement(folder):
    """What each process is told whose checkpoint stands in a folder of its own."""

    class Interruption:
        def after_epoch(self, run):
            if run.epoch == 1:
                raise KeyboardInterrupt

    rank, told = Processes().rank, "nothing"
    options = {"epochs": 3, "checkpoint": folder / str(rank), "progress": False}
    with contextlib.suppress(KeyboardInterrupt):
        mtst.fit(small.model(), small.frame(), callbacks=[Interruption()], **options)
    try:
        mtst.fit(small.model(), small.frame(), callbacks=[Interruption()], **options)
    except ValueError as error:
        told = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(told))


def launch(function, folder):
    """Run it in two processes, as `accelerate launch` would; what it finds, it writes."""
    torch.set_num_threads(1)
    debug_launcher(function, args=(folder,), num_processes=2)
