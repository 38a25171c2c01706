"""What do sentences lose that are cut off, and what in bfloat16? Frozen features and fine-tuning
under limits of 16 to 256 tokens.

Claim 2. Method in data/METHOD.md.
"""

from functools import partial

import numpy as np
import pandas as pd

from mtst_utils import SentenceEncoder, fit
from mtst_utils.experiments import common
from mtst_utils.experiments.bake_off import optimizer_of
from mtst_utils.experiments.common import TASKS, codes, headline, predicted, scores
from mtst_utils.experiments.designs import RATED, Arm, Comparison, Job, Outcome, Study
from mtst_utils.experiments.few_labels import joined, logistic, search
from mtst_utils.experiments.layer_rates import EveryLayer

EPOCHS, BATCH = 4, 32
LIMITS = {"16 tokens": 16, "32 tokens": 32, "64 tokens": 64, "whole": None}  # None: the model's own


def outcome(job: Job, guess: dict, own: dict | None, frame: pd.DataFrame, **details) -> Outcome:
    asked = common.asked_rows(job)
    if job.phase == "tune":
        return Outcome(headline(guess, asked, "valid "), details=details)
    return Outcome(scores(guess, asked) | headline(own, frame, "training "), guess, details)


def cut(encoder: SentenceEncoder, limit: int | None, kind: type[SentenceEncoder] = SentenceEncoder):
    """The same backbone on sentences cut at so many tokens (None: as many as it takes)."""
    longest = encoder.max_length if limit is None else min(limit, encoder.max_length)
    return kind(encoder.backbone, encoder.tokenizer, max_length=longest)


def frozen(job: Job, limit: int | None, precision: str = "auto") -> Outcome:
    """A tuned probe on the frozen features of sentences cut at `limit` tokens."""
    frame, asked = common.training_rows(job), common.asked_rows(job)
    encoder = common.new_model(job.backbone).encoder
    every = cut(encoder, limit, EveryLayer)

    def features(rows: pd.DataFrame) -> np.ndarray:
        states = every.encode(rows.text.tolist(), precision=precision)
        return states.reshape(len(rows), -1, encoder.dimension)

    x, x_asked = features(frame), features(asked)
    guess, seen, details = {}, {}, {}
    for task in TASKS:
        layers, c = search(x, frame, task, job.settings, job.seed)
        fitted = logistic(c).fit(joined(x, layers), codes(frame[task]))
        guess[task], seen[task] = (fitted.predict(joined(part, layers)) for part in (x_asked, x))
        details[task] = {"layers": layers, "C": c}
    return outcome(job, guess, seen, frame, **details)


def trained(job: Job, limit: int | None) -> Outcome:
    """Everything fine-tuned on sentences cut at `limit` tokens, and asked about such."""
    model, frame = common.model_of(job), common.training_rows(job)
    model.encoder, own = cut(model.encoder, limit), job.settings
    fit(
        common.Balanced(model, frame),
        frame,
        epochs=EPOCHS if job.scale == "full" else 1,
        batch_size=BATCH,
        optimizer=optimizer_of(model, own["lr"], own["head_lr"]),
        seed=job.seed,
        progress=False,
    )
    seen = predicted(model, frame[:500]) if job.phase == "final" else None
    return outcome(job, predicted(model, common.asked_rows(job)), seen, frame[:500])


_RATES = {"lr": (1e-4, 2e-4, 4e-4), "head_lr": (1e-3, 4e-3)}
_SEARCH = {"layers": ("last", "one", "any"), "chosen by": ("macro F1", "log loss")}
_ARMS = {
    f"{how}, {name}": Arm(partial(run, limit=limit), axes, "sentences cut at so many tokens")
    for how, run, axes in (("frozen", frozen, _SEARCH), ("trained", trained, _RATES))
    for name, limit in LIMITS.items()
}
LENGTHS = Study(
    name="lengths",
    claims=("2",),
    question="What does cutting sentences at 16 to 64 tokens cost, and what does bfloat16?",
    corpus=RATED,
    arms=_ARMS
    | {
        f"frozen, {precision}": Arm(
            partial(frozen, limit=None, precision=precision), _SEARCH, f"embeddings in {precision}"
        )
        for precision in ("float32", "bfloat16")
    },
    comparisons=(
        *(
            Comparison("2", f"{how}, {name}", f"{how}, whole", "no loss")
            for how in ("frozen", "trained")
            for name, limit in LIMITS.items()
            if limit
        ),
        Comparison("2", "frozen, bfloat16", "frozen, float32", "no loss"),
    ),
    metric="sentiment macro F1",
    validation=("valid sentiment macro F1",),
    margins={1000: 0.01},
    seeds={1000: 10},
    why="10 show 1.0 points where the paired SD is 1 point",
    tuned_at={1000: 1000},
)
