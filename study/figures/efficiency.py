"""The benchmark's figures: tables in, matplotlib figures out; colours as in the report's."""

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from study.figures.style import STYLE, row_of_panels, shade

# One for each kind of operation, none of them a modality's (Okabe and Ito).
KIND_COLOURS = {"linear": "#56b4e9", "attention": "#cc79a7", "convolution": "#e69f00", "positions": "#444444"}


@rc_context(STYLE)
def efficiency(table: pd.DataFrame) -> Figure:
    """The peer's cost over ours for each pair: right of the line at 1, ours needs less. Pale: bf16."""
    panels = {
        "train_step_ratio": "training step:\npeer's seconds / ours",
        "inference_ratio": "inference:\npeer's seconds / ours",
        "peak_memory_ratio": "memory in training:\npeer's GiB / ours",
    }
    y = -np.arange(len(table), dtype=float)
    colours = [shade(row.modality, row.precision == "fp32") for row in table.itertuples()]
    figure, axes = row_of_panels(len(panels), 1.6 + 0.34 * len(table))
    for ax, (column, title) in zip(axes, panels.items(), strict=True):
        values = 1 / table[column] if column == "peak_memory_ratio" else table[column]
        low, high = (table.get(f"{column}_{end}", values) for end in ("low", "high"))
        bars = ax.barh(y, values, 0.7, xerr=[values - low, high - values], color=colours, capsize=3)
        ax.axvline(1, color="#222222", linewidth=1, linestyle=":", zorder=0)
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # the line at 1 must not cross a number
        ax.bar_label(bars, fmt="%.2f", padding=5, fontsize=9, bbox=ground)
        ax.set_yticks(y, [""] * len(table))
        ax.set(title=title, xlim=(0, 1.3 * values.max() if values.notna().any() else 1))  # nothing was timed: empty
    axes[0].set_yticks(y, [f"{row.model} / {row.peer}, {row.precision}" for row in table.itertuples()])
    return figure


@rc_context(STYLE)
def efficiency_length(table: pd.DataFrame) -> Figure:
    """Seconds and memory of a training step against the length of the sound, where it was timed, and their ratio."""
    panels = {
        "train_s": f"training step,\nbatch of {table['batch'].iloc[0]} (s)",
        "peak_memory_gib": "peak memory of\nthe step (GiB)",
        "train_step_ratio": "training step:\npeer's seconds / ours",
    }
    figure, axes = row_of_panels(len(panels), 3.6)
    for ax, (column, title) in zip(axes, panels.items(), strict=True):
        lines = table.reindex(columns=[column, f"peer_{column}"])  # a ratio has no second line
        for name, ours in zip(lines, (True, False), strict=True):
            ax.plot(table["seconds"], lines[name], "o-", color=shade("audio", ours))
        ax.set(title=title, xlabel="seconds of audio", ylim=(0, None))
    axes[2].axhline(1, color="#222222", linewidth=1, linestyle=":")
    figure.legend(axes[0].lines, table[["model", "peer"]].iloc[0], loc="outside lower right", ncols=2)
    return figure


@rc_context(STYLE)
def efficiency_stages(table: pd.DataFrame) -> Figure:
    """The operations of each model, stage by stage, as stacked bars: which kind, and how many (GMAC)."""
    models = table["model"].unique()
    figure, axes = row_of_panels(len(models), 3.8)
    for ax, name in zip(axes, models, strict=True):
        part = table[(table["model"] == name) & (table["blocks"] > 0)]
        stacked = part[[f"{kind}_gmacs" for kind in KIND_COLOURS]].set_axis(KIND_COLOURS, axis=1)
        stacked.plot.bar(stacked=True, ax=ax, width=0.75, rot=0, color=KIND_COLOURS, legend=False)
        label = "stage {stage}\n{blocks} blocks\n{width} wide\n{tokens} tokens\n{keys} keys"
        ax.set_xticks(np.arange(len(part)), [label.format(**row) for row in part.to_dict("records")])
        ax.set_title(f"{name}, GMAC for a clip")
    figure.legend(axes[0].containers, KIND_COLOURS, loc="outside lower center", ncols=4)
    return figure
