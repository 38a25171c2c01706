"""What makes a CPU quicker must leave the results what they are."""

import pytest
import small
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import mtst_utils as mtst
from mtst_utils import fast_cpu
from mtst_utils.training import default_optimizer

FRAME = small.frame()


def fit(model, **options):
    return mtst.fit(model, FRAME, **{"epochs": 2, "batch_size": 8, "precision": "float32", "progress": False} | options)


def attention_inputs():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 7, 8).unbind(0)
    mask = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    mask[1, ..., 5:] = False
    return query, key, value, mask


@pytest.mark.parametrize("masked", [True, False])
def test_attention_is_torchs(masked):
    query, key, value, mask = attention_inputs()
    module = torch.nn.Identity()
    module.is_causal = False
    arguments = (module, query, key, value, mask if masked else None)
    expected, _ = sdpa_attention_forward(*arguments, dropout=0.0, scaling=0.3)
    nearly_none, _ = fast_cpu.word_dropout_attention(*arguments, dropout=1e-7, scaling=0.3)
    assert torch.allclose(nearly_none, expected, atol=1e-6)
    assert torch.equal(fast_cpu.word_dropout_attention(*arguments, dropout=0.0, scaling=0.3)[0], expected)
    draws = torch.stack([fast_cpu.word_dropout_attention(*arguments, dropout=0.2, scaling=0.3)[0] for _ in range(3000)])
    assert torch.allclose(draws.mean(0), expected, atol=0.06)
    assert draws.std(0).min() > 0.01


def test_dropout_in_attention_is_drawn_in_training_only(tiny_encoder):
    model = mtst.MultiTaskModel(tiny_encoder, [mtst.Task("letter", ("b", "c"))])
    calls = []
    original = fast_cpu.WordDropout.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_cpu.WordDropout, "forward", lambda self, x: calls.append(x.ndim) or original(self, x))
        fit(model, epochs=1)
        assert 4 in calls  # [B, heads, T, T]
        calls.clear()
        model.predict(["the cat"])
        assert not calls
    assert tiny_encoder.backbone.config._attn_implementation == "sdpa"


def table_of(model):
    return model.encoder.backbone.embeddings.word_embeddings.weight


def used_rows(model):
    ids, _ = model.encoder.tokenize(FRAME.text.tolist())
    return sorted({word for row in ids for word in row} | {model.encoder.tokenizer.pad_token_id})


def test_only_words_in_use_are_trained_and_all_else_is_the_same(monkeypatch):
    models, histories = [], []
    for share in (True, False):
        model = small.model()
        start = table_of(model).detach().clone()
        if not share:
            monkeypatch.setattr(
                fast_cpu.WordsInUse, "__enter__", lambda self: vars(self).update(worth_it=False) or self
            )
        histories.append(fit(model, epochs=3))
        models.append(model)
    used = used_rows(models[0])
    unused = sorted(set(range(64)) - set(used))
    assert len(used) < 32 < len(unused)  # else it would not have been worth it, and nothing tested
    assert histories[0].loss.to_numpy() == pytest.approx(histories[1].loss.to_numpy(), abs=1e-5)
    assert torch.allclose(table_of(models[0])[used], table_of(models[1])[used], atol=1e-5)
    assert not torch.equal(table_of(models[0])[used], start[used])
    assert torch.equal(table_of(models[0])[unused], start[unused])
    assert not torch.equal(table_of(models[1])[unused], start[unused])  # weight decay alone


def test_optimizer_and_model_are_whole_afterwards():
    model = small.model()
    optimizer, weight = default_optimizer(model), table_of(model)
    fit(model, optimizer=optimizer)
    state = optimizer.state[weight]
    assert table_of(model) is weight
    assert state["exp_avg"].shape == weight.shape == (64, 32)
    assert state["exp_avg"].abs().sum(1).nonzero().squeeze(1).tolist() == [i for i in used_rows(model) if i]  # 0 pads
    first = state["exp_avg"].clone()
    fit(model, optimizer=optimizer)  # goes on with the moments of before
    assert not torch.equal(optimizer.state[weight]["exp_avg"], first)
    assert "forward" not in vars(model.encoder.backbone.embeddings.word_embeddings)


def test_callbacks_see_the_whole_model():
    seen = []

    class Look:
        def on_step(self, run):
            seen.append(tuple(table_of(run.model).shape))
            run.model.predict(["zebra"])  # words that training does not know
            if run.step == 3:
                raise KeyboardInterrupt

    model = small.model()
    with pytest.raises(KeyboardInterrupt):
        fit(model, callbacks=[Look()])
    assert seen == [(64, 32)] * 3
    assert table_of(model).shape == (64, 32)
    model.predict(["zebra"])


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
            inputs = run.model.encoder.collate(run.model.encoder.tokenize(FRAME.text[:4].tolist())[0])
            loss = run.model(*inputs).embeddings.sum()
            sizes.append(tuple(torch.autograd.grad(loss, table_of(run.model))[0].shape))

    fit(small.model(), epochs=1, callbacks=[Gradient()])
    assert sizes == [(64, 32)] * 8
