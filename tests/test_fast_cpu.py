"""Dropout masks that a CPU draws quickly: the same distribution, nothing of the model changed."""

import copy

import pytest
import small
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import mtst_utils as mtst
from mtst_utils import fast_cpu

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
    layer = torch.nn.Dropout(0.1)
    with fast_cpu.QuickDropout():
        y = layer(x)
        assert torch.equal(layer.eval()(x), x)
        assert layer.train()(x.bfloat16()).dtype == torch.bfloat16
    kept = y != 0
    assert kept.float().mean() == pytest.approx(0.9, abs=0.003)
    assert torch.allclose(y[kept], torch.tensor(1 / 0.9))
    assert kept.float().mean(0).std() == pytest.approx(
        (0.09 / 400) ** 0.5, rel=0.15
    )  # independent, column by column
    assert kept.float().mean(1).std() == pytest.approx((0.09 / 333) ** 0.5, rel=0.15)
    y.sum().backward()
    assert torch.equal(x.grad != 0, kept)


@pytest.mark.parametrize(
    "options", [{"p": 0.0}, {"p": 1.0}, {"inplace": True}, {"training": False}]
)
def test_what_it_has_no_masks_for_is_torchs(options):
    def drop():
        torch.manual_seed(0)
        return functional.dropout(torch.ones(50), **{"p": 0.5} | options)

    expected = drop()
    with fast_cpu.QuickDropout():
        assert torch.equal(drop(), expected)


def attention_inputs():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 7, 8).unbind(0)
    mask = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    mask[1, ..., 5:] = False
    return query, key, value, mask


@pytest.mark.parametrize("kind", ["no mask", "booleans", "numbers"])
def test_attention_is_torchs(kind):
    query, key, value, mask = attention_inputs()
    mask = {
        "no mask": None,
        "booleans": mask,
        "numbers": torch.zeros(mask.shape).masked_fill(~mask, -1e9),
    }[kind]

    def attention(dropout):
        return functional.scaled_dot_product_attention(query, key, value, mask, dropout, scale=0.3)

    expected = attention(0.0)
    with fast_cpu.QuickDropout():
        assert torch.equal(attention(0.0), expected)
        assert torch.allclose(attention(1e-7), expected, atol=1e-6)
        draws = torch.stack([attention(0.2) for _ in range(3000)])
    assert torch.allclose(draws.mean(0), expected, atol=0.06)
    assert draws.std(0).min() > 0.01


def test_a_causal_model_stays_causal():
    """Attention that ignored is_causal trained GPT-2 bidirectionally."""
    query, key, value, _ = attention_inputs()
    with fast_cpu.QuickDropout():
        out = functional.scaled_dot_product_attention(query, key, value, None, 0.5, is_causal=True)
        first = out[..., 0, :]
    either = torch.stack(
        [torch.zeros_like(first), 2 * value[..., 0, :]]
    )  # the first sees itself alone
    assert torch.isclose(first, either, atol=1e-5).all(-1).any(0).all()


def test_gradient_checkpointing_draws_the_same_masks_again():
    torch.manual_seed(0)
    x = torch.ones(1000, requires_grad=True)
    with fast_cpu.QuickDropout():
        y = checkpoint(lambda x: functional.dropout(x, 0.5) ** 2, x, use_reentrant=False)
        y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)


def test_dropout_in_attention_is_drawn_in_training_only(tiny_encoder, monkeypatch):
    model = mtst.MultiTaskModel(tiny_encoder, [mtst.Task("letter", ("b", "c"))])
    sizes, original = [], fast_cpu._scaled_mask
    monkeypatch.setattr(
        fast_cpu, "_scaled_mask", lambda x, p: sizes.append(x.ndim) or original(x, p)
    )
    fit(model, epochs=1)
    assert 4 in sizes  # [B, heads, T, T]
    sizes.clear()
    model.predict(["the cat"])
    fit(model, epochs=1, acceleration=False)
    assert not sizes


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
