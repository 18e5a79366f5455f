"""Find and open media files, in folders and in uncompressed tar archives, and read what their headers say.

A path may lead into an archive, as WebDataset keeps many small files: `train-000000.tar/abc.mp4`. Such a file is read
where it lies; nothing is unpacked.
"""

from __future__ import annotations

import functools
import math
import os
import posixpath
import stat
import tarfile
from pathlib import Path
from typing import NamedTuple

import av

# A declared length and the one decoded differ by a frame or a codec's padding in audio files; by more than this many
# seconds only where the file is cut off, or the length a guess.
CUT_OFF_S = 0.25
# Formats of which no header says how long a track is: FFmpeg guesses it from the size, the bit rate, the last packets.
_GUESSED = ("aac", "ac3", "amr", "dts", "eac3", "loas", "mp3", "mpeg", "truehd")
_MATROSKA = "matroska,webm"  # has a length of the file at most; FFmpeg takes it for that of an empty track, too


class MediaError(ValueError):
    """A file that cannot be used as a clip; the text is one sentence that names the file and the remedy."""


def reason(error: Exception) -> str:
    """What went wrong with a file, in a few words on one line."""
    text = getattr(error, "strerror", None) or f"{type(error).__name__} {error}"
    return " ".join(text.split())[:200]


class Place(NamedTuple):
    """Where the bytes of a media file lie."""

    file: Path  # the file itself, or the archive that holds it
    offset: int
    size: int
    mtime_ns: int  # when the file, or the archive, was changed


def locate(path: Path) -> Place | None:
    """Where a file's bytes are, None if nothing is there; MediaError for a folder, a damaged archive, no access."""
    try:
        facts = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        archive = next((folder for folder in path.parents if folder.suffix == ".tar" and os.path.isfile(folder)), None)
        return archive and members(archive).get(path.relative_to(archive).as_posix())
    except OSError as error:
        raise MediaError(f"{path} cannot be reached ({reason(error)}); mend that or drop its row.") from error
    if not stat.S_ISREG(facts.st_mode):
        raise MediaError(f"{path} is no file but a folder or a device; put a file there or drop its row.")
    return Place(path, 0, facts.st_size, facts.st_mtime_ns)


def members(archive: Path) -> dict[str, Place]:
    """Name -> place of the files in a tar archive; raises MediaError for one that is damaged, compressed or hostile."""
    facts = os.stat(archive)
    found = _scan(archive, facts.st_size, facts.st_mtime_ns)
    if isinstance(found, str):
        raise MediaError(f"{archive} is no whole, uncompressed tar archive ({found}); fetch or make it again.")
    return found


@functools.cache  # kept in each process: an archive is read once, some 50 us a file; one that has changed, anew
def _scan(archive: Path, size: int, mtime_ns: int) -> dict[str, Place] | str:
    """The files, or what is wrong. Nothing is unpacked, yet a name that leads out is not trusted."""
    places = {}
    try:
        with tarfile.open(archive, "r:", errors="strict") as tar:
            for member in tar:
                name = posixpath.normpath(member.name)
                if name.split("/")[0] in ("", "..") or "\0" in name:
                    return f"the name {name[:80]!r} leads out of it"
                if member.size < 0:
                    return "a size below 0"  # tarfile would go round in circles
                if member.isreg() and not member.issparse():
                    places[name] = Place(archive, member.offset_data, member.size, mtime_ns)
            tar.fileobj.seek(tar.offset)  # tarfile takes a damaged header for the end
            return places if tar.fileobj.read(512) == bytes(512) else "it has no end"
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        return str(error)


def open_media(path: Path) -> av.container.InputContainer:
    """Open a file to read it; raises MediaError for one that is missing, empty, cut off or no media file."""
    place = locate(path)
    if place is None:
        raise MediaError(f"{path} does not exist; fetch it or drop its row from the manifest.")
    if place.size == 0:
        raise MediaError(f"{path} is empty (0 bytes); fetch it again or drop its row.")
    url = f"file:{path}"  # a name may have a colon, before which FFmpeg takes it for a protocol
    if place.file != path:  # FFmpeg's own protocol for a part of a file
        url = f"subfile,,start,{place.offset},end,{place.offset + place.size},,:{place.file.absolute()}"
    try:
        return av.open(url)
    except av.error.FFmpegError as error:
        with place.file.open("rb") as file:
            file.seek(place.offset)
            is_mp4 = file.read(8)[4:] == b"ftyp"
        what = "is a cut-off mp4 file (its moov index is missing)" if is_mp4 else "is not a media file"
        raise MediaError(f"{path} {what}; fetch it again or drop its row.") from error


class Description(NamedTuple):
    """What a file says of itself; times are those of its clock, whose zero is `origin`, not always 0."""

    video: av.VideoStream | None
    audio: av.AudioStream | None
    ends: dict[av.stream.Stream, float]  # of the streams that there are; infinite where the file does not say
    origin: float
    last: float  # where the file ends


def describe(path: str | os.PathLike, container: av.container.InputContainer) -> Description:
    """Read a file's header, and where that only guesses how long it is all its packets, without decoding them.

    Raises MediaError for one that has neither video nor audio, and where its packets end before its header says.
    """
    cover = av.stream.Disposition.attached_pic  # the cover picture of an audio file is not video
    there = [stream for stream in container.streams if stream.duration != 0]  # AVI says so of a track without packets
    videos = [stream for stream in there if stream.type == "video" and not stream.disposition & cover]
    video = max(videos, key=_rank, default=None)
    audio = max((stream for stream in there if stream.type == "audio"), key=_rank, default=None)
    streams = [stream for stream in (video, audio) if stream is not None]
    if not streams:
        raise MediaError(f"{path} has neither video nor audio; fetch it again or drop its row.")
    kind, origin = container.format.name, (container.start_time or 0) / av.time_base
    whole = origin + (container.duration or 0) / av.time_base
    ends = {
        stream: math.inf
        if stream.duration is None or kind == _MATROSKA
        else float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        for stream in streams
    }
    is_shifted = kind == _MATROSKA and abs(origin) > CUT_OFF_S  # its length may count from 0 or from its origin
    if kind in _GUESSED or container.duration is None or is_shifted:
        first, measured = _measure(Path(path), locate(Path(path)))
        if kind != "mp3" or _is_guess(audio, container.size - first):
            ends = {stream: measured.get(stream.index, origin) for stream in streams}
        if is_shifted and max(ends.values()) < min(whole, whole - origin) - CUT_OFF_S:
            raise MediaError(f"{path} is cut off: its content ends early; fetch it again or drop its row.")
    last = max((end for end in ends.values() if end < math.inf), default=whole)
    return Description(video, audio, ends, origin, last)


def _rank(stream: av.stream.Stream) -> tuple[bool, bool]:
    """Highest for the track that a player plays: of a known format, and the default one."""
    return stream.codec_context is not None, bool(stream.disposition & av.stream.Disposition.default)


def _is_guess(stream: av.AudioStream, size: int) -> bool:
    """Whether a length is the size in bytes at the bit rate of the first packet; else a header of an mp3 says it."""
    seconds = (stream.duration or 0) * stream.time_base
    return abs(seconds * (stream.codec_context.bit_rate or 0) / 8 - size) <= 1


@functools.lru_cache(maxsize=1024)  # for the windows of a long file, as long as it does not change
def _measure(path: Path, place: Place) -> tuple[int, dict[int, float]]:
    """Where the packets of a file begin, bytes, and where those of each stream that has any end: its number -> s."""
    first, ends = None, {}
    with open_media(path) as container:
        for packet in container.demux():
            if packet.size and packet.pts is not None:
                first = (packet.pos or 0) if first is None else first
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                ends[packet.stream_index] = max(end, ends.get(packet.stream_index, end))
    return first or 0, ends
