"""What the figures have in common: colours, sizes, legends.

Audio, video and audio-visual have one colour each in every figure; a baseline is the lighter shade of it.
"""

import io
from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

# Told apart by the colour-blind, too (Okabe and Ito).
COLOURS = {"audio": "#0072b2", "video": "#d55e00", "av": "#009e73"}
READS = {"audio": "audio", "video": "video", "av": "audio-visual"}

DPI = 120
WIDTH = 1000 / DPI  # inches: 1,000 pixels, in which the text is at least 9 points
GRID = {"axis": "x", "color": "#dddddd"}
GROUND = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # of a number that no line may cross
STYLE = {
    "font.size": 10,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same on every machine
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
}


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """The figure as a PNG file whose bytes depend on nothing but the picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def subplots(height: float, rows: int = 1, columns: int = 1, *, width: float = WIDTH, **options) -> tuple[Figure, Any]:
    """A figure, in inches, and its axes as plt.subplots gives them; without pyplot, so nothing is global."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def shade(modality: str, ours: bool | np.bool) -> str | tuple[float, ...]:
    return COLOURS[modality] if ours else tuple(1 - 0.5 * (1 - value) for value in to_rgb(COLOURS[modality]))


def whiskers(values: pd.Series, table: pd.DataFrame) -> Float[np.ndarray, "2 rows"]:
    """Lengths of error bars from `low` to `high`; an interval holds its mean but for rounding."""
    return np.maximum([values - table["low"], table["high"] - values], 0)


def intervals(axes: Axes, values: pd.Series, table: pd.DataFrame, y: np.ndarray) -> None:
    """Dots with their intervals at the heights `y`, in the colours of `modality`, above a grid."""
    lengths = whiskers(values, table)
    for modality, colour in COLOURS.items():
        here = (table["modality"] == modality).to_numpy()
        axes.errorbar(values[here], y[here], xerr=lengths[:, here], fmt="o", color=colour, capsize=4)
    axes.grid(**GRID)


def legend(figure: Figure, modalities: Collection[str], label: str = "reads {}", more: tuple = ()) -> None:
    """A legend of the colours used, and of `more` artists."""
    used = [modality for modality in COLOURS if modality in set(modalities)]
    handles = [Patch(color=COLOURS[modality], label=label.format(READS[modality])) for modality in used]
    figure.legend(handles=[*handles, *more], loc="outside upper right", ncols=4)
