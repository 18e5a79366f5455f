"""Small made-up sets in exactly the official layout, whose every flaw is known: real mp4 files of moving patterns.

Each function writes a set to where its profile (`given`) looks for it below `root` and returns, for each clip listed,
what is wrong with it: "", missing, broken, silent or too_short.
"""

import csv
import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from freedoom_sounds.files import write_clip
from mmtlib.config import Download
from mmtlib.data.sources.listing import class_names, hold_out

HOSTILE = "--; rm -rf $HOME; `id` 'quoted' \"é\" %s [-rf_--help_].mp4"
"""A name that yt-dlp might leave, of a video whose id looks like an option."""


def clip(folder: Path, kind: int, seconds: float, sound: bool = True) -> bytes:
    """An mp4 of 5 frames a second, 48 x 32: a bar that moves and a tone, both by `kind`, and noise."""
    rng = np.random.default_rng(kind)
    frames = rng.integers(0, 80, (round(5 * seconds), 32, 48, 3), dtype=np.uint8)
    for number, frame in enumerate(frames):
        frame[:, (5 * number * (kind + 1)) % 44 :][:, :4, kind % 3] = 250
    time = np.arange(round(16000 * seconds)) / 16000
    pcm = 8000 * np.sin(2 * np.pi * 300 * (kind + 1) * time) + 800 * rng.standard_normal(len(time))
    write_clip(folder / "made.mp4", frames, 5, pcm.astype(np.int16)[:, None] if sound else None, 16000)
    data = (folder / "made.mp4").read_bytes()
    (folder / "made.mp4").unlink()
    return data


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def put_csv(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def put_clips(media: Path, files: dict[str, str], kinds: dict[str, int]) -> None:
    """Ten-second clips under their names, each with its flaw."""
    media.mkdir(parents=True, exist_ok=True)
    whole = {kind: clip(media, kind, 10) for kind in set(kinds.values())}
    for name, flaw in files.items():
        good = whole[kinds[name]]
        made = {
            "": good,
            "broken": good[: len(good) // 4],
            "silent": clip(media, kinds[name], 10, sound=False) if flaw == "silent" else b"",
            "too_short": clip(media, kinds[name], 0.4) if flaw == "too_short" else b"",
        }
        if flaw != "missing":
            put(media / name, made[flaw])


def held_out(name: str, given: Download) -> bool:
    """Whether a profile takes this train clip, or video, for validation."""
    return bool(hold_out(pd.Series([name]), given.val_share)[0])


def video_id(number: int, ending: str, is_val: bool, given: Download) -> str:
    """A YouTube id whose clip is of the split wanted."""
    tried = (f"-{number:02d}_{more:04d}aZ-" for more in itertools.count())
    return next(video for video in tried if held_out(video + ending, given) == is_val)


def vggsound(root: Path, given: Download) -> dict[str, str]:
    """100 clips: 5 missing, 2 truncated, 2 silent and 1 of the wrong length, in train and test; 4 classes of 309."""
    labels = ["male speech, man speaking", *class_names("vggsound-309")[7::100]][:4]
    flaws = {10: "missing", 11: "broken", 12: "silent", 20: "missing", 31: "missing"}
    flaws |= {85: "missing", 86: "broken", 87: "silent", 88: "too_short", 95: "missing"}
    rows, files, kinds, found = [], {}, {}, {}
    for number in range(100):
        start = 0 if number == 90 else 2 * (number % 30)
        ending = f"_{start:06d}"
        video = "-rf_--help_" if number == 90 else video_id(number, ending, number < 4, given)
        name = HOSTILE if number == 90 else f"{video}{ending}.mp4"
        rows.append((video, start, labels[number % 4], "test" if number >= 80 else "train"))
        found[video + ending] = files[name] = flaws.get(number, "")
        kinds[name] = number % 4
    put_csv(root / given.annotations, rows)
    put_clips(root / given.media, files, kinds)
    return found


def kinetics_sounds(root: Path, given: Download) -> dict[str, str]:
    """48 clips of 3 classes of the list, and some of classes that are in none."""
    labels = ["playing drums", "tapping pen", "shuffling cards", "abseiling"]
    flaws = {3: "missing", 5: "broken", 8: "silent", 41: "missing", 42: "broken", 45: "silent", 46: "too_short"}
    lists = {"train.csv": range(40), "val.csv": range(40, 64)}
    files, kinds, found = {}, {}, {}
    for name, numbers in lists.items():
        rows = [("label", "youtube_id", "time_start", "time_end", "split")]
        for number in numbers:
            label, ending = labels[number % 4], f"_{number:06d}_{number + 10:06d}"
            video = video_id(number, ending, number < 3, given)
            rows.append((label, video, number, number + 10, name.removesuffix(".csv")))
            if label != "abseiling":
                file = f"{label}/{video}{ending}.mp4"
                found[video + ending] = files[file] = flaws.get(number, "")
                kinds[file] = number % 4
        put_csv(root / given.annotations / name, rows)
    put_clips(root / given.media, files, kinds)
    return found


def epic_kitchens(root: Path, given: Download) -> dict[str, str]:
    """60 segments of 12 videos of 20 s, one each missing, cut off and without sound; one segment outlasts its video."""
    header = (
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,"
        "stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
    )
    for head, count in (("verb", 97), ("noun", 300)):
        rows = [(number, f"{head}{number}:made-up", f"['{head}{number}']", "kind") for number in range(count)]
        put_csv(
            root / given.annotations / f"EPIC_100_{head}_classes.csv", [("id", "key", "instances", "category"), *rows]
        )
    names = [f"P{person:02d}_{number:02d}" for person in range(1, 9) for number in range(1, 20)]
    val = [name for name in names if held_out(name, given)][:2]
    others = [name for name in names if name not in val]
    train, test = others[:6] + val, others[50:54]
    flaws = {train[1]: "missing", train[2]: "broken", train[3]: "silent", test[1]: "missing", test[2]: "silent"}
    folder, found = root / given.media, {}
    folder.mkdir(parents=True)
    for split, videos in (("train", train), ("validation", test)):
        rows = [next(csv.reader([header]))]
        for place, video in enumerate(videos):
            flaw = flaws.get(video, "")
            if flaw != "missing":
                data = clip(folder, place, 20, sound=flaw != "silent")
                put(folder / video[:3] / f"{video}.MP4", data[: len(data) // 20] if flaw == "broken" else data)
            for number in range(5):
                late = video == test[3] and number == 4
                start, length = (19.6, 2.4) if late else (4 * number + 0.25, 1.1 + 0.5 * number)  # to 19.35 s at most
                times = [f"00:00:{seconds:05.2f}" for seconds in (start, start, start + length)]
                verb, noun = (place + number) % 3, 7 * ((place + number) % 4)
                found[f"{video}_{number}"] = "too_short" if late else flaw
                rows.append((f"{video}_{number}", video[:3], video, *times, 1, 2, "do it, now", "do", verb))
                rows[-1] += ("it", noun, "['it']", f"[{noun}]")
        put_csv(root / given.annotations / f"EPIC_100_{split}.csv", rows)
    return found
