"""Run by accelerate launch in test_training.py: train the small task in two ways, write their losses."""

import json
import sys

import small

import mtst_utils as mtst


def losses():
    found = {}
    for name, callbacks in {"everything": [], "gradual": [mtst.GradualUnfreezing(0.25, 0.75)]}.items():
        model, frame = small.model(dropout=0), small.frame()
        options = {"epochs": 1, "batch_size": 8, "precision": "float32", "progress": False, "callbacks": callbacks}
        found[name] = mtst.fit(model, frame, **options)["loss"].tolist()
    return found


if __name__ == "__main__":
    found = losses()
    if mtst.training.Accelerator().is_main_process:
        with open(sys.argv[1], "w") as file:
            json.dump(found, file)
