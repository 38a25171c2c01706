"""Layer-wise learning rates: parameter groups by depth, and a warm-up schedule.

Taught in notebook 04.
"""

from collections.abc import Iterable

import pandas as pd
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mtst_utils import checks
from mtst_utils.layers import by_weight_decay, stack_of


def layerwise_lr_groups(
    model: nn.Module,
    base_lr: float = 1e-4,
    decay: float = 0.95,
    head_lr: float | None = None,
    weight_decay: float = 0.01,
) -> list[dict]:
    """Parameter groups for any torch optimizer, with a learning rate per layer.

    model: a MultiTaskModel, or any module that holds one transformer. Block i of L (block 0 next to
    the input): base_lr * decay**(L-1-i); embeddings: base_lr * decay**L; a Dense after the pooling
    goes with the last block; whatever else there is (the heads): head_lr, or base_lr.
    Biases and normalisation weights, which are vectors, get no weight decay; every matrix does,
    MPNet's table of relative positions too, since it is an embedding. Frozen parameters are left
    out; a shared one is in one group only, the lowest. Groups have a name, from the input up.
    Raises ValueError for rates or a decay out of range, or an architecture that `layer_stack` does
    not know.
    Howard & Ruder 2018 (discriminative fine-tuning), Clark et al. 2020 (ELECTRA).
    Taught in notebook 04, section 2.
    """
    base_lr, decay = checks.rate("base_lr", base_lr), checks.rate("decay", decay)
    head_lr = base_lr if head_lr is None else checks.rate("head_lr", head_lr)
    weight_decay = checks.fraction("weight_decay", weight_decay)
    stack = stack_of(model)
    top = len(stack.blocks)  # the depth of the top block: the embeddings have depth 0
    layers = [
        (layer.name, base_lr * decay ** (top - depth), list(layer.parameters.values()))
        for depth, layer in enumerate(stack)
    ]
    placed = {id(parameter) for _, _, parameters in layers for parameter in parameters}
    heads = [parameter for parameter in model.parameters() if id(parameter) not in placed]
    layers.append(("heads", head_lr, heads))
    groups = []
    for name, rate, parameters in layers:
        learning = [parameter for parameter in parameters if parameter.requires_grad]
        groups += by_weight_decay(name, learning, rate, weight_decay)
    return groups


def lr_table(groups: Iterable[dict]) -> pd.DataFrame:
    """One row a layer, from the input up: name, lr, parameters (a count).

    groups: those of `layerwise_lr_groups`, or an optimizer's param_groups made from them; others
    raise ValueError. Taught in notebook 04, section 2.
    """
    groups = checks.items("groups", groups)
    if not groups or not all(
        isinstance(group, dict) and {"layer", "lr", "params"} <= set(group) for group in groups
    ):
        raise ValueError(
            "groups must be those of layerwise_lr_groups, each with a layer and a rate; "
            f"got {groups!r:.90}"
        )
    rows = [
        {
            "name": group["layer"],
            "lr": group["lr"],
            "parameters": sum(p.numel() for p in group["params"]),
        }
        for group in groups
    ]
    return (
        pd.DataFrame(rows).groupby(["name", "lr"], sort=False, as_index=False)["parameters"].sum()
    )


def warmup_linear(optimizer: Optimizer, total_steps: int, warmup_fraction: float = 0.1) -> LambdaLR:
    """A LambdaLR that raises every group's rate linearly from 0, then lowers it.

    It rises over the first steps (warmup_fraction of all), then falls to 0 at total_steps. Ratios
    between groups stay what they are.
    Raises ValueError for total_steps below 1, a fraction outside [0, 1), an optimizer whose rates
    are None.
    Devlin et al. 2019 (BERT), appendix A.2. Taught in notebook 02, section 2.
    """
    checks.instance("optimizer", optimizer, Optimizer)
    total_steps = checks.whole("total_steps", total_steps, "of 1 or more", lambda v: v >= 1)
    warmup_fraction = checks.fraction("warmup_fraction", warmup_fraction)
    if any(group["lr"] is None for group in optimizer.param_groups):
        raise ValueError(
            f"optimizer: this {type(optimizer).__name__} has no rate that a schedule could change; "
            "give it one, or fit a scheduler of its own kind (AdafactorSchedule)"
        )
    warmup = max(1, round(warmup_fraction * total_steps))
    # At step 0 already a little above 0: a first step at rate 0 would be a step wasted.
    return LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, (total_steps - step) / max(1, total_steps - warmup)),
    )


def default_optimizer(
    model: nn.Module, base_lr: float = 2e-4, decay: float = 0.9, head_lr: float = 1e-3
) -> Optimizer:
    """AdamW as the series uses it: a rate per layer, a larger one for the heads, which start new.

    Raises ValueError if every parameter is frozen.
    """
    groups = layerwise_lr_groups(model, base_lr, decay, head_lr)
    if not groups:
        raise ValueError(
            "nothing can learn: every parameter of the model is frozen. "
            "Unfreeze a part of it, or only evaluate it"
        )
    return AdamW(groups, fused=True)
