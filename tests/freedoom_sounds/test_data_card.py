"""The data card, of a made-up set in the form that the generator writes."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from freedoom_sounds import card
from freedoom_sounds.classes import CLASSES, KINDS, PAIRS
from freedoom_sounds.files import write_clip
from freedoom_sounds.generate import COLUMNS


def rows() -> list[dict]:
    """Two train clips and one test clip of each class; the second is seen and heard, if it can be."""
    made = []
    for label, event in CLASSES.items():
        silent = KINDS[event.kind].audible == 0
        for index, split in enumerate(("train", "train", "test")):
            made.append(
                {
                    "clip_id": f"{label}-{index}",
                    "path": f"clips/{label}-{index}.mp4",
                    "label": label,
                    "split": split,
                    "scene": "freedoom2/map01",
                    "audible": not silent and index != 2,
                    "visible": silent or index > 0,
                    "snr_db": None if silent else 4.0 * index,
                    "tries": 1,
                }
            )
    return made


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = tmp_path_factory.mktemp("workspace")
    clips = root / "data/clips"
    (clips / "clips").mkdir(parents=True)
    manifest = pd.DataFrame(rows(), columns=COLUMNS)
    manifest.to_csv(clips / "manifest.csv", index=False)
    generation = {"clips": len(manifest), "engine_restarts": 3}
    generation["retries"] = {"turn_left": {"stopped": 1, "a sound": 4}, "teleport": {"not seen": 2}}
    tops = {"train": {"audio": 81.5, "video": 70.0}, "test": {"audio": 30.0, "video": 100.0}}
    about = {"name": "freedoom-sounds", "classes": list(CLASSES), "ceilings": tops, "generation": generation}
    about["source"] = {"version": 5, "seed": 11, "clips_per_class": {}}
    (clips / "dataset.json").write_text(json.dumps(about))
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (8, 3, 4, 3), dtype=np.uint8).repeat(16, axis=1).repeat(16, axis=2)
    audio = rng.integers(-9000, 9000, (32000, 2)).astype(np.int16)
    first = clips / manifest["path"][0]
    write_clip(first, frames, 4, audio, 16000)
    for path in manifest["path"][1:]:
        (clips / path).write_bytes(first.read_bytes())
    return root


@pytest.fixture(scope="module")
def written(workspace):
    return card.write_data_card(workspace / "data/clips")


def test_the_card_says_what_the_generator_wrote(written, workspace):
    assert written["readme"] == workspace / "data/README.md"
    text = written["readme"].read_text()
    assert "in 18 classes: 36 train, 0 val, 18 test" in text
    assert "the seed: this copy's is 11." in text
    assert "54 clips took 7 further tries; the engine was restarted 3 times" in text
    assert "a sound (4); stopped (1)" in text
    assert "BSD 3-Clause" in text
    assert "MIT" in text
    flat = " ".join(text.split())
    assert "| train | 81.5 | 70.0 |" in flat
    assert "| teleport | mostly heard | 2 | 0 | 1 | 67 | 67 | 4.0 |" in flat
    assert "| turn_left | mostly seen | 2 | 0 | 1 | 0 | 100 | |" in flat
    assert "{" not in text


def test_pairs_have_their_section(workspace):
    about = json.loads((workspace / "data/clips/dataset.json").read_text())
    pairs = [list(PAIRS)[:2], list(PAIRS)[4:]]
    tops = {"train": {"audio": 40.0, "video": 50.0, "sum": 87.5, "av": 100.0}}
    about |= {"classes": [*CLASSES, *PAIRS], "pairs": pairs, "ceilings": tops}
    text = card.card_text(pd.read_csv(workspace / "data/clips/manifest.csv"), about)
    assert "in 24 classes" in text
    assert "| monster_own_voice / monster_other_voice | is what is heard what is seen, or another of its kind |" in text
    assert "| event_in_time / event_out_of_time | is it heard when it is seen, or 0.4 s before or after |" in text
    assert "| train | 40.0 | 50.0 | 87.5 | 100.0 |" in text
    assert "(card/told_by_both.jpg)" in text
    assert "{" not in text


def test_every_class_has_its_row_in_the_tables(written):
    text = written["readme"].read_text()
    assert all(text.count(f"| {label} ") >= 1 for label in CLASSES)


def test_pictures_are_linked_small_and_not_blank(written, workspace):
    text = written["readme"].read_text()
    pictures = {name: path for name, path in written.items() if name != "readme"}
    assert set(pictures) == set(KINDS) - {"told_by_both"}
    assert sum(path.stat().st_size for path in pictures.values()) < 400_000
    for path in pictures.values():
        assert f"({path.relative_to(workspace / 'data').as_posix()})" in text
        assert imread(path).std() > 20


def test_a_second_card_has_the_same_bytes(written, workspace):
    before = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in written.items()}
    again = card.write_data_card(workspace / "data/clips")
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in again.items()} == before


def test_the_example_is_seen_and_heard_if_one_is():
    manifest = pd.DataFrame(rows())
    assert card.example(manifest, "teleport")["clip_id"] == "teleport-1"
    assert card.example(manifest, "turn_left")["clip_id"] == "turn_left-0"
    with pytest.raises(card.CardError, match="no clip of teleport; make the set again"):
        card.example(manifest[manifest["label"] != "teleport"], "teleport")


def test_other_sets_and_damage_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(card.CardError, match="make the set first"):
        card.write_data_card(tmp_path / "data/clips")
    path = tmp_path / "data/clips/dataset.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(card.CardError, match="is damaged"):
        card.write_data_card(tmp_path / "data/clips")
    path.write_text('{"name": "vggsound"}')
    with pytest.raises(card.CardError, match="holds vggsound"):
        card.write_data_card(tmp_path / "data/clips")
    assert not (tmp_path / "data/README.md").exists()
