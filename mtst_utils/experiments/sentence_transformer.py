"""The runs of notebook 01: four poolings as frozen features and fine-tuned, and what padding does.

Claims 1 to 3. Method in data/METHOD.md.
"""

from functools import partial

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import softmax

from mtst_utils import (
    MultiTaskModel,
    SentenceEncoder,
    fit,
    load_backbone,
    load_rated_sentences,
    load_triplets,
    masked_mean,
)
from mtst_utils.backbones import untrained_twin
from mtst_utils.experiments import common
from mtst_utils.experiments.bake_off import optimizer_of
from mtst_utils.experiments.common import TASKS, codes, headline, scores
from mtst_utils.experiments.designs import RATED, Arm, Comparison, Job, Outcome, Study
from mtst_utils.experiments.few_labels import joined, logistic, search
from mtst_utils.experiments.intervals import accuracy_of, bootstrap_score, wilson
from mtst_utils.experiments.probes import probe, triplet_hits
from mtst_utils.pooling import first_token, masked_max

EPOCHS, BATCH = 4, 32


def unmasked_mean(tokens: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The mean over all positions [B, T, H] -> [B, H], padding included: a common mistake."""
    return tokens.mean(1)


POOL = {"mean": masked_mean, "cls": first_token, "max": masked_max, "unmasked mean": unmasked_mean}


class Pooled(SentenceEncoder):
    """A SentenceEncoder with any function of (tokens [B, T, H], mask [B, T]) as its pooling."""

    pool = staticmethod(masked_mean)

    def forward(self, input_ids, attention_mask):
        tokens = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        return self.pool(tokens.last_hidden_state, attention_mask)


class FourPoolings(Pooled):
    """Mean, CLS, max and unmasked mean of one forward pass, side by side: [B, 4H]."""

    names = tuple(POOL)

    @staticmethod
    def pool(tokens, attention_mask):
        tokens = tokens.float()
        return torch.cat([pool(tokens, attention_mask) for pool in POOL.values()], dim=-1)

    @property
    def dimension(self) -> int:
        return len(POOL) * super().dimension


class PooledLayers(Pooled):
    """Every layer's pooled output side by side, the embeddings first: [B, (L + 1) * H]."""

    @property
    def dimension(self) -> int:
        return super().dimension * (self.backbone.config.num_hidden_layers + 1)

    def forward(self, input_ids, attention_mask):
        output = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True
        )
        parts = [self.pool(states.float(), attention_mask) for states in output.hidden_states]
        return torch.cat(parts, dim=-1)


def pooled(encoder: SentenceEncoder, pooling: str, kind: type[Pooled] = Pooled) -> Pooled:
    """The same backbone under another pooling."""
    new = kind(encoder.backbone, encoder.tokenizer, max_length=encoder.max_length)
    new.pool = POOL[pooling]
    return new


def naive_encode(
    encoder: SentenceEncoder, sentences: pd.Series, precision: str = "auto"
) -> np.ndarray:
    """Embeddings [N, H] in batches of 32 in the order given, as most code makes them.

    `encode` sorts sentences by length: there is hardly any padding then, and nothing for a mask to
    do. What an unmasked mean sees depends on the neighbours.
    """
    rows = list(sentences)
    batches = [rows[i : i + 32] for i in range(0, len(rows), 32)]
    options = {"token_budget": 10**9, "precision": precision}
    return np.concatenate([encoder.encode(batch, **options) for batch in batches])


def predicted(model: MultiTaskModel, sentences: pd.Series) -> dict[str, np.ndarray]:
    """{task: codes [N]} of the model's heads on embeddings made in the order given."""
    x = torch.from_numpy(naive_encode(model.encoder, sentences))
    with torch.inference_mode():
        return {task: softmax(model.heads[task](x), -1).argmax(1).numpy() for task in model.tasks}


def outcome(job: Job, guess: dict, own: dict | None, frame: pd.DataFrame, **details) -> Outcome:
    asked = common.asked_rows(job)
    if job.phase == "tune":
        return Outcome(headline(guess, asked, "valid "), details=details)
    found = scores(guess, asked) | headline(own, frame, "training ")
    return Outcome(found, guess, details)


def trained(job: Job, pooling: str) -> Outcome:
    """Everything fine-tuned under one pooling."""
    model, frame = common.model_of(job), common.training_rows(job)
    model.encoder = pooled(model.encoder, pooling)
    own = job.settings
    fit(
        common.Balanced(model, frame),
        frame,
        epochs=EPOCHS if job.scale == "full" else 1,
        batch_size=BATCH,
        optimizer=optimizer_of(model, own["lr"], own["head_lr"]),
        seed=job.seed,
        progress=False,
    )
    seen = predicted(model, frame.text[:500]) if job.phase == "final" else None
    return outcome(job, predicted(model, common.asked_rows(job).text), seen, frame[:500])


def frozen(job: Job, pooling: str) -> Outcome:
    """A tuned probe on one pooling's frozen features."""
    frame, asked = common.training_rows(job), common.asked_rows(job)
    encoder = common.new_model(job.backbone).encoder
    every = pooled(encoder, pooling, PooledLayers)
    x, x_asked = (
        naive_encode(every, rows.text).reshape(len(rows), -1, encoder.dimension)
        for rows in (frame, asked)
    )
    guess, seen, details = {}, {}, {}
    for task in TASKS:
        layers, c = search(x, frame, task, job.settings, job.seed)
        fitted = logistic(c).fit(joined(x, layers), codes(frame[task]))
        guess[task], seen[task] = (fitted.predict(joined(part, layers)) for part in (x_asked, x))
        details[task] = {"layers": layers, "C": c}
    return outcome(job, guess, seen, frame, **details)


# --- What was measured before designs were declared ----------------------------------------------


def choices(
    backbone=None, n_train=4000, n_test=None, weights="pretrained", precision="auto", seed=0
):
    """Notebook 01's choices: each pooling on the triplets, and as frozen features for domain and
    sentiment.

    weights: "pretrained", or "random" for the same architecture untrained. Returns (one row per
    pooling and metric with value, low, high, n; the predictions by (pooling, task), for paired
    comparisons; the test rows).
    """
    model, tokenizer = load_backbone(backbone)
    if weights == "random":
        torch.manual_seed(seed)
        model = untrained_twin(model)
    encoder = FourPoolings(model, tokenizer)
    corpus = load_rated_sentences()
    train = corpus[corpus.split == "train"].sample(n_train, random_state=seed)
    test = corpus[corpus.split == "test"].sample(frac=1, random_state=seed)[:n_test]
    triplets = load_triplets()
    parts = [
        naive_encode(encoder, column.tolist(), precision)
        for column in (
            train.text,
            test.text,
            triplets.anchor,
            triplets.paraphrase,
            triplets.distractor,
        )
    ]
    rows, predictions = [], {}
    for i, pooling in enumerate(FourPoolings.names):
        x_train, x_test, *sides = (
            part[:, i * model.config.hidden_size :][:, : model.config.hidden_size] for part in parts
        )
        scores = {
            "triplets right": (*wilson(triplet_hits(*sides).sum(), len(triplets)), len(triplets))
        }
        for task, metric, score in [
            ("domain", "accuracy", accuracy_of),
            ("sentiment", "macro F1", None),
        ]:
            predicted = predictions[pooling, task] = probe(x_train, train[task], x_test)
            options = {"score": score} if score else {}
            scores[f"{task} {metric}"] = (
                *bootstrap_score(test[task], predicted, **options),
                len(test),
            )
        rows += [
            {"pooling": pooling, "metric": metric, "value": v, "low": low, "high": high, "n": n}
            for metric, (v, low, high, n) in scores.items()
        ]
    return pd.DataFrame(rows), predictions, test


def padding_run(backbone, seed, scale, how):
    """Is a sentence's embedding in a padded batch of 32 the one it has alone? Cosines between the
    two, in float32.
    """
    encoder = FourPoolings(*load_backbone(backbone))
    size, i = encoder.backbone.config.hidden_size, FourPoolings.names.index(how)
    corpus = load_rated_sentences()
    sentences = (
        corpus[corpus.split == "test"]
        .text.sample(512 if scale == "full" else 64, random_state=seed)
        .tolist()
    )
    batched = naive_encode(encoder, sentences, "float32")[:, i * size :][:, :size]
    alone = np.concatenate([encoder.encode([s])[:, i * size :][:, :size] for s in sentences])
    cosine = (
        (batched * alone).sum(1) / np.linalg.norm(batched, axis=1) / np.linalg.norm(alone, axis=1)
    )
    cut = np.mean([len(ids) >= encoder.max_length for ids in encoder.tokenize(sentences)[0]])
    return len(sentences), {
        "cosine to alone, lowest": cosine.min(),
        "cosine to alone, mean": cosine.mean(),
        "share cut": cut,
    }


def choices_run(backbone, seed, scale, weights):
    table, _, _ = choices(
        backbone, n_test=None if scale == "full" else 1500, weights=weights, seed=seed
    )
    metrics = {}
    for row in table.itertuples():
        name = f"{row.pooling}, {row.metric}"
        metrics |= {name: row.value, f"{name}, low": row.low, f"{name}, high": row.high}
    return 4000, metrics


# --- The declaration ------------------------------------------------------------------------------

_RATES = {"lr": (1e-4, 2e-4, 4e-4), "head_lr": (1e-3, 4e-3)}
_SEARCH = {"layers": ("last", "one", "any"), "chosen by": ("macro F1", "log loss")}
# Without its mask a mean is not fine-tuned here: batches of `fit` are of like length, so that it
# would be trained nearly without padding, and asked with it.
_MASKED = tuple(name for name in POOL if name != "unmasked mean")
POOLING = Study(
    name="pooling",
    claims=("3",),
    question="Mean pooling against CLS, max and a mean without the mask: frozen and fine-tuned?",
    corpus=RATED,
    arms={f"trained, {name}": Arm(partial(trained, pooling=name), _RATES, name) for name in _MASKED}
    | {f"frozen, {name}": Arm(partial(frozen, pooling=name), _SEARCH, name) for name in POOL},
    comparisons=(
        *(
            Comparison(
                "3", f"{how}, mean", f"{how}, {name}", "no loss", source="the reference text"
            )
            for how, names in (("trained", _MASKED), ("frozen", POOL))
            for name in names
            if name != "mean"
        ),
        Comparison("training", "trained, mean", "frozen, mean", "gain", later=True),
    ),
    metric="sentiment macro F1",
    validation=("valid sentiment macro F1",),
    margins={1000: 0.01},
    seeds={1000: 10},
    why="10 show 1.0 points where the paired SD is 1 point",
    tuned_at={1000: 1000},
)
