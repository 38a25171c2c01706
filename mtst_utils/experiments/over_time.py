"""Rate, training length and layer-wise decay together: which rates, for how long, spread how?

Three decays at a matched mean rate, each over six rates a factor of 1.4 apart. After a warm-up over
the first epoch rates are constant, so that a run of eight epochs is also one of every shorter
length (at constant rates: elsewhere they fall to zero): it is watched after each epoch. Stability,
asked before the final runs of a decay: the spread over seeds of sentiment on test, decay 0.95 and
decay 1, as a ratio. How near embeddings stay is measured on test sentences while tuning, too: no
label is read, and nothing is chosen by it. Claims 21 and 23 to 26. Taught in notebook 04; method in
data/METHOD.md.
"""

import json
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch.optim.lr_scheduler import LambdaLR

from mtst_utils import fit, layerwise_lr_groups
from mtst_utils.experiments import common, records
from mtst_utils.experiments.bake_off import BATCH, drift, optimizer_of
from mtst_utils.experiments.common import codes, headline, scores
from mtst_utils.experiments.designs import RATED, Arm, Comparison, Job, Outcome, Study
from mtst_utils.experiments.intervals import t_interval

EPOCHS = 8
WATCHED = 400  # validation sentences that are looked at after each epoch
HEADS = 10  # times the layers' mean rate; as written: times the top block's
TOP = 1e-4  # the top block's rate, as the reference text has it


class Watch:
    """A callback of `fit`: what the validation sentences say after each epoch.

    curve: {epoch: sentiment macro F1}; loss: {epoch: sentiment's class-balanced log loss, in nats}.
    """

    def __init__(self, frame, every: int):
        self.frame, self.every = frame, every
        self.curve, self.loss = {}, {}

    def on_step(self, run) -> None:
        if run.step % self.every:
            return
        epoch, truth = run.step // self.every, codes(self.frame.sentiment)
        probability = run.model.probabilities(self.frame.text)["sentiment"]
        found = scores({"sentiment": probability.argmax(1)}, self.frame)
        self.curve[epoch] = round(found["sentiment macro F1"], 4)
        self.loss[epoch] = round(common.balanced_log_loss(truth, probability), 4)

    def details(self) -> dict:
        """The two curves, and the two figures that were declared.

        area: mean of the curve over epochs, which is the area under it (claim 25). rise: log loss
        at the end minus the lowest that it was (claim 24): what training on has undone.
        """
        curve, loss = (np.array(list(part.values())) for part in (self.curve, self.loss))
        figures = {"area": curve.mean(), "rise": loss[-1] - loss.min()}
        rounded = {name: round(float(value), 4) for name, value in figures.items()}
        return {"curve": self.curve, "loss": self.loss} | rounded


def trained(job: Job, decay: float, top: float | None = None) -> Outcome:
    """Everything is trained for eight epochs; layers' rates have this decay, and the settings' rate
    as their geometric mean, or top as the rate of the top block.
    """
    model, frame = common.model_of(job), common.training_rows(job)
    if top is None:
        lr = job.settings["lr"]
        optimizer = optimizer_of(model, lr, HEADS * lr, decay)
    else:
        groups = layerwise_lr_groups(model, top, decay, HEADS * top)
        optimizer = torch.optim.AdamW(groups, fused=True)
    valid = common.split("valid", job.corpus)
    watched = valid.sample(min(WATCHED, len(valid)), random_state=0)
    every = -(-len(frame) // BATCH)
    watch = Watch(watched, every)
    fit(
        common.Balanced(model, frame),
        frame,
        epochs=EPOCHS if job.scale == "full" else 2,
        batch_size=BATCH,
        optimizer=optimizer,
        scheduler=lambda own, total: LambdaLR(own, lambda step: min(1, (step + 1) / every)),
        seed=job.seed,
        callbacks=[watch],
        progress=False,
    )
    asked, own = common.asked_rows(job), frame[:500]
    guess, details = common.predicted(model, asked), watch.details() | drift(job, model)
    if job.phase == "tune":
        return Outcome(headline(guess, asked, "valid "), details=details)
    found = headline(common.predicted(model, own), own, "training ")
    return Outcome(scores(guess, asked) | found, guess, details)


def by_epoch(rows: pd.DataFrame, of: str = "curve") -> pd.DataFrame:
    """What the validation sentences said of these runs: a row a run, a column an epoch.

    of: "curve" (sentiment macro F1, in points) or "loss" (its log loss, in nats).
    """
    found = pd.DataFrame([json.loads(text)[of] for text in rows.details], index=rows.index)
    return found.rename(columns=int) * (100 if of == "curve" else 1)


def tuning(arm: str, n: int = 500, of: str = "curve") -> pd.DataFrame:
    """Means over an arm's tuning seeds: a row a rate, a column an epoch."""
    rows = records.rows_of("over_time").query("phase == 'tune' and arm == @arm and n == @n")
    rates = rows.settings.map(lambda text: json.loads(text)["lr"]).rename("lr")
    return by_epoch(rows, of).groupby(rates).mean()


def course(rows: pd.DataFrame, of: str = "curve") -> pd.DataFrame:
    """Final runs as `plots.bands` draws them: an arm a series, an epoch an x, the mean over seeds
    with its 95 % t interval.
    """
    found = by_epoch(rows, of)
    return pd.DataFrame(
        [
            (arm, epoch, *t_interval(values))
            for arm, part in found.groupby(rows.arm, sort=False)
            for epoch, values in part.items()
        ],
        columns=["series", "x", "value", "low", "high"],
    )


_RATES = {"lr": (7e-5, 1e-4, 1.4e-4, 2e-4, 2.8e-4, 4e-4)}
_ABOUT = "the layers' geometric mean is lr; heads ten lr"
_DECAYS = (("decay 0.95", "the reference text"), ("decay 0.8", "Clark et al. 2020"))
OVER_TIME = Study(
    name="over_time",
    claims=("21", "23", "24", "25", "26"),
    question="Eight epochs: are layer-wise rates better, faster, or less given to overfitting?",
    corpus=RATED,
    arms={
        "decay 1": Arm(partial(trained, decay=1.0), _RATES, _ABOUT),
        "decay 0.95": Arm(partial(trained, decay=0.95), _RATES, _ABOUT),
        "decay 0.8": Arm(partial(trained, decay=0.8), _RATES, _ABOUT),
        "as written": Arm(
            partial(trained, decay=0.95, top=TOP),
            {},
            "decay 0.95 from 1e-4 at the top block, as the reference text has it; heads 1e-3",
        ),
    },
    comparisons=(
        Comparison("21", "as written", "decay 0.95", "no loss", source="the reference text"),
        *(
            Comparison(claim, *pair, "gain", metric, source)
            for decay, source in _DECAYS
            for claim, *pair, metric in (
                ("23", decay, "decay 1", "sentiment macro F1"),
                ("24", "decay 1", decay, "rise"),
                ("24", "decay 1", decay, "gap"),
                ("25", decay, "decay 1", "area"),
                ("26", decay, "decay 1", "kept"),
                ("26", decay, "decay 1", "mean of both"),
            )
        ),
    ),
    metric="sentiment macro F1",
    validation=("valid sentiment macro F1", "valid domain accuracy"),
    margins={500: 0.01, 2000: 0.01},
    seeds={500: 10, 2000: 10},
    why="10 show 1.0 points where the paired SD is 1 point, as between decays on 200 sentences",
    tuned_at={500: 500, 2000: 2000},
)
