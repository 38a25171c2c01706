"""The declared studies, on a tiny backbone: designs are whole, arms are tuned alike, runs go on
where they stopped.
"""

import dataclasses

import conftest
import numpy as np
import pandas as pd
import pytest
import torch

import mtst_utils as mtst
from mtst_utils.experiments import common, designs, few_labels, records, registry, results
from mtst_utils.experiments.corpora import DOMAINS, SENTIMENTS
from mtst_utils.experiments.designs import TUNING_SEEDS, Arm, Comparison, Job, Outcome, Study


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Studies on a tiny backbone and 90 sentences a split, kept in a folder of the test's own."""
    rng, frames = np.random.default_rng(0), []
    words = ["the", "cat", "sat", "on", "a", "mat", "nobody", "expected", "train", "late"]
    for name in ("train", "valid", "test"):
        texts = [" ".join(rng.choice(words, 5)) for _ in range(90)]
        rows = {
            "text": texts,
            "domain": rng.choice(list(DOMAINS), 90),
            "sentiment": rng.choice(SENTIMENTS, 90),
        }
        frames.append(
            pd.DataFrame(rows).assign(group=[f"{name} {i // 2}" for i in range(90)], split=name)
        )
    corpus = pd.concat(frames, ignore_index=True)

    def encoder(name=None):
        return mtst.SentenceEncoder(conftest.tiny_backbone(), conftest.tiny_tokenizer())

    caches = (common._encoder, common.split, few_labels.asked_features)
    monkeypatch.setattr(common, "load_rated_sentences", lambda: corpus)
    monkeypatch.setattr(common.SentenceEncoder, "from_pretrained", encoder)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    for cache in caches:
        cache.cache_clear()
    yield corpus
    for cache in caches:
        cache.cache_clear()


def toy(run=None, **changes):
    """A whole declaration of two arms; arm B's best rate is beyond its grid."""

    def measured(job):
        score = 0.5 - abs(np.log10(job.settings["lr"]) + 1) / 10
        predictions = {"sentiment": np.full(90, job.seed % 3)} if job.phase == "final" else {}
        return Outcome({"valid sentiment macro F1": score, "sentiment macro F1": 0.1}, predictions)

    arms = {
        name: Arm(run or measured, {"lr": values}, "a toy")
        for name, values in {"A": (0.05, 0.1, 0.2), "B": (0.001, 0.01, 0.02)}.items()
    }
    study = Study(
        "toy",
        ("0",),
        "Which?",
        "a corpus",
        arms,
        (Comparison("0", "A", "B", "gain"),),
        "sentiment macro F1",
        "valid sentiment macro F1",
        {16: 0.02},
        {16: 2},
        "enough",
        {16: 16},
    )
    return dataclasses.replace(study, **changes)


def test_a_study_that_is_not_declared_does_not_run(monkeypatch):
    with pytest.raises(
        ValueError, match="no study 'padding' is declared; its runs are of the time before"
    ):
        registry.run("padding")
    uneven = {"A": Arm(print, {"lr": (1, 2, 3)}, ""), "B": Arm(print, {"lr": (1, 2)}, "")}
    for changes, lacks in [
        ({"question": ""}, "question"),
        ({"margins": {}}, "margins"),
        ({"why": ""}, "why"),
        ({"comparisons": ()}, "comparisons"),
        ({"arms": uneven}, "same number of tries"),
        ({"margins": {32: 0.02}}, "for every n"),
        ({"comparisons": (Comparison("1", "A", "C", "gain"),)}, "arms or promise of '1'"),
    ]:
        monkeypatch.setitem(registry.STUDIES, "toy", toy(**changes))
        with pytest.raises(ValueError, match=lacks):
            registry.run("toy")


def test_every_declared_study_is_whole():
    for study in registry.STUDIES.values():
        assert study.missing() == []
        assert min(study.seeds.values()) >= designs.LEAST_SEEDS["all-MiniLM-L6-v2"]
    listed = registry.listing("no such backbone")
    assert "MISSING" in listed
    assert "padding: not yet declared" in listed


def test_both_phases(tiny, monkeypatch):
    """An edge winner widens the grid, at most twice; the best settings are run on fresh seeds, arm
    beside arm.
    """
    monkeypatch.setitem(registry.STUDIES, "toy", toy())
    registry.run("toy", "b")
    rows = records.rows_of("toy")
    assert list(rows.columns) == records.COLUMNS
    final, tuning = rows[rows.phase == "final"], rows[rows.phase == "tune"]
    assert set(tuning.seed) == set(TUNING_SEEDS)
    assert final[["seed", "arm"]].to_numpy().tolist() == [
        [0, "A"],
        [0, "B"],
        [1, "A"],
        [1, "B"],
    ]  # whole pairs first
    assert final.settings.tolist() == ['{"lr":0.1}', '{"lr":0.08}'] * 2  # B: 0.02, then 0.04, 0.08
    assert final.tries.tolist() == [3, 5, 3, 5]
    assert final.at_edge.fillna("").tolist() == ["", "lr", "", "lr"]
    codes = records.predictions("toy", "b", 16, "A", [0, 1], "sentiment")
    assert codes.dtype == np.int8
    assert codes.tolist() == [[0] * 90, [1] * 90]
    assert registry.state(registry.STUDIES["toy"], "b").seeds.tolist() == [2, 2]
    before = (results.RESULTS / "toy.csv").read_bytes()
    registry.run("toy", "b")
    assert (results.RESULTS / "toy.csv").read_bytes() == before  # nothing is run again


def test_an_untuned_arm_is_not_tested(tiny, monkeypatch):
    monkeypatch.setitem(registry.STUDIES, "toy", toy())
    with pytest.raises(ValueError, match="'A' is not tuned for n=16"):
        registry.run("toy", "b", "final")


def test_an_interrupted_study_goes_on(tiny, monkeypatch):
    calls = []

    def run(job):
        calls.append((job.phase, job.settings["lr"], job.seed))
        if len(calls) == 12:
            raise KeyboardInterrupt
        return Outcome({"valid sentiment macro F1": -abs(job.settings["lr"] - 0.1)})

    arms = {name: Arm(run, {"lr": (0.05, 0.1, 0.2)}, "a toy") for name in "AB"}
    monkeypatch.setitem(registry.STUDIES, "toy", toy(arms=arms))
    with pytest.raises(KeyboardInterrupt):
        registry.run("toy", "b")
    registry.run("toy", "b")
    assert len(calls) == 2 * 9 + 2 * 2 + 1
    assert len(records.rows_of("toy")) == 22


def test_a_head_starts_the_same_whatever_else_is_in_the_model(tiny):
    joint = common.new_model(None, ("domain", "sentiment"), seed=3)
    for task in ("domain", "sentiment"):
        alone = common.new_model(None, (task,), seed=3)
        assert torch.equal(joint.heads[task].weight, alone.heads[task].weight)
        assert torch.equal(joint.heads[task].bias, alone.heads[task].bias)
        assert not torch.equal(
            joint.heads[task].weight, common.new_model(None, (task,), seed=4).heads[task].weight
        )
    other = common.new_model(None, ("sentiment", "domain"), seed=3)
    assert torch.equal(joint.heads["sentiment"].weight, other.heads["sentiment"].weight)
    assert not torch.equal(joint.heads["sentiment"].weight, joint.heads["domain"].weight[:3])


def test_every_arm_runs_in_both_phases(tiny):
    for name, arm in few_labels.FEW_LABELS.arms.items():
        if not registry.available(arm):
            assert name == "SetFit"
            continue
        for settings in (designs.grid(arm)[0], designs.grid(arm)[-1]):
            tuned = arm.run(Job("b", 32, 0, settings, "tune", "quick"))
            assert set(tuned.scores) <= {"valid sentiment macro F1", "valid domain accuracy"}
            assert not tuned.predictions  # tuning does not see the test rows
            found = arm.run(Job("b", 32, 0, settings, "final", "quick"))
            truth = common.codes(common.split("test").sentiment, "sentiment")
            assert (found.predictions["sentiment"] == truth).mean() == pytest.approx(
                found.scores["sentiment accuracy"]
            )
            assert set(found.scores) <= set(records.SCORES)
            assert records.compact(found.details)


def test_lora_trains_its_own_weights_and_the_heads(tiny):
    model = common.new_model(None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    few_labels.add_lora(model, seed=0)
    free = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or name.startswith("heads.") for name in free)
    assert (
        len([name for name in free if "lora_A" in name]) == 6 * 3
    )  # linear layers of three blocks
    mtst.fit(
        model, tiny[:32], epochs=1, optimizer=few_labels.rates(model, 1e-2, 1e-2), progress=False
    )
    after = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
    assert all(
        torch.equal(after[name], value) for name, value in before.items() if "heads" not in name
    )
    assert (
        after["encoder.backbone.encoder.layer.0.attention.self.query.lora_B.default.weight"]
        .abs()
        .sum()
        > 0
    )


def test_the_best_epoch_is_kept(tiny):
    """A perfect first epoch, then weights that are spoilt: the first is put back."""
    model, held = common.new_model(None), tiny[:20]
    keep = common.KeepBest(held, every=2)

    class Run:
        step = 0

    Run.model = model
    scores = {2: 0.9, 4: 0.1}
    truth = np.eye(3)[common.codes(held.sentiment, "sentiment")]
    for step in (1, 2, 3, 4):
        Run.step = step
        with torch.no_grad():
            model.heads["sentiment"].bias.fill_(step)
        share = scores.get(step)
        model.probabilities = lambda texts, share=share: {
            "sentiment": share * truth + (1 - share) / 3
        }
        keep.on_step(Run)
    keep.restore(model)
    assert keep.best_step == 2
    assert model.heads["sentiment"].bias.tolist() == [2, 2, 2]


def test_folds_never_divide_a_group(tiny):
    frame = tiny[tiny.split == "train"].sample(16, random_state=1)
    for task in ("sentiment", "domain"):
        parts = common.folds(frame, task, 0)
        assert sorted(i for _, asked in parts for i in asked) == list(range(16))
        for known, asked in parts:
            assert not set(frame.group.iloc[known]) & set(frame.group.iloc[asked])
    known, held = common.hold_out(frame, 0)
    assert len(known) + len(held) == 16
    assert 2 <= len(held) <= 7


def test_the_probe_finds_the_layer_that_knows(tiny):
    """Four layers of noise, and a label in one of them: cross-validation on the training rows alone
    finds it.
    """
    frame, rng = tiny[tiny.split == "train"][:60], np.random.default_rng(0)
    x = rng.normal(size=(60, 4, 8))
    x[:, 1, :3] += 3 * np.eye(3)[common.codes(frame.sentiment, "sentiment")]
    for by in ("macro F1", "log loss"):
        layers, _, _ = few_labels.search(
            x, frame, "sentiment", {"layers": "one", "chosen by": by}, 0
        )
        assert layers == (1,)
    assert few_labels.candidates(3, "one or two") == [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]
