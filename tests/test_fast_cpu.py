"""Dropout masks that a CPU draws quickly: the same distribution, nothing of the model changed."""

import copy

import pytest
import small
import torch
from torch.utils.checkpoint import checkpoint

import mtst_utils as mtst
from mtst_utils.fast_cpu import QuickDropout

FRAME = small.frame()


def fit(model, **options):
    return mtst.fit(
        model,
        FRAME,
        **{"epochs": 2, "batch_size": 8, "precision": "float32", "progress": False} | options,
    )


def test_it_is_dropout():
    torch.manual_seed(0)
    x = torch.ones(400, 333, requires_grad=True)
    layer = QuickDropout(0.1)
    y = layer(x)
    kept = y != 0
    assert kept.float().mean() == pytest.approx(0.9, abs=0.003)
    assert torch.allclose(y[kept], torch.tensor(1 / 0.9))
    # independent, column by column and row by row
    assert kept.float().mean(0).std() == pytest.approx((0.09 / 400) ** 0.5, rel=0.15)
    assert kept.float().mean(1).std() == pytest.approx((0.09 / 333) ** 0.5, rel=0.15)
    y.sum().backward()
    assert torch.equal(x.grad != 0, kept)
    assert torch.equal(layer.eval()(x), x)
    assert layer.train()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("options", [{"p": 0.0}, {"p": 1.0}, {"p": 0.5, "inplace": True}])
def test_what_it_has_no_masks_for_is_torchs(options):
    def drop(layer):
        torch.manual_seed(0)
        return layer(torch.ones(50))

    assert torch.equal(drop(QuickDropout(**options)), drop(torch.nn.Dropout(**options)))


def test_gradient_checkpointing_draws_the_same_masks_again():
    x, layer = torch.ones(1000, requires_grad=True), QuickDropout(0.5)
    y = checkpoint(lambda x: layer(x) ** 2, x, use_reentrant=False)
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)


def test_models_are_built_with_it_and_a_callers_backbone_is_left_alone(encoder):
    model = mtst.MultiTaskModel(encoder, [mtst.Task("letter", ("b", "c"))])
    kinds = {type(part) for part in model.modules() if isinstance(part, torch.nn.Dropout)}
    assert kinds == {QuickDropout}
    own = small.model().encoder.backbone  # made by transformers
    assert {type(p) for p in own.modules() if isinstance(p, torch.nn.Dropout)} == {torch.nn.Dropout}


def table_of(model):
    return model.encoder.backbone.embeddings.word_embeddings.weight


def test_callbacks_see_an_ordinary_model_and_may_keep_a_copy():
    copies = []

    class Keep:
        def on_step(self, run):
            copies.append(copy.deepcopy(run.model))
            run.model.predict(["zebra"])  # words that training does not know

    model = small.model()
    kinds = {name: type(part) for name, part in model.named_modules()}
    fit(model, epochs=1, callbacks=[Keep()])
    for kept in [model, *copies]:
        assert {name: type(part) for name, part in kept.named_modules()} == kinds
        assert not any("forward" in vars(part) for part in kept.modules())
        assert kept.encoder.backbone.config._attn_implementation == "sdpa"
    with torch.no_grad():
        assert not torch.equal(table_of(copies[0]), table_of(model))


def test_a_change_by_a_callback_stays():
    class Zero:
        def on_step(self, run):
            with torch.no_grad():
                table_of(run.model).zero_()

    model = small.model()
    fit(model, epochs=1, callbacks=[Zero()])
    assert table_of(model).abs().max() == 0


def test_a_callback_may_take_gradients_of_its_own():
    sizes = []

    class Gradient:
        def on_step(self, run):
            inputs = run.model.encoder.collate(
                run.model.encoder.tokenize(FRAME.text[:4].tolist())[0]
            )
            loss = run.model(*inputs).embeddings.sum()
            sizes.append(tuple(torch.autograd.grad(loss, table_of(run.model))[0].shape))

    fit(small.model(), epochs=1, callbacks=[Gradient()])
    assert sizes == [(64, 32)] * 8
