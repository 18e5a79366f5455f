"""timm's MViTv2 for pictures: the same numbers in our core, and a start for MAT, the video encoder and MMT."""

import re

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from toy_features import AUDIO, MAT, MVIT, VIDEO, make_params, make_recipe, make_run, write_features

from mmtlib.config import Params, Trial
from mmtlib.data.dataset import FeatureDataset
from mmtlib.files import digest
from mmtlib.folders import Folders
from mmtlib.models import build_model, imagenet, load_timm_mvit
from mmtlib.models.hub import WeightsError, read_header
from mmtlib.models.imagenet import SIZES, outside_files, start
from mmtlib.models.multiscale import MultiscaleClassifier, MultiscaleEncoder, Stage
from mmtlib.training.experiment import key_of, parts_for
from mmtlib.training.loop import Trainer
from mmtlib.training.optim import one_hot
from mmtlib.training.stage import train_runs

DEPTHS = {name: depths for depths, name in SIZES.items()}


def drawn(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter drawn: norms, biases and position tables of a fresh model would hide a mix-up."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                wide = {"rel_pos": 0.3, "pool_": 0.2, "patch_embed": 0.2, "cls_token": 0.2}
                parameter.normal_(0.0, next((std for part, std in wide.items() if part in name), 0.05))
    return model.eval()


def timms(name: str, size: int = 64, num_classes: int = 11) -> torch.nn.Module:
    """timm's own model with weights of ours to choose, for a smaller picture."""
    timm = pytest.importorskip("timm")
    return drawn(timm.create_model(name, pretrained=False, img_size=size, num_classes=num_classes))


def small(**changes) -> torch.nn.Module:
    """The same class, as narrow and shallow as the toy models."""
    mvitv2 = pytest.importorskip("timm.models.mvitv2")
    settings = dict(depths=(1, 1), embed_dim=8, num_heads=1, stride_q=((1, 1), (2, 2)))
    return drawn(mvitv2.MultiScaleVit(mvitv2.MultiScaleVitCfg(**settings | changes), img_size=32, num_classes=7))


def pictures(depths: tuple[int, ...], size: int = 64, num_classes: int = 11) -> MultiscaleClassifier:
    """Our core with two axes and three channels."""
    encoder = MultiscaleEncoder(
        in_channels=3,
        size=(size, size),
        patch_kernel=(7, 7),
        patch_stride=(4, 4),
        patch_padding=(3, 3),
        stages=[Stage(n, 96 * 2**i, 2**i, (2, 2) if i else (1, 1), (3, 3)) for i, n in enumerate(depths)],
        stride_kv=(4, 4),
        class_token=False,
        absolute_positions=False,
        drop_path=0.0,
    )
    return MultiscaleClassifier(encoder, num_classes, 0.0).eval()


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).item()


def unchanged(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}


def copy_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


# Pictures.


@torch.no_grad()
@pytest.mark.parametrize("name", DEPTHS)
def test_our_core_with_two_axes_is_timms(name):
    theirs, ours, x = timms(name), pictures(DEPTHS[name]), torch.randn(2, 3, 64, 64)
    assert relative_error(ours(x), theirs(x)) > 0.1, "before the weights are loaded the two must differ"
    before = copy_of(ours)
    load_timm_mvit(ours, theirs.state_dict())
    assert relative_error(ours(x), theirs(x)) < 1e-5
    assert relative_error(ours.encoder(x)[0], theirs.forward_features(x)) < 1e-5
    assert unchanged(ours, before) == set()


@torch.no_grad()
def test_tables_of_another_size_are_interpolated_as_timm_does():
    mvitv2 = pytest.importorskip("timm.models.mvitv2")
    weights, other = timms("mvitv2_tiny").state_dict(), timms("mvitv2_tiny", size=96)
    ours, x = pictures(DEPTHS["mvitv2_tiny"], size=96), torch.randn(1, 3, 96, 96)
    load_timm_mvit(ours, weights)
    other.load_state_dict(mvitv2.checkpoint_filter_fn(dict(weights), other))
    assert relative_error(ours(x), other(x)) < 1e-5


def test_a_head_of_another_number_of_classes_stays_as_built():
    ours = pictures(DEPTHS["mvitv2_tiny"], num_classes=5)
    before = copy_of(ours)
    load_timm_mvit(ours, timms("mvitv2_tiny").state_dict())
    assert unchanged(ours, before) == {"head.weight", "head.bias"}


# Films.


FILMS = {"depths": [1, 2, 5, 2], "class_token": False, "stride_kv": [1, 4, 4], "size": [4, 64, 64]}


@torch.no_grad()
def test_a_still_film_is_at_first_what_timm_says_of_the_picture():
    theirs, film = timms("mvitv2_tiny"), build_model("mvitv2_s", 11, **FILMS).eval()
    before = copy_of(film)
    load_timm_mvit(film, theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    still = x[:, :, None].expand(-1, -1, 4, -1, -1)
    assert relative_error(film(still), theirs(x)) < 1e-5
    assert unchanged(film, before) == set()
    tables = [value for name, value in film.state_dict().items() if name.endswith("rel_pos.0")]
    assert len(tables) == 10
    assert not any(table.any() for table in tables)


def test_the_class_token_of_the_published_size_has_no_counterpart_but_that_of_timms_has():
    film = build_model("mvitv2_s", 11, size=[4, 64, 64])
    before = copy_of(film)
    load_timm_mvit(film, timms("mvitv2_small").state_dict())
    assert unchanged(film, before) == {"encoder.class_token"}
    load_timm_mvit(film, timms("mvitv2_small_cls").state_dict())
    assert "encoder.class_token" not in unchanged(film, before)


@pytest.mark.parametrize("part", ["audio", "video"])
def test_all_tables_move_by_a_step_those_that_begin_at_zero_too(part):
    """And the steps of a kernel before and after its middle."""
    name, size, settings = {"audio": ("mat_t", AUDIO, MAT), "video": ("mvitv2_t", (16, 32, 32), MVIT)}[part]
    model = build_model(name, 3, size=size, **settings)
    load_timm_mvit(model, small().state_dict())
    model(torch.randn(2, {"audio": 1, "video": 3}[part], *size)).square().sum().backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


# Sound.


def test_mat_takes_the_mean_of_the_colours_and_the_sums_of_kernels_over_what_it_does_not_pool():
    theirs, model = timms("mvitv2_small").state_dict(), build_model("mat_s", 11)
    before = copy_of(model)
    load_timm_mvit(model, theirs)
    assert unchanged(model, before) == {"encoder.positions.0", "encoder.positions.1"}
    patch = theirs["patch_embed.proj.weight"].mean(1, keepdim=True)
    want = F.interpolate(patch, size=(16, 16), mode="bilinear")
    torch.testing.assert_close(model.encoder.patch_embed.weight, want)
    time, both = (model.encoder.blocks[number].attention.pool_k.weight for number in (2, 3))
    torch.testing.assert_close(time, theirs["stages.1.blocks.1.attn.pool_k.weight"].sum(3, keepdim=True))
    torch.testing.assert_close(both, theirs["stages.2.blocks.0.attn.pool_k.weight"])
    own = model.encoder.blocks[3].attention.rel_pos  # (time, mel)
    for table, axis in zip(own, "hw", strict=True):
        wide = theirs[f"stages.2.blocks.0.attn.rel_pos_{axis}"]
        want = F.interpolate(wide.T[None], size=len(table), mode="linear")[0].T
        torch.testing.assert_close(table, want)
    assert [len(table) for table in own] == [2 * 51 - 1, 2 * 6 - 1]


# What does not fit.


@pytest.mark.parametrize(
    ("name", "overrides", "sentence"),
    [
        (
            "mat_t",
            {},
            "the weights have depths [1, 2, 5, 2] and dim 96, the encoder has depths [1, 1, 1] and dim 64; set its "
            "overrides depths: [1, 2, 5, 2], dim: 96, stem: 0, pooling: [both, both, both, both]",
        ),
        ("mat_s", {"depths": [1, 2, 5, 2], "stem": 3}, "dim 96 with a stem; set its overrides depths"),
        ("mat_s", {"depths": [1, 2, 5, 2], "pooling": ["none"] * 4}, "dim 96 with stages without pooling; set its"),
        (
            "mvitv2_s",
            {"dim": 48},
            "has depths [1, 2, 11, 2] and dim 48; set its overrides depths: [1, 2, 5, 2], dim: 96",
        ),
    ],
)
def test_a_model_of_another_shape_is_told_what_would_fit_and_stays_as_it_was(name, overrides, sentence):
    model = build_model(name, 3, **overrides)
    before = copy_of(model)
    with pytest.raises(ValueError, match=re.escape(sentence)) as raised:
        load_timm_mvit(model, timms("mvitv2_tiny").state_dict())
    assert unchanged(model, before) == before.keys()
    if wanted := re.search(r"depths: (.*), dim: 96, stem: 0, pooling: ", str(raised.value)):
        assert wanted[1] == "[1, 2, 5, 2]"
        fits = {"depths": [1, 2, 5, 2], "dim": 96, "stem": 0, "pooling": ["both"] * 4}
        load_timm_mvit(build_model(name, 3, **overrides | fits), timms("mvitv2_tiny").state_dict())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w: {}, "these are no weights of timm's mvitv2_tiny, mvitv2_small or mvitv2_base"),
        (lambda w: w | {"stages.0.blocks.0.gamma": torch.ones(8)}, "'stages.0.blocks.0.gamma' has no place"),
        (lambda w: {k: v for k, v in w.items() if k != "norm.bias"}, "lacks 'encoder.norm.bias'"),
        (
            lambda w: w | {"norm.bias": torch.zeros(5)},
            r"'norm.bias' has shape \(5,\).*\(16,\); give the state_dict of timm's",
        ),
        (lambda w: w | {"patch_embed.proj.weight": torch.zeros(8, 4)}, "'patch_embed.proj.weight' has shape"),
    ],
)
def test_other_weights_are_refused_in_a_sentence(change, sentence):
    model = build_model("mvitv2_t", 7, size=VIDEO, **MVIT)
    before = copy_of(model)
    with pytest.raises(ValueError, match=sentence):
        load_timm_mvit(model, change(small().state_dict()))
    assert unchanged(model, before) == before.keys()


def test_large_with_its_two_heads_is_none_of_them():
    with pytest.raises(ValueError, match="these are no weights of"):
        load_timm_mvit(build_model("mvitv2_t", 7, size=VIDEO, **MVIT), small(num_heads=2).state_dict())


# `init` of a stage.


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.safetensors"
    save_file(small().state_dict(), path)
    return path


def test_init_is_a_word_or_a_file():
    for init in ("scratch", "pretrained", "imagenet", "weights/a.safetensors"):
        assert make_run(init=init).init == init
    whole = make_params().model_dump()
    for init in ("imagnet", "weights/a.pth", 3, None):
        with pytest.raises(
            ValueError, match=r"must be scratch, pretrained, imagenet or a \.safetensors file; change it"
        ):
            Params.model_validate(whole | {"pretrain_mat": whole["pretrain_mat"] | {"init": init}})


def test_an_encoder_may_come_from_a_run_that_starts_from_a_file_but_not_from_one_of_both():
    make_params(pretrain_mat=make_run(init="imagenet"), x=make_run("mmt_t", encoders={"audio": "pretrain_mat"}))
    with pytest.raises(ValueError, match="no run of an encoder by itself"):
        make_params(x=make_run("mmt_t", encoders={"audio": "train_mmt"}))


def test_a_file_lies_in_the_repository_and_imagenet_in_its_weights_fetched_once(tmp_path, monkeypatch):
    asked = []

    def hub(repository, name):
        asked.append((repository, name))
        (tmp_path / "got").write_text(repository)
        return str(tmp_path / "got")

    monkeypatch.setattr(imagenet, "hf_hub_download", hub)
    monkeypatch.setattr(imagenet, "ROOT", tmp_path)
    (tmp_path / "mine.safetensors").touch()
    assert outside_files("mat_t", "scratch", {}) == {} == outside_files("mbt_t", "pretrained", {})
    assert outside_files("mat_t", "mine.safetensors", {}) == {"audio": tmp_path / "mine.safetensors"}
    assert asked == []
    paths = {size: tmp_path / f"weights/mvitv2_{size}.safetensors" for size in ("small", "base", "tiny")}
    for _ in range(2):
        assert outside_files("mat_s", "imagenet", {}) == {"audio": paths["small"]}
        assert outside_files("mvitv2_b", "imagenet", {}) == {"video": paths["base"]}
        assert outside_files("mvitv2_t", "imagenet", {"depths": [1, 2, 5, 2]}) == {"video": paths["tiny"]}
    assert asked == [(f"timm/mvitv2_{size}.fb_in1k", "model.safetensors") for size in paths]
    assert all(path.read_text() == f"timm/mvitv2_{size}.fb_in1k" for size, path in paths.items())


def test_a_hub_that_does_not_answer_is_said_with_the_file_to_fetch_and_its_place(tmp_path, monkeypatch):
    def hub(repository, name):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(imagenet, "hf_hub_download", hub)
    monkeypatch.setattr(imagenet, "ROOT", tmp_path)
    with pytest.raises(WeightsError) as raised:
        outside_files("mat_b", "imagenet", {})
    assert str(raised.value) == (
        f"{tmp_path}/weights/mvitv2_base.safetensors does not exist; fetch https://huggingface.co/timm/mvitv2_base.fb_in1k"
        "/resolve/main/model.safetensors, which the hub did not give, and put it there"
    )


@pytest.mark.parametrize(
    ("name", "init", "error", "sentence"),
    [
        (
            "mat_t",
            "imagenet",
            ValueError,
            r"no ImageNet weights have mat_t's depths; .* \[1, 2, 5, 2\] \(mvitv2_tiny\) or",
        ),
        (
            "mat_t",
            "no.safetensors",
            WeightsError,
            "no.safetensors does not exist; fetch a safetensors file of timm's .*",
        ),
        ("ast_t", "imagenet", ValueError, "ast_t cannot start from imagenet, only MAT and MViTv2 can; .* to scratch$"),
        ("mat_x", "imagenet", ValueError, "no model is called 'mat_x'"),
        ("mmt_t", "imagenet", ValueError, "mmt_t cannot start .* set its `init` to scratch or pretrained$"),
    ],
)
def test_a_start_that_cannot_be_is_one_sentence(name, init, error, sentence):
    with pytest.raises(error, match=sentence):
        outside_files(name, init, {})


def test_a_damaged_file_and_one_that_does_not_fit_name_the_file(tmp_path, file):
    model = build_model("mat_t", 4, size=AUDIO, **MAT)
    before = copy_of(model)
    broken = tmp_path / "broken.safetensors"
    for data in (b"", b"no weights at all", file.read_bytes()[:-9]):
        broken.write_bytes(data)
        with pytest.raises(
            WeightsError, match=r"mat_t cannot start from .*/broken\.safetensors: .*; else set its `init`"
        ):
            start(model, "audio", broken)
    assert unchanged(model, before) == before.keys()
    with pytest.raises(
        WeightsError, match=r"mat_t cannot start from .*small\.safetensors: the weights have depths \[1, 1\]"
    ):
        start(build_model("mat_t", 4), "audio", file)


def test_the_head_of_the_file_is_left_out_whatever_its_size(file):
    model = build_model("mvitv2_t", 7, size=VIDEO, **MVIT)
    before = copy_of(model)
    about = start(model, "video", file)
    left = {"head.weight", "head.bias", "encoder.positions.0", "encoder.positions.1", "encoder.positions.2"}
    assert unchanged(model, before) == left
    assert about == {"name": "weights of timm (small.safetensors)", "key": digest(file.read_bytes()), "stats": {}}


@pytest.mark.parametrize("name", ["mat_t", "mvitv2_t"])
def test_the_first_step_is_another_than_from_scratch(tmp_path, file, name):
    features = write_features(tmp_path / "features")
    losses = []
    for init in ({}, {"audio" if name == "mat_t" else "video": file}):
        given = dict(seed=0, features=features, runs=tmp_path / "runs", init=init, device="cpu")
        trainer = Trainer(make_run(name), make_recipe(), **given)
        batch = trainer.train.batch(range(8))
        losses.append(trainer.step(batch, one_hot(batch.labels, trainer.sizes), False)["loss"])
        assert torch.tensor(losses[-1]).isfinite()
    assert abs(losses[0] - losses[1]) > 1e-3


def test_stages_start_from_a_file_and_mmt_from_them(tmp_path, file):
    """What a run started from is in its key, that of MMT included, and on the cards."""
    folders = Folders(tmp_path, "toy")
    write_features(folders.features)
    given = dict(epochs=1, init=str(file))
    params = make_params(pretrain_mat=make_run("mat_t", **given), pretrain_mvit=make_run("mvitv2_t", **given))
    data = FeatureDataset(folders.features, "train").identity
    mmt = train_runs("train_mmt", params, folders)[0]
    mat, mvit = (train_runs(name, params, folders)[0] for name in ("pretrain_mat", "pretrain_mvit"))
    for run, name in ((mat, "pretrain_mat"), (mvit, "pretrain_mvit"), (mmt, "train_mmt")):
        parts = parts_for(params.runs[name], params, Trial(0), data)
        assert read_header(run.weights)["key"] == key_of(parts)
        if run is not mmt:
            assert list(parts["encoders"].values()) == [digest(file.read_bytes())]
    cards = [run.weights.with_suffix(".md").read_text() for run in (mat, mmt)]
    assert "- starts from: audio: weights of timm (small.safetensors), run " in cards[0]
    assert "- starts from: audio: mat_t from weights of timm (small.safetensors), run " in cards[1]

    def keys() -> dict[str, str]:
        return {name: key_of(parts_for(run, params, Trial(0), data)) for name, run in params.runs.items()}

    before = keys()
    save_file(small().state_dict(), file)  # drawn anew
    changed = {name for name, key in keys().items() if key != before[name]}
    assert changed == {"pretrain_mat", "pretrain_mvit", "train_mmt"}
