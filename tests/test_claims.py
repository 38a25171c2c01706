"""The ledger of claims follows from the committed runs, and whatever quotes it says the same."""

import csv
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from mtst_utils.experiments import claims, results
from mtst_utils.experiments.results import DEFAULT

ROOT = Path(__file__).parent.parent
LEDGER = claims.ledger()
README = (ROOT / "README.md").read_text()
QUOTES = list(csv.DictReader((Path(__file__).parent / "quotes.csv").read_text().splitlines()))


def text_of(path):
    if path.suffix == ".md":
        return path.read_text()
    return "\n".join(
        cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"
    )


def test_all_claims_are_there():
    assert (
        list(LEDGER.columns)
        == "number claim experiment backbone effect unit low high seeds verdict notebook".split()
    )
    assert LEDGER[LEDGER.backbone == DEFAULT].number.drop_duplicates().tolist() == list(
        range(1, 27)
    )
    assert set(LEDGER.verdict) <= {
        "holds",
        "holds partly",
        "depends",
        "does not hold here",
        "not distinguishable",
    }
    for notebook in LEDGER.notebook:
        assert len(list((ROOT / "notebooks").glob(f"{notebook[:2]}_*.ipynb"))) == 1


@pytest.mark.parametrize(
    "row", list(LEDGER.itertuples()), ids=lambda row: f"{row.number}-{row.backbone}"
)
def test_every_number_follows_from_the_runs(row):
    measured = claims.measure(row.experiment, row.backbone, row.unit)
    assert (row.effect, row.low, row.high) == pytest.approx(
        [measured[name] for name in ("effect", "low", "high")], rel=1e-9, abs=1e-12
    )
    assert row.seeds == measured["seeds"] >= 3


@pytest.mark.parametrize(
    "row", list(LEDGER.itertuples()), ids=lambda row: f"{row.number}-{row.backbone}"
)
def test_the_verdict_is_what_the_interval_says(row):
    """Effects are turned so that above `nothing` is what the claim promises; "partly" is explained
    in the notebook.
    """
    if (
        row.unit == "largest change" or "before, training" in row.experiment
    ):  # the claim promises that nothing moves
        assert (row.effect, row.low, row.high, row.verdict) == (0, 0, 0, "holds")
        return
    nothing = {"points": 0, "hundredths": 0, "times": 1, "cosine": 0.9999}[row.unit]
    if row.verdict == "holds":
        assert row.low > nothing
    elif row.verdict == "not distinguishable":
        assert row.low <= nothing <= row.high
    elif row.verdict == "does not hold here":
        assert row.high <= nothing


def test_depends_is_two_settings_with_opposite_clear_signs():
    for (_, _), rows in LEDGER.groupby(["number", "backbone"]):
        if "depends" in set(rows.verdict):
            assert len(rows) == 2
            assert set(rows.verdict) == {"depends"}
            assert rows.low.max() > 0 > rows.high.min()
            settings = rows.experiment.str.rpartition(" | ")[0]
            assert settings.nunique() == 2  # both are named, where the ledger is shown
            for study, setting, against in settings.str.split(" | ", regex=False):
                assert f"{study}: {setting} against {against}" in claims.markdown(LEDGER)
        else:
            assert len(rows) == 1


def test_measure_compares_seed_by_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    for seed, (a, b) in enumerate([(0.5, 0.4), (0.7, 0.5), (0.9, 0.6)]):
        results.append("toy", "b", "with, 1", seed, 10, {"F1": a, "training, F1": 1.0}, 1)
        results.append("toy", "b", "without", seed, 10, {"F1": b, "training, F1": 0.9}, 1)
    results.append(
        "toy", "b", "without", 3, 10, {"F1": 0.0, "training, F1": 0.0}, 1
    )  # no partner: left out
    points = claims.measure("toy | with, 1 | without | F1", "b", "points")
    assert points["effect"] == pytest.approx(20)
    assert (points["low"], points["high"]) == pytest.approx(
        (20 - 24.84, 20 + 24.84), abs=0.01
    )  # t(2) = 4.303, sd 10
    assert points["seeds"] == 3
    assert claims.measure("toy | with, 1 | without | F1", "b", "times")["effect"] == pytest.approx(
        (1.25 + 1.4 + 1.5) / 3
    )
    gap = claims.measure("toy | with, 1 | without | training, F1 - F1", "b", "points")
    assert gap["effect"] == pytest.approx(100 * ((0.5 - 0.5) + (0.3 - 0.4) + (0.1 - 0.3)) / 3)
    assert claims.measure("toy | with, 1 | - | F1", "b", "value")["effect"] == pytest.approx(0.7)
    results.append("toy", "c", "with, 1", 0, 10, {"F1": 0.1}, 1)
    results.append("toy", "c", "with, 1", 1, 10, {"F1": 0.3}, 1)
    assert claims.measure("toy | with, 1 | with, 1 @ c | F1", "b", "points")[
        "effect"
    ] == pytest.approx(40)
    with pytest.raises(ValueError, match="toy.csv has nothing of .*'other'"):
        claims.measure("toy | with, 1 | other | F1", "b", "points")


def test_readme_shows_the_ledger():
    assert claims.markdown(LEDGER) in README
    assert "data/claims.png" in README
    assert (ROOT / "data" / "claims.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_notebooks_tables_of_claims_say_what_the_ledger_says(path):
    verdicts = (
        LEDGER[LEDGER.backbone == DEFAULT].drop_duplicates("number").set_index("number").verdict
    )
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


@pytest.mark.parametrize("quote", QUOTES, ids=lambda quote: f"{quote['file']}: {quote['quote']}")
def test_a_quoted_number_follows_from_the_runs(quote):
    measured = claims.measure(quote["experiment"], quote["backbone"], quote["unit"])
    digits = len(re.match(r"[+−]?\d+\.?(\d*)", quote["quote"])[1])
    expected = formatted(measured, digits, quote["unit"] == "points")
    assert quote["quote"] in (expected, expected.partition(" [")[0])
    path = ROOT / ("README.md" if quote["file"] == "README.md" else f"notebooks/{quote['file']}")
    assert quote["quote"] in text_of(path)


@pytest.mark.parametrize(
    "path",
    [ROOT / "README.md", *sorted((ROOT / "notebooks").glob("0*.ipynb"))],
    ids=lambda p: p.stem,
)
def test_no_interval_is_quoted_without_its_experiment(path):
    said = re.findall(
        r"[+−]?\d+\.\d+ \[[^\]]*\]", text_of(path).replace(claims.markdown(LEDGER), "")
    )
    table = pd.DataFrame(QUOTES)
    known = set(table.quote[table.file == path.name])
    assert [
        quote for quote in said if quote not in known and quote.replace("+", "") not in known
    ] == []
