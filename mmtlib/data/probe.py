"""Look into media files once: how long they are, what streams they have, and whether they are whole.

Nothing is decoded: a file that was cut off while it was fetched lacks its index or its last packets, and that
takes its header and its tail to see. Damage in the middle shows only when the features stage decodes the file.
"""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import av
import pandas as pd

from mmtlib import files
from mmtlib.cluster import run_all
from mmtlib.data.container import MediaError, describe, locate, open_media, reason
from mmtlib.data.media import CUT_OFF_S

_TAIL_S = 2.0  # how much of a file's end is read, at least: from the key frame before


class Verdict(NamedTuple):
    """What is known of a file; a missing or broken one has length 0 and no stream."""

    status: str  # ok, missing or broken
    reason: str = ""
    duration: float = 0.0  # s
    has_audio: bool = False
    has_video: bool = False


_KEY = ["path", "size", "mtime_ns"]  # str, bytes, ns


def probe(names: Iterable[str | os.PathLike], *, cache: Path | None = None, workers: int | str = 0) -> pd.DataFrame:
    """A row for each different path, in order: path, status (ok, missing, broken), reason, duration (s), has_audio,
    has_video.

    `cache` is a folder in which verdicts are kept by path, size and time of change, an interrupted call's too.
    `workers` look at the files, as cluster.connect takes them. Raises ClusterError.
    """
    verdicts = dict.fromkeys(map(str, names), Verdict("missing", "does not exist"))
    known = {} if cache is None else _load(cache / "verdicts.parquet")
    keys: dict[str, tuple[str, int, int]] = {}
    for name in verdicts:
        try:
            if place := locate(Path(name)):
                keys[name] = (name, place.size, place.mtime_ns)
        except MediaError as error:
            verdicts[name] = Verdict("broken", str(error))
    fresh = [name for name, key in keys.items() if key not in known]
    try:
        for name, verdict in zip(fresh, run_all(look, fresh, workers, what="files looked into"), strict=True):
            known[keys[name]] = verdict
    finally:  # an interrupted call has not looked in vain
        if fresh and cache is not None:
            rows = [(*key, *verdict) for key, verdict in known.items()]
            table = pd.DataFrame(rows, columns=[*_KEY, *Verdict._fields])
            files.write_bytes(cache / "verdicts.parquet", table.to_parquet(index=False))
    verdicts |= {name: known[key] for name, key in keys.items()}
    return pd.DataFrame(verdicts.values(), columns=Verdict._fields).assign(path=list(verdicts))


def _load(file: Path) -> dict[tuple[str, int, int], Verdict]:
    try:
        table = pd.read_parquet(file, columns=[*_KEY, *Verdict._fields]) if file.exists() else pd.DataFrame()
    except (ValueError, KeyError, OSError) as error:
        print(f"note: {file} is damaged ({type(error).__name__}), so its files are looked at again", flush=True)
        return {}
    return {(*row[:3],): Verdict(*row[3:]) for row in table.itertuples(index=False, name=None)}


def look(name: str) -> Verdict:
    """The verdict on one file that exists."""
    try:
        with open_media(Path(name)) as container:
            return _verdict(name, container)
    except MediaError as error:
        return Verdict("broken", str(error))
    except Exception as error:  # one file ends no stage
        return Verdict("broken", f"{name} does not read ({reason(error)}); fetch it again or drop its row.")


def _verdict(name: str, container: av.container.InputContainer) -> Verdict:
    """The bounds are those of media.read_clip, so that both call the same files cut off."""
    video, audio, ends, origin, last = describe(name, container)
    if last <= origin:
        return Verdict("broken", f"{name} holds no audio or video; fetch it again or drop its row.")
    tail = last - _TAIL_S
    if tail > origin:
        container.seek(int(tail * av.time_base))
    reached = dict.fromkeys(ends, -math.inf)
    newest: dict[av.stream.Stream, av.Packet] = {}
    early = ""
    for packet in container.demux(list(ends)):
        if packet.size:
            newest[packet.stream] = packet
            if packet.is_corrupt and packet.stream is video:  # audio is so marked in a WAV of no declared length
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
    has_audio, has_video = (stream is not None and _has_packets(name, stream, reached) for stream in (audio, video))
    return Verdict("ok", "", last - origin, has_audio, has_video)


def _has_packets(name: str, stream: av.stream.Stream, reached: dict[av.stream.Stream, float]) -> bool:
    """Whether a track holds anything: an encoder that was given nothing leaves an empty one."""
    if reached[stream] > -math.inf:
        return True
    with open_media(Path(name)) as container:
        return any(packet.size for packet in container.demux(container.streams[stream.index]))
