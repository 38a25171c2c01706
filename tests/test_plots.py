"""Every figure draws what it is given, with a title and named axes."""

import base64
import inspect
import io
import itertools

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Annotation
from PIL import Image

from mtst_utils.experiments import plots

EFFECTS = pd.DataFrame(
    {"effect": [0.1, 0.0], "low": [0.05, -0.1], "high": [0.15, 0.1]}, index=["clear", "noise"]
)
SCORES = pd.DataFrame(
    [
        {"domain": d, "setting": s, "seed": k, "value": 0.5 + 0.1 * k}
        for d in "xy"
        for s, seeds in (("one human rater", 1), ("A", 1), ("B", 3))
        for k in range(seeds)
    ]
)
HISTORY = pd.DataFrame(
    {"step": range(1, 41), "epoch": [0] * 20 + [1] * 20, "a loss": 1.0, "b loss": 2.0}
)
GRID = pd.DataFrame(
    [[0.1, 0.2], [0.3, 0.4]], index=pd.Index([1, 0.5], name="decay"), columns=[1e-4, 1e-3]
)
DOTS = pd.DataFrame(
    {"name": ["p", "p", "q"], "series": ["a", "a", "b"], "value": [50.0, 60.0, 70.0]}
)
SIZES = pd.DataFrame(
    [
        {"n": 5, "name": "s", "effect": -1, "low": -2, "high": 0, "seeds": [-1.5, -0.5]},
        {"n": 5, "name": "t", "effect": 1, "low": 0.5, "high": 2, "seeds": []},
    ]
).assign(margin=1, verdict=["cannot tell", "holds"])
ALONG = SIZES.assign(x=[16, 32], series=pd.Categorical(["s", "t"], ["r", "s", "t"]), margin=[2, 1])
CURVES = pd.DataFrame(
    {"x": [16, 16, 32, 32], "series": ["a", "a", "a", "b"], "value": [40.0, 50.0, 60.0, 70.0]}
)
DRAWN = {
    "sentence_to_vector": (["a", "b", "[PAD]"], [1, 1, 0], np.eye(3, 2), "T"),
    "encoder_and_heads": ({"encoder": 9000, "a": 6, "b": 4}, {"a": "xyz", "b": "uv"}, 2, "T"),
    "similarity_heatmap": (np.eye(4), ["x", "x", "y", "y"], "T"),
    "group_means": (np.eye(4), ["x", "x", "y", "y"], "T"),
    "dumbbells": (pd.DataFrame({"a": [0.1, 0.2], "b": [0.3, 0.1]}, index=["p", "q"]), "T", "x"),
    "seed_dots": (DOTS, "T", "x"),
    "similarity_map": (np.eye(4), ["a", "$5 and $6", "c" * 300, "電車"], "T"),
    "embedding_map": (np.arange(8).reshape(4, 2), ["x", "x", "y", "y"], "T"),
    "lines": (pd.DataFrame({"a": [1, 2], "b": [2, 1]}), "T", "x", "y"),
    "forest": (EFFECTS, "T", "difference"),
    "verdicts": (
        EFFECTS.assign(verdict=["holds", "cannot tell"]),
        [None, "1.9 times"],
        "T",
        "difference",
    ),
    "learning_curves": (HISTORY, "T"),
    "confusion": (["x", "y"], ["x", "x"], ("x", "y"), "T"),
    "heatmap": (
        pd.DataFrame([[0.1, -0.2]], index=["row"], columns=["1", "2"]),
        "T",
        "x",
        "label",
        1,
    ),
    "layer_rates": (
        {"a": pd.DataFrame({"name": ["embeddings", "block 0", "heads"], "lr": [1e-5, 1e-4, 1e-3]})},
        "T",
    ),
    "trade_off": (GRID, GRID, "T", "x", "y"),
    "paper_figure": (SCORES, "T", "score"),
    "strategies": (
        pd.DataFrame({"A": [True, False], "B": [True, True]}, index=["embeddings", "head"]),
        "T",
    ),
    "slopes": (pd.DataFrame({"before": [3.0, 4.0], "after": [1.0, 4.0]}), "T", "y"),
    "score_curves": (CURVES, "T", "x", "y"),
    "frontier": (CURVES.assign(y=CURVES.value), "T", "x", "y"),
    "unfreezing": (pd.DataFrame({"heads": [1e-3, 5e-4, 0.0], "block 0": [0, 1e-4, 5e-5]}), "T"),
    "distillation": ("T",),
    "directions": (
        {"c": {"a": (1, 0), "b": (0, 1), "l": (1, 1)}, "d": {"a": (-1, 0)}},
        "T",
        ("l",),
    ),
    "low_rank": (6, 2, "T"),
    "guide": ({"Which?": [("this", "do it", "train"), ("that", "do not", "freeze")]}, "T"),
    "bands": (
        pd.DataFrame({"x": [1, 2], "series": "a", "value": [1, 2], "low": [0, 1], "high": [2, 3]}),
        "T",
        "x",
        "y",
    ),
    "effects_by_seed": (
        pd.DataFrame({"x": ["a", "a", "b", "b"], "series": "one", "value": [1, 2, -1, 1]}),
        "T",
        "x",
        "y",
    ),
    "effects_by_size": (SIZES, {5: "five", 9: "nine"}, "T", "y"),
    "effects_along": (ALONG, "T", "x", "y"),
    "rule_and_measured": (
        pd.DataFrame({"decay 0.5": [0.5, 1]}, index=["embeddings", "block 0"]),
        {"decay 0.5": [[0.4, 0.6], [1.0, 1.1]]},
        "T",
        "x",
    ),
}


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_every_figure_is_tested():
    public = {
        name
        for name, f in inspect.getmembers(plots, inspect.isfunction)
        if f.__module__ == plots.__name__
    }
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
    ends = sorted(
        tuple(segment[:, 0].round(3)) for bar in bars for segment in bar[2][0].get_segments()
    )
    assert ends == [(-0.1, 0.1), (0.05, 0.15)]


def test_padding_has_no_part_in_the_embedding_that_is_drawn():
    vectors = np.array([[1.0, -1.0], [0.0, 1.0], [9.0, 9.0]])
    axes = plots.sentence_to_vector(["a", "b", "[PAD]"], [1, 1, 0], vectors, "T")
    colors = [
        patch.get_facecolor()
        for patch in axes.patches
        if isinstance(patch, plt.Rectangle) and patch.get_x() > 5
    ]
    expected = [plt.get_cmap("PuOr")(0.5 + mean / 18) for mean in (0.5, 0.0)]
    assert np.allclose(colors, expected, atol=1e-6)
    assert [t.get_text() for t in axes.texts if "×" in t.get_text()] == ["× 1", "× 1", "× 0"]


def test_heatmap_has_the_most_typical_of_a_group_first():
    similarities = np.array([[1, 0.1, 0.2], [0.1, 1, 0.3], [0.2, 0.3, 1]])
    axes = plots.similarity_heatmap(similarities, ["x", "x", "x"], "T")
    assert axes.images[0].get_array()[0].tolist() == [1, 0.3, 0.2]  # the third, second, first
    mixed = plots.similarity_heatmap(np.eye(3) + 0.1, ["x", "y", "x"], "T")
    assert [label.get_text() for label in mixed.get_yticklabels()] == ["x", "y"]


def test_group_means_leave_out_a_sentence_with_itself():
    similarities = np.array([[1, 0.4, 0.1], [0.4, 1, 0.2], [0.1, 0.2, 1], [0, 0, 0.6]])
    similarities = np.column_stack([similarities, [0, 0, 0.6, 1]])
    axes = plots.group_means(similarities, ["x", "x", "y", "y"], "T")
    assert [t.get_text() for t in axes.texts] == ["0.40", "0.08", "0.08", "0.60"]


def test_dots_are_the_runs_and_bars_their_means():
    axes = plots.seed_dots(DOTS, "T", "x")
    assert [part.get_offsets().data.tolist() for part in axes.collections] == [
        [[50, 1], [60, 1]],
        [[70, 0]],
    ]
    assert [t.get_text() for t in axes.texts] == ["55.0", "70.0"]


def test_confusion_rows_are_the_truth():
    axes = plots.confusion(["x", "x", "x", "y"], ["x", "y", "y", "y"], ("x", "y"), "T")
    texts = [
        next(t.get_text() for t in axes.texts if t.get_position() == (column, row))
        for row in (0, 1)
        for column in (0, 1)
    ]
    assert texts == ["33", "67", "0", "100"]  # per cent


def test_heatmap_writes_its_values_or_the_texts_given():
    table = pd.DataFrame([[0.1, 0.2], [0.3, 0.4]])
    axes = plots.heatmap(table, "T", "x", "label", 0.4, low=0.1)
    assert [t.get_text() for t in axes.texts] == ["0.10", "0.20", "0.30", "0.40"]
    assert [t.get_color() for t in axes.texts] == [
        "black",
        "black",
        "white",
        "white",
    ]  # readable on dark cells
    assert axes.images[0].get_clim() == (0.1, 0.4)
    axes = plots.heatmap(table, "T", "x", "label", 1, texts=table.map(lambda v: f"{v}*"))
    assert axes.texts[0].get_text() == "0.1*"
    assert axes.images[0].get_clim() == (-1, 1)
    assert [len(plots.heatmap(table, "T", "x", bar, 1).figure.axes) for bar in ("label", "")] == [
        2,
        1,
    ]


def test_arrows_point_where_they_are_said_to():
    axes = plots.directions(*DRAWN["directions"])
    arrows = [t for t in axes.texts if isinstance(t, Annotation)]
    ends = [np.subtract(arrow.xy, arrow.get_position()).tolist() for arrow in arrows]
    assert ends == [[1, 0], [0, 1], [-1, 0]]
    (line,) = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert np.allclose(np.ptp(line.get_xdata()), np.ptp(line.get_ydata()))  # along (1, 1)


def test_intervals_along_sizes_stand_at_their_own_margin_and_keep_their_looks():
    axes = plots.effects_along(*DRAWN["effects_along"])
    bands = [part.get_paths()[0].get_extents() for part in axes.collections[-2:]]
    assert [(band.y0, band.y1) for band in bands] == [(-2, 2), (-1, 1)]
    assert [bar[0].get_color() for bar in axes.containers] == plots.COLORS[:3]  # the first is empty
    assert [list(bar[0].get_ydata()) for bar in axes.containers] == [[], [-1], [1]]


def test_low_rank_counts_what_learns():
    said = " ".join(t.get_text() for t in plots.low_rank(*DRAWN["low_rank"]).texts)
    assert "36 numbers" in said
    assert "learn: 24 numbers" in said


SENTENCES = {
    "one": ["One."],
    "two": ["One.", "Two."],
    "forty": [f"Sentence {i}." for i in range(40)],
    "two hundred": [f"Sentence {i}." for i in range(200)],
    "long": ["and so on " * 300, "x" * 2000],
    "money": ["$5 and $6", r"a_b^c \alpha $x$", "100 % {braces} <b>"],
    "scripts": [
        "電車がまた遅れました。",
        "한국어",
        "العربية",
        "ไทย हिन्दी",
        "🙂 ❤️",
        "a\tb\x00\u200d",
    ],
    "the same twice": ["Same.", "Same."],
}


@pytest.mark.parametrize("sentences", SENTENCES.values(), ids=SENTENCES)
def test_similarity_map_of_whatever_is_typed(sentences):
    axes = plots.similarity_map(np.eye(len(sentences)), sentences, "T")
    axes.figure.canvas.draw()  # any warning, of a glyph for instance, would be an error here
    assert (axes.figure.get_size_inches() < (20, 16)).all()
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert 1 <= len(names) <= 60
    assert max(map(len, names)) < 70
    assert len(axes.texts) == (len(sentences) ** 2 if len(sentences) <= 12 else 0)
    boxes = [box.get_window_extent() for box in axes.get_yticklabels()]
    assert all(
        above.y0 >= below.y1 - 3 for above, below in itertools.pairwise(boxes)
    )  # none on another


def test_what_no_font_can_draw_is_a_box(monkeypatch):
    monkeypatch.setattr(plots, "_drawable", lambda: set(map(ord, "abc $")))
    assert plots._label("a  b\n電 $c") == r"a b □ \$c"


def test_a_font_that_is_not_there_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(plots, "WIDE_FONTS", ("No Such Font",))
    assert plots._families.__wrapped__() == ["DejaVu Sans"]


def test_figures_are_stored_sharp_and_with_a_palette():
    for kind in ("lines", "similarity_heatmap"):
        data, shown = plots._palette_png(getattr(plots, kind)(*DRAWN[kind]).figure)
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert image.mode == "P"
        assert len(image.getcolors()) <= 64
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        # On a slide of 1160 x 560 it is hardly enlarged; in a notebook it is as large as it was.
        assert 0.65 < max(image.width / 1160, image.height / 560) < 1
        assert shown["width"] < 700
        assert shown["width"] <= image.width
        assert shown["width"] / shown["height"] == pytest.approx(image.width / image.height, 0.01)


def test_a_palette_keeps_the_colors_of_all_series_apart():
    """Small marks in five colours, each with pale dots, beside a long curve; and pale grey is grey
    (with a smaller palette, or another way to choose it, blue was green, and grey a tint).
    """
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.4))
    rows = pd.DataFrame(
        {"series": list("abcde") * 6, "x": np.arange(30.0), "y": np.arange(30.0) % 7}
    )
    plots.frontier(rows, "T", "x", "y", axes[0], means=False, curves=["a"])
    plots.frontier(rows, "T", "x", "y", axes[1]).axhspan(0, 2, color=plots.GREY, alpha=0.15)
    stored = Image.open(io.BytesIO(base64.b64decode(plots._palette_png(figure)[0])))
    found = np.unique(np.array(stored.convert("RGB")).reshape(-1, 3), axis=0).astype(int)
    for color in plots.COLORS[:5]:
        wanted = np.array(mpl.colors.to_rgb(color)) * 255
        assert np.abs(found - wanted).max(axis=1).min() < 8, color
    pale = 255 * (1 - 0.15) + 0.15 * int(plots.GREY[1:3], 16)
    assert np.abs(found - pale).max(axis=1).min() < 4


def test_a_figure_as_wide_as_a_slide_is_stored_as_it_is():
    figure, _ = plt.subplots(figsize=(14, 4))
    data, shown = plots._palette_png(figure)
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.size == (shown["width"], shown["height"])


def test_layer_rates_on_a_fixed_axis():
    table = pd.DataFrame({"name": ["embeddings", "heads"], "lr": [1e-5, 1e-3]})
    assert plots.layer_rates({"a": table}, "T", limits=(1e-7, 1e-3)).get_xlim() == (1e-7, 1e-3)
    assert plots.layer_rates({"a": table}, "T").get_xlim() != (1e-7, 1e-3)


def test_layer_rates_has_the_input_at_the_bottom():
    table = pd.DataFrame({"name": ["embeddings", "block 0", "heads"], "lr": [1e-5, 1e-4, 1e-3]})
    axes = plots.layer_rates({"a": table}, "T")
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "embeddings",
        "block 0",
        "heads",
    ]
    assert axes.get_ylim()[0] < axes.get_ylim()[1]
    assert axes.lines[0].get_xdata().tolist() == [1e-5, 1e-4, 1e-3]


def test_effects_by_seed_show_every_seed_and_their_mean():
    seeds = pd.DataFrame({"x": ["a"] * 3, "series": "one", "value": [1, 2, 6]})
    axes = plots.effects_by_seed(seeds, "T", "x", "y")
    assert axes.lines[0].get_ydata().tolist() == [1, 2, 6]
    bar = axes.containers[0]
    assert bar[0].get_ydata().tolist() == [3]
    low, high = bar[2][0].get_segments()[0][:, 1]
    assert (low + high) / 2 == pytest.approx(3)
    assert high - low == pytest.approx(2 * 4.3027 * 7**0.5 / 3**0.5, rel=1e-4)  # t(2), sd of 7
    assert axes.get_legend() is None
    two = pd.concat([seeds, seeds.assign(series="two")])
    legend = plots.effects_by_seed(two, "T", "x", "y").get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["one", "two"]


def test_a_series_may_lack_a_name():
    seeds = pd.DataFrame({"x": list("aabb"), "series": list("uuvv"), "value": [1, 2, 3, 4]})
    axes = plots.effects_by_seed(seeds, "T", "x", "y")
    assert [bar[0].get_ydata().tolist() for bar in axes.containers] == [[1.5], [3.5]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["u", "v"]


def test_effects_by_size_say_what_is_not_measured():
    axes = plots.effects_by_size(*DRAWN["effects_by_size"])
    said = [t.get_text().strip().replace("\n", " ") for t in axes.texts]
    assert said == ["−1.0", "+1.0", "not measured yet"]
    assert axes.texts[-1].get_position()[0] == 1  # over "nine"
    assert axes.lines[0].get_ydata().tolist() == [-1.5, -0.5]
    colors = [bar[0].get_color() for bar in axes.containers]
    assert colors == [plots.VERDICT_COLORS["cannot tell"], plots.VERDICT_COLORS["holds"]]
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert named == ["cannot tell", "holds", "s", "t"]


def test_a_picture_of_the_model_names_every_part():
    axes = plots.encoder_and_heads(*DRAWN["encoder_and_heads"])
    said = " ".join(t.get_text().replace("\n", " ") for t in axes.texts)
    for part in ("9,000 parameters", "head: a 6 parameters", "logits [B, 3]", "head: b", "[B, 2]"):
        assert part in said
    assert "gradient of the b loss" in said


def test_the_published_table_shows_every_seed():
    axes = plots.paper_figure(SCORES.assign(value=100 * SCORES.value), "T", "points")
    assert axes.get_ylim()[1] == 100
    dots = [line.get_ydata() for line in axes.lines if len(line.get_ydata()) == 3]
    assert [list(d.round()) for d in dots] == [[50, 60, 70]] * 2  # B in both domains


def test_measured_dots_stand_at_their_layer():
    axes = plots.rule_and_measured(*DRAWN["rule_and_measured"])
    line, seeds = axes.lines
    assert line.get_xdata().tolist() == [0.5, 1]
    assert seeds.get_xydata().tolist() == [[0.4, 0], [0.6, 0], [1.0, 1], [1.1, 1]]
    assert [name.get_text() for name in axes.get_yticklabels()] == ["embeddings", "block 0"]


def test_slopes_join_a_runs_moments_and_name_their_means():
    axes = plots.slopes(*DRAWN["slopes"])
    runs = [line.get_ydata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert runs == [[3, 1], [4, 4]]
    assert [text.get_text() for text in axes.texts] == ["3.5", "2.5"]


def test_score_curves_go_through_the_means_over_every_run():
    axes = plots.score_curves(CURVES, "T", "x", "y")
    dots, means, _, other = axes.lines
    assert dots.get_ydata().tolist() == [40, 50, 60]
    assert means.get_ydata().tolist() == [45, 60]
    assert other.get_ydata().tolist() == [70]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["16", "32"]


def test_a_frontiers_marks_are_the_means_of_its_dots():
    axes = plots.frontier(CURVES.assign(y=2 * CURVES.value), "T", "x", "y")
    dots, mean, *_ = axes.lines
    assert dots.get_xydata().tolist() == [[16, 80], [16, 100], [32, 120]]
    assert mean.get_xydata()[0].tolist() == pytest.approx([64 / 3, 100])


def test_points_of_a_frontier_have_no_mean_and_a_curve_is_joined_in_its_order():
    runs = CURVES.assign(y=CURVES.value)
    first = runs.series.iloc[0]
    axes = plots.frontier(runs, "T", "x", "y", means=False, curves=[first])
    assert len(axes.lines) == runs.series.nunique()
    joined = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert [line.get_label() for line in joined] == [first]
    assert joined[0].get_xdata().tolist() == runs[runs.series == first].x.tolist()


def test_a_remedy_looks_the_same_beside_fewer_others():
    runs = pd.DataFrame(
        {"series": pd.Categorical(["c", "a"], ["a", "b", "c"]), "x": 1, "y": [2, 3]}
    )
    every = pd.DataFrame({"series": pd.Categorical(["c", "a", "b"]), "x": 1, "y": [2, 3, 4]})

    def looks(rows):
        lines = plots.frontier(rows, "T", "x", "y").lines
        return {line.get_label(): (line.get_color(), line.get_marker()) for line in lines}

    few, more = looks(runs), looks(every)
    assert {"a", "c"} <= set(few)
    assert "b" not in few
    assert more["c"] == few["c"]
    assert more["a"] == few["a"]
    plt.close("all")


def test_more_series_than_colors_are_all_on_the_frontier():
    many = pd.DataFrame({"series": list("abcdefghij"), "x": range(10), "y": range(10)})
    assert len(plots.frontier(many, "T", "x", "y").get_legend().get_texts()) == 10


def test_unfreezing_is_hatched_until_a_layer_joins():
    axes = plots.unfreezing(*DRAWN["unfreezing"])
    waits = [(patch.get_y(), patch.get_width()) for patch in axes.patches]
    assert waits == [(0, 1), (1, 0)]  # block 0 below, from step 1 on; the heads from the start
    assert [label.get_text() for label in axes.get_yticklabels()] == ["block 0", "heads"]
    assert [text.get_text().strip() for text in axes.texts] == ["1.0e-04", "1.0e-03"]


def test_arrows_of_a_diagram_go_from_box_to_box():
    boxes = {"in": (0, 0, 2, 1, "words", "data"), "out": (1, 2, 1, 1, "head", "frozen")}
    axes = plots._diagram(boxes, [("in", "out")], "T")
    (arrow,) = [text for text in axes.texts if hasattr(text, "arrow_patch")]
    assert (arrow.xy, arrow.xyann) == ((1.5, 2), (1, 1))
    assert [patch.get_hatch() for patch in axes.patches] == [None, "////"]


def test_in_distillation_only_the_new_encoder_and_head_b_learn():
    axes = plots.distillation("T")
    learns = mpl.colors.to_rgba(plots.COLORS[1])
    assert sum(patch.get_facecolor() == learns for patch in axes.patches) == 2
    assert sum(patch.get_hatch() is not None for patch in axes.patches) == 3


def test_a_guide_has_a_box_an_answer():
    axes = plots.guide(*DRAWN["guide"])
    assert [text.get_text() for text in axes.texts] == ["Which?", "this", "do it", "that", "do not"]
    first, second = axes.patches
    assert first.get_facecolor() != second.get_facecolor()
    assert first.get_x() + first.get_width() < second.get_x()
