"""Freedoom-Sounds: the embedded data set of two-second first-person clips with sound, made from a seed.

A script plays each clip in a game engine (`freedoom_engine`), checks that its event really happened
(`freedoom_clip`), and mixes other sounds of the same game under it at a known signal-to-noise ratio
(`freedoom_sound`). Everything of a clip follows from its own seed, so the set is the same whatever the
number of worker processes, and can be continued after an interruption.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from mmtlib.data.freedoom_clip import CLASSES, ClipSpec, GenerationError, Studio
from mmtlib.data.freedoom_engine import SAMPLE_RATE, TICS_PER_SECOND, EngineError
from mmtlib.data.media import write_clip

NAME = "freedoom-sounds"
SPLITS = ("train", "val", "test")
MODULES = ("freedoom.py", "freedoom_clip.py", "freedoom_sound.py", "freedoom_engine.py")
STALL_SECONDS = 60.0
ATTEMPTS = 3  # engine processes that one clip may bring down
RECORDS = "records.jsonl"  # one line a clip: how it was made
COLUMNS = (
    *("clip_id", "path", "start", "end", "label", "split", "scene", "audible", "visible", "snr_db"),
    *("onset_s", "tries"),
)


def clip_specs(seed: int, clips_per_class: dict[str, int]) -> list[ClipSpec]:
    """All clips of a set: every class the same number of times in each split of `clips_per_class`.

    Raises:
        ValueError: a split is unknown or a number negative.
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


@functools.cache
def recipe_hash() -> str:
    """Hash of the code that makes clips: clips of another recipe are not taken over."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for name in MODULES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


def generate(out: Path, *, seed: int, clips_per_class: dict[str, int], workers: int = 0) -> pd.DataFrame:
    """Make the set in `out`: manifest.csv, dataset.json and clips/; returns the manifest.

    clips_per_class: split -> clips of each class. workers: engine processes (0: one per core). A clip
    that an earlier call with this seed and recipe finished is kept; the outcome does not depend on it.

    Raises:
        GenerationError: a clip could not be made, or an engine stalled or ended again and again on it.
        EngineError: the engine is missing or has no sound; the text says what to install.
        ValueError: see `clip_specs`.
    """
    out = Path(out)
    specs = clip_specs(seed, clips_per_class)
    parts = out / ".parts"
    (out / "clips").mkdir(parents=True, exist_ok=True)
    parts.mkdir(exist_ok=True)
    begun, key = time.monotonic(), f"{recipe_hash()}-{seed}"
    records = _known_records(out, key)
    todo = [spec for spec in specs if spec.clip_id not in records]
    pool = _Pool(out, key, todo, min(workers or os.cpu_count() or 1, max(len(todo), 1)))
    with contextlib.closing(pool.run()) as finished:  # an interruption ends the engines, too
        for done, record in enumerate(finished, 1):
            records[record["clip_id"]] = record
            pool.progress(done, len(todo))

    order = [spec.clip_id for spec in specs]
    rows = [records[clip_id] | {"start": None, "end": None} for clip_id in order]
    manifest = pd.DataFrame(rows, columns=list(COLUMNS))
    description = {
        "name": NAME,
        "classes": list(CLASSES),
        "class_list": "mmtlib.data.freedoom.CLASSES",
        "ceilings": ceilings(manifest),
        "generation": {
            "seed": seed,
            "recipe": recipe_hash(),
            "clips": len(rows),
            "retries": _retries([records[clip_id] for clip_id in order]),
            "engine_restarts": pool.restarts,
            "seconds": round(time.monotonic() - begun, 1),
        },
    }
    _write_text(out / "manifest.csv", manifest.to_csv(index=False))
    _write_text(out / "dataset.json", json.dumps(description, indent=1) + "\n")
    _write_text(out / RECORDS, "".join(json.dumps(records[clip_id]) + "\n" for clip_id in order))
    shutil.rmtree(parts)
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
    """Records of the clips in `out` that an earlier call finished with the same seed and recipe."""
    lines = (out / RECORDS).read_text().splitlines() if (out / RECORDS).is_file() else []
    lines += [file.read_text() for file in sorted((out / ".parts").glob("*.json"))]
    records = [json.loads(line) for line in lines]
    return {r["clip_id"]: r for r in records if r["key"] == key and (out / r["path"]).is_file()}


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


class _Pool:
    """Engine processes, one thread each, that share a queue of clips.

    An engine can stall inside a call or take its process down with it; both end the process (and with its
    session the engine itself), are counted, and give the clip to a new one, at most ATTEMPTS times.
    """

    def __init__(self, out: Path, key: str, specs: list[ClipSpec], workers: int) -> None:
        self.restarts = 0
        self._out, self._key, self._workers = out, key, workers if specs else 0
        self._todo: queue.SimpleQueue[ClipSpec] = queue.SimpleQueue()
        for spec in specs:
            self._todo.put(spec)
        self._done: queue.SimpleQueue[dict | Exception | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._begun = self._told = time.monotonic()

    def run(self) -> Iterator[dict]:
        threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(self._workers)]
        for thread in threads:
            thread.start()
        try:
            running = len(threads)
            while running:
                item = self._done.get()
                if item is None:
                    running -= 1
                elif isinstance(item, Exception):
                    raise item
                else:
                    yield item
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._told >= 10 or done == total:
            self._told = now
            print(f"{done}/{total} clips, {done / (now - self._begun):.1f} a second", flush=True)

    def _serve(self) -> None:
        worker: _Worker | None = None
        try:
            while not self._stop.is_set():
                try:
                    spec = self._todo.get_nowait()
                except queue.Empty:
                    break
                for _ in range(ATTEMPTS):
                    worker = worker or _Worker(self._out, self._key)
                    answer = worker.ask(spec, self._stop)
                    if answer is not None:
                        break
                    worker.end()
                    worker = None
                    if self._stop.is_set():
                        return
                    self.restarts += 1
                else:
                    raise GenerationError(
                        f"class {spec.label}, clip {spec.clip_id}, seed {spec.seed}: the engine stalled or "
                        f"ended {ATTEMPTS} times; see its output above"
                    )
                if "error" in answer:
                    kind = GenerationError if answer["kind"] == "GenerationError" else EngineError
                    raise kind(answer["error"])
                self.restarts += answer.pop("restarts")
                self._done.put(answer)
        except Exception as error:  # whatever it is, the thread that reads the results raises it
            self._done.put(error)
        finally:
            if worker is not None:
                worker.end()
            self._done.put(None)


class _Worker:
    """A process that makes clips: one line of JSON in, one out (`_work`)."""

    def __init__(self, out: Path, key: str) -> None:
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        code = "from mmtlib.data.freedoom import _work; _work()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, str(out.resolve()), key],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # so that the engine, its child, can be ended with it
        )

    def ask(self, spec: ClipSpec, stop: threading.Event) -> dict | None:
        """The record of the finished clip, or an error; None if the process ended, stalled or is to stop."""
        stdin, stdout = self._process.stdin, self._process.stdout
        try:
            stdin.write(json.dumps(asdict(spec)).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            return None
        deadline = time.monotonic() + STALL_SECONDS
        while time.monotonic() < deadline and not stop.is_set():
            if select.select([stdout], [], [], 0.5)[0]:
                line = stdout.readline()
                return json.loads(line) if line.endswith(b"\n") else None
        return None

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def _work() -> None:
    """A worker's process: reads specs from standard input until it closes, writes clips and records."""
    out, key = Path(sys.argv[1]), sys.argv[2]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the engine prints must not mix with the answers
    try:
        with Studio() as studio:
            before = 0
            for line in sys.stdin:
                record = _make(out, ClipSpec(**json.loads(line)), key, studio)
                print(json.dumps(record | {"restarts": studio.restarts - before}), file=answers)
                before = studio.restarts
    except Exception as error:
        print(json.dumps({"error": str(error), "kind": type(error).__name__}), file=answers)


def _make(out: Path, spec: ClipSpec, key: str, studio: Studio) -> dict:
    frames, pcm, facts = studio.render(spec)
    path = f"clips/{spec.clip_id}.mp4"
    write_clip(out / path, frames, TICS_PER_SECOND, pcm, SAMPLE_RATE)
    record = {"clip_id": spec.clip_id, "path": path, "label": spec.label, "split": spec.split, "key": key}
    record |= facts
    _write_text(out / ".parts" / f"{spec.clip_id}.json", json.dumps(record))
    return record
