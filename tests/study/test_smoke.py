"""What a notebook finds before it starts: made in a smoke workspace, asked for in a real one."""

import pytest

from study import smoke
from study.run import GUIDES, STAGES

SMALL = smoke.load("params/smoke.yaml")


@pytest.fixture
def verbs(monkeypatch):
    """The stages' verbs, replaced by ones that leave the files only; the list of those that were called."""
    called = []

    def leave(folder, params, stage):
        called.append(stage)
        for name in smoke.outputs(params, stage):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("x")

    monkeypatch.setattr(smoke, "_run", leave)
    return called


def test_every_stage_says_what_it_needs_and_only_earlier_ones():
    assert list(smoke.NEEDS) == [*STAGES, *GUIDES]
    for place, stage in enumerate(STAGES):
        assert set(smoke.NEEDS[stage]) <= set(STAGES[:place])


def test_a_smoke_workspace_is_filled_in_order_and_once(tmp_path, verbs):
    workspace = tmp_path / "build" / "smoke"
    smoke.prepare(workspace, "train_mmt")
    assert verbs == ["download", "features", "pretrain_mat", "pretrain_mvit"]
    smoke.prepare(workspace, "train_mmt")
    assert len(verbs) == 4
    smoke.prepare(workspace, "report")
    assert verbs[4:] == ["train_mmt", "ablations"]


def test_one_missing_file_is_enough_to_run_its_stage_again(tmp_path, verbs):
    workspace = tmp_path / "build" / "smoke"
    smoke.prepare(workspace, "report")
    verbs.clear()
    (workspace / "predictions/ablations/mbt_t/mbt_t-seed0.parquet").unlink()
    smoke.prepare(workspace, "report")
    assert verbs == ["ablations"]


@pytest.mark.parametrize(
    ("stage", "first", "run"),
    [
        ("features", "data/clips/manifest.csv", "download"),
        ("pretrain_mat", "data/features/features.json", "features"),
        ("train_mmt", "data/features/features.json", "features"),
    ],
)
def test_a_real_workspace_is_left_alone_and_the_stage_to_run_is_named(tmp_path, verbs, stage, first, run):
    with pytest.raises(smoke.MissingStage, match=rf"^{stage} needs {first}, .*run `dvc repro {run}` first\.$"):
        smoke.prepare(tmp_path, stage)
    assert verbs == []
    assert list(tmp_path.iterdir()) == []


def test_a_real_workspace_that_is_complete_passes(tmp_path, verbs):
    for stage in STAGES[:4]:
        for name in smoke.outputs(smoke.profile(tmp_path), stage):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
    smoke.prepare(tmp_path, "train_mmt")
    smoke.prepare(tmp_path, "download")
    assert verbs == []


@pytest.mark.parametrize(
    ("path", "is_one"),
    [("build/smoke", True), ("/x/build/smoke", True), (".", False), ("smoke", False), ("build", False)],
)
def test_only_a_folder_called_build_smoke_is_a_smoke_workspace(path, is_one):
    assert smoke.is_smoke(path) is is_one


def test_a_smoke_workspace_has_the_smoke_profile_and_a_real_one_the_real():
    assert smoke.profile("build/smoke") == SMALL
    assert smoke.profile(".") == smoke.load("params.yaml")


@pytest.mark.parametrize("stage", STAGES[: STAGES.index("report")])
def test_each_verb_is_called_with_its_section_and_leaves_what_the_next_stage_looks_for(tmp_path, monkeypatch, stage):
    """The real `_run` on verbs that note what they get: where they write is what `outputs` lists."""
    calls = []

    def train(name, run, recipe, *, stage, seeds, workspace, encoders):
        assert recipe == SMALL.training
        assert encoders == {"pretrain_mat": SMALL.pretrain_mat, "pretrain_mvit": SMALL.pretrain_mvit}
        calls.extend(
            str((workspace / kind / stage / f"{name}-seed{seed}.{suffix}").relative_to(tmp_path))
            for seed in seeds
            for kind, suffix in (("models", "json"), ("predictions", "parquet"))
        )

    def download(out, **values):
        assert values == SMALL.download.model_dump()
        calls.extend(str((out / name).relative_to(tmp_path)) for name in ("manifest.csv", "dataset.json"))

    def extract(manifest, out, **values):
        assert manifest == tmp_path / "data/clips/manifest.csv"
        assert values == SMALL.features.model_dump()
        calls.append(str((out / "features.json").relative_to(tmp_path)))

    monkeypatch.setattr(smoke, "train_runs", train)
    monkeypatch.setattr(smoke, "download", download)
    monkeypatch.setattr(smoke, "extract_features", extract)
    smoke._run(tmp_path, SMALL, stage)
    assert calls == smoke.outputs(SMALL, stage)
