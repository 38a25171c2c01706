"""The experiments of notebook 02: one model for both tasks, beside single tasks, people, VADER and
the published table.

Each `..._run` returns (training sentences, {metric: value}); `studies.STUDIES` lists the settings.
"""

import numpy as np
import torch
from sklearn.metrics import f1_score

from mtst_utils.experiments.baselines import (
    human_scores,
    macro_f1,
    paper_scores,
    sentiment_score,
    tfidf,
    three_class,
    vader,
)
from mtst_utils.experiments.corpora import (
    expected_rating,
    load_human_ratings,
    load_rated_sentences,
    rating_step,
)
from mtst_utils.experiments.transfer import new_model
from mtst_utils.learning_rates import default_optimizer
from mtst_utils.multitask import MultiTaskModel
from mtst_utils.training import fit


def scores_on(model, test, prefix=""):
    """{metric: value}: accuracy and macro F1 per task, and per domain the paper's figures, from the
    rating if it is learned.
    """
    probabilities = model.probabilities(test.text)
    metrics, predicted = {}, {}
    for name, probability in probabilities.items():
        if name == "rating":
            continue  # a number: its figures are the paper's
        predicted[name] = np.array(model.tasks[name].labels)[probability.argmax(1)]
        metrics[f"{name} accuracy"] = (predicted[name] == test[name]).mean()
        metrics[f"{name} macro F1"] = f1_score(test[name], predicted[name], average="macro")
    score = sentiment_score(probabilities["sentiment"]) if "sentiment" in probabilities else None
    if "rating step" in probabilities:  # what is asked for itself, and not a stand-in
        score = expected_rating(probabilities["rating step"])
    if "rating" in probabilities:
        score = probabilities["rating"][:, 0]
    if score is not None:
        three = predicted.get("sentiment", three_class(score))
        metrics |= per_domain(
            paper_scores(score, test.rating, test.domain),
            macro_f1(three, test.sentiment, test.domain),
        )
    return {f"{prefix}{name}": value for name, value in metrics.items()}


def per_domain(paper, f1):
    """The paper's figures and the macro F1 per domain as {metric: value}."""
    table = paper.assign(**{"macro F1": f1})
    return {
        f"{domain}, {name}": table.loc[domain, name] for domain in table.index for name in table
    }


def training_run(
    backbone,
    seed,
    scale,
    tasks=("domain", "sentiment"),
    n=None,
    epochs=2,
    lr=2e-4,
    decay=0.9,
    asked="test",
    **weights,
):
    """Train on n sentences (None: all) and score on the split that is asked."""
    corpus = load_rated_sentences()
    corpus["rating step"] = rating_step(corpus.rating)
    train = corpus[corpus.split == "train"]
    n = min(n or len(train), len(train) if scale == "full" else 1500)
    model = new_model(backbone, tasks, seed, **weights)
    # The same seed draws the same sentences, the same order and the same starting weights in every
    # setting: paired.
    optimizer = default_optimizer(model, lr, decay)
    fit(
        model,
        train.sample(n, random_state=seed),
        epochs=epochs,
        optimizer=optimizer,
        seed=seed,
        progress=False,
    )
    return n, scores_on(
        model, corpus[corpus.split == asked], "" if asked == "test" else f"{asked}, "
    )


def baseline_run(backbone, seed, scale, name):
    corpus = load_rated_sentences()
    train, test = corpus[corpus.split == "train"], corpus[corpus.split == "test"]
    if name == "one human rater":
        table = human_scores(test, load_human_ratings())
        return 0, per_domain(table[["r", "sign F1"]], table["macro F1"])
    if name == "VADER":
        score = vader(test.text)
        predicted = three_class(score, border=0.05)  # the borders its authors state
        n = 0
    else:
        model = tfidf().fit(train.text, train.sentiment)
        score, predicted = (
            sentiment_score(model.predict_proba(test.text), model.classes_),
            model.predict(test.text),
        )
        n = len(train)
    metrics = {
        "sentiment accuracy": (predicted == test.sentiment).mean(),
        "sentiment macro F1": f1_score(test.sentiment, predicted, average="macro"),
    }
    if n:
        predicted_domain = tfidf().fit(train.text, train.domain).predict(test.text)
        metrics |= {
            "domain accuracy": (predicted_domain == test.domain).mean(),
            "domain macro F1": f1_score(test.domain, predicted_domain, average="macro"),
        }
    return n, metrics | per_domain(
        paper_scores(score, test.rating, test.domain),
        macro_f1(predicted, test.sentiment, test.domain),
    )


class UncertaintyWeighted(MultiTaskModel):
    """Kendall et al. 2018: loss = sum of exp(-s) * loss + s, with one learned s per task."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.log_variance = torch.nn.ParameterDict({name: torch.zeros(()) for name in self.tasks})

    def total_loss(self, losses):
        return sum(
            value * (-self.log_variance[name]).exp() + self.log_variance[name]
            for name, value in losses.items()
        )


def combination_run(backbone, seed, scale, how, n=1500, epochs=2):
    """One way of training both tasks, all on the same 1,500 sentences and the same number of steps
    for each task.
    """
    corpus = load_rated_sentences()
    train = corpus[corpus.split == "train"].sample(n if scale == "full" else 300, random_state=seed)
    model = new_model(backbone, seed=seed, **({"sentiment": how} if isinstance(how, float) else {}))
    if how == "uncertainty":
        model = UncertaintyWeighted(model.encoder, model.tasks.values())
    if isinstance(how, tuple):  # one after the other: the first task alone, then the second alone
        for other in reversed(how):
            fit(model, train.drop(columns=other), epochs=epochs, seed=seed, progress=False)
    else:
        fit(model, train, epochs=epochs, seed=seed, progress=False)
    return len(train), scores_on(model, corpus[corpus.split == "test"])
