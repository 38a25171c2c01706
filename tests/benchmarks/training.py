"""One training epoch, everything trainable: HF Trainer plain and at its best, and `fit`. Same
model, data, batch, rates.

python -m tests.benchmarks.training [--sentences 1920] [--repeats 5]
"""

import tempfile
import time

import torch
from transformers import Trainer, TrainingArguments

import mtst_utils as mtst
from mtst_utils.experiments.corpora import DOMAINS, SENTIMENTS
from mtst_utils.fast_cpu import QuickDropout
from mtst_utils.frames import TrainingData
from mtst_utils.learning_rates import default_optimizer
from mtst_utils.precision import has_quick_bfloat16
from tests.benchmarks.common import compare


def new_model():
    mtst.seed_everything(0)
    tasks = [mtst.Task("domain", tuple(DOMAINS)), mtst.Task("sentiment", SENTIMENTS)]
    return mtst.MultiTaskModel(mtst.SentenceEncoder.from_pretrained(), tasks)


def with_torchs_dropout(model):
    """The model with torch's own dropout, as a user of Trainer has it."""
    for part in model.modules():
        for name, layer in part.named_children():
            if isinstance(layer, QuickDropout):
                setattr(part, name, torch.nn.Dropout(layer.p))
    return model


def ours(frame, prepared=lambda model: model):
    model = prepared(new_model())
    started = time.perf_counter()
    mtst.fit(model, frame, epochs=1, progress=False)
    return time.perf_counter() - started


def trainer(frame, best, model=None, epochs=1, callbacks=()):
    model = with_torchs_dropout(model or new_model())
    started = time.perf_counter()
    frame = TrainingData(model, frame, 32, seed=0)
    data = [
        {"input_ids": row, "labels": {task: int(y[i]) for task, y in frame.labels.items()}}
        for i, row in enumerate(frame.ids)
    ]
    optimizer = (
        default_optimizer(model)
        if best
        else torch.optim.AdamW(default_optimizer(model).param_groups, foreach=True)
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(),
            bf16=best and has_quick_bfloat16(torch.device("cpu")),
            train_sampling_strategy="group_by_length" if best else "random",
            seed=0,
        )
        schedule = mtst.warmup_linear(optimizer, epochs * -(-len(data) // 32))
        Trainer(
            model,
            settings,
            model.collate,
            data,
            optimizers=(optimizer, schedule),
            callbacks=list(callbacks),
        ).train()
    return time.perf_counter() - started


def after_warm_up(run):
    """The seconds of a run, after a small one for compiled kernels and file caches."""

    def measured(sentences):
        corpus = mtst.load_rated_sentences()
        frame = corpus[corpus.split == "train"].sample(sentences, random_state=0)
        run(frame[:320])
        return run(frame)

    return measured


RUNS = {
    "HF Trainer, plain": after_warm_up(lambda frame: trainer(frame, best=False)),
    "HF Trainer, best": after_warm_up(lambda frame: trainer(frame, best=True)),
    "fit": after_warm_up(ours),
    "fit, torch's dropout": after_warm_up(lambda frame: ours(frame, with_torchs_dropout)),
}

if __name__ == "__main__":
    compare(
        "one epoch, everything trainable",
        "tests.benchmarks.training",
        RUNS,
        "HF Trainer, best",
        1920,
        __doc__,
    )
