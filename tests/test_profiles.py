"""The profiles of real sets: whole, explained, and run end to end on made-up sets in the official layout."""

import json
import re

import made_up_sets
import pandas as pd
import pytest

from mmtlib.config import ROOT, Params, load
from study import smoke
from study.report import write_report

REAL = ["vggsound", "kinetics-sounds", "epic-kitchens-100"]
STATUS = ["missing", "broken", "silent", "too_short"]


@pytest.mark.parametrize("name", REAL)
def test_a_profile_states_every_value_and_explains_each_that_is_not_the_default_profiles(name):
    text = (ROOT / f"params/{name}.yaml").read_text()
    given, default = load(f"params/{name}.yaml"), load()
    assert given.download.source == name
    for section in ("features", "training", "pretrain_mat", "pretrain_mvit", "train_mmt", "report", "efficiency"):
        one, other = getattr(given, section), getattr(default, section)
        assert one.model_fields_set == set(type(one).model_fields)
        body = text[text.index(f"\n{section}:") :]
        for field in one.model_fields_set - {"model"}:  # the first line names the models' size
            if getattr(one, field) != getattr(other, field):
                value = re.search(rf"\n  {field}:.*((?:\n    .*)*)", body)[0]
                assert all("#" in line for line in value.strip().splitlines() if not line.endswith(":")), value
    assert given.efficiency == default.efficiency
    assert {given.pretrain_mat.model, given.pretrain_mvit.model, given.train_mmt.model} == {
        "mat_b",
        "mvitv2_b",
        "mmt_b",
    }
    assert {"ast_b", "mbt_b", "mmt_ce"} <= set(given.ablations)


@pytest.mark.parametrize("name", REAL)
def test_the_size_of_the_cache_that_a_profile_states_is_right(name):
    text, features = (ROOT / f"params/{name}.yaml").read_text(), load(f"params/{name}.yaml").features
    stated = re.search(r"([\d.]+) MB a view: ([\d.]+) ([TG])B for (?:some )?([\d,]+) train and 4 x ([\d,]+) test", text)
    hops = round((1000 * features.seconds - features.window_ms) // features.hop_ms) + 1
    view = 3 * features.frames * features.size**2 + 2 * features.mel_bins * hops
    train, test = (int(count.replace(",", "")) for count in stated.groups()[3:])
    total = view * (train + features.clips * test)
    assert float(stated[1]) == round(view / 1e6, 1)
    assert float(stated[2]) == pytest.approx(total / {"T": 1e12, "G": 1e9}[stated[3]], rel=0.03)
    assert features.cache == (total < 2e11)  # what a disk has to spare


def tiny(name: str, root, **features) -> Params:
    """A profile with tiny models on tiny inputs, one epoch and one ablation; all else as it says."""
    values = load(f"params/{name}.yaml").model_dump()
    for path in ("annotations", "media"):
        values["download"][path] = str(root / values["download"][path])
    values["download"]["workers"] = values["features"]["workers"] = 1
    values["features"] |= {"frames": 4, "size": 32, "seconds": 1.0, **features}
    values["training"]["warmup_epochs"] = 0
    values["ablations"] = {"mbt_b": values["ablations"]["mbt_b"]}
    runs = [values[stage] for stage in ("pretrain_mat", "pretrain_mvit", "train_mmt")] + [values["ablations"]["mbt_b"]]
    for run in runs:
        run |= {"model": run["model"].replace("_b", "_t"), "epochs": 1}
    values["report"]["bootstrap"] = 100
    return Params.model_validate(values)


def run(workspace, params: Params) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Every stage, as its notebook calls it; the manifest, what the report says of coverage, and the report."""
    for stage in ("download", "features", "pretrain_mat", "pretrain_mvit", "train_mmt", "ablations"):
        smoke._run(workspace, params, stage)
    made = write_report(workspace, params)
    manifest = pd.read_csv(workspace / "data/clips/manifest.csv", dtype={"clip_id": str})
    return manifest, pd.read_csv(made["tables"]["coverage"], index_col="split"), made["readme"].read_text()


def check_counts(workspace, manifest: pd.DataFrame, coverage: pd.DataFrame, flaws: dict[str, str]) -> None:
    """Both stages count each flaw of each split, and nothing else."""
    assert sorted(manifest.clip_id) == sorted(flaws)
    wrong = manifest.clip_id.map(flaws)
    wanted = pd.crosstab(manifest.split, wrong).reindex(index=coverage.index, columns=STATUS, fill_value=0)
    listed = manifest.split.value_counts()
    wanted.insert(0, "listed", listed)
    assert coverage[wanted.columns].astype(int).to_dict() == wanted.to_dict()
    assert (coverage.used == wanted.listed - wanted.missing - wanted.broken).all()
    probed = pd.read_csv(workspace / "data/clips/coverage.csv", index_col="split")
    assert (probed.found == wanted.listed - wanted.missing).all()
    counted = ["listed", "broken", "silent", "too_short"]
    assert probed[counted].astype(int).to_dict() == wanted[counted].to_dict()
    problems = pd.read_csv(workspace / "data/clips/problems.csv").set_index("clip_id")
    assert problems.status.to_dict() == {name: flaw for name, flaw in flaws.items() if flaw}


def views_of_test(workspace) -> pd.Series:
    """How many rows each test clip has in the index."""
    index = pd.read_csv(workspace / "data/features/index.csv")
    assert not index[index.split != "test"].clip_id.duplicated().any()
    return index[index.split == "test"].clip_id.value_counts()


def test_vggsound_runs_from_the_official_csv_to_the_report_and_every_flaw_is_counted(tmp_path):
    params = tiny("vggsound", tmp_path)
    flaws = made_up_sets.vggsound(tmp_path, load("params/vggsound.yaml").download)
    counts = {"": 90, "missing": 5, "broken": 2, "silent": 2, "too_short": 1}
    assert pd.Series(flaws.values()).value_counts().to_dict() == counts
    manifest, coverage, text = run(tmp_path, params)
    check_counts(tmp_path, manifest, coverage, flaws)
    assert manifest.path[90] == made_up_sets.HOSTILE
    assert set(views_of_test(tmp_path)) == {4}
    assert not (tmp_path / "data/features/frames.npy").exists()  # decoded for each batch
    test = coverage.loc["test"]
    assert f"On {test.used:.0f} of the 20 test clips that vggsound (vggsound-309) lists, in 309 classes" in text


def test_kinetics_sounds_runs_from_the_csvs_of_kinetics_400_to_the_report(tmp_path):
    params = tiny("kinetics-sounds", tmp_path)
    flaws = made_up_sets.kinetics_sounds(tmp_path, load("params/kinetics-sounds.yaml").download)
    manifest, coverage, text = run(tmp_path, params)
    check_counts(tmp_path, manifest, coverage, flaws)
    assert (tmp_path / "data/features/frames.npy").exists()  # kept
    assert set(views_of_test(tmp_path)) == {4}
    assert "test clips that kinetics-sounds (kinetics-sounds-31) lists, in 31 classes" in text
    results = pd.read_csv(tmp_path / "reports/tables/results.csv")
    assert set(results.dataset) == {"kinetics-sounds (kinetics-sounds-31)"}


def test_epic_kitchens_runs_from_long_videos_to_verb_noun_and_action_scores(tmp_path):
    params = tiny("epic-kitchens-100", tmp_path, crops=3)  # no profile has 3: MBT and MViTv2 have 1
    flaws = made_up_sets.epic_kitchens(tmp_path, load("params/epic-kitchens-100.yaml").download)
    manifest, coverage, text = run(tmp_path, params)
    check_counts(tmp_path, manifest, coverage, flaws)
    assert set(views_of_test(tmp_path)) == {12}
    features = json.loads((tmp_path / "data/features/features.json").read_text())
    assert {head: len(names) for head, names in features["heads"].items()} == {"verb": 97, "noun": 300}
    assert "test clips that epic-kitchens-100 lists, in 97 x 300 classes" in text
    scores = pd.read_csv(tmp_path / "reports/tables/results.csv")
    assert (scores.top1 <= scores[["verb_top1", "noun_top1"]].min(axis=1)).all()
    assert (scores.top5 <= scores[["verb_top5", "noun_top5"]].min(axis=1)).all()
