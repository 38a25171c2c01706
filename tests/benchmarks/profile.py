"""Where the time goes in encoding and in training: shares of the operators' own time, kept in
data/results/profiles.csv.

python -m tests.benchmarks.profile [--backbone all-mpnet-base-v2]
"""

import argparse
import re

import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile, schedule

import mtst_utils as mtst
from mtst_utils.experiments.results import RESULTS
from mtst_utils.experiments.transfer import new_model, split
from tests.benchmarks.common import machine

PARTS = {  # the first whose pattern is found in an operator's name
    "matrix products": r"addmm|::mm$|::linear$|mkldnn",
    "attention": r"attention|::bmm|softmax|::baddbmm",
    "copies and conversions": r"copy_|::cat$|clone|contiguous",
    "optimizer and gradient norm": r"adamw|vector_norm|foreach",
    "activation": r"gelu",
    "normalisation": r"layer_norm",
    "dropout": r"random_|::ge$|bernoulli",
    "zeroed memory": r"fill_|zero_",
}
WARM, WATCHED = 20, 20  # steps: at first memory is touched for the first time


def shares(recorded):
    own = {event.key: event.self_cpu_time_total for event in recorded.key_averages()}
    table = dict.fromkeys([*PARTS, "all else"], 0.0)
    for name, time in own.items():
        part = next(
            (part for part, pattern in PARTS.items() if re.search(pattern, name)), "all else"
        )
        table[part] += time / sum(own.values())
    return table


def encoding(backbone, precision):
    encoder = mtst.SentenceEncoder.from_pretrained(backbone)
    texts = split("test", 400).text.tolist()
    encoder.encode(texts, precision=precision)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        encoder.encode(texts, precision=precision)
    return shares(recorded)


def training(backbone):
    model, found = new_model(backbone), []

    class Watch:
        def __init__(self):
            steps = schedule(wait=WARM - 1, warmup=1, active=WATCHED, repeat=1)
            self.recorder = profile(
                activities=[ProfilerActivity.CPU], schedule=steps, on_trace_ready=found.append
            )

        def on_start(
            self, run
        ):  # a hook of the optimizer: a callback after each step would cost time of its own
            self.recorder.start()
            run.optimizer.register_step_post_hook(lambda *_: self.recorder.step())

    mtst.fit(
        model,
        split("train", 32 * (WARM + WATCHED + 1)),
        epochs=1,
        callbacks=[Watch()],
        progress=False,
    )
    return shares(found[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="all-MiniLM-L6-v2")
    backbone = parser.parse_args().backbone
    tables = {f"encoding, {kind}": encoding(backbone, kind) for kind in ("float32", "bfloat16")}
    tables["training everything"] = training(backbone)
    table = pd.DataFrame(tables)
    print(f"{backbone}, {machine()}\n{(100 * table).round(1).to_string()}")
    rows = (
        table.rename_axis("part")
        .reset_index()
        .melt("part", var_name="question", value_name="share")
    )
    path = RESULTS / "profiles.csv"
    old = pd.read_csv(path).query("backbone != @backbone") if path.is_file() else None
    rows = rows.assign(backbone=backbone, machine=machine(), threads=torch.get_num_threads())
    pd.concat([old, rows]).to_csv(path, index=False)


if __name__ == "__main__":
    main()
