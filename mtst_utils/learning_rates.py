"""Layer-wise learning rates: parameter groups by depth, and a warm-up schedule.

Taught in notebook 04.
"""

import pandas as pd
from torch.optim.lr_scheduler import LambdaLR

from mtst_utils.layers import by_weight_decay, layer_stack


def layerwise_lr_groups(model, base_lr=1e-4, decay=0.95, head_lr=None, weight_decay=0.01):
    """Parameter groups for any torch optimizer, with a learning rate per layer.

    Block i of L (block 0 next to the input): base_lr * decay**(L-1-i); embeddings: base_lr * decay**L; whatever is not in
    the backbone (the heads): head_lr, or base_lr. Biases and normalisation weights, which are vectors, get no weight
    decay; every matrix does, MPNet's table of relative positions too, since it is an embedding. Frozen parameters are
    left out. Raises ValueError for rates or a decay out of range, or an architecture layer_stack does not know.
    Howard & Ruder 2018 (discriminative fine-tuning), Clark et al. 2020 (ELECTRA). Taught in notebook 04.
    """
    for name, value, top in (("base_lr", base_lr, 1.0), ("head_lr", head_lr or base_lr, 1.0), ("decay", decay, 1.0)):
        if not 0 < value <= top:
            raise ValueError(f"{name} must be above 0 and at most {top}; got {value!r}")
    if not 0 <= weight_decay < 1:
        raise ValueError(f"weight_decay must be at least 0 and below 1; got {weight_decay!r}")
    stack = layer_stack(model.encoder.backbone)
    rates = [base_lr * decay ** (len(stack.blocks) - depth) for depth in range(len(stack))]
    layers = [(layer.name, rate, list(layer.parameters.values())) for layer, rate in zip(stack, rates, strict=True)]
    placed = {id(parameter) for _, _, parameters in layers for parameter in parameters}
    heads = [parameter for parameter in model.parameters() if id(parameter) not in placed]
    layers.append(("heads", head_lr or base_lr, heads))
    return [group for name, rate, parameters in layers
            for group in by_weight_decay(name, [p for p in parameters if p.requires_grad], rate, weight_decay)]  # fmt: skip


def lr_table(groups):
    """One row a layer, from the input up: layer, lr, parameters (a count). Taught in notebook 04."""
    rows = [{"layer": group["layer"], "lr": group["lr"], "parameters": sum(p.numel() for p in group["params"])}
            for group in groups]  # fmt: skip
    return pd.DataFrame(rows).groupby(["layer", "lr"], sort=False, as_index=False)["parameters"].sum()


def warmup_linear(optimizer, total_steps, warmup_fraction=0.1):
    """A LambdaLR that raises every group's rate linearly from 0 over the first steps, then lowers it to 0 at total_steps.

    Ratios between groups stay what they are. Raises ValueError for total_steps below 1 or a fraction outside [0, 1).
    Devlin et al. 2019 (BERT), appendix A.2. Taught in notebook 02, section 5.
    """
    if total_steps < 1 or not 0 <= warmup_fraction < 1:
        raise ValueError(
            f"total_steps must be 1 or more and warmup_fraction in [0, 1); got {total_steps}, {warmup_fraction}"
        )
    warmup = max(1, round(warmup_fraction * total_steps))
    # At step 0 already a little above 0: a first step at rate 0 would be a step wasted.
    return LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (total_steps - step) / max(1, total_steps - warmup))
    )
