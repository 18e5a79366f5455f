"""Freedoom-Sounds: the embedded data set of two-second first-person clips with audio, made from a seed.

Everything of a clip follows from its own seed, so the set is the same whatever the number of processes, and can be
continued after an interruption. What needs time to load is imported where it is used.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from freedoom_sounds.classes import CLASS_LISTS, NAME, PAIRS, clip_specs

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1  # of the clips: raise it when a change of code changes what they hold
RECORDS = "records.jsonl"  # one line a clip: how it was made
COLUMNS = ["clip_id", "path", "start", "end", "label", "split"]
COLUMNS += ["scene", "audible", "visible", "snr_db", "onset_s", "tries"]
PAIR_COLUMNS = ["seen", "heard", "apart_s"]  # of clips of PAIRS: the events, and by how much the sound is later


def generate(
    out: Path, *, seed: int, clips_per_class: dict[str, int], class_list: str = NAME, workers: int = 0
) -> pd.DataFrame:
    """Make the set in `out`: manifest.csv, dataset.json and clips/; returns the manifest.

    clips_per_class: split -> clips of each class of `class_list`, a key of CLASS_LISTS. workers: engine processes (0:
    one for each core). A clip that an earlier call like this one finished is kept; the outcome does not depend on it.

    Raises GenerationError if a clip could not be made, or an engine stalled or ended again and again on it;
    EngineError if the engine does not start or has no audio; ValueError like `clip_specs`.
    """
    import pandas as pd

    from freedoom_sounds import files, processes, studio

    out = Path(out).resolve()
    specs = clip_specs(seed, clips_per_class, class_list)
    (out / "clips").mkdir(parents=True, exist_ok=True)
    begun, key, restarts = time.monotonic(), f"{VERSION}-{seed}" + f"-{class_list}" * (class_list != NAME), 0
    known = _known_records(out, key)
    # Written anew, since an interruption may have cut the last line off.
    files.write_text(out / RECORDS, "".join(f"{json.dumps(record)}\n" for record in known.values()))
    todo = [spec for spec in specs if spec.clip_id not in known]
    work = functools.partial(studio.make_clip, out, key)
    made = processes.run(work, todo, workers=workers or os.cpu_count() or 1)
    with (out / RECORDS).open("a", buffering=1, encoding="utf-8") as file, contextlib.closing(made):
        for done, (record, attempt) in enumerate(made, start=1):
            restarts += attempt - 1
            known[record["clip_id"]] = record
            file.write(f"{json.dumps(record)}\n")
            if done % max(len(todo) // 10, 1) == 0 or done == len(todo):
                print(f"{done}/{len(todo)} clips, {done / (time.monotonic() - begun):.1f} a second", flush=True)

    records = [known[spec.clip_id] for spec in specs]
    retries = {label: Counter() for label in CLASS_LISTS[class_list]}  # class -> reason -> tries that did not work
    for record in records:
        retries[record["label"]].update(record["failed"])
    pairs = [label for label in CLASS_LISTS[class_list] if label in PAIRS]
    manifest = pd.DataFrame(records).reindex(columns=COLUMNS + PAIR_COLUMNS * bool(pairs))
    description = {
        "name": NAME,
        "classes": list(CLASS_LISTS[class_list]),
        "class_list": class_list,
        "pairs": [pairs[first : first + 2] for first in range(0, len(pairs), 2)],
        "ceilings": ceilings(manifest),
        "source": {"version": VERSION, "seed": seed, "clips_per_class": dict(clips_per_class)},
        "generation": {
            "clips": len(records),
            "retries": {label: counts for label, counts in retries.items() if counts},
            "engine_restarts": restarts,
            "seconds": round(time.monotonic() - begun, 1),
        },
    }
    files.write_text(out / "manifest.csv", manifest.to_csv(index=False, lineterminator="\n"))
    files.write_text(out / "dataset.json", json.dumps(description, indent=1) + "\n")
    files.write_text(out / RECORDS, "".join(f"{json.dumps(record)}\n" for record in records))
    for file in set((out / "clips").iterdir()) - {out / path for path in manifest["path"]}:
        file.unlink()  # of another seed or size
    return manifest


def ceilings(manifest: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Best top-1 (percent) in each split of audio alone, of video alone and, where there are pairs, of two more.

    An event that is heard is one of some classes, of which the commonest is the best guess; so is silence. Likewise for
    video. Both modalities tell all ("av"); "sum", the best sum of two unimodal logits by cross-entropy, does, too, but
    for which one of a pair: with balanced margins its optimum there is an even guess.
    """
    found: dict[str, dict[str, float]] = {}
    for split, rows in manifest.groupby("split", sort=False):
        found[str(split)] = {}
        pairs = rows["label"].isin(PAIRS)
        for modality, told, event in (("audio", "audible", "heard"), ("video", "visible", "seen")):
            content = rows["label"].where(rows[told].astype(bool), "")
            content = rows[event].where(pairs, content) if pairs.any() else content
            right = rows.groupby(content)["label"].agg(lambda labels: labels.value_counts().max()).sum()
            found[str(split)][modality] = round(100 * int(right) / len(rows), 1)
        if pairs.any():
            found[str(split)] |= {"sum": round(100 * (1 - pairs.mean() / 2), 1), "av": 100.0}
    return found


def _known_records(out: Path, key: str) -> dict[str, dict]:
    """Records of the clips in `out` that an earlier call finished with the same seed and version."""
    known = {}
    for line in (out / RECORDS).read_text(encoding="utf-8").splitlines() if (out / RECORDS).is_file() else []:
        with contextlib.suppress(ValueError):  # a line that was cut off
            record = json.loads(line)
            if record["key"] == key and (out / record["path"]).is_file():
                known[record["clip_id"]] = record
    return known
