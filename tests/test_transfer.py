"""The experiments of notebook 03, on a tiny backbone: every setting runs, remedies do what they are
called.
"""

import functools
import weakref

import conftest
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import mtst_utils as mtst
from mtst_utils import freezing
from mtst_utils.experiments import probes, results, studies, transfer
from mtst_utils.experiments.corpora import DOMAINS, SENTIMENTS


@pytest.fixture
def tiny(monkeypatch):
    """Every study on a tiny backbone and 320 sentences a split."""
    rng = np.random.default_rng(0)
    words = "the cat sat on a mat nobody expected train to be late today".split()
    texts = [" ".join(rng.choice(words, 5)) for _ in range(320)]
    frame = pd.DataFrame(
        {
            "text": texts,
            "domain": rng.choice(list(DOMAINS), 320),
            "sentiment": rng.choice(SENTIMENTS, 320),
        }
    )

    def split(name, n=None, seed=0):
        rows = frame.set_axis(range(len(frame)))
        return rows if n is None or n >= len(rows) else rows.sample(n, random_state=seed)

    def encoder(name=None):
        return mtst.SentenceEncoder(conftest.tiny_backbone(), conftest.tiny_tokenizer())

    monkeypatch.setattr(transfer, "split", split)
    monkeypatch.setattr(transfer.SentenceEncoder, "from_pretrained", encoder)
    kept = (transfer.after_task_a, transfer.frozen_features)
    for function in kept:
        function.cache_clear()
    yield frame
    for function in kept:
        function.cache_clear()


def test_every_setting_is_a_run(tiny, monkeypatch):
    """One seed of every setting, at quick scale and on few sentences: the names in the registry and
    the code agree.
    """
    brief = functools.partial(transfer.train_heads, steps=20)  # 400: below
    monkeypatch.setattr(transfer, "train_heads", brief)
    for study, sizes in {
        "untrained": {"n": 100},
        "frozen": {"n": 64},
        "labels": {},
        "labels_tuning": {},
        "forgetting": {"n": 64, "n_first": 100},
        "forgetting_hard": {"n": 32, "n_first": 100},
        "transfer": {"n": 64},
        "out_of_domain": {"n": 64},
    }.items():
        for i, (setting, run) in enumerate(studies.STUDIES[study].items()):
            if study.startswith("labels") and not setting.endswith(", 32"):
                continue  # the same but for n
            if study == "out_of_domain" and i % 6:
                continue  # five recipes by four domains: every sixth is another of both
            n, metrics = (
                run(None, 0, "full", **sizes)
                if not study.startswith("labels")
                else run(None, 0, "quick")
            )
            assert n > 0, (study, setting)
            assert all(np.isfinite(value) for value in metrics.values()), (study, setting)


def test_what_is_frozen_shows_in_the_drift(tiny):
    _, frozen = transfer.forgetting_run(None, 0, "full", "backbone frozen", n=64, n_first=100)
    _, free = transfer.forgetting_run(None, 0, "full", "head A frozen", n=64, n_first=100)
    assert frozen["cosine to before, block 2"] == pytest.approx(1, abs=1e-6)
    assert free["cosine to before, block 2"] < 0.9999
    assert frozen["domain accuracy"] == frozen["before, domain accuracy"]


def test_a_frozen_backbone_whose_head_is_trained_to_the_end(tiny, monkeypatch):
    steps = []
    original = transfer.fit
    monkeypatch.setattr(
        transfer,
        "fit",
        lambda model, *a, **k: steps.append(len(h := original(model, *a, **k))) or h,
    )
    _, metrics = transfer.forgetting_run(
        None, 0, "full", "backbone frozen, head trained to the end", n=64, n_first=100
    )
    assert steps[-1] == 400
    assert metrics["cosine to before, block 2"] == pytest.approx(1, abs=1e-6)
    assert (
        metrics["domain accuracy"] == metrics["before, domain accuracy"]
    )  # head A and the backbone are what they were


def test_two_blocks_are_the_middle_and_the_top_one(tiny, float32):
    encoder, sentences = transfer.new_model().encoder, tiny.text[:5].tolist()
    states = transfer.layer_states(
        transfer.new_model(), sentences
    )  # the tiny backbone has three blocks: 1 and 2
    expected = torch.cat([states[2], states[3]], dim=-1)
    assert np.allclose(probes.two_blocks(encoder, sentences), expected, atol=1e-5)


def test_tuning_sees_neither_the_tests_draws_nor_its_rows(tiny, monkeypatch):
    asked = []
    original = transfer.split
    monkeypatch.setattr(
        transfer,
        "split",
        lambda name, n=None, seed=0: asked.append((name, seed)) or original(name, n, seed),
    )
    for recipe in ("two-block probe", "everything trained"):
        _, metrics = transfer.labels_run(None, 3, "quick", 32, recipe, tuning=True)
        assert {"valid, domain accuracy", "valid, sentiment macro F1"} < set(metrics)
        assert "domain accuracy" not in metrics
    assert "test" not in {name for name, _ in asked}
    assert {seed for name, seed in asked if name == "train"} <= {
        103,
        0,
    }  # 0: the whole split, for its features


def test_distillation_keeps_a_tasks_answers(tiny):
    model = transfer.new_model()
    learner = transfer.Distilled(model, "domain")
    assert not any(
        "before" in name for name, _ in [*learner.named_parameters(), *learner.named_modules()]
    )
    inputs = model.encoder.collate(model.encoder.tokenize(tiny.text[:8].tolist())[0])
    labels = {"sentiment": model.tasks["sentiment"].encode(tiny.sentiment[:8])}
    output = learner.eval()(*inputs, labels=labels)
    assert output.losses["keep domain"].item() == pytest.approx(
        0, abs=1e-6
    )  # nothing has moved yet
    with torch.no_grad():
        model.encoder.backbone.encoder.layer[2].output.dense.weight.normal_()
    moved = learner(*inputs, labels=labels)
    assert moved.losses["keep domain"] > 0.0001
    assert torch.equal(moved.loss, moved.losses["sentiment"] + moved.losses["keep domain"])
    moved.losses["keep domain"].backward()
    assert model.encoder.backbone.encoder.layer[2].output.dense.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in learner.before.parameters())


def test_pull_to_start(tiny):
    model = transfer.new_model()
    pull = transfer.PullToStart(model, 0.25)
    parameter = next(model.encoder.parameters())
    start = parameter.detach().clone()

    class Run:
        class optimizer:
            param_groups = [{"lr": 1e-3}]  # noqa: RUF012

    with torch.no_grad():
        parameter.add_(1)
    pull.on_step(Run)
    assert torch.allclose(parameter, start + 0.75)


def test_paired_differences(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    for seed, (a, b) in enumerate([(0.5, 0.4), (0.7, 0.5), (0.9, 0.6)]):
        results.append("toy", "all-MiniLM-L6-v2", "A", seed, 1, {"x": a, "y": 0}, 1)
        results.append("toy", "all-MiniLM-L6-v2", "B", seed, 1, {"x": b}, 1)
    found = results.paired("toy", "A", "B", "x")
    assert found["seeds"] == 3
    assert found["effect"] == pytest.approx(0.2)
    assert found["low"] == pytest.approx(
        0.2 - 4.3027 * 0.1 / 3**0.5, abs=1e-4
    )  # t, two degrees of freedom
    assert results.paired("toy", "A", "A", "x", than="y")["effect"] == pytest.approx(0.7)
    assert results.means("toy", ["x"]).value.tolist() == pytest.approx([0.7, 0.5])
    results.append("toy", "all-MiniLM-L6-v2", "C", 0, 1, {"x": 1}, 1)
    with pytest.raises(ValueError, match="1 seeds in common"):
        results.paired("toy", "A", "C", "x")


def test_ridge_guesses_are_scikit_learns():
    rng = np.random.default_rng(0)
    x, asked = rng.normal(size=(2, 40, 6)), rng.normal(size=(2, 25, 6))
    y = rng.permutation(np.repeat([0, 1, 2], [20, 13, 7]))
    x[0, :, 1] += y
    said = probes.ridge_guesses(x, y, asked, (0.1, 10.0))
    assert said.shape == (4, 25)
    for option, guesses in enumerate(said):
        judge = make_pipeline(
            StandardScaler(), RidgeClassifier((0.1, 10.0)[option // 2], class_weight="balanced")
        )
        layer = option % 2
        assert (judge.fit(x[layer], y).predict(asked[layer]) == guesses).all()


def test_macro_f1_is_scikit_learns_for_every_row_of_guesses():
    rng = np.random.default_rng(0)
    truth, said = rng.integers(0, 3, 30), rng.integers(0, 3, (4, 30))
    found = probes.macro_f1(truth, said, 3)
    assert found == pytest.approx([f1_score(truth, row, average="macro") for row in said])
    assert probes.macro_f1(np.zeros(3), np.zeros(3), 3) == pytest.approx(1 / 3)


def test_what_is_kept_for_the_way_back_follows_what_learns(tiny):
    frame = transfer.split("train", 4)
    sizes = []
    for learning in (0, 1, 3):
        model = transfer.new_model()
        freezing.unfreeze_top_blocks(model, learning)
        sizes.append(transfer.kept_for_backward(model, *transfer.batch(model, frame)))
    assert 0 < sizes[0] < sizes[1] < sizes[2]  # of the frozen backbone the heads keep its output
    freezing.freeze(model)
    assert transfer.kept_for_backward(model, *transfer.batch(model, frame)) == 0


def test_measuring_what_is_kept_gives_the_memory_back():
    results = []

    class Softmax(torch.nn.Linear):
        def forward(self, x, labels):
            result = super().forward(x).softmax(-1)  # whose step keeps its own result
            results.append(weakref.ref(result))
            return result.sum()

    x = torch.randn(256, 256)
    assert transfer.kept_for_backward(Softmax(256, 256), [x], None) == pytest.approx(0.5)
    assert results[0]() is None
