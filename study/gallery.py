"""What the notebooks show: pictures of clips, features and learning curves, players, tables of facts.

Notebooks hold no logic, so it stands here, where a test reaches it. Nothing here decides a result.
"""

import io
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from freedoom_sounds.files import write_clip
from mmtlib.config import Trial
from mmtlib.data.augment import Augmenter, Draws
from mmtlib.data.dataset import Batch, FeatureDataset, epoch_generator
from mmtlib.data.media import read_clip
from mmtlib.data.spectrogram import LogMel
from mmtlib.evaluation.occlusion import Attribution
from mmtlib.models.multiscale import MultiscaleEncoder, pooled_grid
from study.figures.predict import Weighed, decisions
from study.figures.results import learning_curves
from study.figures.style import COLOURS, png, subplots
from study.tables.results import STAGES as DEFAULT_STAGE  # noqa: F401 (for the notebooks)
from study.timing import cost

HEAT = {"origin": "lower", "aspect": "auto", "cmap": "magma", "interpolation": "nearest"}
WIDTH = 8.4  # inches
FPS, SIZE, HZ = 8, 96, 16_000  # of a preview

_preview_clip = partial(read_clip, size=SIZE, sample_rate=HZ, seconds=None)


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
    figure, axes = subplots(height, len(rows), 2, width=WIDTH, squeeze=False, width_ratios=ratios)
    for (left, right), (title, frames, log_mel, seconds) in zip(axes, rows, strict=True):
        left.set_ylabel(title.replace("_", "\n"), fontsize=8, rotation=0, ha="right", va="center")
        if frames is not None:
            left.imshow(np.concatenate(list(frames), axis=1), interpolation="nearest")
        if log_mel is not None:
            show_log_mel(right, log_mel, seconds, **limits)
        for name, ax, content in (("video", left, frames), ("audio", right, log_mel)):
            if content is None:
                ax.text(0.5, 0.5, f"no {name}", ha="center", va="center", transform=ax.transAxes)
            ax.set(xticks=[], yticks=[])
    for last in [place for place, row in enumerate(rows) if row[2] is not None][-1:]:
        axes[last, 1].set_xticks(np.linspace(0, rows[last][3], 3).round(1))
    axes[0, 0].set_title("frames, first to last", fontsize=9)
    axes[0, 1].set_title("log-mel, time in s", fontsize=9)
    return picture_of(figure, text)


def show_log_mel(ax: Axes, log_mel: Tensor, seconds: float | int, **limits) -> None:
    ax.imshow(log_mel.T.numpy(), extent=(0, seconds, 0, log_mel.shape[1]), **limits, **HEAT)
    ax.tick_params(labelsize=7)


def picture_of(figure: Figure, text: str, colours: int = 32) -> Picture:
    return indexed(Image.open(io.BytesIO(png(figure, dpi=72))).convert("RGB"), text, colours)


def indexed(image: Image.Image, text: str, colours: int = 32) -> Picture:
    """As an indexed PNG: a notebook that holds several stays well below 300 kB."""
    buffer = io.BytesIO()
    image.quantize(colours, dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
    return Picture(buffer.getvalue(), text)


def file_picture(path: Path, text: str) -> Picture:
    """A picture file, scaled down to a width of 800 pixels if it is wider."""
    image = Image.open(path).convert("RGB")
    image.thumbnail((800, image.height), Image.Resampling.LANCZOS, reducing_gap=None)
    return indexed(image, text)


def clip_sheet(clips: Mapping[str, Path]) -> Picture:
    """Contact sheet, a row for each clip (title -> file): four frames in order, then its audio as a log-mel."""
    rows = []
    for title, path in clips.items():
        clip = _preview_clip(path, num_frames=4)
        log_mel = None if clip.waveform is None else LogMel(HZ, 64)(torch.from_numpy(clip.waveform))
        rows.append((title, clip.frames, log_mel, clip.duration))
    text = f"{len(clips)} clips, 4 frames and a log-mel spectrogram each"
    return sheet(rows, text, height=1.15 * len(clips) + 0.3, ratios=(4, 1.9))


def preview(path: Path) -> bytes:
    """A small mp4 of a clip for a player: 8 frames a second, 96 pixels, mono, some 25 kB for 2 s."""
    length = _preview_clip(path, num_frames=1).duration
    clip = _preview_clip(path, num_frames=max(round(length * FPS), 1))
    sound = clip.waveform
    pcm = None if sound is None else np.rint(32767 * np.clip(sound, -1, 1)).astype(np.int16)[:, None]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "preview.mp4"
        write_clip(file, clip.frames, FPS, pcm, HZ)
        return file.read_bytes()


def sound_figure(waveform: Float[np.ndarray, " samples"], log_mel: LogMel, sample_rate: int) -> Picture:
    """A sound three ways, on one time axis: waveform, power spectrum, log-mel spectrogram."""
    samples = torch.from_numpy(np.ascontiguousarray(waveform))
    seconds = len(waveform) / sample_rate
    window = torch.hann_window(log_mel.window)
    spectrum = torch.stft(samples, log_mel.window, log_mel.hop, window=window, center=False, return_complex=True)
    figure, (top, middle, bottom) = subplots(4.8, 3, width=WIDTH, sharex=True)
    top.plot(np.arange(len(waveform)) / sample_rate, waveform, linewidth=0.4, color=COLOURS["audio"])
    top.set_ylabel("pressure")
    decibel = 10 * np.log10(spectrum.abs().square().numpy() + 1e-6)
    middle.imshow(decibel, extent=(0, seconds, 0, sample_rate / 2000), **HEAT)
    middle.set_ylabel("frequency (kHz)")
    show_log_mel(bottom, log_mel(samples), seconds)
    bottom.set(xlabel="time (s)", ylabel="mel band")
    return picture_of(figure, "waveform, spectrum and log-mel of one clip")


def feature_sheet(dataset: FeatureDataset, positions: Sequence[int]) -> Picture:
    """What a model is given of some clips: frames and log-mels as they are stored; of `motion`, around grey."""
    labels, batch = dataset.index["label"], dataset.batch(list(positions))
    rows = [(labels[place], batch, at) for at, place in enumerate(positions)]
    return _batch_sheet(rows, dataset, f"{len(rows)} clips as they are stored")


def augmentation_sheet(dataset: FeatureDataset, augment: Augmenter, positions: Sequence[int]) -> Picture:
    """Each clip as it is stored and, below it, as one training step would see it."""
    labels, plain = dataset.index["label"], dataset.batch(list(positions))
    changed = augment(plain, Draws(epoch_generator(0, 0, "augmentation")))
    pairs = [((labels[place], plain, at), ("augmented", changed, at)) for at, place in enumerate(positions)]
    return _batch_sheet(sum(pairs, ()), dataset, f"{len(pairs)} clips before and after augmentation")


def decision_sheet(dataset: FeatureDataset, titles: Mapping[int, str], weights: Sequence[Attribution]) -> Picture:
    """What drives the decision on some clips of a split (position -> title), as `occlusion` has weighed."""
    batch = dataset.batch(list(titles))
    seconds = dataset.stats["settings"]["seconds"]
    rows = zip(titles.values(), batch.audio[:, 0], _as_stored(batch.video, dataset), weights, strict=True)
    clips = [Weighed(title, *stored, seconds, found) for title, *stored, found in rows]
    return picture_of(decisions(clips), f"what drives the decision on {len(clips)} clips", colours=64)


def patch_figure(log_mel: Float[Tensor, "time mel"], encoder: MultiscaleEncoder) -> Picture:
    """A log-mel under the grid of its patches: dots at their centres, outlines of one and its neighbours."""
    figure, ax = subplots(3.4, width=WIDTH)
    ax.imshow(log_mel.T.numpy(), **HEAT)
    kernel, steps = encoder.patch_kernel, zip(encoder.patch_stride, encoder.patch_padding, strict=True)
    places = [np.arange(n) * s - p for n, (s, p) in zip(encoder.grid(tuple(log_mel.shape)), steps, strict=True)]
    time, mel = np.meshgrid(*(start + k / 2 - 0.5 for start, k in zip(places, kernel, strict=True)))
    ax.plot(time.ravel(), mel.ravel(), ".", color="white", markersize=2.5)
    for at, style in (((2, 8), "-"), ((3, 8), "--"), ((2, 9), ":")):
        corner = [start[index] - 0.5 for start, index in zip(places, at, strict=True) if index < len(start)]
        if len(corner) == 2:
            ax.add_patch(Rectangle(corner, *kernel, fill=False, edgecolor="white", linewidth=1.8, linestyle=style))
    ax.set(xlabel="spectrogram frame (one each hop)", ylabel="mel band")
    return picture_of(figure, f"{len(places[0])} x {len(places[1])} patches on a log-mel")


def token_grids(encoder: MultiscaleEncoder, size: tuple[int, ...]) -> pd.DataFrame:
    """A row for the patches and for each block: width, heads, query stride, grid (time first), tokens, keys."""
    grid, width = encoder.grid(tuple(size)), encoder.blocks[0].attention.qkv.in_features
    rows = [("patches", width, "", "", grid, prod(grid), "")]
    for index, block in enumerate(encoder.blocks, start=1):
        attention = block.attention
        keys, grid = prod(pooled_grid(grid, attention.stride_kv)), pooled_grid(grid, block.stride_q)
        width, heads = attention.project.out_features, attention.num_heads
        rows.append((f"block {index}", width, heads, tuple(block.stride_q), grid, prod(grid), keys))
    table = pd.DataFrame(rows, columns=["where", "dim", "heads", "stride_q", "grid", "tokens", "keys"])
    return table.map(lambda cell: " x ".join(map(str, cell)) if isinstance(cell, tuple) else cell)


def costs(names: Sequence[str], classes: int, audio: Sequence[int], video: Sequence[int], **overrides) -> pd.DataFrame:
    """Parameters (million) and multiply-accumulates (million, a clip) of models by name.

    audio: (time, mel); video: (frames, height, width). `overrides`: of a model by its name.
    """
    rows = [(name, *cost(name, classes, audio, video, **overrides.get(name, {}))) for name in names]
    table = pd.DataFrame(rows, columns=["model", "reads", "params_m", "mmacs"])
    return table.assign(params_m=table["params_m"].map("{:.3f}".format), mmacs=table["mmacs"].map("{:.1f}".format))


def curve_figure(name: str, histories: Mapping[Trial, pd.DataFrame], modality: str) -> Picture:
    """Learning curves of one run, a line for each trial (see train_runs)."""
    parts, score = [], "top-1"
    for history in histories.values():
        score = "mAP" if "val_map" in history else score
        history = history.rename(columns={"val_map": "val_top1"})
        best = history.sort_values(["val_top1", "val_loss"], ascending=[False, True]).index[0]
        parts.append(history.assign(run=name, modality=modality, ours=True, kept=history.index == best))
    return picture_of(learning_curves(pd.concat(parts), score), f"learning curves of {name}")


def positives_figure(labels: Sequence[str]) -> Picture:
    """Which pairs of clips AVC and IMC pull together (dark), push apart (light), leave out (hatched)."""
    same = np.array([[a == b for b in labels] for a in labels])
    figure, axes = subplots(3.4, 1, 2, width=7.2)
    panels = {"AVC: audio against video": 0 * same, "IMC: audio against audio": np.eye(len(labels))}
    for ax, (title, left_out) in zip(axes, panels.items(), strict=True):
        ax.imshow(np.where(left_out, 0.0, np.where(same, 0.8, 0.2)), cmap="Blues", vmin=0, vmax=1)
        for edge in np.flatnonzero(left_out.any(axis=1)) - 0.5:
            ax.add_patch(Rectangle((edge, edge), 1, 1, fill=False, edgecolor="#999999", linewidth=1.8, hatch="///"))
        ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
        ax.set_yticks(range(len(labels)), labels, fontsize=8)
        ax.set_title(title, fontsize=9)
        ax.set(xlabel="candidate", ylabel="anchor")
    return picture_of(figure, f"positives of AVC and IMC among {len(labels)} clips")


def claims(rows: Sequence[tuple]) -> str:
    """Rows of (claim, measured, expected[, tolerance]) as a text table with `ok`; without a tolerance they are equal.

    With a tolerance the measured value is printed only where it is off: last digits vary with the machine.
    """
    table = []
    for claim, measured, expected, *tolerance in rows:
        ok = measured == expected
        if tolerance:
            ok = abs(measured - expected) <= tolerance[0]
            measured, expected = "within" if ok else f"{measured:g}", f"{expected:g} +- {tolerance[0]:g}"
        table.append((claim, str(measured), str(expected), bool(ok)))
    return pd.DataFrame(table, columns=["claim", "measured", "expected", "ok"]).to_string(index=False)


def changes(row: Mapping[str, Any], default: Mapping[str, Any]) -> pd.DataFrame:
    """Fields in which a run differs from its default: field, default, row. Nested fields are written a.b."""
    sides = [pd.json_normalize(dict(values)).T[0] for values in (default, row)]
    table = pd.concat(sides, axis=1, keys=["default", "row"]).fillna("-").rename_axis("field")
    return table[table["default"] != table["row"]].reset_index()


def _batch_sheet(rows: Sequence[tuple[str, Batch, int]], dataset: FeatureDataset, text: str) -> Picture:
    """Rows of (title, batch, position), de-normalised: six frames, then the log-mel, all on one scale."""
    seconds = dataset.stats["settings"]["seconds"]
    sound, shown = dataset.stats["log_mel"], []
    for title, batch, at in rows:
        frames = _as_stored(batch.video[at], dataset)
        chosen = np.linspace(0, len(frames) - 1, min(6, len(frames))).round().astype(int)
        shown.append((title, frames[chosen], batch.audio[at, 0] * sound["std"] + sound["mean"], seconds))
    sounds = torch.stack([log_mel for _, _, log_mel, _ in shown])
    limits = {"vmin": sounds.min().item(), "vmax": sounds.max().item()}
    return sheet(shown, text, height=1.05 * len(rows) + 0.4, ratios=(6, 2.4), **limits)


def _as_stored(video: Float[Tensor, "*B 3 T H W"], dataset: FeatureDataset) -> UInt8[np.ndarray, "*B T H W 3"]:
    """Normalised frames as pixels."""
    mean, std = (torch.tensor(dataset.stats["frames"][name]).view(3, 1, 1, 1) for name in ("mean", "std"))
    mean = mean + 0.5 * dataset.stats["settings"].get("motion", False)  # what does not move is grey
    return ((video * std + mean) * 255).clamp(0, 255).to(torch.uint8).movedim(-4, -1).numpy()
