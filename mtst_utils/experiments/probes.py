"""What embeddings can do as they are: linear probes and triplets.

Taught in notebook 01, section 5.
"""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mtst_utils.encoder import SentenceEncoder
from mtst_utils.pooling import masked_mean


class EveryLayer(SentenceEncoder):
    """The mean-pooled output of every layer side by side, the embeddings first: [B, (L+1) * H]."""

    @property
    def dimension(self):
        return super().dimension * (self.backbone.config.num_hidden_layers + 1)

    def forward(self, input_ids, attention_mask):
        hidden = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True
        ).hidden_states
        return torch.cat([masked_mean(states.float(), attention_mask) for states in hidden], dim=-1)


def two_blocks(encoder, sentences):
    """The mean-pooled outputs of the middle and the top block (of six: blocks 3 and 5) side by
    side: float32 [N, 2H].
    """
    blocks, size = encoder.backbone.config.num_hidden_layers, encoder.dimension
    every = EveryLayer(encoder.backbone, encoder.tokenizer).encode(sentences, precision="auto")
    return every.reshape(len(every), -1, size)[:, [1 + blocks // 2, blocks]].reshape(len(every), -1)


def logistic_regression(c, class_weight=None):
    """A linear probe: features standardised first, since backbones differ in scale."""
    return make_pipeline(
        StandardScaler(), LogisticRegression(C=c, class_weight=class_weight, max_iter=1000)
    )


def probe(train, labels, test):
    """Predictions of a logistic regression on frozen embeddings (standardised, C = 0.01, both fixed
    beforehand).
    """
    return logistic_regression(0.01).fit(train, labels).predict(test)


def regularised_probe(model, parts):
    """Logistic regression on frozen embeddings, its strength C chosen on validation for each task.

    parts: frames of sentences and labels by name, "" for test, "training, ", "valid, ". Returns
    {metric: value}.
    """
    metrics = {}
    x = {name: model.encoder.encode(rows.text, precision="auto") for name, rows in parts.items()}
    for task in model.tasks:
        probes = [
            logistic_regression(c).fit(x["training, "], parts["training, "][task])
            for c in (1e-4, 1e-3, 1e-2, 1e-1)
        ]
        best = max(probes, key=lambda probe: probe.score(x["valid, "], parts["valid, "][task]))
        for name in ("", "training, "):
            guess, truth = best.predict(x[name]), parts[name][task]
            metrics[f"{name}{task} accuracy"] = (guess == truth).mean()
            metrics[f"{name}{task} macro F1"] = f1_score(truth, guess, average="macro")
    return metrics


def ridge_guesses(x, y, asked, strengths):
    """What ridge classifiers on every layer, at every strength, say of other rows.

    In closed form: one decomposition of an N x N matrix a layer serves all strengths. Features are
    standardised, and classes weigh the same. x: [layers, N, H]; y: codes [N]; asked: [layers, M,
    H]. Returns codes [len(strengths) * layers, M], the first strength's layers first. Taught in
    notebook 03, section 7.
    """
    counts = np.bincount(y)
    weight = np.sqrt(len(y) / ((counts > 0).sum() * counts[y]))[:, None]
    mean, spread = x.mean(1, keepdims=True), x.std(1, keepdims=True) + 1e-6
    a, b = (x - mean) / spread, (asked - mean) / spread
    truth = 2 * np.eye(len(counts))[y] - 1
    center = (weight**2 * truth).sum(0) / (weight**2).sum()  # what is said of the weighted mean
    middle = (weight**2 * a).sum(1, keepdims=True) / (weight**2).sum()
    a, b = (a - middle) * weight, b - middle
    values, vectors = np.linalg.eigh(a @ a.swapaxes(1, 2))
    wanted = vectors.swapaxes(1, 2) @ ((truth - center) * weight)
    near = b @ a.swapaxes(1, 2) @ vectors
    scores = [near @ (wanted / (values + s)[..., None]) + center for s in strengths]
    return np.concatenate(scores).argmax(-1)


def macro_f1(truth, said, classes):
    """Macro F1 of codes [..., N] against the truth [N], from 0 to 1; a class neither there nor said
    counts 0.
    """
    f1 = []
    for k in range(classes):
        hits = ((said == k) & (truth == k)).sum(-1)
        f1.append(2 * hits / np.maximum((said == k).sum(-1) + (truth == k).sum(-1), 1))
    return np.mean(f1, axis=0)


def triplet_hits(anchor, paraphrase, distractor):
    """[N] booleans: is the anchor [N, H] nearer (cosine) to its paraphrase than to its
    distractor?
    """
    a, p, d = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (anchor, paraphrase, distractor)
    )
    return (a * p).sum(1) > (a * d).sum(1)
