"""What a section refuses, and how it says so."""

import pytest

from mmtlib.config import ROOT, Download, ParamsError, load
from mmtlib.sections import check

WHOLE = (ROOT / "params.yaml").read_text()


@pytest.fixture
def failure(tmp_path):
    """Return a function: the one sentence that a changed params.yaml is refused with."""

    def message(old: str, new: str) -> str:
        assert old in WHOLE
        (tmp_path / "params.yaml").write_text(WHOLE.replace(old, new, 1))
        with pytest.raises(ParamsError, match=r"^params.yaml: [^\n]*\.$") as caught:
            load(root=tmp_path)
        return str(caught.value)

    return message


@pytest.mark.parametrize(
    ("old", "new", "field", "remedy"),
    [
        ("mel_bins", "melbins", "features.melbins", "did you mean mel_bins"),
        ("time_masks", "time_mask", "training.spec_augment.time_mask", "did you mean time_masks"),
        ("ast_t: {group", "ast_t: {grup", "ablations.ast_t.grup", "did you mean group"),
        ("set: {model: ast_t,", "set: {modle: ast_t,", "ablations.ast_t.modle", "did you mean model"),
        ("report:", "xyzzy:", "xyzzy", "use one of study, seeds, folds, download"),
        ("seeds: [0]", "", "seeds is missing", "add it"),
        ("study: quick", "", "study is missing", "add it"),
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
        ("batch_size: 16", "batch_size: 1", "training.batch_size is 1 but must be greater than or equal to 2"),
        ("epochs: 20 ", "epochs: 1.5 ", "pretrain_mat.epochs is 1.5 but must be a whole number"),
        ("flip: true", "flip: yes", 'training.flip is "yes" but must be true or false'),
        ("precision: fp32", "precision: fp8", "training.precision is \"fp8\" but must be 'auto', 'fp32' or 'bf16'"),
        ("crop_scale: 0.8", "crop_scale: 1.5", "training.crop_scale is 1.5 but must be less than or equal to 1"),
        ("time_width: 40", "time_width: -1", "time_width is -1 but must be greater than or equal to 0"),
        ("noise: 0.0", "noise: -0.1", "training.noise is -0.1 but must be greater than or equal to 0"),
        ("seeds: [0]", "seeds: 0", "seeds is 0 but must be a list"),
        ("seeds: [0]", "seeds: []", "seeds is [] but must be given at least one entry"),
        ("seeds: [0]", "seeds: [1, 1]", "seeds [1, 1] names one twice"),
        ("study: quick", "study: ../quick", 'study is "../quick" but must be a name of lower-case letters'),
        ("lr: 1.0e-3", "lr: .nan", "pretrain_mat.lr is NaN but must be a finite number"),
        ("ast_t: {", "../ast: {", 'is "../ast" but must be a name of lower-case letters'),
        ("hop_ms: 10", "hop_ms: 50", "features: hop_ms 50.0 leaves gaps"),
        ("warmup_epochs: 1 ", "warmup_epochs: 3 ", "train_mmt.epochs 3 ends within training.warmup_epochs 3.0"),
        ("overrides: {}", "overrides: {day: 2020-01-01}", 'overrides.day is "2020-01-01" but must be a number'),
    ],
)
def test_a_wrong_value_is_shown_beside_what_is_wanted(failure, old, new, sentence):
    assert sentence in failure(old, new)


def test_a_section_cannot_be_changed_after_the_check():
    params = load("params/smoke.yaml")
    with pytest.raises(ValueError, match="frozen"):
        params.training.batch_size = 3


def test_of_one_frame_nothing_moves():
    with pytest.raises(ParamsError, match=r"features: motion true leaves nothing of frames 1; raise frames"):
        load(changes={"features.motion": True, "features.frames": 1})


def test_check_serves_one_section_too():
    values = {"source": "freedoom-sounds", "seed": 7, "workers": 0}
    with pytest.raises(ParamsError, match=r"^01_download: clips_per_class is missing"):
        check(Download, values, "01_download")
    sizes = {"train": 1, "val": 1, "test": 1}
    assert check(Download, {**values, "clips_per_class": sizes}, "01_download").clips_per_class.val == 1
