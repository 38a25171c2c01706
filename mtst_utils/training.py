"""The training loop, evaluation, and checkpoints.

Taught in notebook 02, sections 4 and 5.
"""

import contextlib
import random
from functools import partial

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from sklearn.metrics import f1_score
from tqdm.auto import tqdm

from mtst_utils import checks
from mtst_utils.checkpoints import Checkpoint, fingerprint
from mtst_utils.encoder import autocast, checked_sentences
from mtst_utils.fast_cpu import WordsInUse, keep_large_buffers, quick_dropout
from mtst_utils.frames import bucketed_batches, encode_frame, encode_labels
from mtst_utils.frozen_prefix import FrozenPrefix
from mtst_utils.learning_rates import layerwise_lr_groups, warmup_linear
from mtst_utils.multitask import NO_LABEL


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
    checks.whole("seed", seed, "from 0 to 2**63 - 1", lambda v: 0 <= v < 2**63)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_device(device, seed):
    """torch.manual_seed for one device: asking every kind of device costs more than a step of small heads."""
    generator = torch.cuda if device.type == "cuda" else torch.default_generator
    generator.manual_seed(seed)


def default_optimizer(model, base_lr=2e-4, decay=0.9, head_lr=1e-3):
    """AdamW as the series uses it: layer-wise rates for the backbone, and a larger one for the heads, which start new."""
    groups = layerwise_lr_groups(model, base_lr, decay, head_lr)
    if not groups:
        raise ValueError(
            "nothing can learn: every parameter of the model is frozen. Unfreeze a part of it, or only evaluate it"
        )
    return torch.optim.AdamW(groups, fused=True)


def fit(model, train, valid=None, *, epochs, batch_size=32, optimizer=None, seed=0, callbacks=(), precision="auto",
        checkpoint=None, progress=True):  # fmt: skip
    """Train a MultiTaskModel on all its tasks at once; returns the History.

    train, valid: frames with the column text and one column of labels per task (None: no label).
    optimizer: default `default_optimizer(model)`; its rates rise linearly over the first tenth of the steps, then fall to 0.
    batch_size: sentences a step, over all processes. seed: order and dropout; the same seed gives the same weights.
    callbacks: objects with any of on_start(run), on_epoch(run), before_step(run), on_step(run): before a checkpoint is
        looked for, before each epoch and each step, and after each step; run has model, optimizer, scheduler, step, epoch,
        total_steps, history.
    precision: "auto" (bfloat16 where the hardware has it), "float32", "bfloat16".
    checkpoint: a folder; training writes its state there and, if it finds one of the same run, goes on from it.
    Raises ValueError for a missing column, an unknown label, an empty frame. Taught in notebook 02, section 5.
    """
    checks.whole("epochs", epochs, "of 1 or more", lambda v: v >= 1)
    checks.whole("batch_size", batch_size, "of 1 or more", lambda v: v >= 1)
    checks.whole("seed", seed, "from 0 on", lambda v: v >= 0)
    checks.instance("callbacks", callbacks, (list, tuple))
    checks.instance("optimizer", optimizer, (torch.optim.Optimizer, type(None)))
    # Of several processes, each has parts without a gradient: the backbone's own pooler, a task it has no label of.
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    keep_large_buffers()
    model.to(accelerator.device)
    ids, labels = encode_frame(model, train)
    if valid is not None:  # now, and not at the end of an epoch
        encode_labels(model, valid)
        checked_sentences(valid["text"], "text")
    lengths, rank, world = [len(row) for row in ids], accelerator.process_index, accelerator.num_processes
    steps_per_epoch = len(bucketed_batches(lengths, batch_size, world))
    run = Run(model, optimizer or default_optimizer(model), epochs * steps_per_epoch)
    tell = partial(notify, callbacks, run)
    tell("on_start")
    state = Checkpoint(checkpoint, run, fingerprint(run, train, labels, epochs, batch_size, seed, precision))
    state.load()
    half = autocast(precision, accelerator.device)
    parameters, prefix, last = list(model.parameters()), FrozenPrefix(model, ids, half), None
    bar = tqdm(total=run.total_steps, initial=run.step, desc="fit", unit="step",
               disable=not (progress and accelerator.is_main_process))  # fmt: skip
    with bar, quick_dropout(model, accelerator.device), WordsInUse(model, ids, run.optimizer) as words:
        while run.step < run.total_steps:
            run.epoch, position = divmod(run.step, steps_per_epoch)
            if position == 0:
                tell("on_epoch", words.whole)
            for batch in bucketed_batches(lengths, batch_size, world, (seed, run.epoch))[position:]:
                tell("before_step", words.whole)
                stage = run.same_from, run.same_until, [p for p in parameters if p.requires_grad]
                if stage != last:  # something was frozen or unfrozen
                    last, learning = stage, stage[2]
                    # Several processes exchange the gradients of what learns at this moment.
                    net = (accelerator.prepare(model) if learning else model).train()
                    # Filling the cache costs as much as an epoch without it: it must last for longer than that.
                    prefix.update(wanted=run.same_until - run.same_from > steps_per_epoch)
                # Seeded anew each step: dropout depends on seed, step and process alone, so that going on is exact.
                seed_device(accelerator.device, hash((seed, run.step, rank)) % 2**63)
                mine = batch[rank::world]
                index = torch.tensor(mine)
                truth = {task: values[index].to(accelerator.device) for task, values in labels.items()}
                with half, prefix.instead_of_running(mine) as inputs:
                    output = net(*inputs, labels=truth)
                if world > 1:  # each averages over its own share of the batch: weigh it by its part of the labels
                    for task, values in labels.items():
                        output.losses[task] = output.losses[task] * share(values[mine], values[batch], world)
                    output.loss = model.total_loss(output.losses)
                if learning:
                    accelerator.backward(output.loss)
                    torch.nn.utils.clip_grad_norm_(learning, 1.0)
                run.optimizer.step()
                run.scheduler.step()
                run.optimizer.zero_grad(set_to_none=True)
                run.record(accelerator, output)
                del output  # and with it the graph: a callback may want a gradient of its own, of the whole word table
                tell("on_step", words.whole)
                bar.update()
                if run.step % steps_per_epoch == 0 and valid is not None:
                    with words.whole():
                        scores = evaluate(model, valid, precision=precision).query("domain == 'all'")
                    for _, row in scores.iterrows():
                        run.history[-1] |= {f"valid {row.task} {name}": row[name] for name in ("accuracy", "macro F1")}
                if accelerator.is_main_process:
                    state.save(words.whole, end_of_epoch=run.step % steps_per_epoch == 0)
                    bar.set_postfix({name: f"{run.history[-1][name + ' loss']:.3f}" for name in labels}, refresh=False)
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


def share(mine, batch, world):
    """What a process's mean loss must be multiplied by, so that the mean over processes is the batch's mean."""
    return world * (mine != NO_LABEL).sum() / (batch != NO_LABEL).sum().clamp(min=1)


def notify(callbacks, run, event, whole=contextlib.nullcontext):
    """Call those callbacks that have this method, each with the model as it is outside of `fit`."""
    called = [getattr(callback, event) for callback in callbacks if hasattr(callback, event)]
    if called:
        with whole():
            for call in called:
                call(run)
        run.model.train()  # they may have put it in eval mode


class Run:
    """What a training run has come to: handed to callbacks, kept by checkpoints.

    same_from, same_until: the steps between which no callback freezes or unfreezes anything; they tell whether a cache pays.
    """

    def __init__(self, model, optimizer, total_steps):
        self.model, self.optimizer, self.total_steps = model, optimizer, total_steps
        self.same_from, self.same_until = 0, total_steps
        self.scheduler = warmup_linear(optimizer, total_steps)
        self.step, self.epoch, self.history = 0, 0, []

    def record(self, accelerator, output):
        self.step += 1
        values = torch.stack([output.loss.detach(), *(value.detach() for value in output.losses.values())])
        values = (accelerator.reduce(values, "mean") if accelerator.num_processes > 1 else values).tolist()
        row = {"step": self.step, "epoch": self.epoch, "loss": values[0]}
        row |= {f"{task} loss": value for task, value in zip(output.losses, values[1:], strict=True)}
        self.history.append(row | {"lr": self.optimizer.param_groups[-1]["lr"]})
