"""Layer-wise rates: the closed form, every parameter once, and schedules that keep the ratios."""

import pytest
import torch
from conftest import CONFIGS, tiny_backbone, tiny_tokenizer
from torch import nn

import mtst_utils as mtst

TASKS = [mtst.Task("domain", ("x", "y")), mtst.Task("sentiment", ("bad", "good"))]


def model(kind="bert"):
    return mtst.MultiTaskModel(mtst.SentenceEncoder(tiny_backbone(kind), tiny_tokenizer()), TASKS)


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_parameter_in_exactly_one_group_at_the_closed_form(kind):
    net = model(kind)
    groups = mtst.layerwise_lr_groups(net, base_lr=1e-4, decay=0.9, head_lr=1e-3)
    placed = [id(p) for group in groups for p in group["params"]]
    assert len(placed) == len(set(placed))
    assert set(placed) == {id(p) for p in net.parameters()}
    rates = {group["layer"]: group["lr"] for group in groups}
    expected = {"embeddings": 1e-4 * 0.9**3, "block 0": 1e-4 * 0.9**2, "block 1": 9e-5, "block 2": 1e-4, "heads": 1e-3}
    assert rates == pytest.approx(expected, rel=1e-12)
    assert list(rates) == list(expected)  # from the input up


def test_upside_down_would_fail():
    # Three of four public solutions let the bottom learn fastest.
    table = mtst.lr_table(mtst.layerwise_lr_groups(model(), decay=0.5))
    assert table["lr"].tolist()[:4] == sorted(table["lr"].tolist()[:4])
    assert table["lr"].iloc[0] < table["lr"].iloc[3]


def test_reference_setting():
    config = type(CONFIGS["mpnet"])(**{**CONFIGS["mpnet"].to_dict(), "num_hidden_layers": 12})
    encoder = mtst.SentenceEncoder(type(tiny_backbone("mpnet"))(config), tiny_tokenizer())
    rates = mtst.lr_table(mtst.layerwise_lr_groups(mtst.MultiTaskModel(encoder, TASKS))).set_index("layer")["lr"]
    assert rates["block 11"] == 1e-4
    assert rates["block 0"] == pytest.approx(5.69e-5, abs=1e-7)
    assert rates["embeddings"] == pytest.approx(5.40e-5, abs=1e-7)
    assert rates["heads"] == 1e-4


def test_weight_decay_spares_vectors_only():
    net = model("mpnet")
    decayed = {id(p) for g in mtst.layerwise_lr_groups(net) if g["weight_decay"] > 0 for p in g["params"]}
    for name, parameter in net.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim > 1), name
    # By the letters of its name, MPNet's table of positions would be taken for a bias.
    assert id(net.encoder.backbone.encoder.relative_attention_bias.weight) in decayed


def test_frozen_parameters_are_left_out():
    net = model()
    net.encoder.backbone.embeddings.requires_grad_(False)
    groups = mtst.layerwise_lr_groups(net)
    assert "embeddings" not in {group["layer"] for group in groups}
    assert all(p.requires_grad for group in groups for p in group["params"])


def test_ratios_stay_through_warmup_and_decay():
    optimizer = torch.optim.AdamW(mtst.layerwise_lr_groups(model(), decay=0.8, head_lr=1e-3))
    schedule = mtst.warmup_linear(optimizer, 50)
    first, peaks = None, []
    for _ in range(50):
        rates = torch.tensor([group["lr"] for group in optimizer.param_groups], dtype=torch.float64)
        peaks.append(rates[0].item())
        first = rates / rates[0] if first is None else first
        assert torch.allclose(rates / rates[0], first, rtol=1e-9, atol=0)
        optimizer.step()
        schedule.step()
    assert peaks.index(max(peaks)) == 4  # five steps of warm-up
    assert peaks[0] == pytest.approx(max(peaks) / 5)
    assert optimizer.param_groups[0]["lr"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 0}, "decay must be above 0 and at most 1"),
        ({"decay": 1.05}, "decay must be above 0 and at most 1.0; got 1.05"),
        ({"base_lr": -1e-4}, "base_lr"),
        ({"base_lr": float("nan")}, "base_lr.*got nan"),
        ({"head_lr": -1}, "head_lr"),
        ({"weight_decay": -0.1}, "weight_decay"),
    ],
)
def test_bad_rates(options, message):
    with pytest.raises(ValueError, match=message):
        mtst.layerwise_lr_groups(model(), **options)


def test_bad_schedules():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters())
    for steps, fraction in ((0, 0.1), (10, 1), (10, -0.1)):
        with pytest.raises(ValueError, match="total_steps must be 1 or more"):
            mtst.warmup_linear(optimizer, steps, fraction)
