"""The whole set: what ends a process or interrupts the making leaves no trace in it, and no process behind."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pandas as pd
import psutil
import pytest

from freedoom_sounds import generate, processes, studio
from freedoom_sounds.__main__ import main
from freedoom_sounds.classes import CLASSES, GAME, EngineError, GenerationError, split_levels
from freedoom_sounds.engine import Engine
from freedoom_sounds.generate import COLUMNS, RECORDS, ceilings

# ------------------------------------------------------------------------------- processes that end or stall


def fake_clip(out, key, spec):
    """A record and an empty file."""
    path = f"clips/{spec.clip_id}.mp4"
    (out / path).touch()
    made = {"clip_id": spec.clip_id, "path": path, "label": spec.label, "split": spec.split, "key": key}
    facts = {"scene": "freedoom2/map02", "audible": True, "visible": False, "snr_db": 3.0, "onset_s": 0.5}
    return made | facts | {"tries": 1, "failed": {}}


def weak_clip(out, key, spec):
    """The process dies at the first shotgun."""
    if spec.label == "fire_shotgun" and not (out / "died").exists():
        (out / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return fake_clip(out, key, spec)


def deadly_clip(out, key, spec):
    if spec.label == "fire_pistol":
        os.kill(os.getpid(), signal.SIGKILL)
    return fake_clip(out, key, spec)


make_clip = studio.make_clip


def clip_of_a_dead_engine(out, key, spec):
    """The engine dies before the first door."""
    if spec.label == "door_opens" and not (out / "died").exists():
        (out / "died").touch()
        next(child for child in psutil.Process().children() if "vizdoom" in child.name()).kill()
    return make_clip(out, key, spec)


def mute_clip(out, key, spec):
    (out / f"{spec.clip_id}-{time.monotonic_ns()}").touch()
    raise EngineError("the game engine gives only silence")


def stalled_engine(folder):
    """The engine stops inside a call, the first time."""
    if (folder / "pid").exists():
        return "made"
    engine = Engine(GAME, {})
    process = next(child for child in psutil.Process().children() if "vizdoom" in child.name())
    (folder / "pid").write_text(str(process.pid))
    process.suspend()
    engine.wait(1)


def test_a_process_that_died_is_replaced_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(studio, "make_clip", weak_clip)
    manifest = generate(tmp_path, seed=1, clips_per_class={"train": 2}, workers=1)
    assert len(manifest) == 2 * len(CLASSES)
    assert list(manifest.columns) == COLUMNS
    assert json.loads((tmp_path / "dataset.json").read_text())["generation"]["engine_restarts"] == 1


def test_a_clip_that_ends_every_process_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(studio, "make_clip", deadly_clip)
    with pytest.raises(GenerationError, match=r"class fire_pistol.*seed \d+.*ended 3 times"):
        generate(tmp_path, seed=1, clips_per_class={"train": 1}, workers=1)
    assert not (tmp_path / "manifest.csv").exists()


def test_an_engine_of_no_use_is_tried_again_and_then_said(tmp_path, monkeypatch):
    monkeypatch.setattr(studio, "make_clip", mute_clip)
    with pytest.raises(EngineError, match="only silence"):
        generate(tmp_path, seed=1, clips_per_class={"train": 1}, workers=1)
    assert max(len(list(tmp_path.glob(f"train-{label}-*"))) for label in CLASSES) == processes.ATTEMPTS


def test_a_stalled_engine_is_ended_with_its_process_and_its_task_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "STALL_SECONDS", 8.0)
    assert list(processes.run(stalled_engine, [tmp_path], workers=1)) == [("made", 2)]
    pid = int((tmp_path / "pid").read_text())
    assert wait_for(lambda: not alive(pid))


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for(what, seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.1)
    return what()


# ------------------------------------------------------------------------------- sets from the engine


def content(folder):
    clips = {file.name: file.read_bytes() for file in (folder / "clips").iterdir()}
    return clips, (folder / "manifest.csv").read_text(), (folder / RECORDS).read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    manifest = generate(folder, seed=3, clips_per_class={"test": 1}, workers=2)
    return folder, manifest


def test_a_set_is_described_as_it_is(whole):
    folder, manifest = whole
    assert list(manifest["label"]) == list(CLASSES)
    assert set(manifest["scene"].str[-5:]) <= set(split_levels("test"))
    description = json.loads((folder / "dataset.json").read_text())
    assert description["classes"] == list(CLASSES)
    assert description["source"] == {"version": 1, "seed": 3, "clips_per_class": {"test": 1}}
    assert description["ceilings"] == ceilings(manifest)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "manifest.csv"), manifest, check_dtype=False)
    assert sorted(file.name for file in folder.iterdir()) == ["clips", "dataset.json", "manifest.csv", RECORDS]


def test_an_interrupted_set_leaves_no_process_and_ends_up_the_same(whole, tmp_path):
    command = [sys.executable, "-m", "freedoom_sounds", str(tmp_path), "--seed", "3", "--workers", "2"]
    command += ["--train", "0", "--val", "0", "--test", "1"]
    records, kept = tmp_path / RECORDS, []
    # A shell starts its background jobs with SIGINT ignored, the tests perhaps among them.
    options = dict(stderr=subprocess.PIPE, text=True, preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL))
    for how in (signal.SIGINT, signal.SIGKILL):  # one call goes on from the other
        started, least, children = subprocess.Popen(command, **options), len(kept) + 3, []

        def at_work(parent=started.pid, found=children):
            found[:] = psutil.Process(parent).children(recursive=True)
            return len(found) >= 4  # two processes and their engines

        assert wait_for(at_work, 60)  # before the first clip, so that the signal does not come after the last
        assert wait_for(lambda n=least: records.exists() and len(records.read_text().splitlines()) >= n, 60)
        started.send_signal(how)
        _, said = started.communicate(timeout=30)
        assert started.returncode != 0
        assert ("goes on from here" in said) == (how == signal.SIGINT)
        assert wait_for(lambda gone=children: not any(alive(child.pid) for child in gone))
        kept = [json.loads(line)["path"] for line in records.read_text().splitlines()]
        assert least <= len(kept) < len(CLASSES)
    before = {path: (tmp_path / path).stat().st_mtime_ns for path in kept}
    with records.open("a") as file:
        file.write('{"clip_id": "test-fire_pis')  # cut off
    generate(tmp_path, seed=3, clips_per_class={"test": 1}, workers=1)
    assert content(tmp_path) == content(whole[0])
    assert {path: (tmp_path / path).stat().st_mtime_ns for path in kept} == before


def test_an_engine_that_dies_is_replaced_and_leaves_no_trace(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(studio, "make_clip", clip_of_a_dead_engine)
    generate(tmp_path, seed=3, clips_per_class={"test": 1}, workers=1)
    assert content(tmp_path) == content(whole[0])
    assert json.loads((tmp_path / "dataset.json").read_text())["generation"]["engine_restarts"] == 1


def test_clips_that_are_missing_or_of_another_set_are_made_good(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(studio, "make_clip", fake_clip)
    generate(tmp_path, seed=3, clips_per_class={"test": 2}, workers=1)
    (tmp_path / "clips/test-teleport-0000.mp4").unlink()
    generate(tmp_path, seed=3, clips_per_class={"test": 1}, workers=1)
    clips = {f"test-{label}-0000.mp4" for label in CLASSES}
    assert {file.name for file in (tmp_path / "clips").iterdir()} == clips


def test_the_command_says_what_is_wrong(tmp_path):
    with pytest.raises(SystemExit, match="train: -1: give one of"):
        main([str(tmp_path), "--train", "-1"])


def test_the_package_is_quick_to_import_and_stands_alone():
    code = """if True:
        import sys, freedoom_sounds
        heavy = {"numpy", "pandas", "vizdoom", "av", "matplotlib"} & set(sys.modules)
        import freedoom_sounds.card, freedoom_sounds.studio
        sys.exit(str(heavy) if heavy else "mmtlib" in sys.modules)
    """
    subprocess.run([sys.executable, "-c", code], check=True)


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
    assert ceilings(manifest) == {"test": {"audio": 80.0, "video": 100.0}}


def test_ceilings_of_a_set_with_a_pair_counted_by_hand():
    rows = [
        # label, audible, visible, seen, heard: the sound of an imp is in three classes, of which a guess names one
        ("imp_wakes", True, False, None, None),
        ("imp_wakes", False, True, None, None),
        ("monster_own_voice", True, True, "imp_wakes", "imp_wakes"),
        ("monster_other_voice", True, True, "demon_wakes", "imp_wakes"),
    ]
    manifest = pd.DataFrame(rows, columns=["label", "audible", "visible", "seen", "heard"]).assign(split="val")
    assert ceilings(manifest) == {"val": {"audio": 50.0, "video": 75.0, "sum": 75.0, "av": 100.0}}


def test_the_second_list_has_the_first_one_s_classes_and_its_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(studio, "make_clip", fake_clip)
    generate(tmp_path, seed=1, clips_per_class={"val": 1}, class_list="freedoom-sounds-2", workers=1)
    described = json.loads((tmp_path / "dataset.json").read_text())
    assert described["classes"] == [*CLASSES, *itertools.chain(*described["pairs"])]
    assert described["class_list"] == "freedoom-sounds-2"
    again = generate(tmp_path, seed=1, clips_per_class={"val": 1}, workers=1)  # another set: its clips are made anew
    assert list(again["label"]) == list(CLASSES)
    assert json.loads((tmp_path / "dataset.json").read_text())["pairs"] == []
    with pytest.raises(ValueError, match="class_list: 'all': use one of"):
        generate(tmp_path, seed=1, clips_per_class={"val": 1}, class_list="all")
