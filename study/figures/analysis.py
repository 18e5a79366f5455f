"""The figures of the analyses beyond accuracy; colours as in the report's."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from study.figures.style import COLOURS, READS, STYLE, shade, subplots

CORRUPTED = {"audio noise": "noise in the audio", "video noise": "noise in the video", "audio late": "audio late"}
DASHES = ("--", ":", "-.", (0, (9, 3)))  # of the baselines of a modality, in their order
UNITS = {"dB": "signal over noise (dB)", "s": "delay (s)"}


@rc_context(STYLE)
def calibration(table: pd.DataFrame, bins: Sequence[pd.DataFrame], surest: Sequence[pd.Series]) -> Figure:
    """Above, accuracy against confidence; below, accuracy over the clips that a model is surest of. Ours and peers.

    `bins` and `surest` have an entry for each row of `table`. A dot's area is the share of the clips in its bin, from
    5 clips and 1 % on.
    """
    given = [modality for modality in COLOURS if modality in set(table["modality"])]
    figure, axes = subplots(6.4, 2, len(given), sharex="row", sharey="row", squeeze=False)
    for modality, (above, below) in zip(given, axes.T, strict=True):
        above.plot([0, 100], [0, 100], color="#888888", linewidth=0.8, linestyle=":")
        part = table[table["modality"] == modality].sort_values("ours", kind="stable")  # ours on top
        for number, row in enumerate(part.itertuples()):
            dashes = "-" if row.ours else DASHES[number % len(DASHES)]
            style = {"color": shade(modality, row.ours), "linestyle": dashes, "linewidth": 1.6}
            enough = bins[row.Index].query("n >= 5 and n >= 0.01 * n.sum()")
            sure, hit, n = enough[["confidence", "first", "n"]].to_numpy().T
            above.plot(100 * sure, 100 * hit, **style)
            above.scatter(100 * sure, 100 * hit, 400 * n / n.sum(), color=style["color"], edgecolors="white", zorder=3)
            below.plot(surest[row.Index], label=row.model, **style)
        above.set(title=READS[modality], xlabel="top probability (%)", xlim=(0, 104), ylim=(0, 104))
        below.set(xlabel="clips answered, surest first (%)", ylim=(0, 104), xticks=range(20, 101, 20))
        below.legend(loc="lower left", reverse=True)
    axes[0, 0].set_ylabel("recognised (%)")
    axes[1, 0].set_ylabel("of these recognised (%)")
    return figure


@rc_context(STYLE)
def robustness(table: pd.DataFrame) -> Figure:
    """Test top-1 of the models of both against noise and delay; left the clean clips, whiskers are a deviation."""
    figure, panels = subplots(3.8, 1, len(CORRUPTED))
    for axes, (kind, title) in zip(panels, CORRUPTED.items(), strict=True):
        for place, (model, part) in enumerate(table.groupby("model", sort=False)):
            levels = part[part["corruption"] == kind].sort_values("level", ascending=kind == "audio late")
            shown = pd.concat([part[part["corruption"] == "none"], levels]).assign(modality="av")
            _line(axes, np.arange(len(shown)) + 0.06 * place, shown, model, "os^Dvx"[place % 6])  # side by side
            axes.set_xticks(np.arange(len(shown)), ["clean", *(f"{level:g}" for level in levels["level"])])
            axes.set(title=title, xlabel=UNITS[levels["unit"].iloc[0]], ylim=(0, 104))
    return _finished(figure, panels)


@rc_context(STYLE)
def data_efficiency(table: pd.DataFrame) -> Figure:
    """Test top-1 against the share of the training clips, a panel for audio and one for both."""
    shown = [modality for modality in COLOURS if modality in set(table["modality"])]
    figure, (panels,) = subplots(3.8, 1, len(shown), squeeze=False)
    for axes, modality in zip(panels, shown, strict=True):
        own = table[table["modality"] == modality]
        for place, (model, part) in enumerate(own.groupby("model")):
            _line(axes, 100 * part["share"], part, model, "os^Dvx"[place % 6])
        axes.set(title=f"reads {READS[modality]}", xlabel="share of the training clips", ylim=(0, 104), xscale="log")
        axes.set_xticks(100 * own["share"].unique(), [f"{100 * share:g} %" for share in own["share"].unique()])
        axes.set_xticks([], minor=True)
    return _finished(figure, panels)


def _line(axes: Axes, x: np.ndarray | pd.Series, part: pd.DataFrame, model: str, marker: str) -> None:
    """A model's top-1 with its spread over the seeds; a baseline is pale and dashed, a variant of ours grey, dotted."""
    ours = part["ours"].iloc[0]
    style = {"color": shade(part["modality"].iloc[0], ours), "linestyle": "-" if ours else "--"}
    if ours and "-" in model:
        style = {"color": "#555555", "linestyle": ":"}
    spread = None if part["std"].isna().all() else part["std"]
    axes.errorbar(x, part["top1"], spread, label=model, marker=marker, capsize=3, **style)


def _finished(figure: Figure, panels: np.ndarray) -> Figure:
    panels[0].set_ylabel("test top-1 (%)")
    lines = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=6)
    return figure


@rc_context(STYLE)
def efficiency(table: pd.DataFrame) -> Figure:
    """The peer's cost over ours for each pair, from 1 on a log axis: to its right ours needs less. Pale: bf16."""
    panels = {
        "train_step_ratio": "training step:\npeer's seconds / ours",
        "inference_ratio": "inference:\npeer's seconds / ours",
        "peak_memory_ratio": "memory in training:\npeer's GiB / ours",
    }
    y = -np.arange(len(table), dtype=float)
    colours = [shade(row.modality, row.precision == "fp32") for row in table.itertuples()]
    figure, axes = subplots(1.6 + 0.34 * len(table), 1, len(panels), sharey=True)
    for ax, (column, title) in zip(axes, panels.items(), strict=True):
        values = 1 / table[column] if column == "peak_memory_ratio" else table[column]
        low, high = (table.get(f"{column}_{end}", values) for end in ("low", "high"))
        bars = ax.barh(y, values - 1, 0.7, left=1, xerr=[values - low, high - values], color=colours, capsize=3)
        ax.axvline(1, color="#222222", linewidth=1)
        ax.bar_label(bars, ["" if np.isnan(value) else f"{value:.2f}" for value in values], padding=5, fontsize=9)
        ax.set(title=title, xscale="log")
        ax.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_locator=NullLocator())
        ax.margins(x=0.35)
    axes[0].set_yticks(y, [f"{row.model} / {row.peer}, {row.precision}" for row in table.itertuples()])
    return figure
