"""layer_stack: every parameter of eight architectures has exactly one depth."""

import pytest
import torch
from conftest import CONFIGS, tiny_backbone
from torch import nn
from transformers import AutoModel, BertConfig, GPT2Config, MPNetConfig

from mtst_utils import layer_stack

KINDS = pytest.mark.parametrize("kind", CONFIGS)


@KINDS
def test_every_parameter_once(kind):
    backbone = tiny_backbone(kind)
    stack = layer_stack(backbone)
    placed = [id(p) for layer in stack for p in layer.parameters.values()]
    assert len(placed) == len(set(placed))
    assert set(placed) == {id(p) for p in backbone.parameters()}
    assert [layer.name for layer in stack] == ["embeddings", "block 0", "block 1", "block 2"]
    assert all(layer.parameters and layer.modules for layer in stack)


@KINDS
def test_depth_is_the_order_of_computation(kind):
    """The output of a layer is the input of the next: hooks see the blocks run from 0 to L-1."""
    backbone, order = tiny_backbone(kind), []
    for depth, layer in enumerate(layer_stack(backbone)):
        layer.modules[0].register_forward_hook(lambda *_, depth=depth: order.append(depth))
    backbone(
        input_ids=torch.tensor([[2, 5, 6, 3]]), attention_mask=torch.ones(1, 4, dtype=torch.long)
    )
    assert order == [0, 1, 2, 3]


def test_what_belongs_to_no_block_has_a_stated_place():
    depth = layer_stack(tiny_backbone("mpnet")).depth_of
    assert depth["encoder.relative_attention_bias.weight"] == 0
    depth = layer_stack(tiny_backbone("deberta-v2")).depth_of
    assert depth["encoder.rel_embeddings.weight"] == 0
    assert depth["encoder.LayerNorm.weight"] == 0
    assert depth["encoder.conv.conv.weight"] == 1
    assert layer_stack(tiny_backbone("modernbert")).depth_of["final_norm.weight"] == 3
    assert layer_stack(tiny_backbone("bert")).depth_of["pooler.dense.weight"] == 3
    assert layer_stack(tiny_backbone("electra")).depth_of["embeddings_project.weight"] == 0


def test_ten_blocks_and_more_are_told_apart():
    # "layer.1" is also the beginning of "layer.10" and "layer.11".
    config = MPNetConfig(
        hidden_size=8,
        num_hidden_layers=12,
        num_attention_heads=2,
        intermediate_size=8,
        vocab_size=16,
    )
    stack = layer_stack(AutoModel.from_config(config))
    assert [len(layer.parameters) for layer in stack.blocks[:-1]] == [16] * 11
    assert all(
        f"encoder.layer.{i}." in name
        for i, layer in enumerate(stack.blocks[:-1])
        for name in layer.parameters
    )


def test_tied_parameters_count_once():
    backbone = tiny_backbone()
    backbone.encoder.layer[2].output.dense.weight = backbone.encoder.layer[0].output.dense.weight
    stack = layer_stack(backbone)
    tied = id(backbone.encoder.layer[0].output.dense.weight)
    assert [
        depth for depth, layer in enumerate(stack) if tied in map(id, layer.parameters.values())
    ] == [1]


def test_unknown_layouts_raise():
    with pytest.raises(ValueError, match="unknown architecture 'gpt2'; known are bert"):
        layer_stack(AutoModel.from_config(GPT2Config(vocab_size=16, n_embd=8, n_head=2, n_layer=1)))
    with pytest.raises(ValueError, match="unknown architecture 'Linear'"):
        layer_stack(nn.Linear(2, 2))
    backbone = AutoModel.from_config(
        BertConfig(**{**CONFIGS["bert"].to_dict(), "num_hidden_layers": 1})
    )
    backbone.adapter = nn.Linear(2, 2)
    with pytest.raises(
        ValueError, match=r"bert has a parameter with no stated place: 'adapter\.weight'"
    ):
        layer_stack(backbone)
