"""AVC and IMC against loops over pairs, written from the formula of SupCon."""

import math

import pytest
import torch
from torch.nn.functional import one_hot

from mmtlib.losses import audio_video_contrastive, intra_modal_contrastive, shared

LABELS = {
    "mixed": [0, 1, 0, 2, 1, 0],  # the clip of label 2 has no positive but itself
    "all alone": [0, 1, 2, 3],
    "one label": [4, 4, 4],
    "one clip": [3],
    "a pair": [1, 1],
}


def cos(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def slow_direction(anchors, candidates, labels, temperature) -> float:
    """Cross-modal, one direction: every clip of the other modality is a candidate, the own one included."""
    total = 0.0
    for i, anchor in enumerate(anchors):
        logits = [cos(anchor, candidate) / temperature for candidate in candidates]
        denominator = sum(math.exp(logit) for logit in logits)
        positives = [j for j in range(len(labels)) if labels[j] == labels[i]]
        total += sum(-math.log(math.exp(logits[j]) / denominator) for j in positives) / len(positives)
    return total / len(labels)


def slow_avc(audio, video, labels, temperature) -> float:
    there = slow_direction(audio, video, labels, temperature)
    return (there + slow_direction(video, audio, labels, temperature)) / 2


def slow_imc(z, labels, temperature) -> float:
    per_anchor = []
    for i, anchor in enumerate(z):
        others = [j for j in range(len(labels)) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        if positives:
            logits = {j: cos(anchor, z[j]) / temperature for j in others}
            denominator = sum(math.exp(logit) for logit in logits.values())
            terms = [-math.log(math.exp(logits[j]) / denominator) for j in positives]
            per_anchor.append(sum(terms) / len(terms))
    return sum(per_anchor) / len(per_anchor) if per_anchor else 0.0


def embeddings(n: int, dim: int = 5) -> torch.Tensor:
    return 3.0 * torch.randn(n, dim)  # not unit norm: the losses take the cosine themselves


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("case", LABELS)
def test_avc_equals_the_loops(case, temperature):
    labels = LABELS[case]
    audio, video = embeddings(len(labels)), embeddings(len(labels))
    got = audio_video_contrastive(audio, video, torch.tensor(labels), temperature)
    assert got.item() == pytest.approx(
        slow_avc(audio.tolist(), video.tolist(), labels, temperature), rel=1e-4, abs=1e-5
    )


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("case", LABELS)
def test_imc_equals_the_loops(case, temperature):
    labels = LABELS[case]
    z = embeddings(len(labels))
    got = intra_modal_contrastive(z, torch.tensor(labels), temperature)
    assert got.item() == pytest.approx(slow_imc(z.tolist(), labels, temperature), rel=1e-4, abs=1e-5)


def test_the_default_temperature_is_a_tenth():
    labels, z, other = torch.tensor([0, 0, 1]), embeddings(3), embeddings(3)
    assert intra_modal_contrastive(z, labels) == intra_modal_contrastive(z, labels, 0.1)
    assert audio_video_contrastive(z, other, labels) == audio_video_contrastive(z, other, labels, 0.1)


def test_avc_is_symmetric_in_the_modalities():
    labels = torch.tensor(LABELS["mixed"])
    audio, video = embeddings(6), embeddings(6)
    torch.testing.assert_close(
        audio_video_contrastive(audio, video, labels), audio_video_contrastive(video, audio, labels)
    )


def test_scale_and_order_and_the_names_of_labels_do_not_matter():
    labels = torch.tensor(LABELS["mixed"])
    audio, video = embeddings(6), embeddings(6)
    scales, order = torch.rand(6, 1) + 0.5, torch.randperm(6)
    avc, imc = audio_video_contrastive(audio, video, labels), intra_modal_contrastive(audio, labels)
    torch.testing.assert_close(audio_video_contrastive(audio * scales, video * 7, labels), avc)
    torch.testing.assert_close(intra_modal_contrastive(audio * scales, labels), imc)
    torch.testing.assert_close(audio_video_contrastive(audio[order], video[order], labels[order]), avc)
    torch.testing.assert_close(intra_modal_contrastive(audio[order], labels[order]), imc)
    renamed = torch.tensor([5, 9, 2])[labels]
    torch.testing.assert_close(audio_video_contrastive(audio, video, renamed), avc)
    torch.testing.assert_close(intra_modal_contrastive(audio, renamed), imc)
    # Partner: pairing each sound with another clip's picture does matter.
    assert not torch.isclose(audio_video_contrastive(audio, video.roll(1, 0), labels), avc)


def test_with_several_heads_a_positive_has_the_same_label_in_each():
    verbs, nouns = [0, 1, 0, 0, 1, 0], [2, 0, 2, 1, 0, 0]
    targets = torch.cat([one_hot(torch.tensor(verbs), 2), one_hot(torch.tensor(nouns), 3)], 1).float()
    audio, video = embeddings(6), embeddings(6)
    pairs = [3 * verb + noun for verb, noun in zip(verbs, nouns, strict=True)]
    found = audio_video_contrastive(audio, video, targets, 0.2, [2, 3])
    assert found.item() == pytest.approx(slow_avc(audio.tolist(), video.tolist(), pairs, 0.2), rel=1e-5)
    found = intra_modal_contrastive(audio, targets, 0.2, [2, 3])
    assert found.item() == pytest.approx(slow_imc(audio.tolist(), pairs, 0.2), rel=1e-5)
    mixed = torch.tensor([[0.5, 0.5, 1.0, 0.0, 0.0], [1.0, 0.0, 0.25, 0.75, 0.0]])
    torch.testing.assert_close(shared(mixed, [2, 3])[0, 1], torch.tensor(0.5 / 1.5 * 0.25 / 1.75))
    torch.testing.assert_close(shared(mixed, [1] * 5), shared(mixed))  # no heads, but several labels a clip


def test_supervised_positives_are_more_than_the_own_clip():
    """With labels whole classes are pulled together; where all differ only the own clip counts."""
    audio, video = embeddings(4), embeddings(4)
    alone = audio_video_contrastive(audio, video, torch.arange(4))
    logits = torch.nn.functional.normalize(audio) @ torch.nn.functional.normalize(video).T / 0.1
    clip_loss = torch.nn.functional.cross_entropy
    want = (clip_loss(logits, torch.arange(4)) + clip_loss(logits.T, torch.arange(4))) / 2
    torch.testing.assert_close(alone, want)
    assert not torch.isclose(audio_video_contrastive(audio, video, torch.tensor([0, 0, 1, 1])), alone)


def test_perfect_clusters_cost_what_the_formula_says_and_a_low_temperature_sharpens():
    labels = torch.tensor([0, 0, 1, 1])
    z = torch.eye(2)[labels]  # cosine 1 within a class, 0 across
    for temperature in (0.05, 0.1, 1.0):
        e = math.exp(1 / temperature)
        assert intra_modal_contrastive(z, labels, temperature).item() == pytest.approx(
            math.log((e + 2) / e), rel=1e-4, abs=1e-6
        )
        assert audio_video_contrastive(z, z, labels, temperature).item() == pytest.approx(
            math.log((2 * e + 2) / e), rel=1e-4, abs=1e-6
        )
    wrong = torch.eye(2)[1 - labels.roll(1)]
    assert intra_modal_contrastive(wrong, labels, 0.05) > intra_modal_contrastive(wrong, labels, 1.0)


@pytest.mark.parametrize("case", [*LABELS, "none"])
def test_gradients_are_finite_even_without_a_positive(case):
    labels = torch.tensor(LABELS.get(case, []), dtype=torch.long)
    audio, video = embeddings(len(labels)).requires_grad_(), embeddings(len(labels)).requires_grad_()
    loss = audio_video_contrastive(audio, video, labels) + intra_modal_contrastive(audio, labels)
    assert loss.isfinite()
    loss.backward()
    assert audio.grad.isfinite().all()
    assert video.grad.isfinite().all()
    if case == "mixed":
        assert audio.grad.abs().sum() > 0


def test_a_step_down_the_gradient_brings_a_class_together():
    labels = torch.tensor([0, 0, 1, 1])
    z = embeddings(4).requires_grad_()
    before = intra_modal_contrastive(z, labels, 0.5)
    (grad,) = torch.autograd.grad(before, z)
    moved = (z - 0.5 * grad).detach()
    assert intra_modal_contrastive(moved, labels, 0.5) < before
    same = torch.nn.functional.cosine_similarity
    assert same(moved[0], moved[1], dim=0) + same(moved[2], moved[3], dim=0) > same(z[0], z[1], dim=0) + same(
        z[2], z[3], dim=0
    )


def test_extreme_embeddings_and_half_precision_stay_finite():
    labels = torch.tensor([0, 0, 1])
    z = torch.tensor([[1e-12, 0.0], [0.0, 0.0], [1e12, 1.0]], requires_grad=True)
    loss = intra_modal_contrastive(z, labels, 0.01) + audio_video_contrastive(z, z, labels, 0.01)
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()
    half = embeddings(3)
    want = intra_modal_contrastive(half.bfloat16().float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = intra_modal_contrastive(half.bfloat16(), labels)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want)
