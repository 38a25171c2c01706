"""The experiments behind the claims: `python -m mtst_utils.experiments.studies NAME [--backbone
...]`.

Each run is appended to data/results/NAME.csv as it ends; a finished run is never run again.
"""

import argparse
import time
from functools import partial

from tqdm.auto import tqdm

from mtst_utils.experiments import results
from mtst_utils.experiments.corpora import DOMAINS
from mtst_utils.experiments.layer_rates import layerwise_run, probes_run
from mtst_utils.experiments.multi_task import baseline_run, combination_run, training_run
from mtst_utils.experiments.sentence_transformer import choices_run, padding_run
from mtst_utils.experiments.transfer import (
    LABELS,
    forgetting_run,
    frozen_run,
    labels_run,
    out_of_domain_run,
    transfer_run,
    untrained_run,
)
from mtst_utils.packaged_weights import DEFAULT

FORGETTING = (
    "head A frozen",
    "head A not frozen",
    "a tenth of the rate",
    "backbone frozen",
    "backbone frozen, head trained to the end",
    "distillation, weight 1",
    "distillation, weight 0.3",
    "replay",
    "L2 to the start",
    "joint",
    "joint, head A frozen",
)
FORGETTING_HARD = ("head A frozen", "distillation, weight 0.3", "replay", "L2 to the start")

LABELS_RECIPES = {
    "backbone frozen": {"recipe": "backbone frozen"},
    "backbone frozen, regularised": {"recipe": "backbone frozen, regularised"},
    "two-block probe": {"recipe": "two-block probe"},  # C = 0.01 was fixed beforehand
    "two-block probe, C 0.001": {
        "recipe": "two-block probe",
        "c": 1e-3,
    },  # what validation prefers: labels_tuning
    "everything trained": {"recipe": "everything trained"},
}

ALL_THREE = ("domain", "sentiment", "rating step")
RECIPES = {  # for the paper's table, compared on validation: what is learned, and at which rates
    "three classes": {"tasks": ("sentiment",)},
    "three classes, domain": {"tasks": ("domain", "sentiment")},
    "rating, three classes, domain": {"tasks": ALL_THREE},
    "rating as a number, three classes, domain": {"tasks": ("domain", "sentiment", "rating")},
    "rating, three classes, domain, 0.0001": {"tasks": ALL_THREE, "lr": 1e-4},
    "rating, three classes, domain, 5e-05": {"tasks": ALL_THREE, "lr": 5e-5},
}

DECAYS, RATES, FEW = (
    (1, 0.95, 0.9, 0.8, 0.65),
    (2e-5, 5e-5, 1e-4, 2e-4, 5e-4),
    {"n": 200, "epochs": 10},
)

# {study: {setting: function(backbone, seed, scale) -> (training sentences, {metric: value})}}
STUDIES = {
    "padding": {how: partial(padding_run, how=how) for how in ("mean", "unmasked mean")},
    "choices": {w: partial(choices_run, weights=w) for w in ("pretrained", "random")},
    "paper_recipes": {
        name: partial(training_run, n=4000, asked="valid", **how) for name, how in RECIPES.items()
    },
    "paper": {
        "multi-task": partial(training_run, epochs=3),
        "multi-task, rating too": partial(training_run, tasks=ALL_THREE, lr=1e-4),
    },
    "baselines": {
        name: partial(baseline_run, name=name)
        for name in ("one human rater", "VADER", "TF-IDF + logistic regression")
    },
    "multitask": {
        "joint": partial(training_run, n=3000),
        "domain only": partial(training_run, n=3000, tasks=("domain",)),
        "sentiment only": partial(training_run, n=3000, tasks=("sentiment",)),
    },
    "combination": {
        "sum": partial(combination_run, how=1.0),
        "sentiment x 0.25": partial(combination_run, how=0.25),
        "sentiment x 4": partial(combination_run, how=4.0),
        "uncertainty weighting": partial(combination_run, how="uncertainty"),
        "domain, then sentiment": partial(combination_run, how=("domain", "sentiment")),
        "sentiment, then domain": partial(combination_run, how=("sentiment", "domain")),
    },
    "untrained": {
        w: partial(untrained_run, pretrained=w == "pretrained") for w in ("pretrained", "random")
    },
    "frozen": {
        f"{what} frozen": partial(frozen_run, what=what) for what in ("everything", "head A")
    },
    "labels": {
        f"{recipe}, {n or 'all'}": partial(labels_run, n=n, **how)
        for n in LABELS
        for recipe, how in LABELS_RECIPES.items()
        if n or "regularised" not in recipe
    },
    "labels_tuning": {
        f"two-block probe, C {c:g}, {n}": partial(
            labels_run, n=n, recipe="two-block probe", c=c, tuning=True
        )
        for n in (32, 128, 512)
        for c in (1e-4, 1e-3, 1e-2, 1e-1, 1)
    },
    "forgetting": {how: partial(forgetting_run, how=how) for how in FORGETTING},
    "forgetting_hard": {
        how: partial(forgetting_run, how=how, source="movie review") for how in FORGETTING_HARD
    },
    "transfer": {
        "probe": partial(transfer_run, recipe="probe"),
        **{
            f"one rate, {lr:g}": partial(transfer_run, recipe="full", lr=lr, ratio=1)
            for lr in (1e-4, 3e-4, 1e-3)
        },
        **{
            f"heads 10 times, {lr:g}": partial(transfer_run, recipe="full", lr=lr)
            for lr in (1e-4, 3e-4, 1e-3)
        },
        "gradual, 0.0003": partial(transfer_run, recipe="gradual"),
        "probe, then full, 0.0003": partial(transfer_run, recipe="probe, then full"),
        "random weights, probe": partial(transfer_run, recipe="probe", pretrained=False),
        "random weights, heads 10 times, 0.0003": partial(
            transfer_run, recipe="full", pretrained=False
        ),
    },
    "out_of_domain": {
        f"{recipe}, without {domain}": partial(out_of_domain_run, recipe=recipe, held_out=domain)
        for domain in DOMAINS
        for recipe in ("probe", "full", "probe, then full", "decay 0.95", "decay 0.8")
    },
    "probes": {
        w: partial(probes_run, pretrained=w == "pretrained") for w in ("pretrained", "random")
    },
    "layerwise_many": {
        **{
            f"decay {d:g}, rate {lr:g}": partial(layerwise_run, decay=d, lr=lr)
            for d in DECAYS
            for lr in RATES
        },
        **{
            f"upside down, decay {d:g}, rate 0.0002": partial(layerwise_run, decay=d, mirrored=True)
            for d in (0.95, 0.8, 0.65)
        },
        **{
            f"gradual, decay {d:g}, rate 0.0002": partial(layerwise_run, decay=d, gradual=True)
            for d in (1, 0.8)
        },
        "decay 0.95, rate 0.0001, heads too": partial(
            layerwise_run, decay=0.95, lr=1e-4, head_lr=1e-4
        ),
    },
    "layerwise_few": {
        **{
            f"decay {d:g}, rate {lr:g}": partial(layerwise_run, decay=d, lr=lr, **FEW)
            for d in DECAYS
            for lr in RATES
        },
        **{
            f"upside down, decay {d:g}, rate 0.0002": partial(
                layerwise_run, decay=d, mirrored=True, **FEW
            )
            for d in (0.95, 0.8, 0.65)
        },
    },
}


def run_study(name, backbone=DEFAULT, seeds=5, scale="full", settings=None):
    """Run what is missing of a study, one row a metric appended as each run ends; returns all its
    rows.
    """
    finished = set(
        results.load(name)[["backbone", "setting", "seed"]].itertuples(index=False, name=None)
    )
    chosen = settings or STUDIES[name]
    todo = [
        (setting, seed)
        for seed in range(seeds)
        for setting in chosen
        if (backbone, setting, seed) not in finished
    ]
    if todo:
        with results.locked(name):  # what cannot be written shows now, and not after an hour
            pass
    for setting, seed in tqdm(todo, desc=f"{name}, {backbone}", unit="run"):
        started = time.perf_counter()
        n, metrics = STUDIES[name][setting](backbone, seed, scale)
        results.append(name, backbone, setting, seed, n, metrics, time.perf_counter() - started)
    return results.load(name)


def main():
    parser = argparse.ArgumentParser(
        prog="python -m mtst_utils.experiments.studies", description=__doc__.splitlines()[0]
    )
    parser.add_argument("name", choices=[*STUDIES, "list"])
    parser.add_argument("--backbone", default=DEFAULT)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--scale", choices=["quick", "full"], default="full")
    parser.add_argument("--settings", nargs="*", help="only these settings of the study")
    arguments = parser.parse_args()
    if arguments.name == "list":
        from mtst_utils.experiments import registry  # it knows of these studies, too

        print(registry.listing(arguments.backbone), "\n")
        for name, settings in STUDIES.items():
            rows = results.load(name)
            for setting in settings:
                seeds = rows[rows.setting == setting].groupby("backbone").seed.nunique().to_dict()
                print(f"{name:12} {setting:32} seeds: {seeds or 'missing'}")
    else:
        run_study(
            arguments.name, arguments.backbone, arguments.seeds, arguments.scale, arguments.settings
        )


if __name__ == "__main__":
    main()
