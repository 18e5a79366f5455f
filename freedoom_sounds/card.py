"""The data card of Freedoom-Sounds: data/README.md, computed from what the generator wrote, with examples."""

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from freedoom_sounds.clip import CLASSES, DECOY, GAME, KINDS, split_levels
from freedoom_sounds.engine import TICS_PER_SECOND
from freedoom_sounds.generate import NAME
from freedoom_sounds.sound import AUDIBLE_SNR, DISTRACTORS
from mmtlib.data.features import LogMel
from mmtlib.data.manifest import SPLITS, read_manifest
from mmtlib.data.media import read_clip
from mmtlib.files import write_bytes, write_text

FRAMES, SIZE, SAMPLE_RATE = 4, 96, 16_000
SECONDS = 2.0


class CardError(ValueError):
    """There is no generated set to describe, or it is another one; the text says what to do."""


def write_data_card(workspace: Path) -> dict[str, Path]:
    """Write data/README.md and data/card/<kind>.jpg below `workspace`; return their paths by name.

    Raises CardError where data/clips holds no Freedoom-Sounds; ManifestError, MediaError where it is damaged.
    """
    data = Path(workspace) / "data"
    dataset = _read_dataset(data / "clips/dataset.json")
    manifest = read_manifest(data / "clips/manifest.csv")
    pictures = {kind: data / f"card/{kind}.jpg" for kind in KINDS}
    for kind, path in pictures.items():
        write_bytes(path, _jpeg(contact_sheet(data / "clips", manifest, kind)))
    write_text(data / "README.md", card_text(manifest, dataset))
    return {"readme": data / "README.md"} | pictures


def _read_dataset(path: Path) -> dict[str, Any]:
    try:
        dataset = json.loads(path.read_text(encoding="utf-8"))
        name = dataset["name"]
    except FileNotFoundError:
        raise CardError(f"{path} does not exist; run stage download.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CardError(f"{path} is damaged ({error!r}); run stage download again.") from error
    if name != NAME:
        raise CardError(f"{path} describes {name}; only {NAME} has a generated card, write data/README.md by hand.")
    return dataset


def class_table(manifest: pd.DataFrame) -> pd.DataFrame:
    """class, kind, clips of each split, audible and visible (percent of the clips), the median SNR, as text."""
    groups = manifest.groupby("label")
    table = pd.DataFrame({"kind": [_words(event.kind) for event in CLASSES.values()]}, index=list(CLASSES))
    counts = pd.crosstab(manifest["label"], manifest["split"])
    table[list(SPLITS)] = counts.reindex(index=table.index, columns=list(SPLITS), fill_value=0)
    for share in ("audible", "visible"):
        table[share] = (100 * groups[share].mean()).map("{:.0f}".format)
    table["median SNR (dB)"] = groups["snr_db"].median().map("{:.1f}".format, na_action="ignore").fillna("")
    return table.rename_axis("class").reset_index()


def example(manifest: pd.DataFrame, label: str) -> pd.Series:
    """The clip that stands for a class: the first that is seen and heard, else the first that is seen."""
    clips = manifest[manifest["label"] == label]
    # Stable: among equals the manifest's order decides.
    best = clips.sort_values(["visible", "audible"], ascending=False, kind="stable")
    if best.empty:
        raise CardError(f"the manifest has no clip of {label}; run stage download again.")
    return best.iloc[0]


@rc_context({"font.size": 9, "font.family": "DejaVu Sans"})
def contact_sheet(clips: Path, manifest: pd.DataFrame, kind: str) -> Figure:
    """Frames and log-mel spectrogram of one clip of each class of a kind (a key of KINDS)."""
    labels = [label for label, event in CLASSES.items() if event.kind == kind]
    log_mel = LogMel(SAMPLE_RATE)
    figure = Figure(figsize=(8.0, 1.15 * len(labels)), layout="constrained", dpi=100)
    axes = figure.subplots(len(labels), FRAMES + 1, squeeze=False, width_ratios=[1] * FRAMES + [1.8])
    for row, label in zip(axes, labels, strict=True):
        path = clips / example(manifest, label)["path"]
        clip = read_clip(path, num_frames=FRAMES, size=SIZE, sample_rate=SAMPLE_RATE, seconds=SECONDS)
        for ax in row:
            ax.set_xticks([])
            ax.set_yticks([])
        for ax, frame in zip(row, clip.frames, strict=False):
            ax.imshow(frame)
        with torch.inference_mode():
            spectrogram = log_mel(torch.from_numpy(clip.waveform)).numpy()
        row[-1].imshow(spectrogram.T, origin="lower", aspect="auto", cmap="magma", vmin=-14, vmax=4)
        row[0].set_ylabel(label.replace("_", "\n"), rotation=0, ha="right", va="center")
    axes[-1][-1].set_xlabel(f"time, {SECONDS:g} s")
    return figure


def _jpeg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", pil_kwargs={"quality": 80, "optimize": True})
    return buffer.getvalue()


def card_text(manifest: pd.DataFrame, dataset: dict[str, Any]) -> str:
    """The card as Markdown: card.md with the numbers of this copy."""
    made = dataset["generation"]
    counts = manifest["split"].value_counts()
    retries = _retries(made["retries"])
    sheets = [
        f"### {_words(kind).capitalize()}\n\n![{_words(kind)}: frames and spectrograms](card/{kind}.jpg)"
        for kind in KINDS
    ]
    return (
        Path(__file__)
        .with_suffix(".md")
        .read_text(encoding="utf-8")
        .format(
            seconds=f"{SECONDS:g}",
            number=len(CLASSES),
            sizes=", ".join(f"{counts.get(split, 0)} {split}" for split in SPLITS),
            seed=dataset["source"]["seed"],
            game=GAME,
            rate=TICS_PER_SECOND,
            levels=", ".join(f"{len(split_levels(split))} {split}" for split in SPLITS),
            decoy=f"{100 * DECOY:.0f}",
            distractors=", ".join(f"{100 * share:.0f} % with {count}" for count, share in enumerate(DISTRACTORS)),
            audible=f"{AUDIBLE_SNR:g}",
            classes=_markdown(class_table(manifest)),
            sheets="\n\n".join(sheets),
            neither=int((~manifest["audible"] & ~manifest["visible"]).sum()),
            ceilings=_markdown(_ceilings(dataset["ceilings"])),
            clips=made["clips"],
            failed=int(retries["tries"].sum()),
            restarts=made["engine_restarts"],
            version=dataset["source"]["version"],
            retries=_markdown(retries) if len(retries) else "No class needed one.",
        )
    )


def _ceilings(ceilings: dict[str, dict[str, float]]) -> pd.DataFrame:
    columns = {"audio": "sound alone (%)", "video": "picture alone (%)"}
    return pd.DataFrame(ceilings).T[list(columns)].rename_axis("split").rename(columns=columns).reset_index()


def _retries(retries: dict[str, dict[str, int]]) -> pd.DataFrame:
    """class, tries, reasons: the tries that did not work, a row for each class that had one."""
    rows = []
    for label, reasons in retries.items():
        ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        said = "; ".join(f"{reason} ({count})" for reason, count in ordered)
        rows.append((label, sum(reasons.values()), said))
    return pd.DataFrame(rows, columns=["class", "tries", "reasons"])


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def _markdown(table: pd.DataFrame) -> str:
    return table.to_markdown(index=False, disable_numparse=True)
