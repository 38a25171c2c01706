"""Every figure of the series, one function each, in one style. Each draws on `ax` (or a new one)
and returns it.
"""

import io
import sys
import unicodedata
from base64 import b64encode
from functools import cache
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager, get_font
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image

# Okabe & Ito's palette: told apart without colour vision, in print, and on a projector.
COLORS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000"]
GREY = "#8C8C8C"
VERDICT_COLORS = {  # one legend for the whole series
    "holds": COLORS[0],
    "no difference": COLORS[2],
    "depends": COLORS[4],
    "does not hold": COLORS[3],
    "cannot tell": GREY,
    "by construction": "black",
}
STYLE = {
    "figure.dpi": 84,
    "savefig.dpi": 84,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "legend.frameon": False,
    "axes.prop_cycle": plt.cycler(color=COLORS),
    "figure.max_open_warning": 0,
}
plt.rcParams.update(STYLE)
# For scripts that matplotlib's own font lacks: the first of these that is installed (Linux, macOS,
# Windows).
WIDE_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Hiragino Sans",
    "Yu Gothic",
    "Microsoft YaHei",
    "Arial Unicode MS",
)


def _palette_png(figure):
    """A figure as PNG in base64, and how large it is shown: with at least 0.7 of the points that a
    slide has for it (1160 x 560), and with a palette of its own colours: a quarter of the size, and
    hardly told from the whole.
    """
    width, height = figure.get_size_inches() * figure.dpi
    sharper = max(1, 0.7 * min(1160 / width, 560 / height))
    dpi = sharper * figure.dpi
    figure.savefig(whole := io.BytesIO(), format="png", dpi=dpi, bbox_inches="tight")
    palette = Image.open(whole).convert("RGB").quantize(48, Image.Quantize.MAXCOVERAGE, kmeans=3)
    palette.save(small := io.BytesIO(), format="png", optimize=True)
    shown = dict(zip(("width", "height"), (round(n / sharper) for n in palette.size), strict=True))
    return b64encode(small.getvalue()).decode(), shown


def _store_small():
    """In a notebook, store figures so, whichever tool runs it: hosting pages show no notebook above
    500 KB.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None and "inline" in plt.get_backend():
        plt.switch_backend(
            plt.get_backend()
        )  # now: at the first figure it would set anew how figures are stored
        shell.display_formatter.formatters["image/png"].for_type(Figure, _palette_png)


_store_small()


def _axes(ax, width, height):
    return ax if ax is not None else plt.subplots(figsize=(width, height))[1]


def _width(names):
    """Inches for a figure with these names at its left, so that a title of 65 letters fits over the
    rest.
    """
    return 6.3 + 0.085 * max(map(len, names))


def sentence_to_vector(tokens, mask, vectors, title, ax=None):
    """A padded sentence on its way to its embedding: tokens [T], mask [T], and the first N numbers
    of each token's vector [T, N]. Padding is hatched; on the right stands the masked mean [N].
    """
    real, vectors = np.asarray(mask, bool), np.asarray(vectors, float)
    count, numbers = vectors.shape
    limit, cell = np.abs(vectors).max(), 0.42
    top = 2.5  # where the vectors begin, counted from above
    ax = _axes(ax, 0.66 * (count + 6.2), 0.5 * (top + cell * numbers + 1.5))

    def box(x, y, width, height, color, hatched=False):
        style = {"edgecolor": GREY, "linewidth": 0.6, "hatch": "////" if hatched else None}
        ax.add_patch(plt.Rectangle((x, y), width, height, facecolor=color, **style))

    def shade(value, alpha):
        return plt.get_cmap("PuOr")(0.5 + value / (2 * limit), alpha)

    def column(x, values, hatched=False):
        for row, value in enumerate(values):
            box(x, top + cell * row, 0.92, cell, shade(value, 0.3 if hatched else 1), hatched)

    def say(x, y, text, **how):
        ax.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 10} | how)

    for x, token in enumerate(tokens):
        box(x, 0, 0.92, 0.8, "#CFE3F1" if real[x] else "white")
        say(x + 0.46, 0.4, token, fontsize=9, color="black" if real[x] else GREY)
        column(x, vectors[x], hatched=not real[x])
        say(x + 0.46, top + cell * numbers + 0.5, f"× {int(real[x])}", color="black")
    box(0, 1.15, count - 0.08, 0.95, "#EEEEEE")
    say(count / 2, 1.62, "the backbone: every token looks at all real tokens")
    column(count + 2.4, vectors[real].mean(0))
    middle = top + cell * numbers / 2
    arrow = {"arrowstyle": "-|>", "color": "black", "linewidth": 1.5}
    ax.annotate("", (count + 2.2, middle), (count + 0.1, middle), arrowprops=arrow)
    say(count + 1.15, middle - 0.6, f"add up,\ndivide by {real.sum()}", va="bottom")
    say(count + 2.86, top - 0.15, "embedding", va="bottom", fontweight="bold")
    places = {
        0.4: "tokens",
        1.62: "backbone",
        middle: f"a vector each\n({numbers} numbers\nof it shown)",
        top + cell * numbers + 0.5: "mask",
    }
    for y, name in places.items():
        say(-0.25, y, name, ha="right", color="#444444")
    ax.set(xlim=(-2.2, count + 3.7), ylim=(top + cell * numbers + 1, -0.2), title=title)
    ax.axis("off")
    return ax


def encoder_and_heads(parameters, labels, dimension, title, ax=None):
    """One encoder and a head a task, from left to right: black arrows are the forward pass, dashed
    ones in a task's colour the gradients of its loss, which meet in the encoder.

    parameters: {"encoder": how many it has, task: how many its head has}; labels: {task: its
    labels}; dimension: the length of the embedding.
    """
    ax = _axes(ax, 11, 1.15 * len(labels) + 1.1)
    middle = (len(labels) - 1) / 2

    def box(x, y, width, height, text, color="white"):
        ax.add_patch(plt.Rectangle((x, y - height / 2), width, height, fc=color, ec=GREY))
        ax.text(x + width / 2, y, text, ha="center", va="center", fontsize=10)

    def arrow(start, end, color="black", style="-"):
        how = {"arrowstyle": "-|>", "color": color, "linewidth": 1.6, "linestyle": style}
        ax.annotate("", end, start, arrowprops=how | {"shrinkA": 0, "shrinkB": 0})

    box(0, middle, 1.35, 0.7, "sentences\n[B]")
    body = f"encoder: backbone and mean\n{parameters['encoder']:,} parameters,\nshared by all tasks"
    box(1.85, middle, 2.75, 1.1, body, "#EEEEEE")
    box(5.1, middle, 1.35, 0.7, f"embedding\n[B, {dimension}]")
    arrow((1.35, middle), (1.85, middle))
    arrow((4.6, middle), (5.1, middle))
    for i, (task, names) in enumerate(labels.items()):
        y, color = len(labels) - 1 - i, COLORS[i]
        side = 0.12 if y >= middle else -0.12  # the gradient beside the forward pass
        box(7.3, y, 1.85, 0.7, f"head: {task}\n{parameters[task]:,} parameters", color + "33")
        box(9.65, y, 1.5, 0.7, f"logits\n[B, {len(names)}]", color + "33")
        ax.text(11.25, y, "\n".join(names), va="center", fontsize=9, color="#444444")
        arrow((6.45, middle + side), (7.3, y))
        arrow((9.15, y), (9.65, y))
        outer = 0.62 if y >= middle else -0.62
        path = [10.4, 10.4, 5.8], [y + 0.57 * outer, y + outer, y + outer]
        ax.plot(*path, color=color, linestyle="--", linewidth=1.6)
        arrow((5.8, y + outer), (4.2, middle + 4.6 * side), color, "--")
        ax.text(9, y + 1.22 * outer, f"gradient of the {task} loss", **_centred(color))
    top = len(labels) - 1 + 0.95
    ax.set(title=title, xlim=(-0.1, 13), ylim=(-0.95, top))
    ax.axis("off")
    return ax


def _centred(color):
    return {"ha": "center", "va": "center", "fontsize": 9, "color": color}


def _by_group(groups):
    """The names of groups in order of appearance, and the positions of each one's members."""
    groups = np.asarray(groups)
    names = list(dict.fromkeys(groups))
    return names, [np.flatnonzero(groups == name) for name in names]


def similarity_heatmap(similarities, groups, title, ax=None):
    """Cosine similarities [N, N] of sentences in N named groups, a group beside the other; within
    each, the sentence that is nearest to the rest of its group comes first.
    """
    ax = _axes(ax, 6.4, 5.4)
    names, members = _by_group(groups)
    order = np.concatenate(
        [own[np.argsort(-similarities[np.ix_(own, own)].sum(1), kind="stable")] for own in members]
    )
    # The diagonal is 1 and would leave the rest dark: the scale ends where 1 % of the pairs lie
    # above.
    top = np.percentile(similarities[~np.eye(len(similarities), dtype=bool)], 99)
    image = ax.imshow(
        similarities[np.ix_(order, order)],
        cmap="viridis",
        vmin=0,
        vmax=top,
        interpolation="nearest",
    )
    edges = np.cumsum([0, *map(len, members)])
    middles = (edges[:-1] + edges[1:] - 1) / 2
    ax.set(title=title, xticks=middles, yticks=middles)
    ax.set_xticklabels(names, rotation=40, ha="right")
    ax.set_yticklabels(names)
    ax.tick_params(length=0)
    for edge in edges[1:-1]:
        ax.axhline(edge - 0.5, color="white", linewidth=1)
        ax.axvline(edge - 0.5, color="white", linewidth=1)
    ax.figure.colorbar(image, ax=ax, shrink=0.8, extend="max", label="cosine similarity")
    return ax


def group_means(similarities, groups, title, ax=None):
    """The mean of the cosine similarities [N, N] for every two of the groups that N sentences are
    in; the pairs of a sentence with itself are left out.
    """
    ax = _axes(ax, 5.6, 5.4)
    names, members = _by_group(groups)
    apart = np.where(np.eye(len(similarities), dtype=bool), np.nan, similarities)
    means = np.array([[np.nanmean(apart[np.ix_(a, b)]) for b in members] for a in members])
    ax.imshow(means, cmap="viridis", vmin=0, vmax=means.max())
    for (row, column), mean in np.ndenumerate(means):
        color = "white" if mean < 0.6 * means.max() else "black"
        ax.text(column, row, f"{mean:.2f}", ha="center", va="center", color=color)
    ax.set(title=title, xticks=range(len(names)), yticks=range(len(names)))
    ax.set_xticklabels(names, rotation=40, ha="right")
    ax.set_yticklabels(names)
    ax.tick_params(length=0)
    return ax


def dumbbells(table, title, xlabel, ax=None):
    """Two or three values a row, joined by a line: the index names the rows, the columns them."""
    ax = _axes(ax, _width(table.index), 0.36 * len(table) + 1.3)
    position = np.arange(len(table))[::-1]
    ax.hlines(position, table.min(axis=1), table.max(axis=1), color=GREY, linewidth=1.5, zorder=1)
    for name, color, marker in zip(table, COLORS, "osD", strict=False):
        ax.scatter(table[name], position, color=color, marker=marker, s=64, label=name)
    ax.set(title=title, xlabel=xlabel, yticks=position, xlim=(0, 1))
    ax.set_yticklabels(table.index)
    ax.legend(loc="center left")
    return ax


def seed_dots(scores, title, xlabel, ax=None):
    """Every run as a dot, the mean of its seeds as a bar with its value: scores has a row a run and
    the columns name (a row of the figure), series (a colour) and value.
    """
    names = list(dict.fromkeys(scores["name"]))
    series = scores.groupby("series")["value"].mean().sort_values().index  # as they lie, from left
    ax = _axes(ax, _width(names), 0.62 * len(names) + 1.4)
    for one, color in zip(series, COLORS, strict=False):
        rows = scores[scores["series"] == one]
        heights = [len(names) - 1 - names.index(name) for name in rows["name"]]
        rings = {"facecolor": "none", "edgecolor": color, "linewidth": 2, "s": 40}
        ax.scatter(rows["value"], heights, **rings, label=one)
        for name, mean in rows.groupby("name")["value"].mean().items():
            height = len(names) - 1 - names.index(name)
            ax.plot([mean, mean], [height - 0.22, height + 0.22], color=color, linewidth=2.5)
            ax.text(mean, height + 0.25, f"{mean:.1f}", ha="center", va="bottom", fontsize=10)
    ax.set(title=title, xlabel=xlabel, yticks=range(len(names)), ylim=(-0.5, len(names) - 0.3))
    ax.set_yticklabels(names[::-1])
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def similarity_map(similarities, sentences, title, ax=None):
    """Cosine similarities [N, N] of N sentences of any length and script, in the order given from
    above.
    """
    count = len(sentences)
    step = -(-count // 60)  # beyond sixty rows not every sentence can be named
    names = [f"{_label(sentence)}  {row}" for row, sentence in enumerate(sentences, 1)][::step]
    size, letter = (11, 0.085) if count <= 12 else (8, 0.062)  # of the font, and inches a letter
    side = min(max(1.8, 0.45 * min(count, 12), 0.17 * count), 10)
    ax = _axes(ax, side + 1.8 + letter * max(map(_letters, names)), side + 1)
    image = ax.imshow(similarities, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if count <= 12:
        for (row, column), value in np.ndenumerate(similarities):
            color = "white" if value > 0.6 else "black"
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9, color=color)
    ax.set(title=title, xlabel="sentence, from above")
    ax.set_xticks(range(0, count, step), range(1, count + 1, step), fontsize=size)
    ax.set_yticks(range(0, count, step), names, fontfamily=_families(), fontsize=size)
    ax.tick_params(length=0)
    ax.figure.colorbar(image, ax=ax, extend="min", label="cosine similarity")
    return ax


def _label(text, letters=48):
    """Anyone's text as a label: one line, not too long, `$` as a dollar, and a box for what no font
    here can draw.
    """
    text = " ".join(text.split())
    text = text if len(text) <= letters else text[: letters - 1] + "…"
    drawn = (character if ord(character) in _drawable() else "□" for character in text)
    return "".join(drawn).replace("$", r"\$")


def _letters(text):
    """The length of a text in Latin letters: Chinese and Japanese ones are twice as wide."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


@cache
def _families():
    """matplotlib's font and, where one is installed, one more for what that lacks. A name that is
    not there would warn.
    """
    installed = {font.name for font in fontManager.ttflist}
    return [
        plt.rcParams["font.sans-serif"][0],
        *[name for name in WIDE_FONTS if name in installed][:1],
    ]


@cache
def _drawable():
    """The characters, as numbers, that `_families` has."""
    paths = [fontManager.findfont(FontProperties(family=name)) for name in _families()]
    return set().union(*(get_font(path).get_charmap() for path in paths))


def embedding_map(points, groups, title, ax=None):
    """Embeddings in two dimensions [N, 2], one colour and one marker per group."""
    ax = _axes(ax, 7.2, 4.8)
    groups = np.asarray(groups)
    for name, color, marker in zip(dict.fromkeys(groups), COLORS, "osD^vPX*", strict=False):
        chosen = points[groups == name]
        ax.scatter(
            *chosen.T,
            label=name,
            color=color,
            marker=marker,
            s=34,
            alpha=0.85,
            edgecolor="white",
            linewidth=0.5,
        )
    ax.set(
        title=title,
        xticks=[],
        yticks=[],
        xlabel="first dimension of the map",
        ylabel="second dimension",
    )
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def lines(table, title, xlabel, ylabel, ax=None, ylim=None):
    """One line per column of a table over its index, named at its right end."""
    ax = _axes(ax, 7.2, 3.8)
    for color, marker, (name, values) in zip(COLORS, "osD^vPX*", table.items(), strict=False):
        ax.plot(table.index, values, color=color, marker=marker, markersize=5)
        ax.annotate(
            f" {name}",
            (table.index[-1], values.iloc[-1]),
            color=color,
            va="center",
            fontweight="bold",
        )
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel, ylim=ylim)
    ax.margins(x=0.12)
    return ax


def forest(table, title, xlabel, ax=None):
    """Effects with their intervals around a zero line: table has a row an effect and the columns
    effect, low, high.
    """
    names = [fill(name, 60) for name in table.index]
    lines = [line for name in names for line in name.split("\n")]
    ax = _axes(ax, _width(lines), 0.4 * max(len(table), 0.8 * len(lines)) + 1.3)
    position = np.arange(len(table))[::-1]
    clear = (table["low"] > 0) | (table["high"] < 0)  # those whose interval leaves zero out
    for chosen, color, marker in ((clear, COLORS[0], "o"), (~clear, GREY, "D")):
        effect, low, high = table.loc[chosen, ["effect", "low", "high"]].to_numpy(float).T
        errors = [effect - low, high - effect]
        ax.errorbar(effect, position[chosen], xerr=errors, fmt=marker, color=color, capsize=3)
    ax.axvline(0, color="black", linewidth=1)
    ax.set(title=title, xlabel=xlabel, yticks=position, ylim=(-0.6, len(table) - 0.4))
    ax.set_yticklabels(names)
    return ax


def verdicts(table, effects, title, xlabel, ax=None):
    """A forest of claims with their verdicts: table has a row a claim and the columns effect, low,
    high, verdict.

    effects: [N], None where the effect is drawn, else what to write in its place (an effect in
    another unit).
    """
    color = VERDICT_COLORS
    ax = _axes(ax, 13, 0.34 * len(table) + 1.2)
    for position, (row, effect) in enumerate(zip(table.itertuples(), effects, strict=True)):
        if effect is None:
            errors = [[row.effect - row.low], [row.high - row.effect]]
            ax.errorbar(
                row.effect, position, xerr=errors, fmt="o", color=color[row.verdict], capsize=3
            )
        else:
            ax.text(
                0.6,
                position,
                effect,
                va="center",
                fontsize=10,
                color=color[row.verdict],
                in_layout=False,
            )
        ax.text(
            1.01,
            position,
            row.verdict,
            transform=ax.get_yaxis_transform(),
            va="center",
            color=color[row.verdict],
        )
    ax.axvline(0, color="black", linewidth=1)
    ax.set(title=title, xlabel=xlabel, yticks=range(len(table)), ylim=(len(table) - 0.5, -0.6))
    ax.set_yticklabels(table.index)
    return ax


def learning_curves(history, title, ax=None):
    """Training loss per task, a running mean over 15 steps, on a log scale, with epochs marked."""
    ax = _axes(ax, 7.2, 3.8)
    losses = [name for name in history.columns if name.endswith(" loss")]
    smooth = history.set_index("step")[losses].rolling(15, min_periods=1).mean()
    for color, style, name in zip(COLORS, ("-", "--", "-.", ":"), losses, strict=False):
        ax.plot(history["step"], history[name], color=color, alpha=0.18, linewidth=1)
        ax.plot(
            smooth.index,
            smooth[name],
            color=color,
            linestyle=style,
            linewidth=2,
            label=name.removesuffix(" loss"),
        )
    for step in history.groupby("epoch")["step"].max()[:-1]:
        ax.axvline(step, color=GREY, linewidth=0.8, linestyle=":")
    ax.set(
        title=title,
        xlabel="training step (dotted: end of an epoch)",
        ylabel="loss, log scale (bold: mean of 15 steps)",
        yscale="log",
    )
    ax.legend()
    return ax


def confusion(truth, predicted, labels, title, ax=None):
    """Confusion matrix in per cent of each true class: rows the truth, columns the prediction."""
    from sklearn.metrics import confusion_matrix

    ax = _axes(ax, 1.1 * len(labels) + 1.5, 1.0 * len(labels) + 1)
    shares = confusion_matrix(truth, predicted, labels=list(labels), normalize="true")
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        ax.text(
            column,
            row,
            f"{100 * share:.0f}",
            ha="center",
            va="center",
            color="white" if share > 0.5 else "black",
        )
    ax.set(
        title=title,
        xlabel="predicted",
        ylabel="true",
        xticks=range(len(labels)),
        yticks=range(len(labels)),
    )
    ax.set_xticklabels([label.replace(" ", "\n") for label in labels])
    ax.set_yticklabels(labels)
    ax.tick_params(length=0)
    return ax


def heatmap(table, title, xlabel, label, limit, ax=None, low=None, texts=None):
    """A table of values as colours, written in as well; the first row is drawn at the bottom.

    Colours are signed, around zero up to +-limit; or, with low, from low to limit. texts: what to
    write instead. label: of the colours' bar; empty: none is drawn.
    """
    ax = _axes(ax, 0.75 * table.shape[1] + 2.6, 0.42 * len(table) + 1.4)
    colors, lowest = ("PuOr", -limit) if low is None else ("Blues", low)
    image = ax.imshow(table, cmap=colors, vmin=lowest, vmax=limit, origin="lower", aspect="auto")
    for (row, column), value in np.ndenumerate(table.to_numpy(float)):
        text = f"{value:.2f}" if texts is None else texts.iat[row, column]
        dark = abs(value) > 0.7 * limit if low is None else value > low + 0.6 * (limit - low)
        ax.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=9,
            color="white" if dark else "black",
        )
    ax.set(
        title=title,
        xlabel=xlabel,
        ylabel=table.index.name,
        xticks=range(table.shape[1]),
        yticks=range(len(table)),
    )
    ax.set_xticklabels(table.columns)
    ax.set_yticklabels(table.index)
    ax.tick_params(length=0)
    if label:
        ax.figure.colorbar(image, ax=ax, extend="both", label=label)
    return ax


def trade_off(x, y, title, xlabel, ylabel, ax=None):
    """One measure against another, a line per row of two tables alike; the columns run along the
    line, the first one hollow.
    """
    ax = _axes(ax, 7.2, 4)
    for color, marker, row in zip(COLORS, "osD^vPX*", x.index, strict=False):
        ax.plot(
            x.loc[row],
            y.loc[row],
            color=color,
            marker=marker,
            markersize=6,
            label=f"{x.index.name} {row:g}",
        )
        ax.plot(
            x.loc[row].iloc[0],
            y.loc[row].iloc[0],
            color=color,
            marker=marker,
            markersize=6,
            markerfacecolor="white",
        )
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    ax.legend()
    return ax


def layer_rates(tables, title, ax=None, limits=None):
    """The rate of every layer, drawn as the network stands: input at the bottom. tables: {name:
    lr_table(groups)}.

    limits: the lowest and the highest rate of the axis; without, it follows the rates.
    """
    layers = list(next(iter(tables.values()))["name"])
    ax = _axes(ax, 7.6, 0.3 * len(layers) + 1.4)
    for color, marker, (name, table) in zip(COLORS, "osD^vPX*", tables.items(), strict=False):
        rates = table.set_index("name")["lr"].reindex(layers)
        ax.plot(rates, range(len(layers)), color=color, marker=marker, markersize=5, label=name)
    ax.axhspan(len(layers) - 1.5, len(layers) - 0.5, color=GREY, alpha=0.15, linewidth=0)
    ax.set(
        title=title, xlabel="learning rate, log scale", xscale="log", ylim=(-0.7, len(layers) - 0.5)
    )
    ax.set_yticks(range(len(layers)), layers)
    ax.margins(x=0.1)
    ax.set_xlim(limits)
    low, high = ax.get_xlim()
    ticks = (1,) if high > 2000 * low else (1, 3) if high > 50 * low else (1, 2, 3, 5, 7)
    ax.xaxis.set(
        major_locator=LogLocator(subs=ticks), major_formatter="{x:g}", minor_locator=NullLocator()
    )
    beside = {"xycoords": ("axes points", "axes fraction"), "color": GREY}
    ax.annotate("output: labels", (-98, 1), rotation=90, va="top", **beside)
    ax.annotate("input: words", (-98, 0), rotation=90, va="bottom", **beside)
    ax.annotate(
        "",
        (-92, 0.68),
        (-92, 0.32),
        textcoords=beside["xycoords"],
        arrowprops={"arrowstyle": "->", "color": GREY},
        **beside,
    )
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def paper_figure(scores, title, ylabel, human="one human rater", ax=None):
    """A score per domain and system, in points: scores has the columns domain, setting, seed,
    value. Every seed is a dot, their mean the large one with its number; the human rater is a line
    across each domain.
    """
    ax = _axes(ax, 11, 4)
    domains = list(dict.fromkeys(scores["domain"]))
    systems = [name for name in dict.fromkeys(scores["setting"]) if name != human]
    values = scores.groupby(["setting", "domain"])["value"]
    for i, (system, color, marker) in enumerate(
        zip(systems, [COLORS[j] for j in (1, 5, 0, 2)], "s^oD", strict=False)
    ):
        for j, domain in enumerate(domains):
            seeds = values.get_group((system, domain))
            x = j + 0.2 * (i - (len(systems) - 1) / 2)
            ax.plot([x] * len(seeds), seeds, marker, color=color, alpha=0.3, ms=5, mew=0)
            ax.plot(x, seeds.mean(), marker, color=color, ms=8, label=None if j else system)
            above = {"textcoords": "offset points", "ha": "center", "va": "bottom", "fontsize": 9}
            above["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            ax.annotate(f"{seeds.mean():.0f}", (x, seeds.max()), (0, 5), **above)
    for j, domain in enumerate(domains):
        level = values.get_group((human, domain)).mean()
        ax.hlines(level, j - 0.42, j + 0.42, color="black", label=None if j else human)
    ax.set(title=title, ylabel=ylabel, xticks=range(len(domains)), ylim=(None, 100))
    ax.set_xticklabels(domains)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=5)
    return ax


def strategies(table, title, ax=None):
    """What learns under each strategy: table has a row a part (from the input up) and a column a
    strategy, True = learns.
    """
    ax = _axes(ax, 1.35 * table.shape[1] + 1.6, 0.36 * len(table) + 1.2)
    for (row, column), learns in np.ndenumerate(table.to_numpy()):
        ax.add_patch(
            plt.Rectangle(
                (column, row),
                0.92,
                0.86,
                facecolor=COLORS[1] if learns else "white",
                edgecolor=GREY,
                hatch=None if learns else "////",
                linewidth=0.8,
            )
        )
    ax.set(title=title, xlim=(-0.03, table.shape[1]), ylim=(-0.08, len(table)))
    ax.set_xticks(np.arange(table.shape[1]) + 0.46, table.columns)
    ax.set_yticks(np.arange(len(table)) + 0.43, table.index)
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    return ax


def slopes(table, title, ylabel, ax=None):
    """What becomes of every run from one moment to the next: table has a row a run, a column a
    moment in order; a dot a run, joined by lines, and each moment's mean beside its dots.
    """
    ax = _axes(ax, 7.2, 4)
    moments = np.arange(table.shape[1])
    for row in table.to_numpy(float):
        ax.plot(moments, row, color=COLORS[0], alpha=0.55, marker="o", markersize=8, linewidth=1.5)
    for moment, mean in zip(moments, table.mean(), strict=True):
        side = -1 if moment == 0 else 1  # away from the lines
        ax.plot(moment + side * np.array([0.06, 0.14]), [mean, mean], color="black", linewidth=3)
        beside = {"va": "center", "ha": "right" if side < 0 else "left", "fontweight": "bold"}
        ax.text(moment + side * 0.17, mean, f"{mean:.1f}", **beside)
    ax.set(title=title, ylabel=ylabel, xlim=(-0.45, len(moments) - 0.55))
    ax.set_xticks(moments, table.columns)
    return ax


def score_curves(runs, title, xlabel, ylabel, ax=None):
    """A score over a number that doubles, a line a series through the means, every run a pale dot:
    runs has a row a run and the columns x, series, value.
    """
    ax = _axes(ax, 8.4, 4.6)
    series, ticks = list(dict.fromkeys(runs["series"])), sorted(runs["x"].unique())
    for i, (one, color, marker) in enumerate(zip(series, COLORS, "osD^vPX*", strict=False)):
        rows = runs[runs["series"] == one]
        beside = 1.06 ** (i - (len(series) - 1) / 2)  # side by side, so that no dot hides another
        ax.plot(rows["x"] * beside, rows["value"], marker, color=color, alpha=0.25, ms=5, mew=0)
        means = rows.groupby("x")["value"].mean()
        line = {"color": color, "marker": marker, "ms": 8, "lw": 2, "mec": "white"}
        ax.plot(means.index * beside, means, label=one, **line)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel, xscale="log")
    ax.set_xticks(ticks, [f"{x:,}" for x in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def frontier(runs, title, xlabel, ylabel, ax=None, means=True, curves=()):
    """Two scores of every run against each other, so that the best is at the upper right: a pale
    dot a run, a large mark a series' mean. runs has a row a run and the columns series, x, y.

    means: without, a row is not a run but a point of its own; curves: series whose points are then
    joined in their order. Where series is categorical, each category has a look of its own, whether
    others have rows or not.
    """
    ax = _axes(ax, 7.6, 4.4)
    column = runs["series"]
    series = list(column.cat.categories if hasattr(column, "cat") else dict.fromkeys(column))
    looks = zip(series, [*COLORS[:6], GREY, COLORS[7]] * 2, "osD^vPX*<>hd", strict=False)
    for one, color, marker in looks:
        rows = runs[runs["series"] == one]
        if rows.empty:
            continue
        if not means:
            line = "-" if one in curves else ""
            ax.plot(rows["x"], rows["y"], marker + line, color=color, ms=6, label=one)
            continue
        ax.plot(rows["x"], rows["y"], marker, color=color, alpha=0.35, ms=5, mew=0)
        mean = {"color": color, "ms": 11, "mec": "white", "zorder": 3}
        ax.plot(rows["x"].mean(), rows["y"].mean(), marker, label=one, **mean)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def unfreezing(rates, title, ax=None):
    """The rate of every layer over training, a row a layer with the top one above: rates has a row
    a step and a column a layer, in the order of joining. Hatched: frozen. At the right stands each
    layer's highest rate.
    """
    ax = _axes(ax, 7.6, 0.46 * rates.shape[1] + 1.3)
    steps = rates.index.to_numpy()
    for y, (_, rate) in enumerate(rates.iloc[:, ::-1].items()):
        joins = steps[np.argmax(rate.to_numpy() > 0)]
        waiting = {"facecolor": "white", "edgecolor": GREY, "hatch": "////", "linewidth": 0.6}
        ax.add_patch(plt.Rectangle((steps[0], y), joins - steps[0], 0.8, **waiting))
        ax.fill_between(steps, y, y + 0.8 * rate / rate.max(), color=COLORS[1], linewidth=0)
        ax.text(steps[-1], y + 0.3, f" {rate.max():.1e}", va="center", fontsize=10)
    ax.set(title=title, xlabel="training step", xlim=(steps[0], steps[-1] * 1.15))
    ax.set_yticks(np.arange(rates.shape[1]) + 0.4, rates.columns[::-1])
    ax.tick_params(axis="y", length=0)
    return ax


def distillation(title, ax=None):
    """Learning without Forgetting as a picture: the model from before, all frozen, beside the one
    that learns B.
    """
    boxes = {
        "words": (3, 0, 3, 0.6, "a sentence of B", "data"),
        "old": (0.4, 1.2, 2.8, 0.9, "the encoder\nfrom before", "frozen"),
        "new": (5.6, 1.2, 2.8, 0.9, "the encoder\nthat learns", "learns"),
        "old A": (1.1, 2.7, 1.4, 0.6, "head A", "frozen"),
        "new A": (5.5, 2.7, 1.4, 0.6, "head A", "frozen"),
        "new B": (7.3, 2.7, 1.4, 0.6, "head B", "learns"),
        "keep": (2.9, 3.9, 2.2, 0.6, "loss: same answers?", "data"),
        "label": (6.9, 3.9, 2.2, 0.6, "loss: right label?", "data"),
    }
    arrows = [("words", "old"), ("words", "new"), ("old", "old A"), ("new", "new A")]
    arrows += [("new", "new B"), ("old A", "keep"), ("new A", "keep"), ("new B", "label")]
    return _diagram(boxes, arrows, title, ax)


def directions(cases, title, through=(), ax=None):
    """Arrows from one point in a plane, the cases side by side. cases: {case: {name: (x, y)}}; the
    names in through are dashed lines that go on to both sides, since their sign does not matter.
    """
    ends = [end for arrows in cases.values() for n, end in arrows.items() if n not in through]
    low, high = np.min([(-0.3, -0.3), *ends], axis=0), np.max(ends, axis=0)
    wide, tall = high - low + 0.5
    ax = _axes(ax, 2.3 * wide * len(cases) / 1.6, 2.3 * tall / 1.6 + 1.1)
    for column, (case, arrows) in enumerate(cases.items()):
        start = np.array([wide * column - low[0], 0])
        for i, (name, end) in enumerate(arrows.items()):
            label = name if column == 0 else None
            if name in through:
                line = start + np.outer((-0.35, 1.15), end) / np.linalg.norm(end)
                ax.plot(*line.T, "--", color="black", lw=2, label=label, zorder=0)
                continue
            ax.plot([], [], color=COLORS[i], lw=3, label=label)
            style = {"arrowstyle": "-|>", "color": COLORS[i], "lw": 2.5, "mutation_scale": 18}
            ax.annotate("", start + end, start, arrowprops=style | {"shrinkA": 0, "shrinkB": 0})
        ax.plot(*start, "ko", ms=5)
        ax.text(wide * column + (high - low)[0] / 2, high[1] + 0.25, case, ha="center")
    right = wide * len(cases) - 0.5
    ax.set(title=title, xlim=(-0.3, right + 0.3), ylim=(low[1] - 0.2, high[1] + 0.45))
    ax.set_aspect("equal")
    ax.axis("off")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4)
    return ax


def low_rank(size, rank, title, ax=None):
    """LoRA beside one matrix of size x size, as a picture: the matrix is frozen, and to what it
    gives is added what goes through two thin ones, whose inner side is the rank.
    """
    side, thin, parameters = 2.4, 0.35, 2 * size * rank
    ax = _axes(ax, 8.6, 4.4)
    frozen = {"facecolor": "white", "edgecolor": GREY, "hatch": "////", "linewidth": 0.8}
    learns = {"facecolor": COLORS[1], "edgecolor": GREY, "linewidth": 0.8}
    ax.add_patch(plt.Rectangle((0.4, 0.9), side, side, **frozen))
    ax.add_patch(plt.Rectangle((4.7, 0.9), side, thin, **learns))  # rank x size
    ax.add_patch(plt.Rectangle((4.7 + (side - thin) / 2, 1.6), thin, 1.7, **learns))  # size x rank

    def say(x, y, text, **how):
        style = {"ha": "center", "va": "center", "fontsize": 10, "backgroundcolor": "white"}
        ax.text(x, y, text, **style | how)

    say(0.4 + side / 2, 2.1, f"W, frozen\n{size} × {size}\n{size**2:,} numbers")
    right = {"ha": "left", "backgroundcolor": "none"}
    say(4.7 + side + 0.15, 0.9 + thin / 2, f"A, {rank} × {size}: starts at random", **right)
    say(6.25, 2.45, f"B, {size} × {rank}: starts at zero", **right)
    say(6.25, 2.05, f"A and B learn: {parameters:,} numbers", **right)
    say(3.75, 0.15, f"the input, {size} numbers", backgroundcolor="#CFE3F1")
    say(3.75, 4.15, "W x + 2 B A x", backgroundcolor="#CFE3F1")
    style = {"arrowstyle": "-|>", "color": "black", "linewidth": 1.3}
    ends = [((3.4, 0.35), (1.6, 0.85)), ((4.1, 0.35), (5.9, 0.85)), ((5.9, 1.27), (5.9, 1.58))]
    ends += [((1.6, 3.35), (3.4, 3.95)), ((5.9, 3.35), (4.1, 3.95))]
    for start, end in ends:
        ax.annotate("", end, start, arrowprops=style)
    ax.set(title=title, xlim=(0, 10.2), ylim=(-0.15, 4.45))
    ax.axis("off")
    return ax


def _diagram(boxes, arrows, title, ax=None):
    """Boxes and arrows, for a picture of an architecture.

    boxes: {name: (x, y, width, height, text, kind)}, y upwards; kind: "learns" (orange), "frozen"
    (hatched) or "data" (blue). arrows: [(from, to)], by name, from a lower box up to a higher one.
    """
    looks = {"learns": (COLORS[1], None), "frozen": ("white", "////"), "data": ("#CFE3F1", None)}
    right = max(x + width for x, _, width, *_ in boxes.values())
    top = max(y + height for _, y, _, height, *_ in boxes.values())
    ax = _axes(ax, right + 0.3, top + 0.6)
    for x, y, width, height, text, kind in boxes.values():
        color, hatch = looks[kind]
        style = {"facecolor": color, "edgecolor": GREY, "linewidth": 0.8, "hatch": hatch}
        ax.add_patch(plt.Rectangle((x, y), width, height, **style))
        behind = {"boxstyle": "round,pad=0.15", "facecolor": color, "edgecolor": "none"}
        place = (x + width / 2, y + height / 2)
        ax.text(*place, text, ha="center", va="center", fontsize=10, bbox=behind)
    for one, other in arrows:
        (x, y, width, height, *_), (u, v, wide, *_) = boxes[one], boxes[other]
        ends = (x + width / 2, y + height), (u + wide / 2, v)
        style = {"arrowstyle": "-|>", "color": "black", "linewidth": 1.3}
        ax.annotate("", ends[1], ends[0], arrowprops=style)
    ax.set(title=title, xlim=(-0.05, right + 0.1), ylim=(-0.05, top + 0.1))
    ax.axis("off")
    return ax


def guide(questions, title, ax=None):
    """A guide to a decision: a row a question, its answers from left to right. questions:
    {question: [(answer, what to do, kind)]}; kind: "train" (orange), "freeze" (blue) or "other".
    """
    looks = {"train": "#F9DDA8", "freeze": "#CFE3F1", "other": "#EEEEEE"}
    height = 1.5
    ax = _axes(ax, 11, height * len(questions) + 0.5)
    for row, (question, answers) in enumerate(questions.items()):
        y, width = height * (len(questions) - 1 - row), 8.9 / len(answers)
        ax.text(0, y + 0.65, fill(question, 15), va="center", fontsize=13, fontweight="bold")
        for i, (answer, advice, kind) in enumerate(answers):
            place = (2.1 + width * i, y), width - 0.1, height - 0.2
            ax.add_patch(
                plt.Rectangle(*place, facecolor=looks[kind], edgecolor=GREY, linewidth=0.8)
            )
            middle = {"x": 2.05 + width * (i + 0.5), "ha": "center", "va": "center", "fontsize": 12}
            ax.text(y=y + 1.05, s=answer, fontweight="bold", **middle)
            ax.text(y=y + 0.45, s=fill(advice, round(8.6 * width)), **middle)
    ax.set(title=title, xlim=(0, 11), ylim=(-0.1, height * len(questions)))
    ax.axis("off")
    return ax


def bands(table, title, xlabel, ylabel, log=False, ax=None):
    """One line a series with its 95 % interval as a band: table has the columns x, series, value,
    low, high.
    """
    ax = _axes(ax, 7.2, 4)
    for color, marker, (name, rows) in zip(
        COLORS, "osD^vPX*", table.groupby("series", sort=False), strict=False
    ):
        ax.plot(rows["x"], rows["value"], color=color, marker=marker, markersize=5, label=name)
        ax.fill_between(rows["x"], rows["low"], rows["high"], color=color, alpha=0.2, linewidth=0)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if log:
        ax.set_xscale("log", base=2)
        ax.set_xticks(table["x"].unique(), [f"{x:,}" for x in table["x"].unique()])
    ax.legend()
    return ax


def effects_by_seed(table, title, xlabel, ylabel, ax=None):
    """Effects by seed around a zero line: every seed a pale dot, over them the mean with its 95 %
    t interval. table has a row a seed and the columns x (a name), series, value; a series may lack
    a name.
    """
    from mtst_utils.experiments.intervals import t_interval

    ax = _axes(ax, 7.2, 3.6)
    names, series = (list(dict.fromkeys(table[column])) for column in ("x", "series"))
    for i, (color, marker, one) in enumerate(zip(COLORS, "osD^", series, strict=False)):
        beside, label = 0.22 * (i - (len(series) - 1) / 2), one
        for j, name in enumerate(names):
            values = table[(table.series == one) & (table.x == name)]["value"].to_numpy(float)
            if not len(values):
                continue
            spread = np.linspace(-0.05, 0.05, len(values))
            ax.plot(j + beside + spread, values, marker, color=color, alpha=0.3, ms=5, mew=0)
            mean, low, high = t_interval(values)
            errors = [[mean - low], [high - mean]]
            bar = {"fmt": marker, "color": color, "ms": 8, "lw": 2, "capsize": 4}
            ax.errorbar(j + beside, mean, yerr=errors, label=label, **bar)
            label = None
    ax.axhline(0, color="black", linewidth=1)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel, xlim=(-0.5, len(names) - 0.5))
    ax.set_xticks(range(len(names)), names)
    if len(series) > 1:
        ax.legend()
    return ax


def effects_by_size(table, sizes, title, ylabel, ax=None):
    """What a comparison gives for each number of training sentences, coloured by its verdict; the
    band is the margin. Where there are no rows, it says so.

    table: a row a comparison, with the columns n, name (a marker), effect, low, high, margin,
    verdict and seeds (what each seed gave, drawn as dots; may be empty). sizes: {n: its name}.
    """
    ax = _axes(ax, 7.2, 3.8)
    names, places = list(dict.fromkeys(table["name"])), {n: i for i, n in enumerate(sizes)}
    for marker, (i, name) in zip("osD^", enumerate(names), strict=False):
        beside = 0.3 * (i - (len(names) - 1) / 2)
        for row in table[table["name"] == name].itertuples():
            x, color = places[row.n] + beside, VERDICT_COLORS[row.verdict]
            spread = x + np.linspace(-0.06, 0.06, len(row.seeds))
            ax.plot(spread, row.seeds, marker, color=color, alpha=0.3, ms=5, mew=0)
            errors = [[row.effect - row.low], [row.high - row.effect]]
            bar = {"fmt": marker, "color": color, "ms": 8, "lw": 2, "capsize": 4}
            ax.errorbar(x, row.effect, yerr=errors, **bar)
            text = f"{row.effect:+.1f}".replace("-", "−")
            side = {"textcoords": "offset points", "va": "center", "ha": ("left" if i else "right")}
            ax.annotate(text, (x, row.effect), (9 if i else -9, 0), **side)
    ax.axhline(0, color="black", linewidth=1)
    margin = table["margin"].max()
    ax.axhspan(-margin, margin, color=GREY, alpha=0.15, linewidth=0, zorder=0)
    for n in set(sizes) - set(table["n"]):
        white = {"facecolor": "white", "edgecolor": "none"}
        ax.text(places[n], 0, "not\nmeasured\nyet", bbox=white, **_centred("#555555"))
    for place in range(1, len(sizes)):
        ax.axvline(place - 0.5, color=GREY, linewidth=0.8, linestyle=":")
    seen = list(dict.fromkeys(table["verdict"]))
    marks = [plt.Line2D([], [], color=VERDICT_COLORS[v], lw=4, label=v) for v in seen]
    # The names begin a column of their own.
    marks += [plt.Line2D([], [], ls="", label=" ")] * (len(names) - len(seen))
    marks += [
        plt.Line2D([], [], color="black", marker=marker, ls="", label=name)
        for marker, name in zip("osD^", names, strict=False)
    ]
    ax.legend(handles=marks, fontsize=9, loc="upper left", ncols=2)
    ax.set(title=title, ylabel=ylabel, xlabel="training sentences", xlim=(-0.5, len(sizes) - 0.5))
    ax.margins(y=0.42)  # the legend is above all dots
    ax.set_xticks(range(len(sizes)), sizes.values())
    return ax


def effects_along(table, title, xlabel, ylabel, ax=None):
    """Differences to one rival over a number that doubles, each with its interval; the band is the
    margin. table: a row a comparison, with the columns x, series, effect, low, high, margin; series
    is categorical, and each category keeps its look, whether it has rows or not.
    """
    ax = _axes(ax, 6.4, 4.4)
    series, ticks = list(table["series"].cat.categories), sorted(table["x"].unique())
    for i, (one, color, marker) in enumerate(zip(series, COLORS, "osD^vPX*", strict=False)):
        rows = table[table["series"] == one].sort_values("x")
        beside = rows["x"] * 1.09 ** (i - (len(series) - 1) / 2)  # no interval hides another
        errors = [rows["effect"] - rows["low"], rows["high"] - rows["effect"]]
        bar = {"fmt": marker + "-", "color": color, "ms": 8, "mec": "white", "elinewidth": 2}
        ax.errorbar(beside, rows["effect"], yerr=errors, **bar | {"lw": 1, "capsize": 3})
    margins = table.groupby("x")["margin"].max()
    edges = [ticks[0] / 1.6, *np.sqrt(np.multiply(ticks[1:], ticks[:-1])), ticks[-1] * 1.6]
    for left, right, margin in zip(edges[:-1], edges[1:], margins, strict=True):
        ax.fill_between([left, right], -margin, margin, color=GREY, alpha=0.18, lw=0, zorder=0)
    ax.axhline(0, color="black", linewidth=1)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel, xscale="log", xlim=(edges[0], edges[-1]))
    ax.set_xticks(ticks, [f"{x:,}" for x in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    return ax


def rule_and_measured(rule, measured, title, xlabel, ax=None):
    """What a rule says of every layer as a line, and what was measured as dots, a dot a seed; the
    input is at the bottom. rule: a row a layer, a column a setting; measured: {setting: [layers,
    seeds]}.
    """
    ax = _axes(ax, 7.6, 0.4 * len(rule) + 1.4)
    for color, marker, (name, ratios) in zip(COLORS, "osD^vPX*", rule.items(), strict=False):
        ax.plot(ratios, range(len(rule)), color=color, linewidth=1.5, label=f"{name}, the rule")
        seeds = np.asarray(measured[name], float)
        heights = np.repeat(np.arange(len(rule)), seeds.shape[1])
        marks = {"color": color, "alpha": 0.5, "ms": 6, "mew": 0, "label": f"{name}, measured"}
        ax.plot(seeds.ravel(), heights, marker, **marks)
    ax.set(title=title, xlabel=xlabel, xlim=(0, None))
    ax.set_yticks(range(len(rule)), rule.index)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax
