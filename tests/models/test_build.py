"""Every model by its name: shapes, gradients, sizes, and that each row of params.yaml builds and runs."""

import re

import pytest
import torch

from mmtlib import config as params
from mmtlib.models import MODALITY, AVOutput, build_model

TINY = [name for name in MODALITY if name.endswith("_t")]
SIZES = {"audio_size": (198, 128), "video_size": (8, 64, 64)}


def sizes(name: str, audio_size=(198, 128), video_size=(8, 64, 64)) -> dict:
    """The input sizes that concern a model."""
    given = {"audio": {"audio_size": audio_size}, "video": {"video_size": video_size}}
    given["av"] = given["audio"] | given["video"]
    return given[MODALITY[name]]


def inputs(name: str, batch: int = 2, audio_size=(198, 128), video_size=(8, 64, 64)) -> list[torch.Tensor]:
    given = {"audio": [torch.randn(batch, 1, *audio_size)], "video": [torch.randn(batch, 3, *video_size)]}
    given["av"] = given["audio"] + given["video"]
    return given[MODALITY[name]]


def logits(out) -> torch.Tensor:
    return out.logits if isinstance(out, AVOutput) else out


def test_the_names_are_the_agreed_ones():
    assert {name: kind for name, kind in MODALITY.items() if kind == "audio"}.keys() == {
        "mat_t",
        "mat_s",
        "mat_b",
        "ast_t",
        "ast_b",
        "vit_audio_t",
        "vit_audio_b",
        "resnet18_audio",
    }
    assert {name for name, kind in MODALITY.items() if kind == "video"} == {
        "mvitv2_t",
        "mvitv2_s",
        "mvitv2_b",
        "vit_video_t",
        "vit_video_b",
        "resnet18_video",
    }
    assert {name for name, kind in MODALITY.items() if kind == "av"} == {
        "mmt_t",
        "mmt_s",
        "mmt_b",
        "mbt_t",
        "mbt_b",
        "resnet18_av",
    }


@pytest.mark.parametrize("name", TINY)
def test_shapes(name):
    out = build_model(name, 5, **sizes(name)).eval()(*inputs(name))
    assert logits(out).shape == (2, 5)
    assert isinstance(out, AVOutput) == (MODALITY[name] == "av")


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_gets_a_gradient(name):
    """A parameter without one is dead weight, or a wire that was never connected."""
    model = build_model(name, 5, **sizes(name)).eval()
    out = model(*inputs(name))
    parts = [out] if not isinstance(out, AVOutput) else [out.logits, out.audio_embedding, out.video_embedding]
    sum((part * torch.randn_like(part)).sum() for part in parts).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{parameter_name} took no part"
        assert parameter.grad.isfinite().all()
        # Softmax ignores what is the same for every key: a key's bias, and a position table of one place.
        same_for_all = parameter_name.endswith("key.bias") or (".rel_pos." in parameter_name and len(parameter) == 1)
        if not same_for_all:
            assert parameter.grad.abs().sum() > 0, f"{parameter_name} has no influence"


@pytest.mark.parametrize("name", TINY)
def test_a_seed_gives_the_same_weights_again(name):
    def weights(seed):
        torch.manual_seed(seed)
        return build_model(name, 3).state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", TINY)
def test_fresh_logits_are_of_a_sane_size(name):
    """Near chance at the start: cross-entropy close to log K, not already sure of something."""
    torch.manual_seed(3)
    model = build_model(name, 10, **sizes(name)).eval()
    loss = torch.nn.functional.cross_entropy(logits(model(*inputs(name, 8))), torch.arange(8))
    assert loss.item() == pytest.approx(2.3026, abs=0.7)


@pytest.mark.parametrize("name", TINY)
def test_models_take_other_input_sizes_than_they_were_built_for(name):
    model = build_model(name, 5, **sizes(name)).eval()
    for other in ({"audio_size": (100, 64), "video_size": (4, 48, 80)}, {"audio_size": (301, 131)}):
        assert logits(model(*inputs(name, 2, **other))).isfinite().all()


OURS = ("mat", "mvitv2", "mmt")
LEAST = {name: ((1, 1), (1, 1, 1)) if name.startswith(OURS) else ((16, 16), (4, 8, 8)) for name in TINY}


@pytest.mark.parametrize("name", TINY)
def test_the_least_size_works_and_a_smaller_one_is_refused_with_it(name):
    model = build_model(name, 5, **sizes(name)).eval()
    least = dict(zip(("audio_size", "video_size"), LEAST[name], strict=True))
    assert logits(model(*inputs(name, 2, **least))).isfinite().all()
    for part, size in sizes(name, **least).items():
        for axis, n in enumerate(size):
            small = (*size[:axis], n - 1, *size[axis + 1 :])
            sentence = rf"size {re.escape(str(small))} is smaller.*at least {re.escape(str(size))} along each axis"
            with pytest.raises(ValueError, match=sentence):
                build_model(name, 5, **{part: small})
            if n > 1:
                with pytest.raises(ValueError, match=sentence):
                    model(*inputs(name, 1, **least | {part: small}))


@pytest.mark.parametrize(("name", "small"), [("mat_t", (1, 1, 8, 128)), ("mmt_t", (1, 1, 8, 128))])
def test_an_input_smaller_than_a_patch_is_refused(name, small):
    given, patches = [torch.randn(small), *inputs(name, 1)[1:]], {"stem": 0}
    with pytest.raises(ValueError, match=r"\(8, 128\).*at least \(16, 16\)"):
        build_model(name, 5, **{"audio": patches} if name == "mmt_t" else patches)(*given)


@pytest.mark.parametrize("name", TINY)
def test_input_sizes_size_what_depends_on_them(name):
    """Position tables are made for the size that is given, so that nothing is interpolated."""
    small = sizes(name, audio_size=(64, 48), video_size=(4, 32, 32))
    model = build_model(name, 5, **small).eval()
    assert logits(model(*inputs(name, 2, (64, 48), (4, 32, 32)))).shape == (2, 5)
    here, there = (sum(p.numel() for p in m.parameters()) for m in (model, build_model(name, 5, **sizes(name))))
    assert here < there


def test_lists_from_yaml_build_what_tuples_build():
    torch.manual_seed(0)
    from_yaml = build_model("mmt_t", 3, audio_size=[64, 48], audio={"pooling": ["time"] * 3}, fusion="late")
    torch.manual_seed(0)
    from_code = build_model("mmt_t", 3, audio_size=(64, 48), audio={"pooling": ("time",) * 3}, fusion="late")
    states = from_yaml.state_dict(), from_code.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])


def test_the_size_of_the_input_goes_before_one_among_the_overrides():
    table = build_model("mat_t", 3, audio_size=(64, 48), size=(198, 128)).encoder.positions[0]
    assert len(table) == 64 // 8
    both = build_model("mmt_t", 3, video_size=(8, 32, 32), audio={"size": (64, 48)}, video={"size": (16, 64, 64)})
    assert len(both.audio_encoder.positions[0]) == 8
    assert len(both.video_encoder.positions[1]) == 4


def test_overrides_reach_the_part_they_name():
    parts = {"audio": {"dim": 16, "stem": 0}, "video": {"dim": 8, "stem": ()}}
    model = build_model("mmt_t", 3, **parts, dim=24, num_heads=2, num_bottleneck=9)
    assert model.audio_encoder.patch_embed.weight.shape[0] == 16
    assert model.video_encoder.patch_embed.weight.shape[0] == 8
    assert model.fusion.bottleneck.shape == (1, 9, 24)
    with pytest.raises(ValueError, match=r"'mmt_t'.*no_such"):
        build_model("mmt_t", 3, audio={"no_such": 1})


@pytest.mark.parametrize("name", TINY)
def test_an_unknown_setting_is_refused_by_name(name):
    with pytest.raises(ValueError, match=rf"'{name}'.*no_such"):
        build_model(name, 3, no_such=1)


def test_an_unknown_model_is_refused_with_the_names():
    with pytest.raises(ValueError, match=r"'mat_x'.*mat_t.*mbt_b"):
        build_model("mat_x", 3)


@pytest.mark.parametrize("name", [name for name in MODALITY if not name.endswith("_t")])
def test_large_models_can_be_built_without_memory(name):
    """On the meta device, to count what they cost."""
    with torch.device("meta"):
        model = build_model(name, 309)
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) > (11e6 if name.startswith("resnet18") else 30e6)


def rows(path: str) -> dict[str, params.Run]:
    values = params.load(path)
    return {name: getattr(values, name) for name in ("pretrain_mat", "pretrain_mvit", "train_mmt")} | values.ablations


@pytest.mark.parametrize("path", ["params.yaml", "params/smoke.yaml"])
def test_every_row_of_a_profile_builds_and_runs_one_batch(path):
    """The test MBT's released configuration would have failed."""
    given = params.load(path).features
    time = 1 + int((given.seconds * 1000 - given.window_ms) // given.hop_ms)
    shape = {"audio_size": (time, given.mel_bins), "video_size": (given.frames, given.size, given.size)}
    done = set()
    for name, row in rows(path).items():
        key = (row.model, repr(row.overrides))
        if key in done:
            continue
        done.add(key)
        model = build_model(row.model, 18, **sizes(row.model, **shape), **row.overrides)
        out = logits(model(*inputs(row.model, 2, **shape)))
        assert out.shape == (2, 18), name
        out.sum().backward()


@pytest.mark.parametrize("path", ["params.yaml", "params/smoke.yaml"])
def test_rows_that_start_from_pretrained_encoders_fit_them(path):
    for name, row in rows(path).items():
        if row.init == "pretrained":
            model = build_model(row.model, 18, **row.overrides)
            values = params.load(path)
            for part, run in (("audio", values.pretrain_mat), ("video", values.pretrain_mvit)):
                encoder = build_model(run.model, 18, **run.overrides).encoder
                own = getattr(model, f"{part}_encoder").state_dict()
                shapes = {key: value.shape for key, value in encoder.state_dict().items()}
                assert shapes == {key: value.shape for key, value in own.items()}, name
