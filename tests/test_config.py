"""Parameter files: what is refused, overlays, rows that inherit, changes of single fields."""

import re
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from mmtlib.config import ROOT, Download, Params, ParamsError, check, load, workspace
from mmtlib.overlays import compose, whole_row
from study.bench import Efficiency

FILES = ["params.yaml", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("params/*.yaml"))]
WHOLE = (ROOT / "params.yaml").read_text()


@pytest.fixture
def failure(tmp_path):
    """Return a function: the message that a changed params.yaml is refused with."""

    def message(old: str, new: str) -> str:
        assert old in WHOLE
        (tmp_path / "params.yaml").write_text(WHOLE.replace(old, new, 1))
        return refused(tmp_path, "params.yaml", "params.yaml: ")

    return message


def refused(root: Path, file: str, start: str, **more) -> str:
    """The one sentence that a file is refused with."""
    with pytest.raises(ParamsError) as caught:
        load(file, root, **more)
    text = str(caught.value)
    assert text.startswith(start)
    assert text.count("\n") == 0
    assert text.endswith(".")
    return text


def test_a_relative_path_is_taken_from_the_root_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert workspace("data/raw") == ROOT / "data" / "raw"
    assert workspace(".") == ROOT
    assert workspace(tmp_path) == tmp_path.resolve()


def test_the_root_holds_the_pipeline():
    assert Path(__file__).resolve().parents[1] == ROOT
    assert (ROOT / "dvc.yaml").is_file()


@pytest.mark.parametrize("file", FILES)
def test_every_file_is_valid_and_numbers_have_their_types(file):
    params = load(file)
    assert isinstance(params.pretrain_mat.lr, float)
    assert isinstance(params.training.flip, bool)
    assert all(isinstance(seed, int) for seed in params.seeds)


def test_every_study_has_folders_of_its_own():
    studies = {file: load(file).study for file in FILES}
    assert len(set(studies.values())) == len(FILES)
    assert studies.pop("params.yaml") == "quick"
    assert {f"params/{study}.yaml" for study in studies.values()} == set(studies), "`make reproduce STUDY=` finds it"


def test_params_yaml_names_every_field_of_the_shared_sections():
    # Defaults exist only for rows of the table: what a section leaves out, a reader of the file cannot see.
    written = YAML(typ="safe", pure=True).load(StringIO(WHOLE))
    for name in Params.model_fields.keys() - {"study", "seeds", "folds", "ablations"}:
        value = getattr(load(), name)
        own = {"download": {"source", "seed", "clips_per_class", "workers"}}  # a real set has other fields
        own["efficiency"] = Efficiency.model_fields.keys()
        assert written[name].keys() == (own[name] if name in own else type(value).model_fields.keys())


def test_yaml_1_2_numbers_and_defaults_of_a_row(tmp_path):
    text = WHOLE.replace("set: {model: ast_t, overrides.dim: 90}", "set: {model: ast_t, lr: 1e-3, objective: {}}", 1)
    assert text != WHOLE
    (tmp_path / "params.yaml").write_text(text)
    row = load(root=tmp_path).ablations["ast_t"]
    assert row.lr == 0.001
    assert row.objective.model_dump() == {"avc": 0.0, "imc": 0.0, "temperature": 0.1}
    assert (row.overrides, row.init) == ({}, "scratch")


def test_a_key_given_twice_is_refused(failure):
    message = failure("  batch_size: 16 ", "  batch_size: 8\n  batch_size: 16 ")
    line = 1 + WHOLE[: WHOLE.index("  batch_size")].count("\n") + 1
    assert f'at line {line} (found duplicate key "batch_size" with value "16" (original value: "8")); mend' in message


def test_what_is_no_yaml_or_no_mapping_is_refused(failure):
    assert "not valid YAML at line" in failure("seeds: [0]", "seeds: [0")
    assert "the file is null but must be a mapping" in failure(WHOLE, "")
    assert "not valid YAML" in failure("seeds: [0]", "seeds: !!python/object:os.system x")


def test_a_missing_file_is_named(tmp_path):
    assert "no such file" in refused(tmp_path, "nowhere.yaml", "nowhere.yaml: ")


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refused(tmp_path, "params.yaml", "params.yaml: ")


@given(st.text(min_size=1, max_size=20))
def test_no_source_name_that_is_accepted_can_leave_its_folder(name):
    values = {"source": name, "seed": 7, "workers": 0, "clips_per_class": {"train": 1, "val": 1, "test": 1}}
    try:
        accepted = check(Download, values, "x").source
    except ParamsError:
        return
    assert re.fullmatch(r"[a-z0-9_-]+", accepted)
    assert not accepted.startswith("-")


# Overlays.


@pytest.fixture
def overlay(tmp_path):
    """Return a function: a root with params.yaml and the overlays given as name -> YAML; the first is loaded."""
    (tmp_path / "params.yaml").write_text(WHOLE)

    def loaded(**texts: str) -> Params:
        for name, text in texts.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        return load(f"{next(iter(texts))}.yaml", tmp_path)

    return loaded


def test_an_overlay_says_what_differs_however_deep_and_the_rest_is_its_bases(overlay):
    given, below = (
        overlay(one="{base: params.yaml, training: {spec_augment: {time_width: 7}, flip_except: []}}"),
        load(),
    )
    assert given.training.spec_augment == below.training.spec_augment.model_copy(update={"time_width": 7})
    assert given.training.flip_except == []
    wanted = below.model_dump()
    wanted["training"]["spec_augment"]["time_width"], wanted["training"]["flip_except"] = 7, []
    assert given.model_dump() == wanted


def test_an_overlay_on_an_overlay_is_laid_over_both(overlay):
    given = overlay(
        top="{base: middle.yaml, training: {mixup: 0.2}}",
        middle="{base: params.yaml, study: middle, training: {mixup: 0.5, noise: 0.1}}",
    )
    assert (given.study, given.training.mixup, given.training.noise) == ("middle", 0.2, 0.1)
    assert given.training.gain == load().training.gain


def test_kinetics_sounds_has_what_vggsound_has_and_this_what_params_yaml_has():
    top, middle, bottom = (
        load(file) for file in ("params/kinetics-sounds.yaml", "params/vggsound.yaml", "params.yaml")
    )
    assert (top.training, top.pretrain_mat, top.ablations) == (middle.training, middle.pretrain_mat, middle.ablations)
    assert (middle.training.weight_decay, middle.efficiency) == (bottom.training.weight_decay, bottom.efficiency)
    assert middle.training != bottom.training
    assert (top.download.source, top.features.cache, middle.features.cache) == ("kinetics-sounds", True, False)


def test_download_the_table_and_the_pairs_are_replaced_whole(overlay):
    given = overlay(
        one="""
        base: params.yaml
        download: {source: folder, media: somewhere, workers: 1}
        ablations: {own: {group: data, base: train_mmt}}
        efficiency: {pairs: {mat_t: {peer: ast_t, batch: 2, seconds: 2, rounds: 1}}}
        """
    )
    assert given.download.seed is given.download.clips_per_class is None
    assert list(given.ablations) == ["own"]
    assert list(given.efficiency["pairs"]) == ["mat_t"]
    assert given.efficiency["precisions"] == load().efficiency["precisions"]


@pytest.mark.parametrize(
    ("texts", "start"),
    [
        ({"one": "base: one.yaml"}, "one.yaml: base is 'one.yaml' but must name another"),
        ({"one": "base: two.yaml", "two": "base: one.yaml"}, "two.yaml: base is 'one.yaml' but must name another"),
        ({"one": "base: [params.yaml]"}, "one.yaml: base is ['params.yaml'] but must name another"),
        ({"one": "base: nowhere.yaml"}, "nowhere.yaml: no such file"),
        (
            {"one": "{base: params.yaml, trainign: {}}"},
            "one.yaml: trainign is not a known field; did you mean training",
        ),
        ({"one": "{base: params.yaml, training: 3}"}, "one.yaml: training is 3 but must be a mapping"),
    ],
)
def test_a_base_that_leads_nowhere_or_round_in_a_circle_is_one_sentence(tmp_path, texts, start):
    (tmp_path / "params.yaml").write_text(WHOLE)
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    refused(tmp_path, "one.yaml", start)


def test_a_composed_file_reads_as_its_overlay(tmp_path):
    for file in FILES:
        YAML(typ="safe", pure=True).dump(compose(file), tmp_path / "whole.yaml")
        assert load("whole.yaml", tmp_path) == load(file)


# Rows that inherit.


def table(root: Path, rows: str, **changes) -> Params:
    """params.yaml with another table of ablations."""
    (root / "params.yaml").write_text(WHOLE)
    (root / "rows.yaml").write_text(f"base: params.yaml\nablations: {rows}")
    return load("rows.yaml", root, changes)


@pytest.mark.parametrize("file", FILES)
def test_every_row_follows_a_default_that_is_changed(file):
    """Of each stage a field that no row sets: all rows that come from it have it, and no other."""
    stages = load(file).runs
    marks = {"pretrain_mat": 0.51, "pretrain_mvit": 0.52, "train_mmt": 0.53}
    marks = {name: value for name, value in marks.items() if name in stages}
    written, follow = compose(file)["ablations"], {}
    for name, row in written.items():
        chain = [row]
        while chain[-1]["base"] in written:
            chain.append(written[chain[-1]["base"]])
        if not any({"objective", "objective.temperature"} & one["set"].keys() for one in chain):
            follow[name] = marks[chain[-1]["base"]]
    rows = load(file, changes={f"{name}.objective.temperature": value for name, value in marks.items()}).ablations
    assert follow
    assert {name: rows[name].objective.temperature for name in follow} == follow


def test_a_row_has_what_its_base_has_and_sets_the_rest_by_dotted_names(tmp_path):
    params = table(
        tmp_path,
        """
          first: {group: fusion, base: train_mmt, set: {overrides.fusion: late, overrides.audio.dim: 8}}
          second: {group: objective, base: train_mmt, set: {objective.imc: 0.7, epochs: 9}, seeds: [4]}
        """,
    )
    base, first, second = params.train_mmt, params.ablations["first"], params.ablations["second"]
    assert first.overrides == {"fusion": "late", "audio": {"dim": 8}}
    assert base.overrides == {}
    assert first.objective == base.objective
    assert second.objective.model_dump() == base.objective.model_dump() | {"imc": 0.7}
    assert (second.epochs, second.lr, second.init) == (9, base.lr, "pretrained")
    assert (params.trials("first"), params.trials("second")) == ([(0, None)], [(4, None)])


def test_how_a_run_is_tested_its_place_and_its_seeds_are_not_inherited(tmp_path):
    params = table(
        tmp_path,
        """
          first: {group: fusion, base: train_mmt, set: {lr: 1.0e-3}, seeds: [4], robustness: true}
          second: {group: data, base: first, set: {train_share: 0.5}}
          third: {group: data, base: train_mmt}
        """,
    )
    assert params.train_mmt.robustness
    first, second, third = params.ablations.values()
    assert (first.robustness, second.robustness, third.robustness) == (True, False, False)
    assert (second.group, second.seeds, second.lr) == ("data", None, 0.001)
    rows = {"first": {"base": "train_mmt", "folds": [1]}, "second": {"base": "first"}}
    values = {"train_mmt": {"lr": 1.0}, "ablations": rows}
    assert whole_row("first", values, "") == {"lr": 1.0, "folds": [1]}
    assert whole_row("second", values, "") == {"lr": 1.0}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            "x: {group: search, base: pretrain_mat, set: {model: mat_s}}",
            "x.group is search, but no stage or baseline has mat_s",
        ),
        (
            "x: {group: data, base: train_mmt, set: {model: mbt_t}}",
            "x.group is data, but no stage or baseline has mbt_t",
        ),
        (
            "{x: {group: data, base: pretrain_mat}, y: {group: fusion, base: train_mmt, set: {encoders: {audio: x}}}}",
            "y.encoders names x, a row of group search or data; name another",
        ),
    ],
)
def test_rows_beside_the_report_need_a_run_in_it_and_start_none(tmp_path, rows, words):
    with pytest.raises(ParamsError, match=words):
        table(tmp_path, rows if rows.startswith("{") else f"{{{rows}}}")


def test_a_row_on_a_row_has_all_that_this_has(tmp_path):
    """However either says it: with `set`, or with fields of its own."""
    params = table(
        tmp_path,
        """
          third: {group: data, base: second, set: {objective.avc: 0.4, epochs: 8}}
          second: {group: data, base: first, epochs: 7}
          first: {group: data, base: train_mmt, set: {objective.imc: 0.3, lr: 2.0e-3}}
          plain: {group: data, base: train_mmt}
          on_plain: {group: data, base: plain, set: {objective.avc: 0.4}}
        """,
    )
    first, second, third = (params.ablations[name] for name in ("first", "second", "third"))
    assert (first.epochs, second.epochs, third.epochs) == (3, 7, 8)
    assert (second.lr, third.lr) == (0.002, 0.002)
    assert second.objective == first.objective
    assert third.objective.model_dump() == {"avc": 0.4, "imc": 0.3, "temperature": 0.1}
    assert params.ablations["on_plain"].objective.model_dump() == {"avc": 0.4, "imc": 0.1, "temperature": 0.1}


def test_a_row_may_stand_alone(tmp_path):
    row = table(tmp_path, "{own: {group: data, model: mat_t, epochs: 4, lr: 1e-3}}").ablations["own"]
    assert (row.model, row.epochs, row.overrides) == ("mat_t", 4, {})


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            "{x: {group: data, base: train_mtm}}",
            "rows.yaml: ablations.x has the base 'train_mtm'; name one of pretrain_mat",
        ),
        ("{x: {group: data, base: x}}", "rows.yaml: ablations.x has the base 'x'; name one of"),
        ("{x: {group: data, base: y}, y: {group: data, base: x}}", "has the base 'x'; name one of"),
        ("{x: {group: data, base: report}}", "rows.yaml: ablations.x has the base 'report'; name one of"),
        ("{x: {group: data, base: [train_mmt]}}", "rows.yaml: ablations.x has the base ['train_mmt']; name one of"),
        ("{x: {group: data, base: train_mmt, set: {lr.a: 1}}}", "rows.yaml: ablations.x: lr.a leads through a field"),
        ("{x: {group: data, base: train_mmt, set: {1: 1}}}", "rows.yaml: ablations.x.1 is not a known field"),
        ("{x: {base: train_mmt}}", "rows.yaml: ablations.x.group is missing"),
        ("{x: 3}", "rows.yaml: ablations.x is 3 but must be a mapping"),
    ],
)
def test_a_row_on_nothing_is_one_sentence(tmp_path, rows, words):
    with pytest.raises(ParamsError) as caught:
        table(tmp_path, rows)
    assert words in str(caught.value)
    assert str(caught.value).count("\n") == 0


# Changes.


def test_changes_are_of_single_fields_and_before_rows_inherit():
    params, other = load(), load(changes={"pretrain_mat.epochs": 99, "ablations.mmt_ce.lr": 0.25, "seeds": [3]})
    assert (other.pretrain_mat.epochs, other.ablations["ast_t"].epochs, other.ablations["mbt_t"].epochs) == (99, 99, 23)
    assert (other.ablations["mmt_ce"].lr, other.ablations["mmt_ce_avc"].lr) == (0.25, params.train_mmt.lr)
    assert (other.seeds, params.seeds) == ([3], [0])
    same = other.model_copy(update={"seeds": [0], "pretrain_mat": params.pretrain_mat, "ablations": params.ablations})
    assert same == params


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pretrain_mat.epoch": 3}, "pretrain_mat.epoch is not a known field; did you mean epochs"),
        ({"pretrain_mat.epochs": "many"}, 'pretrain_mat.epochs is "many" but must be a whole number'),
        ({"seeds.first": 3}, "seeds.first leads through a field that holds no others"),
        ({"nothing.at.all": 3}, "nothing is not a known field"),
        ({"pretrain_mvit.epoch": 3}, "pretrain_mvit.epoch is not a known field; did you mean epochs"),
        ({"train_mmt.objective.av": 1}, "train_mmt.objective.av is not a known field; did you mean avc"),
        (
            {"download.clips_per_class.trian": 1},
            "download.clips_per_class.trian is not a known field; did you mean train",
        ),
    ],
)
def test_a_wrong_change_is_one_sentence(changes, words):
    assert words in refused(ROOT, "params/smoke.yaml", "params/smoke.yaml: ", changes=changes)
