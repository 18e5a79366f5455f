"""The files of the set, written whole or not at all: beside their place first, then renamed.

Clips are mp4, by PyAV, whose wheel carries FFmpeg.
"""

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place at the end, or is removed after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


def write_clip(path: Path, frames: np.ndarray | None, fps: float | int, pcm: np.ndarray | None, rate: int) -> None:
    """Write an mp4 file (h264 + aac), whole or not at all; of a clip without picture, or without sound, one is None.

    frames: uint8 (T, H, W, 3) RGB, H and W even. pcm: int16 (samples, channels), one or two. The same arrays give the
    same bytes, on any number of cores: hence one thread.
    """
    # fflags bitexact leaves the library version out of the file; faststart puts the index first.
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    # Without mbtree: with it, the libx264 of PyAV 18 gives other bytes from one call to the next.
    encoder = {"preset": "veryfast", "crf": "23", "threads": "1", "x264-params": "mbtree=0"}
    with whole(path) as part, av.open(str(part), "w", format="mp4", options=options) as container:
        # Both streams are added before the first frame is encoded: that writes the file's header.
        streams = {}
        if frames is not None:
            video = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=encoder)
            video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
            streams[video] = (av.VideoFrame.from_ndarray(image, format="rgb24") for image in frames)
        if pcm is not None:
            layout = "mono" if pcm.shape[1] == 1 else "stereo"
            audio = container.add_stream("aac", rate=rate, layout=layout)
            sound = av.AudioFrame.from_ndarray(pcm.reshape(1, -1), format="s16", layout=layout)
            sound.sample_rate, sound.pts, sound.time_base = rate, 0, Fraction(1, rate)
            streams[audio] = [sound]
        for stream, source in streams.items():
            for frame in source:
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


def read_clip(path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """A clip's frames, uint8 (T, H, W, 3), its audio, float (samples,) mono, and the samples a second.

    Raises av.FFmpegError for a file that is missing or damaged.
    """
    frames, sounds = [], []
    with av.open(str(path)) as container:
        for frame in container.decode():
            if isinstance(frame, av.VideoFrame):
                frames.append(frame.to_ndarray(format="rgb24"))
            else:
                sounds.append(frame.to_ndarray().mean(axis=0))
        return np.stack(frames), np.concatenate(sounds), container.streams.audio[0].rate
