"""What people hand in: folders of sentence-transformers, frames, sentences, names, numbers.

Rows 1, 5 to 9, 11, 13, 15 and 16 of the faults that were reported; the others are in
test_reported_faults.py.
"""

import gzip
import io
import json
import zipfile

import numpy as np
import pandas as pd
import pytest
import small
import torch
from conftest import CONFIGS, tiny_backbone, tiny_tokenizer
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as models
from transformers import CLIPConfig, CLIPModel, GPT2Config, GPT2Model, T5Config, T5Model

import mtst_utils as mtst
from mtst_utils import backbones

TEXTS = ["the cat sat on a mat", "Nobody Expected The Train", "late"]
FRAME = small.frame(24)
OPTIONS = {"epochs": 1, "batch_size": 8, "progress": False, "precision": "float32"}


# --- Folders of sentence-transformers (7, 8) ------------------------------------------------------


def written(folder, *others, pooling="mean", length=20, lower=False):
    """A folder as the installed sentence-transformers writes it, and its own embeddings."""
    source = folder / "source"
    tiny_backbone().save_pretrained(source)
    tokenizer = tiny_tokenizer()
    if lower:  # the tokenizer itself must not do it
        tokenizer.backend_tokenizer.normalizer = None
    tokenizer.save_pretrained(source)
    options = {"max_seq_length": length} | ({"do_lower_case": True} if lower else {})
    transformer = models.Transformer(str(source), **options)
    modules = [transformer, models.Pooling(32, pooling_mode=pooling), *others]
    peer = SentenceTransformer(modules=modules, device="cpu")
    peer.save(str(folder / "model"))
    return folder / "model", peer.encode(TEXTS)


@pytest.mark.parametrize(
    "pooling", ["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
)
def test_every_pooling_opens_with_the_same_embeddings(tmp_path, pooling):
    folder, expected = written(tmp_path, pooling=pooling)
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


def test_lower_casing_and_normalising_are_applied_and_saved(tmp_path):
    folder, expected = written(tmp_path, models.Normalize(), lower=True)
    assert json.loads((folder / "modules.json").read_text())[2]["type"].endswith("Normalize")
    ours = mtst.SentenceEncoder.from_pretrained(folder)
    assert ours.normalize
    assert np.abs(ours.encode(TEXTS) - expected).max() < 1e-5
    ours.save_pretrained(tmp_path / "again")
    again = mtst.SentenceEncoder.from_pretrained(tmp_path / "again")
    assert np.abs(again.encode(TEXTS) - expected).max() < 1e-5
    peer = SentenceTransformer(str(tmp_path / "again"), device="cpu")
    assert np.abs(peer.encode(TEXTS) - expected).max() < 1e-5


def test_what_is_not_applied_is_refused_by_name(tmp_path):
    folder, _ = written(tmp_path, models.Dense(32, 16))
    with pytest.raises(ValueError, match=r"models?.*Dense as module 2.*does not apply"):
        mtst.SentenceEncoder.from_pretrained(folder)


def test_a_default_prompt_is_refused_and_others_are_told_of(tmp_path):
    folder, _ = written(tmp_path)
    path = folder / "config_sentence_transformers.json"
    config = json.loads(path.read_text()) | {"prompts": {"query": "query: ", "document": ""}}
    path.write_text(json.dumps(config | {"default_prompt_name": "query"}))
    with pytest.raises(ValueError, match="the default prompt 'query' .'query: '."):
        mtst.SentenceEncoder.from_pretrained(folder)
    path.write_text(json.dumps(config | {"default_prompt_name": None}))
    with pytest.warns(UserWarning, match="prompts .'query': 'query: '. are not put before"):
        mtst.SentenceEncoder.from_pretrained(folder)


def test_a_folder_of_ours_that_others_saved_again_is_read_by_what_it_says_now(tmp_path):
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


# --- What is no encoder (15), options of the hub (13) ---------------------------------------------

TINY = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
CLIP = CLIPConfig(
    text_config=TINY | {"num_hidden_layers": 1},
    vision_config=TINY | {"num_hidden_layers": 1, "image_size": 8, "patch_size": 4},
)
NO_ENCODERS = {
    "GPT2Model": lambda: GPT2Model(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)),
    "T5Model": lambda: T5Model(T5Config(vocab_size=64, d_model=32, d_ff=64, num_layers=1)),
    "CLIPModel": lambda: CLIPModel(CLIP),
}


@pytest.mark.parametrize("name", NO_ENCODERS)
def test_what_is_no_encoder_is_named_as_such(tmp_path, name):
    NO_ENCODERS[name]().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(mtst.BackboneNotAvailable, match=f"{name} is no encoder"):
        mtst.load_backbone(tmp_path)


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_encoder_passes_for_one(tmp_path, kind):
    tiny_backbone(kind).save_pretrained(tmp_path / "inner")
    tiny_tokenizer().save_pretrained(tmp_path / "inner")
    mtst.load_backbone(tmp_path, subfolder="inner")


def test_options_reach_every_request_to_the_hub(tmp_path, monkeypatch):
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


# --- Sentences (5, 15) ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        (FRAME, r"sentences must be one column, as frame\['text'\]; got a frame"),
        (FRAME[["text"]], "got a frame"),
        ({"a", "b"}, "must be a list of strings; got set"),
        ({"a": 1}, "got dict"),
        (io.StringIO("a\nb"), "got StringIO"),
        (b"abc", "got bytes"),
        (["a", None], r"sentences\[1\] must be a string; got None"),
    ],
)
def test_what_is_no_sequence_of_sentences(sentences, message):
    model = small.model()
    for take in (model.predict, model.probabilities, model.encoder.encode):
        with pytest.raises(TypeError, match=message):
            take(sentences)


def test_half_a_character_is_refused_with_its_position():
    with pytest.raises(ValueError, match=r"sentences\[1\] holds half a character, .* position 4"):
        small.model().encoder.encode(["fine", "cut \ud83d"])


@pytest.mark.parametrize("make", [list, tuple, np.array, pd.Series, iter, pd.Index, pd.array])
def test_every_sequence_of_sentences_is_taken(make):
    encoder = small.model().encoder
    assert np.array_equal(encoder.encode(make(TEXTS)), encoder.encode(TEXTS))


def test_predictions_inside_autocast():
    model = small.model()
    with torch.autocast("cpu", torch.bfloat16):
        table = model.predict(TEXTS)
    assert table.animal.tolist() == model.predict(TEXTS).animal.tolist()


# --- Frames and files (6, 15) ---------------------------------------------------------------------


@pytest.mark.parametrize("column", ["text", "animal"])
def test_a_column_that_is_there_twice(column):
    twice = pd.concat([FRAME, FRAME[[column]]], axis=1)
    model = small.model()
    for take in (lambda: mtst.fit(model, twice, **OPTIONS), lambda: mtst.evaluate(model, twice)):
        with pytest.raises(ValueError, match=f"the frame has the column '{column}' 2 times"):
            take()


def test_a_frame_of_another_library_is_refused_by_name():
    class Frame:
        columns = ("text",)

        def to_pandas(self):
            return FRAME

    Frame.__module__ = "polars.dataframe"
    with pytest.raises(TypeError, match=r"got one of polars: give frame.to_pandas\(\)"):
        mtst.fit(small.model(), Frame(), **OPTIONS)


def test_columns_of_strings_with_missing_values_train_as_others_do():
    frame = FRAME.assign(letter=FRAME.letter.where(FRAME.index > 3, None))
    frames = frame, frame.convert_dtypes()
    assert frames[1].letter.isna().sum() == 4
    losses = [mtst.fit(small.model(), frame, **OPTIONS).loss for frame in frames]
    assert losses[0].tolist() == losses[1].tolist()


CSV = 'text,z,z2,z2\n"one, two",NA,1,2\nnull,007,1,2\n\n nan ,007 ,1,2\n'


@pytest.mark.parametrize("name", ["mine.csv", "mine.csv.gz", "mine.zip"])
def test_words_that_pandas_takes_for_nothing_are_words(tmp_path, name, monkeypatch):
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": {"z": "z2"}}, "mine.csv has the column 'z2' 2 times"),
        ({"tasks": {"text": "z"}}, "none can be called 'text'"),
        ({"text": "x"}, "has no column 'x'"),
    ],
)
def test_a_header_that_does_not_fit(tmp_path, options, message):
    (tmp_path / "mine.csv").write_text(CSV)
    with pytest.raises(ValueError, match=message):
        mtst.load_csv(tmp_path / "mine.csv", **{"text": "text", "tasks": {"z": "z"}} | options)


def test_other_separators_are_guessed_at_in_the_message(tmp_path):
    (tmp_path / "mine.csv").write_text("text;z\na;b\nc;d\n")
    with pytest.raises(ValueError, match="Are its columns separated by commas"):
        mtst.load_csv(tmp_path / "mine.csv", "text", {"z": "z"})


# --- Names (11, 16) and numbers (9) ---------------------------------------------------------------

NAMES = ["type", "keys", "items", "values", "training", "float", "forward", "_modules", "0", "ä b"]


@pytest.mark.parametrize("name", NAMES)
def test_a_task_may_have_any_name(tmp_path, name):
    base = small.model()
    model = mtst.MultiTaskModel(base.encoder, [mtst.Task(name, ("cat", "other"))])
    history = mtst.fit(model, FRAME.rename(columns={"animal": name}), **OPTIONS)
    assert f"{name} loss" in history
    model.save_pretrained(tmp_path)
    again = mtst.MultiTaskModel.from_pretrained(tmp_path)
    assert isinstance(again.heads, torch.nn.ModuleDict)
    assert torch.equal(again.heads[name].weight, model.heads[name].weight)
    assert again.predict(TEXTS)[name].tolist() == model.predict(TEXTS)[name].tolist()


@pytest.mark.parametrize("name", ["text", "", "a.b"])
def test_names_that_a_task_cannot_have(name):
    with pytest.raises(ValueError, match="Task: name must be"):
        mtst.Task(name, ("a", "b"))


@pytest.mark.parametrize("values", [[0, 1], [True, False], [0.5, 1.5]])
def test_numbers_of_numpy_are_taken_and_saved(tmp_path, values):
    frame = FRAME.assign(animal=np.where(FRAME.animal == "cat", *values))
    labels = sorted(frame.animal.unique())
    assert type(labels[0]).__module__ == "numpy"
    encoder = small.model().encoder
    model = mtst.MultiTaskModel(encoder, [mtst.Task("animal", labels, weight=np.float32(0.5))])
    options = {"epochs": np.int64(1), "batch_size": np.int32(8), "seed": np.arange(3)[1]}
    rates = {"base_lr": np.float64(1e-3), "decay": np.float32(0.5)}
    optimizer = torch.optim.AdamW(mtst.layerwise_lr_groups(model, **rates))
    checkpoint = tmp_path / "run"
    mtst.fit(model, frame, **OPTIONS | options, optimizer=optimizer, checkpoint=checkpoint)
    model.save_pretrained(tmp_path / "model")
    again = mtst.MultiTaskModel.from_pretrained(tmp_path / "model")
    assert again.tasks["animal"].labels == tuple(labels)
    assert mtst.evaluate(again, frame).equals(mtst.evaluate(model, frame))


def test_what_a_tokenizer_gives_is_what_a_model_takes(encoder):
    model = mtst.MultiTaskModel(encoder, [mtst.Task("animal", ("cat", "other"))])
    inputs = model.encoder.tokenizer(TEXTS, return_tensors="pt", padding=True)
    assert "token_type_ids" in inputs
    labels = {"animal": torch.tensor([0, 1, -100])}
    with torch.inference_mode():
        output = model.eval()(**inputs, labels=labels)
        plain = model(inputs["input_ids"], inputs["attention_mask"], labels)
        second = model(**inputs | {"token_type_ids": torch.ones_like(inputs["input_ids"])})
    assert torch.allclose(output.loss, plain.loss)
    assert not torch.allclose(second.embeddings, plain.embeddings)  # they reach the backbone


# --- Checkpoints (1) ------------------------------------------------------------------------------


def pooled(how):
    model = small.model()
    model.encoder.pooling = how
    return model


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": lambda: pooled("max")}, "encoder"),
        ({"model": lambda: small.model(dropout=0.3)}, "dropout"),
        ({"valid": FRAME}, "validation data"),
        ({"callbacks": [mtst.EarlyStopping("animal accuracy")], "valid": FRAME}, "callbacks"),
        ({"train": FRAME[:16]}, "training data"),
        ({"seed": 3}, "seed"),
    ],
)
def test_a_finished_run_is_not_taken_for_another(tmp_path, change, named):
    def run(model=small.model, train=FRAME, **options):
        return mtst.fit(model(), train, checkpoint=tmp_path, **OPTIONS | options)

    run()
    with pytest.raises(ValueError, match=f"is of another run .*{named}.* differ"):
        run(**change)
