import re
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from mmtlib.config import ROOT, Download, Params, ParamsError, check, load

PROFILES = ["params.yaml", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("params/*.yaml"))]
SMOKE = (ROOT / "params" / "smoke.yaml").read_text()


@pytest.fixture
def failure(tmp_path):
    """Return a function: the message that a changed smoke profile is refused with."""

    def message(old: str, new: str) -> str:
        assert old in SMOKE
        (tmp_path / "params.yaml").write_text(SMOKE.replace(old, new, 1))
        with pytest.raises(ParamsError) as caught:
            load(root=tmp_path)
        text = str(caught.value)
        assert text.startswith("params.yaml: ")
        assert text.count("\n") == 0
        assert text.endswith(".")
        return text

    return message


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_valid_and_numbers_have_their_types(profile):
    params = load(profile)
    assert isinstance(params.pretrain_mat.lr, float)
    assert isinstance(params.training.flip, bool)
    assert all(isinstance(seed, int) for seed in params.seeds)


def test_the_smoke_profile_names_every_field_of_the_shared_sections():
    # Defaults exist only for rows of the table: what a section leaves out, a reader of the file cannot see.
    written = YAML(typ="safe", pure=True).load(StringIO(SMOKE))
    for name in Params.model_fields.keys() - {"ablations"}:
        value = getattr(load("params/smoke.yaml"), name)
        if name != "seeds":
            assert written[name].keys() == type(value).model_fields.keys()


def test_yaml_1_2_numbers_and_defaults_of_a_row(tmp_path):
    text = SMOKE.replace("lr: 1.0e-3}", "lr: 1e-3}", 1)
    assert text != SMOKE
    (tmp_path / "params.yaml").write_text(text)
    row = load(root=tmp_path).ablations["ast_t"]
    assert row.lr == 0.001
    assert row.objective.model_dump() == {"avc": 0.0, "imc": 0.0, "temperature": 0.1}
    assert (row.overrides, row.init) == ({}, "scratch")


@pytest.mark.parametrize(
    ("old", "new", "field", "remedy"),
    [
        ("mel_bins", "melbins", "features.melbins", "did you mean mel_bins"),
        ("time_masks", "time_mask", "training.spec_augment.time_mask", "did you mean time_masks"),
        ("ast_t: {group", "ast_t: {grup", "ablations.ast_t.grup", "did you mean group"),
        ("report:", "xyzzy:", "xyzzy", "use one of seeds, download"),
        ("seeds: [0]", "", "seeds is missing", "add it"),
    ],
)
def test_an_unknown_or_missing_field_is_named_with_its_remedy(failure, old, new, field, remedy):
    message = failure(old, new)
    assert field in message
    assert remedy in message


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("batch_size: 16", "batch_size: many", 'training.batch_size is "many" but must be a whole number'),
        ("batch_size: 16", "batch_size: true", "training.batch_size is true but must be a whole number"),
        (
            "batch_size: 16",
            "batch_size: 1",
            "training.batch_size is 1 but must be greater than or equal to 2",
        ),
        ("epochs: 1\n", "epochs: 1.5\n", "pretrain_mat.epochs is 1.5 but must be a whole number"),
        ("flip: true", "flip: yes", 'training.flip is "yes" but must be true or false'),
        (
            "precision: fp32",
            "precision: fp8",
            "training.precision is \"fp8\" but must be 'auto', 'fp32' or 'bf16'",
        ),
        ("seeds: [0]", "seeds: 0", "seeds is 0 but must be a list"),
        ("seeds: [0]", "seeds: []", "seeds is [] but must be given at least one entry"),
        ("seeds: [0]", "seeds: [1, 1]", "seeds [1, 1] names a seed twice"),
        ("lr: 1.0e-3", "lr: .nan", "pretrain_mat.lr is NaN but must be a finite number"),
        ("ast_t: {", "../ast: {", 'is "../ast" but must be a name of lower-case letters'),
        ("hop_ms: 10", "hop_ms: 50", "features: hop_ms 50.0 leaves gaps"),
        (
            "warmup_epochs: 0",
            "warmup_epochs: 1",
            "pretrain_mat.epochs 1 ends within training.warmup_epochs 1.0",
        ),
        (
            "overrides: {}",
            "overrides: {day: 2020-01-01}",
            'overrides.day is "2020-01-01" but must be a number',
        ),
    ],
)
def test_a_wrong_value_is_shown_beside_what_is_wanted(failure, old, new, sentence):
    assert sentence in failure(old, new)


def test_a_key_given_twice_is_refused(failure):
    message = failure("  batch_size: 16\n", "  batch_size: 16\n  batch_size: 8\n")
    line = 1 + SMOKE[: SMOKE.index("  batch_size")].count("\n") + 1
    assert f'key "batch_size" is given twice (line {line})' in message


def test_what_is_no_yaml_or_no_mapping_is_refused(failure):
    assert "not valid YAML at line" in failure("seeds: [0]", "seeds: [0")
    assert "the file is null but must be a mapping" in failure(SMOKE, "")
    assert "not valid YAML" in failure("seeds: [0]", "seeds: !!python/object:os.system x")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ParamsError, match=r"^nowhere\.yaml: no such file .* copy a profile"):
        load("nowhere.yaml", root=tmp_path)


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ParamsError, match=r"^params\.yaml: cannot be read"):
        load(root=tmp_path)


def test_a_section_cannot_be_changed_after_the_check():
    params = load("params/smoke.yaml")
    with pytest.raises(ValueError, match="frozen"):
        params.training.batch_size = 3


def test_check_serves_one_section_too():
    values = {"source": "freedoom-sounds", "seed": 7, "workers": 0}
    with pytest.raises(ParamsError, match=r"^01_download: clips_per_class is missing"):
        check(Download, values, "01_download")
    sizes = {"train": 1, "val": 1, "test": 1}
    assert check(Download, {**values, "clips_per_class": sizes}, "01_download").clips_per_class.val == 1


@given(st.text(min_size=1, max_size=20))
def test_no_source_name_that_is_accepted_can_leave_its_folder(name):
    values = {"source": name, "seed": 7, "workers": 0, "clips_per_class": {"train": 1, "val": 1, "test": 1}}
    try:
        accepted = check(Download, values, "x").source
    except ParamsError:
        return
    assert re.fullmatch(r"[a-z0-9_-]+", accepted)
    assert not accepted.startswith("-")
