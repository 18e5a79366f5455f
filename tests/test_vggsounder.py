"""VGGSounder's scores, worked out by hand, and beside those of its own package where that is installed."""

import pickle

import numpy as np
import pandas as pd
import pytest

from mmtlib import vggsounder
from mmtlib.vggsounder import LabelsError, read_labels, score

CLASSES = ["dog", "cat", "rain", "bell", "horn", "wind"]


def predictions(guesses, split="test"):
    """Predictions with the logits in the order of `guesses`: clip -> modality -> class names, best first."""
    rows = []
    for number, (clip, by_modality) in enumerate(guesses.items()):
        for modality, names in by_modality.items():
            order = [CLASSES.index(name) for name in names]
            order += [index for index in range(len(CLASSES)) if index not in order]
            logits = np.empty(len(CLASSES), dtype=np.float32)
            logits[order] = -np.arange(len(CLASSES))
            label = number % len(CLASSES)
            row = {"clip_id": clip, "split": split, "label": CLASSES[label], "label_index": label}
            rows.append(row | {"modality": modality, "logits": logits})
    return pd.DataFrame(rows)


def labels(*rows):
    return pd.DataFrame(rows, columns=["video_id", "label", "modality"])


def test_scores_are_those_worked_out_by_hand():
    guesses = {
        "a": {"av": ["rain", "dog"], "audio": ["dog"], "video": ["cat"]},  # each alone right, the fusion wrong
        "b": {"av": ["rain", "dog", "bell"], "audio": ["dog"], "video": ["bell"]},  # video alone right
        "c": {"av": ["rain"], "audio": ["rain"], "video": ["dog"]},  # all right by some label, but video
        "d": {"av": ["dog"], "audio": ["dog"]},  # no picture: not among the clips of mu
        "unlabelled": {"av": ["dog"], "audio": ["dog"], "video": ["dog"]},
        "f": {"av": ["wind"], "audio": ["wind"], "video": ["wind"]},
    }
    truth = labels(
        *[("a", "dog", "AV"), ("a", "cat", "V"), ("b", "bell", "V"), ("c", "rain", "A"), ("d", "cat", "AV")],
        *[("f", "horn", "AV"), ("lost", "wind", "A")],
    )
    table = score(predictions(guesses), truth).set_index(["modality", "labels"])
    assert len(table) == 12
    assert list(table.loc[("av", "all"), ["listed", "n"]]) == [6, 5]
    assert list(table.loc[("video", "all"), ["listed", "n"]]) == [6, 4]
    assert list(table.loc[("audio", "AV"), ["listed", "n"]]) == [3, 3]
    # by all labels, fusion: c at 1; a, b, c and d at 3; horn is only the sixth guess for f
    row = table.loc[("av", "all")]
    assert list(row[["hit_rate@1", "hit_rate@3", "hit_rate@5"]]) == pytest.approx([20.0, 80.0, 80.0])
    # 6 labels of 5 clips; right guesses: 1 of 5, 5 of 15 (a: dog, cat; b: bell; c: rain; d: cat), 5 of 25
    assert list(row[["f1@1", "f1@3", "f1@5"]]) == pytest.approx([200 / 11, 1000 / 21, 1000 / 31])
    # the sound is asked for what is heard: a (dog) and c (rain) right, d and f not
    assert table.loc[("audio", "A"), "hit_rate@1"] == pytest.approx(50.0)
    assert table.loc[("video", "V"), "hit_rate@1"] == pytest.approx(100 * 2 / 3)
    # of a, b, c and f: audio alone right on a, video alone on a and b, each of them on a
    mu = table["mu"].dropna()
    assert mu.to_dict() == {("av", "all"): 25.0, ("audio", "all"): 25.0, ("video", "all"): 50.0}


def test_one_modality_alone_is_scored_without_confusion():
    guesses = {name: {"audio": [name]} for name in CLASSES}
    table = score(predictions(guesses), labels(("dog", "dog", "AV"), ("cat", "dog", "V")))
    assert "mu" not in table
    assert list(table["hit_rate@1"]) == [100.0, 50.0, 100.0, 50.0]


def test_what_cannot_be_scored_is_refused_in_a_sentence(tmp_path):
    guesses = {name: {"audio": [name]} for name in CLASSES}
    known = labels(("dog", "dog", "AV"))
    with pytest.raises(LabelsError, match="No predicted clip is of class 'bagpipes'"):
        score(predictions(guesses), labels(("dog", "bagpipes", "A")))
    with pytest.raises(LabelsError, match="No test clip predicted from audio has VGGSounder labels of set A"):
        score(predictions(guesses), labels(("other", "dog", "AV")))
    with pytest.raises(LabelsError, match="no clip of the test split"):
        score(predictions(guesses, "val"), known)
    path = tmp_path / "labels.csv"
    for text, problem in [
        ("video_id,label\na,dog\n", "no CSV with columns"),
        ("video_id,label,modality\na,dog,AW\n", "modality is 'AW'; use A, V or AV"),
        ("video_id,label,modality\na,dog,\n", "modality is ''"),
        ('video_id,label,modality\na,"dog,A\n', "no CSV with columns"),
        ("", "no CSV with columns"),
    ]:
        path.write_text(text)
        with pytest.raises(LabelsError, match=problem) as caught:
            read_labels(path)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)
    path.write_bytes(b"video_id,label,modality\na,d\xff,A\n")
    with pytest.raises(LabelsError, match="no CSV with columns"):
        read_labels(path)


def test_labels_come_from_the_installed_package(tmp_path, monkeypatch):
    monkeypatch.setattr(vggsounder, "find_spec", lambda name: None)
    with pytest.raises(LabelsError, match="vggsounder is not installed"):
        read_labels()
    (tmp_path / "vggsounder" / "data").mkdir(parents=True)
    (tmp_path / "vggsounder" / "__init__.py").touch()
    text = "video_id,label,modality,voice_over\na,NA,A,True\n"
    (tmp_path / "vggsounder" / "data" / "vggsounder+background-music.csv").write_text(text)
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path)
    assert read_labels().to_dict("records") == [{"video_id": "a", "label": "NA", "modality": "A"}]


def test_the_command_prints_a_table_and_writes_it(tmp_path, capsys):
    guesses = {name: {"audio": [name]} for name in CLASSES}
    path, csv = tmp_path / "mat_b.parquet", tmp_path / "labels.csv"
    predictions(guesses).to_parquet(path)
    labels(("dog", "dog", "AV"), ("cat", "dog", "V")).to_csv(csv, index=False)
    assert vggsounder.main([str(path), "--labels", str(csv)]) == 0
    assert "| audio      | AV       |        1 |" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "mat_b.vggsounder.csv")) == 4
    (tmp_path / "bad.parquet").write_text("no table")
    predictions(guesses).drop(columns="logits").to_parquet(tmp_path / "less.parquet")
    for name, problem in [("bad", "no table of predictions"), ("less", "'logits'"), ("absent", "does not exist")]:
        assert vggsounder.main([str(tmp_path / f"{name}.parquet"), "--labels", str(csv)]) == 1
        error = capsys.readouterr().err
        assert problem in error
        assert error.startswith(str(tmp_path / name))
        assert error.count("\n") == 1


def test_the_scores_are_those_of_the_package(tmp_path):
    theirs = pytest.importorskip("vggsounder.benchmark")
    official = theirs.VGGSounder(background_music=None)
    names, truth = official.get_all_labels(), read_labels()
    rng = np.random.default_rng(0)
    clips = rng.permutation(truth["video_id"].unique())[:400]
    own = truth.drop_duplicates("video_id").set_index("video_id")["label"]
    rows, stored = [], {}
    for number, clip in enumerate(clips):
        # logits that know something, and others than those of the neighbour
        logits = {m: rng.normal(size=len(names)).astype(np.float32) for m in ("a", "v", "av")}
        for values in logits.values():
            values[names.index(own[clip])] += rng.uniform(0, 4)
        stored[clip] = {"logits": logits}
        label = number % len(names)  # every class occurs; our scores do not look at the single label
        for key, modality in (("av", "av"), ("a", "audio"), ("v", "video")):
            row = {"clip_id": clip, "split": "test", "label": names[label], "label_index": label}
            rows.append(row | {"modality": modality, "logits": logits[key]})
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(stored))
    modalities = ["a", "v", "av"]
    expected = theirs.compute_all_results(str(tmp_path), modalities=modalities, vggsounder=official, verbose=False)
    table = score(pd.DataFrame(rows), truth).set_index(["modality", "labels"])
    for key, modality, own_labels in (("a", "audio", "A"), ("v", "video", "V"), ("av", "av", "AV")):
        for name in (f"{metric}@{k}" for metric in ("hit_rate", "f1") for k in (1, 3, 5)):
            assert table.loc[(modality, own_labels), name] == pytest.approx(100 * expected["model"][key][name])
        assert table.loc[(modality, "all"), "mu"] == pytest.approx(100 * expected["model"][key]["mu"])
