"""What a declared study leaves in data/results: one row a run, and what it predicted for every test
row.

A run's predictions are written before its row: a run that has a row is whole. Both are replaced in
one step, so a kill at any moment leaves what was there.
"""

import csv
import io
import json
import os
import subprocess
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mtst_utils.experiments import results
from mtst_utils.precision import has_quick_bfloat16
from mtst_utils.threads import usable_threads

KEYS = ["study", "phase", "backbone", "corpus", "n", "arm", "settings", "seed"]
SCORES = [
    "sentiment macro F1",
    "sentiment accuracy",
    "domain accuracy",
    "domain macro F1",
    "training sentiment macro F1",
    "training domain accuracy",
    "valid sentiment macro F1",
    "valid domain accuracy",
]
FACTS = [
    "details",
    "tries",
    "at_edge",
    "seconds",
    "cpu_seconds",
    "device",
    "precision",
    "versions",
    "commit",
]
COLUMNS = [*KEYS, *SCORES, *FACTS]


def _commit() -> str:
    """The commit of the code that is imported now; "+" behind it if files of the package differ
    from it.
    """
    folder = Path(__file__).parents[1]
    short = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    changed = ["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no", "--", "."]
    name, change = (
        subprocess.run(c, capture_output=True, text=True).stdout.strip() for c in (short, changed)
    )
    return (name or "unknown") + "+" * bool(change)


COMMIT = _commit()  # at the start: what is committed while a long study runs is not what it runs


def compact(settings: dict) -> str:
    """Settings as one line of JSON, the same for the same settings."""
    return json.dumps(settings, sort_keys=True, separators=(",", ":"))


def rows_of(study: str) -> pd.DataFrame:
    """The rows of a study, a run each; empty if there are none. Raises ValueError for a file of
    other columns.
    """
    path = results.RESULTS / f"{study}.csv"
    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS)
    rows = pd.read_csv(path, dtype={"commit": str})  # some are digits only, or 12e4567
    if list(rows.columns) != COLUMNS:
        others = sorted(set(rows.columns) ^ set(COLUMNS))
        raise ValueError(f"{path} has other columns than records.COLUMNS: {others}")
    return rows


def keep(row: dict, predictions: dict[str, np.ndarray] | None = None) -> None:
    """Add one run: its predictions (codes [N] by task) to an archive, then its row to the study's
    file.

    row: the KEYS, and whatever it has of SCORES and FACTS. Raises OSError if it cannot be written.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = {
        "device": f"{device.type} x {usable_threads()}",
        "precision": "bfloat16" if has_quick_bfloat16(device) else "float32",
        "versions": " ".join(
            f"{p} {metadata.version(p)}" for p in ("torch", "transformers", "scikit-learn")
        ),
        "commit": COMMIT,
    }
    unknown = set(row) - set(COLUMNS)
    if unknown or not set(KEYS) <= set(row):
        raise ValueError(f"a row has the columns of records.COLUMNS; got {sorted(row)}")
    with results.locked(row["study"]):
        if predictions:
            _keep_predictions(row, predictions)
        path, line = results.RESULTS / f"{row['study']}.csv", io.StringIO()
        writer = csv.DictWriter(line, COLUMNS, lineterminator="\n")
        if not path.is_file():
            writer.writeheader()
        writer.writerow(facts | row)
        _replace(path, (path.read_bytes() if path.is_file() else b"") + line.getvalue().encode())


def archive(study: str, backbone: str, n: int) -> Path:
    """Where the predictions of a study's final runs on n sentences are."""
    return results.RESULTS / "predictions" / f"{study} {backbone.replace('/', '_')} {n}.npz"


def predictions(
    study: str, backbone: str, n: int, arm: str, seeds: list[int], task: str
) -> np.ndarray:
    """What an arm's final runs predicted: codes int8 [len(seeds), N], N the test rows in the
    corpus's order.

    Raises KeyError if one is missing.
    """
    with np.load(archive(study, backbone, n)) as stored:
        return np.stack([stored[f"{arm}|{seed}|{task}"] for seed in seeds])


def _keep_predictions(row: dict, codes: dict[str, np.ndarray]) -> None:
    path = archive(row["study"], row["backbone"], row["n"])
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {}
    if path.is_file():
        with np.load(path) as old:
            stored = {name: old[name] for name in old.files}
    stored |= {
        f"{row['arm']}|{row['seed']}|{task}": np.asarray(values, np.int8)
        for task, values in codes.items()
    }
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        for name, values in sorted(
            stored.items()
        ):  # a fixed date, so that the same content is the same file
            part = io.BytesIO()
            np.save(part, values)
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            out.writestr(info, part.getvalue(), zipfile.ZIP_DEFLATED, 9)
    _replace(path, whole.getvalue())


def _replace(path: Path, content: bytes) -> None:
    new = path.with_suffix(".new")
    try:
        new.write_bytes(content)
        os.replace(new, path)
    except OSError as error:  # a full disk, say
        new.unlink(missing_ok=True)
        raise OSError(
            f"{path} has no room for another run ({error}); what it held is unchanged"
        ) from error
