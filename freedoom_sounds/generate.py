"""Freedoom-Sounds: the embedded data set of two-second first-person clips with sound, made from a seed.

A script plays each clip in a game engine (`freedoom_engine`), checks that its event really happened
(`freedoom_clip`), and mixes other sounds of the same game under it at a known signal-to-noise ratio
(`freedoom_sound`). Everything of a clip follows from its own seed, so the set is the same whatever the
number of worker processes, and can be continued after an interruption.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import shutil
import signal
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pandas as pd

from freedoom_sounds.clip import CLASSES, ClipSpec, GenerationError, Studio
from freedoom_sounds.engine import SAMPLE_RATE, TICS_PER_SECOND
from mmtlib import files
from mmtlib.data.manifest import COLUMNS as OWN_COLUMNS
from mmtlib.data.manifest import SPLITS, write_manifest
from mmtlib.data.media import write_clip

NAME = "freedoom-sounds"
VERSION = 1  # of the clips: raise it when a change of code changes what they hold
STALL_SECONDS = 60.0
ATTEMPTS = 3  # engine processes that one clip may bring down
RECORDS = "records.jsonl"  # one line a clip: how it was made
COLUMNS = (*OWN_COLUMNS, "scene", "audible", "visible", "snr_db", "onset_s", "tries")


def clip_specs(seed: int, clips_per_class: dict[str, int]) -> list[ClipSpec]:
    """All clips of a set: every class the same number of times in each split of `clips_per_class`.

    Raises ValueError if a split is unknown or a number negative.
    """
    specs = []
    for split, count in clips_per_class.items():
        if split not in SPLITS or count < 0:
            raise ValueError(f"clips_per_class: {split}: {count}: give one of {SPLITS} and a count from 0 up")
        for label in CLASSES:
            for index in range(count):
                digest = hashlib.sha256(f"{seed}/{split}/{label}/{index}".encode()).digest()
                clip_seed = int.from_bytes(digest[:7], "big")
                specs.append(ClipSpec(f"{split}-{label}-{index:04d}", label, split, clip_seed))
    return specs


def generate(out: Path, *, seed: int, clips_per_class: dict[str, int], workers: int = 0) -> pd.DataFrame:
    """Make the set in `out`: manifest.csv, dataset.json and clips/; returns the manifest.

    clips_per_class: split -> clips of each class. workers: engine processes (0: one per core). A clip that an
    earlier call with this seed and version finished is kept; the outcome does not depend on it.

    Raises GenerationError if a clip could not be made, or an engine stalled or ended again and again on it;
    EngineError if the engine is missing or has no sound (the text says what to install); ValueError like
    `clip_specs`.
    """
    out = Path(out)
    specs = clip_specs(seed, clips_per_class)
    (out / "clips").mkdir(parents=True, exist_ok=True)
    (out / ".parts").mkdir(exist_ok=True)
    begun, key = time.monotonic(), f"{VERSION}-{seed}"
    known = _known_records(out, key)
    todo = [spec for spec in specs if spec.clip_id not in known]
    pool = _Pool(out, key, workers or os.cpu_count() or 1)
    known |= {record["clip_id"]: record for record in pool.run(todo)}

    records = [known[spec.clip_id] for spec in specs]
    manifest = pd.DataFrame(records).reindex(columns=COLUMNS)
    description = {
        "name": NAME,
        "classes": list(CLASSES),
        "class_list": NAME,
        "ceilings": ceilings(manifest),
        "source": {"version": VERSION, "seed": seed, "clips_per_class": dict(clips_per_class)},
        "generation": {
            "clips": len(records),
            "retries": _retries(records),
            "engine_restarts": pool.restarts,
            "seconds": round(time.monotonic() - begun, 1),
        },
    }
    write_manifest(manifest, out / "manifest.csv")
    files.write_text(out / "dataset.json", json.dumps(description, indent=1) + "\n")
    files.write_text(out / RECORDS, "".join(json.dumps(record) + "\n" for record in records))
    shutil.rmtree(out / ".parts")
    for file in set((out / "clips").iterdir()) - {out / path for path in manifest["path"]}:
        file.unlink()  # of another seed or size
    return manifest


def ceilings(manifest: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Best top-1 (percent) that one sense alone can reach in each split.

    Every clip whose event is audible can be named by sound; of the others a guess of their commonest
    class is the best there is. Likewise for pictures.
    """
    found: dict[str, dict[str, float]] = {}
    for split, rows in manifest.groupby("split", sort=False):
        found[str(split)] = {}
        for sense, column in (("audio", "audible"), ("video", "visible")):
            can = rows[column].astype(bool)
            guess = rows.loc[~can, "label"].value_counts().max() if (~can).any() else 0
            found[str(split)][sense] = round(100 * (int(can.sum()) + int(guess)) / len(rows), 1)
    return found


def _retries(records: list[dict]) -> dict[str, dict[str, int]]:
    """class -> reason -> tries that did not work."""
    counts: dict[str, Counter] = {label: Counter() for label in CLASSES}
    for record in records:
        counts[record["label"]].update(record["failed"])
    return {label: dict(count) for label, count in counts.items() if count}


def _known_records(out: Path, key: str) -> dict[str, dict]:
    """Records of the clips in `out` that an earlier call finished with the same seed and version."""
    lines = (out / RECORDS).read_text().splitlines() if (out / RECORDS).is_file() else []
    lines += [file.read_text() for file in sorted((out / ".parts").glob("*.json"))]
    records = [json.loads(line) for line in lines]
    return {r["clip_id"]: r for r in records if r["key"] == key and (out / r["path"]).is_file()}


class _Pool:
    """Engine processes that share the clips, and a thread for each that waits for it.

    An engine can stall inside a call or take its process down with it; both end the process (and with its
    session the engine itself), are counted, and give the clip to a new one, at most ATTEMPTS times.
    """

    def __init__(self, out: Path, key: str, workers: int) -> None:
        self.restarts = 0
        self._out, self._key, self._workers = out, key, workers
        self._stop = threading.Event()
        self._idle: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()  # None: one that is yet to be started
        for _ in range(workers):
            self._idle.put(None)

    def run(self, specs: list[ClipSpec]) -> list[dict]:
        """The clips' records in any order; prints a line of progress now and then."""
        begun = told = time.monotonic()
        records = []
        with ThreadPoolExecutor(self._workers) as threads:
            try:
                for future in as_completed([threads.submit(self._make, spec) for spec in specs]):
                    records.append(future.result())
                    done, now = len(records), time.monotonic()
                    if now - told >= 10 or done == len(specs):
                        told = now
                        print(f"{done}/{len(specs)} clips, {done / (now - begun):.1f} a second", flush=True)
            finally:  # an error or an interruption ends the engines, too
                self._stop.set()
                threads.shutdown(cancel_futures=True)
                for _ in range(self._workers):
                    if worker := self._idle.get():
                        worker.end()
        return records

    def _make(self, spec: ClipSpec) -> dict:
        worker = self._idle.get()
        try:
            for _ in range(ATTEMPTS):
                worker = worker or _Worker(self._out, self._key)
                answer = worker.ask(spec, self._stop)
                if isinstance(answer, Exception):
                    raise answer
                if answer is not None:
                    self.restarts += answer.pop("restarts")
                    return answer
                worker.end()
                worker = None
                if self._stop.is_set():
                    raise CancelledError
                self.restarts += 1
        finally:
            self._idle.put(worker)
        raise GenerationError(
            f"class {spec.label}, clip {spec.clip_id}, seed {spec.seed}: the engine stalled or "
            f"ended {ATTEMPTS} times; see its output above"
        )


class _Worker:
    """A process that makes clips: takes a ClipSpec, gives the clip's record (`_work`)."""

    def __init__(self, out: Path, key: str) -> None:
        self._pipe, theirs = get_context("spawn").Pipe()
        self._process = get_context("spawn").Process(target=_work, args=(theirs, out.resolve(), key))
        self._process.start()
        theirs.close()  # so that the pipe ends when the process does

    def ask(self, spec: ClipSpec, stop: threading.Event) -> dict | Exception | None:
        """The record of the finished clip, or an error; None if the process ended, stalled or is to stop."""
        deadline = time.monotonic() + STALL_SECONDS
        with contextlib.suppress(EOFError, OSError):
            self._pipe.send(spec)
            while time.monotonic() < deadline and not stop.is_set():
                if self._pipe.poll(0.5):
                    return self._pipe.recv()
        return None

    def end(self) -> None:
        self._pipe.close()
        self._process.join(timeout=5)  # an idle one ends by itself and removes its temporary files
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()  # where it had not come to start its session
        self._process.join()


def _work(pipe: Connection, out: Path, key: str) -> None:
    """A worker's process: takes specs until the pipe is closed, writes clips and records."""
    os.setsid()  # so that the engine, its child, can be ended with it
    try:
        with Studio() as studio:
            while True:
                before = studio.restarts
                record = _make(out, pipe.recv(), key, studio)
                pipe.send(record | {"restarts": studio.restarts - before})
    except (EOFError, BrokenPipeError):  # the pipe was closed
        return
    except Exception as error:
        pipe.send(error)


def _make(out: Path, spec: ClipSpec, key: str, studio: Studio) -> dict:
    frames, pcm, facts = studio.render(spec)
    path = f"clips/{spec.clip_id}.mp4"
    write_clip(out / path, frames, TICS_PER_SECOND, pcm, SAMPLE_RATE)
    record = {"clip_id": spec.clip_id, "path": path, "label": spec.label, "split": spec.split, "key": key}
    record |= facts
    files.write_text(out / ".parts" / f"{spec.clip_id}.json", json.dumps(record))
    return record
