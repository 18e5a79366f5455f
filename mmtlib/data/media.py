"""Read short clips of video and audio with PyAV, whose wheel carries FFmpeg.

A clip has one time axis: its audio and its frames are always cut from the same window, so they stay in sync.
A stream that a file lacks is None here, never an array of zeros, so that "no audio" cannot pass for silence.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from mmtlib.data.container import CUT_OFF_S, MediaError, describe, open_media, reason
from mmtlib.files import Number

# A lossy audio decoder needs a few packets before its output is exact, so a seek lands this much early.
_PREROLL_S = 0.1
# Audio whose time stamp is later than what came before by more than this has a gap; less is rounding in the file.
_GAP_S = 0.1
_Picture = tuple[int, int, int, Sequence[Number]]  # num_frames, size, crops and region of `read_views`


class Clip(NamedTuple):
    """One window of a file; a stream that the file (or the window) does not have is None."""

    waveform: np.ndarray | None  # float32 (samples,), mono, in -1..1, as long as the file's audio in the window
    frames: np.ndarray | None  # uint8 (num_frames, size, size, 3), RGB
    duration: float  # length of the window read, seconds


def read_clip(path: str | os.PathLike, start: Number | None = None, end: Number | None = None, **view: Any) -> Clip:
    """Read one view of a window of a file; `view` are the settings of `read_views` that say what is read."""
    return read_views(path, start, end, **view)[0]


def read_views(
    path: str | os.PathLike,
    start: Number | None = None,
    end: Number | None = None,
    *,
    num_frames: int,
    size: int,
    sample_rate: int,
    seconds: Number | None,
    clips: int = 1,
    crops: int = 1,
    region: Sequence[Number] | None = None,
    modality: str = "av",
) -> list[Clip]:
    """Read the audio and `num_frames` frames of a window of a file in `clips` x `crops` views, decoding it once.

    The window is [start, end) in seconds from the file's beginning (None: the file's own bound), cut to the file. A
    view has `seconds` of it (None: all) where it is longer: `clips` of them, spaced evenly from its beginning to its
    end (one: in its centre). Frames are those on screen at the centres of `num_frames` equal parts of the view, or of
    the `region` of it that is read, as shares of the picture (left, top, right, bottom), the short side scaled to
    `size`; `crops` 1 is the centre, 3 are, one after the other, left, centre and right, or top, centre and bottom, as
    in SlowFast and MViT. The picture is turned as the file says, its pixels made square. Audio and video are the
    default tracks. Audio is mixed to mono at `sample_rate`; it is shorter than the view where the file's audio is, and
    zeros stand where that starts late or has a gap. Of `modality` "audio" or "video" the other stream is not decoded,
    and None.

    Raises MediaError for a file that is missing, empty, cut off, not a media file or without any stream, for one
    that does not decode, whatever the decoder says, and for a window that is empty or lies outside the file.
    """
    path = Path(path)
    try:
        picture = (num_frames, size, crops, region or (0.0, 0.0, 1.0, 1.0))
        views, back = None, _PREROLL_S
        while views is None:
            with open_media(path) as container:
                views = _read(path, container, start, end, picture, sample_rate, seconds, clips, modality, back)
            back *= 4
        return views
    except MediaError:
        raise
    except Exception as error:  # one file ends no stage
        raise MediaError(f"{path} does not decode ({reason(error)}); fetch it again or drop its row.") from error


def _read(path, container, start, end, picture, sample_rate, seconds, clips, modality, back) -> list[Clip] | None:
    """The views; None where the video has no key frame from `back` seconds before them to their beginning.

    A file without an index, as an MPEG stream, seeks to any frame, and what comes before a key frame does not decode.
    """
    video, audio, ends, origin, last = describe(path, container)
    found = _windows(path, start, end, last - origin, seconds, clips)
    windows = [(origin + low, origin + high) for low, high in found]
    low, high = windows[0][0], windows[-1][1]

    # A stream that is over before the window begins has nothing to show in it.
    sinks: dict[av.stream.Stream, _FramePicker | _AudioCollector] = {}
    if video is not None and ends[video] > low and modality != "audio":
        sinks[video] = _FramePicker(windows, ends[video], picture, aspect=float(video.sample_aspect_ratio or 1))
    if audio is not None and ends[audio] > low and modality != "video":
        sinks[audio] = _AudioCollector(windows, ends[audio], sample_rate)
    for stream in sinks:
        if stream.codec_context is None:
            raise MediaError(f"{path} has {stream.type} in a format that FFmpeg does not know; convert it.")
        stream.codec_context.thread_count = 1  # files are read side by side in processes, one core each
    is_late = low - back > origin
    if is_late:
        try:
            container.seek(int((low - back) * av.time_base))
        except av.error.FFmpegError:  # some formats refuse a time before their first key frame
            return None
    held = []  # packets of the video
    waiting = set(sinks)
    for packet in container.demux(list(sinks)) if sinks else ():  # of an empty list it would give all streams
        sink = sinks[packet.stream]
        if packet.stream.type == "video":
            if is_late and not held and (packet.pts or packet.dts or 0) * packet.time_base > low:
                return None
            if held or packet.is_keyframe or not is_late:
                held.append(packet)
            if packet.dts is not None and packet.dts * packet.time_base > high:
                waiting.discard(packet.stream)
        elif not sink.done:
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                if not is_late or sink.reached > -math.inf:
                    raise
                frames = []  # after a seek the first packet may be the end of one
            for frame in frames:
                sink.add(frame)
            if sink.done:
                waiting.discard(packet.stream)
        if not waiting:
            break
    if video in sinks and is_late and not held:
        return None
    if video in sinks:
        _decode_shown(held, video, sinks[video])

    for stream, sink in sinks.items():
        if not sink.done and ends[stream] < math.inf and sink.reached < min(high, ends[stream]) - CUT_OFF_S:
            raise MediaError(f"{path} is cut off: its {stream.type} ends early; fetch it again or drop its row.")
    # In mkv and webm only the file says how long it is, and its streams may well be shorter, or have no packets.
    reached = max((math.inf if sink.done else sink.reached for sink in sinks.values()), default=math.inf)
    is_judged_by_it = (modality == "av" or len(ends) == 1) and min(ends.values()) == math.inf
    if is_judged_by_it and reached < min(high, last) - CUT_OFF_S:
        raise MediaError(f"{path} is cut off: its content ends early; fetch it again or drop its row.")
    waveforms = sinks[audio].waveforms() if audio in sinks else [None] * clips
    frames = sinks[video].frames() if video in sinks else [[None] * picture[2]] * clips
    return [
        Clip(waveform, images, high - low)
        for waveform, cropped, (low, high) in zip(waveforms, frames, windows, strict=True)
        for images in cropped
    ]


def _decode_shown(packets: list[av.Packet], stream: av.VideoStream, picker: _FramePicker) -> None:
    """Give the picker the frames that it wants; of h264, those that no other frame needs are not decoded otherwise."""
    packets = [packet for packet in packets if packet.size]
    stamps = sorted(packet.pts for packet in packets if packet.pts is not None)
    times = [float(stamp * stream.time_base) for stamp in stamps]
    near = [time + slack for time in picker.times for slack in (-1e-6, 1e-6)]  # against rounding
    wanted = {stamps[max(bisect_right(times, time) - 1, 0)] for time in near if stamps} | set(stamps[-1:])
    context = stream.codec_context
    can_skip = context.name == "h264" and len(stamps) == len(packets)
    for packet in [*packets, None]:
        if can_skip and packet is not None:
            context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        for frame in context.decode(packet):
            frame.time_base = stream.time_base  # PyAV leaves it out of the last ones
            if frame.time is not None and not picker.done:
                picker.add(frame)


def _windows(path: Path, start, end, length: Number, seconds: Number | None, clips: int) -> list[tuple[float, float]]:
    """Bounds of the windows in seconds from the file's beginning."""
    low = 0.0 if start is None else float(start)
    high = length if end is None else min(float(end), length)
    if low < 0 or low >= length:
        raise MediaError(f"{path} lasts {length:.2f} s but its row starts at {low:.2f} s; correct start and end.")
    if high <= low:
        raise MediaError(f"{path}: the window {low:.2f}-{high:.2f} s is empty; correct start and end.")
    if seconds is None or high - low <= seconds:
        return [(low, high)] * clips
    firsts = np.linspace(low, high - seconds, clips).tolist() if clips > 1 else [low + (high - low - seconds) / 2]
    return [(first, first + seconds) for first in firsts]


class _FramePicker:
    """Keeps, of the frames that pass in order, those on screen at the centres of equal parts of each window."""

    def __init__(self, windows: list[tuple[float, float]], end: float, picture: _Picture, aspect: Number = 1):
        num_frames, self._size, crops, self._region = picture
        parts = np.arange(num_frames) + 0.5
        times = np.stack([low + parts * (high - low) / num_frames for low, high in windows])
        self._seen = [end > low for low, _ in windows]  # a window after the stream's end has no video
        self._places = times.argsort(axis=None).argsort().reshape(times.shape)  # windows may overlap
        self.times = sorted(times.ravel().tolist())
        self._aspect = aspect if abs(aspect - 1) > 0.01 else 1  # of a pixel; less is an encoder's rounding
        self._shares = (0.5,) if crops == 1 else (0.0, 0.5, 1.0)  # of what the long side has too much
        self._scale = VideoReformatter().reformat  # one scaler for all frames: setting it up costs more than its use
        self._matrix: list[int] | None = None
        self._newest: av.VideoFrame | None = None  # on screen until the next one comes
        self._images: list[np.ndarray] = []  # the crops of each time

    @property
    def done(self) -> bool:
        return len(self._images) == len(self.times)

    @property
    def reached(self) -> float:
        """Where the frames seen so far end."""
        newest = self._newest
        return newest.time + float((newest.duration or 0) * newest.time_base) if newest else -math.inf

    def add(self, frame: av.VideoFrame) -> None:
        if self._newest is not None:
            self._keep_newest(bisect_left(self.times, frame.time))
        self._newest = frame

    def frames(self) -> list[list[np.ndarray | None]]:
        """For each window its crops; None of one after the last frame, or where there is none."""
        if self._newest is None:
            return [[None] * len(self._shares)] * len(self._seen)
        self._keep_newest(len(self.times))
        return [
            list(np.stack([self._images[place] for place in places], axis=1)) if seen else [None] * len(self._shares)
            for places, seen in zip(self._places, self._seen, strict=True)
        ]

    def _keep_newest(self, count: int) -> None:
        """Repeat the newest frame's picture until there are `count` images."""
        missing = count - len(self._images)
        if missing <= 0:
            return
        frame, size = self._newest, self._size
        if self._matrix is None:  # a point (x, y) is to be shown at (a x + c y, b x + d y): turned or mirrored
            found = frame.side_data.get("DISPLAYMATRIX")
            self._matrix = [1, 0, 0, 1] if found is None else np.frombuffer(found, np.int32)[[0, 1, 3, 4]].tolist()
        a, b, c, d = self._matrix
        is_sideways = abs(b) > abs(a)
        left, top, right, bottom = self._region
        across, down = right - left, bottom - top
        wide, tall = frame.width * self._aspect, frame.height
        scale = size / (min(wide * down, tall * across) if is_sideways else min(wide * across, tall * down))
        width, height = max(size, round(wide * scale)), max(size, round(tall * scale))
        image = self._scale(frame, width=width, height=height, format="rgb24", threads=1).to_ndarray()
        if is_sideways:
            image, a, d = image.swapaxes(0, 1), c, b
        image = image[:: 1 if d >= 0 else -1, :: 1 if a >= 0 else -1]
        height, width = image.shape[:2]
        image = image[int(top * height) :, int(left * width) :]
        height, width = max(size, round(down * height)), max(size, round(across * width))
        corners = [(int((height - size) * share), int((width - size) * share)) for share in self._shares]
        self._images += [np.array([image[top : top + size, left : left + size] for top, left in corners])] * missing


class _AudioCollector:
    """Joins the audio frames that touch the windows, resamples them to mono in one go and cuts them up."""

    def __init__(self, windows: list[tuple[float, float]], end: float, sample_rate: int):
        # An encoder fills its last packet up; the declared end says where the audio stops.
        self._windows = [(low, min(high, end)) for low, high in windows]
        self._low, self._high, self._rate = self._windows[0][0], self._windows[-1][1], sample_rate
        # Where a part begins, and its frames. There is one, unless there are gaps, or a sample rate or layout changes.
        # A queue makes one large frame, which resamples and converts far faster than many small ones.
        self._parts: list[tuple[float, av.AudioFifo]] = []
        self._kind: tuple[int, str] | None = None
        self._first = self._low  # where the parts begin: one frame of context comes before
        self.reached = -math.inf  # where the frames kept so far end
        self.done = False

    def add(self, frame: av.AudioFrame) -> None:
        length, kind = frame.samples / frame.sample_rate, (frame.sample_rate, frame.layout.name)
        time = self.reached if frame.time is None else frame.time  # of several frames in a packet the first has one
        self.done = time > self._high
        # One frame of context on each side keeps the resampler's filter from seeing an edge inside the window.
        if self.done or time + 2 * length <= self._low:
            return
        if time > self.reached + _GAP_S or kind != self._kind:
            self.reached, self._kind = max(time, self.reached), kind
            self._first = min(self._first, self.reached)
            self._parts.append((self.reached, av.AudioFifo()))
        frame.pts = None  # frames are joined end to end; the queue refuses stamps that are a sample off
        self._parts[-1][1].write(frame)
        self.reached += length

    def waveforms(self) -> list[np.ndarray | None]:
        """The audio of each window, the mean of its channels; None where it begins after the audio's end."""
        if not self._parts and not self.done:
            return [None] * len(self._windows)
        sound = np.empty(0, np.float32)
        for start, queue in self._parts:
            resampler = av.AudioResampler(format="flt", rate=self._rate)
            frames = [*resampler.resample(queue.read()), *resampler.resample(None)]
            mono = [frame.to_ndarray().reshape(-1, frame.layout.nb_channels).mean(1) for frame in frames]
            sound = np.concatenate([self._silent_until(start, sound), *mono])
        if self.done:  # there is more after the windows: what their end lacks is a gap
            sound = self._silent_until(self._high, sound)
        spans = [
            (round((low - self._first) * self._rate), round((high - low) * self._rate)) for low, high in self._windows
        ]
        return [sound[first : first + count] if count > 0 else None for first, count in spans]

    def _silent_until(self, time: float, sound: np.ndarray) -> np.ndarray:
        return np.pad(sound, (0, max(round((time - self._first) * self._rate) - len(sound), 0)))
