"""The report's figures: tables of study.tables in, matplotlib figures out; no model is asked here."""

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib import colormaps, rc_context
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from study.figures.analysis import DASHES
from study.figures.style import COLOURS, GRID, GROUND, READS, STYLE, intervals, legend, shade, subplots, whiskers
from study.figures.style import png as png  # for the notebooks

MANY = 40  # more classes than this are not all named in a figure
MAPPED = 10  # classes told apart in a map of that many: those that have a colour of their own


@rc_context(STYLE)
def headline(table: pd.DataFrame, ceilings: Mapping[str, float], chance: float) -> Figure:
    """Test top-1 of each model beside its peers (percent), with intervals; lines: the best the data allows."""
    table = table.sort_values("modality", key=lambda column: column.map(list(COLOURS).index), kind="stable")
    y = -np.arange(len(table)) - 0.6 * (table["modality"] != table["modality"].shift()).cumsum().to_numpy()
    figure, axes = subplots(1.5 + 0.38 * len(table))
    tops = {modality: ceilings[modality] for modality in table["modality"].unique() if modality in ceilings}
    limit = min(1.2 * max([chance, table["high"].max(), *tops.values()]), 107)
    bars = {"color": [shade(row.modality, row.ours) for row in table.itertuples()], "ecolor": "#222222", "capsize": 4}
    axes.barh(y, table["top1"], 0.8, xerr=whiskers(table["top1"], table), **bars)
    for place, row in zip(y, table.itertuples(), strict=True):
        axes.text(row.high + limit / 80, place, f"{row.top1:.1f}", va="center", bbox=GROUND)
    for modality, top in tops.items():
        places = y[table["modality"] == modality]
        axes.plot([top, top], [places.max() + 0.45, places.min() - 0.45], color="#222222", linewidth=1)
        axes.text(top, places.max() + 0.5, f"ceiling {top:.1f}", ha="center", va="bottom", fontsize=9)
    line = axes.axvline(chance, color="#888888", linewidth=0.8, linestyle=":", label="chance")
    axes.set_yticks(y, table["model"] + ", " + table["modality"].map(READS))
    axes.set(xlim=(0, limit), xlabel="test top-1 (%)")
    handles = [Patch(color="#555555", label="ours"), Patch(color="#aaaaaa", label="baseline"), line]
    figure.legend(handles=handles, loc="outside upper right", ncols=3)
    return figure


@rc_context(STYLE)
def over_studies(claims: pd.DataFrame) -> Figure:
    """Four claims beside each other, a row a study (see study.index.measured); hollow: with a `remark`."""
    shown = {"mat_ast_operations": "MAT - AST", "mmt_mbt_operations": "MMT - MBT", "mmt_single": "MMT - better single"}
    shown |= {"late_fusion": "MMT - late fusion"}
    studies = claims["study"].unique()[::-1]
    claims = claims[claims["n_seeds"] > 0].rename(columns={"ci_low": "low", "ci_high": "high"})
    figure, panels = subplots(1.2 + 0.36 * len(studies), 1, len(shown))
    for axes, (name, title) in zip(panels, shown.items(), strict=True):
        part = claims[claims["id"] == name]
        y = pd.Index(studies).get_indexer(part["study"])
        modality = "audio" if name.startswith("mat") else "av"
        intervals(axes, part["measured"], part.assign(modality=modality), y)
        weak = part["remark"] != ""
        axes.plot(part["measured"][weak], y[weak], "o", color="white", markersize=4, zorder=3)
        axes.axvline(0, color="#888888", linewidth=0.8)
        axes.set_yticks(range(len(studies)), studies if axes is panels[0] else [""] * len(studies))
        axes.set(title=title, xlabel="points", ylim=(-0.6, len(studies) - 0.4))
    return figure


@rc_context(STYLE)
def learning_curves(curves: pd.DataFrame, score: str = "top-1") -> Figure:
    """Training cross-entropy and validation `score` by epoch and by `gmacs`, if given; markers: the epochs kept.

    Of several seeds and folds: their mean, also of the epochs kept, and a band from the lowest to the highest.
    """
    shown = [("epoch", "ce"), ("epoch", "val_top1"), *([("gmacs", "val_top1")] if "gmacs" in curves else [])]
    figure, axes = subplots(4.2, 1, len(shown))
    peers: dict[str, int] = {}  # baselines of each modality so far: each has its own dashes
    for (run, modality, ours), part in curves.groupby(["run", "modality", "ours"], sort=False):
        peers[modality] = peers.get(modality, 0) + (not ours)
        number = peers[modality] % len(DASHES) - 1
        style = {"color": COLOURS[modality], "linestyle": "-" if ours else DASHES[number]}
        dot = {"marker": "o" if ours else "s^Dv"[number], "markeredgecolor": "white", "markersize": 8, "zorder": 3}
        for ax, (x, y) in zip(axes, shown, strict=True):
            found = part.groupby(x)[y].agg(["mean", "min", "max"])
            ax.plot(found.index, found["mean"], **style)
            ax.fill_between(found.index, found["min"], found["max"], color=COLOURS[modality], alpha=0.12, linewidth=0)
            kept = part.loc[part["kept"], [x, y]].mean()
            ax.plot(*kept, label=f"{run} ({READS[modality]})" if y == "ce" else None, **style, **dot)
    axes[0].set(title="training cross-entropy", ylim=(0, None))
    for ax in axes[1:]:
        ax.set(title=f"validation {score} (%)", ylim=(0, 100 if curves["val_top1"].max() > 50 else 50))
    for ax in axes[:2]:
        ax.set_xlabel("epoch")
        ax.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes[-1].set(**{"xlabel": "GMACs on a training clip", "xscale": "log"} if "gmacs" in curves else {})
    figure.legend(loc="outside lower center", ncols=4, handlelength=3, columnspacing=1)
    return figure


@rc_context(STYLE | {"axes.spines.top": True, "axes.spines.right": True})
def confusion(matrices: Mapping[str, Float[np.ndarray, "classes classes"]], classes: list[str]) -> Figure:
    """Confusion matrices side by side, one for each title: rows are true classes, in percent of the row.

    The names of many classes are left out; shades are then by the square root, since cells are small.
    """
    many = len(classes) > MANY
    names = [] if many else classes
    norm = PowerNorm(0.5, 0, 100) if many else Normalize(0, 100)
    height = 1.0 + max(0.165 * (len(names) or 15), 1.5)
    figure, (axes,) = subplots(height, 1, len(matrices), squeeze=False)
    for ax, (title, matrix) in zip(axes, matrices.items(), strict=True):
        totals = matrix.sum(axis=1, keepdims=True)
        image = ax.imshow(100 * matrix / np.maximum(totals, 1), cmap="Greys", norm=norm, aspect="auto")
        ax.set(title=title, xlabel="predicted, same order")
        ax.set_xticks(range(len(names)), [""] * len(names))
        ax.set_yticks(range(len(names)), names if ax is axes[0] else [""] * len(names))
    axes[0].set_ylabel(f"true, {len(classes)} classes" if many else "true")
    figure.colorbar(image, ax=list(axes), aspect=40, label="% of the true class")
    return figure


@rc_context(STYLE)
def per_class(table: pd.DataFrame) -> Figure:
    """Accuracy of each class (percent), sorted by that with both; of many, where audio and video differ most."""
    title, given = "", [name for name in COLOURS if name in table]
    if len(table) > MANY and "video" in given:
        title = f"{MANY} of {len(table)} classes: where audio and video differ by the most test clips"
        table = table.loc[(table["n"] * (table["audio"] - table["video"])).abs().nlargest(MANY).index]
    elif len(table) > MANY:
        title, table = f"{MANY} of {len(table)} classes, those with the most test clips", table.nlargest(MANY, "n")
    table = table.sort_values([given[-1], "class"], ascending=[True, False])
    y = np.arange(len(table))
    figure, axes = subplots(1.2 + 0.42 * len(table))
    axes.set_title(title, loc="left")
    for index, modality in enumerate(given):
        place = y + 0.27 * ((len(given) - 1) / 2 - index)
        axes.barh(place, table[modality], 0.26, color=COLOURS[modality], label=READS[modality])
    axes.set_yticks(y, table["class"])
    axes.set(xlim=(0, 100), ylim=(-0.6, len(table) - 0.4), xlabel="test clips of the class that are recognised (%)")
    axes.grid(**GRID)
    figure.legend(loc="outside upper right", ncols=3)
    return figure


@rc_context(STYLE | {"axes.spines.left": False, "axes.spines.bottom": False})
def tsne(points: Mapping[str, pd.DataFrame], classes: list[str]) -> Figure:
    """Maps of the test clips, one for each title; of many classes those with the most clips are coloured."""
    shown, rest = classes, 0
    if len(classes) > MANY:
        counts = pd.concat(points.values())["label"].value_counts().reindex(classes, fill_value=0)
        shown, rest = counts.nlargest(MAPPED).index, len(classes) - MAPPED
    hues = 0.618 * np.arange(len(shown)) % 1  # neighbours far apart
    colours = colormaps["turbo"](hues) if len(shown) > MAPPED else colormaps["tab10"].colors
    rows = -(-len(points) // 2)
    figure, cells = subplots(4.4 * rows, rows, 2, squeeze=False)
    edge = {"markersize": 5.5, "markeredgecolor": "white", "markeredgewidth": 0.4}
    for ax, (title, table) in zip(cells.flat, points.items(), strict=False):
        if rest:
            others = table[~table["label"].isin(shown)]
            ax.plot(others["x"], others["y"], ".", color="#cccccc", markersize=4, label=f"{rest} others")
        for index, name in enumerate(shown):
            part = table[table["label"] == name]
            ax.plot(part["x"], part["y"], "o^sDvP"[index % 6], color=colours[index], label=name, **edge)
        ax.set(title=title, xticks=[], yticks=[])
    layout = {"handles": list(cells[0, 0].lines), "markerscale": 1.6, "columnspacing": 1.0, "handletextpad": 0.1}
    if len(points) % 2:  # the last cell is free
        cells[-1, -1].set_axis_off()
        cells[-1, -1].legend(loc="center", ncols=1 if rest else 2, **layout)
    else:
        figure.legend(loc="outside lower center", ncols=2 if rest else 5, **layout)
    return figure


@rc_context(STYLE)
def ablations(table: pd.DataFrame) -> Figure:
    """Each row's difference to its default in points, with its interval, in blocks by group."""
    first = (table["group"] != table["group"].shift()).to_numpy()
    y = -np.where(first, 1.7, 1.0).cumsum()
    figure, axes = subplots(1.2 - 0.3 * y[-1])
    axes.axvline(0, color="#222222", linewidth=1)
    intervals(axes, table["difference"], table, y)
    for group, top in zip(table["group"][first], y[first], strict=True):
        axes.text(0.0, top + 0.55, group, transform=axes.get_yaxis_transform(), weight="bold", fontsize=10)
    axes.set_yticks(y, table["row"])
    axes.set(ylim=(y[-1] - 0.7, 0.0), xlabel="test top-1, points above or below the default")
    legend(figure, table["modality"])
    return figure


@rc_context(STYLE)
def claims(table: pd.DataFrame) -> Figure:
    """A panel a unit: the figure and interval of each claim tested, the paper's as grey ticks, a line at the bound."""
    tested = table["n_seeds"] > 0
    table = table[tested | ~tested.any()].rename(columns={"ci_low": "low", "ci_high": "high"})
    parts = [part for _, part in table.groupby("unit", sort=False)]
    height, ratios = 0.9 + 0.32 * len(table) + 0.55 * len(parts), [len(part) + 0.5 for part in parts]
    figure, panels = subplots(height, len(parts), squeeze=False, height_ratios=ratios)
    tick = {"color": "#888888", "marker": "|", "markersize": 12, "linestyle": ""}
    for axes, part in zip(panels.flat, parts, strict=True):
        y = -np.arange(len(part))
        intervals(axes, part["measured"], part, y)
        for place, row in zip(y, part.itertuples(), strict=True):
            axes.vlines(row.holds_above, place - 0.5, place + 0.5, color="#222222", linewidth=1)
            paper = [float(number) for number in re.findall(r"[\d.]+", row.paper)]
            axes.plot(paper, [place] * len(paper), markeredgewidth=2, **tick)
            said = row.verdict if row.n_seeds else "not run"
            weight = "bold" if said == "holds" else "normal"
            axes.text(1.02, place, said, transform=axes.get_yaxis_transform(), va="center", fontsize=9, weight=weight)
        axes.set_yticks(y, part["claim"])
        axes.set(ylim=(y[-1] - 0.6, 0.6), xlabel=part["unit"].iloc[0])
    legend(figure, table["modality"], more=(Line2D([], [], label="the paper", **tick),))
    return figure
