"""Damaged files of every container: each is read or is one broken clip, said in one sentence; none ends the reader.

FUZZ says how many files of each container there are (`make faults`: 1,000).
"""

import itertools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from odd_media import Track, encode, grey, tone

from mmtlib.data.decode import Settings, Task, decode
from mmtlib.data.probe import look

COUNT = int(os.environ.get("FUZZ", "20"))
CODECS = {
    "mp4": ("libx264", "aac"),
    "mkv": ("libx264", "libmp3lame"),
    "webm": ("libvpx", "libopus"),
    "avi": ("mpeg4", "libmp3lame"),
    "mpg": ("mpeg2video", "mp2"),
    "ts": ("libx264", "aac"),
    "flv": ("flv1", "libmp3lame"),
    "mp3": (None, "libmp3lame"),
    "aac": (None, "aac"),
    "flac": (None, "flac"),
    "ogg": (None, "libopus"),
    "wav": (None, "pcm_s16le"),
}


def damaged(data: bytes, seed: int) -> bytes:
    """The bytes with some flipped, a block zeroed, a block left out, or the end cut off; half of it in the header."""
    rng = np.random.default_rng(seed)
    found = np.frombuffer(data, np.uint8).copy()
    end = len(found) if seed % 2 else min(len(found), 1024)
    if seed % 7 == 0:
        return found[: rng.integers(1, len(found))].tobytes()
    if seed % 5 == 0:
        start, length = rng.integers(0, end), rng.integers(1, 400)
        return np.delete(found, slice(start, start + length)).tobytes()
    if seed % 3 == 0:
        start, length = rng.integers(0, end), rng.integers(1, 400)
        found[start : start + length] = 0
        return found.tobytes()
    places = rng.integers(0, end, rng.integers(1, 20))
    found[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
    return found.tobytes()


def read(path: Path, start: float | None, end: float | None) -> list[tuple[str, str]]:
    """Status and reason, as download and as features tell them."""
    settings = Settings(sample_rate=16000, mel_bins=16, window_ms=25, hop_ms=10, frames=4, size=16, seconds=1.0)
    verdict, made = look(str(path)), decode(settings, Task(path, start, end, False))
    return [(verdict.status, verdict.reason), (made.status, made.reason)]


@pytest.fixture(scope="module")
def reader() -> Iterator[ProcessPoolExecutor]:
    """A process of its own: a decoder that crashes ends the test, not all tests."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("suffix", CODECS)
def test_a_damaged_file_is_read_or_is_one_broken_clip(tmp_path, reader, suffix):
    video, audio = CODECS[suffix]
    tracks = [Track(video, 25, grey(np.arange(50) * 5))] if video else []
    rate = {"libopus": 48000, "libmp3lame": 22050}.get(audio, 16000)
    data = encode(tmp_path / f"whole.{suffix}", *tracks, Track(audio, rate, tone(2.0, rate, 500))).read_bytes()
    jobs = {}
    for seed in range(COUNT):
        path = tmp_path / f"{seed}.{suffix}"
        path.write_bytes(damaged(data, seed))
        jobs[path] = reader.submit(read, path, *((0.6, 1.4) if seed % 4 == 0 else (None, None)))
    for path, job in jobs.items():
        check(path, job.result(timeout=60), ("ok", "used", "broken"))


def check(path: Path, found: list[tuple[str, str]], known: tuple[str, ...]) -> None:
    """Each status is a known one, and what is broken is said in one sentence that names the file."""
    for status, reason in found:
        assert status in known, (path, status, reason)
        if status == "broken":
            assert reason.startswith(str(path)), reason
            assert "\n" not in reason
            assert reason.endswith("."), reason


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mp3", "ts"])
def test_a_file_that_is_replaced_while_it_is_read_is_one_clip_at_most(tmp_path, reader, suffix):
    """Written over in place, and by renaming another over it, as fast as can be."""
    video, audio = CODECS[suffix]
    rate, path, done = {"libmp3lame": 22050}.get(audio, 16000), tmp_path / f"a.{suffix}", threading.Event()
    contents = []
    for shade, hz in ((5, 500), (3, 900)):
        tracks = [Track(video, 25, grey(np.arange(50) * shade))] if video else []
        contents.append(encode(path, *tracks, Track(audio, rate, tone(2.0, rate, hz))).read_bytes())
    contents += [contents[0][: len(contents[0]) // 2], b"", contents[1] + contents[0]]

    def replace() -> None:
        other = tmp_path / "other"
        for number, content in enumerate(itertools.cycle(contents)):
            if done.is_set():
                return
            (other if number % 2 else path).write_bytes(content)
            if number % 2:
                other.replace(path)

    replacing = threading.Thread(target=replace)
    replacing.start()
    try:
        found = [reader.submit(read, path, None, None).result(timeout=60) for _ in range(2 * COUNT)]
    finally:
        done.set()
        replacing.join()
    for one in found:
        check(path, one, ("ok", "used", "broken", "missing"))
    assert len({status for one in found for status, _ in one}) > 1  # it did change
    path.write_bytes(contents[0])
    assert [status for status, _ in read(path, None, None)] == ["ok", "used"]
