"""Going on after an interruption: the state of a training run in one file that is whole or not there.

Taught in notebook 02, section 5.
"""

import hashlib
import json
import os
import time
import warnings
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

SAVE_SECONDS = 20  # a checkpoint is written at the end of an epoch, and whenever the last one is older than this


def fingerprint(run, train, labels, epochs, batch_size, seed, precision):
    """What must be the same for a checkpoint to be of the same run."""
    data = hashlib.sha256("\0".join(train["text"]).encode())
    for name, values in labels.items():
        data.update(name.encode() + values.numpy().tobytes())
    groups = [
        [group["initial_lr"], group["weight_decay"], len(group["params"])] for group in run.optimizer.param_groups
    ]
    return {
        "epochs": epochs, "batch_size": batch_size, "seed": seed, "precision": precision, "data": data.hexdigest(),
        "tasks": [repr(task) for task in run.model.tasks.values()], "optimizer": [type(run.optimizer).__name__, groups],
    }  # fmt: skip


class Checkpoint:
    """The state of a run in one safetensors file, which is replaced whole or not at all."""

    def __init__(self, folder, run, same_run):
        self.path = Path(folder, "checkpoint.safetensors") if folder is not None else None
        try:
            if folder is not None:  # now, and not after an hour of training
                self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"checkpoint must be a folder that can be written to; got {folder} ({error})") from error
        self.run, self.same_run, self.saved = run, same_run, time.monotonic()

    def save(self, whole, end_of_epoch):
        if self.path is None or not (end_of_epoch or time.monotonic() - self.saved > SAVE_SECONDS):
            return
        run, optimizer = self.run, self.run.optimizer.state_dict()
        with whole():
            tensors = {f"model.{name}": tensor for name, tensor in run.model.state_dict().items()}
        for i, state in optimizer["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in state.items()}
        facts = {"same_run": self.same_run, "step": run.step, "history": run.history, "groups": optimizer["param_groups"],
                 "scheduler": {k: v for k, v in run.scheduler.state_dict().items() if k != "lr_lambdas"}}  # fmt: skip
        new, self.saved = self.path.with_suffix(".new"), time.monotonic()
        try:
            save_file(tensors, new, metadata={"facts": json.dumps(facts)})
            os.replace(new, self.path)
        except (OSError, SafetensorError) as error:  # a full disk, say: no reason to lose what is trained
            new.unlink(missing_ok=True)
            warnings.warn(f"{self.path} could not be written at step {run.step} ({error}); training goes on, and an "
                          "interruption now would lose what came after the last one", stacklevel=4)  # fmt: skip

    def load(self):
        if self.path is None or not self.path.is_file():
            return
        try:
            with safe_open(self.path, "pt") as file:
                facts = json.loads(file.metadata()["facts"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path} is damaged ({error}): delete it, and the run begins anew") from error
        if facts["same_run"] != self.same_run:
            changed = [key for key in self.same_run if facts["same_run"].get(key) != self.same_run[key]]
            raise ValueError(
                f"{self.path} is of another run ({', '.join(changed)} differ): delete it, or choose another folder"
            )
        run, state = self.run, {}
        run.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, i, name = key.split(".")
                state.setdefault(int(i), {})[name] = value
        run.optimizer.load_state_dict({"state": state, "param_groups": facts["groups"]})
        run.scheduler.load_state_dict(facts["scheduler"] | {"lr_lambdas": [None] * len(facts["groups"])})
        run.step, run.history = facts["step"], facts["history"]
