"""Scalars of NumPy's, at every public function: as Python's own number, or refused at once.

The narrowest kinds are given, since they overflow first: 100 + 100 is -56 in int8.
"""

import inspect
import types
import typing
from functools import partial

import numpy as np
import pytest
import small
import torch
from conftest import tiny_backbone, tiny_tokenizer

import mtst_utils as mtst
from mtst_utils import backbones

FRAME, TEXTS = small.frame(24), ["the cat sat", "late today"]
KINDS = {int: np.int8, float: np.float32, bool: np.bool_, str: np.str_}


def encoder(**options):
    return mtst.SentenceEncoder(tiny_backbone(), tiny_tokenizer(), **options)


def embedded(**options):
    return encoder(**options).encode(TEXTS).tolist()


def task(kind=mtst.Task, **options):
    labels = {} if kind is mtst.RegressionTask else {"labels": ("x", "y")}
    made = kind(**{"name": "a"} | labels | options)
    return made, type(made.name), type(made.weight)


def fit(**options):
    model, valid = small.model(), options.pop("valid", None)
    options = {"epochs": 1, "batch_size": 8, "precision": "float32", "progress": False} | options
    history = mtst.fit(model, FRAME, valid, **options)
    weights = [p.sum().item() for p in model.parameters()]
    return history.fillna(0).to_dict("list"), weights


def gradual(**options):
    callback = mtst.GradualUnfreezing(**options)
    kinds = [type(value) for value in vars(callback).values()]
    return callback.schedule(small.model(), 100).to_dict("list"), kinds


def stopping(**options):
    options = {"metric": "animal accuracy", "patience": 1} | options
    callback = mtst.EarlyStopping(**options)
    kinds = [type(getattr(callback, name)) for name in options]
    return kinds, fit(epochs=3, valid=FRAME, callbacks=[callback])


def groups(**options):
    return [
        {name: value for name, value in group.items() if name != "params"}
        for group in mtst.layerwise_lr_groups(small.model(), **options)
    ]


def warmup(**options):
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=1.0)
    factor = mtst.warmup_linear(optimizer, **{"total_steps": 100} | options).lr_lambdas[0]
    return [factor(step) for step in range(100)]


def unfrozen(n):
    model = small.model()
    mtst.unfreeze_top_blocks(model, n)
    return mtst.parameter_report(model).trainable.tolist()


def seeded(seed):
    mtst.seed_everything(seed)
    return np.random.rand(), torch.rand(1).item()


def model(**options):
    made = mtst.MultiTaskModel(encoder(), [mtst.Task("a", ("x", "y"))], **options)
    return made.dropout.p, type(made.dropout.p)


def csv(tmp_path, **options):
    (tmp_path / "a.csv").write_text("text,z\na,b\nc,d\n")
    options = {"path": str(tmp_path / "a.csv"), "text": "text", "tasks": {"a": "z"}} | options
    return mtst.load_csv(**options).to_dict("list")


def asked(**options):
    """What is asked of the hub."""
    seen = []

    def download(name, **rest):
        seen.append((name, rest))
        raise OSError("no hub")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "get_session", lambda: None)
        patch.setattr(backbones, "snapshot_download", download)
        with pytest.raises(mtst.BackboneNotAvailable):
            mtst.load_backbone(**{"name": "me/private"} | options)
    return seen


def corpus(load, **options):
    with pytest.raises(mtst.CorpusNotAvailable) as caught:
        load(**options)
    return str(caught.value)


def refused(take, name, **options):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (its message is what is compared)
        take(name, **options)
    return str(caught.value)


# {public name: (what calls it, {argument: a value of Python's own})}
CALLS = {
    "EarlyStopping": (stopping, {"metric": "animal macro F1", "patience": 2}),
    "EarlyStopping, too": (stopping, {"smaller_is_better": True}),
    "GradualUnfreezing": (gradual, {"start": 0.25, "end": 0.75, "base_lr": 1e-3, "decay": 0.5}),
    "GradualUnfreezing, too": (gradual, {"warmup": 100, "weight_decay": 0.125}),
    "MultiLabelTask": (partial(task, mtst.MultiLabelTask), {"name": "b", "weight": 0.5}),
    "MultiTaskModel": (model, {"dropout": 0.25}),
    "MultiTaskModel.from_pretrained": (
        lambda **o: refused(mtst.MultiTaskModel.from_pretrained, "./nowhere", **o),
        {"revision": "x", "token": "x", "subfolder": "x", "local_files_only": True},
    ),
    "RegressionTask": (partial(task, mtst.RegressionTask), {"name": "b", "weight": 0.5}),
    "SentenceEncoder": (embedded, {"pooling": "cls", "normalize": True, "max_length": 12}),
    "SentenceEncoder.encode": (
        lambda **o: encoder().encode(TEXTS, **o).tolist(),
        {"token_budget": 100, "precision": "bfloat16", "progress": False},
    ),
    "SentenceEncoder.encode, one": (lambda s: encoder().encode(s).tolist(), {"s": "late"}),
    "Task": (task, {"name": "b", "weight": 0.5}),
    "evaluate": (
        lambda **o: mtst.evaluate(small.model(), FRAME, **o).astype(str).to_dict("list"),
        {"by": "letter", "precision": "float32"},
    ),
    "fit": (fit, {"epochs": 2, "batch_size": 6, "clip_norm": 0.5, "parts": 2, "seed": 100}),
    "fit, too": (fit, {"precision": "bfloat16", "acceleration": False, "progress": False}),
    "layerwise_lr_groups": (
        groups,
        {"base_lr": 1e-3, "decay": 0.5, "head_lr": 1e-2, "weight_decay": 0.125},
    ),
    "load_backbone": (
        asked,
        {
            "name": "you/private",
            "revision": "r",
            "token": "t",
            "cache_dir": "c",
            "local_files_only": True,
            "subfolder": "s",
        },
    ),
    "load_backbone, no token": (asked, {"token": False}),
    "load_csv": (csv, {"text": "text"}),
    "load_human_ratings": (partial(corpus, mtst.load_human_ratings), {"folder": "/proc/mtst"}),
    "load_rated_sentences": (partial(corpus, mtst.load_rated_sentences), {"folder": "/proc/mtst"}),
    "seed_everything": (seeded, {"seed": 100}),
    "unfreeze_top_blocks": (unfrozen, {"n": 2}),
    "warmup_linear": (warmup, {"total_steps": 127, "warmup_fraction": 0.25}),
}
# Arguments without a scalar of their own to be given here, or given in tests of their own.
OTHERS = {("fit", "checkpoint"), ("load_csv", "path")}
ROWS = [(name, key) for name, (_, values) in CALLS.items() for key in values]


@pytest.mark.parametrize(("name", "key"), ROWS, ids=lambda value: value)
def test_a_scalar_of_numpy_is_the_same_scalar(name, key, tmp_path):
    call, values = CALLS[name]
    if name == "load_csv":
        call = partial(call, tmp_path)
    value = KINDS[type(values[key])](values[key])
    assert type(value).__module__ == "numpy"
    as_python = value.item()  # a float32 is a little less or more than what it was made of
    assert repr(call(**{key: value})) == repr(call(**{key: as_python}))


NUMBERS = [row for row in ROWS if type(CALLS[row[0]][1][row[1]]) in (int, float)]


@pytest.mark.parametrize("value", [np.bool_(True), np.str_("1"), np.array([1]), np.float32("nan")])
@pytest.mark.parametrize(("name", "key"), NUMBERS, ids=lambda value: value)
def test_what_is_no_number_is_refused_by_the_arguments_name(name, key, value):
    with pytest.raises((TypeError, ValueError), match=rf"\b{key} must be"):
        CALLS[name][0](**{key: value})


def flat(kind):
    """The types that an annotation names."""
    return set(typing.get_args(kind)) if isinstance(kind, types.UnionType) else {kind}


def test_every_scalar_argument_has_its_row():
    wanted = set()
    for name in dir(mtst):
        thing = getattr(mtst, name)
        ours = callable(thing) and getattr(thing, "__module__", "").startswith("mtst_utils")
        if name.startswith("_") or not ours or issubclass_of_error_or_output(thing):
            continue
        for key, parameter in inspect.signature(thing).parameters.items():
            if {int, float, bool, str} & flat(parameter.annotation) and key != "labels":
                wanted.add((name, key))
    assert ("fit", "epochs") in wanted
    assert wanted - {(name.partition(",")[0], key) for name, key in ROWS} == OTHERS


def issubclass_of_error_or_output(thing):
    no_door = (Exception, mtst.MultiTaskOutput, mtst.History)
    return inspect.isclass(thing) and issubclass(thing, no_door)
