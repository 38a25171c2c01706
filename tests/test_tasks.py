"""Kinds of tasks: classification beside multi-label and regression, in one model."""

import json

import numpy as np
import pandas as pd
import pytest
import small
import torch

import mtst_utils as mtst
from mtst_utils import multitask

WORDS = ("cat", "train", "late")


def frame():
    table = small.frame()
    table["words"] = [tuple(w for w in WORDS if w in text.split()) for text in table.text]
    table["length"] = [len(text.split()) / 5 for text in table.text]
    return table


FRAME = frame()


def model():
    mtst.seed_everything(0)
    tasks = [
        mtst.Task("letter", ("b", "c")),
        mtst.MultiLabelTask("words", WORDS),
        mtst.RegressionTask("length", weight=2.0),
    ]
    return mtst.MultiTaskModel(small.model().encoder, tasks)


def fit(learner, table=FRAME, epochs=20):
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    options = {"batch_size": 8, "precision": "float32", "progress": False}
    return mtst.fit(learner, table, FRAME, epochs=epochs, optimizer=optimizer, **options)


def test_all_kinds_learn_together_and_survive_saving(tmp_path):
    learner = model()
    history = fit(learner)
    scores = mtst.evaluate(learner, FRAME, precision="float32").set_index("task")
    assert scores.loc["letter", "accuracy"] > 0.95
    assert scores.loc["words", "accuracy"] > 0.95
    assert scores.loc["length", "r"] > 0.9
    assert scores.loc["length", "mean absolute error"] < 0.2
    assert np.isnan(scores.loc["length", "accuracy"])
    assert history.epochs["valid length r"].iloc[-1] == pytest.approx(
        scores.loc["length", "r"], abs=1e-6
    )
    said = learner.predict(FRAME.text)
    assert list(said) == ["text", "letter", "letter probability", "words", "length"]
    assert (said.words == FRAME.words).mean() > 0.95
    learner.save_pretrained(tmp_path)
    again = mtst.MultiTaskModel.from_pretrained(tmp_path)
    assert again.tasks == learner.tasks
    pd.testing.assert_frame_equal(again.predict(FRAME.text), said)


@pytest.mark.parametrize("name", ["words", "length"])
def test_missing_labels_count_for_nothing(name):
    learner = model().eval()
    inputs = learner.encoder.collate(learner.encoder.tokenize(FRAME.text[:2].tolist())[0])
    task = learner.tasks[name]
    some = task.encode([FRAME[name][0], None])
    losses = learner(*inputs, labels={name: some}).losses
    alone = learner(*(x[:1] for x in inputs), labels={name: task.encode([FRAME[name][0]])}).losses
    assert torch.allclose(losses[name], alone[name], atol=1e-5)
    output = learner(*inputs, labels={name: task.encode([None, float("nan")])})
    assert output.loss == 0
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in learner.parameters() if p.grad is not None)


def test_losses_are_what_they_are_called():
    logits = torch.tensor([[0.5, -1.0, 2.0], [0.0, 1.0, 0.0]])
    words, length = model().tasks["words"], model().tasks["length"]
    truth = words.encode([("cat",), ("train", "late")])
    assert truth.tolist() == [[1, 0, 0], [0, 1, 1]]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
    assert torch.allclose(words.loss(logits, truth), expected)
    numbers = length.encode([1, 2.5])
    assert torch.allclose(
        length.loss(logits[:, :1], numbers), ((0.5 - 1) ** 2 + 2.5**2) / torch.tensor(2.0)
    )


def test_one_label_in_a_batch_has_its_whole_loss():
    words, length = model().tasks["words"], model().tasks["length"]
    logits, truth = torch.tensor([[0.5, -1.0, 2.0]]), words.encode([("cat",)])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
    assert torch.allclose(words.loss(logits, truth), expected)
    assert length.loss(logits[:, :1], length.encode([1.5])) == 1


def test_labels_have_their_type_whatever_torchs_default_is():
    torch.set_default_dtype(torch.float64)  # as scientific code does
    try:
        assert mtst.RegressionTask("stars").encode([1]).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_numbers_up_to_the_largest_of_float32():
    stars = mtst.RegressionTask("stars", weight=multitask.LARGEST)
    assert stars.encode([-multitask.LARGEST, multitask.LARGEST]).isfinite().all()
    assert stars.weight == multitask.LARGEST


def test_labels_after_one_that_is_not_known():
    assert mtst.MultiLabelTask("w", WORDS).encode([None, ("cat",)])[1].tolist() == [1, 0, 0]


def test_a_probability_of_one_half_is_no_label():
    words, even = mtst.MultiLabelTask("w", WORDS), np.array([[0.5, 0.6, 0.4]])
    assert words.decode(even) == {"w": [("train",)]}
    assert words.scores(np.array([[0, 1, 0]]), even)["accuracy"] == 1


def test_a_label_that_is_never_seen_nor_said_counts_0():
    scores = mtst.MultiLabelTask("w", WORDS).scores(np.array([[1, 0, 0]]), np.eye(3)[:1])
    assert scores == {"accuracy": 1, "macro F1": pytest.approx(1 / 3)}


def test_scores_of_numbers():
    length, truth = model().tasks["length"], np.array([0.0, 0.1])
    scores = length.scores(truth, np.array([[0.3], [0.2]]))
    assert scores == {"mean absolute error": pytest.approx(0.2), "r": pytest.approx(-1)}
    assert np.isnan(length.scores(truth, np.array([[0.3], [0.3]]))["r"])


def test_parts_of_a_batch_add_up_for_every_kind():
    table = FRAME.copy()
    table["length"] = table.length.where(table.index % 3 == 0)
    losses = []
    for parts in (1, 4):
        mtst.seed_everything(0)
        learner = mtst.MultiTaskModel(
            small.model(dropout=0).encoder, model().tasks.values(), dropout=0
        )
        options = {"epochs": 2, "batch_size": 16, "precision": "float32", "progress": False}
        losses.append(mtst.fit(learner, table, **options, parts=parts).loss.to_numpy())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_scores_over_nothing_and_over_the_same():
    words, length = model().tasks["words"], model().tasks["length"]
    nothing = words.scores(np.zeros((0, 3)), np.zeros((0, 3)))
    assert list(nothing) == ["accuracy", "macro F1"]
    assert np.isnan(list(nothing.values())).all()
    assert np.isnan(list(length.scores(np.zeros(0), np.zeros((0, 1))).values())).all()
    assert np.isnan(length.scores(np.ones(3), np.array([[1.0], [2.0], [3.0]]))["r"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: mtst.MultiLabelTask("w", WORDS).encode([("cat",), ("dog",)]),
            "task 'w', row 1: must be a tuple of labels",
        ),
        (
            lambda: mtst.MultiLabelTask("w", WORDS).encode(["cat"]),
            "row 0: must be a tuple of labels",
        ),
        # not for its letters
        (lambda: mtst.MultiLabelTask("w", ("a", "b")).encode(["ab"]), "row 0: must be a tuple"),
        (lambda: mtst.MultiLabelTask("w", WORDS).encode([3]), "row 0: must be a tuple"),
        (lambda: mtst.MultiLabelTask("w", WORDS).encode([np.array("cat")]), "must be a tuple"),
        (lambda: mtst.MultiLabelTask("w", ("a",)), "labels must be two or more"),
        (
            lambda: mtst.RegressionTask("r").encode([1, "many"]),
            "task 'r', row 1: must be a finite number; got 'many'",
        ),
        (lambda: mtst.RegressionTask("r").encode([float("inf")]), "finite number; got inf"),
        (lambda: mtst.RegressionTask("r").encode([1e39]), "finite number; got 1e"),
        (lambda: mtst.RegressionTask("r", weight=0), "weight must be a number above 0"),
        (lambda: mtst.RegressionTask("a.b"), "without a dot"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_wrong_labels_of_a_batch_are_named():
    learner = model()
    inputs = learner.encoder.collate(learner.encoder.tokenize(FRAME.text[:2].tolist())[0])
    with pytest.raises(ValueError, match=r"labels of task 'words' must be a float tensor \[2, 3\]"):
        learner(*inputs, labels={"words": torch.zeros(2, 5)})
    with pytest.raises(
        ValueError, match=r"labels of task 'length' must be a float tensor \[2\]; got \[1, 2\]"
    ):
        learner(*inputs, labels={"length": [1, 2]})


def test_an_unknown_kind_in_a_folder_is_named(tmp_path):
    learner = model()
    learner.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tasks.json").read_text())
    settings["tasks"][0]["kind"] = "RankingTask"
    (tmp_path / "tasks.json").write_text(json.dumps(settings))
    with pytest.raises(
        ValueError, match="task 'letter' is of kind 'RankingTask'; known are Task, MultiLabelTask"
    ):
        mtst.MultiTaskModel.from_pretrained(tmp_path)


def test_a_folder_from_before_there_were_kinds(tmp_path):
    learner = small.model()
    learner.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tasks.json").read_text())
    for row in settings["tasks"]:
        del row["kind"]
    (tmp_path / "tasks.json").write_text(json.dumps(settings))
    assert mtst.MultiTaskModel.from_pretrained(tmp_path).tasks == learner.tasks


def test_numbers_need_no_labels_in_a_folder():
    row = {"kind": "RegressionTask", "name": "stars"}
    assert multitask._task_of(row) == mtst.RegressionTask("stars")


def test_what_is_no_task_is_refused():
    with pytest.raises(TypeError, match="tasks must be a list of at least one Task"):
        mtst.MultiTaskModel(small.model().encoder, [("letter", ("b", "c"))])
    assert set(multitask.KINDS) == {"Task", "MultiLabelTask", "RegressionTask"}
