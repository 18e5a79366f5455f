from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from freedoom_sounds.files import write_clip
from mmtlib.data.container import MediaError
from mmtlib.data.media import _FramePicker, read_clip, read_views

SETTINGS = {"num_frames": 8, "size": 32, "sample_rate": 16000, "seconds": 2.0}


def onset(waveform, sample_rate, level=0.1):
    """Time of the first loud sample, seconds."""
    return np.flatnonzero(np.abs(waveform) > level)[0] / sample_rate


def click_clip(path, clicks, seconds=4.0, fps=16, sample_rate=22050):
    """Stereo clicks at these times, and a frame that is white in those very moments, black otherwise."""
    pcm = np.zeros((round(seconds * sample_rate), 2), np.int16)
    frames = np.zeros((round(seconds * fps), 48, 64, 3), np.uint8)
    for time in clicks:
        first = round(time * sample_rate)
        pcm[first : first + 300] = (20000 * np.sin(np.arange(300) * 0.6))[:, None]
        frames[round(time * fps)] = 255
    write_clip(path, frames, fps, pcm, sample_rate)


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ((None, None), [2, 6, 10, 14, 18, 22, 26, 30]),  # centres of 8 equal parts of 32 frames
        ((0.5, 0.75), [8, 8, 9, 9, 10, 10, 11, 11]),  # half a frame apart: each on screen twice
        ((1.5, None), [24, 25, 26, 27, 28, 29, 30, 31]),
    ],
)
def test_frames_are_those_on_screen_at_the_segment_centres(make_clip, frame_numbers, window, expected):
    clip = read_clip(make_clip("a.mp4"), *window, **SETTINGS)
    assert frame_numbers(clip.frames) == expected
    assert clip.frames.shape == (8, 32, 32, 3)
    assert clip.frames.dtype == np.uint8


def test_longer_window_is_cut_to_its_centre(make_clip, frame_numbers):
    clip = read_clip(make_clip("a.mp4"), **{**SETTINGS, "seconds": 0.5})
    assert frame_numbers(clip.frames) == [12, 13, 14, 15, 16, 17, 18, 19]
    assert clip.duration == pytest.approx(0.5)
    assert len(clip.waveform) == 8000


@pytest.mark.parametrize("sample_rate", [16000, 22050, 44100])
def test_sound_has_the_exact_length_pitch_and_level(make_clip, sample_rate):
    path = make_clip("a.mp4", hz=1000.0)
    sound = read_clip(path, **{**SETTINGS, "sample_rate": sample_rate}).waveform
    assert sound.shape == (2 * sample_rate,)
    assert sound.dtype == np.float32
    spectrum = np.abs(np.fft.rfft(sound))
    assert spectrum.argmax() / 2.0 == 1000.0
    assert np.sqrt(np.mean(sound**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.03)


@pytest.mark.parametrize("start", [None, 0.9, 2.4])
def test_sound_and_picture_stay_in_sync_wherever_the_window_starts(tmp_path, start):
    clicks = [0.5, 1.5, 3.0]
    click_clip(tmp_path / "a.mp4", clicks)
    settings = {"num_frames": 160, "size": 32, "sample_rate": 16000, "seconds": None}
    clip = read_clip(tmp_path / "a.mp4", start, **settings)
    expected = next(time for time in clicks if time >= (start or 0)) - (start or 0)
    bright = clip.frames.mean(axis=(1, 2, 3)) > 128
    seen = (np.flatnonzero(bright)[0] + 0.5) * clip.duration / 160
    assert onset(clip.waveform, 16000) == pytest.approx(expected, abs=0.003)
    assert seen == pytest.approx(expected, abs=0.5 / 16)


def test_one_window_equals_the_same_part_of_the_whole(tmp_path):
    click_clip(tmp_path / "a.mp4", [0.5, 1.5, 3.0])
    settings = {**SETTINGS, "seconds": None, "sample_rate": 22050}
    whole = read_clip(tmp_path / "a.mp4", **settings).waveform
    part = read_clip(tmp_path / "a.mp4", 1.0, 2.0, **settings).waveform
    np.testing.assert_allclose(part, whole[22050:44100], atol=1e-3)
    assert np.abs(part).max() > 0.3


def test_short_side_is_scaled_and_the_centre_kept(tmp_path):
    frames = np.zeros((4, 64, 192, 3), np.uint8)
    frames[:, :, :64, 0], frames[:, :, 64:128, 1], frames[:, :, 128:, 2] = 255, 255, 255
    write_clip(tmp_path / "a.mp4", frames, 8, None, 16000)
    seen = read_clip(tmp_path / "a.mp4", **SETTINGS).frames[0, :, 4:-4].reshape(-1, 3).mean(axis=0)
    assert seen[1] > 200
    assert max(seen[0], seen[2]) < 60


@pytest.mark.parametrize("tall", [False, True])
def test_three_crops_are_the_two_ends_and_the_centre(tmp_path, tall):
    frames = np.zeros((4, 64, 192, 3), np.uint8)
    frames[:, :, :64, 0], frames[:, :, 64:128, 1], frames[:, :, 128:, 2] = 255, 255, 255
    write_clip(tmp_path / "a.mp4", frames.swapaxes(1, 2) if tall else frames, 8, None, 16000)
    views = read_views(tmp_path / "a.mp4", **SETTINGS, crops=3)
    for channel, view in enumerate(views):
        seen = view.frames[0, 4:-4, 4:-4].reshape(-1, 3).mean(axis=0)
        assert seen.argmax() == channel
        assert seen.max() > 4 * np.sort(seen)[1]


@pytest.mark.parametrize(
    ("region", "channel"), [((0, 0, 1 / 3, 1), 0), ((0.4, 0.1, 0.6, 0.9), 1), ((2 / 3, 0, 1, 1), 2)]
)
def test_of_a_region_nothing_else_is_seen(tmp_path, region, channel):
    frames = np.zeros((4, 64, 192, 3), np.uint8)
    frames[:, :, :64, 0], frames[:, :, 64:128, 1], frames[:, :, 128:, 2] = 255, 255, 255
    write_clip(tmp_path / "a.mp4", frames, 8, None, 16000)
    view = read_clip(tmp_path / "a.mp4", **SETTINGS, region=region).frames
    size = SETTINGS["size"]
    assert view.shape[1:3] == (size, size)
    edge = size // 8  # where colours bleed
    seen = view[0, edge:-edge, edge:-edge].reshape(-1, 3).astype(int)
    assert (seen.argmax(axis=1) == channel).all()


def test_the_whole_picture_as_a_region_is_no_region(make_clip):
    path = make_clip("a.mp4")
    whole = read_clip(path, **SETTINGS, region=(0, 0, 1, 1))
    np.testing.assert_array_equal(whole.frames, read_clip(path, **SETTINGS).frames)


@given(st.tuples(*[st.floats(0, 0.9)] * 2), st.tuples(*[st.floats(0.05, 1)] * 2), st.sampled_from([1, 3]))
@hypothesis_settings(max_examples=50, deadline=None)
def test_any_region_gives_pictures_of_the_size(corner, sides, crops):
    left, top = corner
    region = (left, top, min(left + sides[0], 1), min(top + sides[1], 1))
    picker = _FramePicker([(0.0, 1.0)], 1.0, (1, 24, crops, region))
    frame = av.VideoFrame.from_ndarray(np.zeros((36, 50, 3), np.uint8), format="rgb24")
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    picker.add(frame)
    assert [view.shape for view in picker.frames()[0]] == [(1, 24, 24, 3)] * crops


def test_windows_go_from_the_beginning_to_the_end_and_each_equals_itself_read_alone(make_clip, frame_numbers):
    path, settings = make_clip("a.mp4"), SETTINGS | {"seconds": 0.75}
    views = read_views(path, **settings, clips=3)
    assert [frame_numbers(view.frames)[:1] + frame_numbers(view.frames)[-1:] for view in views] == [
        [0, 11],
        [10, 21],
        [20, 31],
    ]
    for view, start in zip(views, (0.0, 0.625, 1.25), strict=True):
        alone = read_clip(path, start, start + 0.75, **SETTINGS)
        np.testing.assert_array_equal(view.frames, alone.frames)
        np.testing.assert_allclose(view.waveform, alone.waveform, atol=1e-3)
    centre = read_clip(path, **settings)
    np.testing.assert_array_equal(views[1].frames, centre.frames)
    whole = read_views(path, **SETTINGS, clips=2)  # no longer than a window: the same twice
    np.testing.assert_array_equal(whole[0].waveform, whole[1].waveform)


def test_a_window_after_the_end_of_one_stream_lacks_it(tmp_path):
    frames = np.zeros((64, 48, 64, 3), np.uint8)
    write_clip(tmp_path / "a.mp4", frames, 16, np.full((16000, 1), 900, np.int16), 16000)  # 4 s and 1 s
    views = read_views(tmp_path / "a.mp4", **SETTINGS | {"seconds": 1.0}, clips=3)
    assert [view.waveform is None for view in views] == [False, True, True]
    assert all(view.frames is not None for view in views)


@pytest.mark.parametrize("window", [(None, None), (1.3, 3.1)])
def test_frames_are_exact_where_frames_lean_on_each_other_and_times_are_uneven(tmp_path, frame_numbers, window):
    """Frames that nobody looks at may be left undecoded; that must not show."""
    pts = np.cumsum(np.random.default_rng(0).integers(10, 300, 36))
    pts -= pts[0]
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "3", "g": "36"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, at in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 + 6 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = int(at), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    clip = read_clip(tmp_path / "a.mp4", *window, **SETTINGS | {"seconds": None, "num_frames": 23})
    centres = (window[0] or 0.0) + (np.arange(23) + 0.5) * clip.duration / 23
    assert frame_numbers(clip.frames) == (np.searchsorted(pts / 1000, centres, side="right") - 1).tolist()


def test_a_stream_that_is_not_there_is_none(make_clip):
    assert read_clip(make_clip("a.mp4", sound=False), **SETTINGS).waveform is None
    assert read_clip(make_clip("b.mp4", picture=False), **SETTINGS).frames is None


def test_a_cover_picture_is_not_video(tmp_path):
    with av.open(str(tmp_path / "a.m4a"), "w", format="mp4") as container:
        audio = container.add_stream("aac", rate=16000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        sound = av.AudioFrame.from_ndarray(np.ones((1, 16000), np.int16) * 9, format="s16", layout="mono")
        sound.sample_rate = 16000
        image = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        for stream, frame in ((cover, image), (audio, sound)):
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    clip = read_clip(tmp_path / "a.m4a", **SETTINGS)
    assert clip.frames is None
    assert clip.waveform is not None


def test_streams_of_different_length(tmp_path, make_clip, frame_numbers):
    frames = np.full((2, 48, 64, 3), 20, np.uint8)
    frames[1] = 26
    sound = np.ones((64000, 1), np.int16)
    write_clip(tmp_path / "a.mp4", frames, 1, sound, 16000)  # 2 s of picture at 1 frame a second, 4 s of sound
    clip = read_clip(tmp_path / "a.mp4", **{**SETTINGS, "seconds": None})
    assert frame_numbers(clip.frames) == [0, 0, 1, 1, 1, 1, 1, 1]
    assert len(clip.waveform) == 64000
    assert read_clip(tmp_path / "a.mp4", 2.5, **SETTINGS).frames is None  # nothing to see there any more
    write_clip(tmp_path / "b.mp4", frames, 1, sound[:8000], 16000)
    assert len(read_clip(tmp_path / "b.mp4", **SETTINGS).waveform) == 8000  # not padded


def refused(path, *window) -> str:
    with pytest.raises(MediaError) as error:
        read_clip(path, *window, **SETTINGS)
    assert str(path) in str(error.value)
    assert str(error.value).endswith(".")
    return str(error.value)


def test_broken_files_are_refused_in_one_sentence(tmp_path, make_clip):
    path = tmp_path / "b.mp4"
    assert "does not exist" in refused(path)
    path.write_bytes(b"")
    assert "is empty (0 bytes)" in refused(path)
    path.write_text("<html>video removed</html>")
    assert "is not a media file" in refused(path)
    whole = make_clip("a.mp4").read_bytes()
    path.write_bytes(whole[:32])
    assert "moov index is missing" in refused(path)
    path.write_bytes(whole[:200])  # FFmpeg reads on where the index breaks off, and finds no stream
    assert "neither video nor audio" in refused(path)
    for share in (0.4, 0.6, 0.8):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert "is cut off" in refused(path) or "does not decode" in refused(path)
    (tmp_path / "c.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n")
    assert "neither video nor audio" in refused(tmp_path / "c.srt")


def test_windows_outside_the_file_are_refused(make_clip):
    path = make_clip("a.mp4")
    assert "lasts 2.00 s but its row starts at 2.00 s" in refused(path, 2.0, 3.0)
    assert "window 1.00-1.00 s is empty" in refused(path, 1.0, 1.0)
    assert "starts at -1.00 s" in refused(path, -1.0, 1.0)
    assert read_clip(path, 1.0, 9.0, **SETTINGS).duration == pytest.approx(1.0)  # cut to the file


def test_a_cut_off_file_whose_streams_declare_no_length_is_told_by_the_length_of_the_whole(tmp_path):
    path = tmp_path / "a.mkv"
    noise = np.random.default_rng(0).integers(0, 255, (50, 64, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for image in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    settings = {"num_frames": 4, "size": 32, "sample_rate": 16000, "seconds": None}
    assert read_clip(path, **settings).duration == pytest.approx(2.0, abs=0.1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MediaError, match=r"a.mkv is cut off: its content ends early; fetch it again"):
        read_clip(path, **settings)
