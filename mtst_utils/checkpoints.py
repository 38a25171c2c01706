"""Going on after an interruption: the state of a training run in one file, whole or not there.

Taught in notebook 02, section 2.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mtst_utils import checks
from mtst_utils.frames import read_frame
from mtst_utils.freezing import freeze_as, what_is_frozen

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
SAVE_SECONDS = 20  # written at the end of an epoch, and whenever the last one is older than this


def fingerprint(run, valid: pd.DataFrame | None, **settings) -> dict:
    """What must be the same for a checkpoint to be of the same run: whatever determines its result.

    Taken before the first step. run: model, data, optimizer, scheduler and callbacks; settings:
    numbers and words that `fit` was given.
    """
    model, encoder = run.model, run.model.encoder
    config = encoder.backbone.config.to_dict()
    for where in ("_name_or_path", "transformers_version"):  # from where, and not what
        config.pop(where, None)
    dropout = [part.p for part in model.modules() if isinstance(part, nn.Dropout)]
    facts = settings | {
        "precision": run.precision,
        "clip_norm": run.clip_norm,
        "model": _settings_of(model),
        "starting weights": _hash_of(model.state_dict()),
        "what is frozen": what_is_frozen(model),
        "encoder": [_settings_of(encoder), *map(repr, encoder.dense)],
        "adapters": {
            name: {key: sorted(v) if isinstance(v, set) else v for key, v in lora.to_dict().items()}
            for name, lora in getattr(encoder.backbone, "peft_config", {}).items()
        },
        "dropout": [dropout, {name: config.pop(name) for name in [*config] if "drop" in name}],
        "architecture": config,
        "tasks": [[repr(task), _settings_of(task)] for task in model.tasks.values()],
        "optimizer": _optimizer_of(run),
        "scheduler": _schedule_of(run.scheduler, run.total_steps),
        "callbacks": [_settings_of(callback, tuple) for callback in run.callbacks],
        "training data": [_hash_of(run.data.labels), _hash_of(_flat(run.data.ids))],
        "validation data": None if valid is None else _data_of(model, valid),
    }
    return json.loads(json.dumps(facts, default=_plain_or_repr))  # as it comes back from a file


def _plain_or_repr(value: object) -> object:
    if callable(value):  # its repr holds an address, which is another one in the next process
        return getattr(value, "__qualname__", type(value).__qualname__)
    plain = checks.plain(value)
    return repr(value) if plain is value else plain


def _optimizer_of(run) -> list:
    """Its class, every group's options and parameters, and what it remembers of steps before."""
    names = {id(p): name for name, p in run.model.named_parameters()}
    groups = []
    for group in run.optimizer.param_groups:
        # The rate of now follows from the first one and the schedule.
        options = {name: v for name, v in group.items() if name not in ("params", "lr")}
        parameters = [names.get(id(p)) for p in group["params"]]
        groups.append({"initial_lr": group["lr"]} | options | {"parameters": parameters})
    memory = {
        f"{i}.{name}": torch.as_tensor(value)
        for i, state in run.optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, (Tensor, float, int))
    }
    return [type(run.optimizer).__name__, groups, _hash_of(memory)]


def _schedule_of(scheduler, total_steps: int) -> list:
    """Its class and settings; of functions of the step, their values at some of the steps.

    Of one that is made of several, each one's.
    """
    state = dict(scheduler.state_dict())
    functions = scheduler.lr_lambdas if state.pop("lr_lambdas", None) else []
    steps = range(0, total_steps, max(1, total_steps // 20))
    values = [[float(function(step)) for step in steps] for function in functions]
    parts = scheduler._schedulers if state.pop("_schedulers", None) else []
    for rates in ("base_lrs", "_last_lr"):  # the optimizer's
        state.pop(rates, None)
    inner = [_schedule_of(part, total_steps) for part in parts]
    return [type(scheduler).__name__, state, values, inner]


def _flat(ids: list[list[int]]) -> dict[str, Tensor]:
    lengths = torch.tensor([len(row) for row in ids])
    return {"ids": torch.tensor([i for row in ids for i in row]), "lengths": lengths}


def _hash_of(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _data_of(model, frame: pd.DataFrame) -> str:
    labels, sentences = read_frame(model, frame)
    return hashlib.sha256("\0".join(sentences).encode()).hexdigest() + _hash_of(labels)


def _settings_of(owner: object, *containers: type) -> list:
    """A model's, task's or callback's class, and its settings: attributes that a file can hold.

    containers: those that count, with what is in them. Not names that begin with "_", nor what a
    callback's `state_dict` keeps: these change while it runs.
    """
    is_model = isinstance(owner, nn.Module)  # whose state is its weights
    state: Mapping = {} if is_model else getattr(owner, "state_dict", dict)()
    settings: dict[str, object] = {}
    for name, value in getattr(owner, "__dict__", {}).items():
        if name.startswith("_") or (is_model and name == "training"):
            continue
        value = checks.plain(value)
        if isinstance(value, np.ndarray):  # of words, too
            value = hashlib.sha256(repr((value.dtype, value.tolist())).encode()).hexdigest()
        elif isinstance(value, Tensor):
            value = _hash_of({name: value})
        if name not in state and _is_plain(value, containers or (tuple, list, dict, set)):
            value = sorted(value, key=repr) if isinstance(value, set) else value
            settings[name] = repr(value) if isinstance(value, (tuple, list, dict)) else value
    return [type(owner).__qualname__, settings]


def _is_plain(value: Any, containers: tuple[type, ...]) -> bool:
    """Whether it is a number, a word, or made of these alone."""
    if isinstance(value, containers):
        parts: Any = value.items() if isinstance(value, dict) else value
        return all(_is_plain(part, (tuple, list, dict)) for part in parts)
    return isinstance(checks.plain(value), (str, int, float, type(None)))


class Checkpoint:
    """The state of a run in one file of torch's, which is replaced whole or not at all."""

    def __init__(self, folder: str | os.PathLike | None, run, identity: dict | None) -> None:
        self.run, self.identity, self.saved = run, identity or {}, time.monotonic()
        self.path: Path | None = None
        if folder is None:
            return
        checks.instance("checkpoint", folder, (str, os.PathLike))
        folder = Path(folder).expanduser()
        self.path = folder / "checkpoint.pt"
        try:
            folder.mkdir(parents=True, exist_ok=True)  # now, and not after an hour of training
        except OSError as error:
            raise ValueError(
                f"checkpoint must be a folder that can be written to; got {folder} ({error})"
            ) from error

    def save_now_and_then(self) -> None:
        """Write the file if the last one is older than SAVE_SECONDS."""
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the file. One that cannot be written is warned of: training goes on."""
        if self.path is None or not self.run.is_main:
            return
        run, started = self.run, time.monotonic()
        state: dict[str, Any] = {
            "identity": self.identity,
            "step": run.step,
            "stop": run.stop,
            "history": run.history,
            "frozen": what_is_frozen(run.model),
            "model": run.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "scheduler": run.scheduler.state_dict(),
            "acceleration": run.acceleration.state_dict(),
        }
        new = self.path.with_suffix(".new")
        try:
            state["callbacks"] = [_tensors_of(callback) for callback in run.callbacks]
            torch.save(_storable(state), new)
            os.replace(new, self.path)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            # A full disk, a callback's state that is no number: no reason to lose what is trained.
            new.unlink(missing_ok=True)
            checks.warn(
                f"{self.path} could not be written at step {run.step} ({error}); training goes on, "
                "and an interruption now would lose what came after the last one"
            )
        self.saved = time.monotonic() + 9 * (time.monotonic() - started)  # a tenth of the time

    def load(self) -> None:
        """Take up a run where its checkpoint ends, and say so.

        Raises ValueError for a damaged file, for one of another run, naming what differs, and where
        not all processes find the same.
        """
        if self.path is None:
            return
        if self.path.is_file():
            self._go_on(self._read())
        step = torch.tensor(float(self.run.step), device=self.run.processes.device)
        if self.run.processes.mean(step) != step:
            raise ValueError(
                f"checkpoint: this process is at step {self.run.step}, and others are not; choose "
                f"a folder that all hosts share; got {self.path.parent}"
            )

    def _go_on(self, state: dict) -> None:
        run = self.run
        before = state["identity"]
        if before != self.identity:
            changed = [key for key in self.identity if before.get(key) != self.identity[key]]
            go_on = (
                "to go on, build the model anew as it was at the start (seed_everything(seed), "
                "then MultiTaskModel(...)); to begin anew, "
            )
            hint = go_on if changed == ["starting weights"] else ""
            raise ValueError(
                f"{self.path} is of another run ({', '.join(changed)} differ): "
                f"{hint}delete it, or choose another folder"
            )
        run.model.load_state_dict(state["model"])
        freeze_as(run.model, state["frozen"])
        run.model.train()
        groups = zip(run.optimizer.param_groups, state["optimizer"]["param_groups"], strict=True)
        state["optimizer"]["param_groups"] = [{**now, **saved} for now, saved in groups]
        run.optimizer.load_state_dict(state["optimizer"])
        run.scheduler.load_state_dict(state["scheduler"])
        run.acceleration.load_state_dict(state["acceleration"])
        for callback, saved in zip(run.callbacks, state["callbacks"], strict=True):
            if saved:
                callback.load_state_dict(saved)
        run.step, run.stop, run.history = state["step"], state["stop"], state["history"]
        logging.getLogger(__name__).warning(
            "fit goes on from step %d of %d, as %s says", run.step, run.total_steps, self.path
        )

    def _read(self) -> dict:
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            state["identity"]  # of another file there is none
            return state
        except Exception as error:  # torch and pickle raise all kinds of it
            raise ValueError(
                f"{self.path} is damaged ({type(error).__name__}): "
                "delete it, and the run begins anew"
            ) from error


def _tensors_of(callback: object) -> dict[str, Tensor]:
    state: Mapping = getattr(callback, "state_dict", dict)()
    return {name: torch.as_tensor(value) for name, value in state.items()}


def _storable(value: Any) -> Any:
    """The value as `torch.load` opens it without running code: tensors, and Python's own types.

    Entries of a dict that no file can hold, such as functions, are left out: on loading, these
    stay as they are. Raises TypeError for such a value itself.
    """
    if isinstance(value, Mapping):
        kept = {}
        for key, entry in value.items():
            with contextlib.suppress(TypeError):
                kept[checks.plain(key)] = _storable(entry)
        return Counter(kept) if isinstance(value, Counter) else kept
    if isinstance(value, (list, tuple)):
        return (tuple if isinstance(value, tuple) else list)(map(_storable, value))
    value = value if isinstance(value, Tensor) else checks.plain(value)
    if not isinstance(value, Tensor) and type(value) not in _PLAIN:
        raise TypeError(f"{value!r:.60} fits in no checkpoint")
    return value
