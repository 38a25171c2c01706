"""The rows that studies leave in data/results: one per metric of a finished run, appended as it
ends.
"""

import csv
import io
import os
import subprocess
from importlib import metadata

import pandas as pd
import torch
from filelock import FileLock

from mtst_utils.experiments.corpora import DATA
from mtst_utils.experiments.intervals import t_interval
from mtst_utils.packaged_weights import DEFAULT
from mtst_utils.precision import has_quick_bfloat16
from mtst_utils.threads import usable_threads

RESULTS = DATA / "results"
COLUMNS = (
    "study backbone setting seed n metric value seconds device precision versions commit".split()
)
HEADER = f"{','.join(COLUMNS)}\n".encode()


def load(study, backbone=None):
    """The committed rows of a study, or of one backbone in it, as a frame (empty if there are
    none).

    Raises ValueError for a file that was cut off.
    """
    path = RESULTS / f"{study}.csv"
    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS)
    if not path.read_bytes().endswith(b"\n"):
        raise ValueError(
            f"{path} ends in the middle of a row: something stopped while it was written. "
            f"Delete the rows of its "
            "last run (setting and seed as in the last row), and run the study again"
        )
    rows = pd.read_csv(path, dtype={"commit": str})  # some are digits only, or 12e4567
    return rows if backbone is None else rows[rows.backbone == backbone]


def means(study, metrics, backbone=DEFAULT):
    """One row per setting and metric: setting, metric, value (mean over seeds), low, high (95 % t
    interval), seeds.
    """
    rows = load(study, backbone).query("metric in @metrics")
    table = [
        (*keys, *t_interval(values), len(values))
        for keys, values in rows.groupby(["setting", "metric"], sort=False).value
    ]
    return pd.DataFrame(table, columns=["setting", "metric", "value", "low", "high", "seeds"])


def points(study, backbone=DEFAULT):
    """The rows of a study as scores from 0 to 100: a row per (setting, seed), a column a metric."""
    rows = load(study, backbone)
    return 100 * rows.pivot_table(index=["setting", "seed"], columns="metric", values="value")


def frozen_epochs(backbone=DEFAULT):
    """Seconds of an epoch with a part frozen, by part and way, as a share of training everything:
    medians of the benchmark on a quiet machine.
    """
    rows = load("benchmarks")
    rows = rows[rows.question == f"one epoch with a part frozen, {backbone}"]
    everything = rows[rows.run == "everything"].seconds.median()
    rows = rows.join(rows.run.str.split(", ", expand=True).set_axis(["part", "how"], axis=1))
    shares = {"index": "part", "columns": "how", "values": "seconds", "sort": False}
    return rows.pivot_table(**shares, aggfunc="median") / everything


def paired(study, setting, against, metric, than=None, backbone=DEFAULT):
    """Difference between two settings in a metric (or to another metric, `than`), paired by seed,
    with its 95 % t interval.

    Returns a dict with effect, low, high, seeds. Raises ValueError if fewer than two seeds have
    both.
    """
    rows = load(study, backbone).set_index(["setting", "metric", "seed"]).value.sort_index()
    difference = (rows[setting, metric] - rows[against, than or metric]).dropna()
    if len(difference) < 2:
        raise ValueError(
            f"{study}: {setting!r} and {against!r} have {len(difference)} seeds in common; "
            f"needed are 2"
        )
    effect, low, high = t_interval(difference)
    return {"effect": effect, "low": low, "high": high, "seeds": len(difference)}


def append(study, backbone, setting, seed, n, metrics, seconds):
    """Add one run's metrics to data/results: the run is there whole or not at all. Raises OSError
    if it cannot be written.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = [
        f"{seconds:.1f}",
        f"{device.type} x {usable_threads()}",
        "bfloat16" if has_quick_bfloat16(device) else "float32",
        " ".join(f"{p} {metadata.version(p)}" for p in ("torch", "transformers", "scikit-learn")),
        _commit(),
    ]
    rows = io.StringIO()
    csv.writer(rows, lineterminator="\n").writerows(
        [study, backbone, setting, seed, n, metric, repr(float(value)), *facts]
        for metric, value in metrics.items()
    )
    path, new = RESULTS / f"{study}.csv", RESULTS / f"{study}.new"
    with locked(
        study
    ):  # one process at a time; and a kill in the middle of writing must leave the file as it was
        try:
            new.write_bytes(
                (path.read_bytes() if path.is_file() else HEADER) + rows.getvalue().encode()
            )
            os.replace(new, path)
        except OSError as error:  # a full disk, say
            new.unlink(missing_ok=True)
            raise OSError(
                f"{path} has no room for another run ({error}); what it held is unchanged. "
                f"Make some, and run the "
                "study again"
            ) from error


def locked(study):
    """A lock on the study's file. Raises OSError where nothing can be written, which a run should
    know before it starts.
    """
    try:
        RESULTS.mkdir(parents=True, exist_ok=True)
        return FileLock(RESULTS / f"{study}.lock").acquire()
    except OSError as error:
        raise OSError(
            f"{RESULTS} cannot be written to ({error}), and a study keeps its results "
            f"there: make it writable, or "
            "copy the project to a folder that is"
        ) from error


def _commit():
    command = ["git", "-C", str(DATA.parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
