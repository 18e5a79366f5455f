"""Made-up sets in exactly the official layout of each source; a handful of files, each with one known flaw."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from freedoom_sounds.files import write_clip
from mmtlib.config import ROOT
from mmtlib.data.sources.listing import Listing, list_media
from mmtlib.data.sources.survey import list_clips, survey


def listed(source: str, annotations: Path | None, media: Path, class_list: str | list[str] | None = None) -> Listing:
    """What a source lists, no file looked into."""
    return list_clips(source, annotations, list_media(media), class_list=class_list, val_share=0.05)


def build_manifest(source: str, annotations: Path | None, media: Path, **options) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The manifest of a data set and its coverage."""
    found = survey(source, annotations, media, **options)
    return found.manifest, found.coverage


def real_files(name: str, kind: str = "realdata") -> Path:
    """The folder of a public set on this machine; skips the test where there is none."""
    folder = ROOT.parent / "shared" / kind / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not on this machine")
    return folder


def csv_text(rows: Sequence[Sequence], **options) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", **options).writerows(rows)
    return text.getvalue()


def clip_bytes(folder: Path, seconds: float, picture: bool = True, sound: bool = True) -> bytes:
    """An mp4 of moving noise and noise (8 fps, 32 x 32)."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (round(seconds * 8), 32, 32, 3), dtype=np.uint8) if picture else None
    pcm = (3000 * rng.standard_normal((round(seconds * 16000), 1))).astype(np.int16) if sound else None
    write_clip(folder / "made.mp4", frames, 8, pcm, 16000)
    data = (folder / "made.mp4").read_bytes()
    (folder / "made.mp4").unlink()
    return data


def flawed(folder: Path, seconds: float) -> dict[str, bytes | None]:
    """Flaw -> bytes of a file that has it; None for a file that is not there."""
    good = clip_bytes(folder, seconds)
    return {
        "good": good,
        "missing": None,
        "truncated": good[: len(good) // 2],
        "no index": good[: good.index(b"moov") - 4] + good[good.index(b"mdat") - 4 :],
        "empty": b"",
        "a page": b"<html>Video unavailable</html>",
        "silent": clip_bytes(folder, seconds, sound=False),
        "blind": clip_bytes(folder, seconds, picture=False),
        "short": clip_bytes(folder, 0.6 * seconds),
        "long": clip_bytes(folder, 2 * seconds),
    }


def put(path: Path, data: bytes | None) -> None:
    if data is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def video_id(number: int) -> str:
    """An id as YouTube makes them, with a dash in front now and then."""
    return f"{'-' if number % 3 == 0 else 'a'}B_{number:08d}"


# How each flaw is counted: found, broken, silent, blind, too_short.
COUNTED = {
    "good": (1, 0, 0, 0, 0),
    "missing": (0, 0, 0, 0, 0),
    "truncated": (1, 1, 0, 0, 0),
    "no index": (1, 1, 0, 0, 0),
    "empty": (1, 1, 0, 0, 0),
    "a page": (1, 1, 0, 0, 0),
    "silent": (1, 0, 1, 0, 0),
    "blind": (1, 0, 0, 1, 0),
    "short": (1, 0, 0, 0, 1),
    "long": (1, 0, 0, 0, 0),
}


def counts(flaws: Sequence[str]) -> list[int]:
    """listed, found, broken, silent, blind, too_short, in_train of clips with these flaws."""
    return [len(flaws), *np.sum([COUNTED[flaw] for flaw in flaws], axis=0).tolist(), 0] if flaws else [0] * 7
