"""The benchmark's figures: tables in, matplotlib figures out; colours as in the report's."""

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from study.figures.style import STYLE, row_of_panels, shade


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
