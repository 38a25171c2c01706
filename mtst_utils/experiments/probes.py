"""What embeddings can do as they are: linear probes and triplets.

Taught in notebook 01, section 5.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def logistic_regression(c):
    """A linear probe: features standardised first, since backbones differ in scale."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))


def probe(train, labels, test):
    """Predictions of a logistic regression on frozen embeddings (standardised, C = 0.01, both fixed beforehand)."""
    return logistic_regression(0.01).fit(train, labels).predict(test)


def regularised_probe(model, parts):
    """Logistic regression on frozen embeddings, its strength C chosen on validation for each task.

    parts: frames of sentences and labels by name, "" for test, "training, ", "valid, ". Returns {metric: value}.
    """
    metrics = {}
    x = {name: model.encoder.encode(rows.text, precision="auto") for name, rows in parts.items()}
    for task in model.tasks:
        probes = [logistic_regression(c).fit(x["training, "], parts["training, "][task])
                  for c in (1e-4, 1e-3, 1e-2, 1e-1)]  # fmt: skip
        best = max(probes, key=lambda probe: probe.score(x["valid, "], parts["valid, "][task]))
        for name in ("", "training, "):
            guess, truth = best.predict(x[name]), parts[name][task]
            metrics[f"{name}{task} accuracy"] = (guess == truth).mean()
            metrics[f"{name}{task} macro F1"] = f1_score(truth, guess, average="macro")
    return metrics


def triplet_hits(anchor, paraphrase, distractor):
    """[N] booleans: is the anchor [N, H] nearer (cosine) to its paraphrase than to its distractor?"""
    a, p, d = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (anchor, paraphrase, distractor))
    return (a * p).sum(1) > (a * d).sum(1)
