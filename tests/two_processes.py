"""Run by accelerate launch in test_training.py: train the small task, write its losses."""

import json
import sys

import small

import mtst_utils as mtst

history = mtst.fit(small.model(dropout=0), small.frame(), epochs=1, batch_size=8, precision="float32", progress=False)
if mtst.training.Accelerator().is_main_process:
    with open(sys.argv[1], "w") as file:
        json.dump(history["loss"].tolist(), file)
