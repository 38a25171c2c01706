"""The experiments of notebook 04: what a learning rate per layer does to the weights, the features
and the scores.

Each `..._run` trains once and returns (training sentences, {metric: value}); `studies.STUDIES`
lists the settings.
"""

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import f1_score

from mtst_utils.callbacks import GradualUnfreezing
from mtst_utils.encoder import cosine_matrix
from mtst_utils.experiments import results
from mtst_utils.experiments.corpora import load_sample_sentences, load_triplets
from mtst_utils.experiments.probes import EveryLayer, probe, triplet_hits
from mtst_utils.experiments.transfer import Curve, drift, layer_states, new_model, scores, split
from mtst_utils.layers import layer_stack
from mtst_utils.learning_rates import layerwise_lr_groups
from mtst_utils.training import fit

LOOKED_AT = (20, 40, 60, 90)  # steps after which validation sentences are looked at, the end apart


def upside_down(groups):
    """The same groups with the backbone's rates in the opposite order: the embeddings learn
    fastest, the top slowest.
    """
    layers = list(dict.fromkeys(group["layer"] for group in groups if group["layer"] != "heads"))
    rate = {group["layer"]: group["lr"] for group in groups}
    mirrored = dict(zip(layers, [rate[layer] for layer in reversed(layers)], strict=True))
    return [group | {"lr": mirrored.get(group["layer"], group["lr"])} for group in groups]


def weights_of(backbone):
    """A copy of every layer's weights, to measure a distance to later."""
    return [
        [p.detach().clone() for p in layer.parameters.values()] for layer in layer_stack(backbone)
    ]


def distance(backbone, start):
    """{metric: |w - start| / |start|} per layer: how far its weights are from where they were,
    relative to their size.
    """
    metrics = {}
    for layer, before in zip(layer_stack(backbone), start, strict=True):
        moved = sum(
            (p.detach() - b).square().sum()
            for p, b in zip(layer.parameters.values(), before, strict=True)
        )
        size = sum(b.square().sum() for b in before)
        metrics[f"distance to pretrained, {layer.name}"] = float((moved / size).sqrt())
    return metrics


def sample_similarities(encoder):
    """[P]: the cosines of all pairs of sample sentences."""
    cosines = cosine_matrix(encoder.encode(load_sample_sentences().text, precision="auto"))
    return cosines[np.triu_indices_from(cosines, 1)]


def layer_probes(encoder, train, parts):
    """{metric: value}: a linear probe for domain (accuracy) and for sentiment (macro F1) on the
    output of every layer.

    parts: frames to score on, by the prefix of their metrics.
    """
    every, size, metrics = EveryLayer(encoder.backbone, encoder.tokenizer), encoder.dimension, {}
    known, *asked = (
        every.encode(rows.text, precision="auto").reshape(len(rows), -1, size)
        for rows in (train, *parts.values())
    )
    for i, layer in enumerate(layer_stack(encoder.backbone)):
        for (prefix, rows), states in zip(parts.items(), asked, strict=True):
            guess = {
                task: probe(known[:, i], train[task], states[:, i])
                for task in ("domain", "sentiment")
            }
            metrics[f"{prefix}domain accuracy, {layer.name}"] = (
                guess["domain"] == rows.domain
            ).mean()
            f1 = f1_score(rows.sentiment, guess["sentiment"], average="macro")
            metrics[f"{prefix}sentiment macro F1, {layer.name}"] = f1
    return metrics


def probes_run(backbone, seed, scale, pretrained=True, n=2000):
    """What each layer's output is good for, before any training; on all test sentences, and on all
    of validation.
    """
    frame = split("train").sample(n if scale == "full" else 200, random_state=seed)
    encoder = new_model(backbone, seed=seed, pretrained=pretrained).encoder
    return len(frame), layer_probes(encoder, frame, {"": split("test"), "valid, ": split("valid")})


class BothTasks(Curve):
    """A Curve of each task's figure."""

    def look(self, model):
        return main_scores(model, self.frame, "valid, ")


def main_scores(model, frame, prefix):
    """The two figures that the series goes by: accuracy for domain, macro F1 for sentiment, whose
    classes are uneven.
    """
    asked = (f"{prefix}domain accuracy", f"{prefix}sentiment macro F1")
    return {name: value for name, value in scores(model, frame, prefix).items() if name in asked}


def layerwise_run(
    backbone,
    seed,
    scale,
    decay,
    lr=2e-4,
    n=4000,
    epochs=1,
    head_lr=1e-3,
    mirrored=False,
    gradual=False,
):
    """Both tasks on n sentences with one decay and base rate; test, training and validation scores,
    and what has moved.
    """
    frame = split("train").sample(n if scale == "full" else 96, random_state=seed)
    model, valid = new_model(backbone, seed=seed), split("valid", 1000)
    start, states = weights_of(model.encoder.backbone), layer_states(model, valid.text[:100])
    similar = sample_similarities(model.encoder)
    groups = layerwise_lr_groups(model, lr, decay, head_lr)
    optimizer = torch.optim.AdamW(upside_down(groups) if mirrored else groups, fused=True)
    curve = BothTasks(valid[:300], LOOKED_AT)
    callbacks = [curve, GradualUnfreezing(0.2, 0.6, lr, decay)] if gradual else [curve]
    history = fit(
        model,
        frame,
        epochs=epochs,
        optimizer=optimizer,
        seed=seed,
        callbacks=callbacks,
        progress=False,
    )
    metrics = scores(model, split("test", 2000)) | main_scores(model, frame[:500], "training, ")
    metrics |= (
        main_scores(model, valid, "valid, ")
        | curve.points
        | distance(model.encoder.backbone, start)
    )
    metrics |= drift(states, layer_states(model, valid.text[:100]))
    triplets = (
        model.encoder.encode(column, precision="auto") for _, column in load_triplets().items()
    )
    metrics |= {
        "triplets right": triplet_hits(*triplets).mean(),
        "loss, last 10 steps": history["loss"].tail(10).mean(),
        "correlation of similarities": np.corrcoef(similar, sample_similarities(model.encoder))[
            0, 1
        ],
    }
    return len(frame), metrics


def grid(study, metric):
    """The study's means over seeds as a table: a row a decay (from 1 down), a column a base
    rate.
    """
    table = results.means(study, [metric])
    table[["decay", "base rate"]] = table.setting.str.extract(
        r"^decay ([\d.]+), rate ([\d.e-]+)$"
    ).astype(float)
    return table.pivot_table(index="decay", columns="base rate", values="value").sort_index(
        ascending=False
    )


def grid_against_one(study, metric):
    """The same grid as differences to decay 1 at the same base rate, paired by seed: a row a cell
    with decay, base rate, effect, low, high (95 % t interval), seeds.
    """
    cells = [
        (decay, rate)
        for decay in grid(study, metric).index
        for rate in grid(study, metric).columns
        if decay != 1
    ]
    rows = [
        results.paired(study, f"decay {d:g}, rate {r:g}", f"decay 1, rate {r:g}", metric)
        for d, r in cells
    ]
    return pd.DataFrame(cells, columns=["decay", "base rate"]).join(pd.DataFrame(rows))
