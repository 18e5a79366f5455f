"""ResNet-18 is torchvision's own; of a video it averages a few frames, of both modalities the logits."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from mmtlib.models import AVOutput, build_model, resolved
from mmtlib.models.hub import load_encoder
from study.timing import count_macs, count_parameters

NAMES = ["resnet18_audio", "resnet18_video", "resnet18_av"]


def clips(n: int = 3, frames: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 1, 70, 48), torch.randn(n, 3, frames, 48, 64)


@torch.no_grad()
def make(name: str, **overrides) -> nn.Module:
    """A model whose BatchNorm has statistics, as a trained one's has."""
    model = build_model(name, 5, **overrides)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for momentum in (1.0, 0.1):
        for norm in norms:
            norm.momentum = momentum
        read(model, *clips(4))
    return model.eval()


def read(model: nn.Module, audio, video) -> torch.Tensor:
    return model.read(audio, video).logits


def theirs(model: nn.Module) -> nn.Module:
    """torchvision's ResNet-18 with the weights of a model of one modality."""
    net = resnet18(num_classes=5)
    if model.reads == "audio":
        net.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    net.load_state_dict(model.encoder.state_dict() | {f"fc.{k}": v for k, v in model.head.state_dict().items()})
    return net.train(model.training)


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_it_is_torchvisions_resnet(training):
    audio, video = clips(frames=1)
    for name, given, image in (("resnet18_audio", audio, audio), ("resnet18_video", video, video[:, :, 0])):
        model = make(name).train(training)
        net = theirs(model)
        torch.testing.assert_close(model(given), net(image), rtol=1e-4, atol=1e-4)
        for key, value in model.encoder.state_dict().items():
            torch.testing.assert_close(value, net.state_dict()[key])


def test_its_weights_are_drawn_as_torchvisions_are():
    nets = [theirs(build_model("resnet18_audio", 5)), resnet18(num_classes=5)]
    drawn, want = ({name: p.std().item() for name, p in net.named_parameters() if p.numel() > 2000} for net in nets)
    assert len(drawn) == 21
    assert drawn == pytest.approx(want, rel=0.1)


@torch.no_grad()
def test_tokens_are_the_places_of_the_last_map_and_their_mean_is_the_feature():
    audio, video = clips()
    for model, given, grid in ((make("resnet18_audio"), audio, (3, 2)), (make("resnet18_video"), video, (4, 2, 2))):
        tokens, found = model.encoder(given)
        assert found == grid
        assert tokens.shape == (3, torch.Size(grid).numel(), 512)
        assert torch.equal(model.features(given), tokens.mean(1))


@torch.no_grad()
def test_a_video_is_read_frame_by_frame_and_averaged():
    model, (_, video) = make("resnet18_video"), clips()
    frames = [theirs(model)(frame) for frame in video.unbind(2)]
    torch.testing.assert_close(model(video), sum(frames) / 4, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("given", "frames", "read"),
    [
        (16, 4, [2, 6, 10, 14]),
        (8, 4, [1, 3, 5, 7]),
        (5, 2, [1, 3]),
        (4, 4, [0, 1, 2, 3]),
        (3, 4, [0, 1, 2]),
        (1, 4, [0]),
    ],
)
def test_frames_are_evenly_spaced_out_of_those_given(given, frames, read):
    model, (_, video) = make("resnet18_video", frames=frames), clips(frames=given)
    out = model(video)
    assert torch.equal(out, model(video[:, :, read]))
    for place in range(given):
        changed = video.clone()
        changed[:, :, place] += 1.0
        assert torch.equal(model(changed), out) == (place not in read)


def test_four_frames_unless_told_otherwise():
    assert resolved("resnet18_video", {}) == resolved("resnet18_av", {}) == {"frames": 4}
    assert resolved("resnet18_audio", {}) == {}
    assert resolved("resnet18_av", {"frames": 2}) == {"frames": 2}
    assert build_model("resnet18_av", 5).video_encoder.frames == 4


@torch.no_grad()
def test_both_are_fused_late():
    model, (audio, video) = make("resnet18_av"), clips()
    out = model(audio, video)
    assert isinstance(out, AVOutput)
    torch.testing.assert_close(out.logits, (out.audio_logits + out.video_logits) / 2)
    other = model(torch.randn_like(audio), video)
    assert torch.equal(other.video_logits, out.video_logits)
    assert not torch.equal(other.audio_logits, out.audio_logits)
    assert out.audio_embedding.shape == out.video_embedding.shape == (3, 128)
    torch.testing.assert_close(out.embedding.norm(dim=1), torch.full((3,), 2**0.5))


@torch.no_grad()
def test_its_streams_are_the_models_of_one_modality():
    both, (audio, video) = make("resnet18_av"), clips()
    for part, given in (("audio", audio), ("video", video)):
        alone = make(f"resnet18_{part}")
        alone.encoder.load_state_dict(getattr(both, f"{part}_encoder").state_dict())
        alone.head.load_state_dict(getattr(both.heads, f"{part}_head").state_dict())
        torch.testing.assert_close(alone(given), getattr(both(audio, video), f"{part}_logits"), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_clip_is_classified_from_what_it_has():
    model, (audio, video) = make("resnet18_av"), clips()
    out = model(audio, video, torch.tensor([True, False, True]), torch.tensor([True, True, False]))
    for row, whole in enumerate((model(audio, video), model(None, video), model(audio, None))):
        torch.testing.assert_close(out.logits[row], whole.logits[row], rtol=1e-4, atol=1e-4)
    assert model(None, video).audio_logits is None
    with pytest.raises(ValueError, match="neither"):
        model(audio, video, torch.tensor([False] * 3), torch.tensor([True, False, True]))


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_on_absent_audio_and_every_parameter_has_a_part(name):
    model, (audio, video) = build_model(name, 5), clips()
    audio[1] = 0.0
    out = model.read(audio, video, torch.tensor([True, False, True]), torch.ones(3, dtype=torch.bool))
    sum((part * torch.randn_like(part)).sum() for part in (out.logits, out.embedding)).backward()
    for parameter in model.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_one_clip_trains_unless_it_is_too_small_for_batch_norm(name):
    model = build_model(name, 5, **{} if name == "resnet18_audio" else {"frames": 1})
    assert read(model, *clips(1)).isfinite().all()
    small = torch.randn(1, 1, 32, 20), torch.randn(1, 3, 1, 20, 32)
    with pytest.raises(ValueError, match=r"BatchNorm cannot train on one image of \(.*two clips or more"):
        read(model, *small)
    assert read(model, *(torch.cat((part, part)) for part in small)).isfinite().all()
    assert read(model.eval(), *small).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (33, 7), (130, 64)])
def test_any_size_works_whatever_it_was_built_for(name, size):
    torch.manual_seed(1)
    model = build_model(name, 5, audio_size=(64, 48), video_size=(4, 32, 32)).eval()
    assert read(model, torch.randn(2, 1, *size), torch.randn(2, 3, 2, *size)).shape == (2, 5)
    torch.manual_seed(1)
    other = build_model(name, 5)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())
    assert model.about["overrides"] == {"audio_size": [64, 48], "video_size": [4, 32, 32]} | resolved(name, {})


@pytest.mark.parametrize("part", ["audio", "video"])
def test_a_model_of_both_starts_from_one_of_one(part):
    alone, both = make(f"resnet18_{part}"), build_model("resnet18_av", 4)
    before = {name: value.clone() for name, value in both.state_dict().items()}
    load_encoder(getattr(both, f"{part}_encoder"), alone.state_dict())
    for name, value in both.state_dict().items():
        own = name.startswith(f"{part}_encoder.")
        want = alone.state_dict()[name.replace(f"{part}_encoder", "encoder")] if own else before[name]
        assert torch.equal(value, want), name
    assert "audio_encoder.layer4.1.bn2.running_var" in before, "BatchNorm's statistics are among them"
    other = {"audio": "video", "video": "audio"}[part]
    with pytest.raises(ValueError, match=r"that the run starts from does not fit"):
        load_encoder(getattr(both, f"{other}_encoder"), alone.state_dict())


def test_settings_that_it_does_not_have_are_refused():
    for name, wrong in [*((name, {"no_such": 1}) for name in NAMES), ("resnet18_audio", {"frames": 2})]:
        with pytest.raises(ValueError, match=rf"'{name}'.*{next(iter(wrong))}"):
            build_model(name, 3, **wrong)
    with pytest.raises(ValueError, match="frames 0 must be at least 1"):
        build_model("resnet18_video", 3, frames=0)


def test_it_costs_what_is_published():
    """11.69 million parameters and 1.814 billion multiply-accumulates by torchvision's table, for each frame read."""
    with torch.device("meta"):
        model, clip = build_model("resnet18_video", 1000), torch.empty(1, 3, 8, 224, 224)
        assert count_parameters(model) == 11_689_512
        assert count_macs(model, clip) / 1e9 == pytest.approx(4 * 1.814, rel=0.001)
        both = count_macs(build_model("resnet18_av", 5), torch.empty(1, 1, 248, 128), torch.empty(1, 3, 16, 64, 64))
        one = count_macs(build_model("resnet18_audio", 5), torch.empty(1, 1, 248, 128))
        assert both > one > 0
