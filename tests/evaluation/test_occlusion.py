"""Occlusion: on models whose answer depends on one known part, and against a loop by hand; and its figure."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from PIL import Image
from toy_features import AUDIO, OVERRIDES, VIDEO, write_features

from mmtlib.data.dataset import FeatureDataset
from mmtlib.evaluation.occlusion import Attribution, _spans, occlusion
from mmtlib.models import MODALITY, build_model
from study import gallery
from study.figures import predict as predict_figures
from study.figures import style as figures

BLOCKS, FIELDS = (5, 4), (4, 2)


class Toy(torch.nn.Module):
    """Three classes; the logit of class 1 is the sum of the inputs at the given places, the others are 0."""

    def __init__(self, kind="av", sound=(0, 0), picture=(0, 0, 0)):
        super().__init__()
        self.kind, self.sound, self.picture = kind, sound, picture
        self.scale = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, *inputs):
        told = 0.0
        for name, clip in zip(("audio", "video") if self.kind == "av" else (self.kind,), inputs, strict=True):
            place = self.sound if name == "audio" else self.picture
            told = told + (0.0 if clip is None else clip[:, :, *place].sum(1))
        logits = self.scale * torch.stack([0 * told, told, 0 * told], dim=1)
        return SimpleNamespace(logits=logits) if self.kind == "av" else logits


@pytest.fixture
def clip():
    return torch.rand(1, 1, *AUDIO) + 0.5, torch.rand(1, 3, *VIDEO) + 0.5


def test_exactly_the_part_that_the_answer_depends_on_has_a_weight(clip):
    model = Toy(sound=(17, 25), picture=(2, 5, 15))  # of 40 x 32 in 5 x 4, of 4 frames, of 16 x 16 in 4 x 2
    found = occlusion(model, "av", *clip, 1, blocks=BLOCKS, fields=FIELDS)
    sound, picture = clip[0][0, 0, 17, 25].item(), clip[1][0, :, 2, 5, 15].sum().item()

    def log_probability(told):
        return told - np.log(np.exp(told) + 2)

    whole = log_probability(sound + picture)
    assert found.log_probability == pytest.approx(whole)
    for part, place, left in (
        (found.sound, (2, 3), picture),
        (found.frames, (2,), sound),
        (found.picture, (1, 1), sound),
    ):
        assert part[place].item() == pytest.approx(whole - log_probability(left), rel=1e-4)
        assert part.count_nonzero() == 1
    assert (found.sound.shape, found.frames.shape, found.picture.shape) == (BLOCKS, VIDEO[:1], FIELDS)
    against = occlusion(model, "av", *clip, 0, blocks=BLOCKS, fields=FIELDS)
    assert against.sound[2, 3] < 0, "without what speaks against a class, it rises"


def by_hand(model, kind, inputs, target):
    """One clip after the other, in training's own arithmetic."""
    model.eval()
    with torch.no_grad():
        out = model(*inputs) if kind == "av" else model(inputs[kind == "video"])
    return (out.logits if kind == "av" else out).softmax(1)[0, target].log().item()


@pytest.mark.parametrize("name", ["mat_t", "ast_t", "mvitv2_t", "mmt_t", "mbt_t"])
def test_every_weight_is_the_fall_that_a_loop_finds(name, clip):
    kind = MODALITY[name]
    model = build_model(name, 4, audio_size=AUDIO, video_size=VIDEO, **OVERRIDES.get(name, {}))
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    before = [part.clone() for part in clip]
    model.train()  # drops paths: it must not
    found = occlusion(model, kind, *clip, 2, blocks=BLOCKS, fields=FIELDS, batch_size=3)
    assert all(map(torch.equal, clip, before))
    whole = by_hand(model, kind, clip, 2)
    assert found.log_probability == pytest.approx(whole, abs=1e-5)

    def check(part, which, place_of):
        for place in np.ndindex(*part.shape):
            inputs = [one.clone() for one in clip]
            inputs[which][place_of(*place)] = 0.0
            assert part[place].item() == pytest.approx(whole - by_hand(model, kind, inputs, 2), abs=1e-5)
        assert part.abs().max() > 1e-4

    if kind != "video":
        check(found.sound, 0, lambda i, j: np.s_[..., 8 * i : 8 * i + 8, 8 * j : 8 * j + 8])
    if kind != "audio":
        check(found.frames, 1, lambda i: np.s_[:, :, i])
        check(found.picture, 1, lambda i, j: np.s_[..., 4 * i : 4 * i + 4, 8 * j : 8 * j + 8])
    assert (found.sound is None, found.frames is None) == (kind == "video", kind == "audio")


def test_a_model_of_both_is_asked_without_what_the_clip_lacks(clip):
    found = occlusion(Toy(), "av", clip[0], None, 1)
    assert (found.frames, found.picture) == (None, None)
    assert found.sound.count_nonzero() == 1
    assert occlusion(Toy(), "av", None, clip[1], 1).sound is None


def test_a_probability_is_one_of_its_head(clip):
    model = Toy("audio", sound=(17, 25))
    told = clip[0][0, 0, 17, 25].item()
    pair = occlusion(model, "audio", clip[0], None, 1, heads=[2, 1])
    assert pair.log_probability == pytest.approx(told - np.log(np.exp(told) + 1))
    alone = occlusion(model, "audio", clip[0], None, 2, heads=[2, 1])
    assert (alone.log_probability, alone.sound.count_nonzero()) == (0, 0), "it is the only class of its head"


def test_the_number_of_parts_at_a_time_changes_nothing(clip):
    for size in (1, 7, 1000):
        found = occlusion(Toy(), "av", *clip, 1, batch_size=size)
        torch.testing.assert_close(found.sound, occlusion(Toy(), "av", *clip, 1).sound)


@given(st.integers(1, 300), st.data())
def test_parts_cover_an_axis_and_are_as_equal_as_can_be(length, data):
    spans = _spans(length, data.draw(st.integers(1, length)))
    assert [place for span in spans for place in range(length)[span]] == list(range(length))
    sizes = [span.stop - span.start for span in spans]
    assert max(sizes) - min(sizes) <= 1


def test_what_cannot_be_weighed_is_one_sentence(clip):
    with pytest.raises(ValueError, match=r"nothing of what the model reads \(audio\); give another\.$"):
        occlusion(Toy("audio"), "audio", None, clip[1], 1)
    for target in (-1, 3):
        with pytest.raises(ValueError, match=rf"class {target} is unknown to a model of 3; count from 0\.$"):
            occlusion(Toy(), "av", *clip, target)
    with pytest.raises(ValueError, match=r"32 values cannot be cut into 33 parts; ask for 1 to 32\.$"):
        occlusion(Toy(), "av", *clip, 1, blocks=(10, 33))
    with pytest.raises(ValueError, match=r"16 values cannot be cut into 0 parts"):
        occlusion(Toy(), "av", *clip, 1, fields=(8, 0))


def test_more_than_one_clip_is_refused(clip):
    # Annotations are checked while testing, and would refuse it first.
    with pytest.raises(ValueError, match=r"^2 clips were given at once; give one after the other\.$"):
        occlusion.__wrapped__.__wrapped__(Toy(), "av", clip[0].repeat(2, 1, 1, 1), clip[1].repeat(2, 1, 1, 1, 1), 1)


def weighed(**parts):
    weights = Attribution(-1.0, **{"sound": None, "frames": None, "picture": None} | parts)
    frames = np.full((4, 16, 16, 3), 90, np.uint8)
    return predict_figures.Weighed("dog, taken for a bell", torch.rand(*AUDIO), frames, 0.4, weights)


def test_the_figure_lays_colour_where_the_weight_is():
    sound, picture = torch.zeros(BLOCKS), torch.zeros(FIELDS)
    sound[2, 3], sound[0, 0], picture[1, 0] = 0.5, -0.5, 0.25
    figure = predict_figures.decisions([weighed(sound=sound, frames=torch.tensor([0.1, -0.2, 0, 0]), picture=picture)])
    (row,) = figure.subfigs
    assert row.get_suptitle() == "dog, taken for a bell (full colour: 0.50 nats)"
    panels = {ax.get_label(): ax for ax in row.axes}
    ear, strip, eye, bars = (panels[name] for name in ("sound", "strip", "frame", "bars"))
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([0.1, -0.2, 0, 0])
    assert strip.images[0].get_array().shape == (16, 4 * 16, 3)
    for ax, part, modality, strength in ((ear, sound.T.numpy(), "audio", 1), (eye, picture.numpy(), "video", 0.5)):
        over = np.asarray(ax.images[1].get_array())
        assert over.shape == (*part.shape, 4)
        place = np.unravel_index(part.argmax(), part.shape)
        assert over[*place, :3] == pytest.approx(to_rgb(figures.COLOURS[modality]))
        assert np.count_nonzero(over[..., 3]) == 1
        assert over[*place, 3] == pytest.approx(0.8 * strength)
    assert ear.images[0].get_extent() == ear.images[1].get_extent() == [0, 0.4, 0, 32]
    figures.png(figure)


def test_the_figure_says_what_a_clip_lacks():
    clips = [weighed(sound=torch.zeros(BLOCKS)), weighed(frames=torch.zeros(4), picture=torch.zeros(FIELDS))]
    figure = predict_figures.decisions(clips)
    said = [[text.get_text() for ax in row.axes for text in ax.texts] for row in figure.subfigs]
    assert said == [["no video", "no video"], ["no audio"]]
    figures.png(figure)


def test_the_sheet_shows_clips_of_a_split(tmp_path):
    test = FeatureDataset(write_features(tmp_path), "test")
    batch = test.batch([5])
    found = occlusion(Toy(), "av", batch.audio, batch.video, 1)
    picture = gallery.decision_sheet(test, {5: "one", 0: "other"}, [found, found])
    assert repr(picture) == "Picture: what drives the decision on 2 clips"
    assert np.asarray(Image.open(io.BytesIO(picture.png))).std() > 0
    assert len(picture.png) < 100_000
