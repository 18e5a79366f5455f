"""The embedded data set: the same seed gives the same clips, and what the manifest says of them is true."""

import hashlib
import itertools
import json

import numpy as np
import pandas as pd
import pytest

from freedoom_sounds import clip as freedoom_clip
from freedoom_sounds import engine as freedoom_engine
from freedoom_sounds import generate as freedoom
from freedoom_sounds import sound as freedoom_sound
from freedoom_sounds.clip import CLASSES, KINDS, ClipSpec, Studio, split_levels
from freedoom_sounds.engine import SAMPLE_RATE, SAMPLES_PER_TIC, Tic, read_level


@pytest.fixture(scope="module")
def studio():
    with Studio() as studio:
        yield studio


def spec(label: str, index: int = 0, seed: int = 5) -> ClipSpec:
    specs = freedoom.clip_specs(seed, {"train": index + 1})
    return next(s for s in specs if s.clip_id == f"train-{label}-{index:04d}")


def digest(rendered) -> tuple[str, str, dict]:
    frames, pcm, facts = rendered
    return hashlib.sha256(frames.tobytes()).hexdigest(), hashlib.sha256(pcm.tobytes()).hexdigest(), facts


# ------------------------------------------------------------------------------- what is planned


def test_classes_are_balanced_and_clips_have_their_own_seeds():
    specs = freedoom.clip_specs(7, {"train": 3, "test": 2})
    counts = pd.DataFrame(specs).groupby(["split", "label"]).size()
    assert set(counts["train"]) == {3}
    assert set(counts["test"]) == {2}
    assert len(counts["train"]) == len(CLASSES) == 18
    assert len({s.seed for s in specs}) == len({s.clip_id for s in specs}) == len(specs)
    assert freedoom.clip_specs(7, {"train": 2}) == [s for s in specs if s.split == "train" and s.clip_id[-1] < "2"]
    assert not {s.seed for s in specs} & {s.seed for s in freedoom.clip_specs(8, {"train": 3, "test": 2})}


@pytest.mark.parametrize("sizes", [{"dev": 1}, {"train": -1}])
def test_a_wrong_size_is_named(sizes):
    with pytest.raises(ValueError, match=f"{next(iter(sizes))}: {next(iter(sizes.values()))}"):
        freedoom.clip_specs(7, sizes)


def test_splits_share_no_level_and_use_all():
    levels = [split_levels(split) for split in freedoom.SPLITS]
    assert sorted(itertools.chain(*levels)) == [f"map{n:02d}" for n in range(1, 33)]


def test_a_closed_door_is_as_far_as_one_stands_before_it():
    level = read_level("freedoom2", "map03")
    assert len(level.doors) > 5
    for x, y, angle in level.doors:
        heading = np.deg2rad(angle)
        distance = level.clear_distance(x - 24 * np.cos(heading), y - 24 * np.sin(heading), angle)
        assert distance <= 24.01


def test_an_unknown_level_is_named():
    with pytest.raises(ValueError, match="no level MAP99"):
        read_level("freedoom2", "map99")


# ------------------------------------------------------------------------------- sound


def db(ratio: float) -> float:
    return 20 * np.log10(ratio)


@pytest.fixture
def burst() -> np.ndarray:
    """Silence with a tone from tic 20 to the end."""
    raw = np.zeros((70 * SAMPLES_PER_TIC, 2), np.int16)
    start = 20 * SAMPLES_PER_TIC
    raw[start:] = np.round(3000 * np.sin(np.arange(len(raw) - start) * 0.3))[:, None]
    return raw


@pytest.fixture
def bank() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, (n, 2)).astype(np.float32) for n in (9000, 20000)]


def tone_share(pcm: np.ndarray) -> float:
    """Tone to everything else (dB) from tic 20 on for a second, by a fit of the tone."""
    part = pcm[20 * SAMPLES_PER_TIC :][:SAMPLE_RATE].mean(1).astype(float)
    basis = np.stack([np.sin(np.arange(len(part)) * 0.3), np.cos(np.arange(len(part)) * 0.3)])
    tone = basis.T @ np.linalg.lstsq(basis.T, part, rcond=None)[0]
    # The mean of two independent channels halves the power of the rest, not that of the tone.
    return db(np.sqrt(np.mean(tone**2) / (2 * np.mean((part - tone) ** 2))))


@pytest.mark.parametrize("snr", [-8.0, 0.0, 12.0])
def test_mix_reaches_the_ratio(burst, bank, snr, monkeypatch):
    monkeypatch.setattr(freedoom_sound, "DISTRACTORS", (0.0, 0.4, 0.3, 0.3))
    for seed in range(4):
        pcm, ratio = freedoom_sound.mix(burst, 20, snr, bank, np.random.default_rng(seed))
        assert ratio == pytest.approx(snr, abs=0.05)
        assert tone_share(pcm) == pytest.approx(snr, abs=1.0)


def test_a_hidden_event_is_below_the_audible_in_every_tenth_of_a_second(burst, bank):
    for seed in range(8):
        pcm, ratio = freedoom_sound.mix(burst, 20, 0.0, bank, np.random.default_rng(seed), hidden=-20.0)
        assert ratio < freedoom_sound.AUDIBLE_SNR
        assert tone_share(pcm) < freedoom_sound.AUDIBLE_SNR


def test_a_silent_motion_is_neither_digital_silence_nor_has_a_ratio(burst, bank):
    for seed in range(8):
        pcm, ratio = freedoom_sound.mix(np.zeros_like(burst), None, 0.0, bank, np.random.default_rng(seed))
        assert np.isnan(ratio)
        assert np.std(pcm[: SAMPLE_RATE // 10].astype(float)) > 0.2
        assert pcm.shape == burst.shape


class Mute(freedoom_engine.Engine):
    """An engine without OpenAL: it runs, and all sound is zeros."""

    def __init__(self): ...
    def begin(self, level, seed): ...
    def wait(self, tics): ...
    def command(self, text): ...
    def tic(self):
        return tic()


def test_no_openal_says_what_to_install():
    with pytest.raises(freedoom_engine.EngineError, match="pip install cyal"):
        freedoom_sound.record_bank(Mute())


# ------------------------------------------------------------------------------- checks of a clip


def tic(x=0.0, angle=0.0, loud=0, pixels=0, ammo=50.0) -> Tic:
    pcm = np.full((SAMPLES_PER_TIC, 2), loud, np.int16)
    return Tic(np.zeros((120, 160, 3), np.uint8), pcm, pixels, x, 0.0, angle, ammo)


def script(onset=20) -> freedoom_clip.Script:
    return freedoom_clip.Script("map01", "Fist", onset=onset)


@pytest.mark.parametrize(
    ("label", "visible", "tics", "reason"),
    [
        ("walk_forward", True, [tic(x=1.0 * t) for t in range(70)], "stopped"),
        ("walk_forward", True, [tic(x=-4.0 * t) for t in range(70)], "stopped"),
        ("walk_forward", True, [tic(x=4.0 * t, loud=400 * (t == 9)) for t in range(70)], "sound"),
        ("walk_forward", True, [tic(x=4.0 * t + 500 * (t > 9)) for t in range(70)], "teleported"),
        ("turn_left", True, [tic(angle=-1.0 * t % 360) for t in range(70)], "stopped"),
        ("fire_pistol", False, [tic() for t in range(70)], "not heard"),
        ("fire_pistol", False, [tic(loud=900) for t in range(70)], "before"),
        ("fire_pistol", True, [tic(loud=900 * (t > 19)) for t in range(70)], "not seen"),
        ("imp_wakes", True, [tic(loud=900 * (t > 19), pixels=20) for t in range(70)], "not seen"),
        ("door_opens", True, [tic(loud=900 * (t > 19)) for t in range(70)], "not seen"),
    ],
)
def test_what_did_not_happen_is_found(label, visible, tics, reason):
    with pytest.raises(freedoom_clip._Failed, match=reason):
        freedoom_clip.verify(label, visible, script(), tics)


@pytest.mark.parametrize(
    ("label", "tics", "onset"),
    [
        ("walk_backward", [tic(x=-4.0 * t) for t in range(70)], None),
        ("turn_right", [tic(angle=-1.0 * t % 360) for t in range(70)], None),
        ("fire_pistol", [tic(loud=900 * (t > 23), ammo=50.0 - (t > 23)) for t in range(70)], 24),
        ("imp_wakes", [tic(loud=900 * (t > 21), pixels=200) for t in range(70)], 22),
    ],
)
def test_what_happened_is_dated(label, tics, onset):
    assert freedoom_clip.verify(label, True, script(), tics) == onset


# ------------------------------------------------------------------------------- with the engine


def test_one_seed_one_clip_whatever_came_before(studio):
    chosen = [spec(label) for label in ("fire_rocket", "imp_wakes", "turn_left")]
    first = [digest(studio.render(s)) for s in chosen]
    with Studio() as other:
        again = [digest(other.render(s)) for s in reversed(chosen)][::-1]
    assert again == first
    assert len({frames for frames, _, _ in first}) == 3


def test_clips_have_the_promised_form(studio):
    for label in ("barrel_explodes", "door_opens", "walk_backward"):
        frames, pcm, facts = studio.render(spec(label, index=1))
        assert frames.shape == (70, 120, 160, 3)
        assert frames.dtype == np.uint8
        assert pcm.shape == (70 * SAMPLES_PER_TIC, 2)
        assert pcm.dtype == np.int16
        assert facts["audible"] or facts["visible"]
        assert facts["audible"] == (facts["snr_db"] is not None and facts["snr_db"] > freedoom_sound.AUDIBLE_SNR)
        assert (facts["snr_db"] is None) == (label == "walk_backward")
        assert facts["scene"].removeprefix("freedoom2/") in split_levels("train")


def test_a_visible_event_changes_the_picture_and_an_unseen_one_does_not(studio, monkeypatch):
    monkeypatch.setattr(freedoom_clip, "SWAY", 0.0)
    monkeypatch.setattr(freedoom_clip, "STEP", 0.0)
    monkeypatch.setattr(freedoom_clip, "DECOY", 0.0)
    change = {}
    for visible in (True, False):
        kind = KINDS["mostly_heard"]._replace(visible=float(visible), audible=1.0)
        monkeypatch.setitem(freedoom_clip.KINDS, "mostly_heard", kind)
        frames, _, facts = studio.render(spec("teleport", index=2))
        assert facts["visible"] is visible
        assert facts["audible"]
        onset = round(facts["onset_s"] * 35)
        before, after = frames[onset - 3].astype(int), frames[onset + 12].astype(int)
        change[visible] = (np.abs(after - before).max(axis=2) > 60).sum()
    assert change[True] >= 40
    assert change[False] < change[True] / 4


def test_after_the_tries_the_class_and_seed_are_named(studio, monkeypatch):
    def fail(*_):
        raise freedoom_clip._Failed("no place with enough room")

    monkeypatch.setattr(freedoom_clip, "plan", fail)
    clip = spec("fire_plasma")
    with pytest.raises(freedoom_clip.GenerationError, match=f"fire_plasma.*seed {clip.seed}.*no place"):
        studio.render(clip)


# ------------------------------------------------------------------------------- the whole set


class FakeWorker:
    """Makes a record and an empty file; the first process ends without an answer to its second clip."""

    started = 0

    def __init__(self, out, key):
        type(self).started += 1
        self.out, self.key, self.clips = out, key, 0
        self.weak = type(self).started == 1

    def ask(self, spec, stop):
        self.clips += 1
        if self.weak and self.clips == 2:
            return None
        path = f"clips/{spec.clip_id}.mp4"
        (self.out / path).touch()
        facts = {"scene": "freedoom2/map02", "audible": True, "visible": False, "snr_db": 3.0, "onset_s": 0.5}
        made = {
            "clip_id": spec.clip_id,
            "path": path,
            "label": spec.label,
            "split": spec.split,
            "key": self.key,
        }
        return made | facts | {"tries": 1, "failed": {}, "restarts": 0}

    def end(self): ...


def test_a_process_that_ended_is_replaced_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(freedoom, "_Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "started", 0)
    manifest = freedoom.generate(tmp_path, seed=1, clips_per_class={"train": 2}, workers=1)
    assert len(manifest) == 2 * len(CLASSES)
    assert json.loads((tmp_path / "dataset.json").read_text())["generation"]["engine_restarts"] == 1


def test_a_clip_that_ends_every_process_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(freedoom, "_Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "ask", lambda self, spec, stop: None)
    with pytest.raises(freedoom.GenerationError, match=r"class fire_pistol.*seed \d+.*ended 3 times"):
        freedoom.generate(tmp_path, seed=1, clips_per_class={"train": 1}, workers=1)
    assert not (tmp_path / "manifest.csv").exists()


def test_an_interrupted_set_ends_up_the_same(tmp_path):
    def content(folder):
        clips = {f.name: f.read_bytes() for f in (folder / "clips").iterdir()}
        return clips, (folder / "manifest.csv").read_text(), (folder / freedoom.RECORDS).read_text()

    manifest = freedoom.generate(tmp_path, seed=3, clips_per_class={"test": 1}, workers=2)
    assert list(manifest["label"]) == list(CLASSES)
    assert set(manifest["scene"].str[-5:]) <= set(split_levels("test"))
    description = json.loads((tmp_path / "dataset.json").read_text())
    assert description["classes"] == list(CLASSES)
    assert description["ceilings"] == freedoom.ceilings(manifest)
    whole = content(tmp_path)
    kept = tmp_path / "clips" / "test-teleport-0000.mp4"
    before = kept.stat().st_mtime_ns
    for label in ("fire_shotgun", "walk_backward", "turn_left"):
        (tmp_path / "clips" / f"test-{label}-0000.mp4").unlink()
    (tmp_path / "manifest.csv").unlink()
    freedoom.generate(tmp_path, seed=3, clips_per_class={"test": 1}, workers=1)
    assert content(tmp_path) == whole
    assert kept.stat().st_mtime_ns == before


def test_ceilings_of_a_set_counted_by_hand():
    rows = [
        # label, audible, visible: sound names a and d; of the three others, two are b
        ("a", True, False),
        ("b", False, True),
        ("b", False, True),
        ("c", False, True),
        ("d", True, True),
    ]
    manifest = pd.DataFrame(rows, columns=["label", "audible", "visible"]).assign(split="test")
    assert freedoom.ceilings(manifest) == {"test": {"audio": 80.0, "video": 100.0}}
