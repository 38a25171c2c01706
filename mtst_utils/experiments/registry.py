"""The declared studies: `python -m mtst_utils.experiments.registry list`, `... tune NAME`, `...
final NAME`, `... run NAME`.

A study runs only if its design is declared in full. `run` does both phases, size by size: every arm
is tuned, then all arms run seed by seed, so that an interrupted study still has whole pairs. Their
order turns from seed to seed: where seconds are measured, no arm is always first. A finished run is
never run again.
"""

import argparse
import importlib.util
import itertools
import time

import pandas as pd

from mtst_utils.backbones import DEFAULT
from mtst_utils.experiments import designs, records
from mtst_utils.experiments.bake_off import BAKE_OFF
from mtst_utils.experiments.cost import COST
from mtst_utils.experiments.designs import (
    TUNING_SEEDS,
    Arm,
    Job,
    Study,
    best,
    beyond,
    grid,
    mean_scores,
)
from mtst_utils.experiments.few_labels import FEW_LABELS
from mtst_utils.experiments.forgetting import FORGETTING, FORGETTING_HARD
from mtst_utils.experiments.lengths import LENGTHS
from mtst_utils.experiments.neighbours import NEIGHBOURS
from mtst_utils.experiments.over_time import OVER_TIME
from mtst_utils.experiments.regrouped import OTHER_SPLITS
from mtst_utils.experiments.second_corpus import ON_TWEETS
from mtst_utils.experiments.sentence_transformer import POOLING
from mtst_utils.experiments.starts import STARTS
from mtst_utils.experiments.studies import STUDIES as UNDECLARED
from mtst_utils.experiments.tasks import TOGETHER

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        FEW_LABELS,
        BAKE_OFF,
        FORGETTING,
        FORGETTING_HARD,
        POOLING,
        COST,
        NEIGHBOURS,
        LENGTHS,
        TOGETHER,
        STARTS,
        OVER_TIME,
        *ON_TWEETS,
        OTHER_SPLITS,
    )
}


def declared(name: str) -> Study:
    """A study whose design is declared in full. Raises ValueError that says what is missing."""
    if name not in STUDIES:
        old = (
            "; its runs are of the time before designs were declared" if name in UNDECLARED else ""
        )
        raise ValueError(f"no study {name!r} is declared{old}. Declared are: {', '.join(STUDIES)}")
    if missing := STUDIES[name].missing():
        raise ValueError(f"study {name!r} does not run: its declaration lacks {'; '.join(missing)}")
    return STUDIES[name]


def available(arm: Arm) -> bool:
    """Whether the packages an arm needs are installed (`pip install -e ".[studies]"`)."""
    return all(importlib.util.find_spec(package) for package in arm.needs)


def _run(study: Study, name: str, job: Job, **facts) -> None:
    """Run one arm once and keep its row, unless that row is there."""
    row = {
        "study": study.name,
        "phase": job.phase,
        "backbone": job.backbone,
        "corpus": job.corpus,
        "n": job.n,
    }
    row |= {"arm": name, "settings": records.compact(job.settings), "seed": job.seed}
    rows = records.rows_of(study.name)
    same = rows[["phase", "backbone", "n", "arm", "seed"] + ["settings"] * (job.phase == "tune")]
    if (same == [row[column] for column in same.columns]).all(axis=1).any():
        return
    print(
        time.strftime("%H:%M:%S"),
        job.phase,
        f"n={job.n}",
        name,
        row["settings"],
        job.seed,
        flush=True,
    )
    started, cpu = time.perf_counter(), time.process_time()
    outcome = study.arms[name].run(job)
    seconds = {
        "seconds": f"{time.perf_counter() - started:.1f}",
        "cpu_seconds": f"{time.process_time() - cpu:.1f}",
    }
    scores = {column: f"{value:.6f}" for column, value in outcome.scores.items()}
    records.keep(
        row | scores | seconds | facts | {"details": records.compact(outcome.details)},
        outcome.predictions,
    )


def tuned_in(study: Study, n: int) -> Study:
    """The study whose tuning decides, by its own validation scores: mostly the same."""
    return STUDIES[study.tuned_by[n]] if n in study.tuned_by else study


def tuned(study: Study, backbone: str, n: int, name: str) -> list[tuple[dict, float]]:
    """The tried settings of an arm with their mean validation scores, from the rows: the grid
    first, then what widened it.

    Only settings that all tuning seeds have; the last are still to be widened where `beyond` names
    more.
    """
    study = tuned_in(study, n)
    arm, at = study.arms[name], study.tuned_at[n]
    rows = records.rows_of(study.name)
    rows = rows[
        (rows.phase == "tune") & (rows.backbone == backbone) & (rows.n == at) & (rows.arm == name)
    ]
    wanted = grid(arm)
    scored = mean_scores(rows, wanted, study.validation)
    while len(scored) == len(wanted):
        further = [settings for settings in beyond(arm, scored) if settings not in wanted]
        if not further:
            break
        wanted += further
        scored = mean_scores(rows, wanted, study.validation)
    return scored


def tune(study: Study, backbone: str, n: int, name: str, scale: str = "full") -> None:
    """Run what is missing of an arm's tuning for size n, widening its grid while the winner is on
    an edge. An arm without axes has nothing to tune, nor has a study that takes over another's.
    """
    arm, at = study.arms[name], study.tuned_at[n]
    todo = grid(arm) if arm.axes and n not in study.tuned_by else []
    while todo:
        for settings in todo:
            for seed in TUNING_SEEDS:
                _run(study, name, Job(backbone, at, seed, settings, "tune", scale, study.corpus))
        scored = tuned(study, backbone, n, name)
        todo = [
            settings
            for settings in beyond(arm, scored)
            if settings not in [tried for tried, _ in scored]
        ]


def final(
    study: Study, backbone: str, n: int, seed: int, arms: list[str], scale: str = "full"
) -> None:
    """Run the arms of one seed, each with the settings that its tuning chose. Raises ValueError
    where that is not done.
    """
    for name in arms:
        settings, facts = chosen(study, backbone, n, name)
        where = study.corpus_of(seed)
        _run(study, name, Job(backbone, n, seed, settings, "final", scale, where), **facts)


def chosen(study: Study, backbone: str, n: int, name: str) -> tuple[dict, dict]:
    """The settings that an arm's tuning rows choose, and how many tries, and which edges, that was.

    Raises ValueError where the tuning is not complete.
    """
    study = tuned_in(study, n)
    arm, scored = study.arms[name], tuned(study, backbone, n, name)
    if not arm.axes:
        return {}, {"tries": 0, "at_edge": ""}
    if len(scored) < designs.tries(arm) or not _widened(arm, scored):
        raise ValueError(f"{study.name}: {name!r} is not tuned for n={n}; run its tuning first")
    return best(scored), {"tries": len(scored), "at_edge": designs.at_edge(arm, scored)}


def _widened(arm: Arm, scored: list[tuple[dict, float]]) -> bool:
    return all(settings in [tried for tried, _ in scored] for settings in beyond(arm, scored))


def run(
    name: str,
    backbone: str = DEFAULT,
    phase: str = "run",
    sizes=None,
    arms=None,
    scale: str = "full",
) -> None:
    """Both phases of a study, size by size; phase "tune" or "final": that one alone. arms: only
    these.

    Raises ValueError for a study that is not declared in full, and for an arm whose packages are
    not installed.
    """
    study = declared(name)
    for n in sizes or study.seeds:
        wanted = [arm for arm in study.arms_at(n) if arms is None or arm in arms]
        for arm in wanted:
            if not available(study.arms[arm]):
                raise ValueError(
                    f"{arm!r} needs {', '.join(study.arms[arm].needs)}: pip install -e '.[studies]'"
                )
        if phase in ("run", "tune"):
            for arm in wanted:
                tune(study, backbone, n, arm, scale)
        if phase in ("run", "final"):
            for seed in range(study.wanted(n, backbone)):
                final(study, backbone, n, seed, wanted[:: -1 if seed % 2 else 1], scale)


def state(study: Study, backbone: str = DEFAULT) -> pd.DataFrame:
    """One row per size and arm: n, arm, tries (settings tried), seeds (finished), wanted, commits
    (of its final runs).
    """
    rows, table = records.rows_of(study.name), []
    rows = rows[rows.backbone == backbone]
    for n in study.seeds:
        wanted = study.wanted(n, backbone)
        for name in study.arms_at(n):
            done = rows[(rows.phase == "final") & (rows.n == n) & (rows.arm == name)]
            tried = len(tuned(study, backbone, n, name))
            commits = " ".join(sorted(set(done.commit)))
            table.append(
                {
                    "n": n,
                    "arm": name,
                    "tries": tried,
                    "seeds": done.seed.nunique(),
                    "wanted": wanted,
                }
            )
            table[-1]["commits"] = commits
    return pd.DataFrame(table)


def finished(study: Study, backbone: str = DEFAULT) -> pd.DataFrame:
    """The final runs of those arms and sizes of a study that have run in full; by n."""
    complete = state(study, backbone).query("seeds >= wanted")[["n", "arm"]]
    rows = records.rows_of(study.name)
    rows = rows[(rows.phase == "final") & (rows.backbone == backbone)]
    return rows.merge(complete).sort_values("n", kind="stable")


def recipes(study: Study, backbone: str = DEFAULT) -> pd.DataFrame:
    """What the tuning of a study chose, for arms with final runs that are complete: a row per size
    that was tuned at and arm, with the columns value, tries, still at an edge.
    """
    done, rows = finished(study, backbone), []
    known = {(study.tuned_at[n], arm) for n, arm in zip(done.n, done.arm, strict=True)}
    for at, (name, arm) in itertools.product(sorted({at for at, _ in known}), study.arms.items()):
        if arm.axes and (at, name) in known:
            settings, facts = chosen(study, backbone, at, name)
            value = ", ".join(f"{axis} {setting}" for axis, setting in settings.items())
            rows.append((at, name, value, facts["tries"], facts["at_edge"] or "–"))
    columns = ["tuned at", "arm", "value", "tries", "still at an edge"]
    return pd.DataFrame(rows, columns=columns).set_index(["tuned at", "arm"])


def described(study: Study, backbone: str = DEFAULT) -> str:
    """A study's declaration and state, as text."""
    lines = [
        f"{study.name}: {study.question}",
        f"  claims {', '.join(study.claims)}; corpus: {study.corpus}",
        f"  primary metric: {study.metric}",
        f"  chosen by: {study.validation}, mean of seeds {TUNING_SEEDS}",
        f"  seeds: {study.why}",
        *(f"  n={n}: settings as tuned in {name}" for n, name in study.tuned_by.items()),
    ]
    for c in study.comparisons:
        lines.append(f"  claim {c.claim}: {c.arm} - {c.rival}, {c.metric}; promised: {c.promise}")
    for name, arm in study.arms.items():
        lines.append(f"  arm {name!r}: {arm.about}; {designs.tries(arm)} tries: {arm.axes}")
    lines += [
        f"  n={row.n}: {row.arm}: {row.tries} tried, {row.seeds} of {row.wanted} seeds"
        + (" MISSING" if row.seeds < row.wanted else "")
        + f", margin {study.margins[row.n]:g}, {row.commits}"
        for row in state(study, backbone).itertuples()
    ]
    return "\n".join(lines)


def still_at_an_edge(backbone: str = DEFAULT) -> str:
    """Where what tuning chose is the most or the least that was tried, as text: study, sentences it
    was tuned with, arms with their settings.
    """
    found = []
    for study in STUDIES.values():
        if study.tuned_by:
            continue  # said of the study that tuned
        table = recipes(study, backbone)["still at an edge"]
        table = table[table != "–"].str.replace(" ", ", ")
        for n, part in table.groupby(level="tuned at"):
            arms = [f"{arm} ({edge})" for (_, arm), edge in part.items()]
            found.append(f"`{study.name}` {n:,}: {', '.join(arms)}")
    return "; ".join(found)


def not_run(backbone: str = DEFAULT) -> str:
    """What is declared and has not run to its end, as text: study, size, arms."""
    found = []
    for study in STUDIES.values():
        table = state(study, backbone)
        lacking = table[table.seeds < table.wanted]
        for n, arms in lacking.groupby("n").arm:
            every = len(arms) == (table.n == n).sum()
            found.append(f"`{study.name}` {n:,}: {'all' if every else ', '.join(arms)}")
    return "; ".join(found)


def listing(backbone: str = DEFAULT) -> str:
    """All declared studies with their designs and what is missing; then those of before, not yet
    declared.
    """
    old = [
        f"{name}: not yet declared ({len(settings)} settings)"
        for name, settings in UNDECLARED.items()
    ]
    return "\n\n".join(
        [*(described(study, backbone) for study in STUDIES.values()), "\n".join(old)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mtst_utils.experiments.registry", description=__doc__
    )
    parser.add_argument("what", choices=["list", "run", "tune", "final"])
    parser.add_argument("name", nargs="?")
    parser.add_argument("--backbone", default=DEFAULT)
    parser.add_argument(
        "--sizes", nargs="*", type=int, help="only these numbers of sentences, in this order"
    )
    parser.add_argument("--arms", nargs="*", help="only these arms")
    given = parser.parse_args()
    if given.what == "list":
        print(listing(given.backbone))
    else:
        run(given.name, given.backbone, given.what, given.sizes, given.arms)


if __name__ == "__main__":
    main()
