"""Encoding real sentences: sentence-transformers, with OpenVINO too, `SentenceEncoder`, and the
matrix multiplications alone, as a ceiling.

Like with like: in bfloat16 the peer's weights are loaded in bfloat16, which is its quickest way
(quicker than autocast).

python -m tests.benchmarks.encoding [--backbone all-mpnet-base-v2] [--sentences 2000] [--repeats 5]
"""

import math
import os
import sys
import time

import numpy as np
import pandas as pd
import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from mtst_utils.encoder import SentenceEncoder
from mtst_utils.experiments.corpora import load_rated_sentences
from mtst_utils.experiments.results import RESULTS
from mtst_utils.precision import has_quick_bfloat16
from tests.benchmarks import openvino
from tests.benchmarks.common import OPENVINO, PEERS, compare

HALF = {"float32": False, "bfloat16": True}


def texts(sentences):
    """Of the corpus, some several times where it has fewer."""
    known = load_rated_sentences().text
    return known.sample(sentences, replace=sentences > len(known), random_state=0).tolist()


def sentence_transformer(precision):
    name = SentenceEncoder.from_pretrained().backbone.name_or_path
    return SentenceTransformer(
        name, device="cpu", model_kwargs={"dtype": getattr(torch, precision)}
    )


def peer(precision):
    def measured(sentences):
        model, asked = sentence_transformer(precision), texts(sentences)
        model.encode(asked[:64], batch_size=32)
        started = time.perf_counter()
        model.encode(asked, batch_size=32)
        return time.perf_counter() - started

    return measured


def peer_with_openvino(precision):
    def measured(sentences):
        folder = SentenceEncoder.from_pretrained().backbone.name_or_path
        return openvino.seconds(folder, precision, texts(sentences))

    return measured


def ours(precision):
    def measured(sentences):
        encoder, asked = SentenceEncoder.from_pretrained(), texts(sentences)
        encoder.encode(asked[:64], precision=precision)
        started = time.perf_counter()
        encoder.encode(asked, precision=precision)
        return time.perf_counter() - started

    return measured


def ceiling(precision):
    """The same linear layers on inputs of the same shapes, one after the other, and nothing
    else.
    """

    def measured(sentences):
        encoder, calls = SentenceEncoder.from_pretrained(), []
        layers = [module for module in encoder.backbone.modules() if isinstance(module, nn.Linear)]
        for layer in layers:
            layer.register_forward_pre_hook(
                lambda module, inputs: calls.append((module, tuple(inputs[0].shape)))
            )
        encoder.encode(texts(sentences), precision=precision)
        kind = torch.bfloat16 if HALF[precision] else torch.float32
        # `encode` runs a view of the backbone, whose layers these are.
        weights = {layer: layer.weight.detach().to(kind) for layer, _ in calls}
        inputs = {shape: torch.randn(shape, dtype=kind) for _, shape in calls}
        started = time.perf_counter()
        with torch.inference_mode():
            for layer, shape in calls:
                nn.functional.linear(inputs[shape], weights[layer])
        seconds = time.perf_counter() - started
        products = sum(2 * math.prod(shape) * layer.out_features for layer, shape in calls)
        print(f"{products / seconds / 1e9:.0f} GFLOP/s")
        return seconds

    return measured


RUNS = {
    name: run(precision)
    for precision in HALF
    for name, run in (
        (PEERS[precision], peer),
        (f"{OPENVINO}, {precision}", peer_with_openvino),
        (f"SentenceEncoder, {precision}", ours),
        (f"matrix multiplications alone, {precision}", ceiling),
    )
}


def parity(sentences=500):
    """How far our vectors, and the peer's in bfloat16, are from the peer's in float32, kept in
    data/results/parity.csv.
    """
    encoder, asked = SentenceEncoder.from_pretrained(), texts(sentences)
    theirs = sentence_transformer("float32").encode(asked, normalize_embeddings=True)
    found = {precision: encoder.encode(asked, precision=precision) for precision in HALF}
    found[PEERS["bfloat16"]] = sentence_transformer("bfloat16").encode(asked)
    backbone, rows = os.environ.get("MTST_BACKBONE", "all-MiniLM-L6-v2"), []
    for precision, own in found.items():
        own = own.astype("float32") / np.linalg.norm(own.astype("float32"), axis=1, keepdims=True)
        row = {
            "largest difference": np.abs(own - theirs).max(),
            "lowest cosine": (own * theirs).sum(1).min(),
        }
        rows.append({"backbone": backbone, "precision": precision, "sentences": sentences} | row)
    print(pd.DataFrame(rows).to_string())
    file = RESULTS / "parity.csv"
    old = pd.read_csv(file).query("backbone != @backbone") if file.is_file() else None
    pd.concat([old, pd.DataFrame(rows)]).to_csv(file, index=False)


if __name__ == "__main__":
    if "--backbone" in sys.argv:  # the processes that measure must see it, too
        os.environ["MTST_BACKBONE"] = sys.argv.pop(sys.argv.index("--backbone") + 1)
        sys.argv.remove("--backbone")
    quick = has_quick_bfloat16(torch.device("cpu"))
    # Rows of their own: README and figure quote a processor that is quick at both.
    question = f"encoding, {os.environ.get('MTST_BACKBONE', 'all-MiniLM-L6-v2')}"
    question += "" if quick else ", where bfloat16 is slow"
    compare(
        question,
        "tests.benchmarks.encoding",
        RUNS,
        lambda name: PEERS[name.rpartition(" ")[2]],
        2000,
        __doc__,
    )
    if quick and "--only" not in sys.argv:
        parity()
