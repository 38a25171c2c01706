"""What `fit` calls on the way: unfreezing on a schedule, stopping early, or whatever you write.

Taught in notebook 03, section 5.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from mtst_utils import checks
from mtst_utils.freezing import freeze, unfreeze
from mtst_utils.layers import by_weight_decay, dense_of, stack_of


class Callback:
    """Every event of `fit`, each a method that does nothing until you write it.

    Any object with some of these methods will do; this class documents them. Each gets the run:
    run.model, run.optimizer, run.scheduler; run.step and run.epoch, counted from 0;
    run.total_steps, run.steps_per_epoch; run.history, a list of one dict a step, the last step of
    an epoch with validation scores; run.stop, which ends training after the step when set to True.
    The model is the caller's own, in train mode; freezing lasts until `fit` ends.
    A callback's attributes that are numbers, words or tuples count as its settings, which a
    checkpoint must agree with; what changes on the way goes by a name that begins with "_", or
    into `state_dict`.
    One that writes to frozen weights does so under torch.no_grad(); through .data nothing notices.
    """

    def on_start(self, run) -> None:
        """Once, before the first step, and before a checkpoint is looked for."""

    def on_epoch(self, run) -> None:
        """Before the first step of each epoch."""

    def before_step(self, run) -> None:
        """Before each step: run.step steps are done."""

    def on_step(self, run) -> None:
        """After each step: its losses are in run.history[-1]."""

    def after_epoch(self, run) -> None:
        """After each epoch and its validation, before the checkpoint is written."""

    def on_end(self, run) -> None:
        """Once, after the last step."""

    def state_dict(self) -> Mapping[str, Tensor | float]:
        """What a checkpoint must keep of this callback."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave, when training goes on after an interruption."""


EVENTS = tuple(name for name in vars(Callback) if name.startswith(("on_", "before_", "after_")))


class GradualUnfreezing(Callback):
    """First the heads alone, then the backbone's layers from the top down, the embeddings last.

    start, end: the shares of training at which the top block and the embeddings join; the others do
    evenly between. base_lr, decay: block i of L gets base_lr * decay**(L-1-i), the embeddings
    base_lr * decay**L, whatever the optimizer had for them; everything else keeps its rate.
    warmup: steps in which the rate of a layer that has just joined rises from 0.
    What the caller has frozen stays frozen (under LoRA, the base model), unless it is the whole
    backbone: then all of it is what is to be unfrozen.
    Raises ValueError for shares that are not 0 <= start <= end < 1, rates out of range, or warmup
    below 1. Howard & Ruder 2018 (ULMFiT, section 3.3). Taught in notebook 03, section 5.
    """

    def __init__(
        self,
        start: float = 0.2,
        end: float = 0.6,
        base_lr: float = 2e-4,
        decay: float = 0.9,
        warmup: int = 10,
        weight_decay: float = 0.01,
    ) -> None:
        self.start, self.end = checks.fraction("start", start), checks.fraction("end", end)
        if start > end:
            raise ValueError(f"start must be at most end; got {start!r} and {end!r}")
        self.base_lr, self.decay = checks.rate("base_lr", base_lr), checks.rate("decay", decay)
        self.weight_decay = checks.fraction("weight_decay", weight_decay)
        self.warmup = checks.whole("warmup", warmup, "of steps, 1 or more", lambda v: v >= 1)

    def schedule(self, model: nn.Module, total_steps: int) -> pd.DataFrame:
        """One row a layer in the order of joining: layer, step (its first), lr (its highest)."""
        stack = stack_of(model)
        rows = []
        for above, layer in enumerate(reversed(stack)):
            when = self.start + (self.end - self.start) * above / (len(stack) - 1)
            lr = self.base_lr * self.decay**above
            rows.append({"layer": layer.name, "step": round(when * total_steps), "lr": lr})
        return pd.DataFrame(rows)

    def on_start(self, run) -> None:
        if not isinstance(run.scheduler, LambdaLR):
            raise ValueError(
                "GradualUnfreezing gives layers a warm-up of their own on top of a LambdaLR, such "
                f"as warmup_linear; got {type(run.scheduler).__name__}"
            )
        backbone, optimizer = run.model.encoder.backbone, run.optimizer
        overall = run.scheduler.lr_lambdas[0]
        table = self.schedule(run.model, run.total_steps).set_index("layer")
        stack = stack_of(run.model)
        own = [p for layer in stack for p in layer.parameters.values()]
        all_is_frozen = not any(p.requires_grad for p in backbone.parameters())
        self._may_learn = {id(p) for p in own if p.requires_grad or all_is_frozen}
        # One in which the caller has frozen everything stays as it is, in eval mode.
        joining = [s for s in stack if self._may_learn & {id(p) for p in s.parameters.values()}]
        self._joining = [(int(table.step[layer.name]), layer) for layer in joining]
        placed = {id(p) for p in own}
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in placed]
            group.pop("param_names", None)  # they would no longer fit
        pairs = zip(optimizer.param_groups, run.scheduler.lr_lambdas, strict=True)
        kept = [(group, factor) for group, factor in pairs if group["params"]]
        optimizer.param_groups[:] = [group for group, _ in kept]
        factors = [factor for _, factor in kept]
        for step, layer in self._joining:
            lr = float(table.lr[layer.name])
            learning = [p for p in layer.parameters.values() if id(p) in self._may_learn]
            for group in by_weight_decay(layer.name, learning, lr, self.weight_decay):
                optimizer.add_param_group(group | {"initial_lr": lr})
                factors.append(partial(_joined, overall, step, self.warmup))
        run.scheduler = LambdaLR(optimizer, factors)
        for part in (backbone, *dense_of(run.model)):
            freeze(part)

    def before_step(self, run) -> None:
        # A run that goes on has the layers that joined earlier as its checkpoint says.
        for step, layer in self._joining:
            if step == run.step:
                self._open(layer)

    def _open(self, layer) -> None:
        for module in layer.modules:
            unfreeze(module)
            for parameter in module.parameters():
                parameter.requires_grad_(id(parameter) in self._may_learn)


def _joined(overall, joins: int, warmup: int, step: int) -> float:
    """The factor of a layer's rate.

    0 until it joins, then its own warm-up on top of the schedule.
    """
    return overall(step) * min(1.0, max(0.0, (step - joins + 1) / warmup))


class EarlyStopping(Callback):
    """Stop when a validation score has not risen for some epochs.

    The best epoch's weights are kept. metric: a column of History without "valid ", as
    "sentiment macro F1". patience: epochs without a better score after which training ends.
    smaller_is_better: by default True for a metric called an error or a loss.
    Raises ValueError for a metric that validation does not give, or without validation sentences.
    Prechelt 1998. Taught in notebook 03, section 5.
    """

    def __init__(
        self, metric: str, patience: int = 2, smaller_is_better: bool | None = None
    ) -> None:
        checks.instance("metric", metric, str)
        self.patience = checks.whole("patience", patience, "of epochs, 1 or more", lambda v: v >= 1)
        if smaller_is_better is None:
            smaller_is_better = metric.endswith(("error", "loss"))
        self.metric, self.smaller_is_better = str(metric), bool(smaller_is_better)
        self.best_score, self.best_epoch = -np.inf, -1
        self.best_weights: dict[str, Tensor] = {}

    def on_start(self, run) -> None:
        self.best_score, self.best_epoch, self.best_weights = -np.inf, -1, {}
        if not run.validates:
            raise ValueError(
                "EarlyStopping needs validation sentences: fit(model, train, valid, ...)"
            )

    def after_epoch(self, run) -> None:
        row = run.history[-1]
        metrics = [name.removeprefix("valid ") for name in row if name.startswith("valid ")]
        if self.metric not in metrics:
            raise ValueError(f"metric must be one of {metrics}; got {self.metric!r}")
        score = row[f"valid {self.metric}"] * (-1 if self.smaller_is_better else 1)
        if np.isnan(score):
            checks.warn(
                f"EarlyStopping: {self.metric!r} is NaN after epoch {run.epoch}, and counts as no "
                "better than before. Have the validation sentences labels for it?"
            )
        if score > self.best_score:
            self.best_score, self.best_epoch = score, run.epoch
            weights = run.model.state_dict()
            self.best_weights = {name: w.detach().cpu().clone() for name, w in weights.items()}
        elif run.epoch - self.best_epoch >= self.patience:
            run.stop = True

    def on_end(self, run) -> None:
        if self.best_weights:
            run.model.load_state_dict(self.best_weights)

    def state_dict(self) -> dict[str, Tensor]:
        score = torch.tensor(self.best_score, dtype=torch.float64)  # compared exactly, later
        numbers = {"best_score": score, "best_epoch": torch.tensor(self.best_epoch)}
        return numbers | {f"weights {name}": w for name, w in self.best_weights.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.best_score, self.best_epoch = float(state["best_score"]), int(state["best_epoch"])
        self.best_weights = {
            name.removeprefix("weights "): value
            for name, value in state.items()
            if name.startswith("weights ")
        }
