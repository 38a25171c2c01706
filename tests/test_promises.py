"""What `fit` promises, where a reader of the code found that it was not kept."""

import copy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SIZE, tiny_tokenizer
from small import frame, model
from torch.optim.lr_scheduler import LambdaLR, LinearLR, SequentialLR
from transformers import GPT2Config, GPT2Model

import mtst_utils as mtst
from mtst_utils import checkpoints, layers, multitask, precision, training
from mtst_utils.frames import TrainingData

FRAME = frame(24)
QUIET = {"progress": False, "precision": "float32"}


class At(mtst.Callback):
    """Calls what it is given before one step."""

    def __init__(self, step, then):
        self._step, self._then = step, then

    def before_step(self, run):
        if run.step == self._step:
            self._then(run)


def weights(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_every_process_has_as_many_parts_as_the_others():
    """One with a sentence less had a part less, and waited for the other for ever."""
    net = model()
    for rows in (9, 10, 11):
        shares = [TrainingData(net, FRAME, rows, 0, rank, 2, parts=4) for rank in (0, 1)]
        for one, other in zip(*(share.epoch(0) for share in shares), strict=True):
            assert len(one.parts) == len(other.parts)
            assert sorted(row for part in one.parts + other.parts for row in part) == sorted(
                one.rows
            )
            assert all(one.parts + other.parts)


def test_what_a_callback_unfreezes_later_is_asked_after():
    net = model()
    mtst.freeze(net.encoder)
    later = At(3, lambda run: mtst.unfreeze(run.model.encoder))
    with pytest.warns(UserWarning, match="it does not hold .* parameters that may learn"):
        mtst.fit(net, FRAME, epochs=2, batch_size=8, callbacks=[later], **QUIET)


class Masking(mtst.MultiTaskModel):
    def forward(self, input_ids, attention_mask, labels=None):
        mask = attention_mask.clone()
        mask[:, 0] = 0
        return super().forward(input_ids, mask, labels)


class Dropping(mtst.SentenceEncoder):
    def forward(self, input_ids, attention_mask):
        if self.training:
            input_ids = input_ids.clone()
            input_ids[:, 1] = 2
        return super().forward(input_ids, attention_mask)


@pytest.mark.parametrize("kind", ["another mask", "an encoder that trains otherwise"])
def test_the_cache_does_not_change_what_a_subclass_trains(kind):
    found = []
    for acceleration in (True, False):
        net = model(dropout=0)
        if kind == "another mask":
            net.__class__ = Masking
            mtst.freeze(net.encoder)
        else:
            net.encoder.__class__ = Dropping
            mtst.freeze(net.encoder.backbone)
        found.append(mtst.fit(net, FRAME, epochs=3, acceleration=acceleration, **QUIET).loss)
    np.testing.assert_allclose(*found, atol=1e-6)


class Strong(mtst.MultiTaskModel):
    def forward(self, input_ids, attention_mask, labels=None):
        output = super().forward(input_ids, attention_mask, labels)
        if labels is not None:
            output.loss = output.loss + self.strength * output.embeddings.square().mean()
        return output


def strong(strength):
    net = model()
    net.__class__, net.strength = Strong, strength
    return net


def test_what_a_subclass_adds_to_the_loss_is_there_in_parts_too():
    found = []
    for parts in (1, 2):
        net = strong(10.0).eval()
        for part in net.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        found.append(mtst.fit(net, FRAME, epochs=1, batch_size=8, parts=parts, **QUIET).loss)
    np.testing.assert_allclose(*found, rtol=1e-4)
    assert found[0].iloc[0] > 3  # without what is added, about 1.4


def test_a_checkpoint_is_not_taken_for_a_model_of_another_setting(tmp_path):
    def stop(run):
        raise RuntimeError("stopped")

    options = {"epochs": 4, "batch_size": 8, "checkpoint": tmp_path} | QUIET
    with pytest.raises(RuntimeError, match="stopped"):
        mtst.fit(strong(0.0), FRAME, callbacks=[At(4, stop)], **options)
    with pytest.raises(ValueError, match="of another run .model differ"):
        mtst.fit(strong(10.0), FRAME, callbacks=[At(4, stop)], **options)


def test_a_checkpoint_is_not_taken_for_other_adapters(tmp_path):
    peft = pytest.importorskip("peft")

    def stop(run):
        raise RuntimeError("stopped")

    for alpha, expected in ((8, RuntimeError), (8, RuntimeError), (64, ValueError)):
        net = model()
        mtst.freeze(net.encoder.backbone)
        names = {"query", "key", "value"}  # a set, whose order changes from process to process
        net.encoder.backbone.add_adapter(peft.LoraConfig(lora_alpha=alpha, target_modules=names))
        for part in net.encoder.backbone.modules():
            vars(part).pop("train", None)
        options = {"epochs": 4, "batch_size": 8, "checkpoint": tmp_path} | QUIET
        with pytest.raises(expected, match="adapters differ" if alpha == 64 else "stopped"):
            mtst.fit(net, FRAME, callbacks=[At(4, stop)], **options)


def test_going_on_finds_frozen_what_a_callback_had_frozen(tmp_path):
    def freeze_head(run):
        mtst.freeze(run.model.heads["letter"])

    def stop(run):
        raise RuntimeError("stopped")

    options = {"epochs": 3, "batch_size": 8, "checkpoint": tmp_path} | QUIET
    whole, again = model(), model()
    mtst.fit(whole, FRAME, callbacks=[At(2, freeze_head)], **options | {"checkpoint": None})
    with pytest.raises(RuntimeError, match="stopped"):
        mtst.fit(model(), FRAME, callbacks=[At(2, freeze_head), At(7, stop)], **options)
    mtst.fit(again, FRAME, callbacks=[At(2, freeze_head), At(7, lambda run: None)], **options)
    assert same(weights(whole), weights(again))


def test_gradual_unfreezing_leaves_frozen_layers_in_eval_mode():
    net, seen = model(), []
    mtst.unfreeze_top_blocks(net, 1)
    lowest = net.encoder.backbone.embeddings

    class Look(mtst.Callback):
        def on_step(self, run):
            seen.append(any(part.training for part in lowest.modules()))

    unfreezing = mtst.GradualUnfreezing(0.2, 0.6)
    mtst.fit(net, FRAME, epochs=2, batch_size=4, callbacks=[unfreezing, Look()], **QUIET)
    assert not any(seen)


def test_gradual_unfreezing_keeps_the_schedules_of_other_groups():
    net, rates = model(), []
    groups = [net.encoder, net.heads["animal"], net.heads["letter"]]
    optimizer = torch.optim.AdamW([{"params": list(g.parameters()), "lr": 1e-3} for g in groups])
    factors = [lambda step: 0.5, lambda step: 1.0, lambda step: 0.0]

    class Look(mtst.Callback):
        def before_step(self, run):
            heads = {id(p) for p in run.model.heads.parameters()}
            rates.append(
                [g["lr"] for g in run.optimizer.param_groups if id(g["params"][0]) in heads]
            )

    mtst.fit(
        net,
        FRAME,
        epochs=1,
        batch_size=8,
        optimizer=optimizer,
        scheduler=lambda own, total: LambdaLR(own, factors),
        callbacks=[mtst.GradualUnfreezing(0.2, 0.6), Look()],
        **QUIET,
    )
    assert rates == [[1e-3, 0.0]] * 3


def test_gradual_unfreezing_takes_named_parameters():
    net = model()
    optimizer = torch.optim.AdamW(net.named_parameters(), lr=1e-3)
    unfreezing = mtst.GradualUnfreezing(0.2, 0.6)
    mtst.fit(net, FRAME, epochs=2, optimizer=optimizer, callbacks=[unfreezing], **QUIET)


@pytest.mark.parametrize("callbacks", [[], [mtst.GradualUnfreezing(0.2, 0.6)]])
def test_the_callers_optimizer_is_given_back_as_it_was(callbacks):
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    before = copy.copy(optimizer.param_groups[0])
    mtst.fit(net, FRAME, epochs=2, optimizer=optimizer, callbacks=callbacks, **QUIET)
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0] == before
    optimizer.param_groups[0]["lr"] = 1e-5  # and a rate of now is that of the next training
    history = mtst.fit(net, FRAME, epochs=2, optimizer=optimizer, **QUIET)
    assert history.lr.max() == pytest.approx(1e-5)


def test_a_kind_of_task_that_is_a_number_can_be_opened_again(tmp_path, monkeypatch):
    class Huber(mtst.RegressionTask):
        pass

    monkeypatch.setitem(multitask.KINDS, "Huber", Huber)
    net = mtst.MultiTaskModel(model().encoder, [Huber("length")])
    net.save_pretrained(tmp_path)
    assert type(mtst.MultiTaskModel.from_pretrained(tmp_path).tasks["length"]) is Huber


def test_validation_has_the_scores_of_each_task_alone():
    texts = FRAME.text
    length = pd.Series(texts.str.len().to_numpy(float), index=FRAME.index)
    both = FRAME.drop(columns="letter").assign(length=length)
    tasks = [mtst.Task("animal", ("cat", "other")), mtst.RegressionTask("length")]
    net = mtst.MultiTaskModel(model().encoder, tasks)
    history = mtst.fit(net, both, both, epochs=1, **QUIET)
    found = [name for name in history.columns if name.startswith("valid ")]
    assert "valid animal mean absolute error" not in found
    assert "valid length accuracy" not in found
    assert not history[found].iloc[-1].isna().any()
    stopping = mtst.EarlyStopping("animal mean absolute error")
    with pytest.raises(ValueError, match="metric must be one of"):
        mtst.fit(net, both, both, epochs=2, callbacks=[stopping], **QUIET)


def test_a_module_that_adapters_train_whole_is_saved(tmp_path):
    peft = pytest.importorskip("peft")
    net = model()
    whole = peft.LoraConfig(target_modules=["query"], modules_to_save=["embeddings"])
    net.encoder.backbone.add_adapter(whole)
    mtst.fit(net, FRAME, epochs=1, **QUIET)
    net.save_pretrained(tmp_path)
    texts = FRAME.text.tolist()
    opened = mtst.MultiTaskModel.from_pretrained(tmp_path).encoder.encode(texts)
    np.testing.assert_allclose(opened, net.encoder.encode(texts), atol=1e-5)


@pytest.mark.parametrize("fault", ["a scheduler that is none", "weights that cannot be hashed"])
def test_the_callers_optimizer_is_as_it_was_after_an_error_before_training(
    fault, tmp_path, monkeypatch
):
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    before = [dict(group) for group in optimizer.param_groups]
    options = {"optimizer": optimizer, **QUIET}
    if fault == "a scheduler that is none":

        def forgot_to_return(own, steps):
            mtst.warmup_linear(own, steps)

        options["scheduler"] = forgot_to_return
    else:
        options["checkpoint"] = tmp_path
        monkeypatch.setattr(checkpoints, "_hash_of", lambda tensors: 1 / 0)
    with pytest.raises((TypeError, ZeroDivisionError)):
        mtst.fit(net, FRAME, epochs=1, **options)
    assert [dict(group) for group in optimizer.param_groups] == before


class Decay(torch.optim.lr_scheduler.LRScheduler):
    """One that holds a function which is not called lr_lambdas."""

    def __init__(self, optimizer, factor):
        self.factor = factor
        super().__init__(optimizer)

    def get_lr(self):
        return [lr * self.factor(self.last_epoch) for lr in self.base_lrs]


def test_a_schedule_of_ones_own_that_holds_a_function_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", float("-inf"))

    def scheduler(own, steps):
        return Decay(own, lambda step: 1 / (1 + step))  # another object in every process

    class Stop(mtst.Callback):
        def __init__(self, at):
            self._at = at

        def on_step(self, run):
            if run.step == self._at:
                raise KeyboardInterrupt

    options = {"epochs": 2, "batch_size": 8, "scheduler": scheduler, **QUIET}
    whole = mtst.fit(model(), FRAME, callbacks=[Stop(99)], **options)
    with pytest.raises(KeyboardInterrupt):
        mtst.fit(model(), FRAME, callbacks=[Stop(4)], checkpoint=tmp_path, **options)
    again = mtst.fit(model(), FRAME, callbacks=[Stop(99)], checkpoint=tmp_path, **options)
    pd.testing.assert_frame_equal(pd.DataFrame(again), pd.DataFrame(whole))


def test_an_array_of_words_is_a_setting_like_any_other(tmp_path):
    net = model()
    net.names = np.array(["cat", "other"])
    mtst.fit(net, FRAME, epochs=1, checkpoint=tmp_path, **QUIET)
    net = model()
    net.names = np.array(["dog", "other"])
    with pytest.raises(ValueError, match=r"of another run \(model differ"):
        mtst.fit(net, FRAME, epochs=1, checkpoint=tmp_path, **QUIET)


def test_a_run_in_float32_does_not_go_on_in_bfloat16(tmp_path, monkeypatch):
    options = {"epochs": 1, "checkpoint": tmp_path, "progress": False}
    monkeypatch.setattr(precision, "has_quick_bfloat16", lambda device: False)
    mtst.fit(model(), FRAME, precision="auto", **options)
    monkeypatch.setattr(precision, "has_quick_bfloat16", lambda device: True)
    with pytest.raises(ValueError, match=r"of another run \(precision differ"):
        mtst.fit(model(), FRAME, precision="auto", **options)
    mtst.fit(model(), FRAME, precision="float32", **options)


def test_a_part_whose_place_is_not_stated_trains_without_a_cache():
    histories = []
    for acceleration in (True, False):
        net = model()
        net.encoder.backbone.adapter = torch.nn.Linear(32, 32)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        options = {"epochs": 2, "optimizer": optimizer, "acceleration": acceleration}
        histories.append(mtst.fit(net, FRAME, **options, **QUIET).loss)
    assert histories[0].tolist() == histories[1].tolist()


def test_the_cache_is_filled_anew_when_frozen_weights_are_written_to():
    def forget(run):
        with torch.no_grad():
            run.model.encoder.backbone.embeddings.word_embeddings.weight.zero_()

    histories = []
    for acceleration in (True, False):
        net = model()
        mtst.freeze(net.encoder)
        options = {"epochs": 3, "batch_size": 8, "callbacks": [At(5, forget)]}
        found = mtst.fit(net, FRAME, acceleration=acceleration, **options, **QUIET)
        histories.append(found.loss.to_numpy())
    assert histories[0] == pytest.approx(histories[1], abs=1e-5)


def test_what_trainer_collates_is_on_the_cpu():
    """It pins that memory, which it can of nothing else, and moves it to the device itself."""
    net = model().to("meta")
    examples = [{"input_ids": [2, 5, 3], "labels": {"animal": 0, "letter": 1}}] * 2
    batch = net.collate(examples)
    found = [batch["input_ids"], batch["attention_mask"], *batch["labels"].values()]
    assert {tensor.device.type for tensor in found} == {"cpu"}
    assert net.encoder.collate([[2, 5, 3]])[0].device.type == "meta"


def test_dropout_is_seeded_on_every_kind_of_device(monkeypatch):
    """A Mac's GPU draws its masks from numbers of its own, as a CUDA device does."""
    net, seeds = model(), []
    data = TrainingData(net, FRAME, batch_size=8, seed=0)
    here = SimpleNamespace(device=torch.device("cpu"), rank=0, size=1, is_main=True)
    run = training.Run(net, None, mtst.warmup_linear, 1, data, here, (), "float32", 1.0, False)
    here.device = torch.device("mps")
    monkeypatch.setattr(torch.mps, "manual_seed", seeds.append)
    for run.step in (0, 1):
        run.begin_step()
    assert len(set(seeds)) == 2


# --- what a practitioner met in the first days


def test_the_cache_leaves_nothing_out_of_an_architecture_added_as_the_readme_says(monkeypatch):
    monkeypatch.setitem(layers.LAYOUTS, "gpt2", ("h", {"wte": 0, "wpe": 0, "ln_f": -1}))
    losses = []
    for acceleration in (True, False):
        mtst.seed_everything(0)
        size = {"vocab_size": SIZE["vocab_size"], "n_embd": 32, "n_layer": 3, "n_head": 2}
        encoder = mtst.SentenceEncoder(GPT2Model(GPT2Config(**size)), tiny_tokenizer())
        net = mtst.MultiTaskModel(encoder, [mtst.Task("animal", ("cat", "other"))])
        mtst.unfreeze_top_blocks(net, 1)
        options = {"epochs": 2, "batch_size": 8, "acceleration": acceleration}
        losses.append(mtst.fit(net, FRAME, **options, **QUIET).loss.to_numpy())
    np.testing.assert_allclose(*losses, atol=1e-5)


class Masked(mtst.SentenceEncoder):
    def collate(self, ids, device=None):
        ids, mask = super().collate(ids, device)
        return torch.where((torch.rand(ids.shape) < 0.3) & (ids > 3), 1, ids), mask


@pytest.mark.parametrize("what", ["the encoder", "a block that learns", "embeddings", "collate"])
def test_the_cache_stands_for_nothing_that_a_hook_or_collate_changes(what):
    losses = []
    for acceleration in (True, False):
        net = model(dropout=0)
        backbone = net.encoder.backbone
        mtst.freeze(net.encoder) if what == "the encoder" else mtst.unfreeze_top_blocks(net, 1)
        if what == "collate":
            net.encoder.__class__ = Masked
        hooked = {"the encoder": net.encoder, "embeddings": backbone.embeddings}
        if what in hooked:
            hooked[what].register_forward_hook(lambda module, given, found: found * 0.5)
        elif what == "a block that learns":
            backbone.encoder.layer[-1].register_forward_pre_hook(
                lambda module, given: (given[0] * 0.5, *given[1:])
            )
        options = {"epochs": 2, "batch_size": 8, "acceleration": acceleration}
        losses.append(mtst.fit(net, FRAME, **options, **QUIET).loss.to_numpy())
    np.testing.assert_allclose(*losses, atol=1e-5)


class Weighted(mtst.MultiTaskModel):
    def __init__(self, *given, weights=(1.0, 1.0)):
        super().__init__(*given)
        self.class_weights = {"animal": list(weights), ("a", "pair"): None}

    def total_loss(self, losses):
        return losses["animal"] * self.class_weights["animal"][0] + losses["letter"]


class Leaning(mtst.Task):
    def __init__(self, name, labels, leaning):
        super().__init__(name, labels)
        object.__setattr__(self, "leaning", leaning)


def powers(rate):
    def scheduler(optimizer, steps):
        later = LambdaLR(optimizer, lambda step: rate**step)
        return SequentialLR(optimizer, [LinearLR(optimizer, total_iters=2), later], milestones=[2])

    return scheduler


@pytest.mark.parametrize(
    ("named", "one", "other"),
    [
        ("model", {"weights": (1.0, 1.0)}, {"weights": (3.0, 1.0)}),
        ("tasks", {"leaning": 1.0}, {"leaning": 2.0}),
        ("scheduler", {"scheduler": powers(0.9)}, {"scheduler": powers(0.5)}),
    ],
)
def test_a_finished_run_is_not_taken_for_one_of_other_settings(tmp_path, named, one, other):
    def run(weights=(1.0, 1.0), leaning=0.0, **options):
        base = model()
        tasks = [Leaning("animal", ("cat", "other"), leaning), base.tasks["letter"]]
        net = Weighted(base.encoder, tasks, weights=weights)
        return mtst.fit(net, FRAME, epochs=2, checkpoint=tmp_path, **options, **QUIET)

    run(**one)
    run(**one)
    with pytest.raises(ValueError, match=rf"is of another run \({named} differ\)"):
        run(**other)


def test_what_a_task_does_not_declare_is_warned_of_when_it_is_saved(tmp_path):
    net = mtst.MultiTaskModel(model().encoder, [Leaning("animal", ("cat", "other"), 2.0)])
    with pytest.warns(UserWarning, match="'animal': leaning is not saved, since Leaning does not"):
        net.save_pretrained(tmp_path)


class LogLoss(mtst.Task):
    def scores(self, truth, probabilities):
        right = probabilities[np.arange(len(truth)), truth]
        return {"log loss": float(-np.log(right).mean()) if len(truth) else np.nan}


def test_a_log_loss_is_a_score_of_which_less_is_better():
    net = mtst.MultiTaskModel(model().encoder, [LogLoss("animal", ("cat", "other"))])
    stopping = mtst.EarlyStopping("animal log loss", patience=9)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    options = {"epochs": 4, "batch_size": 8, "optimizer": optimizer, "callbacks": [stopping]}
    history = mtst.fit(net, FRAME, FRAME, **options, **QUIET)
    assert len(history.epochs) == 4
    losses = history.epochs["valid animal log loss"]
    assert stopping.best_epoch == losses.to_numpy().argmin()
    assert losses.max() > losses.min()


def test_scores_that_are_no_dict_are_named_before_they_are_used():
    class Silent(mtst.Task):
        def scores(self, truth, probabilities):
            print("forgot to return them")

    net = mtst.MultiTaskModel(model().encoder, [Silent("animal", ("cat", "other"))])
    expected = "what scores of task 'animal' returns must be of type dict; got None of type None"
    with pytest.raises(TypeError, match=expected):
        mtst.evaluate(net, FRAME)


@pytest.mark.parametrize(
    "given", [lambda run: None, "early", object()], ids=["f", "word", "object"]
)
def test_what_has_no_event_is_no_callback(given):
    with pytest.raises(TypeError, match="has none of the events that fit calls: on_start, on_epo"):
        mtst.fit(model(), FRAME, epochs=1, callbacks=[given], **QUIET)


def test_adapters_that_are_switched_off_stay_out_of_the_saved_folder(tmp_path):
    from peft import LoraConfig

    net, texts = model(), FRAME.text.tolist()[:4]
    before = net.encoder.encode(texts)
    adapters = LoraConfig(r=4, target_modules=["query"], init_lora_weights=False)
    net.encoder.backbone.add_adapter(adapters)
    assert np.abs(net.encoder.encode(texts) - before).max() > 1e-4
    net.encoder.backbone.disable_adapters()
    net.save_pretrained(tmp_path)
    found = mtst.MultiTaskModel.from_pretrained(tmp_path).encoder.encode(texts)
    np.testing.assert_allclose(found, before, atol=1e-6)


def test_who_runs_the_same_cell_again_is_told_how_to_go_on(tmp_path):
    net, options = model(), {"epochs": 2, "checkpoint": tmp_path, **QUIET}
    mtst.fit(net, FRAME, **options)
    with pytest.raises(ValueError, match="starting weights differ.*to go on, build the model anew"):
        mtst.fit(net, FRAME, **options)
    mtst.fit(model(), FRAME, **options)  # as it says


def test_rows_of_a_batch_may_name_other_tasks():
    net = model()
    rows = [{"labels": {"animal": 1}}, {"labels": {"letter": 0}}, {}]
    inputs = net.collate([{"input_ids": [2, 5, 3], **row} for row in rows])
    assert {name: truth.tolist() for name, truth in inputs["labels"].items()} == {
        "animal": [1, -100, -100],
        "letter": [-100, 0, -100],
    }
    assert torch.isfinite(net(**inputs).loss)
    assert net(**net.collate([{"input_ids": [2, 5, 3]}])).loss is None  # Trainer.predict


def test_a_loss_that_is_none_without_labels_is_told_of():
    class Divides(mtst.Task):
        def loss(self, logits, truth):
            return torch.nn.functional.cross_entropy(logits, truth, ignore_index=-100)

    net = mtst.MultiTaskModel(model().encoder, [Divides("animal", ("cat", "other"))])
    rows = FRAME.assign(animal=FRAME.animal.where(FRAME.index == 0, None))
    with pytest.raises(FloatingPointError, match="must be 0 where no sentence has a label"):
        mtst.fit(net, rows, epochs=1, batch_size=4, **QUIET)


def test_a_table_with_semicolons_and_texts_with_commas_says_so(tmp_path):
    (tmp_path / "mine.csv").write_text("text;label\nHello, world;pos\nAgain, hello;neg\n")
    with pytest.raises(ValueError, match="are its columns not separated by commas"):
        mtst.load_csv(tmp_path / "mine.csv", text="text", tasks={"mood": "label"})
