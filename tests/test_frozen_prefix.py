"""The frozen-prefix cache: the same losses as without it, used where it applies, and never beyond
memory.
"""

import conftest
import pytest
import small
import torch

import mtst_utils as mtst
from mtst_utils import checkpoints, frozen_prefix
from mtst_utils.fast_cpu import QuickDropout

FRAME = small.frame()


def model_of(kind, depth=None):
    mtst.seed_everything(0)
    encoder = mtst.SentenceEncoder(conftest.tiny_backbone(kind), conftest.tiny_tokenizer())
    tasks = [mtst.Task("animal", ("cat", "other")), mtst.Task("letter", ("b", "c"))]
    model = mtst.MultiTaskModel(encoder, tasks)
    if depth is not None:
        mtst.unfreeze_top_blocks(model, depth)
    return model


def fit(model, **options):
    return mtst.fit(
        model,
        FRAME,
        **{"epochs": 3, "batch_size": 8, "precision": "float32", "progress": False} | options,
    )


class Count:
    """How often the lowest block ran, step by step."""

    def __init__(self, model):
        self.block, self.runs = mtst.layer_stack(model.encoder.backbone)[1].modules[0], []

    def on_start(self, run):
        self.runs.append(0)
        self.handle = self.block.register_forward_hook(
            lambda *_: self.runs.append(self.runs.pop() + 1)
        )

    def on_step(self, run):
        self.runs.append(0)


@pytest.mark.parametrize("kind", conftest.CONFIGS)
@pytest.mark.parametrize("depth", [0, 1])
def test_same_losses_and_weights_as_without(kind, depth):
    models = [model_of(kind, depth) for _ in range(2)]
    count = Count(models[0])
    cached = fit(models[0], callbacks=[count], epochs=2)
    plain = fit(models[1], acceleration=False, epochs=2)
    assert cached.loss.to_numpy() == pytest.approx(plain.loss.to_numpy(), abs=1e-5)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    whole_only = kind in ("albert", "deberta-v2", "modernbert") and depth > 0
    assert (
        sum(count.runs[1:]) > 0
    ) == whole_only  # after the first step, what is frozen is never run again
    assert count.runs[0] > 0


def test_acceleration_off_gives_the_same_losses(tmp_path):
    """Of a backbone that was loaded, whose dropout masks are drawn our way."""
    model_of("bert").encoder.save_pretrained(tmp_path)
    histories = []
    for acceleration in (True, False):
        encoder = mtst.SentenceEncoder.from_pretrained(tmp_path)
        assert any(isinstance(part, QuickDropout) for part in encoder.modules())
        mtst.seed_everything(0)
        model = mtst.MultiTaskModel(encoder, model_of("bert").tasks.values())
        mtst.unfreeze_top_blocks(model, 2)
        histories.append(fit(model, epochs=2, acceleration=acceleration).loss.to_numpy())
    assert histories[0] == pytest.approx(histories[1], abs=1e-5)


def test_a_part_that_is_not_the_lowest_is_no_prefix():
    model = model_of("bert")
    mtst.freeze(model.encoder.backbone.encoder.layer[0])  # the embeddings below learn
    count = Count(model)
    fit(model, callbacks=[count], epochs=2)
    assert count.runs[:16] == [1] * 16


def test_requires_grad_alone_keeps_dropout_and_is_not_cached():
    model = model_of("bert")
    model.encoder.backbone.requires_grad_(False)
    count = Count(model)
    fit(model, callbacks=[count], epochs=2)
    assert count.runs[:16] == [1] * 16


def test_one_epoch_is_not_worth_a_cache():
    model = model_of("bert", 0)
    count = Count(model)
    fit(model, callbacks=[count], epochs=1)
    assert count.runs[:8] == [1] * 8


def test_too_large_for_memory_falls_back_and_says_so(monkeypatch):
    class Tiny:
        available = 1000

    monkeypatch.setattr(frozen_prefix.psutil, "virtual_memory", Tiny)
    models = [model_of("bert", 1) for _ in range(2)]
    count = Count(models[0])
    with pytest.warns(
        UserWarning, match=r"frozen layers' outputs would take .* training without a cache"
    ) as warned:
        slow = fit(models[0], callbacks=[count], epochs=2)
    assert len(warned) == 1
    assert count.runs[:16] == [1] * 16
    monkeypatch.undo()
    assert fit(models[1], epochs=2).loss.to_numpy() == pytest.approx(slow.loss.to_numpy(), abs=1e-5)


def test_unfreezing_during_training_renews_the_cache():
    histories = []
    for acceleration in (True, False):
        unfreezing = mtst.GradualUnfreezing(0.3, 0.8, base_lr=1e-3)
        options = {"epochs": 8, "callbacks": [unfreezing], "acceleration": acceleration}
        histories.append(fit(model_of("bert"), **options).loss.to_numpy())
    assert histories[0] == pytest.approx(histories[1], abs=1e-5)


def test_layers_that_take_turns_are_not_run_for_every_sentence_at_every_turn():
    """Nobody said how long they stay frozen: one pass in vain is the most that may cost."""

    class Turns:
        def before_step(self, run):
            mtst.unfreeze_top_blocks(run.model, run.step % 2)

    model, sentences = model_of("bert"), []
    block = mtst.layer_stack(model.encoder.backbone)[1].modules[0]
    block.register_forward_pre_hook(lambda _, given: sentences.append(len(given[0])))
    fit(model, callbacks=[Turns()], epochs=3)
    # At most once in vain, which a first step fills, and then in every epoch as without a cache.
    assert sum(sentences) <= len(FRAME) * (1 + 3)


def test_heads_that_take_turns_leave_the_cache_as_it_is():
    class Turns:
        def before_step(self, run):
            mtst.unfreeze(run.model.heads)
            mtst.freeze(run.model.heads["animal" if run.step % 2 else "letter"])

    model = model_of("bert", 0)
    count = Count(model)
    # Of SGD's writes torch keeps count, as it does not of a fused optimizer's.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(model, callbacks=[Turns(), count], epochs=2, optimizer=optimizer)
    assert count.runs[0] > 0
    assert sum(count.runs[1:]) == 0


@pytest.mark.parametrize("step", [3, 20])
def test_interrupted_training_goes_on_exactly(tmp_path, monkeypatch, step):
    class Interrupt:
        def on_step(self, run):
            if run.step == step and armed:
                raise KeyboardInterrupt

    armed = [True]
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", float("-inf"))
    whole, again = model_of("bert", 1), model_of("bert", 1)
    fit(whole)
    with pytest.raises(KeyboardInterrupt):
        fit(model_of("bert", 1), checkpoint=tmp_path, callbacks=[Interrupt()])
    armed.clear()
    fit(again, checkpoint=tmp_path, callbacks=[Interrupt()])
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True)
    )


def test_model_is_whole_afterwards_even_when_interrupted():
    class Interrupt:
        def on_step(self, run):
            if run.step == 10:
                raise KeyboardInterrupt

    for depth in (0, 1, 2):
        model = model_of("bert", depth)
        names, texts = list(model.state_dict()), FRAME.text.tolist()
        with pytest.raises(KeyboardInterrupt):
            fit(model, callbacks=[Interrupt()])
        assert list(model.state_dict()) == names
        assert "forward" not in vars(model.encoder)
        assert "forward" not in vars(model.encoder.backbone.embeddings)
        fresh = model_of("bert")
        fresh.load_state_dict(model.state_dict())
        assert model.predict(texts).equals(fresh.predict(texts))


class WordDropout(mtst.MultiTaskModel):
    def forward(self, input_ids, attention_mask, labels=None):
        if labels is not None:
            input_ids[:, 1] = 1  # in place
        return super().forward(input_ids, attention_mask, labels)


class TokenTypesByPosition(mtst.MultiTaskModel):
    def forward(self, input_ids, attention_mask, labels=None):
        self.encoder(input_ids, attention_mask, torch.zeros_like(input_ids))
        return super().forward(input_ids, attention_mask, labels)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("kind", [WordDropout, TokenTypesByPosition])
def test_a_forward_that_gives_the_encoder_other_inputs(kind, depth):
    losses = []
    for acceleration in (True, False):
        plain = model_of("bert", depth)
        model = kind(plain.encoder, plain.tasks.values())
        model.heads = plain.heads
        losses.append(fit(model, acceleration=acceleration).loss.to_numpy())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("where", ["backbone", "backbone.encoder", ""])
@pytest.mark.parametrize("before", [False, True])
def test_hooks_act_once_whatever_is_cached(where, before):
    """Of the backbone, of what holds its blocks, of the encoder: what goes in, what comes out."""

    def scaled(value):
        return value * 0.7 if torch.is_tensor(value) and value.is_floating_point() else value

    def on_input(module, given):
        return tuple(map(scaled, given))

    def on_output(module, given, output):
        if torch.is_tensor(output):
            return scaled(output)
        output.last_hidden_state = scaled(output.last_hidden_state)
        return output

    losses = []
    for acceleration in (True, False):
        model = model_of("bert", 1)
        part = model.encoder.get_submodule(where)
        if before:
            part.register_forward_pre_hook(on_input)
        else:
            part.register_forward_hook(on_output)
        losses.append(fit(model, acceleration=acceleration).loss.to_numpy())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_what_a_forward_sets_on_the_encoder_stays():
    class Counting(mtst.MultiTaskModel):
        def forward(self, *inputs, **options):
            self.encoder.calls = getattr(self.encoder, "calls", 0) + 1
            return super().forward(*inputs, **options)

    plain = model_of("bert", 0)
    model = Counting(plain.encoder, plain.tasks.values())
    steps = len(fit(model))
    assert model.encoder.calls == steps


@pytest.mark.parametrize("change", ["a new parameter", "another pooling"])
def test_what_changes_below_is_noticed(change):
    class Changing:
        def before_step(self, run):
            if run.step == 12:
                encoder = run.model.encoder
                if change == "another pooling":
                    encoder.pooling = "max"
                else:
                    table = encoder.backbone.embeddings.word_embeddings
                    table.weight = torch.nn.Parameter(table.weight * 2, requires_grad=False)

    models = [model_of("bert", 0) for _ in range(2)]
    cached = fit(models[0], callbacks=[Changing()])
    plain = fit(models[1], callbacks=[Changing()], acceleration=False)
    assert cached.loss.to_numpy() == pytest.approx(plain.loss.to_numpy(), abs=1e-5)


def test_an_interrupted_run_fills_the_cache_where_the_first_one_did(tmp_path, monkeypatch):
    """Also in the last epoch, and where layers take turns: the numbers are the same to the bit."""
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", -1)

    class Interruption:
        _armed = True

        def before_step(self, run):
            for block in run.model.encoder.backbone.encoder.layer[:1]:
                (mtst.unfreeze if run.step in (9, 10, 11) else mtst.freeze)(block)
            if run.step == 22 and self._armed:
                self._armed = False
                raise KeyboardInterrupt

    callback, models = Interruption(), [model_of("mpnet", 1) for _ in range(3)]

    def trained(model, **options):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        fit(model, callbacks=[callback], optimizer=optimizer, **options)

    with pytest.raises(KeyboardInterrupt):
        trained(models[0], checkpoint=tmp_path)
    trained(models[1], checkpoint=tmp_path)
    trained(models[2])
    for a, b in zip(models[1].parameters(), models[2].parameters(), strict=True):
        assert torch.equal(a, b)
