"""A small training task, shared by tests and by the processes they start."""

import pandas as pd
from conftest import tiny_backbone, tiny_tokenizer

import mtst_utils as mtst

WORDS = [
    "the cat sat on a mat",
    "nobody expected",
    "the train",
    "late today",
    "to be late",
    "a train today",
    "mat",
    "sat late",
]


def frame(n=64):
    texts = [f"{WORDS[i % 8]} {'b' if i % 3 else 'c'} {WORDS[(i * 5 + 1) % 8]}" for i in range(n)]
    sides = ["cat" if "cat" in text else "other" for text in texts]
    return pd.DataFrame(
        {"text": texts, "animal": sides, "letter": ["b" if i % 3 else "c" for i in range(n)]}
    )


def model(dropout=0.1):
    mtst.seed_everything(0)
    backbone = tiny_backbone()
    if dropout == 0:
        for part in backbone.modules():
            if hasattr(part, "p"):
                part.p = 0.0
    tasks = [mtst.Task("animal", ("cat", "other")), mtst.Task("letter", ("b", "c"))]
    return mtst.MultiTaskModel(mtst.SentenceEncoder(backbone, tiny_tokenizer()), tasks, dropout)
