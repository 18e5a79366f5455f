"""The data card of a Freedoom-Sounds set: a text, the template card.md filled in, and sheets of example clips."""

import json
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from freedoom_sounds import classes, sound
from freedoom_sounds.engine import TICS_PER_SECOND
from freedoom_sounds.files import read_clip, whole, write_text

FRAMES = 4  # of a clip, on a sheet


class CardError(ValueError):
    """There is no generated set to describe, or it is another one; the text says what to do."""


def write_data_card(clips: Path) -> dict[str, Path]:
    """Write README.md and card/<kind>.jpg of the set in `clips` beside that folder; return paths by name.

    Raises CardError where `clips` holds no Freedoom-Sounds or a damaged one.
    """
    try:
        dataset = json.loads((clips / "dataset.json").read_text(encoding="utf-8"))
        name = dataset["name"]
        manifest = pd.read_csv(clips / "manifest.csv") if name == classes.NAME else None
    except FileNotFoundError as error:
        raise CardError(f"{error.filename} does not exist; make the set first.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CardError(f"{clips} is damaged ({error!r}); make the set again.") from error
    if name != classes.NAME:
        raise CardError(f"{clips} holds {name}; only {classes.NAME} has a generated card, write one by hand.")
    written = {"readme": clips.parent / "README.md"}
    for kind in _kinds(dataset):
        written[kind] = clips.parent / f"card/{kind}.jpg"
        with whole(written[kind]) as part:
            sheet = contact_sheet(clips, manifest, kind)
            sheet.savefig(part, format="jpeg", pil_kwargs={"quality": 80, "optimize": True})
    write_text(written["readme"], card_text(manifest, dataset))
    return written


def card_text(manifest: pd.DataFrame, dataset: dict) -> str:
    """The card as Markdown: card.md with the numbers of this copy."""
    template = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(template).render(
        manifest=manifest, dataset=dataset, kinds=_kinds(dataset), classes=classes, sound=sound, rate=TICS_PER_SECOND
    )


def _kinds(dataset: dict) -> list[str]:
    return list(dict.fromkeys(classes.ROWS[label].kind for label in dataset["classes"]))


def example(manifest: pd.DataFrame, label: str) -> pd.Series:
    """The clip that stands for a class: the first that is seen and heard, else the first that is seen."""
    clips = manifest[manifest["label"] == label]
    if clips.empty:
        raise CardError(f"the manifest has no clip of {label}; make the set again.")
    # Stable: among equals the manifest's order decides.
    return clips.sort_values(["visible", "audible"], ascending=False, kind="stable").iloc[0]


@np.errstate(divide="ignore")  # where a sound is digital silence its spectrogram is -inf dB
@rc_context({"font.size": 9, "font.family": "DejaVu Sans"})
def contact_sheet(clips: Path, manifest: pd.DataFrame, kind: str) -> Figure:
    """Frames and the spectrogram of one clip of each class of a kind (a key of KINDS)."""
    labels = [label for label, event in classes.ROWS.items() if event.kind == kind]
    figure = Figure(figsize=(8.0, 1.05 * len(labels)), layout="constrained", dpi=100)
    axes = figure.subplots(len(labels), FRAMES + 1, squeeze=False, width_ratios=[1.33] * FRAMES + [1.8])
    for row, label in zip(axes, labels, strict=True):
        frames, audio, rate = read_clip(clips / example(manifest, label)["path"])
        middles = (np.arange(FRAMES) + 0.5) * len(frames) / FRAMES  # of equal parts
        for ax, frame in zip(row, frames[middles.astype(int)], strict=False):
            ax.imshow(frame)
        row[-1].specgram(audio, NFFT=512, noverlap=352, Fs=rate, cmap="magma", vmin=-120, vmax=-40)
        row[-1].set_ylim(0, 8000)
        for ax in row:
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(label.replace("_", "\n"), rotation=0, ha="right", va="center")
    axes[-1][-1].set_xlabel("2 s")
    return figure
