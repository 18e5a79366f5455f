"""Read and write short clips of picture and sound with PyAV, whose wheel carries FFmpeg.

A clip has one time axis: its sound and its frames are always cut from the same window, so they stay in sync.
A stream that a file lacks is None here, never an array of zeros, so that "no sound" cannot pass for silence.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

# A declared stream length and the decoded one differ by a frame or a codec's padding in sound files; by more
# than this many seconds only where the file is cut off.
_CUT_OFF_S = 0.25
# A lossy sound decoder needs a few packets before its output is exact, so a seek lands this much early.
_PREROLL_S = 0.1


class MediaError(ValueError):
    """A file that cannot be used as a clip; the text is one sentence that names the file and the remedy."""


class Clip(NamedTuple):
    """One window of a file; a stream that the file (or the window) does not have is None."""

    waveform: np.ndarray | None  # float32 (samples,), mono, in -1..1, as long as the file's sound in the window
    frames: np.ndarray | None  # uint8 (num_frames, size, size, 3), RGB
    duration: float  # length of the window read, seconds


def write_clip(
    path: str | os.PathLike,
    frames: np.ndarray | None,
    fps: float | int,
    pcm: np.ndarray | None,
    sample_rate: int,
) -> None:
    """Write an mp4 file (h264 + aac) in one atomic step.

    `frames` is uint8 (T, H, W, 3) RGB with even H and W, or None for a file of sound only; `pcm` is int16
    (samples, channels) with one or two channels, or None for a file of pictures only. One encoder thread, so
    that many files can be written side by side and the bytes do not depend on the machine's core count.
    Raises MediaError if the arrays do not fit this.
    """
    path = Path(path)
    _check_write(path, frames, fps, pcm, sample_rate)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # fflags bitexact leaves the library version out of the file; faststart puts the index first.
        options = {"movflags": "+faststart", "fflags": "+bitexact"}
        with av.open(str(part), "w", format="mp4", options=options) as container:
            streams = []
            if frames is not None:
                rate = Fraction(fps).limit_denominator(1001)
                # Without mbtree: with it, the libx264 of PyAV 18 gives other bytes from one call to the next.
                encoder = {"preset": "veryfast", "crf": "23", "threads": "1", "x264-params": "mbtree=0"}
                video = container.add_stream("libx264", rate=rate, options=encoder)
                video.width, video.height, video.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
                streams.append((video, _picture_frames(frames)))
            if pcm is not None:
                layout = "mono" if pcm.shape[1] == 1 else "stereo"
                audio = container.add_stream("aac", rate=int(sample_rate), layout=layout)
                streams.append((audio, _sound_frames(pcm, layout, int(sample_rate))))
            for stream, source in streams:
                for frame in source:
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
        os.replace(part, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()


def _check_write(path: Path, frames, fps, pcm, sample_rate) -> None:
    if frames is None and pcm is None:
        raise MediaError(f"{path}: neither frames nor pcm given; pass at least one of them.")
    if frames is not None:
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
            raise MediaError(f"{path}: frames are {frames.dtype} {frames.shape}; pass uint8 (T >= 1, H, W, 3) instead.")
        if frames.shape[1] % 2 or frames.shape[2] % 2:
            raise MediaError(f"{path}: frames are {frames.shape[1]}x{frames.shape[2]}; h264 needs even sides.")
        if not fps > 0:
            raise MediaError(f"{path}: fps is {fps}; pass a rate above 0.")
    if pcm is not None:
        if pcm.dtype != np.int16 or pcm.ndim != 2 or pcm.shape[1] not in (1, 2) or not len(pcm):
            raise MediaError(f"{path}: pcm is {pcm.dtype} {pcm.shape}; pass int16 (samples >= 1, 1 or 2) instead.")
        if not sample_rate > 0:
            raise MediaError(f"{path}: sample_rate is {sample_rate}; pass a rate above 0.")


def _picture_frames(frames: np.ndarray) -> Iterator[av.VideoFrame]:
    for index, image in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts = index
        yield frame


def _sound_frames(pcm: np.ndarray, layout: str, sample_rate: int, chunk: int = 1024) -> Iterator[av.AudioFrame]:
    for first in range(0, len(pcm), chunk):
        packed = np.ascontiguousarray(pcm[first : first + chunk]).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = sample_rate, first, Fraction(1, sample_rate)
        yield frame


def read_clip(
    path: str | os.PathLike,
    start: float | int | None = None,
    end: float | int | None = None,
    *,
    num_frames: int,
    size: int,
    sample_rate: int,
    seconds: float | int | None,
) -> Clip:
    """Read the sound and `num_frames` frames of one window of a file, in one pass.

    The window is [start, end) in seconds from the file's beginning (None: the file's own bound), cut to the
    file, then to its central `seconds` if it is longer (None: no cut). Frames are those on screen at the
    centres of `num_frames` equal parts of the window, their short side scaled to `size` and the centre
    cropped; a rotation tag is not applied. Sound is mixed to mono at `sample_rate`; it is shorter than the
    window where the file's sound is, and starts with zeros where the file's sound starts late. Raises
    MediaError for a file that is missing, empty, cut off, not a media file or without any stream, and for a
    window that is empty or lies outside the file.
    """
    path = Path(path)
    try:
        with _open(path) as container:
            return _read(path, container, start, end, num_frames, size, sample_rate, seconds)
    except av.error.FFmpegError as error:
        raise MediaError(f"{path} does not decode ({error.strerror}); fetch it again or drop its row.") from error


def _open(path: Path):
    if not path.is_file():
        raise MediaError(f"{path} does not exist; fetch it or drop its row from the manifest.")
    if path.stat().st_size == 0:
        raise MediaError(f"{path} is empty (0 bytes); fetch it again or drop its row.")
    try:
        return av.open(str(path))
    except av.error.FFmpegError as error:
        with path.open("rb") as file:
            is_mp4 = file.read(8)[4:] == b"ftyp"
        what = "is a cut-off mp4 file (its moov index is missing)" if is_mp4 else "is not a media file"
        raise MediaError(f"{path} {what}; fetch it again or drop its row.") from error


def _read(path, container, start, end, num_frames, size, sample_rate, seconds) -> Clip:
    cover = av.stream.Disposition.attached_pic  # the cover picture of a sound file is not video
    video = next((s for s in container.streams.video if not s.disposition & cover), None)
    audio = next(iter(container.streams.audio), None)
    if video is None and audio is None:
        raise MediaError(f"{path} has neither picture nor sound; fetch it again or drop its row.")

    # Times below are those of the file's clock, whose zero is `origin`, not always 0.
    origin = (container.start_time or 0) / av.time_base
    ends = {stream: _declared_end(stream) for stream in (video, audio) if stream is not None}
    known = [value for value in ends.values() if value is not None]
    length = (max(known) if known else origin + (container.duration or 0) / av.time_base) - origin
    low, high = _window(path, start, end, length, seconds)
    low, high = origin + low, origin + high

    # A stream that is over before the window begins has nothing to show in it.
    over = {stream: stop is not None and stop <= low for stream, stop in ends.items()}
    picture = None if video is None or over[video] else _FramePicker(low, high, num_frames, size)
    # An encoder fills its last packet up; the declared end says where the sound stops.
    stop = high if audio is None or ends[audio] is None else min(high, ends[audio])
    sound = None if audio is None or over[audio] else _SoundCollector(low, stop, sample_rate)
    sinks = {s: sink for s, sink in ((video, picture), (audio, sound)) if s is not None and sink is not None}
    for stream in sinks:
        stream.codec_context.thread_count = 1  # files are read side by side in processes, one core each
    if low - _PREROLL_S > origin:
        container.seek(int((low - _PREROLL_S) * av.time_base))
    for packet in container.demux(list(sinks)):
        sink = sinks[packet.stream]
        if not sink.done:
            for frame in packet.decode():
                sink.add(frame)
            if sink.done and all(sink.done for sink in sinks.values()):
                break

    for stream, sink in sinks.items():
        stop = min(high, ends[stream]) if ends[stream] is not None else None
        early = sink.reached is None or (stop is not None and sink.reached < stop - _CUT_OFF_S)
        if early and not sink.done:
            raise MediaError(f"{path} is cut off: its {stream.type} ends early; fetch it again or drop its row.")
    return Clip(
        waveform=None if sound is None else sound.waveform(),
        frames=None if picture is None else picture.frames(),
        duration=high - low,
    )


def _declared_end(stream) -> float | None:
    if stream.duration is None:
        return None
    return float(((stream.start_time or 0) + stream.duration) * stream.time_base)


def _window(path: Path, start, end, length: float | int, seconds: float | int | None) -> tuple[float, float]:
    """Bounds of the window in seconds from the file's beginning."""
    low = 0.0 if start is None else float(start)
    high = length if end is None else min(float(end), length)
    if low < 0 or low >= length:
        raise MediaError(f"{path} lasts {length:.2f} s but its row starts at {low:.2f} s; correct start and end.")
    if high <= low:
        raise MediaError(f"{path}: the window {low:.2f}-{high:.2f} s is empty; correct start and end.")
    if seconds is not None and high - low > seconds:
        low += (high - low - seconds) / 2
        high = low + seconds
    return low, high


class _FramePicker:
    """Keeps, of the frames that pass in order, those on screen at the centres of equal parts of a window."""

    def __init__(self, low: float | int, high: float | int, num_frames: int, size: int):
        self._times = low + (np.arange(num_frames) + 0.5) * (high - low) / num_frames
        self._size = size
        self._scale = VideoReformatter().reformat  # one scaler for all frames: setting it up costs more than its use
        self._last = None  # the newest frame; on screen until the next one comes
        self._last_image = None  # the same as pixels, made at most once
        self._images: list[np.ndarray] = []
        self.reached: float | None = None

    @property
    def done(self) -> bool:
        return len(self._images) == len(self._times)

    def add(self, frame: av.VideoFrame) -> None:
        if frame.time is None:
            return
        while not self.done and self._times[len(self._images)] < frame.time and self._last is not None:
            self._images.append(self._image())
        self._last, self._last_image = frame, None
        self.reached = frame.time + float((frame.duration or 0) * frame.time_base)

    def frames(self) -> np.ndarray:
        while not self.done:
            self._images.append(self._image())
        return np.stack(self._images)

    def _image(self) -> np.ndarray:
        if self._last_image is None:
            width, height = self._last.width, self._last.height
            scale = self._size / min(width, height)
            width, height = max(self._size, round(width * scale)), max(self._size, round(height * scale))
            image = self._scale(self._last, width=width, height=height, format="rgb24", threads=1).to_ndarray()
            top, left = (height - self._size) // 2, (width - self._size) // 2
            self._last_image = image[top : top + self._size, left : left + self._size]
        return self._last_image


class _SoundCollector:
    """Joins the sound frames that touch a window, resamples them to mono in one go and cuts them to it."""

    def __init__(self, low: float | int, high: float | int, sample_rate: int):
        self._low, self._high, self._rate = low, high, sample_rate
        self._fifo = av.AudioFifo()  # one large frame resamples and converts far faster than many small ones
        self._first: float | None = None
        self.reached: float | None = None
        self.done = False

    def add(self, frame: av.AudioFrame) -> None:
        if frame.time is None:
            return
        time, length = frame.time, frame.samples / frame.sample_rate
        self.done = time > self._high
        # One frame of context on each side keeps the resampler's filter from seeing an edge inside the
        # window.
        if time + 2 * length <= self._low or self.done:
            return
        if self._first is None:
            self._first = time
        self.reached = time + length
        frame.pts = None  # frames are joined end to end; the queue refuses stamps that are a sample off
        self._fifo.write(frame)

    def waveform(self) -> np.ndarray:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=self._rate)
        parts = [*resampler.resample(self._fifo.read()), *resampler.resample(None)]
        sound = np.concatenate([part.to_ndarray().reshape(-1) for part in parts])
        offset = round((self._low - self._first) * self._rate)
        sound = sound[offset:] if offset >= 0 else np.concatenate([np.zeros(-offset, np.float32), sound])
        return np.ascontiguousarray(sound[: round((self._high - self._low) * self._rate)], dtype=np.float32)
