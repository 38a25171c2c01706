"""I have 16 to 2,048 labelled sentences: what do I do? A tuned probe, full fine-tuning, LoRA,
SetFit.

What each arm may use is what a person with n labelled sentences has: those sentences. Early
stopping and cross-validation take their rows from the n. In every arm's loss the classes weigh the
same, as in the metric. Claims 10, 11, 13. Taught in notebook 03; method in data/METHOD.md.
"""

import itertools
import tempfile
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from mtst_utils import MultiTaskModel, SentenceEncoder, fit, layerwise_lr_groups
from mtst_utils.experiments import common
from mtst_utils.experiments.common import (
    HEADLINE,
    TASKS,
    KeepBest,
    TestCurve,
    codes,
    folds,
    headline,
    scores,
    split,
)
from mtst_utils.experiments.designs import RATED, Arm, Comparison, Job, Outcome, Study
from mtst_utils.experiments.layer_rates import EveryLayer

# Epochs by n: at least 30 steps for the fewest sentences, at most 410 for the most; sizes between
# take the next larger n's.
EPOCHS = {16: 40, 32: 30, 64: 20, 128: 12, 256: 8, 512: 5, 2048: 3}
BATCH = 16
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # C of the logistic regression
SHORTLIST = 3  # layers for which every C is tried


def epochs(job: Job) -> int:
    """How many epochs a run of this size gets."""
    return 1 if job.scale == "quick" else next(count for n, count in EPOCHS.items() if job.n <= n)


# --- Fine-tuning, all weights or LoRA's -----------------------------------------------------------


def rates(model: MultiTaskModel, lr: float, head_lr: float) -> torch.optim.AdamW:
    """AdamW with one rate for the backbone and one for the heads."""
    return torch.optim.AdamW(layerwise_lr_groups(model, lr, 1.0, head_lr), fused=True)


def add_lora(model: MultiTaskModel, seed: int, rank: int = 8) -> None:
    """LoRA on every linear layer of the blocks (Hu et al. 2022); the backbone's own weights are
    frozen, the heads learn.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = [
        name
        for name, module in model.encoder.backbone.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.startswith("pooler")
    ]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model.encoder.backbone)


def trained(
    job: Job, model: MultiTaskModel, optimizer: torch.optim.Optimizer
) -> tuple[pd.DataFrame, dict]:
    """Train as the settings say, stopped early on a quarter of the n rows or on all n to the end;
    (rows, details).

    The curve over training is of the final phase alone: test rows stay out of the tuning.
    """
    frame, count = common.training_rows(job), epochs(job)
    early = job.settings["stopping"] == "early"
    known, held = common.hold_out(frame, job.seed) if early else (frame, None)
    every = -(-len(known) // BATCH)
    keep = [KeepBest(held, every)] if early else []
    curve = (
        [TestCurve(common.curve_rows(job.corpus), count * every)] if job.phase == "final" else []
    )
    fit(
        common.Balanced(model, known),
        known,
        epochs=count,
        batch_size=BATCH,
        optimizer=optimizer,
        seed=job.seed,
        callbacks=[*keep, *curve],
        progress=False,
    )
    details = {"steps": count * every} | ({"curve": curve[0].points} if curve else {})
    if keep:
        keep[0].restore(model)
        details["best step"] = keep[0].best_step
    return frame, details


def outcome(job: Job, model: MultiTaskModel, frame: pd.DataFrame, details: dict) -> Outcome:
    """Scores of a trained model, by phase, on test or validation rows, and on (at most 500 of) its
    own n.
    """
    asked = common.asked_rows(job)
    guess = common.predicted(model, asked)
    if job.phase == "tune":
        return Outcome(headline(guess, asked, "valid "), details=details)
    own = frame[:500]
    found = scores(guess, asked) | headline(common.predicted(model, own), own, "training ")
    return Outcome(found, guess, details)


def full(job: Job) -> Outcome:
    """Everything is trained: one rate for the backbone, ten times that for the heads, which start
    from nothing.
    """
    model = common.model_of(job)
    lr = job.settings["lr"]
    return outcome(job, model, *trained(job, model, rates(model, lr, 10 * lr)))


def lora(job: Job) -> Outcome:
    """LoRA: low-rank additions to the frozen weights, and the heads, at one rate."""
    model = common.model_of(job)
    add_lora(model, job.seed)
    lr = job.settings["lr"]
    return outcome(job, model, *trained(job, model, rates(model, lr, lr)))


def untrained(job: Job) -> Outcome:
    """The heads as they start: what is there before anything is learned."""
    model = common.model_of(job)
    return outcome(job, model, common.training_rows(job), {})


# --- A probe, tuned on the n labels alone ---------------------------------------------------------


def features(
    backbone: str, frame: pd.DataFrame, encoder: SentenceEncoder | None = None
) -> np.ndarray:
    """The mean-pooled output of every layer of an encoder (default: the pretrained one), the
    embeddings first: [N, L + 1, H].
    """
    encoder = encoder or common.new_model(backbone).encoder
    every = EveryLayer(encoder.backbone, encoder.tokenizer)
    states = every.encode(frame.text.tolist(), precision="auto")
    return states.reshape(len(frame), -1, encoder.dimension)


@lru_cache(maxsize=2)
def asked_features(backbone: str, phase: str, corpus: str) -> np.ndarray:
    """Features of the rows that every run of a phase is scored on."""
    return features(backbone, common.asked_rows(Job(backbone, 0, 0, {}, phase, corpus=corpus)))


def logistic(c: float) -> Pipeline:
    """A linear probe on standardised features, every class weighing the same.

    Without these weights a probe of few labels says the commonest class: on validation it was
    worse at every C and on every layer, by up to 5 points of macro F1 with 32 labels, so that it
    is not among what is chosen from.
    """
    return make_pipeline(
        StandardScaler(), LogisticRegression(C=c, class_weight="balanced", max_iter=1000)
    )


def into_head(fitted: Pipeline, head: torch.nn.Linear) -> None:
    """Give a head the weights with which it says of embeddings what a `logistic` says.

    A feature that does not vary gets none: MiniLM has one, 1e-33 in every sentence, and to divide
    by its spread would send a gradient without end into the encoder. A class that was not among the
    rows is never said.
    """
    scaler, regression = fitted
    varies, coef, bias = scaler.scale_ > 1e-6, regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:  # it has one row for both
        coef, bias = np.vstack([0 * coef, coef]), np.append(0, bias)
    weight = np.where(varies, coef / scaler.scale_, 0)
    bias = bias - weight @ scaler.mean_
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(-1e4)
        head.weight[regression.classes_] = torch.tensor(weight, dtype=torch.float32)
        head.bias[regression.classes_] = torch.tensor(bias, dtype=torch.float32)


def joined(x: np.ndarray, layers: tuple[int, ...]) -> np.ndarray:
    """Some layers' features side by side."""
    return x[:, layers, :].reshape(len(x), -1)


def out_of_fold(x, y, parts, c: float, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(truth [M], probabilities [M, classes]) of all held-out rows of all folds together."""
    truth, probability = [], []
    for known, asked in parts:
        fitted = logistic(c).fit(x[known], y[known])
        rows = np.full((len(asked), classes), 1e-3)  # a class that these training rows lack
        rows[:, fitted[-1].classes_] = np.maximum(fitted.predict_proba(x[asked]), 1e-3)
        truth.append(y[asked])
        probability.append(rows / rows.sum(1, keepdims=True))
    return np.concatenate(truth), np.concatenate(probability)


def quality(truth: np.ndarray, probability: np.ndarray, by: str) -> float:
    """What a candidate is chosen by, the higher the better: "macro F1", or "log loss" (its mean
    over classes, so that a rare one counts as much).
    """
    if by == "macro F1":
        guess, classes = probability.argmax(1), range(probability.shape[1])
        return f1_score(truth, guess, labels=classes, average="macro", zero_division=0)
    return -common.balanced_log_loss(truth, probability)


def candidates(layers: int, space: str) -> list[tuple[int, ...]]:
    """The layers a search may use. "last": that alone; "one": any one; "any": besides any two
    neighbours and the upper half, side by side; "two": the set probe's pair; "one or two" and "any
    or two": the pair besides.
    """
    if space in ("last", "two"):
        return [probed_layers(layers, space)]
    if space.endswith(" or two"):
        return [*candidates(layers, space.removesuffix(" or two")), probed_layers(layers, "two")]
    single = [(i,) for i in range(layers)]
    if space == "one":
        return single
    return [*single, *itertools.pairwise(range(layers)), tuple(range(layers // 2, layers))]


def probed_layers(layers: int, which: str) -> tuple[int, ...]:
    """The layers that a set probe reads: the "last" of so many, or "two", it and the one at two
    thirds of the depth.
    """
    last = layers - 1
    return {"last": (last,), "two": (2 * last // 3, last)}[which]


def search(
    x: np.ndarray, frame: pd.DataFrame, task: str, settings: dict, seed: int, repeats: int = 1
) -> tuple[tuple[int, ...], float]:
    """Layers and C by cross-validation on the n labelled rows.

    First every candidate for the layers at one C, then every C for the best of them. repeats: how
    often the rows are cut into folds anew.
    """
    y, classes = codes(frame[task]).astype(int), len(frame[task].cat.categories)
    parts = [part for i in range(repeats) for part in folds(frame, task, seed + i)]

    def rated(layers: tuple[int, ...], c: float) -> float:
        found = out_of_fold(joined(x, layers), y, parts, c, classes)
        return quality(*found, settings["chosen by"])

    every = candidates(x.shape[1], settings["layers"])
    first = sorted(every, key=lambda layers: rated(layers, 0.01), reverse=True)[:SHORTLIST]
    return max(itertools.product(first, STRENGTHS), key=lambda option: rated(*option))


def probe(job: Job) -> Outcome:
    """Logistic regression on frozen features; everything about it is chosen on the n labels."""
    frame, asked = common.training_rows(job), common.asked_rows(job)
    x = features(job.backbone, frame)
    x_asked = asked_features(job.backbone, job.phase, job.corpus)
    guess, own, details = {}, {}, {}
    # One cut of 16 rows says little.
    repeats = 3 if job.n <= 64 and job.scale == "full" else 1
    for task in TASKS:
        layers, c = search(x, frame, task, job.settings, job.seed, repeats)
        chosen = logistic(c).fit(joined(x, layers), codes(frame[task]))
        guess[task], own[task] = (chosen.predict(joined(part, layers)) for part in (x_asked, x))
        details[task] = {"layers": layers, "C": c}
    if job.phase == "tune":
        return Outcome(headline(guess, asked, "valid "), details=details)
    details["curve"] = _path(job, frame, x, details["sentiment"])
    return Outcome(scores(guess, asked) | headline(own, frame, "training "), guess, details)


def set_probe(job: Job) -> Outcome:
    """Logistic regression on frozen features with layers and C from the settings, for both tasks:
    chosen beforehand on validation sentences, as the other arms' rates are.
    """
    frame, asked = common.training_rows(job), common.asked_rows(job)
    x = features(job.backbone, frame)
    x_asked = asked_features(job.backbone, job.phase, job.corpus)
    layers = probed_layers(x.shape[1], job.settings["layers"])
    guess, own = {}, {}
    for task in TASKS:
        fitted = logistic(job.settings["C"]).fit(joined(x, layers), codes(frame[task]))
        guess[task], own[task] = (fitted.predict(joined(part, layers)) for part in (x_asked, x))
    if job.phase == "tune":
        return Outcome(headline(guess, asked, "valid "))
    return Outcome(scores(guess, asked) | headline(own, frame, "training "), guess)


def _path(job: Job, frame: pd.DataFrame, x: np.ndarray, chosen: dict) -> dict:
    """A probe's curve over training: sentiment macro F1 on the curve's test rows, from much to
    little regularisation.
    """
    test = split("test", job.corpus)
    rows = np.flatnonzero(test.index.isin(common.curve_rows(job.corpus).index))
    asked, y = test.iloc[rows], codes(frame.sentiment)
    x_asked = joined(asked_features(job.backbone, "final", job.corpus)[rows], chosen["layers"])
    points = {}
    for c in STRENGTHS:
        fitted = logistic(c).fit(joined(x, chosen["layers"]), y)
        guess = fitted.predict(x_asked)
        points[c] = round(scores({"sentiment": guess}, asked)["sentiment macro F1"], 4)
    return points


# --- SetFit ---------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _saved(backbone: str) -> str:
    folder = tempfile.mkdtemp()
    common.new_model(backbone).encoder.save_pretrained(folder)
    return folder


def setfit(job: Job) -> Outcome:
    """SetFit (Tunstall et al. 2022) for sentiment: pairs of like and unlike sentences first, then a
    logistic regression.

    Its library as it is; one task a model, so that it says nothing of domain.
    """
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from setfit import SetFitModel, Trainer, TrainingArguments

    frame, asked = common.training_rows(job), common.asked_rows(job)
    head = LogisticRegression(class_weight="balanced", max_iter=1000)
    body = SentenceTransformer(_saved(job.backbone), device="cpu")
    model = SetFitModel(model_body=body, model_head=head)
    steps = 2 if job.scale == "quick" else job.settings["steps"]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            batch_size=BATCH,
            num_epochs=1,
            max_steps=steps,
            seed=job.seed,
            body_learning_rate=job.settings["lr"],
            report_to="none",
            show_progress_bar=False,
            save_strategy="no",
            eval_strategy="no",
            logging_strategy="no",
        )
        rows = {"text": frame.text.tolist(), "label": codes(frame.sentiment).tolist()}
        Trainer(model=model, args=arguments, train_dataset=Dataset.from_dict(rows)).train()
    guess = {"sentiment": np.asarray(model.predict(asked.text.tolist(), show_progress_bar=False))}
    if job.phase == "tune":
        return Outcome(headline(guess, asked, "valid "))
    own = {"sentiment": np.asarray(model.predict(frame.text.tolist(), show_progress_bar=False))}
    return Outcome(scores(guess, asked) | headline(own, frame, "training "), guess)


# --- The declaration ------------------------------------------------------------------------------

_NETWORK = {"stopping": ("early", "none")}
FEW_LABELS = Study(
    name="few_labels",
    claims=("10", "11", "13"),
    question="With n labelled sentences and nothing else: tuned probe, full, LoRA or SetFit?",
    corpus=RATED,
    arms={
        "untrained heads": Arm(untrained, {}, "as they start, on the frozen backbone"),
        "tuned probe": Arm(
            probe,
            {"layers": ("last", "one", "any"), "chosen by": ("macro F1", "log loss")},
            "balanced logistic regression on frozen features; layers and C by cross-validation",
        ),
        "set probe": Arm(
            set_probe,
            {"layers": ("last", "two"), "C": (1e-4, 1e-3, 1e-2)},
            "the same on layers and with a C that are set beforehand; two: the last layer and one "
            "at two thirds of the depth. Asked for by a reviewer of the other arms' results",
            later=True,
        ),
        "wide probe": Arm(
            probe,
            {"layers": ("two", "one or two", "any or two"), "chosen by": ("macro F1", "log loss")},
            "the tuned probe with the set probe's two layers among what it chooses from: is it the "
            "search that costs, or the pair that it lacked?",
            later=True,
        ),
        "full": Arm(
            full,
            {"lr": (1e-4, 2e-4, 4e-4)} | _NETWORK,
            "all weights, heads at ten times the rate; early: stopped on a quarter of the n rows",
        ),
        "LoRA": Arm(
            lora,
            {"lr": (1e-3, 2e-3, 4e-3)} | _NETWORK,
            "rank 8 on every linear layer, heads at the same rate; stopping as for full",
            needs=("peft",),
        ),
        "SetFit": Arm(
            setfit,
            {"lr": (1e-5, 2e-5, 4e-5), "steps": (20, 40)},
            "its library's defaults but rate, steps of 16 pairs, balanced head; sentiment alone",
            (16, 32, 64, 128, 256),
            ("setfit",),
            fixed=("steps",),  # 40 steps of 16 pairs are what full training computes at 32 labels
        ),
    },
    comparisons=(
        Comparison("10", "tuned probe", "untrained heads", "practical gain"),
        Comparison("11", "full", "tuned probe", "gain", "gap"),
        Comparison("11", "full", "set probe", "gain", "gap", later=True),
        Comparison("13", "tuned probe", "full", "no loss"),
        Comparison("13", "tuned probe", "full", "no loss", "domain accuracy"),
        Comparison("13", "set probe", "full", "no loss"),
        Comparison("13", "set probe", "full", "no loss", "domain accuracy"),
        Comparison("search", "set probe", "tuned probe", "gain"),
        Comparison("search", "set probe", "wide probe", "gain"),
        Comparison("search", "wide probe", "tuned probe", "gain"),
        Comparison("LoRA", "LoRA", "full", "no loss"),
        Comparison("SetFit", "SetFit", "full", "practical gain"),
        Comparison("SetFit", "SetFit", "tuned probe", "practical gain"),
        Comparison("SetFit", "SetFit", "set probe", "practical gain"),
    ),
    metric=HEADLINE[0],
    validation=(f"valid {HEADLINE[0]}",),
    margins={32: 0.02, 128: 0.02, 512: 0.01, 16: 0.02, 64: 0.02, 256: 0.02, 2048: 0.01},
    seeds={32: 20, 128: 20, 512: 10, 16: 10, 64: 10, 256: 10, 2048: 10},
    why="20 at 32 and 128 labels, where the headline is: a paired SD of 3 points shows 2.0 points "
    "with 80 % power; 10 elsewhere, where it shows 3.0, and an SD of 1 point shows 1.0; "
    "test rows add their own error",
    tuned_at={32: 32, 128: 128, 512: 512, 16: 32, 64: 32, 256: 128, 2048: 512},
)
