"""Every figure draws what it is given, with a title and named axes."""

import inspect

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mtst_utils.experiments import plots

EFFECTS = pd.DataFrame({"effect": [0.1, 0.0], "low": [0.05, -0.1], "high": [0.15, 0.1]}, index=["clear", "noise"])
SCORES = pd.DataFrame([{"domain": d, "setting": s, "seed": k, "value": 0.5 + 0.1 * k} for d in "xy"
                       for s, seeds in (("one human rater", 1), ("A", 1), ("B", 3)) for k in range(seeds)])  # fmt: skip
HISTORY = pd.DataFrame({"step": range(1, 41), "epoch": [0] * 20 + [1] * 20, "a loss": 1.0, "b loss": 2.0})
GRID = pd.DataFrame([[0.1, 0.2], [0.3, 0.4]], index=pd.Index([1, 0.5], name="decay"), columns=[1e-4, 1e-3])
DRAWN = {
    "token_grid": ([["a", "b"], ["c", "[PAD]"]], [[1, 1], [1, 0]], "T"),
    "similarity_heatmap": (np.eye(4), ["x", "x", "y", "y"], "T"),
    "embedding_map": (np.arange(8).reshape(4, 2), ["x", "x", "y", "y"], "T"),
    "bars_with_intervals": (EFFECTS.rename(columns={"effect": "value"}), "T", "score"),
    "lines": (pd.DataFrame({"a": [1, 2], "b": [2, 1]}), "T", "x", "y"),
    "forest": (EFFECTS, "T", "difference"),
    "verdicts": (EFFECTS.assign(verdict=["holds", "not distinguishable"]), [None, "1.9 times"], "T", "difference"),
    "learning_curves": (HISTORY, "T"),
    "confusion": (["x", "y"], ["x", "x"], ("x", "y"), "T"),
    "heatmap": (pd.DataFrame([[0.1, -0.2]], index=["row"], columns=["1", "2"]), "T", "x", "label", 1),
    "layer_rates": ({"a": pd.DataFrame({"name": ["embeddings", "block 0", "heads"], "lr": [1e-5, 1e-4, 1e-3]})}, "T"),
    "trade_off": (GRID, GRID, "T", "x", "y"),
    "paper_figure": (SCORES, "T"),
    "strategies": (pd.DataFrame({"A": [True, False], "B": [True, True]}, index=["embeddings", "head"]), "T"),
    "unfreezing": (pd.DataFrame({"layer": ["block 0", "embeddings"], "step": [2, 4], "lr": [1e-4, 1e-5]}), 10, "T"),
    "bands": (
        pd.DataFrame({"x": [1, 2], "series": "a", "value": [1, 2], "low": [0, 1], "high": [2, 3]}),
        "T",
        "x",
        "y",
    ),
}


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_every_figure_is_tested():
    public = {name for name, f in inspect.getmembers(plots, inspect.isfunction) if f.__module__ == plots.__name__}
    assert {name for name in public if not name.startswith("_")} == set(DRAWN)


@pytest.mark.parametrize("name", DRAWN)
def test_figure(name):
    axes = getattr(plots, name)(*DRAWN[name])
    assert axes.get_title(loc="left") == "T"
    axes.figure.canvas.draw()
    assert axes.has_data() or axes.patches
    given = plt.subplots()[1]
    assert getattr(plots, name)(*DRAWN[name], ax=given) is given


def test_intervals_are_drawn_as_given():
    bars = plots.forest(EFFECTS, "T", "difference").containers
    ends = sorted(tuple(segment[:, 0].round(3)) for bar in bars for segment in bar[2][0].get_segments())
    assert ends == [(-0.1, 0.1), (0.05, 0.15)]


def test_confusion_rows_are_the_truth():
    axes = plots.confusion(["x", "x", "x", "y"], ["x", "y", "y", "y"], ("x", "y"), "T")
    texts = [
        next(t.get_text() for t in axes.texts if t.get_position() == (column, row))
        for row in (0, 1)
        for column in (0, 1)
    ]
    assert texts == ["0.33", "0.67", "0.00", "1.00"]


def test_heatmap_writes_its_values_or_the_texts_given():
    table = pd.DataFrame([[0.1, 0.2], [0.3, 0.4]])
    axes = plots.heatmap(table, "T", "x", "label", 0.4, low=0.1)
    assert [t.get_text() for t in axes.texts] == ["0.10", "0.20", "0.30", "0.40"]
    assert [t.get_color() for t in axes.texts] == ["black", "black", "white", "white"]  # readable on dark cells
    assert axes.images[0].get_clim() == (0.1, 0.4)
    axes = plots.heatmap(table, "T", "x", "label", 1, texts=table.map(lambda v: f"{v}*"))
    assert axes.texts[0].get_text() == "0.1*"
    assert axes.images[0].get_clim() == (-1, 1)


def test_layer_rates_has_the_input_at_the_bottom():
    table = pd.DataFrame({"name": ["embeddings", "block 0", "heads"], "lr": [1e-5, 1e-4, 1e-3]})
    axes = plots.layer_rates({"a": table}, "T")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["embeddings", "block 0", "heads"]
    assert axes.get_ylim()[0] < axes.get_ylim()[1]
    assert axes.lines[0].get_xdata().tolist() == [1e-5, 1e-4, 1e-3]
