"""Anything at every door: it works, or our own code refuses it by a sentence that names it."""

import contextlib
import csv
import io
import json
import string
import traceback
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small
from conftest import tiny_backbone, tiny_tokenizer
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import mtst_utils as mtst
from mtst_utils import folders
from mtst_utils.frames import is_missing, read_frame
from mtst_utils.layers import Dense

OURS = str(Path(mtst.__file__).parent)
# Every run tries the same ones; the machine may be busy.
QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
tried = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=QUIET)
MODEL = small.model()
CHARACTERS = st.characters(codec=None)  # half characters, too
WORDS = st.text(CHARACTERS, max_size=12)
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    WORDS,
    st.binary(max_size=3),
    st.lists(st.integers(), max_size=2),
    st.tuples(st.lists(st.integers(), max_size=1)),
    st.dictionaries(st.text(max_size=1), st.none(), max_size=1),
    st.sampled_from([pd.NA, pd.NaT, pd.Timestamp(0), np.float32("nan"), np.int8(1), np.array(1)]),
    st.sampled_from([np.ones(2), np.datetime64("NaT"), Ellipsis, int, 10**400, Path("x")]),
)


@contextlib.contextmanager
def refusing(*named):
    """What is raised within is a ValueError or TypeError of our code that names the argument."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    except (TypeError, ValueError) as error:
        raised, message = traceback.extract_tb(error.__traceback__)[-1], str(error)
        assert raised.filename.startswith(OURS), raised
        assert any(name in message for name in named), message


@tried
@given(value=ANYTHING, name=st.sampled_from(["base_lr", "decay", "head_lr", "weight_decay"]))
@example(value=1.1e-149, name="decay")  # found here: over the layers it comes to a rate of zero
def test_any_rate(value, name):
    if name == "head_lr" and value is None:
        return  # the default
    with refusing(f"{name} must be"):
        groups = mtst.layerwise_lr_groups(MODEL, **{name: value})
        assert all(0 < group["lr"] <= 1 and 0 <= group["weight_decay"] < 1 for group in groups)


@tried
@given(value=ANYTHING, name=st.sampled_from(["epochs", "batch_size", "parts", "seed", "clip_norm"]))
def test_any_number_of_fit(value, name):
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
        return  # would train
    with refusing(f"{name} must be", "frame must be"):
        mtst.fit(MODEL, None, **{"epochs": 1, "progress": False} | {name: value})


@tried
@given(
    value=ANYTHING,
    door=st.sampled_from(
        [
            ("n", lambda v: mtst.unfreeze_top_blocks(MODEL, v)),
            ("max_length", lambda v: mtst.SentenceEncoder(*PARTS, max_length=v)),
            ("pooling", lambda v: mtst.SentenceEncoder(*PARTS, pooling=v)),
            ("token_budget", lambda v: MODEL.encoder.encode("late", token_budget=v)),
            ("precision", lambda v: MODEL.encoder.encode("late", precision=v)),
            ("dropout", lambda v: mtst.MultiTaskModel(MODEL.encoder, MODEL.tasks.values(), v)),
            ("tasks", lambda v: mtst.MultiTaskModel(MODEL.encoder, v)),
            ("start", lambda v: mtst.GradualUnfreezing(start=v)),
            ("warmup", lambda v: mtst.GradualUnfreezing(warmup=v)),
            ("metric", lambda v: mtst.EarlyStopping(v)),
            ("patience", lambda v: mtst.EarlyStopping("a accuracy", v)),
            ("seed", mtst.seed_everything),
            ("by", lambda v: mtst.evaluate(MODEL, FRAME, by=v)),
            ("groups", mtst.lr_table),
        ]
    ),
)
def test_anything_at_any_argument(value, door):
    name, call = door
    with refusing(name):
        call(value)


PARTS = tiny_backbone(), tiny_tokenizer()
FRAME = small.frame(4)


@tried
@given(name=st.one_of(WORDS, ANYTHING), labels=st.lists(ANYTHING, max_size=4), weight=ANYTHING)
def test_any_task(name, labels, weight):
    for options in ({"name": name}, {"labels": labels}, {"weight": weight}):
        with refusing("Task"):
            task = mtst.Task(**{"name": "a", "labels": ("x", "y")} | options)
            assert task.encode(list(task.labels)).tolist() == list(range(task.outputs))
            assert 0 < task.weight < float("inf")
            json.dumps([task.name, task.labels, task.weight])  # a file can hold it
            task.name.encode()


@tried
@given(
    values=st.lists(ANYTHING, max_size=3),
    task=st.sampled_from(
        [
            mtst.Task("a", ("x", "y", 1)),
            mtst.MultiLabelTask("a", ("x", "y", 1)),
            mtst.RegressionTask("a"),
        ]
    ),
)
def test_any_labels(values, task):
    with refusing("task 'a', row"):
        truth = task.encode(values)
        assert len(truth) == len(values)
        known = task.labelled(truth).tolist()
        assert known == [not is_missing(value) for value in values]


CONTAINERS = [list, tuple, iter, set, pd.Series, pd.DataFrame, dict.fromkeys, str, repr, np.array]


@tried
@given(
    sentences=st.lists(WORDS, max_size=4)
    | st.lists(WORDS | st.none() | st.integers() | st.binary(max_size=2), max_size=4),
    make=st.sampled_from(CONTAINERS),
)
@example(sentences=[], make=lambda _: np.array("a"))  # found here: no dimension, no list
@example(sentences=["a"], make=lambda _: list)
def test_any_sentences(sentences, make):
    try:
        given = make(sentences)
    except (TypeError, ValueError, UnicodeError):
        return  # no such container
    with refusing("sentences must be", "sentences["):
        embeddings = MODEL.encoder.encode(given)
        if make in (list, tuple, iter, pd.Series):
            assert all(isinstance(sentence, str) for sentence in sentences)
            assert embeddings.shape == (len(sentences), 32)
            alone = [MODEL.encoder.encode(sentence) for sentence in sentences]
            assert np.allclose(embeddings, np.reshape(alone, embeddings.shape), atol=1e-5)
        assert np.isfinite(embeddings).all()


COLUMNS = st.sampled_from(["text", "text", "text", "animal", "letter", "x", 3, None, ("text", 1)])
VALUES = {"animal": st.sampled_from(["cat", "other", None]), "letter": st.sampled_from(["b", None])}
DTYPES = st.sampled_from([object, "category", "string", "Int64", "datetime64[ns]", None])


@st.composite
def frames(draw):
    """Few rows, columns of any names and kinds, also twice; any index."""
    n = draw(st.integers(0, 4))
    columns = []
    for name in draw(st.lists(COLUMNS, min_size=1, max_size=4)):
        usual = VALUES.get(name, WORDS) if isinstance(name, str) else ANYTHING
        values = draw(
            st.lists(usual | ANYTHING if draw(st.booleans()) else usual, min_size=n, max_size=n)
        )
        series = pd.Series(values, dtype=object)
        dtype = draw(DTYPES)
        with contextlib.suppress(Exception):  # not every kind holds everything
            series = series.astype(dtype or object)
        columns.append(series.rename(name))
    frame = pd.concat(columns, axis=1) if columns else pd.DataFrame()
    index = draw(st.sampled_from(["plain", "one", "pairs"]))
    if index == "one":
        frame.index = ["a"] * len(frame)
    elif index == "pairs":
        frame.index = pd.MultiIndex.from_product([["a"], range(len(frame))])
    return frame


@tried
@given(frame=frames(), by=st.none() | COLUMNS)
def test_any_frame(frame, by):
    with refusing("frame", "text", "task", "column", "by must", "by:"):
        labels, sentences = read_frame(MODEL, frame)
        assert sentences == frame["text"].tolist()
        for name, truth in labels.items():
            known = MODEL.tasks[name].labelled(truth)
            said = [MODEL.tasks[name].labels[i] for i in truth[known]]
            assert said == [value for value in frame[name] if not is_missing(value)]
        table = mtst.evaluate(MODEL, frame, by)
        assert (table[table.n > 0].accuracy >= 0).all()


FIELDS = st.text(st.characters(codec="utf-8"), max_size=6) | st.text(
    ',";\n\r\t x\ufeff', max_size=5
)


@tried
@given(
    rows=st.lists(st.tuples(FIELDS, FIELDS), min_size=1, max_size=4),
    separator=st.sampled_from([",", ",", ",", ";", "\t"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
    line=st.sampled_from(["\n", "\r\n"]),
)
def test_any_csv_that_others_write(tmp_path, rows, separator, quoting, encoding, line):
    # Python's writer does not quote what ends a line elsewhere: such a file has other rows.
    assume(quoting != csv.QUOTE_MINIMAL or not any("\r" in "".join(row) for row in rows))
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=separator, quoting=quoting, lineterminator=line)
    writer.writerows([("text", "z"), *rows])
    data = file.getvalue().encode(encoding, errors="replace")
    (tmp_path / "mine.csv").write_bytes(data)
    with refusing("mine.csv"):
        frame = mtst.load_csv(tmp_path / "mine.csv", "text", {"a": "z"})
        assert separator == ","
        whole = [pair for pair in rows if encoding.startswith("utf") or "".join(pair).isascii()]
        if len(whole) == len(rows):
            assert frame.text.tolist() == [text for text, _ in rows]
            assert frame.a.tolist() == [label.strip() or None for _, label in rows]


@tried
@given(data=st.binary(max_size=40) | st.text('text,z\n\r"; a', max_size=30).map(str.encode))
def test_any_file_is_a_csv_or_not(tmp_path, data):
    (tmp_path / "mine.csv").write_bytes(data)
    with refusing("mine.csv"):
        frame = mtst.load_csv(tmp_path / "mine.csv", "text", {"a": "z"})
        assert list(frame) == ["text", "a"]
        assert all(isinstance(text, str) and text.strip() for text in frame.text)


@tried
@given(path=ANYTHING, text=ANYTHING, tasks=ANYTHING | st.dictionaries(WORDS, ANYTHING, max_size=2))
def test_any_column_of_a_csv(tmp_path, path, text, tasks):
    (tmp_path / "mine.csv").write_text("text,z\na,b\nc,d\n")
    for options in ({"path": path}, {"text": text}, {"tasks": tasks}):
        usual = {"path": tmp_path / "mine.csv", "text": "text", "tasks": {"a": "z"}}
        with (
            contextlib.suppress(FileNotFoundError),
            refusing("path", "mine.csv", "tasks", "text must"),
        ):
            mtst.load_csv(**usual | options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder")
    mtst.SentenceEncoder(*PARTS, normalize=True, dense=[Dense(32, 8)]).save_pretrained(folder)
    return folder


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.text(string.ascii_letters, max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)
MODULE = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(
            [f"sentence_transformers.models.{kind}" for kind in (*folders.NEXT, "Dropout")]
            + ["mine.Pooling"]
        )
        | JSON,
        "path": st.sampled_from(["", "1_Pooling", "2_Dense", "3_Normalize", "../x", "a\0"]) | JSON,
    },
)
OPTIONS = {
    "modules.json": ["type", "path"],
    "1_Pooling/config.json": ["pooling_mode", *folders.FLAGS.values(), "pooling_mode_median"],
    "2_Dense/config.json": ["in_features", "out_features", "bias", "activation_function"],
    "3_Normalize/config.json": list(folders.NORMALIZE),
    "sentence_bert_config.json": ["max_seq_length", "do_lower_case", *folders.TRANSFORMER],
    "config_sentence_transformers.json": ["prompts", "default_prompt_name"],
}


@settings(tried, max_examples=150)
@given(data=st.data(), file=st.sampled_from(list(OPTIONS)))
def test_any_configuration_of_a_folder(folder, data, file):
    before = (folder / file).read_bytes() if (folder / file).is_file() else None
    keys = st.sampled_from(OPTIONS[file]) | st.text(string.ascii_letters, max_size=4)
    values = JSON | st.sampled_from(list(folders.FLAGS))
    content = data.draw(
        st.lists(MODULE, max_size=4)
        if file == "modules.json" and data.draw(st.booleans())
        else st.dictionaries(keys, values, max_size=3) | JSON
    )
    text = json.dumps(content)
    (folder / file).write_text(
        text[: data.draw(st.integers(1, len(text)))] if data.draw(st.integers(0, 9)) == 0 else text
    )
    try:
        with refusing(str(folder)):
            stated = folders.read_settings(folder)
            assert stated["pooling"] in list(folders.FLAGS)
            assert stated["max_length"] is None or stated["max_length"] >= 3
            if file == "modules.json":
                kinds = [module["type"].rpartition(".")[2] for module in content]
                assert kinds[:2] == ["Transformer", "Pooling"]
                assert len(stated["dense"]) == kinds.count("Dense")
                assert stated["normalize"] == ("Normalize" in kinds)
    finally:
        if before is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(before)
