"""Are embeddings useful as they are? Labelled sentences vote for those they are nearest to, by
embeddings and by TF-IDF.

Claim 9. Method in data/METHOD.md.
"""

from functools import lru_cache, partial

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_union

from mtst_utils import cosine_matrix
from mtst_utils.experiments import common
from mtst_utils.experiments.common import TASKS, codes, headline, scores
from mtst_utils.experiments.designs import RATED, Arm, Comparison, Job, Outcome, Study


@lru_cache(maxsize=2)
def asked_embeddings(backbone: str, phase: str, corpus: str) -> np.ndarray:
    """Frozen embeddings [N, H] of the rows that every run of a phase is scored on."""
    asked = common.asked_rows(Job(backbone, 0, 0, {}, phase, corpus=corpus))
    return common.new_model(backbone).encoder.encode(asked.text, precision="auto")


def by_embeddings(job: Job, known: pd.DataFrame) -> np.ndarray:
    """Cosines [N, M] of the frozen encoder's embeddings: of what a run is scored on, and what it
    knows.
    """
    encoded = common.new_model(job.backbone).encoder.encode(known.text, precision="auto")
    return cosine_matrix(asked_embeddings(job.backbone, job.phase, job.corpus), encoded)


@lru_cache(maxsize=1)
def vectorizer(corpus: str):
    """Words and pairs of words, and pieces of words; the counts of all training sentences, whose
    labels it does not see.
    """
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=3, sublinear_tf=True)
    return make_union(words, pieces).fit(common.split("train", corpus).text)


def by_tfidf(job: Job, known: pd.DataFrame) -> np.ndarray:
    """The same of TF-IDF vectors (two of unit length side by side)."""
    pair = common.asked_rows(job), known
    x_asked, x_known = (vectorizer(job.corpus).transform(rows.text) for rows in pair)
    return (x_asked @ x_known.T).toarray() / 2


def vote(near: np.ndarray, labels: np.ndarray, k: int, weights: str) -> np.ndarray:
    """The label [N] that the k nearest of M labelled sentences give; a vote counts the more the
    rarer its class is, as everywhere in these studies.

    near: similarities [N, M]; weights: "equal", or "similarity" for votes that count by it.
    """
    k = min(k, near.shape[1])
    nearest = np.argpartition(-near, k - 1, axis=1)[:, :k]
    votes = (
        np.take_along_axis(near, nearest, 1) if weights == "similarity" else np.ones_like(nearest)
    )
    worth = 1 / np.bincount(labels, minlength=labels.max() + 1).clip(1)
    counts = np.zeros((len(near), len(worth)))
    for column, label in enumerate(labels[nearest].T):
        counts[np.arange(len(near)), label] += votes[:, column] * worth[label]
    return counts.argmax(1)


def neighbours(job: Job, similarity) -> Outcome:
    """Nothing is trained: n labelled sentences, and how near the others are to them."""
    known, asked = common.training_rows(job), common.asked_rows(job)
    near = similarity(job, known)
    guess = {task: vote(near, codes(known[task]), **job.settings) for task in TASKS}
    if job.phase == "tune":
        return Outcome(headline(guess, asked, "valid "))
    return Outcome(scores(guess, asked), guess)


_AXES = {"k": (3, 9, 27), "weights": ("equal", "similarity")}
NEIGHBOURS = Study(
    name="neighbours",
    claims=("9",),
    question="Nothing trained: do embeddings find like sentences better than shared words do?",
    corpus=RATED,
    arms={
        "embeddings": Arm(
            partial(neighbours, similarity=by_embeddings), _AXES, "cosine of frozen embeddings"
        ),
        "TF-IDF": Arm(
            partial(neighbours, similarity=by_tfidf),
            _AXES,
            "cosine of TF-IDF vectors of words, pairs and pieces; counts of all training sentences",
        ),
    },
    comparisons=tuple(
        Comparison("9", "embeddings", "TF-IDF", "practical gain", metric, "the reference text")
        for metric in ("sentiment macro F1", "domain accuracy")
    ),
    metric="sentiment macro F1",
    validation=("valid sentiment macro F1",),
    margins={512: 0.01, 64: 0.02},
    seeds={512: 20, 64: 20},
    why="20, as a run takes seconds: they show 0.7 points where the paired SD is 1 point",
    tuned_at={512: 512, 64: 64},
)
