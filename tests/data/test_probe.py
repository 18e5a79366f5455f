"""Probing: verdicts against a real decode, the cache, processes."""

from fractions import Fraction

import av
import numpy as np
import pytest
from real_sets import clip_bytes, put

from freedoom_sounds.files import write_clip
from mmtlib.data import probe as module
from mmtlib.data.container import MediaError
from mmtlib.data.media import read_clip
from mmtlib.data.probe import look, probe

# Container -> codec of the picture, of the sound, options of the muxer.
KINDS = {
    "fast.mp4": ("libx264", "aac", {"movflags": "+faststart"}),
    "slow.mp4": ("libx264", "aac", {}),
    "fragments.mp4": ("libx264", "aac", {"movflags": "+frag_keyframe+empty_moov"}),
    "x.mkv": ("libx264", "aac", {}),
    "x.webm": ("libvpx-vp9", "libopus", {}),
    "x.ts": ("libx264", "aac", {}),
    "x.avi": ("mpeg4", "libmp3lame", {}),
    "x.wav": (None, "pcm_s16le", {}),
    "x.flac": (None, "flac", {}),
    "x.mp3": (None, "libmp3lame", {}),
    "x.ogg": (None, "libopus", {}),
    "x.m4a": (None, "aac", {}),
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Four seconds of each kind, key frames every half second."""
    folder, rng = tmp_path_factory.mktemp("kinds"), np.random.default_rng(0)
    for name, (picture, sound, options) in KINDS.items():
        with av.open(str(folder / name), "w", options=options) as container:
            to_encode = []
            if picture:
                stream = container.add_stream(picture, rate=8, options={"threads": "1", "g": "4", "cpu-used": "8"})
                stream.width = stream.height = 32
                stream.pix_fmt = "yuv420p"
                images = rng.integers(0, 255, (32, 32, 32, 3), dtype=np.uint8)
                to_encode.append((stream, [av.VideoFrame.from_ndarray(image, "rgb24") for image in images]))
            stream = container.add_stream(sound, rate=48000, layout="mono")
            frame = av.AudioFrame.from_ndarray(rng.integers(-9999, 9999, (1, 192000), dtype=np.int16), "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
            to_encode.append((stream, [frame]))
            for stream, frames in to_encode:
                for frame in [*frames, None]:
                    container.mux(stream.encode(frame))
    return folder


def decodes(path) -> bool:
    try:
        read_clip(path, num_frames=32, size=16, sample_rate=8000, seconds=None)
    except MediaError:
        return False
    return True


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_file_is_never_called_broken(kinds, name):
    verdict = look(str(kinds / name))
    assert (verdict.status, verdict.has_audio, verdict.has_video) == ("ok", True, KINDS[name][0] is not None)
    assert verdict.duration == pytest.approx(4.0, abs=0.3)
    assert decodes(kinds / name)


# These need not say how long they should be: cut off, they are just shorter.
SHORTER = ("x.ts", "x.ogg", "x.wav", "fragments.mp4")


@pytest.mark.parametrize("share", [0.85, 0.5, 0.2])
@pytest.mark.parametrize("name", sorted(set(KINDS) - {"x.avi"}))
def test_a_cut_off_file_is_broken_or_shorter(kinds, tmp_path, name, share):
    data = (kinds / name).read_bytes()
    put(tmp_path / name, data[: int(share * len(data))])
    verdict = look(str(tmp_path / name))
    if verdict.status == "ok":
        assert name in SHORTER
        assert verdict.duration < min(4 * share + 1.1, 3.9)
    else:
        assert verdict.status == "broken"
        assert str(tmp_path / name) in verdict.reason
        assert verdict.reason.endswith(".")


@pytest.mark.parametrize("share", [0.99, 0.9, 0.5, 0.1])
@pytest.mark.parametrize("name", ["fast.mp4", "slow.mp4", "x.flac", "x.m4a", "x.wav"])
def test_the_verdict_is_that_of_a_decode(kinds, tmp_path, name, share):
    data = (kinds / name).read_bytes()
    put(tmp_path / name, data[: int(share * len(data))])
    assert (look(str(tmp_path / name)).status == "ok") == decodes(tmp_path / name)


def test_a_stream_that_ends_early_on_purpose_is_fine(tmp_path):
    frames = np.zeros((80, 32, 32, 3), np.uint8)
    write_clip(tmp_path / "a.mp4", frames, 8, np.zeros((16000, 1), np.int16), 16000)
    assert look(str(tmp_path / "a.mp4"))[2:] == (10.0, True, True)


def test_what_is_no_media_file(tmp_path):
    for name, data in (("a.mp4", b""), ("b.mp4", b"<html>"), ("c.mp4", bytes(9999))):
        put(tmp_path / name, data)
    (tmp_path / "d.mp4").mkdir()
    table = probe([tmp_path / f"{name}.mp4" for name in "abcde"], workers=1)
    assert table.status.tolist() == ["broken"] * 4 + ["missing"]
    assert "is empty (0 bytes)" in table.reason[0]


@pytest.fixture
def many(tmp_path):
    """40 files: 38 whole ones, one broken, one missing."""
    data = clip_bytes(tmp_path, 1)
    names = [tmp_path / f"m/{number}.mp4" for number in range(40)]
    for number, name in enumerate(names):
        put(name, {3: b"", 17: None}.get(number, data))
    return names


def test_processes_and_one_agree_and_the_second_time_nothing_is_opened(many, tmp_path, monkeypatch):
    one, two = probe(many, workers=1), probe(many, workers=2, cache=tmp_path / "cache")
    assert one.equals(two)
    assert one.path.tolist() == [str(name) for name in many]
    assert one.status.value_counts().to_dict() == {"ok": 38, "broken": 1, "missing": 1}
    monkeypatch.setattr(module, "look", lambda name: pytest.fail(f"{name} was opened again"))
    assert probe(many, cache=tmp_path / "cache").equals(one)


def test_a_changed_file_is_looked_at_again_and_only_that(many, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    probe(many, workers=1, cache=cache)
    many[5].write_bytes(b"<html>")
    many[17].write_bytes(many[0].read_bytes())
    opened = []
    monkeypatch.setattr(module, "look", lambda name, look=look: opened.append(name) or look(name))
    table = probe(many, workers=1, cache=cache)
    assert opened == [str(many[5]), str(many[17])]
    assert table.status[[3, 5, 17]].tolist() == ["broken", "broken", "ok"]


def test_an_interrupted_call_keeps_what_it_saw_and_a_damaged_cache_is_no_obstacle(many, tmp_path, monkeypatch, capsys):
    def stop_at_20(name):
        if name == str(many[20]):
            raise KeyboardInterrupt
        return look(name)

    cache, opened = tmp_path / "cache", []
    monkeypatch.setattr(module, "look", stop_at_20)
    with pytest.raises(KeyboardInterrupt):
        probe(many, workers=1, cache=cache)
    monkeypatch.setattr(module, "look", lambda name: opened.append(name) or look(name))
    probe(many, workers=1, cache=cache)
    assert opened == [str(name) for name in many[20:]]
    put(cache / "verdicts.parquet", b"PAR1 no longer")
    assert probe(many, workers=1, cache=cache).status.eq("ok").sum() == 38
    assert "verdicts.parquet is damaged" in capsys.readouterr().out
