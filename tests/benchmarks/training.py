"""One training epoch, everything trainable: HF Trainer plain and at its best, and `fit`. Same model, data, batch, rates.

python -m tests.benchmarks.training [--sentences 1920] [--repeats 5]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from transformers import Trainer, TrainingArguments

import mtst_utils as mtst
from mtst_utils.corpora import DOMAINS, SENTIMENTS
from mtst_utils.encoder import has_bfloat16
from mtst_utils.training import default_optimizer, encode_frame


def new_model():
    mtst.seed_everything(0)
    tasks = [mtst.Task("domain", tuple(DOMAINS)), mtst.Task("sentiment", SENTIMENTS)]
    return mtst.MultiTaskModel(mtst.SentenceEncoder.from_pretrained(), tasks)


def ours(frame):
    model = new_model()
    started = time.perf_counter()
    mtst.fit(model, frame, epochs=1, progress=False)
    return time.perf_counter() - started


def trainer(frame, best):
    model = new_model()
    started = time.perf_counter()
    ids, labels = encode_frame(model, frame)
    data = [{"input_ids": row, "labels": {t: int(y[i]) for t, y in labels.items()}} for i, row in enumerate(ids)]
    optimizer = (
        default_optimizer(model) if best else torch.optim.AdamW(default_optimizer(model).param_groups, foreach=True)
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, num_train_epochs=1, per_device_train_batch_size=32, report_to="none", save_strategy="no",
            logging_strategy="no", disable_tqdm=True, remove_unused_columns=False, use_cpu=not torch.cuda.is_available(),
            bf16=best and has_bfloat16(torch.device("cpu")),
            train_sampling_strategy="group_by_length" if best else "random", seed=0,
        )  # fmt: skip
        schedule = mtst.warmup_linear(optimizer, -(-len(data) // 32))
        Trainer(model, settings, model.collate, data, optimizers=(optimizer, schedule)).train()
    return time.perf_counter() - started


RUNS = {
    "HF Trainer, plain": lambda frame: trainer(frame, best=False),
    "HF Trainer, best": lambda frame: trainer(frame, best=True),
    "fit": ours,
}


def measure(name, sentences):
    """Seconds of one run in a process of its own: `fit` changes how malloc keeps memory, which would help the peer, too."""
    command = [sys.executable, "-m", "tests.benchmarks.training", "--sentences", str(sentences), "--only", name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=1920)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=RUNS, help="measure this one, after a warm-up, and print its seconds")
    arguments = parser.parse_args()
    if arguments.only:
        corpus = mtst.load_rated_sentences()
        frame = corpus[corpus.split == "train"].sample(arguments.sentences, random_state=0)
        RUNS[arguments.only](frame[:320])  # compiled kernels, file caches
        print("\n", RUNS[arguments.only](frame))
        return
    seconds = {name: [] for name in RUNS}
    for _ in range(arguments.repeats):
        for name in RUNS:
            seconds[name].append(measure(name, arguments.sentences))
    print(
        f"{arguments.sentences} sentences, batch 32, {arguments.repeats} repeats in turn, {torch.get_num_threads()} threads"
    )
    for name, values in seconds.items():
        ratios = [best / own for best, own in zip(seconds["HF Trainer, best"], values, strict=True)]
        print(f"{name:18} {arguments.sentences / statistics.median(values):6.0f} sentences/s; "
              f"speed relative to HF Trainer, best: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip


if __name__ == "__main__":
    main()
