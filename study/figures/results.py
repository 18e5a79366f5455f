"""The report's figures: tables in, matplotlib figures out. No figure is computed from a model here.

Sound, picture and both have one colour each in every figure; a baseline is the lighter shade of it.
"""

import io
import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

COLOURS = {"audio": "#0072b2", "video": "#d55e00", "av": "#009e73"}
"""One for each modality, told apart by the colour-blind too (Okabe and Ito)."""

READS = {"audio": "sound", "video": "picture", "av": "both"}
"""A modality in words."""

_MANY = 40  # more classes than this are not all named in a figure
_MAPPED = 10  # classes told apart in a map of that many: those that have a colour of their own

_DPI = 120
_WIDTH = 1000 / _DPI  # inches: 1,000 pixels, in which the text is at least 9 points
_STYLE = {
    "font.size": 10,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same on every machine
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
}


def png(figure: Figure) -> bytes:
    """The figure as a PNG file whose bytes depend on nothing but the picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


@rc_context(_STYLE)
def headline(table: pd.DataFrame, ceilings: Mapping[str, float], chance: float) -> Figure:
    """Test top-1 of each model beside its peers, with intervals; thin lines: the best that the data allows.

    `table`: model, modality, top1, low, high (percent), ours (bool); `ceilings` in percent by modality (any may
    be absent).
    """
    table = table.sort_values("modality", key=lambda column: column.map(list(COLOURS).index), kind="stable")
    _, group = np.unique(table["modality"].map(list(COLOURS).index), return_inverse=True)
    x = np.arange(len(table)) + 0.6 * group
    figure, (axes,) = _figure(1, 4.4)
    for place, row in zip(x, table.itertuples(), strict=True):
        colour = COLOURS[row.modality]
        axes.bar(place, row.top1, 0.8, color=colour if row.ours else _lighter(colour))
        text = "white" if row.ours else "black"
        axes.text(place, chance + 3, f"{row.top1:.1f}", ha="center", va="bottom", color=text)
    whiskers = _whiskers(table["top1"], table)
    axes.errorbar(x, table["top1"], whiskers, fmt="none", ecolor="#222222", capsize=4, elinewidth=1.2)
    for modality in table["modality"].unique():
        places = x[table["modality"] == modality]
        if modality in ceilings:
            left, right, top = places.min() - 0.45, places.max() + 0.45, ceilings[modality]
            axes.plot([left, right], [top, top], color="#222222", linewidth=1)
            axes.text(right, top + 0.8, f"ceiling {top:.1f}", ha="right", va="bottom", fontsize=9)
    axes.axhline(chance, color="#888888", linewidth=0.8, linestyle=":")
    axes.set_xticks(x, table["model"] + "\n" + table["modality"].map(READS), fontsize=10)
    axes.set_ylim(0, 107)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("test top-1 (%)")
    handles = [Patch(color="#555555", label="ours"), Patch(color=_lighter("#555555"), label="baseline")]
    figure.legend(handles=handles, loc="outside upper right", ncols=2)
    return figure


@rc_context(_STYLE)
def learning_curves(curves: pd.DataFrame) -> Figure:
    """Training cross-entropy and validation top-1 by epoch; a dot marks the epoch whose weights are kept.

    `curves`: run, modality, ours, seed, epoch, ce, val_top1, kept (bool).
    """
    figure, axes = _figure(2, 4.2)
    for (run, modality, ours, seed), part in curves.groupby(["run", "modality", "ours", "seed"], sort=False):
        label = f"{run} ({READS[modality]})" if seed == curves["seed"].iloc[0] else None
        style = {"color": COLOURS[modality], "linestyle": "-" if ours else "--", "linewidth": 1.6}
        marker = "." if len(part) == 1 else None  # a line of one point shows nothing
        axes[0].plot(part["epoch"], part["ce"], label=label, marker=marker, **style)
        axes[1].plot(part["epoch"], part["val_top1"], marker=marker, **style)
        kept = part[part["kept"]]
        axes[1].plot(kept["epoch"], kept["val_top1"], "o", color=COLOURS[modality], markersize=6)
    for ax in axes:
        ax.set_xlabel("epoch")
        ax.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes[0].set_title("training cross-entropy")
    axes[0].set_ylim(bottom=0)
    axes[1].set_title("validation top-1 (%)")
    axes[1].set_ylim(0, 100)
    figure.legend(loc="outside lower center", ncols=5)
    return figure


@rc_context(_STYLE | {"axes.spines.top": True, "axes.spines.right": True})
def confusion(matrices: Mapping[str, Float[np.ndarray, "classes classes"]], classes: list[str]) -> Figure:
    """Confusion matrices side by side, one for each title: rows are true classes, in percent of the row.

    The names of more than 40 classes are left out; shades are then by the square root, since cells are small.
    """
    many = len(classes) > _MANY
    names = [] if many else classes
    norm = PowerNorm(0.5, 0, 100) if many else Normalize(0, 100)
    figure, axes = _figure(len(matrices), 1.0 + max(0.165 * (len(names) or 15), 1.5))
    for ax, (title, matrix) in zip(axes, matrices.items(), strict=True):
        totals = matrix.sum(axis=1, keepdims=True)
        image = ax.imshow(100 * matrix / np.maximum(totals, 1), cmap="Greys", norm=norm, aspect="auto")
        ax.set_title(title)
        ax.set_xticks(range(len(names)), [""] * len(names))
        ax.set_yticks(range(len(names)), names if ax is axes[0] else [""] * len(names))
        ax.set_xlabel("predicted, same order")
    axes[0].set_ylabel(f"true, {len(classes)} classes" if many else "true")
    figure.colorbar(image, ax=list(axes), aspect=40, label="% of the true class")
    return figure


@rc_context(_STYLE)
def per_class(table: pd.DataFrame) -> Figure:
    """Accuracy of each class, sorted by that with both. `table`: class, n (test clips), audio, video, av (percent).

    Of more than 40 classes, those in which sound and picture differ by the most clips; the title says so.
    """
    title = ""
    if len(table) > _MANY:
        title = f"{_MANY} of {len(table)} classes: where sound and picture differ by the most test clips"
        clips = (table["n"] * (table["audio"] - table["video"])).abs()
        table = table.loc[clips.sort_values(ascending=False, kind="stable").index[:_MANY]]
    table = table.sort_values(["av", "class"], ascending=[True, False])
    y = np.arange(len(table))
    figure, (axes,) = _figure(1, 1.2 + 0.42 * len(table))
    axes.set_title(title, loc="left")
    for offset, modality in zip((0.27, 0.0, -0.27), COLOURS, strict=True):
        axes.barh(y + offset, table[modality], 0.26, color=COLOURS[modality], label=READS[modality])
    axes.set_yticks(y, table["class"])
    axes.set_ylim(-0.6, len(table) - 0.4)
    axes.set_xlim(0, 100)
    axes.set_xlabel("test clips of the class that are recognised (%)")
    _grid(axes)
    figure.legend(loc="outside upper right", ncols=3)
    return figure


@rc_context(_STYLE | {"axes.spines.left": False, "axes.spines.bottom": False})
def tsne(points: Mapping[str, pd.DataFrame], classes: list[str]) -> Figure:
    """Two-dimensional maps of the test clips, one for each title. `points`: x, y, label.

    Of more than 40 classes the 10 with the most clips are coloured, the others grey.
    """
    shown, columns = classes, 5
    if len(classes) > _MANY:
        columns = 2  # their names are longer, too
        counts = pd.concat(points.values())["label"].value_counts().reindex(classes, fill_value=0)
        shown = counts.sort_values(ascending=False, kind="stable").index[:_MAPPED].tolist()
    legend_rows = -(-(len(shown) + (shown != classes)) // columns)
    figure, axes = _figure(len(points), 3.2 + 0.2 * legend_rows)
    for ax, (title, table) in zip(axes, points.items(), strict=True):
        if shown != classes:
            rest = table[~table["label"].isin(shown)]
            label = f"{len(classes) - len(shown)} others" if ax is axes[0] else None
            ax.plot(rest["x"], rest["y"], ".", color="#cccccc", markersize=4, label=label)
        for index, name in enumerate(shown):
            # Ten colours, another marker for each further ten classes.
            colour, marker = colormaps["tab10"](index % 10), "o^sDv*"[index // 10 % 6]
            part = table[table["label"] == name]
            label = name if ax is axes[0] else None
            ax.plot(part["x"], part["y"], marker, color=colour, markersize=4, label=label)
        ax.set_title(title)
        ax.set_xticks([])
        ax.set_yticks([])
    figure.legend(loc="outside lower center", ncols=columns, markerscale=1.6, columnspacing=1.0, handletextpad=0.1)
    return figure


@rc_context(_STYLE)
def ablations(table: pd.DataFrame) -> Figure:
    """Each row's difference to its default in points, with its interval, in blocks by group.

    `table`: group, row, modality, difference, low, high (points).
    """
    first = (table["group"] != table["group"].shift()).to_numpy()
    y = -np.where(first, 1.7, 1.0).cumsum()
    figure, (axes,) = _figure(1, 1.2 - 0.3 * y[-1])
    axes.axvline(0, color="#222222", linewidth=1)
    whiskers = _whiskers(table["difference"], table)
    used = [modality for modality in COLOURS if modality in set(table["modality"])]
    for modality in used:
        here = (table["modality"] == modality).to_numpy()
        style = {"fmt": "o", "color": COLOURS[modality], "capsize": 4}
        axes.errorbar(table["difference"][here], y[here], xerr=whiskers[:, here], **style)
    for group, top in zip(table["group"][first], y[first], strict=True):
        axes.text(0.0, top + 0.55, group, transform=axes.get_yaxis_transform(), weight="bold", fontsize=10)
    axes.set_yticks(y, table["row"])
    axes.set_ylim(y[-1] - 0.7, 0.0)
    axes.set_xlabel("test top-1, points above or below the default")
    _grid(axes)
    handles = [Patch(color=COLOURS[modality], label=f"reads {READS[modality]}") for modality in used]
    figure.legend(handles=handles, loc="outside upper right", ncols=3)
    return figure


@rc_context(_STYLE)
def claims(table: pd.DataFrame) -> Figure:
    """A panel a unit: each claim's figure and interval, the paper's as grey ticks, the bound to clear as a line.

    `table`: claim, paper, measured, ci_low, ci_high, n_seeds, verdict, unit, holds_above, modality.
    """
    table = table.rename(columns={"ci_low": "low", "ci_high": "high"})
    parts = [part for _, part in table.groupby("unit", sort=False)]
    figure = Figure(figsize=(_WIDTH, 0.9 + 0.32 * len(table) + 0.55 * len(parts)), layout="constrained")
    panels = figure.subplots(len(parts), 1, squeeze=False, height_ratios=[len(part) + 0.5 for part in parts])[:, 0]
    for axes, part in zip(panels, parts, strict=True):
        y, whiskers = -np.arange(len(part)), _whiskers(part["measured"], part)
        for modality, colour in COLOURS.items():
            here = (part["modality"] == modality).to_numpy()
            style = {"fmt": "o", "color": colour, "capsize": 4}
            axes.errorbar(part["measured"][here], y[here], xerr=whiskers[:, here], **style)
        for place, row in zip(y, part.itertuples(), strict=True):
            axes.vlines(row.holds_above, place - 0.5, place + 0.5, color="#222222", linewidth=1)
            paper = [float(number) for number in re.findall(r"[\d.]+", row.paper)]
            axes.plot(paper, [place] * len(paper), "|", color="#888888", markersize=12, markeredgewidth=2)
            said = row.verdict if row.n_seeds else "not run"
            weight = "bold" if said == "holds" else "normal"
            axes.text(1.02, place, said, transform=axes.get_yaxis_transform(), va="center", fontsize=9, weight=weight)
        axes.set_yticks(y, part["claim"])
        axes.set_ylim(y[-1] - 0.6, 0.6)
        axes.set_xlabel(part["unit"].iloc[0])
        _grid(axes)
    handles = [Patch(color=COLOURS[m], label=f"reads {READS[m]}") for m in COLOURS if m in set(table["modality"])]
    handles.append(Line2D([], [], color="#888888", marker="|", markersize=12, linestyle="", label="the paper"))
    figure.legend(handles=handles, loc="outside upper right", ncols=4)
    return figure


def _figure(panels: int, height: float) -> tuple[Figure, np.ndarray]:
    """A row of panels, 1,000 pixels wide, height in inches; without pyplot, so nothing is global."""
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _whiskers(values: pd.Series, table: pd.DataFrame) -> Float[np.ndarray, "2 rows"]:
    """Lengths of error bars from `low` to `high`; an interval holds its mean but for rounding."""
    return np.maximum([values - table["low"], table["high"] - values], 0)


def _grid(axes: Axes) -> None:
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)


def _lighter(colour: str) -> tuple[float, ...]:
    return tuple(1 - 0.5 * (1 - value) for value in to_rgb(colour))
