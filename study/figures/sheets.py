"""Small pictures of clips for notebooks: sheets of frames and log-mels, and how a figure becomes such a picture."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

HEAT = {"origin": "lower", "aspect": "auto", "cmap": "magma", "interpolation": "nearest"}
WIDTH = 8.4  # inches


class Picture:
    """A PNG for a notebook. In text it is its description, which is the same on every machine."""

    def __init__(self, png: bytes, text: str):
        self.png, self.text = png, text

    def __repr__(self) -> str:
        return f"Picture: {self.text}"

    def _repr_png_(self) -> bytes:
        return self.png


def sheet(rows: Sequence[tuple], text: str, *, height: float, ratios: tuple[float | int, ...], **limits) -> Picture:
    """A row for each clip: its frames side by side, then its log-mel, or a word on what it lacks.

    rows: title, frames (uint8, n x height x width x 3) or None, log-mel (time x mel) or None, seconds.
    """
    figure, axes = panels_of(len(rows), 2, height, squeeze=False, width_ratios=ratios)
    for (left, right), (title, frames, log_mel, seconds) in zip(axes, rows, strict=True):
        left.set_ylabel(title.replace("_", "\n"), fontsize=8, rotation=0, ha="right", va="center")
        if frames is not None:
            left.imshow(np.concatenate(list(frames), axis=1), interpolation="nearest")
        if log_mel is not None:
            show_log_mel(right, log_mel, seconds, **limits)
        for name, ax, content in (("picture", left, frames), ("sound", right, log_mel)):
            if content is None:
                ax.text(0.5, 0.5, f"no {name}", ha="center", va="center", transform=ax.transAxes)
            ax.set(xticks=[], yticks=[])
    if rows[-1][2] is not None:
        axes[-1, 1].set_xticks(np.linspace(0, rows[-1][3], 3).round(1))
    axes[0, 0].set_title("frames, first to last", fontsize=9)
    axes[0, 1].set_title("log-mel, time in s", fontsize=9)
    return picture_of(figure, text)


def show_log_mel(ax: Axes, log_mel: Tensor, seconds: float | int, **limits) -> None:
    ax.imshow(log_mel.T.numpy(), extent=(0, seconds, 0, log_mel.shape[1]), **limits, **HEAT)
    ax.tick_params(labelsize=7)


def panels_of(rows: int, columns: int, height: float, *, width: float = WIDTH, **options) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def picture_of(figure: Figure, text: str, colours: int = 32) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=72)
    return indexed(Image.open(buffer).convert("RGB"), text, colours)


def indexed(image: Image.Image, text: str, colours: int = 32) -> Picture:
    """As an indexed PNG: a notebook that holds several stays well below 300 kB."""
    buffer = io.BytesIO()
    image.quantize(colours, dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
    return Picture(buffer.getvalue(), text)
