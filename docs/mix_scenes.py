"""Scenes of two sounds each out of UrbanSound8K, both named: a small set of clips with several labels.

`python docs/mix_scenes.py data/raw/UrbanSound8K data/raw/UrbanSound8K-scenes` reads the folders fold1, fold2, ... that
are there (the study scenes was made of folds 1, 2 and 10) and writes as many scenes as there are clips and scenes.csv
(path, labels, split). Every clip is heard in two scenes, with two other clips of the same split: fold 10 is test, of
the recordings in the other folds 15 % are val. The second sound is at most 5 dB softer or louder than the first. All
of it follows from the names of the files.
"""

import csv
import random
import sys
import wave
import zlib
from pathlib import Path

import numpy as np

from mmtlib.data.media import MediaError, read_clip
from mmtlib.data.sources.urbansound8k import CLASSES

HZ, VAL_SHARE, TEST = 16_000, 0.15, "fold10"


def split_of(fold: str, recording: str) -> str:
    """test, val or train; recordings stay whole."""
    if fold == TEST:
        return "test"
    return "val" if zlib.crc32(recording.encode()) / 2**32 < VAL_SHARE else "train"


def level(sound: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(sound**2)))


def mixed(first: np.ndarray, second: np.ndarray, gain_db: float) -> np.ndarray:
    """The sum, as long as the longer one, the second at `gain_db` above the first; at most at full scale."""
    scene = np.zeros(max(len(first), len(second)), np.float32)
    scene[: len(first)] += first
    scene[: len(second)] += second * (level(first) / level(second) * 10 ** (gain_db / 20))
    return scene / max(1.0, float(np.abs(scene).max()))


def read(path: Path) -> np.ndarray | None:
    """The sound; None (and a note) where there is none or the file does not read."""
    try:
        sound = read_clip(path, num_frames=1, size=16, sample_rate=HZ, seconds=None, modality="audio").waveform
    except MediaError as error:
        print(f"note: left out, {error}")
        return None
    if sound is None or level(sound) < 1e-4:
        print(f"note: left out, {path} is silent")
        return None
    return sound


def main(source: Path, target: Path) -> None:
    clips: dict[str, list[Path]] = {"train": [], "val": [], "test": []}
    for path in sorted(source.rglob("fold*/*")):
        recording, *rest = path.stem.split("-")
        if len(rest) == 3:
            clips[split_of(path.parent.name, recording)].append(path)
    if empty := [split for split, paths in clips.items() if not paths]:
        sys.exit(f"{source} has no clip for {', '.join(empty)}; give the folder that holds fold1, ..., fold10.")
    rows = [("path", "labels", "split")]
    for split, paths in clips.items():
        sounds = {path: sound for path in paths if (sound := read(path)) is not None}
        draws, order = random.Random(split), list(sounds)
        draws.shuffle(order)
        for number, (one, other) in enumerate(zip(order, order[1:] + order[:1], strict=True)):
            scene = mixed(sounds[one], sounds[other], draws.uniform(-5, 5))
            name = f"{split}/{number:04d}.wav"
            (target / split).mkdir(parents=True, exist_ok=True)
            with wave.open(str(target / name), "wb") as file:
                file.setparams((1, 2, HZ, 0, "NONE", ""))
                file.writeframes(np.rint(32767 * scene).astype("<i2").tobytes())
            labels = sorted({CLASSES[int(path.stem.split("-")[1])] for path in (one, other)})
            rows.append((name, "|".join(labels), split))
        print(f"{split}: {len(sounds)} scenes of {len(paths)} clips")
    with (target / "scenes.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python docs/mix_scenes.py URBANSOUND8K SCENES")
    main(*map(Path, sys.argv[1:]))
