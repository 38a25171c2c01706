"""The ledger of claims follows from the committed runs, and whatever quotes it says the same."""

import csv
import functools
import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mtst_utils.experiments import (
    claims,
    designs,
    findings,
    headlines,
    registry,
    regrouped,
    results,
)
from mtst_utils.experiments.results import DEFAULT
from mtst_utils.experiments.verdicts import VERDICTS

ROOT = Path(__file__).parent.parent
LEDGER = claims.ledger()
BESIDE = claims.beside()
README = (ROOT / "README.md").read_text()
QUOTES = list(csv.DictReader((Path(__file__).parent / "quotes.csv").read_text().splitlines()))


# Hundreds of quotes stand in few files and rest on few studies: each is read once.
tables, findings_of = functools.cache(claims._table), functools.cache(findings.findings)


@functools.cache
def text_of(path):
    if path.suffix == ".md":
        return path.read_text()
    return "\n".join(
        cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"
    )


def test_all_claims_are_there():
    wanted = """number claim source arm rival metric unit margin effect low high low90 high90 mde
    seeds corpus backbone p_holm verdict notebook""".split()
    assert list(LEDGER.columns)[: len(wanted)] == wanted
    assert LEDGER.number.drop_duplicates().tolist() == list(range(1, 27))
    assert set(LEDGER.verdict) | set(LEDGER.row_verdict) <= set(VERDICTS)
    assert set(LEDGER[LEDGER.backbone == DEFAULT].number) == set(range(1, 27))
    for notebook in LEDGER.notebook:
        assert len(list((ROOT / "notebooks").glob(f"{notebook[:2]}_*.ipynb"))) == 1


def test_the_ledger_follows_from_the_runs():
    """Every number and every verdict of the committed file, computed anew."""
    again = claims.measured()
    numbers = again.select_dtypes("number").columns
    assert np.allclose(again[numbers], LEDGER[numbers], rtol=1e-9, atol=1e-12, equal_nan=True)
    words = [name for name in again if name not in numbers]
    text = again[words].astype("string").fillna("")
    assert text.equals(LEDGER[words].astype("string").fillna(""))


def test_no_verdict_is_given_by_hand():
    """An arm of the ledger has a rule and a margin, or is so by construction, or cannot tell."""
    by_construction = set(LEDGER[LEDGER.row_verdict == "by construction"].number)
    assert by_construction == {6, 8, 14}
    assert (LEDGER[LEDGER.number.isin(by_construction)].effect == 0).all()
    without = LEDGER[LEDGER.margin.isna() & (LEDGER.row_verdict != "by construction")]
    assert set(without.row_verdict) == {"cannot tell"}
    splits = LEDGER.corpus == designs.REGROUPED  # of these the splits are counted, not the seeds
    assert (LEDGER[(LEDGER.tuned == "yes") & ~splits].seeds >= 10).all()
    assert (LEDGER[splits].seeds == regrouped.SPLITS).all()


def test_all_tests_are_corrected_together():
    """Holm's correction is over the claims and what was tested beside them, as one family."""
    family = claims.family()
    assert len(family) == len(LEDGER) + len(BESIDE)
    assert set(BESIDE.claim) <= set(claims.BESIDE.values())
    tests = int(family.p.notna().sum())
    assert tests > 100
    assert family.p_holm.min() == pytest.approx(min(1, tests * family.p.min()))
    equivalent = family[family.row_verdict == "no difference"]
    assert len(equivalent)
    assert equivalent.survives.isna().all()


def test_few_seeds_give_no_verdict():
    few = LEDGER[LEDGER.seeds < 5]
    assert len(few)
    assert set(few.row_verdict) == {"cannot tell"}


def test_depends_names_two_settings_with_opposite_verdicts():
    found = LEDGER[LEDGER.verdict == "depends"]
    assert len(found)
    for _, rows in found.groupby(["number", "backbone", "corpus"]):
        nothing = (rows.unit == "times").astype(float)  # of a ratio 1, else 0
        broken = rows[(rows.row_verdict == "does not hold") & (rows.high < nothing)]
        kept = rows[rows.row_verdict.isin(["holds", "no difference"])]
        assert set(broken.metric) & set(kept.metric)
        assert not rows.duplicated(["arm", "rival", "metric", "n"]).any()


def toy(metric="F1", rival="without", **options):
    return claims.Quantity("toy", "with, 1", rival, metric, backbone="b", **options)


def test_measure_compares_seed_by_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    for seed, (a, b) in enumerate([(0.5, 0.4), (0.7, 0.5), (0.9, 0.6)]):
        results.append("toy", "b", "with, 1", seed, 10, {"F1": a, "training, F1": 1.0}, 1)
        results.append("toy", "b", "without", seed, 10, {"F1": b, "training, F1": 0.9}, 1)
    results.append(
        "toy", "b", "without", 3, 10, {"F1": 0.0, "training, F1": 0.0}, 1
    )  # no partner: left out
    points = toy().measure()
    assert points["effect"] == pytest.approx(20)
    assert (points["low"], points["high"]) == pytest.approx(
        (20 - 24.84, 20 + 24.84), abs=0.01
    )  # t(2) = 4.303, sd 10
    assert points["seeds"] == 3
    assert toy(unit="times").measure()["effect"] == pytest.approx((1.25 + 1.4 + 1.5) / 3)
    gap = toy("training, F1", minus="F1").measure()
    assert gap["effect"] == pytest.approx(100 * ((0.5 - 0.5) + (0.3 - 0.4) + (0.1 - 0.3)) / 3)
    assert toy(rival="", unit="value").measure()["effect"] == pytest.approx(0.7)
    assert toy(rival="", unit="value", constant=0.2).measure()["effect"] == pytest.approx(0.5)
    other = toy(rival="without", rival_metric="training, F1").measure()
    assert other["effect"] == pytest.approx(100 * (0.7 - 0.9))
    results.append("toy", "c", "with, 1", 0, 10, {"F1": 0.1}, 1)
    results.append("toy", "c", "with, 1", 1, 10, {"F1": 0.3}, 1)
    assert toy(rival="with, 1", rival_backbone="c").measure()["effect"] == pytest.approx(40)
    drawn = claims.effects({("here", "F1"): toy(), ("there", "F1"): toy(unit="times")})
    assert drawn.x.tolist() == ["here"] * 3 + ["there"] * 3
    assert drawn.value.tolist() == pytest.approx([10, 20, 30, 1.25, 1.4, 1.5])
    assert results.points("toy", "b").loc[("with, 1", 1), "F1"] == pytest.approx(70)
    with pytest.raises(ValueError, match="toy.csv has nothing of .*'other'"):
        toy(rival="other").measure()


def test_the_ledger_is_shown():
    text = (ROOT / "data" / "README.md").read_text()
    assert claims.markdown(LEDGER) in text
    assert claims.markdown(BESIDE) in text
    for image, file in (("data/headlines.png", "README.md"), ("claims.png", "data/README.md")):
        assert f"({image})" in (ROOT / file).read_text()
        with Image.open((ROOT / file).parent / image) as drawn:
            assert drawn.width <= (900 if "head" in image else 1500)  # README: legible at 900


@pytest.mark.parametrize("table", [LEDGER, BESIDE], ids=["ledger", "beside"])
def test_a_claims_own_line_has_the_first_corpus_verdict(table):
    lines = claims.markdown(table).splitlines()
    for claim, rows in table.groupby("claim"):
        first = rows[(rows.corpus == "rated sentences") & (rows.backbone == DEFAULT)]
        (own,) = [line for line in lines if f"**{claim}**" in line]
        assert f"**{first.verdict.iloc[0]}**" in own


def test_headlines_are_rows_of_the_ledger():
    shown = headlines.headlines()
    assert list(dict.fromkeys(shown.advice)) == list(headlines.ADVICE)
    for row in shown.itertuples():
        number, arm, n = headlines.ADVICE[row.advice]
        same = LEDGER[(LEDGER.number == number) & (LEDGER.arm == arm) & (LEDGER.n == n)]
        same = same[(same.corpus == row.corpus) & (same.backbone == DEFAULT)].iloc[0]
        assert (row.effect, row.low, row.high) == (same.effect, same.low, same.high)
        assert row.verdict == same.row_verdict
        assert ("°" in row.mark) == (same.tuned == "no")
        assert ("†" in row.mark) == (str(same.survives) == "False")
        tuned = LEDGER[(LEDGER.number == number) & (LEDGER.tuned == "yes") & (LEDGER.n == n)]
        assert not ("°" in row.mark and len(tuned))  # the fair comparison is the one that is drawn
        drawn = [place[1:] for place in headlines.ADVICE.values() if place[0] == number]
        fair = LEDGER[(LEDGER.number == number) & (LEDGER.tuned == "yes")]
        if len(fair):
            assert set(drawn) & set(zip(fair.arm, fair.n, strict=True))


def test_what_has_not_run_and_what_is_still_at_an_edge_is_said():
    text = (ROOT / "data" / "README.md").read_text()
    assert f"tuned with, arms, settings): {registry.still_at_an_edge()}.\n" in text
    assert f"(study, training sentences, arms): {registry.not_run()}.\n" in text


def test_an_arm_that_was_added_later_is_not_drawn_without_the_one_declared_first():
    for number, arm, n in headlines.ADVICE.values():
        rows = LEDGER[(LEDGER.number == number) & (LEDGER.n == n) & (LEDGER.tuned == "yes")]
        rows = rows[rows.corpus == "rated sentences"]
        if (rows.later[rows.arm == arm] == "yes").all():
            first = set(rows.arm[rows.later != "yes"])
            drawn = {a for k, a, _ in headlines.ADVICE.values() if k == number}
            assert first & drawn, (number, arm, n)


def test_headlines_show_every_corpus_on_which_the_advice_was_tried():
    shown = headlines.headlines()
    tried = LEDGER[(LEDGER.backbone == DEFAULT) & (LEDGER.corpus == "crowd tweets")]
    tried = set(zip(tried.number, tried.arm, tried.n, strict=True)) & set(headlines.ADVICE.values())
    advice = shown.advice[shown.corpus == "crowd tweets"].map(headlines.ADVICE)
    assert set(advice) == tried
    both = "seven on two corpora, five on one"  # the figure's words in README
    assert (len(set(advice)), len(headlines.ADVICE) - len(set(advice))) == (7, 5)
    assert both in README
    texts = [text.get_text() for text in headlines.figure().texts]
    assert texts.count("no difference") == (shown.verdict == "no difference").sum()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_notebooks_tables_of_claims_say_what_the_ledger_says(path):
    here = LEDGER[(LEDGER.backbone == claims.DEFAULT) & (LEDGER.corpus == claims.RATED)]
    verdicts = here.groupby("number").verdict.first()
    said = re.findall(
        r"^(?:\| |- \*\*)(\d+)(?: \||\*\*,).*?[|:] \*([a-z ]+)\*", text_of(path), re.MULTILINE
    )
    assert {int(number) for number, _ in said} == set(
        LEDGER.number[LEDGER.notebook.str.startswith(path.stem[:2])]
    )
    for number, verdict in said:
        assert verdict == verdicts[int(number)], number
    assert "claims.ledger()" in path.read_text()


def formatted(measured, digits, signed):
    effect, low, high = (
        f"{measured[name]:.{digits}f}".replace("-", "−") for name in ("effect", "low", "high")
    )
    zero = not effect.strip("−0.")
    sign = "+" if signed and measured["effect"] > 0 and not zero else ""
    return f"{sign}{effect.strip('−') if zero else effect} [{low}, {high}]"


def of_the_runs_before(quote):
    where = {name: v for name, v in quote.items() if name not in ("file", "quote", "n")}
    return claims.Quantity(**where).measure()


def of_a_declared_study(quote):
    found = findings_of(quote["study"], quote["backbone"])
    same = found[["arm", "rival", "metric"]] == [quote[name] for name in ("arm", "rival", "metric")]
    row = found[same.all(axis=1) & (found.n == int(quote["n"]))].iloc[0]
    assert row.verdict != "unfinished"
    return row.to_dict()


@pytest.mark.parametrize("quote", QUOTES, ids=lambda quote: f"{quote['file']}: {quote['quote']}")
def test_a_quoted_number_follows_from_the_runs(quote, monkeypatch):
    monkeypatch.setattr(claims, "_table", tables)
    measured = of_a_declared_study(quote) if quote["n"] else of_the_runs_before(quote)
    digits = len(re.match(r"[+−]?\d+\.?(\d*)", quote["quote"])[1])
    expected = formatted(measured, digits, quote["unit"] == "points")
    assert quote["quote"] in (expected, expected.partition(" [")[0])
    path = ROOT / (quote["file"] if quote["file"].endswith(".md") else f"notebooks/{quote['file']}")
    assert quote["quote"] in text_of(path)


@pytest.mark.parametrize(
    "path",
    ["README.md", "data/README.md", *sorted(p.name for p in (ROOT / "notebooks").glob("0*.ipynb"))],
)
def test_no_interval_is_quoted_without_its_experiment(path):
    file = ROOT / (path if path.endswith(".md") else f"notebooks/{path}")
    text = text_of(file)
    for table in (LEDGER, BESIDE):
        text = text.replace(claims.markdown(table), "")
    said = re.findall(r"[+−]?\d+\.\d+ \[[^\]]*\]", text)
    quotes = pd.DataFrame(QUOTES)
    known = set(quotes.quote[quotes.file == path])
    assert [
        quote for quote in said if quote not in known and quote.replace("+", "") not in known
    ] == []


def test_what_readmes_findings_say_without_an_interval_follows_from_the_ledger():
    found = pd.concat([LEDGER, BESIDE])
    found = found[found.backbone == DEFAULT].set_index(["arm", "rival", "metric", "n", "corpus"])
    first, second = "rated sentences", "crowd tweets"

    def row(arm, rival, metric, n, corpus):
        part = found.loc[[(arm, rival, metric, n, corpus)]]
        assert len(part) == 1
        return part.iloc[0]

    text = " ".join(README.split())
    assert "it is two points ahead on the first and level on the second" in text
    ahead = [
        row("distillation", "backbone frozen", "mean of both", 500, c) for c in (first, second)
    ]
    assert f"{ahead[0].effect:.0f}" == "2"
    assert ahead[0].low > 0
    assert -ahead[1].margin < ahead[1].low90
    assert ahead[1].high90 < ahead[1].margin
    assert (
        "distillation) beats a frozen head in the mean of both tasks on both corpora († on the"
        in text
    )
    distilled = [
        row("distillation", "head A frozen alone", "mean of both", 500, c) for c in (first, second)
    ]
    assert [one.survives for one in distilled] == [False, True]
    for corpus in (first, second):
        assert row("distillation", "head A frozen alone", "mean of both", 500, corpus).low > 0
        assert row("tuned probe", "full", "sentiment macro F1", 128, corpus).high < 0
        assert row("set probe", "full", "sentiment macro F1", 512, corpus).high < 0
    assert row("set probe", "full", "sentiment macro F1", 128, first).row_verdict == "no difference"
    assert row("set probe", "full", "sentiment macro F1", 128, second).high < 0
    assert "gain a point with 200 sentences of the first † (at other rates than their rival" in text
    decay = row("decay 0.95", "two rates", "sentiment macro F1", 200, first)
    assert (f"{decay.effect:.0f}", decay.survives) == ("1", False)
    assert "Gains that matter are excluded on the second, and with 4,000 of the first." in text
    for n, corpus in ((200, second), (4000, first)):
        decay = row("decay 0.95", "two rates", "sentiment macro F1", n, corpus)
        assert decay.row_verdict == "does not hold"
        assert decay.high90 < decay.margin
    copied = row("MiniLM", "MiniLM, 2e-5", "sentiment macro F1", 200, first)
    assert f"the same 200 sentences end {copied.effect:.0f} points lower" in text


def test_what_is_said_of_other_splits_follows_from_the_ledger():
    found = pd.concat([LEDGER, BESIDE])
    same = ["number", "claim", "arm", "rival", "metric", "n", "backbone"]
    first = found[found.corpus == designs.RATED]
    others = found[found.corpus == designs.REGROUPED].merge(first, on=same, suffixes=("", "_first"))
    assert len(others) == 6
    assert (others.seeds == regrouped.SPLITS).all()
    tie = others.arm == "set probe"
    assert (others[~tie].effect * others[~tie].effect_first > 0).all()
    assert (others[tie][["row_verdict", "row_verdict_first"]] == "no difference").all(axis=None)
    assert not (others.survives == True).any()  # noqa: E712 (three of them have no test)
    assert others.carries_over.value_counts().to_dict() == {"yes": 4, "cannot tell": 2}
    unclear = others[others.carries_over == "cannot tell"].set_index("arm")
    probe, decay = unclear.loc["tuned probe"], unclear.loc["decay 0.95"]
    assert ((unclear.low90 > -unclear.margin) & (unclear.high90 < unclear.margin)).all()
    said = (
        "Five effects kept their sign, and the set probe's tie stayed one. Four verdicts carry "
        "over; of two it cannot be told, "
        f"since the searched probe's lag behind full training with {probe.n:.0f} labels "
        f"({-probe.effect:.1f} points in place of {-probe.effect_first:.1f}) and the decay's lead "
        f"with {decay.n:.0f} ({decay.effect:.1f} in place of {decay.effect_first:.1f}) are within "
        "the margin of two there. With five splits none survives Holm."
    )
    assert said in " ".join((ROOT / "data" / "METHOD.md").read_text().split())
    short = (
        "On five other splits of the first corpus five headline effects kept their sign, and a "
        "tie stayed one"
    )
    third = next((ROOT / "notebooks").glob("03_*.ipynb"))
    for path in (ROOT / "README.md", third):
        assert short in " ".join(text_of(path).split())


def test_a_claim_by_hand_as_data_readme_shows_it(monkeypatch, capsys):
    (example,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "data" / "README.md").read_text(), re.DOTALL
    )
    monkeypatch.chdir(ROOT)
    exec(compile(example, "data/README.md", "exec"), {})
    rows = LEDGER.query("study == 'tasks' and n == 3000 and arm == 'joint'").set_index("metric")
    printed = float(capsys.readouterr().out)
    assert printed == pytest.approx(rows.effect["sentiment macro F1"], abs=1e-4)
    assert f"{printed:.1f}" == "-0.9"
