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
TEXTS = ["the cat sat on a mat", "Nobody Expected The Train", "late"]


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


def written(folder, *others, pooling="mean", length=20, lower=False):
    """A folder as the installed sentence-transformers writes it, and its embeddings of TEXTS."""
    # Here: processes that train do without it.
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as models

    source = folder / "source"
    tiny_backbone().save_pretrained(source)
    tokenizer = tiny_tokenizer()
    if lower:  # the tokenizer itself must not do it
        tokenizer.backend_tokenizer.normalizer = None
    tokenizer.save_pretrained(source)
    options = {"max_seq_length": length} | ({"do_lower_case": True} if lower else {})
    transformer = models.Transformer(str(source), **options)
    modules = [transformer, models.Pooling(32, pooling_mode=pooling), *others]
    peer = SentenceTransformer(modules=modules, device="cpu")
    peer.save(str(folder / "model"))
    return folder / "model", peer.encode(TEXTS)
