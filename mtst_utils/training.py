"""The training loop: epochs, batches, steps.

Taught in notebook 02, section 2.
"""

import contextlib
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm.auto import tqdm

from mtst_utils import checks
from mtst_utils.acceleration import Acceleration
from mtst_utils.callbacks import EVENTS
from mtst_utils.checkpoints import Checkpoint, fingerprint
from mtst_utils.evaluation import scored
from mtst_utils.frames import Batch, TrainingData
from mtst_utils.freezing import freeze_as, what_is_frozen
from mtst_utils.learning_rates import default_optimizer, warmup_linear
from mtst_utils.multitask import MultiTaskOutput
from mtst_utils.precision import autocast, wants_bfloat16
from mtst_utils.processes import Processes
from mtst_utils.threads import within_quota

SCHEDULER = (
    "must be a function of the optimizer and the number of steps that returns an LRScheduler which "
    "needs no score, such as lambda optimizer, steps: StepLR(optimizer, steps // 3)"
)
TOTAL = ""  # the name of the total among the losses: no task can be called that


def fit(
    model,
    train: pd.DataFrame,
    valid: pd.DataFrame | None = None,
    *,
    epochs: int,
    batch_size: int = 32,
    optimizer: Optimizer | None = None,
    scheduler: Callable[[Optimizer, int], LRScheduler] = warmup_linear,
    clip_norm: float = 1.0,
    parts: int = 1,
    seed: int = 0,
    callbacks: Sequence = (),
    precision: str = "auto",
    checkpoint: str | os.PathLike | None = None,
    acceleration: bool = True,
    progress: bool = True,
) -> "History":
    """Train a MultiTaskModel on all its tasks at once; returns the History. One at a time in a
    process: dropout draws from the process's generator.

    train, valid: frames with the column text and one column of labels per task (None: no label).
    batch_size: sentences a step, over all processes. parts: forward passes that a step's sentences
        are cut into; more need less memory, and but for the masks of dropout they change nothing
        (gradient accumulation).
    optimizer: default `default_optimizer(model)`. scheduler: gets it and the number of steps;
        default `warmup_linear`, up over the first tenth of the steps, then down to 0.
    clip_norm: the longest a gradient may be. seed: order and dropout; the same one gives the same
        weights. callbacks: see `Callback`.
    precision: "float32", "bfloat16" or "auto" (bfloat16 where the hardware is quick at it).
    checkpoint: a folder; the run's state is written there, and if it holds one of the same run,
        training goes on from it. acceleration: False computes frozen layers anew in each step
        instead of remembering what comes out of them; the losses are the same.
    The model is changed by being trained (and moved to the device it is trained on), and is then in
    eval mode, without gradients; in no other way, also when this is interrupted.
    Raises ValueError for a missing column, an unknown label, an empty frame, the checkpoint of
    another run; TypeError for what is no scheduler or callback; FloatingPointError for a loss that
    is not a number. Taught in notebook 02, section 2.
    """
    options = epochs, batch_size, parts, seed, clip_norm
    epochs, batch_size, parts, seed, clip_norm = checked_options(*options, callbacks, optimizer)
    processes = Processes()  # one, unless torchrun or accelerate launch started several
    division = {"rank": processes.rank, "size": processes.size, "parts": parts}
    data = TrainingData(model, train, batch_size, seed, **division, valid=valid)
    model.to(processes.device)
    processes.share(model)
    how = precision, clip_norm, acceleration
    run = Run(model, optimizer, scheduler, epochs, data, processes, callbacks, *how)
    settings = {"epochs": epochs, "batch_size": batch_size, "parts": parts, "seed": seed}
    settings |= {"processes": processes.size}

    with run.training_mode():
        # What this run is known by: weights, data and all settings, as they are before it.
        identity = None if checkpoint is None else fingerprint(run, valid, **settings)
        run.notify("on_start")
        state = Checkpoint(checkpoint, run, identity)  # does nothing without a folder
        state.load()  # of an interrupted run: weights, moments, rates, step, history, callbacks
        run.show_progress(progress)
        for epoch in range(run.step // data.steps_per_epoch, epochs):
            if run.stop:
                break
            run.epoch, done = epoch, run.step % data.steps_per_epoch
            if done == 0:  # else the run was interrupted within this epoch
                run.notify("on_epoch")
            for batch in data.epoch(epoch, skip=done):
                run.notify("before_step")
                step(run, batch)
                run.notify("on_step")
                if run.stop or batch.is_last:
                    break  # saved below, after validation
                state.save_now_and_then()
            if valid is not None:
                run.validate(valid)  # all of it in every process, so that all stop at once
            run.notify("after_epoch")
            state.save()
        run.notify("on_end")
    return History(run.history)


def step(run: "Run", batch: Batch) -> None:
    """One step: forward, loss, backward, clip, optimizer, schedule."""
    run.begin_step()
    totals: dict[str, Tensor] = {}
    for part in batch.parts:  # this process's, never empty
        output = run.forward(part)
        losses, loss = run.part_of_batch(output, part, batch)
        shares = {name: value.detach() for name, value in {TOTAL: loss, **losses}.items()}
        totals = {name: share + totals.get(name, 0) for name, share in shares.items()}
        if run.learning:
            loss.backward()  # gradients add up over the parts, and are averaged over processes
        del output, losses, loss  # and with them the graph, before the next one grows
    values = run.finite_means(totals)
    length = clip_grad_norm_(run.learning, run.clip_norm)
    run.finite_means({"length of the gradient": length})
    run.optimizer.step()
    run.scheduler.step()
    run.clear_gradients()
    run.record(values)


class Run:
    """What a training run has come to: for callbacks (see `Callback`) and checkpoints."""

    def __init__(
        self,
        model,
        optimizer: Optimizer | None,
        scheduler: Callable[[Optimizer, int], LRScheduler],
        epochs: int,
        data: TrainingData,
        processes: Processes,
        callbacks: Sequence,
        precision: str,
        clip_norm: float,
        acceleration: bool,
    ) -> None:
        self.model, self.data, self.processes = model, data, processes
        self.callbacks, self.is_main = callbacks, processes.is_main
        bfloat16 = wants_bfloat16(precision, processes.device)  # an unknown one is refused now
        self.precision = "bfloat16" if bfloat16 else "float32"  # what "auto" comes to here
        self.autocast = partial(autocast, self.precision, processes.device)
        self.clip_norm, self.validates = clip_norm, data.validates
        self.steps_per_epoch = data.steps_per_epoch
        self.total_steps = epochs * data.steps_per_epoch
        self.optimizer = optimizer if optimizer is not None else default_optimizer(model)
        # What the caller's optimizer is like is given back when training ends.
        self.groups_before = [(group, dict(group)) for group in self.optimizer.param_groups]
        self.new_scheduler = scheduler
        self.scheduler: LRScheduler  # made by `schedule`, when training begins
        self.step, self.epoch, self.stop = 0, 0, False
        self.learning: list[Tensor] = []  # set in every step, as is the rate
        self.rate = 0.0
        self.history: list[dict[str, float]] = []
        per_process = len(data.ids) // processes.size
        self.acceleration = Acceleration(model, data.ids, per_process, self.autocast, acceleration)
        self.progress = tqdm(disable=True)

    @contextlib.contextmanager
    def training_mode(self) -> Iterator[None]:
        """The model in train mode, without old gradients; then in eval mode, frozen as before."""
        device = self.processes.device
        # Every step is seeded: without a fork, whatever is drawn afterwards would be, too.
        others = {} if device.type == "cpu" else {"device_type": device.type}
        own_numbers = torch.random.fork_rng([device] if others else [], **others)
        gradients, no_inference = torch.enable_grad(), torch.inference_mode(False)
        frozen = what_is_frozen(self.model)
        try:
            with own_numbers, no_inference, gradients, within_quota():
                self.schedule()
                self.clear_gradients()
                self.model.train()  # frozen modules stay in eval mode, without dropout
                yield
        finally:
            freeze_as(self.model, frozen)
            self.clear_gradients()
            for group, before in self.groups_before:
                group.clear()
                group.update(before)
            self.optimizer.param_groups[:] = [group for group, _ in self.groups_before]
            self.model.eval()
            self.progress.close()

    def schedule(self) -> None:
        """Make the scheduler. Raises TypeError for what is none that needs no score."""
        for group in self.optimizer.param_groups:
            # A rate of NumPy's or torch's would be counted in float32, and fit no checkpoint.
            group.update({name: checks.plain(value) for name, value in group.items()})
        new = self.new_scheduler
        if not callable(new):
            raise TypeError(f"scheduler {SCHEDULER}; got an object, {type(new).__name__}")
        self.scheduler = new(self.optimizer, self.total_steps)
        needs_score = isinstance(self.scheduler, ReduceLROnPlateau)
        if needs_score or not isinstance(self.scheduler, LRScheduler):
            raise TypeError(f"scheduler {SCHEDULER}; it returned {type(self.scheduler).__name__}")

    def notify(self, event: str) -> None:
        """Call the callbacks that have a method of this name."""
        for callback in self.callbacks:
            if hasattr(callback, event):
                getattr(callback, event)(self)
                self.model.train()  # it may have put it in eval mode

    def begin_step(self) -> None:
        """Whatever depends on what is frozen now, and the seed of this step's dropout."""
        before = {id(p) for p in self.learning}
        self.learning = [p for p in self.model.parameters() if p.requires_grad]
        if not {id(p) for p in self.learning} <= before:
            self.check_optimizer()
        self.rate = checks.plain(self.optimizer.param_groups[-1]["lr"])
        # Filling the cache costs an epoch. (Not "is left": a resumed run must do as the first one.)
        worth_it = self.total_steps > self.steps_per_epoch
        self.acceleration.begin_step(self.learning, worth_it)
        # Seeded anew each step: dropout depends on seed, step, process, so that going on is exact.
        # (The hash of whole numbers is the same in every Python.)
        seed = hash((self.data.seed, self.step, self.processes.rank)) % 2**63
        # Not torch.manual_seed: asking every kind of device costs more than a step of small heads.
        torch.default_generator.manual_seed(seed)
        if self.processes.device.type != "cpu":
            torch.get_device_module(self.processes.device).manual_seed(seed)

    def check_optimizer(self) -> None:
        """Raises ValueError if it holds nothing of the model; warns of what it leaves out."""
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        if any(p.dtype == torch.float16 for p in self.learning):
            checks.warn(
                "weights that learn are float16, in which an optimizer's small numbers vanish: "
                "call model.float() before training"
            )
        if not any(id(p) in held for p in self.model.parameters()):
            raise ValueError(
                "optimizer: it holds no parameter of this model; make it from the model that is "
                "trained, not from one that this is a copy of"
            )
        named = self.model.named_parameters()
        left = [name for name, p in named if p.requires_grad and id(p) not in held]
        if left:
            checks.warn(
                f"optimizer: it does not hold {len(left)} parameters that may learn, so they stay "
                f"as they are (first {left[0]!r}); make it after unfreezing, or freeze them"
            )

    def forward(self, rows: list[int]) -> MultiTaskOutput:
        """Losses and logits of some rows, from the model or a view of it that skips the cached."""
        inputs = self.model.encoder.collate([self.data.ids[i] for i in rows])
        view = self.acceleration.view(rows, inputs)
        module = self.processes.averaging(self.model, view, self.learning)
        labels = {name: t.to(inputs[0].device) for name, t in self.data.truth(rows).items()}
        with self.autocast():
            output = module(*inputs, labels=labels)
        self.acceleration.give_back(view)  # attributes that a subclass's forward has set
        return output

    def part_of_batch(
        self, output: MultiTaskOutput, rows: list[int], batch: Batch
    ) -> tuple[Mapping[str, Tensor], Tensor]:
        """The losses of a part of a batch, weighed so that all parts add up to the batch's mean."""
        if output.losses is None or output.loss is None:
            raise TypeError("the model's forward was given labels, and returned no loss or losses")
        if len(rows) == len(batch.rows):
            return output.losses, output.loss
        losses = {}
        for name, value in output.losses.items():
            weight = self.data.weight_in_batch(self.model, name, rows, batch)
            losses[name] = value * weight * self.processes.size  # processes are averaged
        # What a forward has added, or total_loss by itself, counts as much as the part is large.
        rest = output.loss - self.model.total_loss(output.losses)
        alone = self.model.total_loss({name: 0 * value.detach() for name, value in losses.items()})
        share = len(rows) / len(batch.rows) * self.processes.size
        return losses, self.model.total_loss(losses) - alone + (rest + alone) * share

    def finite_means(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """The numbers, averaged over processes.

        Raises FloatingPointError if one is NaN or infinite.
        """
        means = self.processes.mean(torch.stack([*values.values()])).tolist()
        numbers = dict(zip(values, means, strict=True))
        for name, value in reversed(numbers.items()):  # the tasks' before their sum
            if not math.isfinite(value):
                what = "the total loss" if name == TOTAL else f"the {name}"
                what = f"the loss of task {name!r}" if name in self.model.tasks else what
                raise FloatingPointError(
                    f"step {self.step + 1} of {self.total_steps}: {what} is {value}. The model is "
                    "as before this step. Try a smaller learning rate, precision='float32', or "
                    "look for labels out of range. (A loss of your own must be 0 where no "
                    "sentence has a label.)"
                )
        return numbers

    def clear_gradients(self) -> None:
        """Also of parameters that the optimizer does not hold, which would count when clipping."""
        self.model.zero_grad()
        self.optimizer.zero_grad()

    def record(self, losses: Mapping[str, float]) -> None:
        """One more row of the history."""
        self.step += 1
        row = {"step": self.step, "epoch": self.epoch, "loss": losses[TOTAL]}
        row |= {f"{name} loss": value for name, value in losses.items() if name != TOTAL}
        self.history.append(row | {"lr": self.rate})
        self.progress.update()
        shown = {name: f"{value:.3f}" for name, value in losses.items() if name != TOTAL}
        self.progress.set_postfix(shown, refresh=False)

    def validate(self, valid: pd.DataFrame) -> None:
        """Add the validation scores to the last step's row."""
        for row in scored(self.model, valid, precision=self.precision):
            task = row.pop("task")
            scores = {name: value for name, value in row.items() if name != "n"}
            self.history[-1] |= {f"valid {task} {name}": value for name, value in scores.items()}
        self.model.train()

    def show_progress(self, visible: bool) -> None:
        """A bar, which begins where an interrupted run ended."""
        hidden = not (visible and self.is_main)
        options = {"total": self.total_steps, "initial": self.step, "desc": "fit", "unit": "step"}
        self.progress = tqdm(**options, disable=hidden)


class History(pd.DataFrame):
    """One row a step: step (from 1), epoch (from 0), loss, the tasks' losses, and lr, the rate at
    which the optimizer's last group took this step.

    On the last step of an epoch there are validation scores, too ("valid domain accuracy", ...),
    which are NaN on all other rows.
    """

    @property
    def _constructor(self) -> type:
        return History

    @property
    def epochs(self) -> "History":
        """The rows that hold validation scores."""
        # A task may be called "valid": its loss, which every row has, is no score.
        scores = [
            name
            for name in self.columns
            if name.startswith("valid ") and (self[name].isna().any() or not name.endswith(" loss"))
        ]
        return self.dropna(subset=scores, how="all") if scores else self[:0]


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch. Taught in notebook 02, section 8."""
    seed = checks.whole("seed", seed, "from 0 to 2**63 - 1", lambda v: 0 <= v < 2**63)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def checked_options(epochs, batch_size, parts, seed, clip_norm, callbacks, optimizer) -> tuple:
    """The numbers among them as Python's own. Raises TypeError or ValueError naming the option."""
    whole = {"epochs": epochs, "batch_size": batch_size, "parts": parts}
    numbers = [checks.whole(name, v, "of 1 or more", lambda v: v >= 1) for name, v in whole.items()]
    numbers.append(checks.whole("seed", seed, "from 0 to 2**63 - 1", lambda v: 0 <= v < 2**63))
    numbers.append(checks.number("clip_norm", clip_norm, "above 0", lambda v: v > 0))
    checks.instance("callbacks", callbacks, (list, tuple))
    for kind in callbacks:
        if isinstance(kind, type):
            raise TypeError(
                f"callbacks: {kind.__name__} is a class; give an object, {kind.__name__}(...)"
            )
        if not any(hasattr(kind, event) for event in EVENTS):
            raise TypeError(
                f"callbacks: {kind!r:.60} has none of the events that fit calls: "
                f"{', '.join(EVENTS)}"
            )
    checks.instance("optimizer", optimizer, (Optimizer, type(None)))
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "optimizer: LBFGS computes the loss several times a step, which fit does not do; "
            "take another, such as AdamW"
        )
    return tuple(numbers)
