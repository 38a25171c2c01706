"""What the declared studies share: how a model starts, which sentences it gets, how it is stopped
and scored.

Taught in data/METHOD.md.
"""

import copy
import gc
import hashlib
import warnings
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import StratifiedGroupKFold
from torch.nn.functional import cross_entropy

from mtst_utils import (
    MultiTaskModel,
    SentenceEncoder,
    Task,
    load_crowd_tweets,
    load_rated_sentences,
    seed_everything,
)
from mtst_utils.experiments.corpora import COLLECTIONS, DOMAINS, SENTIMENTS
from mtst_utils.experiments.designs import RATED, TWEETS, Job
from mtst_utils.experiments.splits import group_split

TASKS = ("sentiment", "domain")
VALID = 1000  # validation sentences that tuning looks at: the same ones for every arm
CURVE = 200  # test sentences that a curve over training looks at; nothing is chosen by them
FRACTIONS = (0.25, 0.5, 0.75, 1)  # of all steps: where a curve has its points


def draw_head(head: torch.nn.Linear, seed: int, task: str) -> None:
    """Draw a head's start from seed and task alone, whatever was drawn before and whatever else the
    model holds.
    """
    own = int.from_bytes(hashlib.sha256(f"{seed} {task}".encode()).digest()[:7], "big")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(own)
        head.reset_parameters()


@lru_cache(maxsize=1)
def _encoder(backbone: str | None) -> SentenceEncoder:
    return SentenceEncoder.from_pretrained(backbone)


def labels_of(task: str, corpus: str = RATED) -> tuple[str, ...]:
    """A task's labels in a corpus, in the order of their codes."""
    if task == "sentiment":
        return SENTIMENTS
    return tuple(COLLECTIONS["negative"].values()) if corpus == TWEETS else tuple(DOMAINS)


def new_model(
    backbone: str | None = None, tasks=("domain", "sentiment"), seed: int = 0, corpus: str = RATED
) -> MultiTaskModel:
    """An untrained model for a corpus. The same seed gives a task the same head in every model."""
    gc.collect()  # a run's model holds itself by cycles, and would stay beside the next
    model = MultiTaskModel(
        copy.deepcopy(_encoder(backbone)), [Task(name, labels_of(name, corpus)) for name in tasks]
    )
    for name, head in model.heads.items():
        draw_head(head, seed, name)
    seed_everything(seed)
    return model


def model_of(job: Job) -> MultiTaskModel:
    """The untrained model that a run starts with."""
    return new_model(job.backbone, seed=job.seed, corpus=job.corpus)


class Balanced(MultiTaskModel):
    """A model in whose loss every class weighs the same, however rare it is in the training rows.

    As in macro F1, which arms are compared by, and as the probes have it. Encoder and heads are
    those of the model it is made from, so that training this one trains that. frame: training rows.
    """

    def __init__(self, model: MultiTaskModel, frame: pd.DataFrame):
        super().__init__(model.encoder, list(model.tasks.values()), model.dropout.p)
        self.heads, self.weights = model.heads, {}
        for task in set(model.tasks) & set(frame):
            names = model.tasks[task].labels
            labelled = pd.Categorical(frame[task].dropna(), categories=names).codes
            counts = np.bincount(labelled, minlength=len(names))
            present = (counts > 0).sum()
            weights = len(labelled) / np.maximum(present * counts, 1)
            self.weights[task] = torch.tensor(weights, dtype=torch.float32)

    def forward(self, input_ids, attention_mask, labels=None):
        """As MultiTaskModel's, but for the loss: sum of weight * cross-entropy over the rows, by
        the number of rows.
        """
        output = super().forward(input_ids, attention_mask)
        if labels is not None:
            output.losses = {task: self._loss(output.logits, labels, task) for task in labels}
            output.loss = sum(output.losses.values())
        return output

    def _loss(self, logits: dict, labels: dict, task: str) -> torch.Tensor:
        weight, label = self.weights[task].to(logits[task].device), labels[task]
        total = cross_entropy(logits[task].float(), label, weight=weight, reduction="sum")
        return total / (label != -100).sum().clamp(min=1)


@lru_cache(maxsize=24)
def split(name: str, corpus: str = RATED) -> pd.DataFrame:
    """A split of a corpus, in its order. Not to be changed. The labels of both tasks are categories
    in the order of `labels_of`; what the tweets are about is their domain. corpus: RATED, TWEETS,
    or a `designs.split_name`: RATED divided otherwise, by the same rules.
    """
    if corpus == TWEETS:
        frame = load_crowd_tweets().rename(columns={"topic": "domain"})
    else:
        frame = load_rated_sentences()
    if corpus not in (RATED, TWEETS):
        frame["split"] = group_split(frame.domain, frame.group, salt=f"{corpus}: ")
    for task in TASKS:
        frame[task] = pd.Categorical(frame[task], categories=labels_of(task, corpus))
    return frame[frame.split == name]


def training_rows(job: Job) -> pd.DataFrame:
    """The n sentences of a run: drawn by its seed alone, so that every arm has the same; smaller n
    are parts of larger.
    """
    rows = split("train", job.corpus)
    return rows.sample(min(job.n, len(rows)), random_state=job.seed)


def asked_rows(job: Job) -> pd.DataFrame:
    """What a run is scored on: fixed validation rows while tuning, all test rows in the final
    phase.
    """
    if job.phase == "final":
        return split("test", job.corpus)
    rows = split("valid", job.corpus)
    return rows.sample(min(VALID, len(rows)), random_state=0)


def curve_rows(corpus: str = RATED) -> pd.DataFrame:
    """The fixed test rows of every curve over training."""
    rows = split("test", corpus)
    return rows.sample(min(CURVE, len(rows)), random_state=0)


def folds(
    frame: pd.DataFrame, task: str, seed: int, count: int = 5
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cross-validation of a few labelled rows: stratified by the task's label, groups never
    divided; [(train, test)].

    As many folds as rows allow; one in which all training rows share a label is left out.
    """
    labels, groups = frame[task].to_numpy(), frame.group.to_numpy()
    count = min(count, len(set(groups)), pd.Series(labels).value_counts().max())
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a label rarer than there are folds
        parts = list(splitter.split(labels, labels, groups))
    return [(known, asked) for known, asked in parts if len(asked) and len(set(labels[known])) > 1]


def hold_out(frame: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A quarter of the labelled rows for early stopping, groups never divided: (rows to train on,
    rows held out).
    """
    known, held = folds(frame, "sentiment", seed, 4)[0]
    return frame.iloc[known], frame.iloc[held]


def codes(column: pd.Series) -> np.ndarray:
    """A column of labels, as int8 codes [N] in the order of its categories."""
    return column.cat.codes.to_numpy()


def predicted(model: MultiTaskModel, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """{task: codes [N]} of a model on a frame's sentences, for those of its tasks that are scored
    (TASKS).
    """
    return {
        task: frame[task].cat.categories.get_indexer(model.tasks[task].labels)[p.argmax(1)]
        for task, p in model.probabilities(frame.text).items()
        if task in TASKS
    }


def scores(guess: dict[str, np.ndarray], frame: pd.DataFrame, prefix: str = "") -> dict[str, float]:
    """Accuracy and macro F1 of codes by task, under the column names of records.SCORES."""
    found = {}
    for task, values in guess.items():
        truth, labels = codes(frame[task]), range(len(frame[task].cat.categories))
        f1 = f1_score(truth, values, labels=labels, average="macro", zero_division=0)
        found |= {
            f"{prefix}{task} accuracy": accuracy_score(truth, values),
            f"{prefix}{task} macro F1": f1,
        }
    return found


HEADLINE = ("sentiment macro F1", "domain accuracy")


def headline(guess: dict[str, np.ndarray], frame: pd.DataFrame, prefix: str) -> dict[str, float]:
    """The two figures that the series goes by, of training or validation rows."""
    found = scores(guess, frame, prefix)
    return {name: value for name, value in found.items() if name.removeprefix(prefix) in HEADLINE}


def balanced_log_loss(truth: np.ndarray, probability: np.ndarray) -> float:
    """Log loss of codes [N] under probabilities [N, K]: its mean over the classes that occur, so
    that a rare one counts as much as a common one.
    """
    likely = np.maximum(probability[np.arange(len(truth)), truth], 1e-9)
    return -float(pd.Series(np.log(likely)).groupby(np.asarray(truth)).mean().mean())


class KeepBest:
    """A callback of `fit`: remembers the weights of the epoch that did best on held-out rows. Early
    stopping, without the stop: the rates fall to zero over all epochs, whichever is kept.

    The score is sentiment's class-balanced log loss: macro F1 of the few rows that are held out is
    mostly chance (of 8, it took the second of 60 steps for the best). every: steps of an epoch.
    `restore(model)` puts the best weights back; best_step tells which they were.
    """

    def __init__(self, held: pd.DataFrame, every: int):
        self.held, self.every = held, every
        self.best, self.best_step, self.weights = np.inf, 0, None

    def on_step(self, run) -> None:
        if run.step % self.every:
            return
        probability = run.model.probabilities(self.held.text)["sentiment"]
        truth = codes(self.held.sentiment)
        score = balanced_log_loss(truth, probability)
        if score < self.best:
            self.best, self.best_step = score, run.step
            self.weights = {
                name: value.detach().clone() for name, value in run.model.state_dict().items()
            }

    def restore(self, model: MultiTaskModel) -> None:
        model.load_state_dict(self.weights)


class TestCurve:
    """A callback of `fit`: sentiment macro F1 on some test rows after some shares of all steps.
    Nothing is chosen by it.
    """

    __test__ = False  # for pytest: this is no test

    def __init__(self, frame: pd.DataFrame, total_steps: int):
        self.frame, self.points = frame, {}
        self.steps = {max(1, round(fraction * total_steps)): fraction for fraction in FRACTIONS}

    def on_step(self, run) -> None:
        if run.step in self.steps:
            found = scores(predicted(run.model, self.frame), self.frame)
            self.points[self.steps[run.step]] = round(found["sentiment macro F1"], 4)
