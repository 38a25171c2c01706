"""Faults that people met, in 22 rows: what they did, and what is right.

Every row is a kind, and its siblings stand beside it: "07 ..." are the tests of row 7. What goes
beyond a row is tested in test_doors.py, test_lora.py and test_training.py.
"""

import copy
import gzip
import inspect
import io
import itertools
import json
import os
import warnings
import zipfile
from functools import partial
from unittest import mock

import conftest
import numpy as np
import pandas as pd
import pytest
import small
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from conftest import tiny_backbone, tiny_tokenizer
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as models
from torch.nn.functional import cross_entropy
from transformers import (
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2Model,
    T5Config,
    T5Model,
    WhisperConfig,
    WhisperModel,
)

import mtst_utils as mtst
from mtst_utils import backbones, layers
from mtst_utils.backbones import untrained_twin
from mtst_utils.experiments import notebook, transfer

FRAME, SHORT = small.frame(), small.frame(24)
TEXTS = small.TEXTS
OPTIONS = {"epochs": 2, "batch_size": 8, "precision": "float32", "progress": False}
ONCE = OPTIONS | {"epochs": 1}
ROWS = []


def fault(number, names=(), values=((),), ids=None):
    """Makes a function a test of a row; with names and values, one test for each value."""

    def add(check):
        given = list(values)
        for value, name in zip(given, ids or given, strict=True):
            one = isinstance(names, str)
            own = {names: value} if one else dict(zip(names, value, strict=True))
            words = check.__name__.replace("_", " ") + (f" {name}" if isinstance(name, str) else "")
            ROWS.append(pytest.param(partial(check, **own), id=f"{number:02} {words}"))
        return check

    return add


def fit(model, frame=FRAME, **options):
    return mtst.fit(model, frame, **OPTIONS | options)


def inputs_of(model, n=4):
    return model.encoder.collate(model.encoder.tokenize(FRAME.text[:n].tolist())[0])


def same_weights(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# --- 01: a checkpoint was taken for that of another run


def pooled(how):
    model = small.model()
    model.encoder.pooling = how
    return model


def with_tokenizer_of_case():
    model = small.model()
    model.encoder.tokenizer.backend_tokenizer.normalizer = None
    return model


def other_class():
    model = small.model()
    model.__class__ = type("Other", (mtst.MultiTaskModel,), {})
    return model


def attending_to_all():
    model = small.model()
    model.encoder.backbone.config.attention_probs_dropout_prob = 0.0
    return model


def optimizer_of(model, reverse=False, steps=0):
    """Momentum of steps before, and the order of parameters, determine what is trained, too."""
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters[::-1] if reverse else parameters, lr=1e-3)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    return optimizer


class Setting(mtst.Callback):
    def __init__(self, value):
        self.value = value


UPPER = SHORT.assign(text=SHORT.text.str.title())


EARLY = mtst.EarlyStopping


@fault(
    1,
    ("base", "change", "named"),
    [
        ({}, {"model": lambda: pooled("max")}, "encoder"),
        ({}, {"model": lambda: small.model(dropout=0.3)}, "dropout"),
        ({}, {"model": attending_to_all}, "dropout"),
        ({}, {"model": other_class}, "model"),
        ({"train": UPPER}, {"model": with_tokenizer_of_case}, "training data"),
        ({}, {"train": SHORT[:16]}, "scheduler, training data"),
        ({}, {"train": SHORT[::-1]}, "training data"),
        ({}, {"valid": SHORT}, "validation data"),
        ({"valid": SHORT}, {"valid": None}, "validation data"),
        ({"valid": SHORT}, {"valid": UPPER}, "validation data"),
        ({"valid": SHORT}, {"callbacks": [EARLY("animal accuracy")]}, "callbacks"),
        ({"callbacks": [Setting(np.int64(1))]}, {"callbacks": [Setting(np.int64(2))]}, "callbacks"),
        ({"callbacks": [Setting((1, 2))]}, {"callbacks": [Setting((1, 3))]}, "callbacks"),
        ({"callbacks": [Setting(np.ones(2))]}, {"callbacks": [Setting(np.zeros(2))]}, "callbacks"),
        ({}, {"seed": 3}, "seed"),
        ({}, {"scheduler": partial(mtst.warmup_linear, warmup_fraction=0.5)}, "scheduler"),
        (
            {"scheduler": lambda o, n: torch.optim.lr_scheduler.StepLR(o, 2)},
            {"scheduler": lambda o, n: torch.optim.lr_scheduler.StepLR(o, 3)},
            "scheduler",
        ),
        ({"optimizer": optimizer_of}, {"optimizer": partial(optimizer_of, reverse=True)}, "optim"),
        ({"optimizer": optimizer_of}, {"optimizer": partial(optimizer_of, steps=2)}, "optim"),
    ],
)
def a_finished_run_is_not_taken_for_another(tmp_path, base, change, named):
    def run(model=small.model, train=SHORT, optimizer=lambda model: None, **options):
        model = model()
        options = ONCE | options | {"optimizer": optimizer(model), "checkpoint": tmp_path}
        return mtst.fit(model, train, **options)

    run(**base)
    run(**base)  # the same one is
    with pytest.raises(ValueError, match=rf"is of another run \({named}\w* differ\)"):
        run(**base | change)


@fault(1)
def a_number_of_numpy_is_the_same_number(tmp_path):
    options = {"checkpoint": tmp_path, "callbacks": [Setting(2)], "seed": 1}
    first = mtst.fit(small.model(), SHORT, **ONCE | options)
    options |= {"callbacks": [Setting(np.int64(2))], "seed": np.int64(1), "batch_size": np.int32(8)}
    assert mtst.fit(small.model(), SHORT, **ONCE | options).equals(first)


# --- 02: gradients from before entered the first step


@fault(2)
def gradients_from_before_do_not_enter_the_first_step():
    clean, looked_at = small.model(), small.model()
    looked_at.train()
    looked_at(*inputs_of(looked_at), {"letter": torch.tensor([0, 1, 0, 1])}).loss.backward()
    histories = [fit(model) for model in (clean, looked_at)]
    assert histories[0].equals(histories[1])
    assert same_weights(clean, looked_at)
    assert all(p.grad is None for p in looked_at.parameters())


@fault(2)
def an_interrupted_run_leaves_no_gradients():
    class Interrupt:
        def on_step(self, run):
            run.model(*inputs_of(run.model), {"letter": torch.tensor([0, 1, 0, 1])}).loss.backward()
            raise KeyboardInterrupt

    model = small.model()
    with pytest.raises(KeyboardInterrupt):
        fit(model, callbacks=[Interrupt()])
    assert all(p.grad is None for p in model.parameters())
    assert not model.training


# --- 03: whoever kept an output of the model could not train it


@fault(3)
def what_a_caller_keeps_of_the_model_does_not_stop_training():
    model, expected = small.model(), small.model()
    kept = model(*inputs_of(model)), {n: p.clone() for n, p in model.named_parameters()}
    assert fit(model).equals(fit(expected))
    assert kept[0].embeddings.requires_grad


# --- 04: scores over no label at all


@fault(4, "missing", [None, float("nan"), pd.NA])
def scores_over_no_label_are_nan(missing):
    model, valid = small.model(), FRAME.assign(letter=pd.Series([missing] * 64, dtype=object))
    table = mtst.evaluate(model, valid).set_index("task")
    assert table.n.to_dict() == {"animal": 64, "letter": 0}
    assert np.isnan(table.loc["letter", ["accuracy", "macro F1"]].to_numpy(float)).all()
    assert table.loc["animal"].notna().all()
    history = mtst.fit(model, FRAME, valid, **OPTIONS)
    assert len(history.epochs) == 2
    assert history.epochs["valid letter accuracy"].isna().all()


# --- 05: a frame, a set or a file where sentences were wanted


@fault(
    5,
    ("sentences", "message"),
    [
        (SHORT, r"sentences must be one column, as frame\['text'\]; got a frame"),
        (SHORT[["text"]], "got a frame"),
        ({"a", "b"}, "must be a list of strings; got set"),
        ({"a": 1}, "got dict"),
        (io.StringIO("a\nb"), "got StringIO"),
        (b"abc", "got bytes"),
        (["a", None], r"sentences\[1\] must be a string; got None"),
    ],
)
def what_is_no_sequence_of_sentences(sentences, message):
    model = small.model()
    for take in (model.predict, model.probabilities, model.encoder.encode):
        with pytest.raises(TypeError, match=message):
            take(sentences)


# --- 06: a column that is there twice


CSV = 'text,z,z2,z2\n"one, two",NA,1,2\nnull,007,1,2\n\n nan ,007 ,1,2\n'


@fault(6, "column", ["text", "animal"])
def a_column_that_is_there_twice(column):
    twice = pd.concat([SHORT, SHORT[[column]]], axis=1)
    model = small.model()
    for take in (lambda: mtst.fit(model, twice, **ONCE), lambda: mtst.evaluate(model, twice)):
        with pytest.raises(ValueError, match=f"the frame has the column '{column}' 2 times"):
            take()


@fault(
    6,
    ("options", "message"),
    [
        ({"tasks": {"z": "z2"}}, "mine.csv has the column 'z2' 2 times"),
        ({"tasks": {"text": "z"}}, "none can be called 'text'"),
        ({"text": "x"}, "has no column 'x'"),
    ],
)
def a_header_that_does_not_fit(tmp_path, options, message):
    (tmp_path / "mine.csv").write_text(CSV)
    with pytest.raises(ValueError, match=message):
        mtst.load_csv(tmp_path / "mine.csv", **{"text": "text", "tasks": {"z": "z"}} | options)


# --- 07: what a folder of sentence-transformers states was dropped


DENSE = {
    "LaBSE": [models.Dense(32, 32), models.Normalize()],
    "smaller": [models.Dense(32, 8, activation_function=torch.nn.Identity())],
    "no bias": [models.Dense(32, 48, bias=False, activation_function=torch.nn.GELU())],
    "two": [models.Dense(32, 64), models.Dense(64, 16, activation_function=torch.nn.ReLU())],
}


@fault(7)
def lower_casing_and_normalising_are_applied_and_saved(tmp_path):
    folder, expected = small.written(tmp_path, models.Normalize(), lower=True)
    assert json.loads((folder / "modules.json").read_text())[2]["type"].endswith("Normalize")
    ours = mtst.SentenceEncoder.from_pretrained(folder)
    assert ours.normalize
    assert np.abs(ours.encode(TEXTS) - expected).max() < 1e-5
    ours.save_pretrained(tmp_path / "again")
    again = mtst.SentenceEncoder.from_pretrained(tmp_path / "again")
    assert np.abs(again.encode(TEXTS) - expected).max() < 1e-5
    peer = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert np.abs(peer.encode(TEXTS) - expected).max() < 1e-5


@fault(7, "modules", DENSE.values(), ids=DENSE)
def dense_is_applied_saved_and_opened_by_others(tmp_path, modules):
    folder, expected = small.written(tmp_path, *modules, pooling="cls")
    ours = mtst.SentenceEncoder.from_pretrained(folder)
    assert ours.dimension == expected.shape[1]
    assert ours.normalize == isinstance(modules[-1], models.Normalize)
    model = mtst.MultiTaskModel(ours, small.model().tasks.values())
    assert model.heads["animal"].in_features == ours.dimension
    model.save_pretrained(tmp_path / "again")
    peer = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    again = mtst.MultiTaskModel.from_pretrained(tmp_path / "again")
    for opened in (ours, again.encoder, peer):
        assert np.abs(opened.encode(TEXTS) - expected).max() < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        inside = ours(*ours.collate(ours.tokenize(TEXTS)[0]))
    assert inside.dtype == torch.float32
    cosines = mtst.cosine_matrix(ours.encode(TEXTS, precision="bfloat16"), expected).diagonal()
    assert cosines.min() > 0.99


@fault(7)
def a_default_prompt_is_refused_and_others_are_told_of(tmp_path):
    folder, _ = small.written(tmp_path)
    path = folder / "config_sentence_transformers.json"
    config = json.loads(path.read_text()) | {"prompts": {"query": "query: ", "document": ""}}
    path.write_text(json.dumps(config | {"default_prompt_name": "query"}))
    with pytest.raises(ValueError, match="the default prompt 'query' .'query: '."):
        mtst.SentenceEncoder.from_pretrained(folder)
    path.write_text(json.dumps(config | {"default_prompt_name": None}))
    with pytest.warns(UserWarning, match="prompts .'query': 'query: '. are not put before"):
        mtst.SentenceEncoder.from_pretrained(folder)


@fault(7)
def a_folder_of_ours_that_others_saved_again_is_read_by_what_it_says_now(tmp_path):
    ours = mtst.SentenceEncoder(tiny_backbone(), tiny_tokenizer(), pooling="max")
    ours.save_pretrained(tmp_path / "a")
    stale = {"pooling": "max", "normalize": False, "max_length": 40}
    (tmp_path / "a" / "sentence_encoder.json").write_text(json.dumps(stale))  # as we once did
    peer = SentenceTransformer(str(tmp_path / "a"), device="cpu")
    peer = SentenceTransformer(modules=[peer[0], models.Pooling(32, "cls")], device="cpu")
    peer.save(str(tmp_path / "a"))
    again = mtst.SentenceEncoder.from_pretrained(tmp_path / "a")
    assert again.pooling == "cls"
    assert np.abs(again.encode(TEXTS) - peer.encode(TEXTS)).max() < 1e-5


# --- 08: the way in which newer versions of it state a pooling


@fault(8, "pooling", ["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def every_pooling_opens_with_the_same_embeddings(tmp_path, pooling):
    folder, expected = small.written(tmp_path, pooling=pooling)
    ours = mtst.SentenceEncoder.from_pretrained(folder)
    assert (ours.pooling, ours.max_length) == (pooling, 20)
    assert np.abs(ours.encode(TEXTS) - expected).max() < 1e-5
    # The schema of the versions before 5.4: a flag for each.
    flags = {f"pooling_mode_{name}": False for name in ("cls_token", "mean_tokens", "max_tokens")}
    own = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}
    own |= {"weightedmean": "weightedmean_tokens"}
    flags[f"pooling_mode_{own.get(pooling, pooling)}"] = True
    path = folder / "1_Pooling" / "config.json"
    path.write_text(json.dumps({"word_embedding_dimension": 32} | flags))
    assert (
        np.abs(mtst.SentenceEncoder.from_pretrained(folder).encode(TEXTS) - expected).max() < 1e-5
    )


# --- 09: labels and settings that are numbers of NumPy's


@fault(9, "values", [[0, 1], [True, False], [0.5, 1.5]])
def numbers_of_numpy_are_taken_and_saved(tmp_path, values):
    frame = SHORT.assign(animal=np.where(SHORT.animal == "cat", *values))
    labels = sorted(frame.animal.unique())
    assert type(labels[0]).__module__ == "numpy"
    encoder = small.model().encoder
    model = mtst.MultiTaskModel(encoder, [mtst.Task("animal", labels, weight=np.float32(0.5))])
    options = {"epochs": np.int64(1), "batch_size": np.int32(8), "seed": np.arange(3)[1]}
    rates = {"base_lr": np.float64(1e-3), "decay": np.float32(0.5)}
    optimizer = torch.optim.AdamW(mtst.layerwise_lr_groups(model, **rates))
    checkpoint = tmp_path / "run"
    mtst.fit(model, frame, **ONCE | options, optimizer=optimizer, checkpoint=checkpoint)
    model.save_pretrained(tmp_path / "model")
    again = mtst.MultiTaskModel.from_pretrained(tmp_path / "model")
    assert again.tasks["animal"].labels == tuple(labels)
    assert mtst.evaluate(again, frame).equals(mtst.evaluate(model, frame))


# --- 10: LoRA was trained, and could not be loaded


@fault(10)
def saved_merged_and_opened_by_both(tmp_path):
    model = small.model()
    model.encoder.backbone.add_adapter(LoraConfig(r=4, target_modules=["query", "value"]))
    fit(model, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2))
    expected = model.encoder.encode(TEXTS)
    assert not np.allclose(expected, small.model().encoder.encode(TEXTS), atol=1e-4)
    model.save_pretrained(tmp_path)
    again = mtst.MultiTaskModel.from_pretrained(tmp_path)
    assert np.allclose(again.encoder.encode(TEXTS), expected, atol=1e-5)
    assert again.predict(TEXTS).animal.tolist() == model.predict(TEXTS).animal.tolist()
    assert not any("lora" in name for name in again.state_dict())
    opened = SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
    assert np.allclose(opened, expected, atol=1e-5)
    assert any(
        "lora" in name for name in model.state_dict()
    )  # the caller's goes on with its adapters


@fault(10)
def a_wrapped_backbone_is_refused_at_once():
    backbone = small.model().encoder.backbone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own
        wrapped = get_peft_model(backbone, LoraConfig(r=4, target_modules=["query"]))
    with pytest.raises(TypeError, match="backbone must be of type PreTrainedModel; got PeftModel"):
        mtst.SentenceEncoder(wrapped, small.model().encoder.tokenizer)


# --- 11: names that a task could not have


NAMES = ["type", "keys", "items", "values", "training", "float", "forward", "_modules", "0", "ä b"]


@fault(11, "name", NAMES)
def a_task_may_have_any_name(tmp_path, name):
    base = small.model()
    model = mtst.MultiTaskModel(base.encoder, [mtst.Task(name, ("cat", "other"))])
    history = mtst.fit(model, SHORT.rename(columns={"animal": name}), **ONCE)
    assert f"{name} loss" in history
    model.save_pretrained(tmp_path)
    again = mtst.MultiTaskModel.from_pretrained(tmp_path)
    assert isinstance(again.heads, torch.nn.ModuleDict)
    assert torch.equal(again.heads[name].weight, model.heads[name].weight)
    assert again.predict(TEXTS)[name].tolist() == model.predict(TEXTS)[name].tolist()


@fault(11, "name", ["text", "", "a.b"])
def names_that_a_task_cannot_have(name):
    with pytest.raises(ValueError, match="Task: name must be"):
        mtst.Task(name, ("a", "b"))


# --- 12: the environment's precision won over the argument


@pytest.fixture
def fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@fault(12, "how", ["environment", "an accelerator from before"])
def the_precision_asked_for_wins_and_nothing_of_accelerate_stays(fresh_accelerate, how):
    expected = fit(small.model())
    AcceleratorState._reset_state(reset_partial_state=True)
    with mock.patch.dict(os.environ, {"ACCELERATE_MIXED_PRECISION": "bf16"}):
        if how != "environment":
            Accelerator()
        model = small.model()
        assert fit(model).equals(expected)
    assert "forward" not in vars(model)
    assert not any("accelerate" in name for name in vars(model))


@fault(12)
def an_accelerator_may_be_set_up_after_fit(fresh_accelerate):
    fit(small.model(), epochs=1)
    assert PartialState._shared_state == {}  # the device is not decided for it
    assert Accelerator(mixed_precision="bf16").mixed_precision == "bf16"
    before = {**AcceleratorState._shared_state}, {**PartialState._shared_state}
    fit(small.model(), epochs=1)
    assert before == (AcceleratorState._shared_state, PartialState._shared_state)


# --- 13: options of the hub were dropped


@fault(13)
def options_reach_every_request_to_the_hub(tmp_path, monkeypatch):
    tiny_backbone().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    asked = []

    class Session:
        def head(self, url, **options):
            asked.append(("head", options["headers"].get("authorization")))

    def download(name, **options):
        asked.append((name, {key: options[key] for key in wanted}))
        return str(tmp_path)

    wanted = {"token": "hf_x", "cache_dir": "c", "local_files_only": False, "revision": "r"}
    monkeypatch.setattr(backbones, "get_session", Session)
    monkeypatch.setattr(backbones, "snapshot_download", download)
    mtst.SentenceEncoder.from_pretrained("me/private", **wanted)
    assert asked == [("head", "Bearer hf_x"), ("me/private", wanted)]
    asked.clear()
    mtst.load_backbone("me/private", **wanted | {"local_files_only": True})
    assert asked == [("me/private", wanted | {"local_files_only": True})]


# --- 14: what an interrupted run had frozen stayed so


class InterruptAt:
    def __init__(self, step):
        self.at = step

    def before_step(self, run):
        if run.step == self.at:
            raise KeyboardInterrupt


def nothing(model):
    pass


def freeze_a_head(model):
    mtst.freeze(model.heads["letter"])


@fault(14, ("prepare", "step"), itertools.product([nothing, freeze_a_head], [0, 7, None]))
def fit_leaves_frozen_what_the_caller_froze(prepare, step):
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


# --- 15: errors from deep within libraries


TINY = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}


CLIP = CLIPConfig(
    text_config=TINY | {"num_hidden_layers": 1},
    vision_config=TINY | {"num_hidden_layers": 1, "image_size": 8, "patch_size": 4},
)


NO_ENCODERS = {
    "GPT2Model": lambda: GPT2Model(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)),
    "T5Model": lambda: T5Model(T5Config(vocab_size=64, d_model=32, d_ff=64, num_layers=1)),
    "CLIPModel": lambda: CLIPModel(CLIP),
    "WhisperModel": lambda: WhisperModel(
        WhisperConfig(
            vocab_size=64,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
            decoder_start_token_id=2,
        )
    ),
}


@fault(15, "name", NO_ENCODERS)
def what_is_no_encoder_is_named_as_such(tmp_path, name):
    NO_ENCODERS[name]().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(mtst.BackboneNotAvailable, match=f"{name} is no encoder"):
        mtst.load_backbone(tmp_path)


@fault(15)
def half_a_character_is_refused_with_its_position():
    model, cut = small.model(), ["fine", "cut \ud83d"]
    for take in (model.encoder.encode, model.predict):
        with pytest.raises(
            ValueError, match=r"sentences\[1\] holds half a character, .* position 4"
        ):
            take(cut)
    frame = SHORT.assign(text=pd.Series([*cut, *SHORT.text[2:]], dtype=object))
    for take in (mtst.evaluate, partial(mtst.fit, **ONCE)):
        with pytest.raises(ValueError, match=r"text\[1\] holds half a character"):
            take(model, frame)
    model.predict([text.encode(errors="ignore").decode() for text in cut])  # what the message says


@fault(15)
def predictions_inside_autocast():
    model = small.model()
    with torch.autocast("cpu", torch.bfloat16):
        table = model.predict(TEXTS)
    assert table.animal.tolist() == model.predict(TEXTS).animal.tolist()


@fault(15)
def a_frame_of_another_library_is_refused_by_name():
    class Frame:
        columns = ("text",)

        def to_pandas(self):
            return SHORT

    Frame.__module__ = "polars.dataframe"
    with pytest.raises(TypeError, match=r"got one of polars: give frame.to_pandas\(\)"):
        mtst.fit(small.model(), Frame(), **ONCE)


@fault(15, "name", ["mine.csv", "mine.csv.gz", "mine.zip"])
def words_that_pandas_takes_for_nothing_are_words(tmp_path, name, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path, data = tmp_path / name, b"\xef\xbb\xbf" + CSV.encode()
    if name.endswith(".gz"):
        data = gzip.compress(data)
    if name.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("mine.csv", data)
    else:
        path.write_bytes(data)
    frame = mtst.load_csv(f"~/{name}", "text", {"z": "z"})
    assert frame.text.tolist() == ["one, two", "null", " nan "]
    assert frame.z.tolist() == ["NA", "007", "007"]


@fault(15)
def an_optimizer_goes_on_with_other_data():
    """Adafactor, Rprop: what they remember has the parameters' shapes, whatever the data's."""
    for name in ("Adafactor", "Rprop"):
        model = small.model()
        groups = mtst.layerwise_lr_groups(model, 1e-3)
        optimizer = getattr(torch.optim, name)(groups)
        for frame in (SHORT, SHORT[:5]):
            mtst.fit(model, frame, **ONCE, optimizer=optimizer)


# --- 16: names that stood for two things; what an interrupted callback left on


@fault(16)
def a_group_called_all_and_a_group_without_a_name():
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


@fault(16)
def tasks_called_valid_and_loss():
    mtst.seed_everything(0)
    tasks = [mtst.Task("valid", ("b", "c")), mtst.Task("loss", ("cat", "other"))]
    model = mtst.MultiTaskModel(small.model().encoder, tasks)
    frame = FRAME.rename(columns={"letter": "valid", "animal": "loss"})
    assert len(fit(model, frame).epochs) == 0
    history = mtst.fit(model, frame, frame, **OPTIONS)
    assert history.epochs.step.tolist() == [8, 16]
    assert history["valid loss"].notna().all()  # the loss of task "valid", of every step
    assert np.allclose(history["loss"], history["valid loss"] + history["loss loss"])


@fault(16)
def interrupts_in_a_callback_leave_no_autocast():
    class Interrupt:
        def on_step(self, run):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(small.model(), callbacks=[Interrupt()], precision="bfloat16")
    assert not torch.is_autocast_enabled("cpu")
    assert not torch.is_inference_mode_enabled()


@fault(16)
def a_home_folder_is_written_as_people_write_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fit(small.model(), checkpoint="~/run")
    assert (tmp_path / "run" / "checkpoint.pt").is_file()
    assert not (tmp_path / "~").exists()


@fault(16)
def a_home_folder_is_written_and_read_as_people_write_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    model = small.model()
    model.save_pretrained("~/model")
    model.encoder.save_pretrained("~/encoder")
    mtst.MultiTaskModel.from_pretrained("~/model")
    mtst.SentenceEncoder.from_pretrained("~/encoder")
    mtst.load_backbone("~/encoder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder", "model"]


# --- 17: one block frozen and another of its size unfrozen


@fault(17)
def freezing_one_block_and_unfreezing_another_of_the_same_size():
    """Chain-thaw, alternating heads: a comparison of tensors raised."""

    class Chain:
        def on_start(self, run):
            self.blocks = run.model.encoder.backbone.encoder.layer
            mtst.freeze(run.model.encoder.backbone)

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


# --- 18: a causal backbone was trained bidirectionally


def gpt2_model(monkeypatch):
    places = {"wte": 0, "wpe": 0, "ln_f": -1}
    monkeypatch.setitem(layers.LAYOUTS, "gpt2", ("h", places))
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=40, n_embd=32, n_layer=2, n_head=2)
    encoder = mtst.SentenceEncoder(GPT2Model(config).eval(), conftest.tiny_tokenizer())
    return mtst.MultiTaskModel(encoder, [mtst.Task("letter", ("b", "c"))])


@fault(18)
def a_causal_backbone_is_trained_causally(monkeypatch):
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


# --- 19: a forward of one's own was passed by


class ReadsWords(mtst.MultiTaskModel):
    """A subclass whose forward looks at its inputs."""

    def forward(self, input_ids, attention_mask, labels=None):
        assert input_ids.shape == attention_mask.shape
        self.tokens_seen = getattr(self, "tokens_seen", 0) + attention_mask.sum().item()
        return super().forward(input_ids, attention_mask, labels)


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


@fault(19, "depth", [0, 1])
def a_forward_that_reads_the_words_above_a_frozen_backbone(depth):
    losses = []
    for acceleration in (True, False):
        model = ReadsWords(small.model().encoder, small.model().tasks.values())
        model.load_state_dict(small.model().state_dict())
        mtst.unfreeze_top_blocks(model, depth)
        losses.append(fit(model, epochs=3, acceleration=acceleration).loss.to_numpy())
        assert model.tokens_seen > 1000
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@fault(19, "depth", [0, 1, None])
def distillation_with_whatever_is_frozen(depth):
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


@fault(19)
def sentences_of_the_models_own_choice_do_not_come_from_the_cache():
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


@fault(19, "kind", [Opposite, OppositeForward])
def a_head_rule_of_ones_own_is_trained_predicted_and_scored_alike(kind):
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


# --- 20: an untrained twin of some architectures


@fault(20, "kind", conftest.CONFIGS)
def an_untrained_twin_of_every_architecture(kind):
    backbone = conftest.tiny_backbone(kind)
    torch.manual_seed(3)
    twin = untrained_twin(backbone)
    assert type(twin) is type(backbone)
    encoder = mtst.SentenceEncoder(twin, conftest.tiny_tokenizer())
    assert np.isfinite(encoder.encode(["the cat sat", "late"])).all()


# --- 21: controls in JupyterLab; settings of the machine are tried by tests/settings.py


@fault(21)
def an_example_is_drawn_once_wherever_it_runs(monkeypatch):
    drawn, shown = [], []
    monkeypatch.setattr("IPython.display.display", lambda *things, **_: shown.extend(things))
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert (
        notebook.control(lambda **values: drawn.append(values), {"decay": 0.95}, decay=[1, 0.95])
        is None
    )
    assert (drawn, shown) == ([{"decay": 0.95}], [])
    monkeypatch.setenv("JPY_SESSION_NAME", "notebook.ipynb")
    assert (
        notebook.control(lambda **values: drawn.append(values), {"decay": 0.95}, decay=[1, 0.95])
        is None
    )
    assert drawn == [{"decay": 0.95}] * 2
    assert [list(view) for view in shown] == [["application/vnd.jupyter.widget-view+json"]]


# --- 22: a loss that turned NaN


@fault(22)
def a_loss_that_is_not_a_number_stops_training_and_says_where():
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


@fault(22)
def a_gradient_that_is_not_a_number_stops_training_before_the_step():
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


@pytest.mark.parametrize("check", ROWS)
def test_row(check, request):
    needed = set(inspect.signature(check).parameters) - set(check.keywords)
    check(**{name: request.getfixturevalue(name) for name in needed})


def test_every_row_has_its_tests():
    assert {int(row.id[:2]) for row in ROWS} == set(range(1, 23))
