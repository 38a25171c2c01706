"""The experiments of notebook 03: what freezing keeps, what it costs, and how to carry a pretrained
model over.

Each `..._run` trains once and returns (training sentences, {metric: value}); `studies.STUDIES`
lists the settings.
"""

import copy
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from torch.nn.functional import log_softmax

from mtst_utils.backbones import untrained_twin
from mtst_utils.callbacks import GradualUnfreezing
from mtst_utils.encoder import SentenceEncoder, eval_mode
from mtst_utils.evaluation import evaluate
from mtst_utils.experiments.corpora import DOMAINS, RATING_STEPS, SENTIMENTS, load_rated_sentences
from mtst_utils.experiments.probes import logistic_regression, regularised_probe, two_blocks
from mtst_utils.freezing import freeze, unfreeze
from mtst_utils.learning_rates import layerwise_lr_groups
from mtst_utils.multitask import MultiTaskModel, RegressionTask, Task
from mtst_utils.pooling import masked_mean
from mtst_utils.precision import autocast
from mtst_utils.training import fit, seed_everything

CURVE = (15, 30, 60, 90, 120)  # steps on task B after which task A is looked at


def new_model(backbone=None, tasks=("domain", "sentiment"), seed=0, pretrained=True, **weights):
    """An untrained MultiTaskModel for the rated sentences; pretrained=False: its backbone is random
    too; weights: {task name: its weight in the loss}.
    """
    seed_everything(seed)
    labels = {"domain": tuple(DOMAINS), "sentiment": SENTIMENTS, "rating step": RATING_STEPS}
    encoder = SentenceEncoder.from_pretrained(backbone)
    if not pretrained:
        encoder.backbone = untrained_twin(encoder.backbone)
    made = [
        RegressionTask(name, weights.get(name, 1.0))
        if name == "rating"
        else Task(name, labels[name], weights.get(name, 1.0))
        for name in tasks
    ]
    return MultiTaskModel(encoder, made)


def split(name, n=None, seed=0):
    """A split of the rated sentences, or n of its rows; for validation and test always the same
    ones (seed 0).
    """
    corpus = load_rated_sentences()
    rows = corpus[corpus.split == name]
    return rows if n is None or n >= len(rows) else rows.sample(n, random_state=seed)


def scores(model, frame, prefix=""):
    """{metric: value}: accuracy and macro F1 of every task that the frame has labels for."""
    table = evaluate(model, frame)
    return {
        f"{prefix}{row.task} {name}": row[name]
        for _, row in table.iterrows()
        for name in ("accuracy", "macro F1")
    }


def batch(model, rows):
    """A frame's sentences and labels as `model(*inputs, labels=labels)` takes them."""
    labels = {name: task.encode(rows[name]) for name, task in model.tasks.items()}
    return model.encoder.collate(model.encoder.tokenize(rows.text.tolist())[0]), labels


def kept_for_backward(model, inputs, labels):
    """MiB that one step keeps between forward and backward; the weights do not count."""
    weights, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def note(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # held: no address is used twice
        # Nothing is handed back, as no way back follows. The tensor itself would, where a step
        # keeps its own result (softmax), close a circle that is never freed.

    with torch.autograd.graph.saved_tensors_hooks(note, lambda nothing: nothing):
        model.train()(*inputs, labels=labels)
    return sum(storage.nbytes() for place, storage in kept.items() if place not in weights) / 2**20


def layer_states(model, sentences):
    """Mean-pooled hidden states [layers + 1, N, H] of every layer, the embeddings first."""
    inputs = model.encoder.collate(model.encoder.tokenize(list(sentences))[0])
    with torch.inference_mode(), eval_mode(model), autocast("auto", model.encoder.backbone.device):
        hidden = model.encoder.backbone(
            input_ids=inputs[0], attention_mask=inputs[1], output_hidden_states=True
        )
        return torch.stack(
            [masked_mean(states.float(), inputs[1]) for states in hidden.hidden_states]
        )


def drift(before, after):
    """{metric: cosine of a sentence's states before and after, mean over sentences} per layer."""
    cosines = torch.cosine_similarity(before, after, dim=-1).mean(1).tolist()
    names = ["embeddings", *(f"block {i}" for i in range(len(cosines) - 1))]
    return {f"cosine to before, {name}": value for name, value in zip(names, cosines, strict=True)}


def train(model, frame, epochs, seed, lr=1e-4, head_lr=1e-3, decay=0.9, callbacks=()):
    """`fit` with layer-wise rates; everything that does not depend on the recipe is the same for
    every recipe.
    """
    optimizer = torch.optim.AdamW(layerwise_lr_groups(model, lr, decay, head_lr), fused=True)
    return fit(
        model,
        frame,
        epochs=epochs,
        optimizer=optimizer,
        seed=seed,
        callbacks=callbacks,
        progress=False,
    )


def train_heads(model, frame, seed, steps=400):
    """Train the heads alone, on embeddings that the cache keeps: a linear probe. Cheap, so it gets
    more steps.
    """
    freeze(model.encoder.backbone)
    optimizer = torch.optim.AdamW(model.heads.parameters(), lr=1e-2, weight_decay=0.01)
    fit(
        model,
        frame,
        epochs=max(2, steps * 32 // len(frame)),
        optimizer=optimizer,
        seed=seed,
        progress=False,
    )


class Distilled(MultiTaskModel):
    """Learning without Forgetting (Li & Hoiem 2016): the old head must go on saying what it said
    before, on the new sentences; no label of the old task is needed. The model from before answers
    beside this one, at temperature 2.
    """

    def __init__(self, model, task, weight=1.0):
        super().__init__(model.encoder, model.tasks.values(), model.dropout.p)
        self.heads, self.task, self.weight = model.heads, task, weight
        before = copy.deepcopy(model)
        freeze(before)
        vars(self)["before"] = before  # not a submodule: it is neither trained nor saved

    def forward(self, input_ids, attention_mask, labels=None):
        output = super().forward(input_ids, attention_mask, labels)
        if labels is None:
            return output
        with torch.no_grad():
            old = self.before(input_ids, attention_mask).logits[self.task]
        new, old = log_softmax(output.logits[self.task] / 2, -1), log_softmax(old / 2, -1)
        output.losses[f"keep {self.task}"] = (
            4 * self.weight * (old.exp() * (old - new)).sum(-1).mean()
        )
        output.loss = self.total_loss(output.losses)
        return output

    def total_loss(self, losses):
        return sum(losses.values())


class PullToStart:
    """A callback of `fit`: after each step, the encoder goes a little of the way back to where it
    started.

    An L2 penalty on the distance to the start (Li et al. 2018, L2-SP), decoupled from the gradient
    as AdamW's decay is.
    """

    def __init__(self, model, strength):
        self.parameters, self.strength = list(model.encoder.parameters()), strength
        self.start = [parameter.detach().clone() for parameter in self.parameters]

    def on_step(self, run):
        with torch.no_grad():
            for parameter, start in zip(self.parameters, self.start, strict=True):
                parameter.lerp_(start, self.strength * run.optimizer.param_groups[-1]["lr"] / 1e-3)


class Curve:
    """A callback of `fit`: what `look` finds on validation sentences after some of the steps; here
    task A's accuracy.
    """

    def __init__(self, frame, steps=CURVE):
        self.frame, self.steps, self.points = frame, steps, {}

    def on_step(self, run):
        if run.step in self.steps:
            self.points |= {
                f"{name}, step {run.step}": value for name, value in self.look(run.model).items()
            }

    def look(self, model):
        return {
            "domain accuracy on validation": evaluate(
                model, self.frame[["text", "domain"]]
            ).accuracy[0]
        }


@lru_cache(maxsize=1)
def after_task_a(backbone, seed, n):
    """A model trained on domain alone for one epoch of n sentences, and its accuracies."""
    model = new_model(backbone, seed=seed)
    train(model, split("train").sample(n, random_state=seed)[["text", "domain"]], 1, seed)
    return model, scores(model, split("test", 2000)[["text", "domain"]], "before, ")


def forgetting_run(backbone, seed, scale, how, source=None, n=3840, n_first=4000):
    """Train A, freeze its head (unless how says otherwise), train B on n other sentences, and see
    what is left of A.
    """
    n = n if scale == "full" else 960
    trained, before = after_task_a(backbone, seed, n_first)
    model, first = copy.deepcopy(trained), split("train").sample(n_first, random_state=seed)
    others = split("train").drop(first.index)
    others = others[others.domain == source] if source else others
    frame = others.sample(n, random_state=seed)
    if "joint" not in how:
        frame = frame.drop(columns="domain")
    if how != "joint" and how != "head A not frozen":
        freeze(model.heads["domain"])
    if "backbone frozen" in how:
        freeze(model.encoder.backbone)
    if how == "replay":  # one sentence in eleven, from 200 that A was trained on
        frame = pd.concat(
            [
                frame,
                first[:200]
                .drop(columns="sentiment")
                .sample(n // 10, replace=True, random_state=seed),
            ]
        )
    curve = Curve(split("valid", 400))
    callbacks = [curve, PullToStart(model, 0.03)] if how == "L2 to the start" else [curve]
    states = layer_states(model, curve.frame.text[:100])
    learner = Distilled(model, "domain", float(how.split()[-1])) if "distillation" in how else model
    if how.endswith(
        "head trained to the end"
    ):  # the others' 120 steps leave a head on frozen embeddings half-way
        train_heads(model, frame, seed)
    else:
        train(
            learner,
            frame,
            1,
            seed,
            lr=1e-5 if how == "a tenth of the rate" else 1e-4,
            callbacks=callbacks,
        )
    after = drift(states, layer_states(model, curve.frame.text[:100]))
    return n, before | scores(model, split("test", 2000)) | curve.points | after


def frozen_run(backbone, seed, scale, what, n=640):
    """Train with a part frozen, by an optimizer that knows every parameter: what has moved, and
    what was learned?
    """
    frame, test = (
        split("train").sample(n if scale == "full" else 64, random_state=seed),
        split("test", 2000),
    )
    model = new_model(backbone, seed=seed)
    parts = {
        "encoder": model.encoder,
        "head A": model.heads["domain"],
        "head B": model.heads["sentiment"],
    }
    metrics = scores(model, test, "before, ") | scores(model, frame, "before, training, ")
    start = {name: [p.detach().clone() for p in part.parameters()] for name, part in parts.items()}
    optimizer = torch.optim.AdamW(layerwise_lr_groups(model, 2e-4, 0.9, 1e-3), fused=True)
    freeze({"everything": model, "head A": parts["head A"]}[what])
    fit(model, frame, epochs=1, optimizer=optimizer, seed=seed, progress=False)
    for name, part in parts.items():
        moved = [
            (p - q).abs().max().item() for p, q in zip(part.parameters(), start[name], strict=True)
        ]
        metrics[f"largest change, {name}"] = max(moved)
    return len(frame), metrics | scores(model, test) | scores(model, frame, "training, ")


def transfer_run(backbone, seed, scale, recipe, lr=3e-4, ratio=10, pretrained=True, n=1000):
    """One recipe on the same n sentences, and (a linear probe apart) the same number of steps."""
    frame = split("train").sample(n if scale == "full" else 256, random_state=seed)
    model = new_model(backbone, seed=seed, pretrained=pretrained)
    states = layer_states(model, split("valid", 400).text[:100])
    train_by(recipe, model, frame, seed, lr, lr * ratio)
    after = drift(states, layer_states(model, split("valid", 400).text[:100]))
    return len(frame), scores(model, split("test", 2000)) | scores(
        model, frame[:500], "training, "
    ) | after


def train_by(recipe, model, frame, seed, lr=3e-4, head_lr=3e-3):
    """Four epochs by a recipe: "probe", "full", "gradual", "probe, then full" (one epoch of the
    four on the heads), or "full" with layer-wise rates: "decay 0.8".
    """
    if recipe == "probe":
        train_heads(model, frame, seed)
        return
    epochs, callbacks = (
        4,
        [GradualUnfreezing(0.2, 0.6, lr, decay=1.0)] if recipe == "gradual" else [],
    )
    if recipe == "probe, then full":
        freeze(model.encoder.backbone)
        train(model, frame, 1, seed, head_lr=head_lr)
        unfreeze(model.encoder.backbone)
        epochs = 3
    decay = float(recipe.removeprefix("decay ")) if recipe.startswith("decay ") else 1.0
    train(model, frame, epochs, seed, lr, head_lr, decay, callbacks)


LABELS = {32: 80, 128: 20, 512: 6, 2048: 2, None: 1}  # {sentences with labels: epochs}; None: all


@lru_cache(maxsize=3)
def frozen_features(backbone, name, n=None):
    """`two_blocks` of a split's rows, by their index: kept, since a frozen backbone's outputs never
    change.
    """
    rows = split(name, n)
    return pd.DataFrame(two_blocks(new_model(backbone).encoder, rows.text), index=rows.index)


def two_block_scores(backbone, frame, asked, c):
    """{metric: value} of a logistic regression per task on two frozen blocks, the classes weighted
    alike.

    asked: for each prefix of metrics the rows to score on, and the features that these are among.
    """
    known, metrics = frozen_features(backbone, "train").loc[frame.index], {}
    for task in ("domain", "sentiment"):
        probe = logistic_regression(c, "balanced").fit(known, frame[task])
        for prefix, (rows, features) in asked.items():
            guess, truth = probe.predict(features.loc[rows.index]), rows[task]
            metrics[f"{prefix}{task} accuracy"] = (guess == truth).mean()
            metrics[f"{prefix}{task} macro F1"] = f1_score(truth, guess, average="macro")
    return metrics


def labels_run(backbone, seed, scale, n, recipe, c=0.01, tuning=False):
    """Frozen backbone or everything trained, on n labelled sentences; scores on test, and on (1,000
    of) the training rows.

    tuning: on other draws of training sentences, with scores on validation in place of test.
    """
    asked, prefix = (("valid", 1000), "valid, ") if tuning else (("test", 2000), "")
    seed += 100 * tuning
    frame, rows = split("train", n, seed), split(*asked)
    some = frame.sample(min(1000, len(frame)), random_state=seed)
    if recipe == "two-block probe":
        known = frozen_features(backbone, "train")
        parts = {prefix: (rows, frozen_features(backbone, *asked)), "training, ": (some, known)}
        return len(frame), two_block_scores(backbone, frame, parts, c)
    model = new_model(backbone, seed=seed)
    if recipe == "backbone frozen, regularised":
        parts = {"": rows, "training, ": frame, "valid, ": split("valid", 1000)}
        return len(frame), regularised_probe(model, parts)
    if recipe == "backbone frozen":
        train_heads(model, frame, seed)
    else:
        train(model, frame, LABELS[n] if scale == "full" else 1, seed, lr=2e-4)
    return len(frame), scores(model, rows, prefix) | scores(model, some, "training, ")


def out_of_domain_run(backbone, seed, scale, recipe, held_out, n=640):
    """Sentiment learned on three domains, tested on sentences of those, and of the fourth."""
    rows, test = split("train"), split("test")
    frame = (
        rows[rows.domain != held_out]
        .sample(n if scale == "full" else 256, random_state=seed)
        .drop(columns="domain")
    )
    model = new_model(backbone, ("sentiment",), seed)
    train_by(recipe, model, frame, seed)
    metrics = {}
    for where, asked in (
        ("three domains", test[test.domain != held_out]),
        ("held out", test[test.domain == held_out]),
    ):
        asked = asked.sample(min(800, len(asked)), random_state=0).drop(columns="domain")
        metrics |= scores(model, asked, f"{where}, ")
    return len(frame), metrics


def untrained_run(backbone, seed, scale, pretrained=True, n=512):
    """What embeddings can do without any training: five nearest neighbours, nearest class centroid,
    majority.
    """
    model = new_model(backbone, seed=seed, pretrained=pretrained)
    frame, test = split("train").sample(n, random_state=seed), split("test", 2000)
    known, asked = (model.encoder.encode(rows.text, precision="auto") for rows in (frame, test))
    metrics = {}
    for task in ("domain", "sentiment"):
        guesses = {
            "5 nearest neighbours": KNeighborsClassifier(5, metric="cosine")
            .fit(known, frame[task])
            .predict(asked),
            "nearest centroid": NearestCentroid().fit(known, frame[task]).predict(asked),
            "majority": np.full(len(test), frame[task].mode()[0]),
        }
        for name, guess in guesses.items():
            metrics[f"{name}, {task} accuracy"] = (guess == test[task]).mean()
            metrics[f"{name}, {task} macro F1"] = f1_score(test[task], guess, average="macro")
    return n, metrics
