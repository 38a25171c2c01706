"""The training loop, evaluation, and checkpoints.

Taught in notebook 02, sections 4 and 5.
"""

import random

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from sklearn.metrics import f1_score
from tqdm.auto import tqdm

from mtst_utils.checkpoints import Checkpoint, fingerprint
from mtst_utils.encoder import autocast, checked_sentences
from mtst_utils.learning_rates import layerwise_lr_groups, warmup_linear
from mtst_utils.multitask import NO_LABEL
from mtst_utils.speed import keep_large_buffers, quick_dropout

POOL = 50  # batches: sentences are shuffled, then sorted by length within pools of this many batches


class History(pd.DataFrame):
    """One row a step: step, epoch, loss, the tasks' losses, rate of the last group; and on the last step of an epoch the
    validation scores ("valid domain accuracy", ...), which are NaN on all other rows.
    """

    @property
    def _constructor(self):
        return History

    @property
    def epochs(self):
        """The rows that hold validation scores."""
        scores = [name for name in self.columns if name.startswith("valid ")]
        return self.dropna(subset=scores) if scores else self[:0]


def seed_everything(seed):
    """Seed Python, NumPy and torch. Taught in notebook 02, section 4."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def default_optimizer(model, base_lr=2e-4, decay=0.9, head_lr=1e-3):
    """AdamW as the series uses it: layer-wise rates for the backbone, and a larger one for the heads, which start new."""
    groups = layerwise_lr_groups(model, base_lr, decay, head_lr)
    return torch.optim.AdamW(groups, fused=True)


def fit(model, train, valid=None, *, epochs, batch_size=32, optimizer=None, seed=0, callbacks=(), precision="auto",
        checkpoint=None, progress=True):  # fmt: skip
    """Train a MultiTaskModel on all its tasks at once; returns the History.

    train, valid: frames with the column text and one column of labels per task (None: no label).
    optimizer: default `default_optimizer(model)`; its rates rise linearly over the first tenth of the steps, then fall to 0.
    batch_size: sentences a step, over all processes. seed: order and dropout; the same seed gives the same weights.
    callbacks: objects with any of on_start(run), on_epoch(run), on_step(run), called before the first step and each
        epoch, and after each step; run has model, optimizer, scheduler, step, epoch, total_steps, history.
    precision: "auto" (bfloat16 where the hardware has it), "float32", "bfloat16".
    checkpoint: a folder; training writes its state there and, if it finds one of the same run, goes on from it.
    Raises ValueError for a missing column, an unknown label, an empty frame. Taught in notebook 02, section 5.
    """
    accelerator = Accelerator()
    keep_large_buffers()
    model.to(accelerator.device)
    ids, labels = encode_frame(model, train)
    lengths, rank, world = [len(row) for row in ids], accelerator.process_index, accelerator.num_processes
    steps_per_epoch = len(bucketed_batches(lengths, batch_size, world))
    run = Run(model, optimizer or default_optimizer(model), epochs * steps_per_epoch, steps_per_epoch)
    state = Checkpoint(checkpoint, run, fingerprint(run, train, labels, epochs, batch_size, seed, precision))
    state.load()
    net = accelerator.prepare(model)
    notify(callbacks, "on_start", run)
    bar = tqdm(total=run.total_steps, initial=run.step, desc="fit", unit="step",
               disable=not (progress and accelerator.is_main_process))  # fmt: skip
    while run.step < run.total_steps:
        run.epoch, position = divmod(run.step, steps_per_epoch)
        if position == 0:
            notify(callbacks, "on_epoch", run)
        for batch in bucketed_batches(lengths, batch_size, world, (seed, run.epoch))[position:]:
            net.train()
            # Seeded anew each step: dropout depends on seed, step and process alone, so that going on is exact.
            torch.manual_seed(hash((seed, run.step, rank)) % 2**63)
            mine = batch[rank::world]
            inputs = model.collate(
                [{"input_ids": ids[i], "labels": {t: y[i] for t, y in labels.items()}} for i in mine]
            )
            with autocast(precision, accelerator.device), quick_dropout(model, accelerator.device):
                output = net(**inputs)
            # Each process averages over its own share of the batch: weigh it by its part of the labels there are.
            losses = {t: value * share(labels[t][mine], labels[t][batch], world) for t, value in output.losses.items()}
            loss = model.total_loss(losses)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            run.optimizer.step()
            run.scheduler.step()
            run.optimizer.zero_grad(set_to_none=True)
            run.record(accelerator, losses, loss)
            notify(callbacks, "on_step", run)
            bar.set_postfix({t: f"{run.history[-1][t + ' loss']:.3f}" for t in losses}, refresh=False)
            bar.update()
            if run.step % steps_per_epoch == 0 and valid is not None:
                scores = evaluate(model, valid, precision=precision).query("domain == 'all'")
                for _, row in scores.iterrows():
                    run.history[-1] |= {f"valid {row.task} {name}": row[name] for name in ("accuracy", "macro F1")}
            if accelerator.is_main_process:
                state.save(end_of_epoch=run.step % steps_per_epoch == 0)
    bar.close()
    model.eval()
    return History(run.history)


def evaluate(model, frame, precision="auto"):
    """Score a model on a frame of text and labels.

    Returns one row per task, and per domain where the frame has that column: task, domain ("all" first), n (sentences
    with a label), accuracy, macro F1 (unweighted mean over all the task's labels). Raises ValueError as `fit` does.
    Taught in notebook 02, section 5.
    """
    labels = encode_labels(model, frame)
    rows = []
    for name, probability in model.probabilities(frame["text"], precision).items():
        if name not in labels:
            continue
        truth, guess = labels[name].numpy(), probability.argmax(1)
        domains = {"all": np.ones(len(frame), bool)}
        if "domain" in frame and name != "domain":
            domains |= {domain: (frame["domain"] == domain).to_numpy() for domain in frame["domain"].unique()}
        for domain, chosen in domains.items():
            chosen = chosen & (truth != NO_LABEL)
            y, p = truth[chosen], guess[chosen]
            f1 = f1_score(y, p, labels=range(probability.shape[1]), average="macro", zero_division=0)
            rows.append({"task": name, "domain": domain, "n": len(y), "accuracy": (y == p).mean(), "macro F1": f1})
    return pd.DataFrame(rows)


def encode_labels(model, frame):
    """{task name: LongTensor [N]} for the tasks the frame has a column for. Raises ValueError if it has none."""
    if len(frame) == 0:
        raise ValueError("the frame has no rows")
    if "text" not in frame:
        raise ValueError(f"the frame has no column 'text'; it has {list(frame.columns)}")
    labels = {name: task.encode(frame[name]) for name, task in model.tasks.items() if name in frame}
    if not labels:
        raise ValueError(
            f"the frame has a column for none of the tasks {list(model.tasks)}; it has {list(frame.columns)}"
        )
    return labels


def encode_frame(model, frame):
    """A frame as token id lists [N] and {task name: LongTensor [N]}."""
    labels = encode_labels(model, frame)
    ids, cut = model.encoder.tokenize(checked_sentences(frame["text"], "text"))
    model.encoder.warn_of_cuts(cut, len(ids), stacklevel=4)
    return ids, labels


def bucketed_batches(lengths, batch_size, world=1, seed=0):
    """Shuffled batches (lists of row numbers) of like length: shuffled, sorted within pools, cut, and shuffled again.

    A last batch with fewer sentences than there are processes (world) is left out.
    """
    rng = np.random.default_rng(seed)
    order, batches = rng.permutation(len(lengths)), []
    for start in range(0, len(order), POOL * batch_size):
        pool = sorted(order[start : start + POOL * batch_size].tolist(), key=lambda i: lengths[i])
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    rng.shuffle(batches)
    return [batch for batch in batches if len(batch) >= world]


def share(mine, batch, world):
    """What a process's mean loss must be multiplied by, so that the mean over processes is the batch's mean."""
    return world * (mine != NO_LABEL).sum() / (batch != NO_LABEL).sum().clamp(min=1)


def notify(callbacks, event, run):
    for callback in callbacks:
        getattr(callback, event, lambda run: None)(run)


class Run:
    """What a training run has come to: handed to callbacks, kept by checkpoints."""

    def __init__(self, model, optimizer, total_steps, steps_per_epoch):
        self.model, self.optimizer, self.total_steps = model, optimizer, total_steps
        self.steps_per_epoch = steps_per_epoch
        self.scheduler = warmup_linear(optimizer, total_steps)
        self.step, self.epoch, self.history = 0, 0, []

    def record(self, accelerator, losses, loss):
        self.step += 1
        values = accelerator.reduce(
            torch.stack([loss.detach(), *(v.detach() for v in losses.values())]), "mean"
        ).tolist()
        row = {"step": self.step, "epoch": self.epoch, "loss": values[0]}
        row |= {f"{task} loss": value for task, value in zip(losses, values[1:], strict=True)}
        self.history.append(row | {"lr": self.optimizer.param_groups[-1]["lr"]})
