"""The experiments of notebook 04, on a tiny backbone: what they measure is what they are called."""

import contextlib
import functools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_backbone, tiny_tokenizer
from test_transfer import tiny  # noqa: F401 (a fixture: every study on a tiny backbone)
from torch import nn

import mtst_utils as mtst
from mtst_utils.backbones import DEFAULT
from mtst_utils.experiments import (
    findings,
    intervals,
    layer_rates,
    over_time,
    records,
    registry,
    results,
    studies,
)


@pytest.fixture
def small(tiny, monkeypatch):  # noqa: F811
    monkeypatch.setattr(layer_rates, "split", layer_rates.new_model.__globals__["split"])
    monkeypatch.setattr(layer_rates, "load_triplets", lambda: mtst.load_triplets()[:5])
    return tiny


def test_every_setting_is_a_run(small):
    expected = {
        "domain accuracy",
        "sentiment macro F1",
        "training, domain accuracy",
        "triplets right",
        "correlation of similarities",
        "valid, sentiment macro F1",
        "distance to pretrained, block 2",
        "cosine to before, embeddings",
        "loss, last 10 steps",
    }
    for study in ("layerwise_many", "layerwise_few"):
        for setting in list(studies.STUDIES[study])[::6] + list(studies.STUDIES[study])[25:]:
            run = studies.STUDIES[study][setting]
            _, metrics = run.func(None, 0, "full", **run.keywords | {"n": 64, "epochs": 1})
            assert expected <= set(metrics), setting
            assert all(np.isfinite(value) for value in metrics.values()), setting
    for setting, run in studies.STUDIES["probes"].items():
        _, metrics = run(None, 0, "quick")
        assert len(metrics) == 16, setting  # two splits, two tasks, four layers


def test_the_registry_says_what_it_runs():
    for study, n in (("layerwise_many", None), ("layerwise_few", 200)):
        for setting, run in studies.STUDIES[study].items():
            assert f"decay {run.keywords['decay']:g}" in setting
            assert f"rate {run.keywords.get('lr', 2e-4):g}" in setting
            assert run.keywords.get("mirrored", False) == setting.startswith("upside down")
            assert run.keywords.get("gradual", False) == setting.startswith("gradual")
            assert run.keywords.get("n") == n


def test_upside_down_has_the_same_rates_in_the_opposite_order():
    net = mtst.MultiTaskModel(
        mtst.SentenceEncoder(tiny_backbone(), tiny_tokenizer()), [mtst.Task("a", ("x", "y"))]
    )
    groups = mtst.layerwise_lr_groups(net, 1e-4, 0.5, head_lr=1e-3)
    right, wrong = (
        mtst.lr_table(g).set_index("name").lr for g in (groups, layer_rates.upside_down(groups))
    )
    assert wrong[:4].tolist() == right[:4].tolist()[::-1]
    assert wrong["heads"] == right["heads"] == 1e-3
    assert groups[0]["lr"] == right["embeddings"]  # the groups given are as they were


def test_distance_is_relative_and_per_layer():
    backbone = tiny_backbone()
    start = layer_rates.weights_of(backbone)
    with torch.no_grad():
        for parameter in backbone.encoder.layer[1].parameters():
            parameter.mul_(1.25)
    moved = layer_rates.distance(backbone, start)
    assert moved["distance to pretrained, block 1"] == pytest.approx(0.25, rel=1e-6)
    assert (
        moved["distance to pretrained, block 0"] == moved["distance to pretrained, embeddings"] == 0
    )


def test_a_smaller_rate_moves_less(small):
    """The rule itself, and that upside down is upside down: which end moves more."""
    _, right = layer_rates.layerwise_run(None, 0, "full", decay=0.3, n=64)
    _, wrong = layer_rates.layerwise_run(None, 0, "full", decay=0.3, n=64, mirrored=True)
    for metrics, slow, fast in ((right, "block 0", "block 2"), (wrong, "block 2", "block 0")):
        assert (
            metrics[f"distance to pretrained, {slow}"]
            < 0.5 * metrics[f"distance to pretrained, {fast}"]
        )


def test_every_layer_is_the_pooled_state_of_each_layer(tiny_encoder):
    sentences = ["the cat sat", "nobody expected the train to be late today", "a mat"]
    every = layer_rates.EveryLayer(tiny_encoder.backbone, tiny_encoder.tokenizer).encode(sentences)
    assert every.shape == (3, 4 * 32)
    np.testing.assert_allclose(every[:, -32:], tiny_encoder.encode(sentences), atol=1e-6)
    alone = layer_rates.EveryLayer(tiny_encoder.backbone, tiny_encoder.tokenizer).encode(
        sentences[:1]
    )
    np.testing.assert_allclose(every[:1], alone, atol=1e-6)  # padding is left out in every layer


def test_grid(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    for decay in (1, 0.8):
        for rate in (2e-5, 5e-4):
            for seed in range(3):
                score = 0.5 + 100 * rate + (0.1 + 0.01 * seed) * (decay != 1)
                results.append(
                    "toy",
                    results.DEFAULT,
                    f"decay {decay:g}, rate {rate:g}",
                    seed,
                    10,
                    {"F1": score},
                    1,
                )
    for seed in (0, 1):
        results.append(
            "toy", results.DEFAULT, "upside down, decay 0.8, rate 2e-05", seed, 10, {"F1": 9}, 1
        )
    grid = layer_rates.grid("toy", "F1")
    assert grid.index.tolist() == [1, 0.8]
    assert grid.columns.tolist() == [2e-5, 5e-4]
    assert grid.loc[0.8, 5e-4] == pytest.approx(0.66)
    cells = layer_rates.grid_against_one("toy", "F1")
    assert cells.effect.tolist() == pytest.approx([0.11, 0.11])
    assert (cells.seeds == 3).all()
    assert ((cells.low > 0.08) & (cells.high < 0.14)).all()


def test_committed_grids_are_whole():
    """What notebook 04 rests on: every cell of both grids, five seeds, and no run with a number
    that is none.
    """
    for study in ("layerwise_many", "layerwise_few"):
        rows = results.load(study).query("backbone == @results.DEFAULT")
        assert set(studies.STUDIES[study]) == set(rows.setting)
        assert (rows.groupby("setting").seed.nunique() >= 5).all()
        assert np.isfinite(rows.value).all()


def test_counts_in_notebook_4_follow_from_the_grids(monkeypatch):
    """What is said there without an interval: how many cells are clear of decay 1, and how far the
    base rate moves a score.
    """
    monkeypatch.setattr(results, "load", functools.cache(results.load))  # for all cells
    path = next((Path(__file__).parent.parent / "notebooks").glob("04_*.ipynb"))
    cells = json.loads(path.read_text())["cells"]
    notebook = " ".join(" ".join("".join(cell["source"]).split()) for cell in cells)
    grids = ("layerwise_many", "layerwise_few")
    cells = {
        metric: pd.concat([layer_rates.grid_against_one(study, metric) for study in grids])
        for metric in ("sentiment macro F1", "domain accuracy")
    }
    above = {metric: int((table.low > 0).sum()) for metric, table in cells.items()}
    below = {metric: int((table.high < 0).sum()) for metric, table in cells.items()}
    assert above["sentiment macro F1"] == 0
    clear = cells["sentiment macro F1"].query("high < 0")
    assert clear["base rate"].max() == 1e-4
    assert f"all {len(clear)} are at 1e-4 or less" in notebook
    assert f"{below['sentiment macro F1']} of 40 cells" in notebook
    assert "are clearly worse in sentiment and none clearly better" in notebook
    worse, better = below["domain accuracy"], above["domain accuracy"]
    assert f"For domain {worse} are clearly worse, {better} better." in notebook
    spread = [100 * np.ptp(layer_rates.grid(study, "sentiment macro F1").loc[1]) for study in grids]
    assert f"by {spread[0]:.0f} points on 4,000 sentences and by {spread[1]:.0f} on 200" in notebook
    moved = [100 * np.ptp(layer_rates.grid(study, "domain accuracy").loc[1]) for study in grids]
    assert all(3 <= points <= 4 for points in moved)  # "in domain ... three to four"
    few = 100 * layer_rates.grid(grids[1], "domain accuracy")[2e-5]
    assert 10 < few[1] - few[0.65] < 11  # "more than ten of domain"
    peaks = [100 * layer_rates.grid(study, "sentiment macro F1").max(axis=1) for study in grids]
    assert max(map(np.ptp, peaks)) < 1  # "where it is good, all come together"
    plain = "decay 1, rate 0.0002"
    mirrored = "upside down, decay 0.65, rate 0.0002"
    slow_top = results.paired(grids[0], plain, mirrored, "sentiment macro F1")
    rate = results.paired(grids[0], plain, "decay 1, rate 5e-05", "sentiment macro F1")
    said = "With no decay sentiment is {:.1f} above upside down; most of that, {:.1f}, is what"
    assert said.format(100 * slow_top["effect"], 100 * rate["effect"]) in notebook
    few_rate = results.paired(grids[1], plain, "decay 1, rate 5e-05", "sentiment macro F1")
    assert f"points on 4,000 sentences and {100 * few_rate['effect']:.1f} on 200" in notebook
    for study, least, most in zip(
        grids, (0.9, 0.3), (3.1, 2.3), strict=True
    ):  # "a point ... two to three"
        for rate in ("0.0002", "0.0001"):
            arms = f"decay 1, rate {rate}", f"decay 0.65, rate {rate}"
            lost = 100 * results.paired(study, *arms, "sentiment macro F1")["effect"]
            assert least < lost < most
    top = "distance to pretrained, block 5"  # "even the top block ... by a fifth"
    further = results.paired(grids[0], "decay 0.65, rate 0.0002", plain, top)
    assert further["effect"] / results.load(grids[0]).query(
        "metric == @top and setting == @plain and backbone == @DEFAULT"
    ).value.mean() == pytest.approx(0.2, abs=0.02)
    for study in grids:  # "at 0.95 no interval is clear of zero", upside down against right way up
        for metric in cells:
            name = "decay 0.95, rate 0.0002"
            found = results.paired(study, name, f"upside down, {name}", metric)
            assert found["low"] < 0 < found["high"]


def test_what_notebook_4_says_of_eight_epochs_follows_from_the_rows():
    notebook = _text()
    score, loss = (over_time.tuning("decay 1", of=of) for of in ("curve", "loss"))
    assert "after three epochs it is 2e-4, from five on 7e-5" in notebook
    assert score[3].idxmax() == 2e-4
    assert set(score.loc[:, 5:].idxmax()) == {7e-5}
    assert "lowest after three epochs at the latest" in notebook
    assert loss.idxmin(axis=1).max() == 3
    grown = loss[8] / loss.min(axis=1)
    assert f"to {grown.min():.1f} to {grown.max():.1f} times what it was" in notebook
    assert loss.loc[:2e-4, 8].is_monotonic_increasing  # "up to 2e-4 the faster the larger the rate"
    assert loss.loc[4e-4, 8] < loss.loc[2e-4, 8]
    rises = 100 * (loss[8] - loss.min(axis=1))
    words = f"in tuning {rises[1e-4]:.0f} becomes {rises[7e-5]:.0f}"
    assert f"the same step of rate, 1e-4 to 7e-5, does as much: {words}" in notebook
    tried = registry.tuned(over_time.OVER_TIME, DEFAULT, 500, "decay 1")
    valid = {settings["lr"]: 100 * score for settings, score in tried}
    assert 0.05 < valid[1e-4] - valid[7e-5] < 0.15  # "by a tenth of a point"
    rose = (score[8] - score[3])[[7e-5, 1e-4]]  # "still rises meanwhile, by one to three points"
    assert rose.between(1, 3).all()
    assert set(over_time.tuning("decay 0.8").idxmax()[1:]) == {
        7e-5,
        1e-4,
    }  # "about 1e-4 throughout"
    other = over_time.tuning("decay 0.95", of="loss").loc[7e-5]
    assert f"and 0.95 at that rate has {100 * (other[8] - other.min()):.0f}" in notebook
    found = findings.findings("over_time").set_index(["number", "arm", "rival", "metric"])
    pair, turned = ("decay 0.95", "decay 1"), ("decay 1", "decay 0.95")
    rises = found.loc[("24", *turned, "rise")]
    assert f"rises less, by {rises.effect:.0f} hundredths of a nat †" in notebook
    assert "which is the area under the curve, is within a point" in notebook
    assert found.loc[("25", *pair, "area")].verdict == "does not hold"
    better = found.loc[("23", *pair, "sentiment macro F1")]
    words = f"{better.effect:.1f} points on test for 0.95, between {better.low:.1f} and"
    strong = ("decay 0.8", "decay 1")
    words += (
        f" {better.high:.1f}, and +{found.loc[('23', *strong, 'sentiment macro F1')].effect:.1f}"
    )
    assert words.replace("-", "−") + " for 0.8" in notebook
    area = found.loc[("25", *strong, "area")]
    assert f"cannot be told for 0.8, +{area.effect:.1f} (on" in notebook
    assert {found.loc[(c, *strong, m)].verdict for c, m in (("25", "area"), ("26", "kept"))} == {
        "cannot tell"
    }
    assert found.loc[("24", "decay 1", "decay 0.8", "rise")].verdict == "cannot tell"
    kept = [found.loc[("26", *p, "kept")].effect for p in (pair, strong)]
    words = "that 0.95 keeps ({:+.1f}), nor 0.8 ({:+.1f}), which".format(*kept)
    assert words.replace("-", "−") in notebook
    chosen = {arm: registry.chosen(over_time.OVER_TIME, DEFAULT, 500, arm)[0]["lr"] for arm in pair}
    assert chosen == {"decay 0.95": 7e-5, "decay 1": 1e-4}
    assert registry.chosen(over_time.OVER_TIME, DEFAULT, 500, "decay 0.8")[0]["lr"] == 1e-4
    rows = registry.finished(over_time.OVER_TIME)
    assert rows["training sentiment macro F1"].min() == pytest.approx(0.976, abs=5e-4)
    wide = rows.pivot(index="seed", columns="arm", values="sentiment macro F1")
    low = wide.mean(axis=1).idxmin()
    _, *ends = intervals.spread_ratio(wide["decay 0.8"].drop(low), wide["decay 1"].drop(low))
    assert "may be anything from {:.2f} to {:.2f}.".format(*ends) in notebook
    domain = rows.pivot(index="seed", columns="arm", values="domain accuracy")
    domain = 100 * (domain["decay 0.8"] - domain["decay 1"])
    sentiment = found.loc[("23", *strong, "sentiment macro F1")].effect
    both = f"sentiment {sentiment:+.1f}", f"domain {domain.mean():+.1f}, and how"
    (said,) = re.findall(r"It cannot be told: (sentiment .*? and how) near", notebook)
    assert said.startswith(both[0])
    assert said.endswith(both[1])
    _, low, high = intervals.t_interval(domain)
    assert low < 0 < high
    level = found.loc[("21", "as written", "decay 0.95", "sentiment macro F1")]
    assert level.verdict == "cannot tell"  # "level, as far as ten seeds can tell"
    assert level.low < 0 < level.high


def _text():
    path = next((Path(__file__).parent.parent / "notebooks").glob("04_*.ipynb"))
    cells = json.loads(path.read_text())["cells"]
    return " ".join(" ".join("".join(cell["source"]) for cell in cells).split())


def test_what_notebook_4_says_of_equal_mean_rates_follows_from_the_grids():
    """Interpolated as its own cell does it: a straight line over the rate's logarithm."""

    def gains(study, decay, mean):
        rows = results.load(study, DEFAULT).query("metric == 'sentiment macro F1'")
        score = rows[rows.seed < 5].pivot(index="setting", columns="seed", values="value")
        rates = np.array([2e-5, 5e-5, 1e-4, 2e-4, 5e-4])
        own = score.loc[[f"decay {decay:g}, rate {rate:g}" for rate in rates]]
        logs = np.log(rates * decay**3)
        found = own.apply(lambda seed: np.interp(np.log(mean), logs, seed))
        return 100 * (found - score.loc[f"decay 1, rate {mean:g}"])

    def gain(study, decay, mean):
        return gains(study, decay, mean).mean()

    def interval(study, decay):
        return intervals.t_interval(gains(study, decay, 2e-4))[1:]

    few, many = "layerwise_few", "layerwise_many"
    for decay in (0.95, 0.9, 0.8):  # "level with it: within a point on 4,000, within one on 200"
        assert all(abs(bound) < 1 for study in (few, many) for bound in interval(study, decay))
    gained = gain(many, 0.65, 5e-5), gain(few, 0.65, 5e-5), gain(many, 0.8, 1e-4)
    said = "at 5e-5 0.65 gains {:.1f} points on 4,000 sentences and {:.1f} on 200, at 1e-4 0.8"
    assert said.format(*gained) + f" gains {gained[2]:.1f} on 4,000" in _text()


def test_no_declared_study_chose_a_larger_rate_than_notebook_4_says():
    """Of arms that train the whole of a pretrained encoder."""
    found = {}
    for study in registry.STUDIES.values():
        for n, arm in [(size, arm) for size in study.seeds for arm in study.arms_at(size)]:
            if arm not in ("LoRA", "SetFit", "random weights"):
                try:
                    settings, _ = registry.chosen(study, DEFAULT, n, arm)
                except ValueError:  # has not run
                    continue
                found |= {(study.name, n, arm): settings["lr"]} if "lr" in settings else {}
    assert len(found) > 30
    assert max(found.values()) == 2e-4
    few = {found[name, 128, "full"] for name in ("few_labels", "few_labels_tweets")}
    assert few == {5e-5, 2e-4}  # "128 labels 5e-5 on one corpus and 2e-4 on the other"
    own = {}
    for study in ("layerwise_many", "layerwise_few"):
        names = [f"valid, {metric}" for metric in ("sentiment macro F1", "domain accuracy")]
        valid = sum(layer_rates.grid(study, name) for name in names)
        arms = [f"decay {decay:g}, rate {valid.loc[decay].idxmax():g}" for decay in (0.9, 1)]
        own[study] = 100 * results.paired(study, *arms, "sentiment macro F1")["effect"]
    said = "each at its best, {:+.1f} on 4,000 and {:+.1f} on 200, neither clear"
    assert said.format(*own.values()).replace("-", "−") in _text()


def test_what_notebook_4_says_of_decays_at_the_best_rate_follows_from_the_rows():
    """Beside no decay at a base rate of 2e-4, and which rates 200 sentences chose."""

    def paired(study, decay, metric):
        arms = f"decay {decay:g}, rate 0.0002", "decay 1, rate 0.0002"
        return {
            name: 100 * results.paired(study, *arms, metric)[name]
            for name in ("effect", "low", "high")
        }

    many, few = "layerwise_many", "layerwise_few"
    kept = [paired(s, d, "correlation of similarities") for s in (many, few) for d in (0.8, 0.95)]
    assert all(one["low"] > 0 for one in kept)  # "each clear by itself"
    said = "0.95 +{:.1f}; with 200 sentences +{:.1f} and +{:.1f}, each clear by itself"
    assert said.format(*(one["effect"] for one in kept[1:])) in _text()
    scores = [paired(s, d, "sentiment macro F1") for s in (many, few) for d in (0.8, 0.95, 0.65)]
    assert all(one["low"] < 0 < one["high"] for one in scores)  # "at the same score", "neither"
    lost = -scores[2]["effect"], -scores[5]["effect"]
    assert "costs {:.1f} and {:.1f} beside 2e-4 (neither clear)".format(*lost) in _text()
    rate = {
        arm: registry.chosen(registry.STUDIES["bake_off"], DEFAULT, 200, arm)[0]["lr"]
        for arm in ("decay 0.95", "one rate", "two rates")
    }
    assert rate == {"decay 0.95": 1e-4, "one rate": 2e-4, "two rates": 2e-4}
    assert "with 200 sentences 0.95 chose it, no decay 2e-4" in _text()


def test_what_notebooks_3_and_4_say_of_decay_with_4000_sentences_follows_from_the_rows():
    found = findings.findings("bake_off").query("n == 4000 and arm == 'decay 0.95'")
    found = found.set_index("metric")
    assert found.high["sentiment macro F1"] < 0.2  # "a gain of a fifth of a point is excluded"
    assert -4.5 < found.effect["kept"] < -3.5  # "four hundredths further"
    assert found.verdict["test area"] == "does not hold"
    study = registry.STUDIES["bake_off"]
    (own, tried), (rival, _) = (
        registry.chosen(study, DEFAULT, 4000, arm) for arm in ("decay 0.95", "two rates")
    )
    assert own["lr"] == rival["lr"] == 1e-4
    assert own["head_lr"] == rival["head_lr"] / 4
    assert (tried["tries"], tried["at_edge"]) == (9, "head_lr")  # "nine settings", "the lowest"


def test_what_notebooks_3_and_4_say_of_equal_settings_follows_from_the_rows():
    rows = records.rows_of("bake_off").query("phase == 'tune' and n == 200")
    valid = rows.set_index(["settings", "seed", "arm"])["valid sentiment macro F1"].unstack("arm")
    ahead = 100 * (valid["decay 0.95"] - valid["two rates"]).dropna().groupby("seed").mean()
    assert "ahead by {:.1f}, {:.1f} and {:.1f}".format(*ahead) in _text()
    means = 100 * valid.groupby("settings").mean()
    assert means["decay 0.95"].max() - means["two rates"].max() == pytest.approx(0, abs=0.01)
    assert f"the two were level, at {means['decay 0.95'].max():.1f} each" in _text()
    gains = (means["decay 0.95"] - means["two rates"]).dropna()
    chosen = [means[arm].idxmax() for arm in ("decay 0.95", "two rates")]
    assert gains.idxmax() not in chosen  # "most of it at rates that neither chose"
    assert gains.drop(chosen).sum() > 0.7 * gains.sum()
    same = [
        registry.chosen(registry.STUDIES["bake_off"], DEFAULT, 200, arm)[0]
        for arm in ("decay 0.8", "two rates")
    ]
    assert same[0] == same[1]  # "0.8 and two rates chose the same rates"
    study, seeds = registry.STUDIES["bake_off"], list(range(10))
    arms = ("decay 0.8", "two rates")
    sides = [findings.values_of(study, DEFAULT, 200, arm, "domain accuracy", seeds) for arm in arms]
    apart = findings.Estimate(*map(float, intervals.two_way(sides[0] - sides[1])), *sides[0].shape)
    low, high = apart.interval()
    said = f"(Of domain {100 * apart.effect:+.1f} [{100 * low:.1f}, {100 * high:.1f}]; looked at"
    assert said in _text()
    rows = records.rows_of("bake_off").query("phase == 'tune' and n == 4000 and arm == 'two rates'")
    means = 100 * rows.groupby("settings")["valid sentiment macro F1"].mean()
    assert json.loads(means.idxmax()) == {"lr": 1e-4, "head_lr": 2.5e-4}
    heads = means[means.index.str.contains('"lr":0.0001}') & ~means.index.str.contains("0.004")]
    assert len(heads) == 3
    assert np.ptp(heads) < 0.2  # "from ... to 1e-3 within a fifth of a point of each other"
    best = {rate: means[f'{{"head_lr":0.001,"lr":{rate}}}'] for rate in ("0.0001", "0.0002")}
    assert 0.8 < best["0.0001"] - best["0.0002"] < 1  # "up to a point lower with heads alike"


def test_the_end_of_training_decides_what_is_ahead_on_the_way():
    """Claim 25's tuned rows on 200 sentences: without the last of four scores neither is clear."""

    def on_the_way(study, arm):
        rows = records.rows_of(study).query("phase == 'final' and n == 200")
        rows = rows[rows.arm.isin([arm, "two rates"])]
        curve = pd.DataFrame([json.loads(text)["curve"] for text in rows.details])
        curve = curve.set_index(pd.MultiIndex.from_frame(rows[["arm", "seed"]])).drop(columns="1")
        behind = 100 * (curve.loc["two rates"] - curve.loc[arm]).mean(axis=1)
        return intervals.t_interval(-behind)

    for arm in ("decay 0.95", "decay 0.8"):
        _, low, high = on_the_way("bake_off", arm)
        assert low < 0 < high
    without, _, high = on_the_way("bake_off_tweets", "decay 0.95")
    assert high < 0  # "clear by itself"
    found = findings.findings("bake_off_tweets").set_index(["number", "arm", "metric"])
    found = found.loc[("25", "decay 0.95", "test area")]
    assert found.verdict == "cannot tell"
    said = f"0.95 is at {found.effect:.1f}, which cannot be told (without the end {without:.1f},"
    assert said.replace("-", "−") in _text()
    assert f"on tweets {found.effect:.1f}, which cannot be told".replace("-", "−") in _text()


def test_schedules_that_draw_rates_together_are_those_named_in_notebook_4():
    schedules = torch.optim.lr_scheduler
    made = {
        "OneCycleLR": lambda optimizer: schedules.OneCycleLR(optimizer, 1e-3, total_steps=20),
        "CyclicLR": lambda optimizer: schedules.CyclicLR(optimizer, 1e-5, 1e-3),
        "CosineAnnealingLR": lambda optimizer: schedules.CosineAnnealingLR(
            optimizer, 20, eta_min=1e-6
        ),
        "ReduceLROnPlateau": lambda optimizer: schedules.ReduceLROnPlateau(
            optimizer, min_lr=1e-5, patience=1
        ),
        "LinearLR": schedules.LinearLR,
    }
    for name, make in made.items():
        groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": rate} for rate in (1e-4, 1e-5)]
        optimizer = torch.optim.AdamW(groups)
        schedule = make(optimizer)
        for _ in range(20):
            optimizer.step()
            schedule.step(*[1.0] * (name == "ReduceLROnPlateau"))
        top, bottom = (group["lr"] for group in optimizer.param_groups)
        assert (top / bottom == pytest.approx(10)) == (name == "LinearLR"), name
        assert name in _text() or name == "LinearLR"


@pytest.mark.parametrize(
    "schedule",
    [
        "torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=101)",
        "torch.optim.lr_scheduler.CyclicLR(optimizer, 1e-5, 1e-3)",
        "torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100, eta_min=1e-6)",
        "torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=1e-5, patience=1)",
        "torch.optim.lr_scheduler.StepLR(optimizer, 30)",
    ],
)
def test_the_check_of_notebook_4_finds_every_schedule_that_draws_rates_together(tiny, schedule):  # noqa: F811
    """Its own two cells, with another schedule in place of the warm-up."""
    path = next((Path(__file__).parent.parent / "notebooks").glob("04_*.ipynb"))
    sources = {c["id"]: "".join(c["source"]) for c in json.loads(path.read_text())["cells"]}
    cell = sources["cell-48"]
    assert cell.count("mtst.warmup_linear(optimizer, total_steps=100)") == 1
    cell = cell.replace("mtst.warmup_linear(optimizer, total_steps=100)", schedule)
    if "Plateau" in schedule:
        cell = cell.replace("schedule.step()", "schedule.step(1.0)")
    names = {"mtst": mtst, "torch": torch, "np": np, "model": layer_rates.new_model(None)}
    exec(cell, names)
    with (
        pytest.raises(AssertionError, match="a group's rate went its own way")
        if ("StepLR" not in schedule)
        else contextlib.nullcontext()
    ):
        exec(sources["cell-50"], names)
