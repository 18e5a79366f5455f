"""Look into media files once: how long they are, what streams they have, and whether they are whole.

Nothing is decoded: a file that was cut off while it was fetched lacks its index or its last packets, and that
takes its header and its tail to see. Damage in the middle shows only when the features stage decodes the file.

`python -m mmtlib.data.probe FOLDER [--shard 0/4]` looks into all media files below a folder ahead of stage
download, on as many machines as see the same folder and cache.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import av
import pandas as pd

from mmtlib import config
from mmtlib import files
from mmtlib.data.media import CUT_OFF_S, MediaError, describe, locate, open_media
from mmtlib.data.sources.listing import SourceError, list_media

_TAIL_S = 2.0  # how much of a file's end is read, at least: from the key frame before
_CHUNK = 16  # files per task of a worker
_SAVE_S = 30.0


class Verdict(NamedTuple):
    """What is known of a file; a missing or broken one has length 0 and no stream."""

    status: str  # ok, missing or broken
    reason: str = ""
    duration: float = 0.0  # s
    has_audio: bool = False
    has_video: bool = False


_Key = tuple[str, int, int]  # path, bytes, time of change in ns


def probe(
    names: Iterable[str | os.PathLike], *, cache: Path | None = None, workers: int = 0, shard: tuple[int, int] = (0, 1)
) -> pd.DataFrame:
    """A row for each different path, in order: path, status (ok, missing, broken), reason, duration (s), has_audio,
    has_video.

    `cache` is a folder in which verdicts are kept by path, size and time of change; every file in it is read, so
    that shards done on several machines need no merging. `workers` processes (0: one a core) look at the files.
    shard (i, n): only every n-th path from the i-th. Raises SourceError for settings out of range or where a
    worker dies.
    """
    index, count = shard
    if not 0 <= index < count or workers < 0:
        raise SourceError(f"shard {index}/{count} with {workers} workers: give 0 <= i < n, and 0 or more workers.")
    verdicts = dict.fromkeys(list(dict.fromkeys(map(str, names)))[index::count], Verdict("missing", "does not exist"))
    known = {} if cache is None else _load(cache)
    fresh: list[_Key] = []
    for name in verdicts:
        try:
            place = locate(Path(name))
        except MediaError as error:
            verdicts[name] = Verdict("broken", str(error))
            continue
        if place is None:
            continue
        key = (name, place.size, place.mtime_ns)
        if key in known:
            verdicts[name] = known[key]
        else:
            fresh.append(key)
    begin = saved = time.monotonic()
    try:
        for done, (key, verdict) in enumerate(zip(fresh, _run(fresh, workers), strict=True), start=1):
            verdicts[key[0]] = known[key] = verdict
            if time.monotonic() - saved > _SAVE_S:
                saved = time.monotonic()
                print(f"probe: {done}/{len(fresh)} files, {done / (saved - begin):.0f} files/s", flush=True)
                _save(cache, known, shard)
    finally:  # an interrupted call has not looked in vain
        if fresh:
            _save(cache, known, shard)
    return pd.DataFrame(verdicts.values(), columns=Verdict._fields).assign(path=list(verdicts))


def look(name: str) -> Verdict:
    """The verdict on one file that exists."""
    try:
        with open_media(Path(name)) as container:
            return _verdict(name, container)
    except MediaError as error:
        return Verdict("broken", str(error))
    except (av.error.FFmpegError, OSError) as error:
        return Verdict("broken", f"{name} does not read ({error.strerror}); fetch it again or drop its row.")


def _verdict(name: str, container: av.container.InputContainer) -> Verdict:
    """The bounds are those of media.read_clip, so that both call the same files cut off."""
    video, audio, ends, origin, last = describe(name, container)
    if last <= origin:
        return Verdict("broken", f"{name} does not say how long it is; fetch it again or drop its row.")
    tail = last - _TAIL_S
    if tail > origin:
        container.seek(int(tail * av.time_base))
    reached = dict.fromkeys(ends, -math.inf)
    newest: dict[av.stream.Stream, av.Packet] = {}
    early = ""
    for packet in container.demux(list(ends)):
        if packet.size:
            newest[packet.stream] = packet
            if packet.is_corrupt and packet.stream is video:  # sound is so marked in a WAV of no declared length
                early = "video"
        if packet.pts is not None:
            end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
            reached[packet.stream] = max(reached[packet.stream], end)
    if audio in newest:
        newest[audio].decode()  # a packet of FLAC that is cut off does not decode
    # A stream that is over before the tail cannot be judged by it; one without a length is judged by the file's.
    due = {stream: end for stream, end in ends.items() if max(tail, origin) + CUT_OFF_S < end < math.inf}
    for stream, end in due.items():
        if reached[stream] < end - CUT_OFF_S:
            early = stream.type
    if not due and max(reached.values()) < last - CUT_OFF_S:
        early = "content"
    if early:
        return Verdict("broken", f"{name} is cut off: its {early} ends early; fetch it again or drop its row.")
    return Verdict("ok", "", last - origin, audio is not None, video is not None)


def _run(keys: list[_Key], workers: int) -> Iterator[Verdict]:
    """The verdicts in order, from fresh processes (see features._run)."""
    names = [name for name, _, _ in keys]
    workers = workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count()))
    workers = min(workers, math.ceil(len(names) / _CHUNK))
    if workers <= 1:
        yield from map(look, names)
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        try:
            yield from pool.map(look, names, chunksize=_CHUNK)
        except BrokenProcessPool as error:
            raise SourceError(
                "A process that looked at media files died, of a file that crashes FFmpeg or of too little memory; "
                "set download.workers to 1 to see which."
            ) from error


def _load(cache: Path) -> dict[_Key, Verdict]:
    known = {}
    for file in sorted(cache.glob("*.parquet")):
        try:
            table = pd.read_parquet(file, columns=["path", "size", "mtime_ns", *Verdict._fields])
        except (ValueError, KeyError, OSError) as error:
            print(f"note: {file} is damaged ({type(error).__name__}), so its files are looked at again", flush=True)
            continue
        for path, size, mtime_ns, *facts in table.itertuples(index=False, name=None):
            known[path, size, mtime_ns] = Verdict(*facts)
    return known


def _save(cache: Path | None, known: dict[_Key, Verdict], shard: tuple[int, int]) -> None:
    if cache is not None:
        rows = [(*key, *verdict) for key, verdict in known.items()]
        table = pd.DataFrame(rows, columns=["path", "size", "mtime_ns", *Verdict._fields])
        files.write_bytes(cache / "{}-of-{}.parquet".format(*shard), table.to_parquet(index=False))


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    return int(index), int(count)


def main() -> None:
    parser = argparse.ArgumentParser(description="Look into all media files below a folder, for stage download.")
    parser.add_argument("media", help="folder; relative to the repository root")
    parser.add_argument("--shard", type=_shard, default=(0, 1), metavar="I/N", help="the I-th of N parts, from 0")
    parser.add_argument("--cache", default="data/probe", help="folder of the verdicts; of the default workspace")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 = one for each core")
    given = parser.parse_args()
    root = config.workspace(given.media)
    try:
        found = probe(
            [root / name for name in list_media(root)],
            cache=config.workspace(given.cache),
            workers=given.workers,
            shard=given.shard,
        )
    except SourceError as error:
        raise SystemExit(f"mmtlib.data.probe: {error}") from None
    print(found.status.value_counts().to_string())


if __name__ == "__main__":
    main()
