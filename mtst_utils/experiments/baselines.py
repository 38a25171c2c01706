"""What the multi-task model is compared with: people, VADER, TF-IDF; and the scores of VADER's
paper.

Taught in notebook 02, section 7.
"""

import numpy as np
import pandas as pd
from scipy.stats import pearsonr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline, make_union
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from mtst_utils.experiments.corpora import SENTIMENTS


def paper_scores(score, rating, domain):
    """Hutto & Gilbert's two figures per domain, for a sentiment score [N] against the mean human
    rating [N].

    Returns a frame indexed by domain: r (Pearson), sign F1 (the sign of the score against the sign
    of the mean rating, F1 averaged over the three classes by support), macro F1 (unweighted;
    neutral is a mean rating within 0.5 of zero, and a score, which must be in [-1, 1] or on the
    rating's own scale, is not thresholded for it: see `three_class`).
    """
    rows = {}
    for name, part in pd.DataFrame({"s": score, "y": rating, "d": np.asarray(domain)}).groupby(
        "d", sort=False
    ):
        f1 = f1_score(np.sign(part.y), np.sign(part.s), average="weighted", zero_division=0)
        rows[name] = {"r": pearsonr(part.s, part.y)[0], "sign F1": f1}
    return pd.DataFrame(rows).T


def human_scores(corpus, ratings):
    """One human rater, the paper's way: every single rating against the mean of its sentence.

    Returns a frame indexed by domain: r, sign F1, macro F1 (three classes, neutral within 0.5 of
    zero).
    """
    ratings = ratings[ratings.row.isin(corpus.index)]
    means = corpus.rating.loc[ratings.row].to_numpy()
    table = paper_scores(ratings.rating.to_numpy(), means, ratings.domain)
    table["macro F1"] = macro_f1(three_class(ratings.rating), three_class(means), ratings.domain)
    return table


def three_class(values, border=0.5):
    """Numbers -> "negative" below -border, "positive" above border, else "neutral"."""
    return np.select(
        [np.asarray(values) < -border, np.asarray(values) > border],
        [SENTIMENTS[0], SENTIMENTS[2]],
        SENTIMENTS[1],
    )


def macro_f1(predicted, truth, domain):
    """Macro F1 over the three sentiments, per domain."""
    frame = pd.DataFrame(
        {"p": np.asarray(predicted), "t": np.asarray(truth), "d": np.asarray(domain)}
    )
    return pd.Series(
        {
            d: f1_score(g.t, g.p, labels=SENTIMENTS, average="macro", zero_division=0)
            for d, g in frame.groupby("d", sort=False)
        }
    )


def vader(texts):
    """VADER's compound score in [-1, 1] for N texts. Its own borders for three classes are -0.05
    and 0.05.
    """
    analyzer = SentimentIntensityAnalyzer()
    return np.array([analyzer.polarity_scores(text)["compound"] for text in texts])


def tfidf():
    """TF-IDF of words (1-2) and characters (2-5) into a logistic regression: an untrained
    scikit-learn pipeline.
    """
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    characters = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 5), min_df=3, sublinear_tf=True
    )
    return make_pipeline(make_union(words, characters), LogisticRegression(C=4, max_iter=1000))


def sentiment_score(probability, labels=SENTIMENTS):
    """Class probabilities [N, 3] -> p(positive) - p(negative), in [-1, 1]."""
    labels = list(labels)
    return probability[:, labels.index("positive")] - probability[:, labels.index("negative")]
