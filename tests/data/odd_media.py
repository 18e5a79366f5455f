"""Media files as a test wants them: tracks, codecs, time stamps and what is lost, all said by the test."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


class Track(NamedTuple):
    """What a file holds: frames uint8 (T, H, W, 3) at `rate` a second, or samples int16 (samples, channels)."""

    codec: str
    rate: int
    data: np.ndarray
    options: dict[str, str] | None = None
    is_default: bool = False
    aspect: Fraction | None = None  # of a pixel, width to height
    turn: tuple[int, bool] | None = None  # degrees to the left, and whether it is mirrored then


def encode(path: Path, *tracks: Track, keep: Callable[[av.Packet], bool] = lambda packet: True, **options: str) -> Path:
    """Write a file of these tracks, packets in the order of their times; `keep` says which are not lost."""
    with av.open(str(path), "w", options=options) as container:
        packets = []
        for codec, rate, data, settings, is_default, aspect, turn in tracks:
            if data.ndim == 2:
                layout = LAYOUTS[data.shape[1]]
                stream = container.add_stream(codec, rate=rate, layout=layout, options=settings)
                frame = av.AudioFrame.from_ndarray(data.reshape(1, -1), format="s16", layout=layout)
                frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
                frames = [frame]
            else:
                # The same pictures always give the same bytes: see freedoom_sounds.files.
                fixed = {"threads": "1", "x264-params": "mbtree=0"} if codec == "libx264" else {}
                stream = container.add_stream(codec, rate=rate, options=fixed | (settings or {}))
                stream.height, stream.width, stream.pix_fmt = *data.shape[1:3], "yuv420p"
                stream.codec_context.sample_aspect_ratio = aspect or Fraction(1)
                frames = (av.VideoFrame.from_ndarray(image, format="rgb24") for image in data)
            if is_default:
                stream.disposition = av.stream.Disposition.default
            if turn is not None:
                stream.set_display_rotation(turn[0], hflip=turn[1])
            for frame in [*frames, None]:
                packets += stream.encode(frame)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            if keep(packet):
                container.mux(packet)
    return path


def tone(seconds: float, rate: int, hz: float, level: float = 0.5, channels: int = 1) -> np.ndarray:
    """int16 (samples, channels)."""
    wave = 32767 * level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)
    return np.rint(wave).astype(np.int16)[:, None].repeat(channels, axis=1)


def pitch(sound: np.ndarray) -> float:
    """Hz, at 16,000 samples a second."""
    return float(np.abs(np.fft.rfft(sound)).argmax() * 16000 / len(sound))


def grey(levels: np.ndarray, height: int = 48, width: int = 64) -> np.ndarray:
    return np.broadcast_to(levels.astype(np.uint8)[:, None, None, None], (len(levels), height, width, 3)).copy()
