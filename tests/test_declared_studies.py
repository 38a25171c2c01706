"""The declared studies, on a tiny backbone: designs are whole, arms are tuned alike, runs go on
where they stopped.
"""

import dataclasses
import functools
import types

import conftest
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import chi2_contingency
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_sample_weight

import mtst_utils as mtst
from mtst_utils.backbones import DEFAULT
from mtst_utils.experiments import (
    bake_off,
    claims,
    common,
    corpora,
    designs,
    few_labels,
    findings,
    forgetting,
    lengths,
    neighbours,
    over_time,
    records,
    registry,
    results,
    second_corpus,
    sentence_transformer,
    tasks,
)
from mtst_utils.experiments.corpora import DOMAINS, SENTIMENTS
from mtst_utils.experiments.designs import TUNING_SEEDS, Arm, Comparison, Job, Outcome, Study

TOPICS = "driverless cars", "airlines", "festival", "football", "Apple", "allergy medicine"


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
            "rating": np.linspace(-4, 4, 90),
        }
        frames.append(
            pd.DataFrame(rows).assign(group=[f"{name} {i // 2}" for i in range(90)], split=name)
        )
    corpus = pd.concat(frames, ignore_index=True)
    tweets = corpus.drop(columns=["rating", "domain"])
    tweets["topic"] = rng.choice(TOPICS, len(tweets))
    for task in common.TASKS:
        corpus[task] = pd.Categorical(corpus[task], categories=common.labels_of(task))

    def encoder(name=None):
        return mtst.SentenceEncoder(conftest.tiny_backbone(), conftest.tiny_tokenizer())

    caches = (common._encoder, common.split, few_labels.asked_features)
    caches += (forgetting._first, forgetting._before, forgetting._unprotected)
    caches += (neighbours.vectorizer, neighbours.asked_embeddings)
    monkeypatch.setattr(common, "load_rated_sentences", lambda: corpus)
    monkeypatch.setattr(common, "load_crowd_tweets", lambda: tweets)
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
        "rated sentences",
        arms,
        (Comparison("0", "A", "B", "gain"),),
        "sentiment macro F1",
        ("valid sentiment macro F1",),
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
        ({"corpus": "some sentences"}, "a corpus that is known"),
        ({"comparisons": ()}, "comparisons"),
        ({"arms": uneven}, "same number of tries"),
        ({"margins": {32: 0.02}}, "for every n"),
        ({"comparisons": (Comparison("1", "A", "C", "gain"),)}, "arms or promise of '1'"),
    ]:
        monkeypatch.setitem(registry.STUDIES, "toy", toy(**changes))
        with pytest.raises(ValueError, match=lacks):
            registry.run("toy")


def test_margins_are_those_of_the_standard():
    """1 point of sentiment macro F1, half of one of domain accuracy; 2 with few labels."""
    study, few = few_labels.FEW_LABELS, (16, 32, 64, 128, 256)
    assert {study.margin(n, m) for n in few for m in common.HEADLINE} == {0.02}
    assert {study.margin(n, "sentiment macro F1") for n in (512, 2048)} == {0.01}
    assert {study.margin(n, "domain accuracy") for n in (512, 2048)} == {0.005}


def test_a_larger_backbone_gets_half_the_seeds_and_five_at_the_least():
    study = toy(margins={16: 1, 32: 1}, seeds={16: 20, 32: 8}, tuned_at={16: 16, 32: 16})
    assert [study.wanted(n, DEFAULT) for n in (16, 32)] == [20, 8]
    assert [study.wanted(n, "all-mpnet-base-v2") for n in (16, 32)] == [10, 5]


def test_every_declared_study_is_whole():
    for study in registry.STUDIES.values():
        assert study.missing() == []
        assert min(study.seeds.values()) >= designs.LEAST_SEEDS
    listed = registry.listing("no such backbone")
    assert "MISSING" in listed
    assert "padding: not yet declared" in listed


def test_both_phases(tiny, monkeypatch):
    """An edge winner widens the grid, at most twice; the best settings are run on fresh seeds, arm
    beside arm.
    """
    monkeypatch.setitem(registry.STUDIES, "toy", toy())
    monkeypatch.setattr(records, "COMMIT", "1837801")  # of digits only
    registry.run("toy", DEFAULT)
    rows = records.rows_of("toy")
    assert list(rows.columns) == records.COLUMNS
    final, tuning = rows[rows.phase == "final"], rows[rows.phase == "tune"]
    assert set(tuning.seed) == set(TUNING_SEEDS)
    assert final[["seed", "arm"]].to_numpy().tolist() == [
        [0, "A"],
        [0, "B"],
        [1, "B"],
        [1, "A"],
    ]  # whole pairs first, and each arm first as often as last
    settings = ['{"lr":0.1}', '{"lr":0.08}']  # B: 0.02, then 0.04, 0.08
    assert final.settings.tolist() == settings + settings[::-1]
    assert final.tries.tolist() == [3, 5, 5, 3]
    assert final.at_edge.fillna("").tolist() == ["", "lr", "lr", ""]
    codes = records.predictions("toy", DEFAULT, 16, "A", [0, 1], "sentiment")
    assert codes.dtype == np.int8
    assert codes.tolist() == [[0] * 90, [1] * 90]
    state = registry.state(registry.STUDIES["toy"], DEFAULT)
    assert state.seeds.tolist() == [2, 2]
    assert state.commits.tolist() == ["1837801"] * 2
    done = registry.finished(registry.STUDIES["toy"], DEFAULT)
    assert sorted(zip(done.arm, done.seed, strict=True)) == [("A", 0), ("A", 1), ("B", 0), ("B", 1)]
    found = registry.recipes(registry.STUDIES["toy"], DEFAULT)
    assert found.loc[(16, "A")].tolist() == ["lr 0.1", 3, "–"]
    assert found.loc[(16, "B")].tolist() == ["lr 0.08", 5, "lr"]
    before = (results.RESULTS / "toy.csv").read_bytes()
    registry.run("toy", DEFAULT)
    assert (results.RESULTS / "toy.csv").read_bytes() == before  # nothing is run again


def test_an_untuned_arm_is_not_tested(tiny, monkeypatch):
    monkeypatch.setitem(registry.STUDIES, "toy", toy())
    with pytest.raises(ValueError, match="'A' is not tuned for n=16"):
        registry.run("toy", DEFAULT, "final")


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
        registry.run("toy", DEFAULT)
    registry.run("toy", DEFAULT)
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # SetFit's
@pytest.mark.parametrize("name", list(registry.STUDIES))
def test_every_arm_runs_in_both_phases(tiny, name, monkeypatch):
    """At its first and its last settings, on few sentences, with a small search for probes."""
    monkeypatch.setattr(few_labels, "STRENGTHS", (0.01,))
    monkeypatch.setattr(few_labels, "SHORTLIST", 1)
    monkeypatch.setattr(few_labels, "folds", functools.partial(common.folds, count=2))
    monkeypatch.setattr(common, "CURVE", 20)
    study = registry.STUDIES[name]
    n = min(study.seeds)
    truth = common.codes(common.split("test", study.corpus).sentiment)
    others = {  # of studies whose arms are the same but for a word
        "pooling": ["trained, max", "frozen, unmasked mean"],
        "forgetting_frontier_hard": ["none", "backbone frozen"],
        "few_labels_tweets": ["tuned probe", "set probe", "full"],
        "bake_off_tweets": ["gradual"],
        "over_time": ["decay 0.8", "as written"],
        "lengths": ["frozen, 16 tokens", "trained, whole", "frozen, bfloat16"],
        "regrouped": [],  # all of its arms are other studies'
    }
    arms = study.arms_at(n)
    for arm_name, arm in ((name, arms[name]) for name in others.get(name, arms)):
        if not registry.available(arm):
            assert arm_name == "SetFit"
            continue
        if name == "cost":
            details = arm.run(Job(DEFAULT, n, 0, {}, "final", "quick")).details
            assert all(details[metric] > 0 for metric in findings.COSTS)
            continue
        tuned = arm.run(Job(DEFAULT, n, 0, designs.grid(arm)[0], "tune", "quick", study.corpus))
        assert set(tuned.scores) <= {"valid sentiment macro F1", "valid domain accuracy"}
        assert not tuned.predictions  # tuning does not see the test rows
        found = arm.run(Job(DEFAULT, n, 0, designs.grid(arm)[-1], "final", "quick", study.corpus))
        if arm_name == "domain alone":
            assert list(found.predictions) == ["domain"]
            continue
        right = (found.predictions["sentiment"] == truth).mean()
        assert right == pytest.approx(found.scores["sentiment accuracy"]), arm_name
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


@pytest.mark.parametrize("name", list(registry.STUDIES))
def test_a_study_without_rows_has_findings_and_a_plan(tiny, name):
    assert findings.plan(name).empty
    assert findings.audit(name) == []
    assert set(findings.findings(name).verdict) <= {"unfinished"}


def test_the_nearest_vote_and_a_rare_class_weighs_more():
    near, labels = np.array([[0.9, 0.8, 0.7, 0.1]]), np.array([2, 0, 0, 0])
    for k, weights, expected in (
        (1, "equal", 2),  # the nearest alone
        (3, "equal", 2),  # one vote of 1 against two of a third
        (9, "similarity", 2),  # of four sentences there are no nine
    ):
        assert neighbours.vote(near, labels, k, weights) == [expected]
    even = np.array([0, 2, 2, 0])
    assert neighbours.vote(near, even, 3, "equal") == [2]
    assert neighbours.vote(np.array([[0.9, 0.2, 0.1, 0]]), even, 3, "similarity") == [0]


def test_nearness_by_words_and_by_vectors_is_a_cosine(tiny):
    job = Job(DEFAULT, 20, 0, {}, "final", "quick")
    known = common.asked_rows(job).head(20)  # a sentence is its own nearest
    for similarity in (neighbours.by_embeddings, neighbours.by_tfidf):
        near = similarity(job, known)
        assert near.shape == (len(common.asked_rows(job)), 20)
        assert np.diag(near) == pytest.approx(np.ones(20), abs=1e-2)
        assert near.max() <= 1.01


def test_sentences_are_cut_at_the_limit(tiny):
    encoder = common.new_model(None).encoder
    assert [lengths.cut(encoder, limit).max_length for limit in (16, None, 999)] == [16, 40, 40]
    with pytest.warns(UserWarning, match="were cut there"):
        short = lengths.cut(encoder, 4).encode(["the cat sat on a mat"])
    assert np.allclose(short, encoder.encode(["the cat"]), atol=1e-6)


def test_the_best_epoch_is_kept(tiny):
    """A perfect first epoch, then weights that are spoilt: the first is put back."""
    model, held = common.new_model(None), tiny[:20]
    keep = common.KeepBest(held, every=2)

    class Run:
        step = 0

    Run.model = model
    scores = {2: 0.9, 4: 0.1}
    truth = np.eye(3)[common.codes(held.sentiment)]
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


def test_the_probe_finds_the_layer_that_knows(tiny, monkeypatch):
    """Four layers of noise, and a label in one of them: cross-validation on the training rows alone
    finds it.
    """
    monkeypatch.setattr(few_labels, "STRENGTHS", (0.01,))
    frame, rng = tiny[tiny.split == "train"][:60], np.random.default_rng(0)
    x = rng.normal(size=(60, 4, 8))
    x[:, 1, :3] += 3 * np.eye(3)[common.codes(frame.sentiment)]
    for by in ("macro F1", "log loss"):
        layers, _ = few_labels.search(x, frame, "sentiment", {"layers": "one", "chosen by": by}, 0)
        assert layers == (1,)
    assert few_labels.candidates(3, "any") == [(0,), (1,), (2,), (0, 1), (1, 2), (1, 2)]
    assert few_labels.candidates(7, "two") == [(4, 6)] == [few_labels.probed_layers(7, "two")]
    assert few_labels.candidates(3, "one or two") == [(0,), (1,), (2,), (1, 2)]
    assert few_labels.candidates(7, "any or two")[:-1] == few_labels.candidates(7, "any")


def test_rate_matched_means_that_the_mean_rate_is_the_same(tiny):
    model = common.new_model(None)
    for decay in (1.0, 0.95, 0.8):
        groups = bake_off.optimizer_of(model, 2e-4, 1e-3, decay).param_groups
        rates = mtst.lr_table(groups).groupby("name").lr.first().drop("heads")
        assert len(rates) == 4  # embeddings and three blocks
        assert np.exp(np.log(rates).mean()) == pytest.approx(2e-4)
        assert (rates.max() / rates.min() == pytest.approx(decay**-3)) or decay == 1


def test_the_other_order_has_the_same_steps_and_rates(tiny):
    model = common.new_model(None)
    usual, turned = (
        order(0.2, 0.6, decay=1.0).schedule(model, 100)
        for order in (mtst.GradualUnfreezing, bake_off.BottomUp)
    )
    assert turned.step.tolist() == usual.step.tolist()[::-1]
    assert turned[["layer", "lr"]].equals(usual[["layer", "lr"]])
    assert dict(zip(turned.layer, turned.step, strict=True))["embeddings"] == 20


def test_converged_heads_say_what_the_probe_says(tiny, float32, monkeypatch):
    monkeypatch.setattr(few_labels, "STRENGTHS", (0.01,))
    job = Job(DEFAULT, 80, 0, {})
    model, frame = common.new_model(None), common.training_rows(job)
    bake_off.converged_heads(job, model)
    x = model.encoder.encode(frame.text.tolist())
    _, c = few_labels.search(
        x[:, None, :], frame, "sentiment", {"layers": "last", "chosen by": "log loss"}, 0
    )
    probe = few_labels.logistic(c).fit(x, common.codes(frame.sentiment))
    found = model.probabilities(frame.text)["sentiment"]
    assert found == pytest.approx(probe.predict_proba(x), abs=1e-4)


def test_pulling_back_to_the_start(tiny):
    """The share of the way back follows strength, importance and the schedule."""
    model = common.new_model(None)
    parameters = list(model.encoder.parameters())
    start = [p.detach().clone() for p in parameters]
    weights = [torch.full_like(p, float(i % 2)) for i, p in enumerate(parameters)]

    class Run:
        class optimizer:
            param_groups = [{"lr": 5e-4, "initial_lr": 1e-3}]  # noqa: RUF012

    for importance, shares in ((None, (1 / 3, 1 / 3)), (weights, (0, 1 / 3))):
        pull = forgetting.Pull(model, 1.0, importance)
        pull.rows = [(p, s, w) for (p, _, w), s in zip(pull.rows, start, strict=True)]
        with torch.no_grad():
            for p, s in zip(parameters, start, strict=True):
                p.copy_(s + 1)
        pull.on_step(Run)
        for i in (0, 1):
            left = (parameters[i] - start[i]).detach()
            assert torch.allclose(left, torch.full_like(left, 1 - shares[i]), atol=1e-5)


def test_importance_is_where_the_first_task_looks(tiny):
    model = common.new_model(None)
    found = forgetting.importances(model, tiny[:6])
    size = sum(part.numel() for part in found)
    assert sum(float(part.sum()) for part in found) / size == pytest.approx(1, rel=1e-4)
    table = found[0]  # of word vectors: those that occur in no sentence do not matter
    used = {i for row in model.encoder.tokenize(tiny.text[:6].tolist())[0] for i in row}
    unused = [i for i in range(len(table)) if i not in used]
    assert float(table[unused].abs().sum()) == 0
    assert float(table[sorted(used)].sum()) > 0


def test_weights_are_mixed_and_heads_refitted(tiny, float32):
    model = common.new_model(None)
    start = [p.detach().clone() for p in model.encoder.parameters()]
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.add_(1)
    forgetting.mix(model, start, 0.25)
    first = next(model.encoder.parameters())
    assert torch.allclose(first, start[0] + 0.25, atol=1e-6)
    rows = tiny[:60]
    forgetting.refit_head(model, rows)
    x = model.encoder.encode(rows.text.tolist())
    probe = few_labels.logistic(0.01).fit(x, common.codes(rows.domain))
    assert model.probabilities(rows.text)["domain"].argmax(1).tolist() == probe.predict(x).tolist()


def test_a_remedy_leaves_the_first_head_and_other_runs_alone(tiny):
    job = Job(DEFAULT, 40, 0, {"lr": 1e-3, "strength": 1.0}, "tune", "quick")
    first = forgetting.after_first(job)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    forgetting.remedy(job, "distillation")
    again = forgetting.after_first(job).state_dict()
    assert all(torch.equal(again[name], value) for name, value in before.items())
    rows = forgetting.second_rows(job, None)
    assert "domain" not in rows
    assert not set(rows.index) & set(forgetting.first_rows(job).index)


def test_poolings_differ_only_where_there_is_padding(tiny):
    encoder = common.new_model(None).encoder
    long, short = "the cat sat on a mat the cat sat", "the cat"
    for name in sentence_transformer.POOL:
        both = sentence_transformer.naive_encode(
            sentence_transformer.pooled(encoder, name), pd.Series([long, short])
        )
        alone = sentence_transformer.naive_encode(
            sentence_transformer.pooled(encoder, name), pd.Series([short])
        )
        same = np.allclose(both[1], alone[0], atol=1e-5)
        assert same == (name != "unmasked mean"), name


def test_findings_are_unfinished_until_all_seeds_have_run(tiny, monkeypatch):
    """From rows and predictions to a row of the ledger; a verdict comes with the last seed."""
    truth = common.codes(tiny[tiny.split == "test"].sentiment).astype(int)

    def run(job):
        right = 0.9 if job.settings["lr"] < 0.3 else 0.3
        keep = np.random.default_rng(job.seed).random(90) < right
        guess = {"sentiment": np.where(keep, truth, (truth + 1) % 3)}
        return Outcome({"valid sentiment macro F1": 0.5}, guess if job.phase == "final" else {})

    arms = {"A": Arm(run, {"lr": (0.1, 0.2)}, ""), "B": Arm(run, {"lr": (0.3, 0.4)}, "")}
    study = toy(arms=arms, seeds={16: 10})
    monkeypatch.setitem(registry.STUDIES, "toy", study)
    for arm in arms:
        registry.tune(study, DEFAULT, 16, arm)
    for seed in range(9):
        registry.final(study, DEFAULT, 16, seed, list(arms))
    assert findings.findings("toy", DEFAULT).verdict.tolist() == ["unfinished"]
    assert registry.finished(study).empty  # nobody looks before all seeds have run
    assert registry.recipes(study).empty
    registry.run("toy", DEFAULT)
    (row,) = findings.findings("toy", DEFAULT).to_dict("records")
    assert (row["verdict"], row["seeds"], row["arm"], row["rival"]) == ("holds", 10, "A", "B")
    assert row["low"] < row["low90"] < row["effect"] < row["high90"] < row["high"]
    assert row["effect"] == pytest.approx(60, abs=8)
    assert findings.findings("toy", "another backbone").empty
    assert findings.plan("toy", DEFAULT).needed.tolist() == [2]  # these toys do not vary


def test_rows_that_do_not_follow_from_the_declaration_are_found(tiny, monkeypatch):
    """The audit of the committed rows passes a study that ran, and sees each way of bending it."""
    truth = common.codes(tiny[tiny.split == "test"].sentiment)

    def run(job):
        if job.phase == "tune":
            return Outcome({"valid sentiment macro F1": job.settings["lr"]})
        guess = {"sentiment": np.roll(truth, job.seed)}
        return Outcome(common.scores(guess, common.split("test")), guess)

    arms = {name: Arm(run, {"lr": (1, 2)}, "") for name in "AB"} | {"none": Arm(run, {}, "")}
    monkeypatch.setitem(registry.STUDIES, "toy", toy(arms=arms))
    registry.run("toy", DEFAULT)
    assert findings.audit("toy", DEFAULT) == []
    path = results.RESULTS / "toy.csv"
    whole = pd.read_csv(path)
    final = whole.phase == "final"
    a, last = final & (whole.arm == "A"), whole.index == whole.index[-1]

    def bent(where, **values):
        whole.assign(**{c: whole[c].mask(where, v) for c, v in values.items()}).to_csv(
            path, index=False
        )
        return " ".join(findings.audit("toy", DEFAULT))

    assert "A: settings are not those" in bent(a, settings='{"lr":1}')
    assert "sentiment macro F1 does not follow" in bent(a, **{"sentiment macro F1": 0.9})
    assert "arms of different commits" in bent(last, commit="other")
    other = "bfloat16" if whole.precision[0] == "float32" else "float32"
    assert "runs of bfloat16 and float32" in bent(last, precision=other)
    assert "seeds are not the first" in bent(last, seed=7)
    assert "predictions are missing" in bent(last, seed=7)
    assert "a run is there twice" in bent(last, seed=0)
    assert "another seed than the tuning seeds" in bent(~final, seed=3)
    assert "has a score on test" in bent(~final, **{"domain accuracy": 0.9})


@pytest.mark.parametrize("name", list(registry.STUDIES))
def test_committed_rows_follow_from_the_declaration(name):
    assert findings.audit(name) == []


def test_the_gap_and_the_curve(tiny, monkeypatch):
    def run(job):
        truth = common.codes(common.split("test").sentiment)
        if job.phase == "tune":
            return Outcome({"valid sentiment macro F1": 0.5})
        found = common.scores({"sentiment": truth}, common.split("test"))
        own = {"training sentiment macro F1": 0.9 if job.settings["lr"] < 3 else 0.7}
        details = {"curve": {0.5: 0.6, 1: 0.5 + job.seed / 100}}
        return Outcome(found | own, {"sentiment": truth}, details)

    arms = {"A": Arm(run, {"lr": (1, 2)}, ""), "B": Arm(run, {"lr": (3, 4)}, "")}
    study = toy(arms=arms, comparisons=(Comparison("11", "A", "B", "gain", "gap"),))
    monkeypatch.setitem(registry.STUDIES, "toy", study)
    registry.run("toy", DEFAULT)
    (row,) = findings.findings("toy", DEFAULT).to_dict("records")
    assert row["effect"] == pytest.approx(20)
    assert findings.curve(study, DEFAULT, 16, "A").loc[1].to_dict() == {0.5: 0.6, 1.0: 0.51}
    monkeypatch.setattr(findings, "STUDIES", {"toy": study})
    assert findings.ledger(DEFAULT).p.tolist() == [row["p"]]


def test_dots_are_differences_of_scores_by_seed():
    rows = records.rows_of("few_labels").query("phase == 'final' and n == 16")
    f1 = rows.pivot(index="seed", columns="arm", values="sentiment macro F1")
    found = findings.by_seed("few_labels", DEFAULT, 16, "set probe", "full")
    assert found == pytest.approx(100 * (f1["set probe"] - f1["full"]).to_numpy(), abs=1e-3)


def test_a_cost_is_a_ratio(tiny, monkeypatch):
    """Half as long is 2 times cheaper; 3 % more is within the margin of 5 %."""
    cost = {"A": 1.0, "B": 2.0, "C": 1.03}

    def run(job, name):
        noise = {"A": 0.01, "B": 0.0, "C": -0.01}[name] * (job.seed % 3)
        return Outcome({}, details={"seconds": cost[name] * (1 + noise)})

    arms = {name: Arm(functools.partial(run, name=name), {}, "") for name in cost}
    comparisons = (
        Comparison("7", "A", "B", "practical gain", "seconds"),
        Comparison("4", "C", "A", "no loss", "seconds"),
    )
    changes = {"arms": arms, "comparisons": comparisons, "margins": {16: 0.05}, "seeds": {16: 9}}
    monkeypatch.setitem(registry.STUDIES, "toy", toy(**changes))
    registry.run("toy", DEFAULT)
    table = findings.findings("toy", DEFAULT)
    assert table.effect.tolist() == pytest.approx([1.98, 0.99], abs=0.01)
    assert table.unit.tolist() == ["times", "times"]
    assert table.margin.tolist() == pytest.approx([1.05, 1.05])
    assert table.verdict.tolist() == ["holds", "no difference"]
    assert findings.audit("toy", DEFAULT) == []


def test_a_cosine_is_compared_as_it_is(tiny, monkeypatch):
    """In hundredths, with the margin of a score; nothing is planned from validation scores."""

    def run(job):
        kept = job.settings["kept"] + 0.01 * (job.seed % 3)
        return Outcome({"valid sentiment macro F1": kept}, details={"kept": kept})

    arms = {
        "A": Arm(run, {"kept": (0.7, 0.8)}, "", fixed=("kept",)),
        "B": Arm(run, {"kept": (0.5, 0.6)}, "", fixed=("kept",)),
    }
    changes = {"arms": arms, "comparisons": (Comparison("19", "A", "B", "gain", "kept"),)}
    monkeypatch.setitem(registry.STUDIES, "toy", toy(**changes))
    registry.run("toy", DEFAULT)
    [row] = findings.findings("toy", DEFAULT).itertuples()
    assert (row.effect, row.unit, row.verdict) == (pytest.approx(20), "hundredths", "holds")
    assert findings.plan("toy", DEFAULT).empty


def test_an_axis_of_two_numbers_is_widened_and_a_fixed_one_is_not():
    arm = Arm(None, {"lr": (1e-4, 2e-4), "steps": (20, 40)}, "", fixed=("steps",))
    scored = [(settings, settings["lr"] * settings["steps"]) for settings in designs.grid(arm)]
    assert designs.beyond(arm, scored) == [{"lr": 4e-4, "steps": 40}]
    assert designs.at_edge(arm, scored) == "lr steps"  # but it is said
    whole = Arm(None, {"rank": (50, 200)}, "")
    assert designs.beyond(whole, [({"rank": 50}, 1), ({"rank": 200}, 0)]) == [{"rank": 12}]


def test_an_arm_that_came_later_may_be_of_another_commit(tiny, monkeypatch):
    def run(job):
        guess = np.zeros(90, np.int8)
        truth = common.codes(common.split("test").sentiment)
        f1 = f1_score(truth, guess, labels=[0, 1, 2], average="macro", zero_division=0)
        return Outcome({"sentiment macro F1": f1}, {"sentiment": guess})

    for later, faults in ((True, []), (False, ["n=16, seed 0: arms of different commits"])):
        arms = {"A": Arm(run, {}, ""), "B": Arm(run, {}, "", later=later)}
        monkeypatch.setitem(registry.STUDIES, "toy", toy(arms=arms, seeds={16: 1}))
        for arm, commit in (("A", "aaaaaaa"), ("B", "bbbbbbb")):
            monkeypatch.setattr(records, "COMMIT", commit)
            registry.run("toy", DEFAULT, arms=[arm])
        assert findings.audit("toy", DEFAULT) == faults


@pytest.mark.parametrize("labels", [(0, 2), (0, 1, 2)])
def test_a_head_says_what_a_probe_says_but_for_what_does_not_vary(labels):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)), rng.choice(labels, 60)
    fitted, head = few_labels.logistic(0.1).fit(x, y), torch.nn.Linear(4, 3)
    few_labels.into_head(fitted, head)
    said = head(torch.tensor(x).float()).softmax(-1).detach().numpy()
    assert said[:, labels] == pytest.approx(fitted.predict_proba(x), abs=1e-5)
    x[:, 2] *= 1e-33  # as one of MiniLM's
    few_labels.into_head(few_labels.logistic(0.1).fit(x, y), head)
    assert head.weight[:, 2].tolist() == [0, 0, 0]
    assert head.weight.abs().max() < 10


def test_rates_over_time_are_matched_and_constant_after_the_first_epoch(tiny, monkeypatch):
    """And the curve, its area and the rise of the loss are what the validation sentences say."""
    given, shares = [], []

    def watched_fit(model, frame, *, epochs, batch_size, optimizer, scheduler, callbacks, **_):
        given.append(sorted({group["lr"] for group in optimizer.param_groups}))
        steps = epochs * -(-len(frame) // batch_size)
        schedule = scheduler(optimizer, steps)
        shares[:] = []
        for step in range(1, steps + 1):
            shares.append(schedule.get_last_lr()[0] / schedule.base_lrs[0])
            optimizer.step()
            schedule.step()
            callbacks[0].on_step(types.SimpleNamespace(model=model, step=step))

    monkeypatch.setattr(over_time, "fit", watched_fit)
    for name in ("decay 1", "decay 0.8", "as written"):
        arm = over_time.OVER_TIME.arms[name]
        found = arm.run(Job(DEFAULT, 90, 0, designs.grid(arm)[0], "tune"))
    level, (*layers, heads), written = given
    assert level == pytest.approx([7e-5, 7e-4])
    assert np.exp(np.log(layers).mean()) == pytest.approx(7e-5)
    assert heads == pytest.approx(7e-4)
    assert written[-2:] == pytest.approx([1e-4, 1e-3])
    every = len(shares) // over_time.EPOCHS
    assert shares == pytest.approx([min(1, (i + 1) / every) for i in range(len(shares))])
    curve, loss = found.details["curve"], found.details["loss"]
    assert list(curve) == list(range(1, over_time.EPOCHS + 1))
    assert found.details["area"] == pytest.approx(np.mean(list(curve.values())), abs=1e-4)
    assert found.details["rise"] == pytest.approx(loss[8] - min(loss.values()), abs=1e-4)
    kept = {"study": "over_time", "phase": "tune", "backbone": DEFAULT, "corpus": designs.RATED}
    for seed, score in ((1000, 0.4), (1001, 0.6)):
        own = {"n": 500, "arm": "decay 1", "settings": records.compact({"lr": 1e-4}), "seed": seed}
        details = {"curve": {1: score, 2: score + 0.1}, "area": score, "rise": 0.1, "kept": 0.5}
        valid = dict.fromkeys(over_time.OVER_TIME.validation, score)
        records.keep(kept | own | valid | {"details": records.compact(details)})
    assert over_time.tuning("decay 1").loc[1e-4].to_dict() == pytest.approx({1: 50, 2: 60})
    course = over_time.course(records.rows_of("over_time").query("arm == 'decay 1'"))
    assert course.x.tolist() == [1, 2]
    assert course.value.tolist() == pytest.approx([50, 60])
    assert (course.low < course.value).all()


def test_drift_is_from_the_pretrained_self(tiny):
    job = Job(None, 0, 0, {})
    model = common.model_of(job)
    at_rest = bake_off.drift(job, model)
    assert at_rest["kept"] == 1
    assert at_rest["other"] < at_rest["nearest"] <= 1
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    moved = bake_off.drift(job, model)
    assert moved["kept"] < 0.9
    assert moved["other"] == at_rest["other"]  # of the pretrained encoder


def test_a_run_on_the_second_corpus_sees_nothing_of_the_first(tiny):
    """Its sentences, its labels, its heads; what the tweets are about is their domain."""
    topics = TOPICS
    job = Job(DEFAULT, 20, 0, {"layers": "last", "C": 0.01}, corpus="crowd tweets")
    for rows in (common.training_rows(job), common.asked_rows(job)):
        assert tuple(rows.domain.cat.categories) == topics
        assert set(rows.domain) <= set(topics)
    model = common.model_of(job)
    assert tuple(model.tasks["domain"].labels) == topics
    own = Job(DEFAULT, 20, 0, job.settings)
    assert tuple(common.model_of(own).tasks["domain"].labels) == tuple(DOMAINS)
    few_labels.set_probe(own)  # what is kept from one corpus is not taken for the other
    found = few_labels.set_probe(job)
    truth = common.codes(common.split("test", "crowd tweets").domain)
    assert found.scores["domain accuracy"] == pytest.approx(
        (found.predictions["domain"] == truth).mean()
    )
    assert found.predictions["domain"].max() > len(DOMAINS) - 1


def test_every_label_of_both_corpora_is_known():
    for corpus, load in (
        ("rated sentences", mtst.load_rated_sentences),
        ("crowd tweets", mtst.load_crowd_tweets),
    ):
        rows = common.split("train", corpus)
        assert len(rows) == (load().split == "train").sum()
        for task in common.TASKS:
            assert rows[task].notna().all()
            assert set(rows[task]) == set(common.labels_of(task, corpus))


def test_the_ledger_says_what_was_declared_later(tiny, monkeypatch):
    """A comparison that was, and one of an arm that was."""

    def run(job):
        return Outcome({}, details={"seconds": 1.0 + 0.01 * (job.seed % 3)})

    arms = {name: Arm(run, {}, "", later=name == "C") for name in "ABC"}
    pairs = (("A", "B", False), ("A", "B", True), ("A", "C", False))
    comparisons = tuple(
        Comparison("7", arm, rival, "no loss", "seconds", later=later)
        for arm, rival, later in pairs
    )
    changes = {"arms": arms, "comparisons": comparisons, "margins": {16: 0.05}, "seeds": {16: 9}}
    monkeypatch.setitem(registry.STUDIES, "toy", toy(**changes))
    registry.run("toy", DEFAULT)
    assert findings.findings("toy", DEFAULT).later.tolist() == ["", "yes", "yes"]


def test_a_study_on_another_corpus_is_the_same_but_for_its_arms_and_sizes():
    for again in second_corpus.ON_TWEETS:
        study = registry.STUDIES[again.name.removesuffix("_tweets")]
        together = {name: dataclasses.replace(study.arms[name], later=False) for name in again.arms}
        assert again.arms == together
        assert again.comparisons
        assert set(again.comparisons) <= set(study.comparisons)
        assert (again.metric, again.validation) == (study.metric, study.validation)
        assert again.margins == {n: study.margins[n] for n in again.seeds}
        assert again.corpus == "crowd tweets" != study.corpus


def test_on_other_splits_settings_are_taken_over_and_splits_are_counted(tiny, monkeypatch):
    """Of four seeds on two splits, two effects: the mean of each split's two seeds."""
    truth = {f"rated sentences, split {k}": np.arange(90 + k) % 3 for k in (1, 2)}
    monkeypatch.setattr(
        findings,
        "split",
        lambda name, corpus: pd.DataFrame(
            {
                "sentiment": pd.Categorical.from_codes(truth[corpus], SENTIMENTS),
                "group": range(len(truth[corpus])),
            }
        ),
    )

    def run(job):
        if job.phase == "tune":
            lr = job.settings["lr"]  # by sentiment alone the other would be chosen
            return Outcome({"valid sentiment macro F1": -lr, "valid domain accuracy": 3 * lr})
        guess = truth[job.corpus].copy()
        if job.settings["lr"] == 4:  # arm B: of each label as many wrong as the seed says
            guess[: 3 * (1 + job.seed)] = (guess[: 3 * (1 + job.seed)] + 1) % 3
        f1 = f1_score(truth[job.corpus], guess, average="macro")
        return Outcome({"sentiment macro F1": f1}, {"sentiment": guess})

    rates = {"A": (1, 2), "B": (3, 4)}
    arms = {name: Arm(run, {"lr": rate}, "", fixed=("lr",)) for name, rate in rates.items()}
    again = toy(
        arms=arms,
        name="again",
        corpus=designs.REGROUPED,
        seeds={16: 4},
        tuned_by={16: "toy"},
        splits=2,
    )
    both = ("valid sentiment macro F1", "valid domain accuracy")
    monkeypatch.setitem(registry.STUDIES, "toy", toy(arms=arms, validation=both))
    monkeypatch.setitem(registry.STUDIES, "again", again)
    with pytest.raises(ValueError, match="'A' is not tuned for n=16"):
        registry.run("again")
    for arm in arms:
        registry.tune(registry.STUDIES["toy"], DEFAULT, 16, arm)
    registry.run("again")
    rows = records.rows_of("again")
    assert (rows.phase == "final").all()
    assert set(rows.settings) == {'{"lr":2}', '{"lr":4}'}
    names = [f"rated sentences, split {k}" for k in (1, 2, 1, 2)]
    assert rows.query("arm == 'A'").sort_values("seed").corpus.tolist() == names
    wrong = np.array([(1 + 3) / 2 / 91 * 3, (2 + 4) / 2 / 92 * 3])  # shares, by split
    (row,) = findings.findings("again").to_dict("records")
    assert row["effect"] == pytest.approx(100 * wrong.mean(), abs=0.2)
    assert (row["seeds"], row["corpus"]) == (2, "rated sentences, other splits")
    assert len(findings.by_seed("again", DEFAULT, 16, "A", "B")) == 4
    assert findings.audit("again") == []
    rows.assign(**{"sentiment macro F1": 0.5}).to_csv(results.RESULTS / "again.csv", index=False)
    assert "does not follow from the predictions" in findings.audit("again")[0]


def test_every_class_weighs_the_same_as_in_the_probes(tiny):
    """The loss of a linear head is what scikit-learn minimises with balanced classes."""
    model = common.new_model(None)
    given = ["neutral"] * 5 + ["positive"] * 35  # and no negative
    frame = tiny[:40].assign(sentiment=pd.Categorical(given, categories=SENTIMENTS))
    learner = common.Balanced(model, frame).eval()
    assert learner.weights["sentiment"][1:].tolist() == pytest.approx([4, 40 / 70])
    inputs = model.encoder.collate(model.encoder.tokenize(frame.text.tolist())[0])
    truth = common.codes(frame.sentiment).astype(int)
    with torch.no_grad():
        output = learner(*inputs, {"sentiment": torch.tensor(truth)})
        plain = model.eval()(*inputs).logits["sentiment"].log_softmax(-1)
    surprise = -plain[range(40), truth].numpy()
    weights = compute_sample_weight("balanced", frame.sentiment)
    assert output.loss.item() == pytest.approx((weights * surprise).mean(), rel=1e-5)
    some = torch.tensor([*truth[:20], *[-100] * 20])  # a row without a label counts for nothing
    with torch.no_grad():
        half = learner(*inputs, {"sentiment": some}).loss.item()
    assert half == pytest.approx((weights * surprise)[:20].mean(), rel=1e-5)
    before = model.heads["sentiment"].weight.clone()
    mtst.fit(learner, frame, epochs=1, progress=False)
    assert not torch.equal(model.heads["sentiment"].weight, before)  # it trains the model


def test_distillation_keeps_a_tasks_answers(tiny):
    model, rows = common.new_model(None), tiny[:8]
    learner = forgetting.KeepsAnswers(model, rows, "domain", 1.0).eval()
    assert not any("before" in name for name, _ in learner.named_parameters())
    inputs = model.encoder.collate(model.encoder.tokenize(rows.text.tolist())[0])
    labels = {"sentiment": torch.tensor(common.codes(rows.sentiment).astype(int))}
    same = learner(*inputs, labels)
    assert same.losses["keep domain"].item() == pytest.approx(0, abs=1e-6)  # nothing moved yet
    with torch.no_grad():
        model.encoder.backbone.encoder.layer[2].output.dense.weight.normal_()
    moved = learner(*inputs, labels)
    assert moved.losses["keep domain"] > 1e-4
    assert moved.loss.item() == pytest.approx(sum(moved.losses.values()).item())


def test_balanced_log_loss():
    truth, probability = np.array([0, 0, 0, 1]), np.array([[0.5, 0.5]] * 3 + [[0.75, 0.25]])
    expected = (np.log(2) + np.log(4)) / 2
    assert common.balanced_log_loss(truth, probability) == pytest.approx(expected)


def test_labels_of_the_tasks_that_sentiment_shares_with():
    rows = common.split("train")
    assert tasks.labels(rows, "domain").tolist() == rows.domain.tolist()
    assert set(tasks.labels(rows, "rating")) == set(corpora.RATING_STEPS)
    commas = tasks.labels(rows, "comma")
    assert set(rows.text[commas == "some"].str.count(",") > 0) == {True}
    assert not rows.text[commas == "none"].str.contains(",").any()
    assert pd.Series(commas).value_counts(normalize=True).between(0.3, 0.7).all()
    lots = tasks.labels(rows, "lot")  # of what is a sentence's own they tell nothing
    assert lots.tolist() == tasks.labels(rows[::-1], "lot")[::-1].tolist()
    for task in ("sentiment", "domain"):
        table = pd.crosstab(rows[task], lots)
        assert chi2_contingency(table).pvalue > 0.01


def test_both_corpora_side_by_side_are_the_ledgers():
    shown = findings.on_both("bake_off")
    ledger = claims.ledger().query("study == 'bake_off_tweets' and n == 200")
    assert len(ledger) > 1
    for row in ledger.itertuples():
        own = shown.loc[row.metric, row.arm, row.rival, 200]
        assert own["tweets"] == f"{findings.as_text(row)}: {row.row_verdict}"
        assert own["carries over"] == row.carries_over
    gained = shown.loc["sentiment macro F1", "gradual", "two rates", 200]
    assert gained["rated sentences"].startswith("+2.0, 1.2 to 2.7: ")
    assert gained["tweets − rated"].startswith("−2.0, ")


def test_an_effect_as_text_has_real_minus_signs():
    row = pd.Series({"effect": -0.06, "low": -1.25, "high": 10})
    assert findings.as_text(row) == "−0.1, −1.2 to 10.0"
    assert findings.as_text(row.replace(-0.06, -0.04)).startswith("0.0, ")
