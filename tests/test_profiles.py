"""The studies of real sets: explained, and run end to end on made-up sets in the official layout."""

import json
import re

import made_up_sets
import pandas as pd
import pytest
from ruamel.yaml import YAML

from mmtlib.config import ROOT, STAGES, Params, load
from mmtlib.folders import Folders
from study import notebook
from study.report import write_report

REAL = ["vggsound", "kinetics-sounds", "epic-kitchens-100"]
STATUS = ["missing", "broken", "silent", "too_short"]


def leaves(values: dict, name: str = "") -> dict[str, object]:
    """Every value by its dotted name."""
    found = {}
    for key, value in values.items():
        own = f"{name}.{key}".removeprefix(".")
        found |= leaves(value, own) if isinstance(value, dict) and value and key != "overrides" else {own: value}
    return found


def check_explained(name: str) -> None:
    text = (ROOT / f"params/{name}.yaml").read_text()
    stated = YAML(typ="safe", pure=True).load(text)
    assert stated["study"] == name
    for section in stated.keys() & {"features", "training", *STAGES, "report", "efficiency"}:
        lines = text[text.index(f"\n{section}:") :].splitlines()
        for field, value in leaves(stated[section] or {}).items():
            line = next(line for line in lines if re.match(rf" +{field.split('.')[-1]}:", line))
            assert "#" in line or field == "model", f"{section}.{field}: {value}"


@pytest.mark.parametrize("name", REAL)
def test_a_study_explains_each_value_in_which_it_differs(name):
    """With a comment in its line: where it is from. `download` says what and where the set is."""
    check_explained(name)
    given, default = load(f"params/{name}.yaml"), load()
    assert given.download.source == name
    assert given.efficiency == default.efficiency
    assert [run.model for run in (given.pretrain_mat, given.pretrain_mvit, given.train_mmt)] == [
        "mat_b",
        "mvitv2_b",
        "mmt_b",
    ]
    assert {"ast_b", "mbt_b", "mmt_ce"} <= set(given.ablations)


@pytest.mark.parametrize("name", REAL)
def test_what_a_study_says_of_others_is_so(name):
    """What was trained by the recipe of VGGSound still is: the overlay on top of it changes what it names alone."""
    given, base = load(f"params/{name}.yaml"), load("params/vggsound.yaml")
    assert (given.pretrain_mat, given.pretrain_mvit, given.train_mmt) == (
        base.pretrain_mat,
        base.pretrain_mvit,
        base.train_mmt,
    )
    assert given.ablations == base.ablations
    changed = {
        field
        for field, value in leaves(given.training.model_dump()).items()
        if leaves(base.training.model_dump())[field] != value
    }
    assert changed == ({"spec_augment.time_width"} if name == "epic-kitchens-100" else set())


def test_the_studies_of_audioset_are_of_audio_alone_and_follow_the_recipe_of_ast():
    small, whole = (load(f"params/{name}.yaml") for name in ("audioset-20k", "audioset-2m"))
    for name, given in (("audioset-20k", small), ("audioset-2m", whole)):
        check_explained(name)
        assert {name: run.model for name, run in given.runs.items()} == {"pretrain_mat": "mat_b", "ast_b": "ast_b"}
        assert {run.init for run in given.runs.values()} == {"imagenet"}
    recipe = small.training
    assert (recipe.batch_size, recipe.spec_augment.time_width, recipe.spec_augment.freq_width) == (12, 192, 48)
    ours = [(given.pretrain_mat.epochs, given.pretrain_mat.lr) for given in (small, whole)]
    theirs = [(given.ablations["ast_b"].epochs, given.ablations["ast_b"].lr) for given in (small, whole)]
    assert theirs == [(25, 5e-5), (5, 1e-5)]
    assert ours == [(25, 7.5e-5), (5, 1.5e-5)]
    assert whole.training == recipe.model_copy(update={"balanced": True})


@pytest.mark.parametrize("name", REAL)
def test_the_size_of_the_cache_that_a_profile_states_is_right(name):
    text, features = (ROOT / f"params/{name}.yaml").read_text(), load(f"params/{name}.yaml").features
    stated = re.search(
        r"([\d.]+) MB(?: a view)?: ([\d.]+) ([TG])B for (?:some )?([\d,]+) train and 4 x ([\d,]+) test", text
    )
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


def run(folders: Folders, params: Params) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Every stage, as its notebook calls it; the manifest, what the report says of coverage, and the report."""
    for stage in ("download", "features", "pretrain_mat", "pretrain_mvit", "train_mmt", "ablations"):
        notebook._run(stage, params, folders)
    made = write_report(folders, params)
    manifest = pd.read_csv(folders.clips / "manifest.csv", dtype={"clip_id": str})
    return manifest, pd.read_csv(made["tables"]["coverage"], index_col="split"), made["readme"].read_text()


def check_counts(folders: Folders, manifest: pd.DataFrame, coverage: pd.DataFrame, flaws: dict[str, str]) -> None:
    """Both stages count each flaw of each split, and nothing else."""
    assert sorted(manifest.clip_id) == sorted(flaws)
    wrong = manifest.clip_id.map(flaws)
    wanted = pd.crosstab(manifest.split, wrong).reindex(index=coverage.index, columns=STATUS, fill_value=0)
    listed = manifest.split.value_counts()
    wanted.insert(0, "listed", listed)
    assert coverage[wanted.columns].astype(int).to_dict() == wanted.to_dict()
    assert (coverage.used == wanted.listed - wanted.missing - wanted.broken).all()
    probed = pd.read_csv(folders.clips / "coverage.csv", index_col="split")
    assert (probed.found == wanted.listed - wanted.missing).all()
    counted = ["listed", "broken", "silent", "too_short"]
    assert probed[counted].astype(int).to_dict() == wanted[counted].to_dict()
    problems = pd.read_csv(folders.clips / "problems.csv").set_index("clip_id")
    assert problems.status.to_dict() == {name: flaw for name, flaw in flaws.items() if flaw}


def views_of_test(folders: Folders) -> pd.Series:
    """How many rows each test clip has in the index."""
    index = pd.read_csv(folders.features / "index.csv")
    assert not index[index.split != "test"].clip_id.duplicated().any()
    return index[index.split == "test"].clip_id.value_counts()


def test_vggsound_runs_from_the_official_csv_to_the_report_and_every_flaw_is_counted(tmp_path):
    folders, params = Folders(tmp_path, "vggsound"), tiny("vggsound", tmp_path)
    flaws = made_up_sets.vggsound(tmp_path, load("params/vggsound.yaml").download)
    counts = {"": 90, "missing": 5, "broken": 2, "silent": 2, "too_short": 1}
    assert pd.Series(flaws.values()).value_counts().to_dict() == counts
    manifest, coverage, text = run(folders, params)
    check_counts(folders, manifest, coverage, flaws)
    assert manifest.path[90] == made_up_sets.HOSTILE
    assert set(views_of_test(folders)) == {4}
    assert not (folders.features / "frames.npy").exists()  # decoded for each batch
    test = coverage.loc["test"]
    assert f"On {test.used:.0f} of the 20 test clips that vggsound (vggsound-309) lists, in 309 classes" in text


def test_kinetics_sounds_runs_from_the_csvs_of_kinetics_400_to_the_report(tmp_path):
    folders, params = Folders(tmp_path, "kinetics-sounds"), tiny("kinetics-sounds", tmp_path)
    flaws = made_up_sets.kinetics_sounds(tmp_path, load("params/kinetics-sounds.yaml").download)
    manifest, coverage, text = run(folders, params)
    check_counts(folders, manifest, coverage, flaws)
    assert (folders.features / "frames.npy").exists()  # kept
    assert set(views_of_test(folders)) == {4}
    assert "test clips that kinetics-sounds (kinetics-sounds-31) lists, in 31 classes" in text
    results = pd.read_csv(folders.report / "tables/results.csv")
    assert set(results.dataset) == {"kinetics-sounds (kinetics-sounds-31)"}


def test_epic_kitchens_runs_from_long_videos_to_verb_noun_and_action_scores(tmp_path):
    folders, params = (
        Folders(tmp_path, "epic-kitchens-100"),
        tiny("epic-kitchens-100", tmp_path, crops=3),
    )  # no profile has 3: MBT and MViTv2 have 1
    flaws = made_up_sets.epic_kitchens(tmp_path, load("params/epic-kitchens-100.yaml").download)
    manifest, coverage, text = run(folders, params)
    check_counts(folders, manifest, coverage, flaws)
    assert set(views_of_test(folders)) == {12}
    features = json.loads((folders.features / "features.json").read_text())
    assert {head: len(names) for head, names in features["heads"].items()} == {"verb": 97, "noun": 300}
    assert "test clips that epic-kitchens-100 lists, in 97 x 300 classes" in text
    scores = pd.read_csv(folders.report / "tables/results.csv")
    assert (scores.top1 <= scores[["verb_top1", "noun_top1"]].min(axis=1)).all()
    assert (scores.top5 <= scores[["verb_top5", "noun_top5"]].min(axis=1)).all()


def test_the_studies_that_readme_and_guides_show_are_ones(tmp_path):
    readme = (ROOT / "README.md").read_text()
    own, alone = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    weights = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/pretrained.md").read_text(), re.DOTALL)[1]
    own = own.replace("params.yaml", f"{ROOT}/params.yaml", 1)
    runs = {}
    for name, text in {"own": own, "alone": own + alone, "weights": own + weights}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
        runs[name] = load(tmp_path / f"{name}.yaml").runs
    assert {"train_mmt", "mbt_t"} < runs["own"].keys()
    assert runs["alone"].keys() == {"pretrain_mat", "ast_t"}
    assert (
        Folders(ROOT, "mine").weights("train_mmt", 0).relative_to(ROOT).as_posix() in (ROOT / "README.md").read_text()
    )
    assert (runs["weights"]["pretrain_mat"].model, runs["weights"]["pretrain_mat"].init) == ("mat_s", "imagenet")
