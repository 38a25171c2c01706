"""The ledger of the claims that the series puts to the test: data/claims.csv. `python -m
mtst_utils.experiments.claims` measures it anew.

An experiment is written as `study | setting | against | metric`: the mean over seeds of the metric
in one setting, compared with the other seed by seed, with its 95 % t interval. The metric may be a
difference, `one metric - another`; `against` may be `-`, for a setting that is not compared;
`setting @ backbone` is that setting on another backbone. Effects are turned so that above zero is
what the claim promises.
"""

import pandas as pd

from mtst_utils.experiments import plots, results
from mtst_utils.experiments.corpora import DATA
from mtst_utils.experiments.intervals import t_interval
from mtst_utils.packaged_weights import DEFAULT

LEDGER = DATA / "claims.csv"
# How a setting is compared with the other, by unit: points are hundredths of a score.
UNITS = dict.fromkeys(("points", "hundredths"), lambda a, b: 100 * (a - b)) | {
    "times": lambda a, b: a / b
}
UNITS |= dict.fromkeys(("value", "cosine", "largest change"), lambda a, b: a - b)


def ledger():
    """data/claims.csv: number, claim, experiment, backbone, effect, unit, low, high, seeds,
    verdict, notebook; every claim on the default backbone, and below it on another one where that
    was measured. A claim that "depends" has two rows on one backbone: two settings with opposite
    clear signs.
    """
    return pd.read_csv(LEDGER)


def names(table):
    """What each row of the ledger is called in a figure: [N] strings."""
    return [
        f"{row.number}, {_apart(row)}" if again else f"{row.number}: {row.claim}"
        for row, again in zip(table.itertuples(), table.duplicated("number"), strict=True)
    ]


def _apart(row):
    """What sets a row of a claim apart from others of it: another backbone, or the settings that it
    depends on.
    """
    study, setting, against, _ = row.experiment.split(" | ")
    return (
        f"{study}: {setting} against {against}" if row.backbone == DEFAULT else f"on {row.backbone}"
    )


def measure(experiment, backbone, unit):
    """An experiment's effect, low, high, seeds, from the committed rows. Raises ValueError if it
    does not follow from them.
    """
    study, setting, against, metric = experiment.split(" | ")
    rows = results.load(study)
    if study == "benchmarks":  # a run takes the part of a setting, a repeat that of a seed
        seconds = {
            "metric": "seconds",
            "value": rows.seconds / rows.sentences,
            "backbone": backbone,
        }
        rows = rows.assign(setting=rows.question + ": " + rows.run, seed=rows.repeat, **seconds)
    table = rows.pivot_table(
        index=["backbone", "setting", "seed"], columns="metric", values="value"
    )
    metric, _, minus = metric.partition(" - ")

    def of(setting):
        name, _, other = setting.partition(" @ ")
        try:
            own = table.loc[(other or backbone, name)]
            return (own[metric] - (own[minus] if minus else 0)).dropna()
        except KeyError as missing:
            raise ValueError(
                f"{study}.csv has nothing of {missing} for {experiment!r} on {backbone}"
            ) from None

    value = of(setting)
    each = UNITS[unit](value, 0 * value if against == "-" else of(against)).dropna()
    effect, low, high = t_interval(each)
    return {"effect": effect, "low": low, "high": high, "seeds": len(each)}


def written(row):
    """An effect with its interval and unit, as text."""
    digits = ".1f" if row.unit in ("points", "hundredths") else ".3g"
    effect, low, high = (
        f"{value:{digits}}".replace("-", "−") for value in (row.effect, row.low, row.high)
    )
    return f"{effect} {row.unit} [{low}, {high}]"


def markdown(table):
    """The ledger as a Markdown table: number, claim, effect with its interval, seeds, verdict,
    notebook.
    """
    lines = [
        "| | claim | effect, with 95 % interval | seeds | verdict | shown in |",
        "|---|---|---|---|---|---|",
    ]
    for row, again in zip(table.itertuples(), table.duplicated("number"), strict=True):
        number, claim = ("", f"… {_apart(row)}") if again else (row.number, row.claim)
        claim += f" ({_apart(row)})" if row.verdict == "depends" and not again else ""
        lines.append(
            f"| {number} | {claim} | {written(row)} | {row.seeds} | *{row.verdict}* | "
            f"{row.notebook} |"
        )
    return "\n".join(lines)


def main():
    table = ledger()
    for i, row in table.iterrows():
        table.loc[i, ["effect", "low", "high", "seeds"]] = measure(
            row.experiment, row.backbone, row.unit
        )
    table.to_csv(LEDGER, index=False)
    shown = table[table.backbone == DEFAULT]
    axes = plots.verdicts(
        shown.set_axis(names(shown)),
        [None if row.unit == "points" else written(row) for row in shown.itertuples()],
        "Pretraining delivers what it promises; of most recipes no gain shows",
        "points of the score; above zero is what the claim promises; 95 % t interval over seeds",
    )
    axes.figure.savefig(LEDGER.with_suffix(".png"), dpi=100, bbox_inches="tight")
    print(markdown(table))


if __name__ == "__main__":
    main()
