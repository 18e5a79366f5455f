"""The code of docs/vggsounder.md, on made-up predictions: with a stand-in for the package, and with it where it is."""

import re
import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from mmtlib.config import ROOT
from mmtlib.data.sources.listing import class_names

CODE = re.search(r"```python\n(.*?)```", (ROOT / "docs/vggsounder.md").read_text(), re.DOTALL)[1]
FILE = "predictions/vggsound/train_mmt/train_mmt-seed0.parquet"
assert f'"{FILE}"' in CODE


def write(folder, monkeypatch, clips, modalities, right):
    """Predictions as `evaluation.predictions` has them; right: clip -> place of the class with the largest logit."""
    rows = []
    for clip in clips:
        for modality in modalities:
            logits = np.zeros(309, np.float32)
            logits[right[clip, modality]] = 1.0
            rows.append({"clip_id": clip, "split": "test", "modality": modality, "logits": logits})
    path = folder / FILE
    path.parent.mkdir(parents=True)
    pd.DataFrame([*rows, rows[0] | {"split": "val"}]).to_parquet(path)
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("modalities", [["av", "audio", "video"], ["audio"]])
def test_the_package_is_given_what_it_takes(tmp_path, monkeypatch, modalities):
    package, benchmark = ModuleType("vggsounder"), ModuleType("vggsounder.benchmark")
    package.VGGSounder = type("Labels", (), {"__init__": lambda *_, **__: None, "get_all_labels": lambda _: ["x"]})
    benchmark.get_gt_for_modality = lambda labels, kind: kind
    benchmark.compare_labels_logits = lambda kind, frame, classes: {kind: len(frame), "columns": list(frame)}
    benchmark.compute_modality_confusion_logits = lambda kind, av, audio, video, classes: kind
    monkeypatch.setitem(sys.modules, "vggsounder", package)
    monkeypatch.setitem(sys.modules, "vggsounder.benchmark", benchmark)
    write(tmp_path, monkeypatch, "ab", modalities, dict.fromkeys(((c, m) for c in "ab" for m in modalities), 0))
    names = {}
    exec(CODE, names)
    kinds = {"av": "av", "audio": "a", "video": "v"}
    assert names["scores"] == {m: {kinds[m]: 2, "columns": ["id", "logits"]} for m in modalities}
    assert names.get("confusion") == ("all" if len(modalities) == 3 else None)


def test_the_scores_of_the_package_are_those_worked_out_by_hand(tmp_path, monkeypatch):
    labels = pytest.importorskip("vggsounder").VGGSounder(background_music=None)
    assert labels.get_all_labels() == class_names("vggsound-309")
    clips = [labels[place] for place in range(400)]
    clips = [clip for clip in clips if {"A", "V", "AV"} <= set(clip.modalities)][:4]
    places = {"audio": "A", "video": "V", "av": "AV"}
    right = {}
    for number, clip in enumerate(clips):  # the first two by what they are asked for, the others by none of it
        kinds = dict(zip(clip.labels, clip.modalities, strict=True))
        for modality, kind in places.items():
            wanted = next(
                name for name in class_names("vggsound-309") if kinds.get(name) == (kind if number < 2 else None)
            )
            right[clip.video_id, modality] = class_names("vggsound-309").index(wanted)
    write(tmp_path, monkeypatch, [clip.video_id for clip in clips], list(places), right)
    names = {}
    exec(CODE, names)
    assert [names["scores"][modality]["hit_rate@1"] for modality in places] == [0.5] * 3
    assert names["confusion"] == {"a": 0, "v": 0, "av": 0}
