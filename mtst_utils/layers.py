"""A backbone as an ordered stack of layers: which parameter stands how high.

Taught in notebook 01, section 1, and notebook 04.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mtst_utils import checks

# Where each architecture keeps its parts: (its list of blocks, {whatever stands outside the blocks:
# its depth}).
# Depth 0 is the embeddings, 1 is block 0, -1 is the last block (for what comes after it).
_BERT = ("encoder.layer", {"embeddings": 0, "pooler": -1})
LAYOUTS = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": ("encoder.layer", {"embeddings": 0, "embeddings_project": 0}),
    "distilbert": ("transformer.layer", {"embeddings": 0}),
    "modernbert": ("layers", {"embeddings": 0, "final_norm": -1}),
    # A table of relative positions that every block reads is an input to all of them: it stands
    # with the embeddings.
    "mpnet": (
        "encoder.layer",
        {"embeddings": 0, "pooler": -1, "encoder.relative_attention_bias": 0},
    ),
    # The convolution's output joins the first block's.
    "deberta-v2": (
        "encoder.layer",
        {"embeddings": 0, "encoder.rel_embeddings": 0, "encoder.LayerNorm": 0, "encoder.conv": 1},
    ),
    # ALBERT runs the same few blocks again and again: the stack holds each once.
    "albert": (
        "encoder.albert_layer_groups",
        {"embeddings": 0, "encoder.embedding_hidden_mapping_in": 0, "pooler": -1},
    ),
}


@dataclass(frozen=True)
class Layer:
    """One depth of a backbone.

    Its name, its modules, and its parameters by their name in the backbone.
    """

    name: str
    modules: tuple[nn.Module, ...]
    parameters: dict[str, nn.Parameter]


class LayerStack(tuple[Layer, ...]):
    """A backbone's layers from the input up.

    `stack[0]` the embeddings, `stack[1:]` (`stack.blocks`) block 0 to L-1.
    """

    @property
    def blocks(self) -> tuple[Layer, ...]:
        return self[1:]

    @property
    def depth_of(self) -> dict[str, int]:
        """{parameter name: its depth}, 0 for the embeddings, i+1 for block i."""
        return {name: depth for depth, layer in enumerate(self) for name in layer.parameters}


def layer_stack(backbone: nn.Module) -> LayerStack:
    """Order a backbone's parameters by depth.

    Embeddings, then block 0 (next to the input) to block L-1 (the top). Every parameter has exactly
    one depth; a tied one counts once, at the lowest. Parts that belong to no block have the place
    that LAYOUTS states. Raises ValueError for an architecture or a parameter that LAYOUTS does not
    know. Taught in notebook 01, section 1, and notebook 04.
    """
    kind = getattr(getattr(backbone, "config", None), "model_type", None)
    if kind not in LAYOUTS:
        raise ValueError(
            f"layer_stack: unknown architecture {kind or type(backbone).__name__!r}; "
            f"known are {', '.join(LAYOUTS)}. Add its layout to mtst_utils.layers.LAYOUTS."
        )
    path, places = LAYOUTS[kind]
    count = len(backbone.get_submodule(path)._modules)
    prefixes = {f"{path}.{i}": i + 1 for i in range(count)}
    prefixes |= {prefix: depth % (count + 1) for prefix, depth in places.items()}
    parameters: list[dict[str, nn.Parameter]] = [{} for _ in range(count + 1)]
    # A tied parameter comes once, at its first name.
    for name, parameter in backbone.named_parameters():
        depth = next(
            (depth for prefix, depth in prefixes.items() if name.startswith(prefix + ".")), None
        )
        if depth is None:
            raise ValueError(f"layer_stack: {kind} has a parameter with no stated place: {name!r}")
        parameters[depth][name] = parameter
    modules: list[list[nn.Module]] = [[] for _ in range(count + 1)]
    present = dict(backbone.named_modules())
    for prefix, depth in prefixes.items():
        if prefix in present:
            modules[depth].append(present[prefix])
    names = ["embeddings", *(f"block {i}" for i in range(count))]
    return LayerStack(
        Layer(*row) for row in zip(names, map(tuple, modules), parameters, strict=True)
    )


# Of torch.nn, those that come without settings: sentence-transformers' files hold the name alone.
ACTIVATIONS = (
    *("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "LeakyReLU", "ELU", "SELU", "CELU"),
    *("Mish", "Softplus", "Softsign", "Hardtanh", "Hardswish", "Hardsigmoid", "ReLU6"),
)


class Dense(nn.Module):
    """A linear layer and an activation after the pooling, as sentence-transformers has it.

    activation: one of ACTIVATIONS. `forward`: [B, in_features] -> float32 [B, out_features].
    It counts as a part of the last block: the same rate, frozen and unfrozen with it.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, activation: str = "Tanh"
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}"
            )
        self.linear = nn.Linear(in_features, out_features, bias)
        self.activation = getattr(nn, activation)()

    def forward(self, embeddings: Tensor) -> Tensor:
        # Small, as heads are: in bfloat16 it would lose digits, and save nothing.
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.to(self.linear.weight.dtype)
            return self.activation(self.linear(embeddings)).float()


def dense_of(model: nn.Module) -> list[Dense]:
    """What of a model stands between its pooling and its heads."""
    return [part for part in model.modules() if isinstance(part, Dense)]


def stack_of(model: nn.Module) -> LayerStack:
    """The layers of the one transformer in a model, a Dense after its pooling with the last block.

    Raises ValueError as `backbone_of` and `layer_stack` do.
    """
    stack, dense = layer_stack(backbone_of(model)), dense_of(model)
    if not dense:
        return stack
    top = stack[-1]
    parameters = {f"dense.{name}": p for name, p in nn.ModuleList(dense).named_parameters()}
    top = Layer(f"{top.name} and Dense", (*top.modules, *dense), top.parameters | parameters)
    return LayerStack([*stack[:-1], top])


def backbone_of(model: nn.Module) -> nn.Module:
    """The one transformer in a model.

    model: a MultiTaskModel, a SentenceEncoder, a Hugging Face model with a head, your own. A model
    without any is returned as it is, for `layer_stack` to refuse.
    Raises ValueError if it holds more than one.
    """
    checks.instance("model", model, nn.Module)
    pretrained = (part for part in model.modules() if isinstance(part, PreTrainedModel))
    found = dict.fromkeys(part.base_model for part in pretrained)
    inner = {part for base in found for part in base.modules() if part is not base}
    backbones = [base for base in found if base not in inner]
    if len(backbones) > 1:
        names = ", ".join(type(backbone).__name__ for backbone in backbones)
        raise ValueError(
            f"{type(model).__name__} holds {len(backbones)} transformers ({names}); "
            "give one part at a time"
        )
    return backbones[0] if backbones else model


def by_weight_decay(
    name: str, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
) -> list[dict]:
    """Optimizer groups for one layer: its matrices, and its vectors without weight decay.

    Vectors are biases and normalisation weights. By the shape and not by the name: MPNet's table of
    relative positions is called a bias, but is an embedding.
    """
    parameters, groups = list(parameters), []
    for suffix, decays in (("", True), (", no weight decay", False)):
        chosen = [p for p in parameters if (p.ndim > 1) == decays]
        if chosen:
            options = {
                "name": name + suffix,
                "layer": name,
                "lr": lr,
                "weight_decay": weight_decay * decays,
            }
            groups.append({"params": chosen, **options})
    return groups
