"""Predictions as figures: the tables of `mmtlib.predict` in, colours as in the report's."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from torch import Tensor

from mmtlib.evaluation.occlusion import Attribution
from study.figures.style import COLOURS, GRID, READS, STYLE, WIDTH, legend, shade, subplots

ROWS = 12  # classes told apart over time
FRAMES = 8  # shown of a clip, at most


class Weighed(NamedTuple):
    """A clip and the weights of its parts for one class; of what they lack the values are not looked at."""

    title: str
    log_mel: Float[Tensor, "time mel"]
    frames: UInt8[np.ndarray, "frames height width 3"]
    seconds: float | int
    weights: Attribution


@rc_context(STYLE)
def best_classes(verdict: pd.DataFrame) -> Figure:
    """The best classes of a file as bars, a panel for what the model was given; one row of panels for each head."""
    heads, modalities = verdict["head"].unique(), verdict["modality"].unique()
    height = len(heads) * (0.9 + 0.4 * verdict["rank"].max())
    figure, panels = subplots(height, len(heads), len(modalities), squeeze=False, sharex=True)
    for ax, (head, modality) in zip(panels.flat, [(head, each) for head in heads for each in modalities], strict=True):
        table = verdict[(verdict["head"] == head) & (verdict["modality"] == modality)]
        ax.barh(-table["rank"], 100 * table["probability"], 0.8, color=shade(modality, False))
        for line in table.itertuples():  # names on the bars: they may be long
            ax.text(1, -line.rank, f"{line.label}  {line.probability:.1%}", va="center", fontsize=9)
        title = READS[modality] if len(heads) == 1 else f"{head}, {READS[modality]}"
        ax.set_title(title, loc="left", color=COLOURS[modality], weight="bold")
        ax.set(xlim=(0, 100), yticks=[])
    for ax in panels[-1]:
        ax.set_xlabel("probability (%)")
    return figure


@rc_context(STYLE)
def over_time(windows: pd.DataFrame, head: str) -> Figure:
    """The best class of each window against time: a bar as long as the window, the paler the less probable.

    Rows are the classes that are best somewhere, in the order of their appearance; of many those most often best.
    """
    best = windows[(windows["head"] == head) & (windows["rank"] == 1)]
    classes = best.sort_values("start", kind="stable")["label"].unique()
    rows = [label for label in classes if label in best["label"].value_counts().index[:ROWS]]
    figure, ax = subplots(1.3 + 0.42 * len(rows))
    given = [modality for modality in COLOURS if modality in set(best["modality"])]
    for place, modality in enumerate(given):
        table = best[(best["modality"] == modality) & best["label"].isin(rows)]
        y = -table["label"].map(rows.index) + 0.27 - 0.27 * place
        shades = [(COLOURS[modality], 0.15 + 0.85 * probability) for probability in table["probability"]]
        ax.barh(y, table["end"] - table["start"], 0.24, left=table["start"], color=shades)
    ax.set_yticks(range(0, -len(rows), -1), rows)
    ax.set(xlabel="time (s)", xlim=(0, best["end"].max()), ylim=(0.6 - len(rows), 0.6))
    if len(rows) < len(classes):
        ax.set_title(f"{len(rows)} of {len(classes)} classes: those that are best most often", loc="left")
    ax.grid(**GRID)
    legend(figure, given, "{}")
    return figure


@rc_context(STYLE)
def decisions(clips: Sequence[Weighed]) -> Figure:
    """A row a clip: its sound, its frames over their weights, its middle frame in grey.

    The stronger the colour over sound and frame, the more nats are lost without that part; full colour is the largest
    weight of a block or field in the row, which the title states. What speaks against the class has none.
    """
    figure = Figure(figsize=(WIDTH, 1.9 * len(clips)), layout="constrained")
    for row, clip in zip(figure.subfigures(len(clips), 1, squeeze=False)[:, 0], clips, strict=True):
        _, sound, times, picture = clip.weights
        most = max([part.max().item() for part in (sound, picture) if part is not None] + [1e-6])
        row.suptitle(f"{clip.title} (full colour: {most:.2f} nats)", x=0.01, ha="left", weight="bold", fontsize=10)
        layout = {"width_ratios": (3, 4, 1.5), "height_ratios": (1, 1)}
        axes = row.subplot_mosaic([["sound", "strip", "frame"], ["sound", "bars", "frame"]], **layout)
        for name, part in (("sound", sound), ("strip", times), ("frame", picture)):
            axes[name].set(xticks=[], yticks=[])
            if part is None:
                axes[name].text(0.5, 0.5, f"no {'audio' if name == 'sound' else 'video'}", ha="center")
        if sound is not None:
            ground = {"extent": (0, clip.seconds, 0, clip.log_mel.shape[1]), "origin": "lower", "aspect": "auto"}
            axes["sound"].imshow(clip.log_mel.T.numpy(), cmap="Greys", **ground)
            _heat(axes["sound"], sound.T.numpy() / most, "audio", **ground)
            axes["sound"].set(xticks=np.linspace(0, clip.seconds, 3), xlabel="time (s)", ylabel="mel band")
        if times is None:
            axes["bars"].set_axis_off()
            continue
        count, height, width, _ = clip.frames.shape
        shown = np.linspace(0, count - 1, min(FRAMES, count)).round().astype(int)
        axes["strip"].imshow(np.concatenate(clip.frames[shown], axis=1), aspect="auto", extent=(0, count, 0, 1))
        axes["bars"].bar(np.arange(count) + 0.5, times.numpy(), 0.8, color=COLOURS["video"])
        axes["bars"].set(xlim=(0, count), xlabel="frame", ylabel="nats")
        axes["bars"].locator_params(axis="x", integer=True)
        axes["frame"].imshow(clip.frames[count // 2].mean(-1), cmap="gray", extent=(0, width, height, 0))
        _heat(axes["frame"], picture.numpy() / most, "video", extent=(0, width, height, 0))
    return figure


def _heat(ax: Axes, shares: Float[np.ndarray, "rows columns"], modality: str, **places) -> None:
    """Lay the modality's colour over an axes, the denser the larger the share (0 to 1)."""
    colours = to_rgba_array(COLOURS[modality], 0.8 * shares.clip(0, 1).ravel())
    ax.imshow(colours.reshape(*shares.shape, 4), interpolation="nearest", **places)
