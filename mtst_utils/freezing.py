"""Freezing parts of a model, and unfreezing them again.

Taught in notebook 03.
"""

from functools import partial

import pandas as pd
from torch import nn

from mtst_utils import checks
from mtst_utils.layers import backbone_of, dense_of, stack_of


def freeze(module: nn.Module) -> None:
    """Stop a module from learning.

    No gradient, so no weight decay and no momentum either, and no dropout. Gradients from before
    are dropped, since an optimizer would still step with them. The module and its parts stay in
    eval mode, also when a model around it is put in train mode. Raises TypeError for what is not a
    module. Taught in notebook 03, section 1.
    """
    checks.instance("module", module, nn.Module)
    for part in module.modules():
        part.training = False
        part.train = partial(_train_only_children, part)  # type: ignore[method-assign]
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None


def unfreeze(module: nn.Module) -> None:
    """Undo `freeze` for a module and all its parts.

    They are in train mode at the next `train()`. Raises TypeError for what is not a module.
    """
    checks.instance("module", module, nn.Module)
    for part in module.modules():
        vars(part).pop("train", None)
    for parameter in module.parameters():
        parameter.requires_grad_(True)


def is_frozen(module: nn.Module) -> bool:
    """True if `freeze` was called on a module, or on one that holds it, and not undone since."""
    return "train" in vars(module)


def _train_only_children(module: nn.Module, mode: bool = True) -> nn.Module:
    """What `train` does on a frozen module.

    Its own mode stays; a part that was unfrozen again follows the call.
    """
    for child in module.children():
        child.train(mode)
    return module


def unfreeze_top_blocks(model: nn.Module, n: int) -> None:
    """Let only the top n blocks of a model's backbone learn.

    Everything below, embeddings included, is frozen. model: a MultiTaskModel, a SentenceEncoder or
    a backbone; its heads stay as they are. n: 0 freezes the whole backbone. A Dense after the
    pooling learns with the top block.
    Raises ValueError for n below 0 or above the number of blocks.
    Taught in notebook 03, section 1.
    """
    stack, n = stack_of(model), checks.plain(n)
    if isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= len(stack.blocks):
        raise ValueError(
            f"n must be a whole number from 0 to {len(stack.blocks)}, the number of blocks; "
            f"got {n!r}"
        )
    for part in (backbone_of(model), *dense_of(model)):
        freeze(part)
    for layer in stack[len(stack) - n :]:
        for module in layer.modules:
            unfreeze(module)
    # A tensor shared with a layer above belongs to the lower one.
    for layer in stack[: len(stack) - n]:
        for parameter in layer.parameters.values():
            parameter.requires_grad_(False)


def parameter_report(model: nn.Module) -> pd.DataFrame:
    """What of a model can learn: one row a part, from the input up.

    Columns: part, parameters, trainable (counts), share (of all the model's parameters). Parts are
    the embeddings, each block (a Dense after the pooling with the last), and whatever else the
    model has (each head).
    Taught in notebook 03, section 1.
    """
    stack = stack_of(model)
    names = {id(p): layer.name for layer in stack for p in layer.parameters.values()}
    rows = []
    for name, parameter in model.named_parameters():
        part = names.get(id(parameter), name.rpartition(".")[0].replace("heads.", "head "))
        count = parameter.numel()
        rows.append(
            {"part": part, "parameters": count, "trainable": count * parameter.requires_grad}
        )
    table = pd.DataFrame(rows).groupby("part", sort=False, as_index=False).sum()
    return table.assign(share=table["parameters"] / table["parameters"].sum())


def what_is_frozen(model: nn.Module) -> dict[str, list[str]]:
    """The names of modules that `freeze` was called on, and of parameters that do not learn."""
    return {
        "modules": [name for name, part in model.named_modules() if is_frozen(part)],
        "parameters": [name for name, p in model.named_parameters() if not p.requires_grad],
    }


def freeze_as(model: nn.Module, frozen: dict[str, list[str]]) -> None:
    """Freeze what is named, and nothing else."""
    for name, part in model.named_modules():
        if name not in frozen["modules"]:
            vars(part).pop("train", None)
        elif not is_frozen(part):
            part.training, part.train = False, partial(_train_only_children, part)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen["parameters"])
