"""Freezing parts of a model, and unfreezing them again, at once or on a schedule.

Taught in notebook 03.
"""

from functools import partial

import pandas as pd
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from mtst_utils import checks
from mtst_utils.layers import backbone_of, by_weight_decay, layer_stack


def freeze(module):
    """Stop a module from learning: no gradient, so no weight decay and no momentum either, and no dropout.

    Gradients from before are dropped, since an optimizer would still step with them. The module and its parts stay in
    eval mode, also when a model around it is put in train mode. Raises TypeError for what is not a module.
    Taught in notebook 03, section 1.
    """
    checks.instance("module", module, nn.Module)
    for part in module.modules():
        part.training = False
        part.train = partial(_train_only_children, part)
        for parameter in part.parameters(recurse=False):
            parameter.requires_grad_(False)
            parameter.grad = None


def unfreeze(module):
    """Undo `freeze` for a module and all its parts; they are in train mode at the next `train()`."""
    checks.instance("module", module, nn.Module)
    for part in module.modules():
        vars(part).pop("train", None)
        for parameter in part.parameters(recurse=False):
            parameter.requires_grad_(True)


def is_frozen(module):
    """True if `freeze` was called on a module, or on one that holds it, and not undone since."""
    return "train" in vars(module)


def _train_only_children(module, mode=True):
    """What `train` does on a frozen module: its own mode stays; a part that was unfrozen again follows the call."""
    for child in module.children():
        child.train(mode)
    return module


def unfreeze_top_blocks(model, n):
    """Let the top n blocks of a model's backbone learn; everything below, embeddings included, is frozen.

    model: a MultiTaskModel, a SentenceEncoder or a backbone; its heads stay as they are. n: 0 freezes the whole
    backbone. Raises ValueError for n below 0 or above the number of blocks. Taught in notebook 03, section 1.
    """
    backbone = backbone_of(model)
    stack = layer_stack(backbone)
    if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= len(stack.blocks):
        raise ValueError(f"n must be a whole number from 0 to {len(stack.blocks)}, the number of blocks; got {n!r}")
    freeze(backbone)
    for layer in stack[len(stack) - n :]:
        for module in layer.modules:
            unfreeze(module)
    for layer in stack[: len(stack) - n]:  # a tensor shared with a layer above belongs to the lower one
        for parameter in layer.parameters.values():
            parameter.requires_grad_(False)


def parameter_report(model):
    """One row a part, from the input up: part, parameters, trainable (counts), share (of all the model's parameters).

    Parts are the embeddings, each block, and whatever else the model has (each head). Taught in notebook 03, section 1.
    """
    names = {id(parameter): layer.name for layer in layer_stack(backbone_of(model)) for parameter in layer.parameters.values()}  # fmt: skip
    rows = []
    for name, parameter in model.named_parameters():
        part = names.get(id(parameter), name.rpartition(".")[0].replace("heads.", "head "))
        rows.append({"part": part, "parameters": parameter.numel(), "trainable": parameter.numel() * parameter.requires_grad})  # fmt: skip
    table = pd.DataFrame(rows).groupby("part", sort=False, as_index=False).sum()
    return table.assign(share=table["parameters"] / table["parameters"].sum())


class GradualUnfreezing:
    """A callback of `fit`: first the heads alone, then the backbone's layers from the top down, the embeddings last.

    start, end: the shares of training at which the top block and the embeddings join; the others do evenly between.
    base_lr, decay: block i of L gets base_lr * decay**(L-1-i), the embeddings base_lr * decay**L, whatever the optimizer
    had for them; everything else keeps the rate it has there. warmup: steps in which the rate of a layer that has just
    joined rises from 0. Raises ValueError for shares that are not 0 <= start <= end < 1, rates out of range, or warmup
    below 1. Howard & Ruder 2018 (ULMFiT, section 3.3). Taught in notebook 03, section 5.
    """

    def __init__(self, start=0.2, end=0.6, base_lr=2e-4, decay=0.9, warmup=10, weight_decay=0.01):
        for name, value in (("start", start), ("end", end), ("weight_decay", weight_decay)):
            checks.share(name, value)
        if start > end:
            raise ValueError(f"start must be at most end; got {start!r} and {end!r}")
        checks.rate("base_lr", base_lr)
        checks.rate("decay", decay)
        checks.whole("warmup", warmup, "of steps, 1 or more", lambda v: v >= 1)
        self.start, self.end, self.warmup = start, end, warmup
        self.base_lr, self.decay, self.weight_decay = base_lr, decay, weight_decay

    def schedule(self, model, total_steps):
        """One row a layer in the order of joining: layer, step (the first it learns in), lr (its highest)."""
        stack = layer_stack(backbone_of(model))
        rows = []
        for above, layer in enumerate(reversed(stack)):
            share = self.start + (self.end - self.start) * above / (len(stack) - 1)
            lr = self.base_lr * self.decay**above
            rows.append({"layer": layer.name, "step": round(share * total_steps), "lr": lr})
        return pd.DataFrame(rows)

    def on_start(self, run):
        backbone, optimizer, overall = run.model.encoder.backbone, run.optimizer, run.scheduler.lr_lambdas[0]
        table = self.schedule(run.model, run.total_steps).set_index("layer")
        self.waiting = [(table.step[layer.name], layer) for layer in layer_stack(backbone)]
        own = {id(parameter) for _, layer in self.waiting for parameter in layer.parameters.values()}
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        factors = [overall] * len(optimizer.param_groups)
        for step, layer in self.waiting:
            lr = float(table.lr[layer.name])
            for group in by_weight_decay(layer.name, layer.parameters.values(), lr, self.weight_decay):
                optimizer.add_param_group(group | {"initial_lr": lr})
                factors.append(partial(_joined, overall, step, self.warmup))
        run.scheduler = LambdaLR(optimizer, factors)
        freeze(backbone)

    def before_step(self, run):
        for step, layer in self.waiting:
            if step <= run.step:
                run.same_from = max(run.same_from, step)
                for module in layer.modules:
                    unfreeze(module)
        self.waiting = [(step, layer) for step, layer in self.waiting if step > run.step]
        run.same_until = min((step for step, _ in self.waiting), default=run.total_steps)


def _joined(overall, joins, warmup, step):
    """The factor of a layer's rate: 0 until it joins, then a short warm-up of its own on top of the overall schedule."""
    return overall(step) * min(1.0, max(0.0, (step - joins + 1) / warmup))
