"""Write short clips: previews, films for the guide, and the made-up clips of the tests."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from mmtlib.data.container import MediaError


def write_clip(
    path: str | os.PathLike, frames: np.ndarray | None, fps: float | int, pcm: np.ndarray | None, sample_rate: int
) -> None:
    """Write an mp4 file (h264 + aac) in one atomic step.

    `frames` is uint8 (T, H, W, 3) RGB with even H and W, or None for a file of audio only; `pcm` is int16
    (samples, channels) with one or two channels, or None for a file of video only. One encoder thread, so that
    many files can be written side by side and the bytes do not depend on the machine's core count. Raises
    MediaError if the arrays do not fit this.
    """
    path = Path(path)
    if frames is None and pcm is None:
        raise MediaError(f"{path}: neither frames nor pcm given; pass at least one of them.")
    is_rgb = frames is None or (frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3 and len(frames))
    if not is_rgb or (frames is not None and any(side % 2 for side in frames.shape[1:3])):
        raise MediaError(f"{path}: frames are {frames.dtype} {frames.shape}; pass uint8 (T >= 1, H, W, 3), even sides.")
    if pcm is not None and (pcm.dtype != np.int16 or pcm.ndim != 2 or pcm.shape[1] not in (1, 2) or not len(pcm)):
        raise MediaError(f"{path}: pcm is {pcm.dtype} {pcm.shape}; pass int16 (samples >= 1, 1 or 2) instead.")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # fflags bitexact leaves the library version out of the file; faststart puts the index first.
        options = {"movflags": "+faststart", "fflags": "+bitexact"}
        with av.open(str(part), "w", format="mp4", options=options) as container:
            # Both streams are added before the first frame is encoded: that writes the file's header.
            to_encode = []
            if frames is not None:
                rate = Fraction(fps).limit_denominator(1001)
                # Without mbtree: with it, the libx264 of PyAV 18 gives other bytes from one call to the next.
                encoder = {"preset": "veryfast", "crf": "23", "threads": "1", "x264-params": "mbtree=0"}
                video = container.add_stream("libx264", rate=rate, options=encoder)
                video.width, video.height, video.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
                images = (av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24") for image in frames)
                to_encode.append((video, images))
            if pcm is not None:
                layout = "mono" if pcm.shape[1] == 1 else "stereo"
                audio = container.add_stream("aac", rate=sample_rate, layout=layout)
                samples = av.AudioFrame.from_ndarray(pcm.reshape(1, -1), format="s16", layout=layout)
                samples.sample_rate, samples.pts, samples.time_base = sample_rate, 0, Fraction(1, sample_rate)
                to_encode.append((audio, [samples]))
            for stream, source in to_encode:
                for frame in source:
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
