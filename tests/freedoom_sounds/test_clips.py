"""Single clips: the same seed gives the same clip, its event happens, and its audio has the promised ratio."""

import contextlib
import hashlib
import itertools

import numpy as np
import pandas as pd
import psutil
import pytest
from scipy.stats import chi2_contingency
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import OneHotEncoder

from freedoom_sounds import addon, classes, scripts, sound, studio
from freedoom_sounds.classes import (
    CLASSES,
    GAME,
    KINDS,
    NAME,
    PAIRS,
    SPLITS,
    ClipSpec,
    EngineError,
    Failed,
    clip_specs,
    split_levels,
)
from freedoom_sounds.engine import SAMPLE_RATE, SAMPLES_PER_TIC, Engine, Tic, read_level


@pytest.fixture(scope="module")
def maker():
    made = studio.Studio()
    yield made
    made.close()


def spec(label: str, index: int = 0, seed: int = 5, class_list: str = NAME) -> ClipSpec:
    specs = clip_specs(seed, {"train": index + 1}, class_list)
    return next(s for s in specs if s.clip_id == f"train-{label}-{index:04d}")


def digest(rendered) -> tuple[str, str, dict]:
    frames, pcm, facts = rendered
    return hashlib.sha256(frames.tobytes()).hexdigest(), hashlib.sha256(pcm.tobytes()).hexdigest(), facts


# ------------------------------------------------------------------------------- what is planned


def test_classes_are_balanced_and_clips_have_their_own_seeds():
    specs = clip_specs(7, {"train": 3, "test": 2})
    counts = pd.DataFrame(specs).groupby(["split", "label"]).size()
    assert set(counts["train"]) == {3}
    assert set(counts["test"]) == {2}
    assert len(counts["train"]) == len(CLASSES) == 18
    assert len({s.seed for s in specs}) == len({s.clip_id for s in specs}) == len(specs)
    assert clip_specs(7, {"train": 2}) == [s for s in specs if s.split == "train" and s.clip_id[-1] < "2"]
    assert not {s.seed for s in specs} & {s.seed for s in clip_specs(8, {"train": 3, "test": 2})}


def test_no_clip_at_all_is_refused():
    with pytest.raises(ValueError, match="no clip is asked for"):
        clip_specs(7, {"train": 0})


@pytest.mark.parametrize("sizes", [{"dev": 1}, {"train": -1}])
def test_a_wrong_size_is_named(sizes):
    with pytest.raises(ValueError, match=f"{next(iter(sizes))}: {next(iter(sizes.values()))}"):
        clip_specs(7, sizes)


def test_splits_share_no_level_and_use_all():
    levels = [split_levels(split) for split in SPLITS]
    assert sorted(itertools.chain(*levels)) == [f"map{n:02d}" for n in range(1, 33)]


def test_a_closed_door_is_as_far_as_one_stands_before_it():
    level = read_level(GAME, "map03")
    assert len(level.doors) > 5
    for x, y, angle in level.doors:
        heading = np.deg2rad(angle)
        distance = level.clear_distance(x - 24 * np.cos(heading), y - 24 * np.sin(heading), angle)
        assert distance <= 24.01


def test_an_unknown_level_is_named():
    with pytest.raises(ValueError, match="no level MAP99"):
        read_level(GAME, "map99")


def drawn(label: str, count: int) -> np.ndarray:
    """(count, 4): the event that is seen, the one that is heard, and their onsets, as numbers."""
    rng = np.random.default_rng(list(PAIRS).index(label))
    events = {name: number for number, name in enumerate(CLASSES)}
    made = [scripts.draw_pair(PAIRS[label], rng) for _ in range(count)]
    return np.array([(events[seen], events[heard], *onsets) for seen, heard, *onsets in made])


@pytest.mark.parametrize("labels", [list(PAIRS)[at : at + 2] for at in (0, 2, 4)])
def test_each_modality_and_a_sum_of_both_say_nothing_of_a_pair_and_their_relation_all(labels):
    first, second = (drawn(label, 6000) for label in labels)
    modalities = []
    for event, onset in ((0, 2), (1, 3)):  # what is seen and when, what is heard and when
        both = [side[:, event] * 100 + side[:, onset] for side in (first, second)]
        assert chi2_contingency(pd.crosstab(np.concatenate(both), np.repeat([0, 1], 6000))).pvalue > 1e-3
        modalities.append(np.concatenate(both))
    answers, told = np.repeat([0, 1], 6000), OneHotEncoder().fit_transform(np.stack(modalities, axis=1))
    fitted = LogisticRegression(C=0.01).fit(told[::2], answers[::2])  # any function of the one plus any of the other
    assert log_loss(answers[1::2], fitted.predict_proba(told[1::2])) > 0.98 * np.log(2)  # an even guess
    assert 0.46 < fitted.score(told[1::2], answers[1::2]) < 0.54
    clips = np.concatenate([first, second])
    same = (clips[:, 0] == clips[:, 1]) & (clips[:, 2] == clips[:, 3])
    assert (same == (answers == 0)).all()


def test_sound_is_moved_by_samples_and_what_is_missing_is_silence():
    raw = np.arange(1, 11, dtype=np.int16)[:, None].repeat(2, axis=1)
    assert studio.moved(raw, 3)[:, 0].tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert studio.moved(raw, -3)[:, 1].tolist() == [4, 5, 6, 7, 8, 9, 10, 0, 0, 0]
    assert studio.moved(raw, 0).tolist() == raw.tolist()


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
    monkeypatch.setattr(sound, "DISTRACTORS", (0.0, 0.4, 0.3, 0.3))
    for seed in range(4):
        pcm, ratio = sound.mix(burst, 20, snr, bank, np.random.default_rng(seed))
        assert ratio == pytest.approx(snr, abs=0.05)
        assert tone_share(pcm) == pytest.approx(snr, abs=1.0)


def test_a_hidden_event_is_below_the_audible_in_every_tenth_of_a_second(burst, bank):
    for seed in range(8):
        pcm, ratio = sound.mix(burst, 20, 0.0, bank, np.random.default_rng(seed), hidden=-20.0)
        assert ratio < sound.AUDIBLE_SNR
        assert tone_share(pcm) < sound.AUDIBLE_SNR


def test_a_silent_motion_is_neither_digital_silence_nor_has_a_ratio(burst, bank):
    for seed in range(8):
        pcm, ratio = sound.mix(np.zeros_like(burst), None, 0.0, bank, np.random.default_rng(seed))
        assert np.isnan(ratio)
        assert np.std(pcm[: SAMPLE_RATE // 10].astype(float)) > 0.2
        assert pcm.shape == burst.shape


class Mute(Engine):
    """An engine without OpenAL: it runs, and all sound is zeros."""

    def __init__(self): ...
    def begin(self, level, seed): ...
    def wait(self, tics): ...
    def command(self, text): ...
    def tic(self):
        return tic()


def test_no_openal_says_what_to_install():
    with pytest.raises(EngineError, match="pip install cyal"):
        sound.record_bank(Mute())


# ------------------------------------------------------------------------------- the add-on


def test_the_add_on_has_every_item_that_a_script_may_give(tmp_path):
    addon.write_addon(tmp_path / "addon.wad", {"door_opens": ("doors/dr1_open", 70, 1)})
    data = (tmp_path / "addon.wad").read_bytes()
    assert data.startswith(b"PWAD")
    items = [addon.sound_item("door_opens", 90, 160)]
    items += [addon.actor_item(actor, -24, 400) for actor in (*addon.DECOYS, *addon.ACTORS)]
    items += [event.what for event in CLASSES.values() if event.what.startswith("Ev") and event.script != "pickup"]
    assert all(f"actor {item} :".encode() in data for item in items)
    assert b"{{" not in data


# ------------------------------------------------------------------------------- checks of a clip


def tic(x=0.0, angle=0.0, loud=0, pixels=0, ammo=50.0) -> Tic:
    pcm = np.full((SAMPLES_PER_TIC, 2), loud, np.int16)
    return Tic(np.zeros((120, 160, 3), np.uint8), pcm, pixels, x, 0.0, angle, ammo)


def script(onset=20) -> scripts.Script:
    return scripts.Script("map01", "Fist", onset=onset)


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
    with pytest.raises(Failed, match=reason):
        scripts.verify(label, visible, script(), tics)


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
    assert scripts.verify(label, True, script(), tics) == onset


# ------------------------------------------------------------------------------- with the engine


def test_an_engine_that_ends_is_an_error_with_a_reason():
    engine = Engine(GAME, {})
    try:
        process = next(child for child in psutil.Process().children() if "vizdoom" in child.name())
        process.kill()
        process.wait(5)
        with pytest.raises(EngineError, match="the game engine ended unexpectedly"):
            engine.wait(10)
    finally:
        engine.close()


def test_one_seed_one_clip_whatever_came_before(maker):
    chosen = [spec(label) for label in ("fire_rocket", "imp_wakes", "turn_left")]
    first = [digest(maker.render(s)) for s in chosen]
    with contextlib.closing(studio.Studio()) as other:
        again = [digest(other.render(s)) for s in reversed(chosen)][::-1]
    assert again == first
    assert len({frames for frames, _, _ in first}) == 3


def test_clips_have_the_promised_form(maker):
    for label in ("barrel_explodes", "door_opens", "walk_backward"):
        frames, pcm, facts = maker.render(spec(label, index=1))
        assert frames.shape == (70, 120, 160, 3)
        assert frames.dtype == np.uint8
        assert pcm.shape == (70 * SAMPLES_PER_TIC, 2)
        assert pcm.dtype == np.int16
        assert facts["audible"] or facts["visible"]
        assert facts["audible"] == (facts["snr_db"] is not None and facts["snr_db"] > sound.AUDIBLE_SNR)
        assert (facts["snr_db"] is None) == (label == "walk_backward")
        assert facts["scene"].removeprefix("freedoom2/") in split_levels("train")


def test_a_visible_event_changes_the_picture_and_an_unseen_one_does_not(maker, monkeypatch):
    monkeypatch.setattr(classes, "SWAY", 0.0)
    monkeypatch.setattr(classes, "STEP", 0.0)
    monkeypatch.setattr(classes, "DECOY", 0.0)
    change = {}
    for visible in (True, False):
        kind = KINDS["mostly_heard"]._replace(visible=float(visible), audible=1.0)
        monkeypatch.setitem(KINDS, "mostly_heard", kind)
        frames, _, facts = maker.render(spec("teleport", index=2))
        assert facts["visible"] is visible
        assert facts["audible"]
        onset = round(facts["onset_s"] * 35)
        before, after = frames[onset - 3].astype(int), frames[onset + 12].astype(int)
        change[visible] = (np.abs(after - before).max(axis=2) > 60).sum()
    assert change[True] >= 40
    assert change[False] < change[True] / 4


def test_a_clip_of_a_pair_has_the_image_of_one_event_and_the_sound_of_another(maker):
    for label in ("weapon_other_sound", "event_out_of_time"):
        clip = spec(label, class_list=f"{NAME}-2")
        frames, pcm, facts = maker.render(clip)
        assert facts["visible"]
        assert facts["audible"]
        assert (facts["seen"] == facts["heard"]) == (label == "event_out_of_time")
        assert abs(facts["apart_s"]) == (0.4 if label == "event_out_of_time" else 0.0)
        assert digest((frames, pcm, facts)) == digest(maker.render(clip))


def test_beside_pairs_an_event_is_seen_or_heard_and_never_both(maker):
    for index in range(3):
        for label in ("fire_pistol", "imp_wakes"):
            facts = maker.render(spec(label, index, class_list=f"{NAME}-2"))[2]
            assert facts["visible"] != facts["audible"]


def test_after_the_tries_the_class_and_seed_are_named(maker, monkeypatch):
    def fail(*_):
        raise Failed("no place with enough room")

    monkeypatch.setattr(studio, "plan", fail)
    clip = spec("fire_plasma")
    with pytest.raises(classes.GenerationError, match=f"fire_plasma.*seed {clip.seed}.*no place"):
        maker.render(clip)
