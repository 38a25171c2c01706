"""Faults that people met with training, each by kind: what they did, and what is right."""

import copy
import os
from unittest import mock

import conftest
import numpy as np
import pandas as pd
import pytest
import small
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2Model

import mtst_utils as mtst
from mtst_utils import layers
from mtst_utils.backbones import untrained_twin
from mtst_utils.experiments import transfer

FRAME = small.frame()
OPTIONS = {"epochs": 2, "batch_size": 8, "precision": "float32", "progress": False}


def fit(model, frame=FRAME, **options):
    return mtst.fit(model, frame, **OPTIONS | options)


def inputs_of(model, n=4):
    return model.encoder.collate(model.encoder.tokenize(FRAME.text[:n].tolist())[0])


def same_weights(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_gradients_from_before_do_not_enter_the_first_step():
    clean, looked_at = small.model(), small.model()
    looked_at.train()
    looked_at(*inputs_of(looked_at), {"letter": torch.tensor([0, 1, 0, 1])}).loss.backward()
    histories = [fit(model) for model in (clean, looked_at)]
    assert histories[0].equals(histories[1])
    assert same_weights(clean, looked_at)
    assert all(p.grad is None for p in looked_at.parameters())


def test_an_interrupted_run_leaves_no_gradients():
    class Interrupt:
        def on_step(self, run):
            run.model(*inputs_of(run.model), {"letter": torch.tensor([0, 1, 0, 1])}).loss.backward()
            raise KeyboardInterrupt

    model = small.model()
    with pytest.raises(KeyboardInterrupt):
        fit(model, callbacks=[Interrupt()])
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


def test_what_a_caller_keeps_of_the_model_does_not_stop_training():
    model, expected = small.model(), small.model()
    kept = model(*inputs_of(model)), {n: p.clone() for n, p in model.named_parameters()}
    assert fit(model).equals(fit(expected))
    assert kept[0].embeddings.requires_grad


@pytest.fixture
def fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("how", ["environment", "an accelerator from before"])
def test_the_precision_asked_for_wins_and_nothing_of_accelerate_stays(how):
    expected = fit(small.model())
    AcceleratorState._reset_state(reset_partial_state=True)
    with mock.patch.dict(os.environ, {"ACCELERATE_MIXED_PRECISION": "bf16"}):
        if how != "environment":
            Accelerator()
        model = small.model()
        assert fit(model).equals(expected)
    assert "forward" not in vars(model)
    assert not any("accelerate" in name for name in vars(model))


@pytest.mark.usefixtures("fresh_accelerate")
def test_an_accelerator_may_be_set_up_after_fit():
    fit(small.model(), epochs=1)
    assert Accelerator(mixed_precision="bf16").mixed_precision == "bf16"


class InterruptAt:
    def __init__(self, step):
        self.at = step

    def before_step(self, run):
        if run.step == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("prepare", [lambda m: None, lambda m: mtst.freeze(m.heads["letter"])])
@pytest.mark.parametrize("step", [0, 7, None])
def test_fit_leaves_frozen_what_the_caller_froze(prepare, step):
    """GradualUnfreezing, interrupted: a plain fit afterwards trained only what was open,
    silently.
    """
    model = small.model()
    prepare(model)
    modes = {name: mtst.freezing.is_frozen(part) for name, part in model.named_modules()}
    learning = {name: p.requires_grad for name, p in model.named_parameters()}
    callbacks = [mtst.GradualUnfreezing(0.3, 0.9), InterruptAt(step)]
    if step is None:
        fit(model, callbacks=callbacks)
    else:
        with pytest.raises(KeyboardInterrupt):
            fit(model, callbacks=callbacks)
    assert {name: mtst.freezing.is_frozen(part) for name, part in model.named_modules()} == modes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == learning


def test_a_group_called_all_and_a_group_without_a_name():
    domains = ["all", "b", None, "b"] * 16
    model, frame = small.model(), FRAME.assign(domain=domains)
    with pytest.warns(
        UserWarning, match="16 of 64 rows have no domain: they count in the scores over all"
    ):
        table = mtst.evaluate(model, frame, by="domain")
    overall = table[table.domain.isna()]
    assert overall.n.tolist() == [64, 64]
    assert table[table.domain == "all"].n.tolist() == [16, 16]
    assert len(table) == 2 * 3
    assert overall.drop(columns="domain").reset_index(drop=True).equals(mtst.evaluate(model, FRAME))


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
def test_scores_over_no_label_are_nan(missing):
    model, valid = small.model(), FRAME.assign(letter=pd.Series([missing] * 64, dtype=object))
    table = mtst.evaluate(model, valid).set_index("task")
    assert table.n.to_dict() == {"animal": 64, "letter": 0}
    assert np.isnan(table.loc["letter", ["accuracy", "macro F1"]].to_numpy(float)).all()
    assert table.loc["animal"].notna().all()
    history = mtst.fit(model, FRAME, valid, **OPTIONS)
    assert len(history.epochs) == 2
    assert history.epochs["valid letter accuracy"].isna().all()


def test_by_must_be_a_column():
    with pytest.raises(
        ValueError, match=r"by must be a column of the frame, .*; got 'source', it has \['text'"
    ):
        mtst.evaluate(small.model(), FRAME, by="source")


def test_tasks_called_valid_and_loss():
    mtst.seed_everything(0)
    tasks = [mtst.Task("valid", ("b", "c")), mtst.Task("loss", ("cat", "other"))]
    model = mtst.MultiTaskModel(small.model().encoder, tasks)
    frame = FRAME.rename(columns={"letter": "valid", "animal": "loss"})
    assert len(fit(model, frame).epochs) == 0
    history = mtst.fit(model, frame, frame, **OPTIONS)
    assert history.epochs.step.tolist() == [8, 16]
    assert history["valid loss"].notna().all()  # the loss of task "valid", of every step
    assert np.allclose(history["loss"], history["valid loss"] + history["loss loss"])


def test_interrupts_in_a_callback_leave_no_autocast():
    class Interrupt:
        def on_step(self, run):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(small.model(), callbacks=[Interrupt()], precision="bfloat16")
    assert not torch.is_autocast_enabled("cpu")
    assert not torch.is_inference_mode_enabled()


def test_a_home_folder_is_written_as_people_write_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fit(small.model(), checkpoint="~/run")
    assert (tmp_path / "run" / "checkpoint.safetensors").is_file()
    assert not (tmp_path / "~").exists()


def test_freezing_one_block_and_unfreezing_another_of_the_same_size():
    """Chain-thaw, alternating heads: a comparison of tensors raised."""

    class Chain:
        def on_start(self, run):
            self.blocks = run.model.encoder.backbone.encoder.layer
            mtst.freeze(run.model.encoder.backbone)
            run.unchanged_until = 0

        def before_step(self, run):
            for i, block in enumerate(self.blocks):
                (mtst.unfreeze if i == run.step % 3 else mtst.freeze)(block)

    model = small.model()
    before = copy.deepcopy(model)
    fit(model, callbacks=[Chain()])
    for a, b in zip(
        model.encoder.backbone.encoder.layer, before.encoder.backbone.encoder.layer, strict=True
    ):
        assert not same_weights(a, b)
    assert same_weights(model.encoder.backbone.embeddings, before.encoder.backbone.embeddings)


def gpt2_model(monkeypatch):
    places = {"wte": 0, "wpe": 0, "ln_f": -1}
    monkeypatch.setitem(layers.LAYOUTS, "gpt2", ("h", places))
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=40, n_embd=32, n_layer=2, n_head=2)
    encoder = mtst.SentenceEncoder(GPT2Model(config).eval(), conftest.tiny_tokenizer())
    return mtst.MultiTaskModel(encoder, [mtst.Task("letter", ("b", "c"))])


def test_a_causal_backbone_is_trained_causally(monkeypatch):
    """The word after must not change the state before it: not in training mode either, and not in
    `fit`.
    """
    model, seen = gpt2_model(monkeypatch), []

    class Look:
        def on_step(self, run):
            run.model.encoder.backbone.eval()
            with torch.no_grad():
                states = [
                    run.model.encoder.backbone(torch.tensor([[5, 6, last]])).last_hidden_state
                    for last in (7, 8)
                ]
            seen.append(torch.equal(states[0][:, :2], states[1][:, :2]))

    class States(type(model)):
        def forward(self, input_ids, attention_mask, labels=None):
            if self.training:  # the very call that trains
                other = input_ids.clone()
                other[:, -1] = 9
                mask, states = torch.ones_like(input_ids), []
                for ids in (input_ids, other):
                    torch.manual_seed(0)
                    states.append(self.encoder.backbone(ids, attention_mask=mask).last_hidden_state)
                seen.append(torch.allclose(states[0][:, :-1], states[1][:, :-1]))
            return super().forward(input_ids, attention_mask, labels)

    model.__class__ = States
    fit(model, FRAME[["text", "letter"]], epochs=1, callbacks=[Look()])
    assert len(seen) == 16
    assert all(seen)


class ReadsWords(mtst.MultiTaskModel):
    """A subclass whose forward looks at its inputs."""

    def forward(self, input_ids, attention_mask, labels=None):
        assert input_ids.shape == attention_mask.shape
        self.tokens_seen = getattr(self, "tokens_seen", 0) + attention_mask.sum().item()
        return super().forward(input_ids, attention_mask, labels)


@pytest.mark.parametrize("depth", [0, 1])
def test_a_forward_that_reads_the_words_above_a_frozen_backbone(depth):
    losses = []
    for acceleration in (True, False):
        model = ReadsWords(small.model().encoder, small.model().tasks.values())
        model.load_state_dict(small.model().state_dict())
        mtst.unfreeze_top_blocks(model, depth)
        losses.append(fit(model, epochs=3, acceleration=acceleration).loss.to_numpy())
        assert model.tokens_seen > 1000
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("depth", [0, 1, None])
def test_distillation_with_whatever_is_frozen(depth):
    losses = []
    for acceleration in (True, False):
        model = small.model()
        if depth is not None:
            mtst.unfreeze_top_blocks(model, depth)
        learner = transfer.Distilled(model, "letter")
        frame = FRAME.drop(columns="letter")
        losses.append(fit(learner, frame, epochs=3, acceleration=acceleration).loss.to_numpy())
        assert learner.predict(["the cat"]).text.tolist() == ["the cat"]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_sentences_of_the_models_own_choice_do_not_come_from_the_cache():
    class Contrasts(mtst.MultiTaskModel):
        """Its loss looks at other sentences, too: each batch reversed."""

        def forward(self, input_ids, attention_mask, labels=None):
            output = super().forward(input_ids, attention_mask, labels)
            if labels is not None:
                others = self.encoder(input_ids.flip(0), attention_mask.flip(0))
                output.loss = output.loss + (output.embeddings - others).square().mean()
            return output

    losses = []
    for acceleration in (True, False):
        model = Contrasts(small.model().encoder, small.model().tasks.values())
        model.load_state_dict(small.model().state_dict())
        mtst.unfreeze_top_blocks(model, 1)
        losses.append(fit(model, epochs=3, acceleration=acceleration).loss.to_numpy())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


class Opposite(mtst.MultiTaskModel):
    """Another head rule: the logits turned around. In `logits`, or in a forward of its own."""

    def logits(self, embeddings):
        return {name: -values for name, values in super().logits(embeddings).items()}


class OppositeForward(mtst.MultiTaskModel):
    def forward(self, input_ids, attention_mask, labels=None):
        embeddings = self.encoder(input_ids, attention_mask)
        logits = {name: -values for name, values in self.logits(self.dropout(embeddings)).items()}
        losses = {name: cross_entropy(logits[name], t) for name, t in (labels or {}).items()}
        loss = sum(losses.values()) if labels else None
        return mtst.MultiTaskOutput(loss, losses, logits, embeddings)


@pytest.mark.parametrize("kind", [Opposite, OppositeForward])
def test_a_head_rule_of_ones_own_is_trained_predicted_and_scored_alike(kind):
    model = kind(small.model().encoder, small.model().tasks.values())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    fit(model, epochs=12, optimizer=optimizer)
    said = model.predict(FRAME.text)
    with torch.no_grad():
        logits = model(
            *model.encoder.collate(model.encoder.tokenize(FRAME.text.tolist())[0])
        ).logits
    for name in model.tasks:
        assert (said[name] == np.array(model.tasks[name].labels)[logits[name].argmax(1)]).all()
        assert (said[name] == FRAME[name]).mean() > 0.9
    scores = mtst.evaluate(model, FRAME).set_index("task").accuracy
    assert scores.to_dict() == {name: (said[name] == FRAME[name]).mean() for name in model.tasks}


@pytest.mark.parametrize("kind", conftest.CONFIGS)
def test_an_untrained_twin_of_every_architecture(kind):
    backbone = conftest.tiny_backbone(kind)
    torch.manual_seed(3)
    twin = untrained_twin(backbone)
    assert type(twin) is type(backbone)
    encoder = mtst.SentenceEncoder(twin, conftest.tiny_tokenizer())
    assert np.isfinite(encoder.encode(["the cat sat", "late"])).all()


def test_a_loss_that_is_not_a_number_stops_training_and_says_where():
    class Break:
        def on_step(self, run):
            if run.step == 5:
                with torch.no_grad():
                    run.model.heads["letter"].bias[0] = float("nan")

    model = small.model()
    message = r"step 6 of 16: the loss of task 'letter' is nan.*Try a smaller learning rate"
    with pytest.raises(FloatingPointError, match=message):
        fit(model, callbacks=[Break()])
    assert all(p.isfinite().all() for name, p in model.named_parameters() if "letter" not in name)


def test_a_gradient_that_is_not_a_number_stops_training_before_the_step():
    class Break:
        def before_step(self, run):
            if run.step == 5:
                run.model.heads["animal"].weight.register_hook(lambda grad: grad / 0)

    model = small.model()
    with pytest.raises(
        FloatingPointError, match=r"step 6 of 16: the length of the gradient is (inf|nan)"
    ):
        fit(model, callbacks=[Break()])
    assert all(p.isfinite().all() for p in model.parameters())
