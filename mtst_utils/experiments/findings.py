"""From a declared study's rows and predictions to the ledger's: effect, intervals, verdict.

`python -m mtst_utils.experiments.findings` prints them. Taught in data/METHOD.md.
"""

import json

import numpy as np
import pandas as pd

from mtst_utils.backbones import DEFAULT
from mtst_utils.experiments import records
from mtst_utils.experiments.common import codes, split
from mtst_utils.experiments.designs import TUNING_SEEDS, Comparison, Study, best
from mtst_utils.experiments.intervals import (
    Estimate,
    accuracy_of,
    apart,
    group_values,
    in_unit,
    macro_f1_of,
    of_seeds,
    seeds_needed,
    two_way,
)
from mtst_utils.experiments.registry import STUDIES, chosen, declared, tuned
from mtst_utils.experiments.verdicts import carries_over, p_value, verdict

# A metric by name: the mean of these (task, score). A frontier's point is judged by both tasks.
METRICS = {
    "sentiment macro F1": (("sentiment", macro_f1_of),),
    "domain accuracy": (("domain", accuracy_of),),
    "mean of both": (("sentiment", macro_f1_of), ("domain", accuracy_of)),
    # How much better a model does on the sentences it was trained on.
    "gap": (("sentiment", macro_f1_of),),
}
LEDGER = [
    "number",
    "claim",
    "source",
    "arm",
    "rival",
    "metric",
    "unit",
    "margin",
    "effect",
    "low",
    "high",
    "low90",
    "high90",
    "mde",
    "seeds",
    "corpus",
    "backbone",
    "p",
    "verdict",
    "study",
    "n",
    "seed_se",
    "group_se",
    "sign",
    "later",
]


def common_seeds(study: Study, backbone: str, n: int, arms: tuple[str, ...]) -> list[int]:
    """The seeds that all these arms have finished; only those that were declared."""
    finished = [set(_final(study, backbone, n, arm).seed) for arm in arms]
    return sorted(set.intersection(*finished) & set(range(study.wanted(n, backbone))))


def values_of(
    study: Study, backbone: str, n: int, arm: str, metric: str, seeds: list[int]
) -> np.ndarray:
    """A metric of an arm by seed and test group, [S, G], from the kept predictions. Seeds: all of
    one split.
    """
    test, parts = split("test", study.corpus_of(seeds[0])), []
    for task, score in METRICS[metric]:
        guess = records.predictions(study.name, backbone, n, arm, seeds, task)
        truth, classes = codes(test[task]), len(test[task].cat.categories)
        parts.append(group_values(truth, guess, test.group, score, classes))
    values = np.mean(parts, axis=0)
    if metric != "gap":
        return values
    rows = _final(study, backbone, n, arm).set_index("seed")
    return rows.loc[seeds, ["training sentiment macro F1"]].to_numpy() - values


def scores_of(
    study: Study, backbone: str, n: int, arm: str, metric: str, seeds: list[int]
) -> np.ndarray:
    """A metric of an arm by seed [S]; each seed on the test sentences of its own split."""
    each = ([seed] for seed in seeds) if study.splits else [seeds]
    parts = [values_of(study, backbone, n, arm, metric, own).mean(1) for own in each]
    return np.concatenate(parts)


def _final(study: Study, backbone: str, n: int, arm: str) -> pd.DataFrame:
    rows = records.rows_of(study.name)
    same = (rows.phase == "final") & (rows.backbone == backbone)
    return rows[same & (rows.n == n) & (rows.arm == arm)]


def curve(study: Study, backbone: str, n: int, arm: str) -> pd.DataFrame:
    """An arm's curve over training: sentiment macro F1 on the curve's test rows; a row a seed, a
    column a share of all steps (for a probe: a strength of regularisation, C).
    """
    rows = _final(study, backbone, n, arm).set_index("seed").details.map(json.loads)
    return pd.DataFrame({seed: found["curve"] for seed, found in rows.items()}).T.rename(
        columns=float
    )


COSTS = ("seconds", "memory")  # compared as ratios, from the details of the rows
# Compared as they are, from the details, too: a cosine, a log loss, means of curves over training
# (on validation sentences; on test sentences).
AS_THEY_ARE = dict.fromkeys(("kept", "rise"), "hundredths")
AS_THEY_ARE |= dict.fromkeys(("area", "test area"), "points")


def of_details(
    study: Study, comparison: Comparison, backbone: str, n: int, seeds: list[int]
) -> Estimate:
    """arm - rival; of a cost log(rival / arm): above zero, the arm is cheaper. The area under the
    curve on test sentences is its mean.

    Paired by seed. There are no test groups: a t interval over seeds.
    """

    def value(details: str) -> float:
        found = json.loads(details)
        if comparison.metric == "test area":
            return np.mean(list(found["curve"].values()))
        return found[comparison.metric]

    arm, rival = (
        _final(study, backbone, n, name).set_index("seed").details[seeds].map(value).to_numpy()
        for name in (comparison.arm, comparison.rival)
    )
    return of_seeds(np.log(rival / arm) if comparison.metric in COSTS else arm - rival)


def by_seed(
    name: str, backbone: str, n: int, arm: str, rival: str, metric: str = "sentiment macro F1"
) -> np.ndarray:
    """arm - rival in points [S], a seed after the other: what a figure draws as dots."""
    study = declared(name)
    seeds = common_seeds(study, backbone, n, (arm, rival))
    sides = (scores_of(study, backbone, n, one, metric, seeds) for one in (arm, rival))
    return 100 * np.subtract(*sides)


def of_splits(
    study: Study, comparison: Comparison, backbone: str, n: int, seeds: list[int]
) -> Estimate:
    """arm - rival as a mean over splits, each of them the mean of its seeds: a t interval over
    splits. Whatever is lucky about test sentences is in their spread.
    """
    arm, rival = (
        scores_of(study, backbone, n, name, comparison.metric, seeds)
        for name in (comparison.arm, comparison.rival)
    )
    splits = [study.corpus_of(seed) for seed in seeds]
    return of_seeds(pd.Series(arm - rival).groupby(splits).mean().to_numpy())


def estimate(study: Study, comparison: Comparison, backbone: str, n: int) -> Estimate | None:
    """arm - rival of a comparison (from the details: `of_details`); None while fewer than two seeds
    have both.
    """
    seeds = common_seeds(study, backbone, n, (comparison.arm, comparison.rival))
    if len(seeds) < 2:
        return None
    if study.splits:
        return of_splits(study, comparison, backbone, n, seeds)
    if comparison.metric in (*COSTS, *AS_THEY_ARE):
        return of_details(study, comparison, backbone, n, seeds)
    arm, rival = (
        values_of(study, backbone, n, name, comparison.metric, seeds)
        for name in (comparison.arm, comparison.rival)
    )
    numbers = (float(x) for x in two_way(arm - rival))
    return Estimate(*numbers, *arm.shape)


def findings(name: str, backbone: str = DEFAULT) -> pd.DataFrame:
    """One row per comparison and size that has seeds: the columns LEDGER. Scores in points,
    cosines in hundredths; costs in times, how many times the arm's the rival's is.

    The verdict is "unfinished" until all declared seeds have run: nobody looks and then goes on.
    """
    study = declared(name)
    found = (
        (n, c, estimate(study, c, backbone, n)) for n in study.seeds for c in study.comparisons
    )
    rows = [_row(study, backbone, *part) for part in found if part[2] is not None]
    return pd.DataFrame(rows, columns=LEDGER)


def as_text(row) -> str:
    """The effect of a row of `findings` with its 95 % interval: "+1.0, 0.5 to 1.6"."""
    effect = "0.0" if abs(row.effect) < 0.05 else f"{row.effect:+.1f}"
    return f"{effect}, {row.low:.1f} to {row.high:.1f}".replace("-", "−")


def on_both(name: str) -> pd.DataFrame:
    """What a study and its repetition on tweets found where both have run, side by side.

    One row a metric, arm, rival and n: either corpus' effect and verdict, the difference of the two
    effects, all as text; and whether the verdict carries over.
    """
    keys = ["metric", "arm", "rival", "n"]
    first, second = (
        findings(study).query("verdict != 'unfinished'").set_index(keys)
        for study in (name, f"{name}_tweets")
    )
    both, rows = second.index.intersection(first.index), []
    for key in both:
        rated, tweets = first.loc[key], second.loc[key]
        effect, low, high = apart(tweets, rated)
        side_by_side = {
            "tweets": f"{as_text(tweets)}: {tweets.verdict}",
            "rated sentences": f"{as_text(rated)}: {rated.verdict}",
            "tweets − rated": as_text(pd.Series({"effect": effect, "low": low, "high": high})),
            "carries over": carries_over(rated.verdict, tweets.verdict, low, high),
        }
        rows.append(side_by_side)
    return pd.DataFrame(rows, index=both)


def _row(study: Study, backbone: str, n: int, comparison: Comparison, found: Estimate) -> dict:
    units = dict.fromkeys(COSTS, "times") | AS_THEY_ARE
    unit = units.get(comparison.metric, "points")
    margin = study.margin(n, comparison.metric)
    margin = float(np.log1p(margin)) if unit == "times" else margin
    done = common_seeds(study, backbone, n, (comparison.arm, comparison.rival))
    finished = len(done) == study.wanted(n, backbone)
    arms = study.arms[comparison.arm], study.arms[comparison.rival]
    later = comparison.later or any(arm.later for arm in arms)
    return found.numbers(unit) | {
        "number": comparison.claim,
        "claim": study.question,
        "source": comparison.source,
        "arm": comparison.arm,
        "rival": comparison.rival,
        "metric": comparison.metric,
        "unit": unit,
        "margin": in_unit(margin, unit),
        "seeds": found.seeds,
        "corpus": study.corpus,
        "backbone": backbone,
        "p": p_value(found, margin, comparison.promise),
        "verdict": verdict(found, margin, comparison.promise) if finished else "unfinished",
        "study": study.name,
        "n": n,
        "later": "yes" if later else "",
        "seed_se": 100 * found.seed_se,
        "group_se": 100 * found.group_se,
    }


def plan(name: str, backbone: str = DEFAULT) -> pd.DataFrame:
    """What the tuning seeds say of the number of final seeds, per comparison and size: sd, needed,
    declared.

    sd: of the paired difference between the two arms' winners, on validation. From three seeds it
    is a rough guess: at two degrees of freedom it may be twice, or half, what it should be.
    """
    study, table = declared(name), []
    rows = records.rows_of(study.name)
    rows = rows[(rows.phase == "tune") & (rows.backbone == backbone)]
    for n, at in study.tuned_at.items():
        tunable = [name for name, arm in study.arms_at(n).items() if arm.axes]
        for comparison in study.comparisons:
            sides, pair = [], (comparison.arm, comparison.rival)
            if comparison.metric in AS_THEY_ARE or not set(pair) <= set(tunable):
                continue  # of an arm without settings nothing was tuned
            for arm in pair:
                scored = tuned(study, backbone, n, arm)
                chosen = records.compact(best(scored)) if scored else None
                own = rows[(rows.n == at) & (rows.arm == arm) & (rows.settings == chosen)]
                sides.append(own.set_index("seed")[list(study.validation)].mean(axis=1))
            paired = (sides[0] - sides[1]).dropna()
            if len(paired) > 2:
                sd = float(paired.std())
                needed = seeds_needed(sd, study.margin(n, comparison.metric))
                table.append(
                    (
                        n,
                        comparison.arm,
                        comparison.rival,
                        100 * sd,
                        needed,
                        study.wanted(n, backbone),
                    )
                )
    return pd.DataFrame(table, columns=["n", "arm", "rival", "sd", "needed", "declared"])


def ledger(backbone: str = DEFAULT) -> pd.DataFrame:
    """The findings of all declared studies, one after the other; p of those that are finished.
    Holm's correction over them and the runs of before: `claims.family`.
    """
    parts = [findings(name, backbone) for name in STUDIES]
    parts = [part for part in parts if len(part)]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=LEDGER)
    table.loc[table.verdict == "unfinished", "p"] = np.nan
    return table


def audit(name: str, backbone: str = DEFAULT) -> list[str]:
    """What in a study's rows is against its declaration; [] if nothing is.

    Tuning rows: tuning seeds, and no score on test. Final rows: declared seeds, the settings that
    the tuning rows choose, whole pairs up to the seed that is running, one commit for all arms of a
    seed, and scores that follow from the kept predictions. One precision for all runs of a size.
    """
    study, rows = declared(name), records.rows_of(name)
    rows = rows[rows.backbone == backbone]
    tuning = rows[rows.phase == "tune"]
    scored = tuning[["sentiment macro F1", "domain accuracy"]].notna().to_numpy().any()
    twice = rows.duplicated(["phase", "n", "arm", "settings", "seed"]).any()
    others = not tuning.seed.isin(TUNING_SEEDS).all()
    found = ["a run is there twice"] * bool(twice)
    found += ["a tuning row has another seed than the tuning seeds"] * others
    found += ["a tuning row has a score on test"] * bool(scored)
    for n in study.seeds:
        for arm in study.arms_at(n):
            own = _final(study, backbone, n, arm)
            if len(own):
                found += [
                    f"n={n}, {arm}: {fault}" for fault in _faults(study, backbone, n, arm, own)
                ]
    for n, part in rows.groupby("n"):
        if part.precision.nunique() > 1:
            found.append(f"n={n}: runs of {' and '.join(sorted(part.precision.unique()))}")
    together = [arm for arm in study.arms if not study.arms[arm].later]
    paired = rows[(rows.phase == "final") & rows.arm.isin(together)]
    for (n, seed), part in paired.groupby(["n", "seed"]):
        if part.commit.nunique() > 1:
            found.append(f"n={n}, seed {seed}: arms of different commits")
    return found


def _faults(study: Study, backbone: str, n: int, arm: str, own: pd.DataFrame) -> list[str]:
    """What is wrong with the final rows of one arm at one size."""
    faults, seeds = [], own.seed.tolist()
    if sorted(seeds) != list(range(len(seeds))) or len(seeds) > study.wanted(n, backbone):
        faults.append("seeds are not the first of those declared")
    try:
        settings = records.compact(chosen(study, backbone, n, arm)[0])
    except ValueError as error:
        settings = str(error)
    if set(own.settings) != {settings}:
        faults.append(f"settings are not those that the tuning chose ({settings})")
    for metric in ("sentiment macro F1", "domain accuracy"):
        if own[metric].isna().all():
            continue
        try:
            again = scores_of(study, backbone, n, arm, metric, seeds)
        except (KeyError, FileNotFoundError):
            faults.append("predictions are missing")
            continue
        if np.abs(again - own[metric]).max() > 1e-5:
            faults.append(f"{metric} does not follow from the predictions")
    return faults


def main() -> None:
    """The ledger so far, the seeds that the tuning asks for, and what is wrong with the rows."""
    for name in STUDIES:
        faults = audit(name)
        print(f"\n{name}: {'; '.join(faults) or 'the rows follow from the declaration'}")
        print(plan(name).round(1).to_string(index=False))
    table = ledger()
    shown = ["number", "arm", "rival", "metric", "n", "effect", "low", "high", "mde", "seeds"]
    print(table[[*shown, "p", "verdict"]].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
