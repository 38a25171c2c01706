"""What people hand in, beyond the rows of test_reported_faults.py."""

import inspect
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import small
import torch
from conftest import CONFIGS, tiny_backbone, tiny_tokenizer
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as models
from sentence_transformers.util import import_from_string
from transformers import BertTokenizerFast

import mtst_utils as mtst
from mtst_utils import checkpoints
from mtst_utils.layers import ACTIVATIONS, Dense

TEXTS = small.TEXTS
FRAME = small.frame(24)
OPTIONS = {"epochs": 1, "batch_size": 8, "progress": False, "precision": "float32"}


# --- Folders of sentence-transformers (7, 8) ------------------------------------------------------


def test_lower_casing_outlives_a_tokenizer_that_does_not_save_it(tmp_path):
    """BERT's makes its normalizer anew from its own settings, whatever was put before it."""
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat sat on mat The Cat".split()
    tokenizer = BertTokenizerFast({word: i for i, word in enumerate(words)}, do_lower_case=False)
    encoder = mtst.SentenceEncoder(tiny_backbone(), tokenizer)
    encoder.save_pretrained(tmp_path / "a")
    cased, lower = encoder.encode(["The Cat", "the cat"])
    assert np.abs(cased - lower).max() > 0.01
    path = tmp_path / "a" / "sentence_bert_config.json"
    path.write_text(json.dumps({"max_seq_length": 20, "do_lower_case": True}))
    for folder in ("a", "b"):
        encoder = mtst.SentenceEncoder.from_pretrained(tmp_path / folder)
        peer = SentenceTransformer(str(tmp_path / folder), device="cpu")
        for opened in (encoder, peer):
            assert np.abs(opened.encode(["The Cat"])[0] - lower).max() < 1e-5
        encoder.save_pretrained(tmp_path / "b")


def test_a_folder_of_version_2_opens_and_its_longest_sentence_is_what_it_states(tmp_path):
    """Written by hand: flags, no settings of Normalize, a file named after the architecture."""
    folder, expected = small.written(tmp_path, models.Normalize())
    for place in ("2_Normalize", "config_sentence_transformers.json", "sentence_bert_config.json"):
        path = folder / place
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    # The tokenizer states 20. A folder's own word goes before it, up to the model's 48 positions.
    for stated, length in ((None, 20), (9, 9), (30, 30), (10**6, 48)):
        settings = {"max_seq_length": stated, "do_lower_case": False}
        (folder / "sentence_roberta_config.json").write_text(json.dumps(settings))
        ours = mtst.SentenceEncoder.from_pretrained(folder)
        assert ours.max_length == length
        assert ours.tokenizer.model_max_length == max(stated or 0, 20)
        assert np.abs(ours.encode(TEXTS) - expected).max() < 1e-5


def dense_model(activation="Tanh"):
    torch.manual_seed(0)
    dense = [Dense(32, 16, activation=activation), Dense(16, 8, bias=False, activation="Identity")]
    encoder = mtst.SentenceEncoder(tiny_backbone(), tiny_tokenizer(), dense=dense)
    mtst.seed_everything(0)
    return mtst.MultiTaskModel(encoder, small.model().tasks.values())


COUNTS = 32 * 16 + 16 + 16 * 8  # of its parameters
TOP = "block 2 and Dense"


def test_dense_goes_with_the_last_block():
    with_dense, plain = dense_model(), small.model()
    table = mtst.lr_table(mtst.layerwise_lr_groups(with_dense, 1e-3, 0.5, 1e-2)).set_index("name")
    other = mtst.lr_table(mtst.layerwise_lr_groups(plain, 1e-3, 0.5, 1e-2)).set_index("name")
    assert list(table.index) == ["embeddings", "block 0", "block 1", TOP, "heads"]
    assert table.lr.tolist() == other.lr.tolist()
    assert table.parameters[TOP] == other.parameters["block 2"] + COUNTS
    assert table.parameters.sum() == sum(p.numel() for p in with_dense.parameters())
    report = mtst.parameter_report(with_dense).set_index("part")
    assert list(report.index) == ["embeddings", "block 0", "block 1", TOP, *report.index[4:]]
    assert report.parameters[TOP] == table.parameters[TOP]
    assert list(report.index[4:]) == ["head animal", "head letter"]
    assert report.share.sum() == pytest.approx(1)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_dense_is_frozen_and_learns_with_the_top_block(n):
    losses = []
    for acceleration in (True, False):
        with_dense, before = dense_model(), dense_model().encoder.dense
        mtst.unfreeze_top_blocks(with_dense, n)
        options = OPTIONS | {"epochs": 3, "acceleration": acceleration}
        losses.append(mtst.fit(with_dense, FRAME, **options).loss.to_numpy())
        for a, b in zip(with_dense.encoder.dense, before, strict=True):
            assert torch.equal(a.linear.weight, b.linear.weight) == (n == 0)
            assert mtst.freezing.is_frozen(a) == (n == 0)
        report = mtst.parameter_report(with_dense).set_index("part")
        assert report.trainable[TOP] == (report.parameters[TOP] if n else 0)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_dense_joins_with_the_top_block():
    with_dense = dense_model()
    weight = with_dense.encoder.dense[0].linear.weight
    moved = []

    class Look:
        def before_step(self, run):
            self.before = weight.detach().clone()

        def on_step(self, run):
            moved.append(not torch.equal(weight, self.before))

    gradual = mtst.GradualUnfreezing(0.5, 0.9)
    assert gradual.schedule(with_dense, 12).layer.tolist()[0] == TOP
    mtst.fit(with_dense, FRAME, **OPTIONS | {"epochs": 4}, callbacks=[gradual, Look()])
    assert moved == [False] * 6 + [True] * 6


def test_dense_of_another_activation_is_another_run(tmp_path):
    mtst.fit(dense_model(), FRAME, **OPTIONS, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"is of another run \(encoder differ"):
        mtst.fit(dense_model("ReLU"), FRAME, **OPTIONS, checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation_function": "torch.nn.modules.activation.Softmax"}, "activation.Softmax"),
        ({"activation_function": "mine.Tanh"}, "activation_function='mine.Tanh'"),
        ({"use_residual": True}, "Dense with use_residual=True"),
        ({"module_input_name": "token_embeddings"}, "Dense with module_input_name='token_emb"),
        ({"out_features": 9}, "model.safetensors cannot be read as a Dense .*states another"),
        ({"bias": False}, "model.safetensors cannot be read as a Dense .*states another"),
        (None, "No such file.*pytorch_model.bin, are not read"),
    ],
)
def test_dense_that_is_not_applied_is_refused_by_name(tmp_path, config, message):
    folder, _ = small.written(tmp_path, models.Dense(32, 16))
    path, weights = folder / "2_Dense" / "config.json", folder / "2_Dense" / "model.safetensors"
    if config is None:
        torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
        weights.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(ValueError, match=message):
        mtst.SentenceEncoder.from_pretrained(folder)


@pytest.mark.parametrize(
    ("dense", "kind", "message"),
    [
        (lambda: [Dense(16, 8)], ValueError, r"dense\[0\] takes vectors of 16 numbers; it gets 32"),
        (lambda: [Dense(32, 8), Dense(9, 8)], ValueError, r"dense\[1\] takes .* 9 .*; it gets 8"),
        (lambda: [torch.nn.Linear(32, 8)], TypeError, r"dense\[0\] must be of type Dense"),
        (lambda: [Dense(32, 8, activation="Softmax")], ValueError, "activation must be one of"),
    ],
)
def test_dense_that_does_not_fit(dense, kind, message):
    with pytest.raises(kind, match=message):
        mtst.SentenceEncoder(tiny_backbone(), tiny_tokenizer(), dense=dense())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_that_of_torch(tmp_path, name):
    encoder = mtst.SentenceEncoder(
        tiny_backbone(), tiny_tokenizer(), dense=[Dense(32, 4, activation=name)]
    )
    encoder.save_pretrained(tmp_path)
    again = mtst.SentenceEncoder.from_pretrained(tmp_path)
    assert np.array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    stated = json.loads((tmp_path / "2_Dense" / "config.json").read_text())
    kind = import_from_string(stated["activation_function"])  # as sentence-transformers finds it
    assert type(again.dense[0].activation) is kind


@pytest.mark.parametrize(
    "modules",
    [[models.Dropout(0.1)], [models.LayerNorm(32)], [models.Normalize(), models.Dense(32, 16)]],
    ids=lambda modules: type(modules[-1]).__name__,
)
def test_what_is_not_applied_is_refused_by_name(tmp_path, modules):
    folder, _ = small.written(tmp_path, *modules)
    named = f"{type(modules[-1]).__name__} as module {len(modules) + 1}"
    with pytest.raises(ValueError, match=rf"{named}.*does not apply"):
        mtst.SentenceEncoder.from_pretrained(folder)
    backbone, tokenizer = mtst.load_backbone(folder)  # what the message says one can do
    assert mtst.SentenceEncoder(backbone, tokenizer).encode(TEXTS).shape == (3, 32)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "cls"]}, "Pooling by mean and cls"),
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "Pooling by median"),
        ("1_Pooling/config.json", {"pooling_mode_foo": True}, "Pooling by pooling_mode_foo"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task"),
        ("sentence_bert_config.json", {"query_length": 32}, "Transformer with query_length=32"),
        ("sentence_bert_config.json", {"model_args": {"dtype": "float16"}}, "model_args"),
        ("2_Normalize/config.json", {"module_input_name": "x"}, "module_input_name='x'"),
        ("modules.json", [{"type": "sentence_transformers.models.Transformer"}], "no Pooling"),
        ("modules.json", [{"type": "custom.Transformer"}], "custom.Transformer as module 0"),
    ],
)
def test_what_a_file_states_besides_is_refused_by_name(tmp_path, file, content, message):
    folder, _ = small.written(tmp_path, models.Normalize())
    mtst.SentenceEncoder.from_pretrained(folder)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"files state .*{message}.*does not apply"):
        mtst.SentenceEncoder.from_pretrained(folder)


def test_a_pooling_of_ones_own_is_saved_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setitem(mtst.pooling.POOLINGS, "second", lambda states, mask: states[:, 1].float())
    encoder = mtst.SentenceEncoder(tiny_backbone(), tiny_tokenizer(), pooling="second")
    encoder.save_pretrained(tmp_path)
    assert mtst.SentenceEncoder.from_pretrained(tmp_path).pooling == "second"
    with pytest.raises(ValueError, match="second"):  # and not silently the mean
        SentenceTransformer(str(tmp_path), device="cpu")


def test_saving_over_another_folder_leaves_nothing_of_it(tmp_path):
    folder, _ = small.written(tmp_path, models.Normalize())
    path = folder / "config_sentence_transformers.json"
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    path.write_text(json.dumps(json.loads(path.read_text()) | prompts))
    encoder = mtst.SentenceEncoder(tiny_backbone(), tiny_tokenizer(), pooling="cls")
    encoder.save_pretrained(folder)
    peer = SentenceTransformer(str(folder), device="cpu")
    for opened in (mtst.SentenceEncoder.from_pretrained(folder), peer):
        assert np.abs(opened.encode(TEXTS) - encoder.encode(TEXTS)).max() < 1e-5


# --- Encoders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_encoder_passes_for_one(tmp_path, kind):
    tiny_backbone(kind).save_pretrained(tmp_path / "inner")
    tiny_tokenizer().save_pretrained(tmp_path / "inner")
    mtst.load_backbone(tmp_path, subfolder="inner")
    mtst.load_backbone(tmp_path, subfolder="/inner/")


# --- Sentences ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [list, tuple, np.array, pd.Series, iter, pd.Index, pd.array])
def test_every_sequence_of_sentences_is_taken(make):
    encoder = small.model().encoder
    assert np.array_equal(encoder.encode(make(TEXTS)), encoder.encode(TEXTS))


# --- Frames and files -----------------------------------------------------------------------------


def test_columns_of_strings_with_missing_values_train_as_others_do():
    frame = FRAME.assign(letter=FRAME.letter.where(FRAME.index > 3, None))
    frames = frame, frame.convert_dtypes()
    assert frames[1].letter.isna().sum() == 4
    losses = [mtst.fit(small.model(), frame, **OPTIONS).loss for frame in frames]
    assert losses[0].tolist() == losses[1].tolist()


def test_other_separators_are_guessed_at_in_the_message(tmp_path):
    (tmp_path / "mine.csv").write_text("text;z\na;b\nc;d\n")
    with pytest.raises(ValueError, match="Are its columns separated by commas"):
        mtst.load_csv(tmp_path / "mine.csv", "text", {"z": "z"})


@pytest.mark.parametrize("name", ["source", "text", "task", "n", "accuracy", "twice"])
def test_by_is_a_column_that_can_stand_beside_the_scores(name):
    frame = FRAME.assign(**{name: FRAME.text}) if name != "source" else FRAME
    if name == "twice":
        frame = pd.concat([frame, frame[[name]]], axis=1)
    with pytest.raises(ValueError, match=r"by must .*'(source|text|task|n|accuracy|twice)'"):
        mtst.evaluate(small.model(), frame, by=name)


@pytest.mark.parametrize("dtype", [object, "category", "string"])
def test_columns_of_any_kind_of_string(dtype):
    frame = FRAME.astype(dtype)
    assert mtst.evaluate(small.model(), frame).equals(mtst.evaluate(small.model(), FRAME))


# --- Names and numbers ----------------------------------------------------------------------------


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


def test_other_numbers_of_numpy(tmp_path):
    mtst.seed_everything(np.int64(3))
    base = small.model().encoder
    options = {"max_length": np.int64(12), "normalize": np.bool_(True)}
    encoder = mtst.SentenceEncoder(base.backbone, base.tokenizer, **options)
    encoder.encode(TEXTS, token_budget=np.int64(64))
    model = mtst.MultiTaskModel(encoder, [mtst.Task("a", ("x", "y"))], dropout=np.float32(0.25))
    model.save_pretrained(tmp_path)
    again = mtst.MultiTaskModel.from_pretrained(tmp_path)
    assert (again.encoder.max_length, again.dropout.p) == (12, 0.25)


@pytest.mark.parametrize("labels", [(("a",), ("b",)), (pd.Timestamp(0), pd.Timestamp(1))])
def test_labels_that_no_file_can_hold_are_refused_before_training(labels):
    with pytest.raises(ValueError, match="Task 'a': labels must be strings or numbers"):
        mtst.Task("a", labels)


# --- Checkpoints and optimizers -------------------------------------------------------------------


class Interrupt:
    """The same callback for the checkpoint, whenever it interrupts."""

    at = None

    def on_step(self, run):
        run.history[-1]["seen"] = np.float32(run.step)  # what callbacks write, a file must hold
        if run.step == Interrupt.at:
            raise KeyboardInterrupt


@pytest.fixture
def interrupted(tmp_path, monkeypatch, caplog):
    """Train, interrupt after 4 of 6 steps, go on with a new model; the weights of both ways."""
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", float("-inf"))

    def train(optimizer, *callbacks, **options):
        def run(**more):
            model = small.model()
            options_now = {"optimizer": optimizer(model), "epochs": 2, **options, **more}
            calls = [*callbacks, Interrupt()]
            history = mtst.fit(model, FRAME, **OPTIONS | options_now, callbacks=calls)
            return history, [p.detach().clone() for p in model.parameters()]

        monkeypatch.setattr(Interrupt, "at", None)
        expected = run()
        monkeypatch.setattr(Interrupt, "at", 5)
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint=tmp_path)
        monkeypatch.setattr(Interrupt, "at", None)
        found = run(checkpoint=tmp_path)
        assert "fit goes on from step 4 of 6" in caplog.text
        pd.testing.assert_frame_equal(found[0], expected[0], check_exact=True, check_dtype=False)
        assert all(map(torch.equal, found[1], expected[1]))
        assert not all(map(torch.equal, found[1], small.model().parameters()))

    return train


# Of all that torch has: SparseAdam wants sparse gradients, LBFGS a closure.
OPTIMIZERS = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind)
    and issubclass(kind, torch.optim.Optimizer)
    and name not in ("Optimizer", "SparseAdam", "LBFGS")
)


@pytest.mark.parametrize(
    "lr", [1e-2, np.float32(1e-2), torch.tensor(1e-2)], ids=lambda lr: repr(lr)
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_exactly(interrupted, name, lr):
    options = {"momentum": 0.9} if name == "SGD" else {}

    def optimizer(model):
        # Muon takes matrices only, and says so by itself.
        for p in model.parameters():
            p.requires_grad_(p.ndim == 2 or name != "Muon")
        chosen = [p for p in model.parameters() if p.requires_grad]
        return getattr(torch.optim, name)(chosen, lr=lr, **options)

    interrupted(optimizer)


def test_an_option_that_no_file_holds_is_there_when_training_goes_on(interrupted):
    class Noted(torch.optim.AdamW):
        def step(self, closure=None):
            assert [group["note"] for group in self.param_groups] == [len]
            return super().step(closure)

    interrupted(lambda model: Noted([{"params": list(model.parameters()), "note": len}], lr=1e-2))


def test_early_stopping_goes_on_with_the_same_object(interrupted):
    """What it has seen of the interrupted run is state, and no other setting."""
    stopping = mtst.EarlyStopping("animal accuracy", patience=np.int64(5))
    interrupted(lambda model: None, stopping, valid=FRAME)


def test_an_optimizer_that_needs_a_closure_is_refused_before_training():
    model = small.model()
    with pytest.raises(ValueError, match="optimizer: LBFGS computes the loss several times a step"):
        mtst.fit(model, FRAME, **OPTIONS, optimizer=torch.optim.LBFGS(model.parameters()))
