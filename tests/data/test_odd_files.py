"""Files as cameras, recorders and editors leave them: what is read of them is what a player plays."""

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from odd_media import Track, encode, grey, pitch, tone

from mmtlib.data import media
from mmtlib.data.container import MediaError
from mmtlib.data.decode import Settings, Task, decode
from mmtlib.data.media import read_clip, read_views
from mmtlib.data.probe import look

SETTINGS = {"num_frames": 8, "size": 32, "sample_rate": 16000, "seconds": None}


def test_an_mp3_that_changes_its_sample_rate_and_its_channels_is_read_to_its_end(tmp_path):
    parts = []
    for rate, hz, channels in ((44100, 500, 1), (48000, 1000, 1), (48000, 2000, 2)):
        track = Track("libmp3lame", rate, tone(2.0, rate, hz, 0.3, channels))
        parts.append(encode(tmp_path / "part.mp3", track, write_xing="0", id3v2_version="0").read_bytes())
    path = tmp_path / "a.mp3"
    path.write_bytes(b"".join(parts))
    sound = read_clip(path, **SETTINGS).waveform
    assert len(sound) / 16000 == pytest.approx(6.0, abs=0.25)
    assert [pitch(sound[start : start + 16000]) for start in (8000, 40000, 72000)] == [500, 1000, 2000]
    assert look(str(path)).status == "ok"


@pytest.mark.parametrize("error", [ValueError("of two\nlines"), KeyError("x"), MemoryError(), RecursionError("deep")])
def test_any_failure_of_a_decoder_is_one_broken_clip(make_clip, monkeypatch, error):
    def fail(*given, **more):
        raise error

    path = make_clip("a.mp4")
    monkeypatch.setattr(media, "_decode_shown", fail)
    monkeypatch.setattr("mmtlib.data.probe.describe", fail)
    settings = Settings(sample_rate=16000, mel_bins=16, window_ms=25, hop_ms=10, frames=2, size=16, seconds=1.0)
    made = decode(settings, Task(path, None, None, False))
    for status, reason in ((made.status, made.reason), look(str(path))[:2]):
        assert status == "broken"
        assert type(error).__name__ in reason
        assert reason.startswith(str(path))
        assert reason.endswith("fetch it again or drop its row.")
        assert "\n" not in reason


@pytest.fixture(scope="module", params=["mkv", "mp4", "ts"])
def gap(request, tmp_path_factory) -> Path:
    """Sound and a white picture from 2 s on; the packets of sound from 0.5 to 1.5 s are lost."""
    sound = tone(4.0, 16000, 1000)
    sound[:32000] = 0
    tracks = Track("libx264", 25, grey(np.repeat([0, 255], 50))), Track("aac", 16000, sound)
    path = tmp_path_factory.mktemp("gap") / f"a.{request.param}"
    return encode(
        path,
        *tracks,
        keep=lambda packet: packet.stream.type == "video" or not 0.5 < packet.pts * packet.time_base < 1.5,
    )


@pytest.mark.parametrize("window", [(None, None), (0.3, 3.5), (1.0, 3.0), (1.7, 2.5)])
def test_a_gap_in_the_sound_stays_where_it_is(gap, window):
    clip = read_clip(gap, *window, **SETTINGS | {"num_frames": 100})
    onset = np.flatnonzero(np.abs(clip.waveform) > 0.1)[0] / 16000
    white = np.flatnonzero(clip.frames.mean(axis=(1, 2, 3)) > 128)[0] * clip.duration / 100
    assert onset == pytest.approx(2.0 - (window[0] or 0.0), abs=0.08)  # ts does not say where an encoder's delay ends
    assert onset == pytest.approx(white, abs=0.08)


def test_a_window_within_a_gap_is_silent_and_of_its_length(gap):
    clip = read_clip(gap, 0.8, 1.3, **SETTINGS)
    assert clip.waveform.tolist() == [0.0] * 8000
    assert clip.frames is not None


def test_a_window_that_ends_in_a_gap_is_silent_from_there_and_of_its_length(gap):
    clip = read_clip(gap, 0.3, 1.2, **SETTINGS)
    assert len(clip.waveform) == 14400
    assert not clip.waveform[8000:].any()


COLOURS = np.zeros((4, 48, 72, 3), np.uint8)
COLOURS[:, :24, :36, 0] = COLOURS[:, :24, 36:, 1] = COLOURS[:, 24:, :36, 2] = 255  # red, green; blue, black


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_a_picture_is_turned_as_the_file_says(tmp_path, degrees, is_mirrored):
    track = Track("libx264", 4, COLOURS)
    plain = read_clip(encode(tmp_path / "a.mp4", track), **SETTINGS)
    turned = read_clip(encode(tmp_path / "b.mp4", track._replace(turn=(degrees, is_mirrored))), **SETTINGS)
    wanted = np.rot90(plain.frames, degrees // 90, axes=(1, 2))
    wanted = wanted[:, :, ::-1] if is_mirrored else wanted
    np.testing.assert_array_equal(turned.frames, wanted)
    assert turned.frames.flags.c_contiguous  # as a file or a hash takes them


def test_regions_and_crops_are_those_of_the_upright_picture(tmp_path):
    path = encode(tmp_path / "a.mp4", Track("libx264", 4, COLOURS, turn=(-90, False)))  # blue, red; black, green
    for region, channel in (((0, 0, 0.5, 0.5), 2), ((0.5, 0, 1, 0.5), 0), ((0.5, 0.5, 1, 1), 1)):
        picture = read_clip(path, **SETTINGS, region=region).frames[0, 8:-8, 8:-8].reshape(-1, 3)
        assert set(picture.argmax(axis=1)) == {channel}
        assert picture.max() > 200
    top, _, bottom = read_views(path, **SETTINGS, crops=3)  # 48 wide and 72 tall
    assert top.frames[0, 2, 2].argmax() == 2
    assert bottom.frames[0, -2, -2].argmax() == 1


@pytest.mark.parametrize(("aspect", "turn"), [((64, 45), None), ((45, 64), None), ((64, 45), (90, False))])
def test_a_circle_is_a_circle_whatever_the_shape_of_the_pixels(tmp_path, aspect, turn):
    ratio = Fraction(*aspect)
    down, across = np.mgrid[:96, :96] - 47.5
    disc = np.hypot(across * float(ratio), down) < 30
    frames = np.repeat(255 * disc[None, :, :, None].astype(np.uint8), 3, axis=3)
    path = encode(tmp_path / "a.mp4", Track("libx264", 4, frames, aspect=ratio, turn=turn))
    seen = read_clip(path, **SETTINGS | {"size": 96}).frames[0].mean(axis=2) > 128
    width, height = (int(seen.any(axis=axis).sum()) for axis in (0, 1))
    assert abs(width - height) <= 2
    assert width == pytest.approx(60 / min(float(ratio), 1), abs=3)


def test_pixels_that_are_square_but_for_rounding_are_square(tmp_path):
    frames = grey(np.arange(4) * 50, 96, 128)
    frames[:, 20:50, 30:90] = 200
    square, almost = (
        read_clip(encode(tmp_path / name, Track("libx264", 4, frames, aspect=aspect)), **SETTINGS).frames
        for name, aspect in (("a.mp4", None), ("b.mp4", Fraction(4096, 4083)))
    )
    np.testing.assert_array_equal(square, almost)


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_the_default_track_is_read(tmp_path, suffix):
    sounds = [Track("aac", 16000, tone(2.0, 16000, hz)) for hz in (400, 3000)]
    pictures = [Track("libx264", 8, grey(np.full(16, level))) for level in (40, 200)]
    for first in (True, False):
        marked = [
            tracks[place]._replace(is_default=(place == 0) == first)
            for tracks in (pictures, sounds)
            for place in (0, 1)
        ]
        clip = read_clip(encode(tmp_path / f"{first}.{suffix}", *marked), **SETTINGS)
        assert pitch(clip.waveform[:16000]) == (400 if first else 3000)
        assert clip.frames.mean() == pytest.approx(40 if first else 200, abs=3)


CODECS = {
    "ts": "libx264",
    "dvb.ts": "mpeg2video",
    "mpg": "mpeg2video",
    "flv": "flv1",
    "mkv": "libx264",
    "mp4": "libx264",
}


@pytest.fixture(scope="module", params=CODECS)
def long_steps(request, tmp_path_factory) -> Path:
    """9.75 s of which each quarter of a second has its own grey, with a key frame each 3 s and a click each second."""
    sound = np.zeros((round(9.75 * 22050), 1), np.int16)
    sound[(np.arange(1, 10)[:, None] * 22050 + np.arange(220)).ravel()] = 20000
    frames = grey(20 + 6 * (np.arange(243) * 4 // 25))
    options = {"g": "75", "bf": "0" if request.param == "flv" else "2", "sc_threshold": "1000000000"}
    tracks = Track(CODECS[request.param], 25, frames, options), Track("libmp3lame", 22050, sound)
    return encode(tmp_path_factory.mktemp("steps") / f"a.{request.param}", *tracks)


@pytest.mark.parametrize("window", [(0.11, 0.9), (2.1, 2.9), (5.0, 7.0), (5.95, 9.0), (7.3, 7.4)])
def test_a_window_is_the_same_part_of_the_whole_wherever_the_key_frames_are(long_steps, window):
    start, end = window
    clip = read_clip(long_steps, start, end, **SETTINGS)
    whole = read_views(long_steps, 0, end, **SETTINGS | {"seconds": end - start}, clips=2)[1]
    np.testing.assert_array_equal(clip.frames, whole.frames)
    onsets = [np.flatnonzero(np.abs(view.waveform) > 0.3)[:1] / 16000 for view in (clip, whole)]
    np.testing.assert_allclose(*onsets, atol=0.003)
    assert len(clip.waveform) == len(whole.waveform)


def test_a_window_of_an_mpeg_stream_shows_its_own_time(long_steps, frame_numbers):
    """That the whole is read right is not enough: 5 to 7 s begin 2 s after a key frame."""
    centres = 5.0 + (np.arange(8) + 0.5) / 4
    seen = frame_numbers(read_clip(long_steps, 5.0, 7.0, **SETTINGS).frames)
    np.testing.assert_allclose(seen, np.floor(centres * 4), atol=1)  # greys of lossy codecs are a step off


@pytest.mark.parametrize(("suffix", "codec"), [("aac", "aac"), ("mp3", "libmp3lame")])
def test_bare_packets_are_counted_where_no_header_says_how_long_they_are(tmp_path, suffix, codec):
    """A guess from the size and the first packets' bit rate falls short."""
    path, sound = tmp_path / f"a.{suffix}", np.zeros((160000, 1), np.int16)
    sound[:16000] = np.random.default_rng(0).integers(-9999, 9999, (16000, 1))
    sound[144000:152000] = tone(0.5, 16000, 1000)
    parts = []
    for part, bits in ((sound[:16000], "128000"), (sound[16000:], "24000")):
        track = Track(codec, 16000, part, {"b": bits})
        parts.append(encode(path, track, write_xing="0", id3v2_version="0").read_bytes())
    path.write_bytes(b"".join(parts))
    clip = read_clip(path, **SETTINGS)
    assert clip.duration == pytest.approx(10.1, abs=0.2)
    assert look(str(path))[:3] == ("ok", "", pytest.approx(10.1, abs=0.2))
    assert np.flatnonzero(np.abs(clip.waveform) > 0.3)[-1] / 16000 == pytest.approx(9.6, abs=0.15)
    part = read_clip(path, 8.8, 9.4, **SETTINGS).waveform
    assert np.flatnonzero(np.abs(part) > 0.1)[0] / 16000 == pytest.approx(0.3, abs=0.15)
    with pytest.raises(MediaError, match="lasts 10"):
        read_clip(path, 11.0, **SETTINGS)


def test_a_length_that_a_header_says_is_kept(tmp_path):
    path = encode(tmp_path / "a.mp3", Track("libmp3lame", 16000, tone(3.0, 16000, 500)))
    assert read_clip(path, **SETTINGS).duration == pytest.approx(3.0, abs=1e-6)  # without what the encoder filled up


@pytest.fixture(scope="module")
def av_tracks() -> tuple[Track, Track]:
    """Four seconds of video, white from 3 s on, and a tone from 3 s on."""
    sound = tone(4.0, 16000, 1000)
    sound[:48000] = 0
    return Track("libx264", 25, grey(np.repeat([0, 255], [75, 25]))), Track("aac", 16000, sound)


def late(path: Path, tracks: tuple[Track, ...], seconds: float, **options: str) -> Path:
    """The file of these tracks with time stamps that begin at `seconds`."""

    def keep(packet: av.Packet) -> bool:
        packet.pts += round(seconds / packet.time_base)
        packet.dts += round(seconds / packet.time_base)
        return True

    return encode(path, *tracks, keep=keep, **options)


@pytest.mark.parametrize("seconds", [0.0, 2.0, 5.0])
@pytest.mark.parametrize("live", ["0", "1"])
def test_an_mkv_is_whole_wherever_its_time_stamps_begin_and_whether_or_not_it_says_how_long_it_is(
    tmp_path, av_tracks, seconds, live
):
    path = late(tmp_path / "a.mkv", av_tracks, seconds, live=live)
    assert look(str(path)) == ("ok", "", pytest.approx(4.0, abs=0.15), True, True)
    for window in ((None, None), (2.0, 3.5)):
        clip = read_clip(path, *window, **SETTINGS | {"num_frames": 100})
        onset = np.flatnonzero(np.abs(clip.waveform) > 0.1)[0] / 16000
        white = np.flatnonzero(clip.frames.mean(axis=(1, 2, 3)) > 128)[0] * clip.duration / 100
        assert [onset, white] == pytest.approx([3.0 - (window[0] or 0.0)] * 2, abs=0.1)


def test_an_mkv_that_is_cut_off_is_called_so_wherever_its_time_stamps_begin(tmp_path, av_tracks):
    for seconds in (0.0, 5.0):
        path = late(tmp_path / "a.mkv", av_tracks, seconds)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
        assert "ends early" in look(str(path)).reason
        with pytest.raises(MediaError, match="ends early"):
            read_clip(path, **SETTINGS)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "avi"])
def test_a_track_without_packets_is_not_there(tmp_path, av_tracks, suffix):
    path = encode(tmp_path / f"a.{suffix}", *av_tracks, keep=lambda packet: packet.stream.type == "video")
    assert look(str(path)) == ("ok", "", pytest.approx(4.0, abs=0.1), False, True)
    clip = read_clip(path, **SETTINGS)
    assert clip.waveform is None
    assert clip.frames.shape == (8, 32, 32, 3)


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_one_picture_over_sound_is_shown_as_long_as_the_sound(tmp_path, av_tracks, suffix):
    path = encode(tmp_path / f"a.{suffix}", Track("libx264", 25, grey(np.array([200]))), av_tracks[1])
    assert look(str(path)) == ("ok", "", pytest.approx(4.0, abs=0.1), True, True)
    for window in ((None, None), (2.5, 3.5)):
        clip = read_clip(path, *window, **SETTINGS)
        assert len(clip.waveform) == pytest.approx(16000 * clip.duration, abs=1600)
        if suffix == "mkv" or window[0] is None:  # mp4 says that the video is over
            assert np.abs(clip.frames.astype(int) - 200).max() < 5


def test_audio_of_an_mkv_that_ends_before_the_window_is_none(tmp_path, av_tracks):
    path = encode(tmp_path / "a.mkv", av_tracks[0], Track("aac", 16000, tone(1.0, 16000, 500)))
    clip = read_clip(path, 2.0, 4.0, **SETTINGS)
    assert clip.waveform is None
    assert clip.frames is not None


@pytest.mark.parametrize("channels", [1, 2, 6, 8])
def test_the_level_is_the_same_for_any_number_of_channels(tmp_path, channels):
    path = encode(tmp_path / "a.wav", Track("pcm_s16le", 16000, tone(1.0, 16000, 500, 0.9, channels)))
    sound = read_clip(path, **SETTINGS).waveform
    np.testing.assert_allclose(sound, tone(1.0, 16000, 500, 0.9)[:, 0] / 32768, atol=1e-4)


@pytest.mark.parametrize("channels", [9, 60])
def test_more_channels_than_any_layout_has_are_mixed(tmp_path, channels):
    samples = tone(1.0, 16000, 500, 0.5, channels)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((channels, 2, 16000, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
    assert look(str(tmp_path / "a.wav")).status == "ok"
    sound = read_clip(tmp_path / "a.wav", **SETTINGS).waveform
    np.testing.assert_allclose(sound, samples[:, 0] / 32768, atol=1e-4)


def test_the_length_of_an_mpg_is_that_of_its_packets(tmp_path):
    """FFmpeg's guess from the last bytes may lack seconds of a track."""
    frames = np.random.default_rng(0).integers(0, 255, (150, 48, 64, 3), np.uint8)
    path = encode(tmp_path / "a.mpg", Track("mpeg2video", 25, frames), Track("mp2", 16000, tone(6.0, 16000, 500)))
    assert look(str(path)) == ("ok", "", pytest.approx(6.0, abs=0.1), True, True)
    assert read_clip(path, 5.0, 6.0, **SETTINGS).frames is not None


def test_a_name_with_a_colon_is_no_protocol(tmp_path, make_clip, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_clip("a.mp4").rename(tmp_path / "12:30.mp4")
    assert look("12:30.mp4").status == "ok"
    assert read_clip(Path("12:30.mp4"), **SETTINGS).frames is not None
