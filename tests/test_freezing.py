"""Freezing: what must not move does not, what is unfrozen learns, and the schedule runs from the
top down.
"""

import copy
import pickle

import pandas as pd
import pytest
import small
import torch
from conftest import tiny_backbone, tiny_tokenizer
from torch import nn

import mtst_utils as mtst
from mtst_utils import checkpoints
from mtst_utils.freezing import is_frozen

FRAME = small.frame()


def fit(model, **options):
    return mtst.fit(
        model,
        FRAME,
        **{"epochs": 2, "batch_size": 8, "precision": "float32", "progress": False} | options,
    )


def tensors(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def moved(before, module):
    return {
        name
        for name, tensor in module.state_dict().items()
        if not torch.equal(tensor, before[name])
    }


def step(model, optimizer, set_to_none=True):
    ids, _ = model.encoder.tokenize(FRAME.text[:8].tolist())
    labels = {name: task.encode(FRAME[name][:8]) for name, task in model.tasks.items()}
    optimizer.zero_grad(set_to_none=set_to_none)
    loss = model(*model.encoder.collate(ids), labels=labels).loss
    if loss.requires_grad:
        loss.backward()
    optimizer.step()


STRATEGIES = {
    "everything": lambda model: mtst.freeze(model),
    "backbone": lambda model: mtst.freeze(model.encoder.backbone),
    "all but the top block": lambda model: mtst.unfreeze_top_blocks(model, 1),
    "one head": lambda model: mtst.freeze(model.heads["animal"]),
    "embeddings": lambda model: mtst.freeze(model.encoder.backbone.embeddings),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_frozen_tensors_stay_bit_for_bit(strategy, optimizer):
    """Ten steps with weight decay, by an optimizer that knows every parameter and has momentum from
    before: whatever moves them does so in the first.
    """
    model = small.model().train()
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    optimizer = optimizer(model.parameters(), lr=0.01, weight_decay=0.1, **options)
    for _ in range(3):
        step(model, optimizer)
    STRATEGIES[strategy](model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    before = tensors(model)
    for _ in range(10):
        model.train()
        step(model, optimizer)
    assert frozen
    assert not moved(before, model) & frozen
    learns = {
        name for name, p in model.named_parameters() if p.requires_grad and "pooler" not in name
    }
    assert moved(before, model) == learns


def test_the_trap_is_real_and_closed():
    """requires_grad alone is not enough: a gradient that is still there goes on moving the
    weight.
    """
    weights = {}
    for name, stop in {
        "requires_grad": lambda m: m.requires_grad_(False),
        "freeze": mtst.freeze,
    }.items():
        torch.manual_seed(0)
        layer = nn.Linear(4, 2)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        layer(torch.ones(3, 4)).sum().backward()
        optimizer.step()
        before = layer.weight.detach().clone()
        stop(layer)
        for _ in range(10):
            optimizer.zero_grad(set_to_none=False)
            optimizer.step()
        weights[name] = torch.equal(before, layer.weight)
    assert weights == {"requires_grad": False, "freeze": True}


def test_frozen_parts_stay_in_eval_mode():
    model = small.model()
    mtst.freeze(model.encoder.backbone)
    model.train()
    assert not any(part.training for part in model.encoder.backbone.modules())
    assert model.training
    assert model.heads["animal"].training
    model.eval().train()
    assert not model.encoder.backbone.training
    inputs = model.encoder.collate(model.encoder.tokenize(FRAME.text[:4].tolist())[0])
    assert torch.equal(model.encoder(*inputs), model.encoder(*inputs))  # no dropout
    mtst.unfreeze(model.encoder.backbone)
    model.train()
    assert all(part.training for part in model.modules())
    assert not torch.equal(model.encoder(*inputs), model.encoder(*inputs))


def test_part_of_a_frozen_module_can_be_unfrozen():
    model = small.model()
    mtst.freeze(model)
    mtst.unfreeze(model.encoder.backbone.encoder.layer[1])
    model.train()
    assert all(part.training for part in model.encoder.backbone.encoder.layer[1].modules())
    assert not any(part.training for part in model.encoder.backbone.encoder.layer[0].modules())
    assert not model.training


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_frozen_on_their_own(copied):
    model = small.model()
    mtst.freeze(model.encoder)
    twin = copied(model)
    mtst.unfreeze(model.encoder)
    model.train()
    twin.train()
    assert model.encoder.training
    assert not any(part.training for part in twin.encoder.modules())
    mtst.unfreeze(twin.encoder)
    assert twin.train().encoder.training


@pytest.mark.parametrize("n", [0, 1, 2])
def test_unfreeze_top_blocks(any_encoder, n):
    model = mtst.MultiTaskModel(any_encoder, [mtst.Task("letter", ("b", "c"))])
    stack = mtst.layer_stack(any_encoder.backbone)
    if n > len(stack.blocks):
        pytest.skip("ALBERT here has one block, run twice")
    mtst.unfreeze_top_blocks(model, 2 if len(stack.blocks) > 1 else 1)  # whatever was before
    mtst.unfreeze_top_blocks(model, n)
    model.train()
    for depth, layer in enumerate(stack):
        learns = depth >= len(stack) - n
        assert {p.requires_grad for p in layer.parameters.values()} == {learns}
        assert {part.training for module in layer.modules for part in module.modules()} == {learns}
    assert all(p.requires_grad for p in model.heads.parameters())


def test_unfreeze_top_blocks_leaves_heads_alone_and_takes_an_encoder_or_a_backbone():
    model = small.model()
    mtst.freeze(model.heads["letter"])
    mtst.unfreeze_top_blocks(model, 1)
    assert not model.heads["letter"].weight.requires_grad
    assert model.heads["animal"].weight.requires_grad
    for part in (model.encoder, model.encoder.backbone):
        mtst.unfreeze_top_blocks(part, 3)
        assert model.encoder.backbone.encoder.layer[0].output.dense.weight.requires_grad
        assert not model.encoder.backbone.embeddings.word_embeddings.weight.requires_grad


@pytest.mark.parametrize("n", [-1, 4, 1.0, True, "1", None])
def test_unfreeze_top_blocks_refuses(n):
    with pytest.raises(ValueError, match="n must be a whole number from 0 to 3"):
        mtst.unfreeze_top_blocks(small.model(), n)


def test_parameter_report():
    model = small.model()
    mtst.unfreeze_top_blocks(model, 1)
    mtst.freeze(model.heads["letter"])
    report = mtst.parameter_report(model)
    assert report.part.tolist() == [
        "embeddings",
        "block 0",
        "block 1",
        "block 2",
        "head animal",
        "head letter",
    ]
    assert report.parameters.sum() == sum(p.numel() for p in model.parameters())
    assert (report.trainable == report.parameters * [0, 0, 0, 1, 1, 0]).all()
    assert report.share.sum() == pytest.approx(1)
    assert mtst.parameter_report(model.encoder).part.tolist() == [
        "embeddings",
        "block 0",
        "block 1",
        "block 2",
    ]


class Watch:
    """Per step: which layers learn, and the rate of every group."""

    def __init__(self):
        self.learning, self.rates, self.before = [], [], None

    def before_step(self, run):
        stack = mtst.layer_stack(run.model.encoder.backbone)
        now = {
            layer.name for layer in stack if all(p.requires_grad for p in layer.parameters.values())
        }
        self.learning.append(now)
        self.rates.append(
            {group.get("name", "heads"): group["lr"] for group in run.optimizer.param_groups}
        )


def test_gradual_unfreezing_goes_from_the_top_down():
    model, watch = small.model(), Watch()
    unfreezing = mtst.GradualUnfreezing(start=0.25, end=0.625, base_lr=1e-3, decay=0.5, warmup=2)
    schedule = unfreezing.schedule(model, 16)
    assert schedule.values.tolist() == [
        ["block 2", 4, 1e-3],
        ["block 1", 6, 5e-4],
        ["block 0", 8, 2.5e-4],
        ["embeddings", 10, 1.25e-4],
    ]
    before = tensors(model.encoder)
    fit(model, callbacks=[unfreezing, watch])
    order = ["block 2", "block 1", "block 0", "embeddings"]
    expected = [set(order[: max(0, step // 2 - 1)]) for step in range(16)]
    assert watch.learning == expected
    assert (
        len(moved(before, model.encoder)) == len(before) - 2
    )  # all but the pooler of this tiny backbone
    peak = {name: max(rates[name] for rates in watch.rates) for name in watch.rates[0]}
    for name, joins, lr in schedule.values.tolist():
        rates = [rates[name] for rates in watch.rates]
        factor = [r["heads"] / 1e-3 for r in watch.rates]
        assert rates[:joins] == [0] * joins
        assert rates[joins] == pytest.approx(
            lr * factor[joins] / 2
        )  # its own warm-up: half, then whole
        assert rates[joins + 1] == pytest.approx(lr * factor[joins + 1])
        assert peak[name] <= lr


def test_gradual_unfreezing_moves_nothing_before_its_turn():
    class Compare:
        def on_start(self, run):
            self.before = tensors(run.model.encoder.backbone)

        def on_step(self, run):
            changed = moved(self.before, run.model.encoder.backbone)
            if run.step <= 4:
                assert not changed
            elif run.step <= 8:
                assert changed
                assert all("layer.2" in name for name in changed)
            elif run.step <= 16:
                assert not any("embeddings" in name for name in changed)

    fit(small.model(), epochs=3, callbacks=[mtst.GradualUnfreezing(4 / 24, 16 / 24), Compare()])


def test_layers_that_the_optimizer_does_not_hold_join_it():
    model = small.model()
    mtst.freeze(model.encoder.backbone)
    optimizer = torch.optim.AdamW(mtst.layerwise_lr_groups(model, 1e-4, 0.95, head_lr=1e-3))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4  # the heads
    groups = []

    class Look(mtst.Callback):
        def on_step(self, run):
            groups[:] = [dict(group) for group in run.optimizer.param_groups]

    unfreezing = mtst.GradualUnfreezing(base_lr=1e-4, decay=0.95)
    fit(model, optimizer=optimizer, callbacks=[unfreezing, Look()])
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    names = [group["name"] for group in groups]
    assert names[:2] == ["heads", "heads, no weight decay"]
    rates = dict(mtst.lr_table(groups).set_index("name").lr)
    assert list(rates) == ["heads", "embeddings", "block 0", "block 1", "block 2"]
    initial = {group["layer"]: group["initial_lr"] for group in groups}
    assert initial == pytest.approx(
        {
            "heads": 1e-3,
            "block 2": 1e-4,
            "block 1": 0.95e-4,
            "block 0": 0.95**2 * 1e-4,
            "embeddings": 0.95**3 * 1e-4,
        }
    )


@pytest.mark.parametrize("frozen_again_at", [None, 9])
def test_interrupted_gradual_unfreezing_goes_on_exactly(tmp_path, monkeypatch, frozen_again_at):
    class Interrupt:
        def on_step(self, run):
            if run.step == 11 and armed:
                raise KeyboardInterrupt

    class FreezeAgain:
        def before_step(self, run):
            if run.step == frozen_again_at:
                mtst.freeze(run.model.encoder.backbone.encoder.layer[-1])

    def callbacks():
        return [mtst.GradualUnfreezing(0.25, 0.75), FreezeAgain(), Interrupt()]

    armed = []
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", float("-inf"))
    whole, again = small.model(), small.model()
    expected = fit(whole, callbacks=callbacks())
    armed.append(True)
    with pytest.raises(KeyboardInterrupt):
        fit(small.model(), callbacks=callbacks(), checkpoint=tmp_path)
    armed.clear()
    history = fit(again, callbacks=callbacks(), checkpoint=tmp_path)
    pd.testing.assert_frame_equal(history, expected, check_exact=True)
    assert not moved(tensors(whole), again)


@pytest.mark.parametrize(
    "options",
    [
        {"start": -0.1},
        {"start": 0.7, "end": 0.6},
        {"end": 1},
        {"base_lr": 0},
        {"decay": 1.1},
        {"decay": 0},
        {"warmup": 0},
        {"weight_decay": 1},
        {"base_lr": float("nan")},
    ],
)
def test_gradual_unfreezing_refuses(options):
    with pytest.raises(ValueError, match="must be"):
        mtst.GradualUnfreezing(**options)


def test_frozen_then_unfrozen_trains_again():
    model = small.model()
    mtst.freeze(model.encoder.backbone)
    before = tensors(model.encoder)
    fit(model)
    assert not moved(before, model.encoder)
    mtst.unfreeze(model.encoder.backbone)
    assert not is_frozen(model.encoder.backbone)
    fit(model)
    assert len(moved(before, model.encoder)) == len(before) - 2


def test_everything_frozen_trains_nothing():
    model = small.model()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    mtst.freeze(model)
    before = tensors(model)
    with pytest.raises(
        ValueError, match="nothing can learn: every parameter of the model is frozen"
    ):
        fit(model)
    history = fit(model, optimizer=optimizer)
    assert not moved(before, model)
    assert history.loss.notna().all()


@pytest.fixture
def any_encoder(request):
    return mtst.SentenceEncoder(tiny_backbone(request.param), tiny_tokenizer())


def pytest_generate_tests(metafunc):
    if "any_encoder" in metafunc.fixturenames:
        from conftest import CONFIGS

        metafunc.parametrize("any_encoder", CONFIGS, indirect=True)
