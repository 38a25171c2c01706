"""What sentence-transformers' files say of a folder: read, and written.

Whatever changes an embedding is applied, or refused by name. Taught in notebook 01, section 6.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from safetensors.torch import load_file, save_file

from mtst_utils import checks
from mtst_utils.layers import ACTIVATIONS, Dense
from mtst_utils.pooling import POOLINGS

# What SentenceEncoder is, module by module: what each may be followed by.
NEXT: dict[str, tuple[str, ...]] = {
    "": ("Transformer",),
    "Transformer": ("Pooling",),
    "Pooling": ("Dense", "Normalize"),
    "Dense": ("Dense", "Normalize"),
    "Normalize": (),
}
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
# What a plain transformer, a plain Normalize and a plain Dense may state besides.
TRANSFORMER = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
NORMALIZE = dict.fromkeys(("module_input_name", "module_output_name"), "sentence_embedding")
DENSE = NORMALIZE | {"use_residual": False}


def read_settings(folder: Path) -> dict[str, Any]:
    """What a folder states, as SentenceEncoder's options, and lower_case.

    max_length None: the tokenizer's. Nothing ({}) without modules.json, as in a folder that
    transformers wrote. Raises ValueError that names a module, an option or a default prompt that
    SentenceEncoder does not apply, or a damaged file; warns of prompts that are there to be chosen.
    """
    if not (folder / "modules.json").is_file():
        return {}
    modules = _modules(folder)
    # Named after the architecture, once; the name of today goes first.
    files = sorted(
        folder.glob("sentence_*_config.json"), key=lambda file: "_bert_" not in file.name
    )
    transformer = _json(files[0]) if files else {}
    # Unpadding only changes the speed.
    read = ("max_seq_length", "do_lower_case", "unpad_inputs")
    _check_others(folder, "Transformer", transformer, TRANSFORMER, read)
    max_length, lower = transformer.get("max_seq_length"), transformer.get("do_lower_case", False)
    if max_length is not None:
        checks.whole(f"{folder}: max_seq_length", max_length, "of 3 or more", lambda v: v >= 3)
    checks.instance(f"{folder}: do_lower_case", lower, (bool, type(None)))
    for kind, place in modules:
        if kind == "Normalize":
            _check_others(folder, kind, _json(place / "config.json"), NORMALIZE)
    _check_prompts(folder)
    return {
        "pooling": _pooling(folder, _json(modules[1][1] / "config.json")),
        "dense": [_dense(folder, place) for kind, place in modules if kind == "Dense"],
        "normalize": modules[-1][0] == "Normalize",
        "max_length": max_length,
        "lower_case": lower,
    }


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """(kind, folder) of every module that modules.json states."""
    found = [("", folder)]
    for i, module in enumerate(_json(folder / "modules.json", list)):
        module = module if isinstance(module, dict) else {"type": module}
        library, _, kind = str(module.get("type")).rpartition(".")
        known = library.partition(".")[0] == "sentence_transformers" and kind in NEXT[found[-1][0]]
        if not known or (i == 0 and module.get("path")):  # the transformer's files are the folder's
            _refuse(folder, f"{module.get('type')} as module {i}")
        found.append((kind, folder / str(module.get("path", ""))))
    if len(found) < 3:
        _refuse(folder, "no Pooling")
    return found[1:]


def _pooling(folder: Path, config: dict) -> str:
    """The one pooling stated, by either schema."""
    names = {flag: name for name, flag in FLAGS.items()}
    stated = config.get("pooling_mode")
    if stated is None:
        flags = [key for key, on in config.items() if key.startswith("pooling_mode_") and on]
        stated = [names.get(flag, flag) for flag in flags]
        stated = stated or "mean"
    poolings = stated if isinstance(stated, list) else [stated]
    if len(poolings) != 1 or poolings[0] not in list(POOLINGS):
        named = " and ".join(map(str, poolings))
        _refuse(folder, f"Pooling by {named} (known are {', '.join(POOLINGS)})")
    return poolings[0]


def _dense(folder: Path, place: Path) -> Dense:
    """The Dense that stands in a folder of its own, with its weights."""
    config, sizes = _json(place / "config.json"), ("in_features", "out_features", "bias")
    _check_others(folder, "Dense", config, DENSE, (*sizes, "activation_function"))
    stated = str(config.get("activation_function", "torch.nn.Tanh"))
    library, _, activation = stated.rpartition(".")
    if library.partition(".")[0] != "torch" or activation not in ACTIVATIONS:
        _refuse(folder, f"Dense with activation_function={stated!r}")
    try:
        weights = load_file(place / "model.safetensors")
        out_features, in_features = weights["linear.weight"].shape
        found = dict(zip(sizes, (in_features, out_features, "linear.bias" in weights), strict=True))
        if {name: config.get(name, found[name]) for name in sizes} != found:
            raise ValueError(f"it holds {found}, config.json states another")
        dense = Dense(**found, activation=activation)
        dense.load_state_dict(weights)
    except Exception as error:  # not there, damaged, of other sizes: each says so in its own way
        raise ValueError(
            f"{place / 'model.safetensors'} cannot be read as a Dense ({error}); other formats, "
            "such as pytorch_model.bin, are not read"
        ) from error
    return dense


def _check_prompts(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    config = _json(path)
    stated, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(stated, dict):
        raise ValueError(f"{path}: prompts must be a dict; got {stated!r:.60}")
    prompts = {name: text for name, text in stated.items() if text}
    if default in list(prompts):
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


def _json(path: Path, kind: type = dict) -> Any:
    """What a file holds, a dict or a list; an empty one where there is no file.

    Raises ValueError for a damaged file.
    """
    if not path.is_file():
        return kind()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        checks.instance("what it holds", found, kind)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    return found


def write_settings(
    folder: Path,
    pooling: str,
    dense: Iterable[Dense],
    normalize: bool,
    max_length: int,
    lower_case: bool,
    width: int,
) -> None:
    """State them in the files that every version of sentence-transformers reads.

    width: the length of what is pooled. A Dense brings its weights.
    """
    (folder / "config_sentence_transformers.json").unlink(missing_ok=True)  # of what was there
    dense = list(dense)
    kinds = ["Transformer", "Pooling", *["Dense"] * len(dense), *["Normalize"] * normalize]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    # The oldest versions know three flags only. A pooling of one's own has none:
    # sentence-transformers refuses its name, as it should.
    own = {} if pooling in FLAGS else {"pooling_mode": pooling}
    flags = {flag: name == pooling for name, flag in FLAGS.items() if name in (*OLDEST, pooling)}
    files: dict[str, Any] = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": width} | (own or flags),
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": lower_case},
    }
    for path in paths:  # that of Normalize stays empty: it has no settings
        (folder / path).mkdir(parents=True, exist_ok=True)
    for path, layer in zip(paths[2:], dense, strict=False):
        kind = type(layer.activation)
        files[f"{path}/config.json"] = {
            "in_features": layer.linear.in_features,
            "out_features": layer.linear.out_features,
            "bias": layer.linear.bias is not None,
            "activation_function": f"{kind.__module__}.{kind.__name__}",
        }
        save_file(layer.state_dict(), folder / path / "model.safetensors")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
