"""What sentence-transformers' files say of a folder: read, and written.

Whatever changes an embedding is applied, or refused by name. Taught in notebook 01, section 6.
"""

import json
from pathlib import Path
from typing import Any, NoReturn

from mtst_utils import checks
from mtst_utils.pooling import POOLINGS

STEPS = ("Transformer", "Pooling", "Normalize")  # the modules that SentenceEncoder is, in order
# Versions before 5.4 state a pooling by a flag of its own.
FLAGS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
OLDEST = ("mean", "cls", "max")
# What a plain transformer and a plain Normalize may state besides.
TRANSFORMER = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
NORMALIZE = dict.fromkeys(("module_input_name", "module_output_name"), "sentence_embedding")
OLD_FILE = "sentence_encoder.json"  # this package wrote it once; it knew poolings of one's own


def read_settings(folder: Path) -> dict[str, Any]:
    """What a folder states: pooling, normalize, max_length (None: the tokenizer's), lower_case.

    Nothing ({}) without modules.json, as in a folder that transformers wrote. Raises ValueError
    that names a module, an option or a default prompt that SentenceEncoder does not apply; warns of
    prompts that are there to be chosen.
    """
    modules = _json(folder / "modules.json")
    if not modules:
        return {}
    for i, module in enumerate(modules):
        library, _, kind = module["type"].rpartition(".")
        if STEPS[i : i + 1] != (kind,) or library.partition(".")[0] != "sentence_transformers":
            _refuse(folder, f"{module['type']} as module {i}")
    if len(modules) < 2:
        _refuse(folder, "no Pooling")
    # Named after the architecture, once; the name of today goes first.
    files = sorted(
        folder.glob("sentence_*_config.json"), key=lambda file: "_bert_" not in file.name
    )
    transformer = _json(files[0]) if files else {}
    # Unpadding only changes the speed.
    read = ("max_seq_length", "do_lower_case", "unpad_inputs")
    _check_others(folder, "Transformer", transformer, TRANSFORMER, read)
    for module in modules[2:]:
        normalize = _json(folder / module["path"] / "config.json")
        _check_others(folder, "Normalize", normalize, NORMALIZE)
    _check_prompts(folder)
    return {
        "pooling": _pooling(folder, _json(folder / modules[1]["path"] / "config.json")),
        "normalize": len(modules) == len(STEPS),
        "max_length": transformer.get("max_seq_length"),
        "lower_case": transformer.get("do_lower_case", False),
    }


def _pooling(folder: Path, config: dict) -> str:
    """The one pooling stated, by either schema."""
    names = {flag: name for name, flag in FLAGS.items()}
    flags = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    stated = config.get("pooling_mode") or [names.get(flag, flag) for flag in flags]
    poolings = [stated] if isinstance(stated, str) else list(stated)
    if not poolings:
        poolings = [_json(folder / OLD_FILE).get("pooling", "mean")]
    if len(poolings) > 1 or poolings[0] not in POOLINGS:
        _refuse(folder, f"Pooling by {' and '.join(poolings)} (known are {', '.join(POOLINGS)})")
    return poolings[0]


def _check_prompts(folder: Path) -> None:
    config = _json(folder / "config_sentence_transformers.json")
    prompts = {name: text for name, text in (config.get("prompts") or {}).items() if text}
    default = config.get("default_prompt_name")
    if default in prompts:
        _refuse(folder, f"the default prompt {default!r} ({prompts[default]!r})")
    if prompts:
        checks.warn(
            f"{folder.name}: its prompts {prompts} are not put before sentences; do so yourself "
            "where the model's card says so"
        )


def _check_others(
    folder: Path, module: str, config: dict, plain: dict[str, Any], read: tuple[str, ...] = ()
) -> None:
    """Raises ValueError for an option that is neither read nor what a plain module states."""
    for name, value in config.items():
        if name not in read and value not in (None, {}, plain.get(name)):
            _refuse(folder, f"{module} with {name}={value!r}")


def _refuse(folder: Path, what: str) -> NoReturn:
    raise ValueError(
        f"{folder}: sentence-transformers' files state {what}, which SentenceEncoder does not "
        "apply. SentenceEncoder(*load_backbone(name), pooling=...) takes the transformer alone: "
        "what is stated besides is then yours to do"
    )


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_settings(
    folder: Path, pooling: str, normalize: bool, max_length: int, lower_case: bool, dimension: int
) -> None:
    """State them in the files that every version of sentence-transformers reads."""
    for stale in (OLD_FILE, "config_sentence_transformers.json"):
        (folder / stale).unlink(missing_ok=True)
    paths = ["", "1_Pooling", "2_Normalize"][: 2 + normalize]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(paths, STEPS, strict=False))
    ]
    # The oldest versions know three flags only. A pooling of one's own has none:
    # sentence-transformers refuses its name, as it should.
    own = {} if pooling in FLAGS else {"pooling_mode": pooling}
    flags = {flag: name == pooling for name, flag in FLAGS.items() if name in (*OLDEST, pooling)}
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": dimension} | (own or flags),
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": lower_case},
    }
    for path in paths:  # 2_Normalize stays empty: it has no settings
        (folder / path).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
