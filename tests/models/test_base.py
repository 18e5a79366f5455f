"""What all models have in common: `read`, and a folder that they are saved to and come back from."""

import json

import pytest
import torch
from huggingface_hub import ModelCard

from mmtlib.models import (
    MBT,
    MMT,
    MODALITY,
    ASTClassifier,
    AVOutput,
    MultiscaleClassifier,
    ResNetAV,
    StreamClassifier,
    build_model,
)
from mmtlib.models.base import HUB_FILE, Reading
from mmtlib.models.hub import WeightsError, load_weights

SIZES = {"audio_size": (64, 48), "video_size": (4, 32, 32)}
CLASSES = {
    "mat_t": MultiscaleClassifier,
    "mvitv2_t": MultiscaleClassifier,
    "ast_t": ASTClassifier,
    "mmt_t": MMT,
    "mbt_t": MBT,
    "vit_audio_t": StreamClassifier,
    "vit_video_t": StreamClassifier,
    "resnet18_video": StreamClassifier,
    "resnet18_av": ResNetAV,
}


def clips(n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 1, *SIZES["audio_size"]), torch.randn(n, 3, *SIZES["video_size"])


def make(name: str) -> torch.nn.Module:
    return build_model(name, 5, **SIZES).eval()


def own_inputs(name: str, audio, video) -> list[torch.Tensor]:
    return {"audio": [audio], "video": [video], "av": [audio, video]}[MODALITY[name]]


@pytest.mark.parametrize("name", CLASSES)
def test_reading_gives_logits_and_the_embedding_that_they_come_from(name):
    model, (audio, video) = make(name), clips()
    assert isinstance(model, CLASSES[name])
    assert model.reads == MODALITY[name]
    out, own = model.read(audio, video), model(*own_inputs(name, audio, video))
    assert isinstance(out, AVOutput)
    if model.reads == "av":
        assert all(torch.equal(a, b) for a, b in zip(out, own, strict=True))
        assert torch.equal(out.embedding, torch.cat((out.audio_embedding, out.video_embedding), dim=1))
        return
    assert torch.equal(out.logits, own)
    torch.testing.assert_close(model.head(out.embedding), own)
    other = "video" if model.reads == "audio" else "audio"
    assert getattr(out, f"{other}_logits") is None
    assert getattr(out, f"{other}_embedding") is None
    blind = model.read(*(None if other == "audio" else audio, None if other == "video" else video))
    assert torch.equal(blind.logits, own), "what it does not read may be missing"


def test_a_clip_without_a_modality_is_read_by_its_flags():
    model, (audio, video) = make("mmt_t"), clips()
    has = torch.tensor([True, False, True])
    out = model.read(audio, video, has, torch.ones(3, dtype=torch.bool))
    alone = model.read(None, video)
    torch.testing.assert_close(out.logits[1], alone.logits[1], rtol=1e-4, atol=1e-5)
    assert torch.equal(alone.embedding, alone.video_embedding)


@pytest.mark.parametrize("name", CLASSES)
def test_reading_as_a_forward_pass_trains_the_same_parameters(name):
    model, (audio, video) = make(name), clips()
    reading = Reading(model)
    assert [*reading.parameters()] == [*model.parameters()]
    assert torch.equal(reading(audio, video, None, None).logits, model.read(audio, video).logits)


@pytest.mark.parametrize("name", CLASSES)
def test_a_saved_folder_gives_the_same_model(tmp_path, name):
    model, given = make(name), own_inputs(name, *clips())
    model.save_pretrained(tmp_path / "m")
    assert {path.name for path in (tmp_path / "m").iterdir()} == {HUB_FILE, "config.json", "README.md"}
    again = CLASSES[name].from_pretrained(tmp_path / "m")
    assert not again.training
    want, got = model(*given), again(*given)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
    assert again.about == json.loads((tmp_path / "m" / "config.json").read_text())
    assert again.about == json.loads(json.dumps(model.about)), "tuples are lists now"
    again.save_pretrained(tmp_path / "n")
    assert (tmp_path / "n" / HUB_FILE).read_bytes() == (tmp_path / "m" / HUB_FILE).read_bytes()
    card = ModelCard.load(tmp_path / "m" / "README.md")
    assert (card.data.library_name, card.data.license) == ("mmtlib", "apache-2.0")
    assert f"# {name}\n" in card.content


def test_what_training_says_of_a_model_is_saved_with_it(tmp_path):
    model = make("mat_t")
    model.about |= {"seed": 3, "heads": {"label": list("abcde")}}
    model.save_pretrained(tmp_path)
    header = load_weights(tmp_path / HUB_FILE)[1]
    assert (header["seed"], header["heads"]) == (3, {"label": list("abcde")})


def test_a_model_of_another_class_is_refused_with_the_right_one(tmp_path):
    make("mat_t").save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"is mat_t; use MultiscaleClassifier.from_pretrained"):
        MMT.from_pretrained(tmp_path)


def test_pushing_uploads_what_is_saved(monkeypatch):
    sent = {}

    class Api:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, private, exist_ok):
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id, folder_path, **options):
            sent[repo_id] = {path.name for path in folder_path.iterdir()}
            return "the commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert make("mat_t").push_to_hub("someone/mat_t") == "the commit"
    assert sent == {"someone/mat_t": {HUB_FILE, "config.json", "README.md"}}
