"""The stage: the sources by their names, and what it writes."""

import json
import typing
from importlib.metadata import entry_points
from types import SimpleNamespace

import pandas as pd
import pytest
from real_sets import clip_bytes, csv_text, put

from mmtlib.config import Download, ParamsError, check
from mmtlib.data import download as module
from mmtlib.data import media_root, read_manifest
from mmtlib.data.download import download
from mmtlib.data.sources.listing import SourceError
from mmtlib.data.sources.survey import SOURCES


def test_a_source_of_another_package_is_called_with_what_it_needs(tmp_path, monkeypatch):
    calls = []
    entry = SimpleNamespace(
        name="toy", load=lambda: lambda *given, **more: calls.append((*given, more)) or pd.DataFrame()
    )
    monkeypatch.setattr(module, "entry_points", lambda group: [entry] if group == "mmtlib.sources" else [])
    download(tmp_path, source="toy", seed=3, clips_per_class={"train": 1}, media=None, speed=None, workers=2)
    assert calls == [(tmp_path, {"seed": 3, "clips_per_class": {"train": 1}, "workers": 2})]
    download(tmp_path, source="toy", class_list="some")
    assert calls[1] == (tmp_path, {"class_list": "some", "workers": 0})
    with pytest.raises(SourceError, match="no data set is called 'toys'; use toy, vggsound"):
        download(tmp_path, source="toys")


def test_the_generated_set_is_a_source():
    assert "freedoom-sounds" in {entry.name for entry in entry_points(group="mmtlib.sources")}


def test_a_real_set_is_written_where_the_next_stage_looks(tmp_path):
    put(tmp_path / "media/abcdefghi_0_000030.mp4", clip_bytes(tmp_path, 10))
    put(tmp_path / "media/abcdefghi_1_000030.mp4", b"")
    rows = [(f"abcdefghi_{number}", 30, "hail", "test") for number in range(3)]
    (tmp_path / "vggsound.csv").write_text(csv_text(rows))
    out = tmp_path / "data/clips"
    given = Download(
        source="vggsound", annotations=str(tmp_path / "vggsound.csv"), media=str(tmp_path / "media"), workers=1
    )
    manifest = download(out, **given.model_dump())
    pd.testing.assert_frame_equal(read_manifest(out / "manifest.csv"), manifest, check_dtype=False)
    assert media_root(out / "manifest.csv") == tmp_path / "media"
    dataset = json.loads((out / "dataset.json").read_text())
    assert (dataset["name"], dataset["class_list"], len(dataset["classes"])) == ("vggsound", "vggsound-309", 309)
    coverage = pd.read_csv(out / "coverage.csv").set_index("split")
    assert coverage.loc["test"].to_dict() == dict(
        listed=3, found=2, broken=1, silent=0, blind=0, too_short=0, in_train=0
    )
    problems = pd.read_csv(out / "problems.csv")
    assert problems.columns.tolist() == ["clip_id", "path", "status", "reason"]
    assert problems.status.tolist() == ["broken", "missing"]
    assert sorted(path.name for path in out.iterdir()) == [
        "coverage.csv",
        "dataset.json",
        "manifest.csv",
        "problems.csv",
    ]
    assert sorted(path.name for path in out.parent.iterdir()) == ["clips", "probe"]  # DVC empties data/clips alone


def test_settings_that_cannot_be_are_named(tmp_path):
    with pytest.raises(SourceError, match="no data set is called 'vgg'; use freedoom-sounds, vggsound, kinetics-sou"):
        download(tmp_path, source="vgg")
    with pytest.raises(SourceError, match=r"^download\.media: vggsound is files that are there; give their folder"):
        download(tmp_path, source="vggsound")
    with pytest.raises(SourceError, match=r"^download\.seed: vggsound is files that are there"):
        download(tmp_path, source="vggsound", media=str(tmp_path), seed=3)
    with pytest.raises(SourceError, match=r"^download\.annotations: vggsound needs them"):
        download(tmp_path, source="vggsound", media=str(tmp_path))
    with pytest.raises(SourceError, match=r"^download\.media: .*nowhere is no folder"):
        download(tmp_path, source="folder", media=str(tmp_path / "nowhere"))
    assert not list(tmp_path.iterdir())


def test_the_parameters_know_the_same_sources():
    assert set(typing.get_args(Download.model_fields["source"].annotation)) == {"freedoom-sounds", *SOURCES}


FREEDOOM = {"source": "freedoom-sounds", "seed": 1, "clips_per_class": {"train": 1, "val": 1, "test": 1}, "workers": 0}
VGGSOUND = {"source": "vggsound", "annotations": "a.csv", "media": "m", "workers": 0}
KINETICS = {**VGGSOUND, "source": "kinetics-sounds", "class_list": "kinetics-sounds-31"}
FOLDER = {"source": "folder", "media": "m", "workers": 0}
UCF = {**VGGSOUND, "source": "ucf101"}
ESC, URBAN, GRID = ({**FOLDER, "source": name} for name in ("esc50", "urbansound8k", "grid"))
WHOLE = [FREEDOOM, VGGSOUND, KINETICS, FOLDER, {**FOLDER, "annotations": "a.csv"}, UCF, ESC, URBAN, GRID]
WHOLE += [
    {**FREEDOOM, "class_list": "freedoom-sounds-2"},
    {**FOLDER, "follow_links": True},
    {**GRID, "follow_links": True},
]
WHOLE += [{**UCF, "class_list": value} for value in ("all", "sound", ["Archery", "YoYo"])]
WHOLE += [{**ESC, "annotations": "a.csv", "class_list": "esc-10"}, {**URBAN, "annotations": "a.csv"}]


@pytest.mark.parametrize("values", WHOLE)
def test_complete_settings_are_accepted_with_every_default_written_out(values):
    given = check(Download, values, "x").model_dump()
    assert check(Download, given, "x").model_dump() == given


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({**VGGSOUND, "seed": 0}, "seed means nothing to vggsound; remove it"),
        ({**VGGSOUND, "clips_per_class": FREEDOOM["clips_per_class"]}, "clips_per_class means nothing to vggsound"),
        ({**VGGSOUND, "class_list": "kinetics-sounds-31"}, "class_list means nothing to vggsound"),
        ({**FREEDOOM, "media": "m"}, "media means nothing to freedoom-sounds"),
        ({**FREEDOOM, "follow_links": True}, "follow_links means nothing to freedoom-sounds"),
        ({**FREEDOOM, "val_share": 0.1}, "val_share means nothing to freedoom-sounds"),
        ({**FREEDOOM, "seed": None}, "seed is missing, which freedoom-sounds needs; add it"),
        ({**VGGSOUND, "media": None}, "media is missing, which vggsound needs"),
        ({**VGGSOUND, "annotations": None}, "annotations is missing, which vggsound needs"),
        ({**KINETICS, "class_list": None}, "class_list is missing, which kinetics-sounds needs"),
        ({**KINETICS, "class_list": "k-31"}, "must be kinetics-sounds-31 or kinetics-sounds-32; change it."),
        ({**KINETICS, "class_list": ["a"]}, 'class_list is ["a"] but must be kinetics-sounds-31 or'),
        ({**UCF, "class_list": "loud"}, 'class_list is "loud" but must be all or sound or a list of its classes; ch'),
        ({**FREEDOOM, "class_list": "pairs"}, 'class_list is "pairs" but must be freedoom-sounds-2; change it'),
        ({**UCF, "class_list": 3}, "class_list is 3 but must be a name or a list of names; change it."),
        ({**UCF, "class_list": []}, "class_list is [] but must be a name or a list of names; change it."),
        ({**UCF, "class_list": ["Archery", 3]}, "must be a name or a list of names; change it."),
        ({**UCF, "annotations": None}, "annotations is missing, which ucf101 needs"),
        ({**UCF, "val_share": 0.1}, "val_share means nothing to ucf101; remove it"),
        ({**ESC, "val_share": 0.1}, "val_share means nothing to esc50; remove it"),
        ({**ESC, "class_list": "esc-50"}, 'class_list is "esc-50" but must be esc-10; change it'),
        ({**URBAN, "class_list": "all"}, "class_list means nothing to urbansound8k; remove it"),
        ({**GRID, "val_share": 0.2}, "val_share means nothing to grid; remove it"),
        ({**GRID, "media": None}, "media is missing, which grid needs"),
        ({**VGGSOUND, "source": "vgg-sound"}, 'source is "vgg-sound" but must be'),
    ],
)
def test_settings_of_another_source_are_refused_in_one_sentence(values, words):
    with pytest.raises(ParamsError) as error:
        check(Download, values, "params.yaml")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
