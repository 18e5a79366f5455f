"""Weights that others published: the same numbers in our models, and a start for all of them."""

import json
import re
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torchvision.models.video import MViT_V2_S_Weights, mvit_v2_s
from toy_features import AUDIO, MAT, MVIT, VIDEO, make_params, make_recipe, make_run, write_features

from mmtlib.config import Params, ParamsError, Trial, check
from mmtlib.data.dataset import FeatureDataset
from mmtlib.files import digest
from mmtlib.folders import Folders
from mmtlib.models import build_model, load_timm_mvit, load_timm_peer, load_torchvision_mvit, published
from mmtlib.models.hub import WeightsError, read_header
from mmtlib.models.multiscale import MultiscaleClassifier, MultiscaleEncoder, Stage
from mmtlib.models.published import PUBLISHED, outside_files, start
from mmtlib.training.experiment import key_of, parts_for
from mmtlib.training.loop import Trainer
from mmtlib.training.optim import one_hot
from mmtlib.training.stage import train_runs

DEPTHS = {Path(name).stem: tuple(shape["depths"]) for _, name, shape in PUBLISHED["imagenet"] if "depths" in shape}


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


# The peers.


SQUARE = {"ast_t": {"size": (32, 32), "patch_stride": 16}, "vit_audio_t": {"size": (32, 32)}}
SQUARE["vit_video_t"] = {"size": (2, 32, 32), "patch": (2, 16, 16)}
SQUARE["mbt_t"] = {
    "audio_size": (32, 32),
    "video_size": (2, 32, 32),
    "patch": (2, 16, 16),
    "fusion_layer": 2,
}
NARROW = {"dim": 24, "num_heads": 2}


def vit(distilled: bool = False, size: int = 32, depth: int = 3, **options) -> torch.nn.Module:
    """timm's ViT, narrow; of the distilled DeiT with the norms of transformers' AST."""
    pytest.importorskip("timm")
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    kind = VisionTransformerDistilled if distilled else VisionTransformer
    options |= dict(norm_layer=partial(torch.nn.LayerNorm, eps=1e-12)) if distilled else {}
    return drawn(kind(size, 16, num_classes=7, embed_dim=24, depth=depth, num_heads=2, **options))


def peer(name: str, **changes) -> torch.nn.Module:
    settings = {"depth": 3} | SQUARE[name] | NARROW | changes
    return build_model(name, 5, **settings).eval()


@torch.no_grad()
@pytest.mark.parametrize("name", ["ast_t", "vit_audio_t", "vit_video_t"])
def test_a_peer_sees_a_grey_picture_as_timm_does(name):
    theirs, ours, x = vit(distilled=name == "ast_t"), peer(name), torch.randn(2, 1, 32, 32)
    before = copy_of(ours)
    load_timm_peer(ours, theirs.state_dict())
    assert unchanged(ours, before) == {"head.weight", "head.bias"}
    tokens = theirs.forward_features((x.mT if name == "ast_t" else x).expand(-1, 3, -1, -1))
    want = tokens[:, :2].mean(1) if name == "ast_t" else tokens[:, 0]  # AST reads (mel, time), and both its tokens
    film = x[:, :, None].expand(-1, 3, 2, -1, -1)
    got = ours.features(film if name == "vit_video_t" else x)
    assert relative_error(got, want) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18_audio", "resnet18_video"])
def test_resnet_sees_a_grey_picture_as_torchvision_does(name):
    theirs = drawn(import_module("torchvision.models").resnet18())
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    ours, x = build_model(name, 5).eval(), torch.randn(2, 1, 64, 64)
    before = copy_of(ours)
    load_timm_peer(ours, theirs.state_dict())
    left = {key for key in unchanged(ours, before) if not key.endswith("num_batches_tracked")}
    assert left == {"head.weight", "head.bias"}
    theirs.fc = torch.nn.Identity()
    got = ours.features(x if name == "resnet18_audio" else x[:, :, None].expand(-1, 3, 4, -1, -1))
    assert relative_error(got, theirs(x.expand(-1, 3, -1, -1))) < 1e-5


@pytest.mark.parametrize("fusion", ["bottleneck", "concat", "late"])
def test_mbt_takes_all_blocks_and_norms_in_both_streams(fusion):
    theirs, ours = vit().state_dict(), peer("mbt_t", fusion=fusion)
    before = copy_of(ours)
    if fusion == "concat":  # its fusion is one stream, with a vector more for each modality
        with pytest.raises(ValueError, match=r"lacks 'fusion\.modality'"):
            load_timm_peer(ours, theirs)
        assert unchanged(ours, before) == before.keys()
        return
    load_timm_peer(ours, theirs)
    names = {"fusion.bottleneck", *(f"heads.{part}_head" for part in ("audio", "video")), "audio_embed", "video_embed"}
    assert all(any(key.startswith(name) for name in names) for key in unchanged(ours, before))
    for part in ("audio", "video"):
        blocks = [getattr(ours, f"{part}_encoder").blocks[1]]
        blocks += [getattr(ours.fusion, f"{part}_blocks")[0]] if fusion == "bottleneck" else []
        for number, block in enumerate(blocks, start=1):
            assert torch.equal(block.linear1.weight, theirs[f"blocks.{number}.mlp.fc1.weight"])
            assert torch.equal(block.self_attn.in_proj_bias, theirs[f"blocks.{number}.attn.qkv.bias"])
        assert torch.equal(getattr(ours.heads, f"{part}_norm").weight, theirs["norm.weight"])


def test_positions_are_cut_interpolated_and_repeated_as_the_peers_authors_do():
    theirs = vit(distilled=True, size=64).state_dict()  # 4 x 4 patches
    places = theirs["pos_embed"][:, 2:].unflatten(1, (4, 4)).movedim(-1, 1)
    ast = peer("ast_t", size=(96, 32))  # 6 patches of time and, of mel, which comes first, 2
    load_timm_peer(ast, theirs)
    want = F.interpolate(places, (4, 6), mode="bilinear")[:, :, 1:3].flatten(2).mT
    torch.testing.assert_close(ast.encoder.embeddings.position_embeddings[:, 2:], want)
    assert torch.equal(ast.encoder.embeddings.position_embeddings[:, :2], theirs["pos_embed"][:, :2])
    theirs = vit(size=64).state_dict()
    places = theirs["pos_embed"][:, 1:].unflatten(1, (4, 4)).movedim(-1, 1)
    audio, video = peer("vit_audio_t", size=(96, 32)), peer("vit_video_t", size=(6, 32, 48))
    for model, grid, times in ((audio, (6, 2), 1), (video, (2, 3), 3)):
        load_timm_peer(model, theirs)
        want = F.interpolate(places, grid, mode="bilinear").flatten(2).mT.repeat(1, times, 1)
        torch.testing.assert_close(model.encoder.position[:, 1:], want)
    kernel = video.encoder.patch_embed.weight
    assert torch.equal(kernel[:, :, 1], theirs["patch_embed.proj.weight"])
    assert not kernel[:, :, 0].any()


@pytest.mark.parametrize(
    ("name", "weights", "sentence"),
    [
        (
            "ast_t",
            lambda: vit().state_dict(),
            r"'pos_embed' has shape \(1, 5, 24\) where .* 6, 24\); give .* distilled",
        ),
        ("vit_audio_t", lambda: vit(distilled=True).state_dict(), "'pos_embed' has shape"),
        ("vit_audio_t", lambda: vit(init_values=0.1).state_dict(), "'blocks.0.ls1.gamma' has no place"),
        (
            "vit_audio_t",
            lambda: vit(depth=2).state_dict(),
            r"lacks 'encoder\.blocks\.2\.self_attn\.in_proj_weight' and 11",
        ),
        ("mbt_t", lambda: vit(depth=2).state_dict(), r"lacks 'fusion\.audio_blocks\.0\.self_attn"),
        ("mbt_t", dict, r"lacks 'audio_encoder\."),
    ],
)
def test_weights_of_another_model_leave_a_peer_as_it_was(name, weights, sentence):
    model = peer(name)
    before = copy_of(model)
    with pytest.raises(ValueError, match=sentence):
        load_timm_peer(model, weights())
    assert unchanged(model, before) == before.keys()
    with pytest.raises(ValueError, match=r"has shape .* where this model has .*; give the state_dict of timm's disti"):
        load_timm_peer(peer("vit_audio_t", dim=12), vit().state_dict())


def test_a_vit_of_fewer_blocks_takes_the_first():
    theirs, ours = vit(depth=3).state_dict(), peer("vit_video_t", depth=2)
    load_timm_peer(ours, theirs)
    for number in (0, 1):
        assert torch.equal(ours.encoder.blocks[number].norm1.bias, theirs[f"blocks.{number}.norm1.bias"])


def test_peers_train_from_a_file_mbt_as_a_whole_or_by_its_encoders(tmp_path):
    folders, file = Folders(tmp_path, "toy"), tmp_path / "vit.safetensors"
    write_features(folders.features)
    save_file(vit().state_dict(), file)
    whole = {"depth": 3, "fusion_layer": 2, "patch": [2, 16, 16]} | NARROW
    alone = {"vit_audio_t": {"depth": 2} | NARROW, "vit_video_t": {"depth": 2, "patch": [2, 16, 16]} | NARROW}
    given = dict(epochs=1, init=str(file))
    runs = {name: make_run(name, overrides=overrides, **given) for name, overrides in alone.items()}
    encoders = {part: f"vit_{part}_t" for part in ("audio", "video")}
    runs["mbt_whole"] = make_run("mbt_t", overrides=whole, **given)
    runs["mbt_parts"] = make_run("mbt_t", overrides=whole, epochs=1, init="pretrained", encoders=encoders)
    params = make_params(**runs)
    cards = {name: train_runs(name, params, folders)[0].weights.with_suffix(".md").read_text() for name in runs}
    assert "- starts from: av: weights of others (vit.safetensors), run " in cards["mbt_whole"]
    assert "- starts from: audio: vit_audio_t from weights of others (vit.safetensors), run " in cards["mbt_parts"]


def test_each_peer_has_its_own_published_weights(tmp_path, monkeypatch):
    asked: list[str] = []

    def hub(repository, name):
        asked.append(repository)
        return tmp_path / "got"

    monkeypatch.setattr(published, "hf_hub_download", hub)
    monkeypatch.setattr(published, "ROOT", tmp_path)
    (tmp_path / "got").touch()
    found = [outside_files(name, "imagenet", {}) for name in ("ast_b", "vit_audio_b", "mbt_b", "resnet18_av")]
    assert [next(iter(files)) for files in found] == ["audio", "audio", "av", "av"]
    assert [next(iter(files.values())).stem for files in found] == [
        "deit_base_distilled_patch16_384",
        "vit_base_patch16_224",
        "vit_base_patch16_224",
        "resnet18",
    ]
    tags = ["deit_base_distilled_patch16_384.fb_in1k", "vit_base_patch16_224.augreg_in21k", "resnet18.tv_in1k"]
    assert asked == [f"timm/{tag}" for tag in tags]


# What does not fit.


@pytest.mark.parametrize(
    ("name", "overrides", "sentence"),
    [
        (
            "mat_t",
            {},
            "the weights have depths [1, 2, 5, 2] and dim 96, the encoder has depths [1, 1, 1] and dim 48 with a "
            "stem; set its overrides depths: [1, 2, 5, 2], dim: 96, stem: 0, pooling: [both, both, both, both]",
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
    for init in ("scratch", "pretrained", "imagenet", "kinetics", "audioset", "weights/a.safetensors"):
        assert make_run(init=init).init == init
    whole = make_params().model_dump()
    words = "scratch, pretrained, imagenet, kinetics, audioset or a .safetensors file"
    for init in ("imagnet", "weights/a.pth", 3, None):
        with pytest.raises(
            ParamsError, match=re.escape(f"pretrain_mat.init is {json.dumps(init)} but must be {words};")
        ):
            check(Params, whole | {"pretrain_mat": whole["pretrain_mat"] | {"init": init}}, "x")


def test_an_encoder_may_come_from_a_run_that_starts_from_a_file_but_not_from_one_of_both():
    row = dict(model="mmt_t", init="pretrained")
    make_params(pretrain_mat=make_run(init="imagenet"), x=make_run(**row, encoders={"audio": "pretrain_mat"}))
    with pytest.raises(ValueError, match="no run of an encoder by itself"):
        make_params(x=make_run(**row, encoders={"audio": "train_mmt"}))
    with pytest.raises(ValueError, match="encoders means nothing to init scratch"):
        make_params(x=make_run(**row | {"init": "scratch"}, encoders={"audio": "pretrain_mat"}))


def test_a_file_lies_in_the_repository_and_imagenet_in_its_weights_fetched_once(tmp_path, monkeypatch):
    asked = []

    def hub(repository, name):
        asked.append((repository, name))
        (tmp_path / "got").write_text(repository)
        return str(tmp_path / "got")

    monkeypatch.setattr(published, "hf_hub_download", hub)
    monkeypatch.setattr(published, "ROOT", tmp_path)
    (tmp_path / "mine.safetensors").touch()
    assert outside_files("mat_t", "scratch", {}) == {} == outside_files("mbt_t", "pretrained", {})
    assert outside_files("mat_t", "mine.safetensors", {}) == {"audio": tmp_path / "mine.safetensors"}
    assert asked == []
    paths = {size: tmp_path / f"weights/mvitv2_{size}.safetensors" for size in ("small", "base", "tiny")}
    for _ in range(2):
        assert outside_files("mat_s", "imagenet", {}) == {"audio": paths["small"]}
        assert outside_files("mvitv2_b", "imagenet", {}) == {"video": paths["base"]}
        tiny = {"depths": [1, 2, 5, 2], "dim": 96}
        assert outside_files("mvitv2_t", "imagenet", tiny) == {"video": paths["tiny"]}
    assert asked == [(f"timm/mvitv2_{size}.fb_in1k", "model.safetensors") for size in paths]
    assert all(path.read_text() == f"timm/mvitv2_{size}.fb_in1k" for size, path in paths.items())


def test_a_hub_that_does_not_answer_is_said_with_the_file_to_fetch_and_its_place(tmp_path, monkeypatch):
    def hub(repository, name):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(published, "hf_hub_download", hub)
    monkeypatch.setattr(published, "ROOT", tmp_path)
    with pytest.raises(WeightsError) as raised:
        outside_files("mat_b", "imagenet", {})
    assert str(raised.value) == (
        f"{tmp_path}/weights/mvitv2_base.safetensors does not exist; fetch https://huggingface.co/timm/mvitv2_base.fb_in1k"
        "/resolve/main/model.safetensors, which the hub did not give, and put it there (no route to host)"
    )


def test_kinetics_is_torchvisions_file_as_safetensors_checked_and_read_as_tensors_alone(tmp_path, monkeypatch):
    reference = drawn(mvit_v2_s())
    given = []

    def torchvision_gets(url, **how):
        given.append((url, how))
        return reference.state_dict()

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", torchvision_gets)
    monkeypatch.setattr(published, "ROOT", tmp_path)
    for _ in range(2):
        paths = outside_files("mvitv2_s", "kinetics", {})
        assert paths == {"video": tmp_path / "weights/mvit_v2_s.safetensors"}
    assert given == [(MViT_V2_S_Weights.KINETICS400_V1.url, {"check_hash": True, "weights_only": True})]
    model, same = build_model("mvitv2_s", 5), build_model("mvitv2_s", 400)
    head = model.head.weight.clone()
    start(model, "video", paths["video"])
    load_torchvision_mvit(same, reference.state_dict())
    torch.testing.assert_close(model.encoder.state_dict(), same.encoder.state_dict(), rtol=0, atol=0)
    assert torch.equal(model.head.weight, head)


@pytest.fixture
def audioset(tmp_path):
    """AST of transformers, on inputs of 1 s, and the file that it saves, with the names that the hub's has."""
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, max_length=98)
    theirs = drawn(transformers.ASTForAudioClassification(transformers.ASTConfig(**sizes, num_labels=9)))
    theirs.save_pretrained(tmp_path / "ast")
    return theirs, tmp_path / "ast/model.safetensors"


@torch.no_grad()
def test_ast_of_audioset_sees_in_our_log_mels_what_it_sees_in_its_own_which_are_half_as_wide(audioset):
    theirs, path = audioset
    model = build_model("ast_t", 4, size=(98, 128), dim=24).eval()
    head = model.head.weight.clone()
    about = start(model, "audio", path)
    x = torch.randn(2, 1, 98, 128)
    want = theirs.audio_spectrogram_transformer(x[:, 0] / 2).pooler_output
    torch.testing.assert_close(model.features(x), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.head.weight, head)
    assert about["name"] == "weights of others (model.safetensors)"


def test_positions_of_audioset_are_cut_from_the_middle_for_shorter_audio_and_interpolated_for_longer(audioset):
    theirs, path = audioset
    table = theirs.audio_spectrogram_transformer.embeddings.position_embeddings[:, 2:].detach().unflatten(1, (12, 9))
    for frames, steps in ((58, 5), (198, 19)):
        model = build_model("ast_t", 4, size=(frames, 128), dim=24)
        start(model, "audio", path)
        own = model.encoder.embeddings.position_embeddings[:, 2:].detach().unflatten(1, (12, steps))
        images = table.movedim(-1, 1)
        want = images[..., 2:7] if steps == 5 else F.interpolate(images, (12, 19), mode="bilinear")
        torch.testing.assert_close(own.movedim(-1, 1), want, rtol=1e-5, atol=1e-6)


def test_ast_of_audioset_is_refused_by_a_model_of_another_width_and_by_others(audioset):
    _, path = audioset
    with pytest.raises(WeightsError, match=r"ast_t cannot start .* has shape \(1, 1, 24\) where this .*\(1, 1, 96\)"):
        start(build_model("ast_t", 4), "audio", path)
    with pytest.raises(WeightsError, match=r"mat_t cannot start from .*: these are no weights of timm's"):
        start(build_model("mat_t", 4), "audio", path)


def test_mat_does_not_start_from_torchvisions_films(tmp_path):
    save_file(mvit_v2_s().state_dict(), tmp_path / "films.safetensors")
    with pytest.raises(WeightsError, match=r"mat_s cannot start from .*films.*: these are no weights of timm's"):
        start(build_model("mat_s", 4), "audio", tmp_path / "films.safetensors")


def test_the_file_of_audioset_is_that_of_asts_authors(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(published, "hf_hub_download", lambda *file: asked.append(file) or __file__)
    monkeypatch.setattr(published, "ROOT", tmp_path)
    path = tmp_path / "weights/ast-finetuned-audioset-10-10-0.safetensors"
    assert outside_files("ast_b", "audioset", {}) == {"audio": path}
    assert asked == [("MIT/ast-finetuned-audioset-10-10-0.4593", "model.safetensors")]
    assert path.read_bytes() == Path(__file__).read_bytes()
    assert build_model("ast_b", 4).positions_grid == (12, 101)  # of its positions


def test_what_torch_did_not_get_is_said_with_the_file_the_folder_that_it_reads_and_why(tmp_path, monkeypatch):
    def torchvision_gets(url, **how):
        raise RuntimeError('invalid hash value (expected "ae3be167", got "0")')

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", torchvision_gets)
    monkeypatch.setattr(published, "ROOT", tmp_path)
    with pytest.raises(WeightsError) as raised:
        outside_files("mvitv2_s", "kinetics", {})
    assert str(raised.value) == (
        f"{tmp_path}/weights/mvit_v2_s.safetensors does not exist; fetch https://download.pytorch.org/models/"
        f"mvit_v2_s-ae3be167.pth, which torch did not get, to {torch.hub.get_dir()}/checkpoints "
        '(invalid hash value (expected "ae3be167", got "0"))'
    )


@pytest.mark.parametrize(
    ("name", "init", "error", "sentence"),
    [
        (
            "mat_t",
            "imagenet",
            ValueError,
            r"no weights of imagenet have .* mat_t; .*'depths': \[1, 2, 5, 2\]\} \(timm/mvitv2_tiny\.fb_in1k\) or",
        ),
        (
            "mat_t",
            "no.safetensors",
            WeightsError,
            "no.safetensors does not exist; fetch a safetensors file of timm's .*",
        ),
        (
            "ast_t",
            "imagenet",
            ValueError,
            r"shape of ast_t; .* to \{'dim': 768, 'num_heads': 12\} \(timm/deit_base_",
        ),
        (
            "mbt_t",
            "no.safetensors",
            WeightsError,
            r"fetch a safetensors file of timm's .*ViT \(for MBT and its",
        ),
        ("mat_s", "kinetics", ValueError, "no weights of kinetics .* mat_s; set its `init` to scratch or imagenet"),
        (
            "mvitv2_b",
            "kinetics",
            ValueError,
            r"the shape of mvitv2_b; set its overrides to .* 11, 2\]\} \(mvit_v2_s\)",
        ),
        ("mat_x", "imagenet", ValueError, "no model is called 'mat_x'"),
        (
            "mmt_t",
            "imagenet",
            ValueError,
            "mmt_t cannot start .*, its encoders can; set .* to scratch or pretrained$",
        ),
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
    assert about == {"name": "weights of others (small.safetensors)", "key": digest(file.read_bytes()), "stats": {}}


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
    assert "- starts from: audio: weights of others (small.safetensors), run " in cards[0]
    assert "- starts from: audio: mat_t from weights of others (small.safetensors), run " in cards[1]

    def keys() -> dict[str, str]:
        return {name: key_of(parts_for(run, params, Trial(0), data)) for name, run in params.runs.items()}

    before = keys()
    save_file(small().state_dict(), file)  # drawn anew
    changed = {name for name, key in keys().items() if key != before[name]}
    assert changed == {"pretrain_mat", "pretrain_mvit", "train_mmt"}
