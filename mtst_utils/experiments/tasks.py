"""Does sentiment lose by sharing its encoder, and does it matter with what? One model for two tasks
beside two models for one each, on 500, 3,000 and all sentences.

Beside the domain, sentiment shares its encoder with finer labels of the same judgement (in which of
eight steps the rating lies), with a task that is only about form (whether there is a comma; not
how long a sentence is, since a batch has sentences of like length, and would have one label), and
with one that nothing can be learned of (labels by lot). Claim 5, and beside it. Taught in notebook
02; method in data/METHOD.md.
"""

import hashlib
from functools import partial

import pandas as pd

from mtst_utils import MultiTaskModel, Task, fit, seed_everything
from mtst_utils.experiments import common
from mtst_utils.experiments.bake_off import BATCH, optimizer_of
from mtst_utils.experiments.common import headline, scores
from mtst_utils.experiments.corpora import RATING_STEPS, rating_step
from mtst_utils.experiments.designs import RATED, Arm, Comparison, Job, Outcome, Study

EPOCHS = {500: 5, 3000: 2, 16600: 1}
COMMAS = ("none", "some")
LOTS = ("a", "b", "c")


def labels(frame: pd.DataFrame, task: str, corpus: str = RATED) -> pd.Categorical:
    """A task's labels [N] of rows of a corpus; its categories are all labels that the task has."""
    if task == "rating":
        return pd.Categorical(rating_step(frame.rating), categories=RATING_STEPS)
    if task == "comma":
        return pd.Categorical.from_codes(frame.text.str.contains(",").astype(int), COMMAS)
    if task == "lot":
        drawn = [hashlib.sha256(text.encode()).digest()[0] % len(LOTS) for text in frame.text]
        return pd.Categorical.from_codes(drawn, LOTS)
    return frame[task].array


def shared(job: Job, tasks: tuple[str, ...]) -> Outcome:
    """Train one model on these tasks; the scores are of sentiment and domain, where it has them."""
    rows = common.training_rows(job)
    frame = rows[["text"]].assign(**{task: labels(rows, task, job.corpus) for task in tasks})
    model = MultiTaskModel(
        common.model_of(job).encoder,
        [Task(task, tuple(frame[task].cat.categories)) for task in tasks],
    )
    for task, head in model.heads.items():
        common.draw_head(head, job.seed, task)
    seed_everything(job.seed)
    fit(
        common.Balanced(model, frame),
        frame,
        epochs=EPOCHS[job.n] if job.scale == "full" else 1,
        batch_size=BATCH,
        optimizer=optimizer_of(model, **job.settings),
        seed=job.seed,
        progress=False,
    )
    asked = common.asked_rows(job)
    guess = common.predicted(model, asked)
    if job.phase == "tune":
        return Outcome(headline(guess, asked, "valid "))
    return Outcome(scores(guess, asked), guess)


_AXES = {"lr": (1e-4, 2e-4, 4e-4), "head_lr": (1e-3, 4e-3)}
_ARMS = {  # tasks of a model
    "joint": ("domain", "sentiment"),
    "sentiment alone": ("sentiment",),
    "domain alone": ("domain",),
    "with the rating": ("sentiment", "rating"),
    "with the comma": ("sentiment", "comma"),
    "with labels by lot": ("sentiment", "lot"),
}
_PARTNERS = ("with the rating", "with the comma", "with labels by lot")
TOGETHER = Study(
    name="tasks",
    claims=("5",),
    question="One encoder for two tasks, or one each: what is lost, and does the partner matter?",
    corpus=RATED,
    arms={
        name: Arm(
            partial(shared, tasks=tasks),
            _AXES,
            f"one encoder, heads for {' and '.join(tasks)}; rates of the backbone and the heads",
            sizes=(500,) if name in _PARTNERS else None,  # where labels are few, most can be given
            later=name == "with the comma",  # in place of lengths, of which a batch has one alone
        )
        for name, tasks in _ARMS.items()
    },
    comparisons=(
        Comparison("5", "joint", "sentiment alone", "no loss", source="the reference text"),
        Comparison("5", "joint", "domain alone", "no loss", "domain accuracy", "Standley 2020"),
        *(
            Comparison("partner", arm, "sentiment alone", "no loss", source="Standley 2020")
            for arm in _PARTNERS
        ),
    ),
    metric="sentiment macro F1",
    # Of each model the tasks it has: for one task alone the mean is that task's score.
    validation=("valid sentiment macro F1", "valid domain accuracy"),
    margins={500: 0.01, 3000: 0.01, 16600: 0.01},
    seeds={500: 10, 3000: 10, 16600: 10},
    why="10 show 1.0 points where the paired SD is 1 point, as it was in the study of before",
    tuned_at={500: 500, 3000: 3000, 16600: 3000},
)
