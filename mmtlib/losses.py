"""The two supervised contrastive losses of MMT: AVC across the modalities and IMC within each.

Both are SupCon (Khosla et al., NeurIPS 2020): for an anchor, the mean over its positives of minus the
log-softmax of cosine similarity over temperature. Positives are clips of the anchor's label, with several heads of the
same one in each; of several labels a clip, or of clips that are mixed, those that share one, weighted by the Jaccard
index. The paper names the losses but gives no formula; who is a positive and what is averaged is our reading.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

Embeddings = Float[Tensor, "batch dim"]
Labels = Int[Tensor, "batch"] | Shaped[Tensor, "batch classes"]  # or the share of each class in a clip, 0 to 1


def audio_video_contrastive(
    audio_z: Embeddings, video_z: Embeddings, labels: Labels, temperature: float = 0.1, sizes: Sequence[int] = ()
) -> Float[Tensor, ""]:
    """AVC: anchors in one modality, candidates in the other, positives of the same label (the own clip is one).

    Both directions are averaged. Embeddings need not be unit norm: the cosine is taken here.
    """
    positive = shared(labels, sizes)
    logits = cosine(audio_z, video_z) / temperature
    return (supervised_contrast(logits, positive) + supervised_contrast(logits.T, positive)) / 2


def intra_modal_contrastive(
    z: Embeddings, labels: Labels, temperature: float = 0.1, sizes: Sequence[int] = ()
) -> Float[Tensor, ""]:
    """IMC of one modality: anchors and candidates in the same modality, the anchor itself left out.

    An anchor without another clip of its label does not count; a batch without any positive gives 0.
    """
    own = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = shared(labels, sizes).masked_fill(own, 0)
    return supervised_contrast((cosine(z, z) / temperature).masked_fill(own, -torch.inf), positive)


def shared(labels: Labels, sizes: Sequence[int] = ()) -> Float[Tensor, "batch batch"]:
    """How far two clips have the same labels, 0 to 1: the Jaccard index; of shares, minima over maxima, both summed.

    `sizes`: classes of each head (none: one head), of which it is the product; heads of one class are several labels.
    """
    if labels.ndim == 1:
        return (labels[:, None] == labels[None, :]).float()
    if max(sizes, default=1) > 1:
        return math.prod(shared(part) for part in labels.split(list(sizes), 1))
    labels = labels.float()
    total = labels.sum(1)[:, None] + labels.sum(1)[None, :]
    apart = torch.cdist(labels, labels, p=1)
    return (total - apart) / (total + apart).clamp(min=1e-6)


def cosine(a: Float[Tensor, "n dim"], b: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
    """Cosine similarity of every pair, in fp32 also under autocast."""
    with torch.autocast(a.device.type, enabled=False):
        return F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T


def supervised_contrast(
    logits: Float[Tensor, "anchors candidates"], positive: Float[Tensor, "anchors candidates"]
) -> Float[Tensor, ""]:
    """Mean over the anchors that have a positive of the weighted mean over those of -log softmax.

    `positive` are weights, 0 for none; logits of -inf are no candidates.
    """
    log_softmax = logits.log_softmax(dim=1).masked_fill(positive == 0, 0.0)
    weight = positive.sum(1)
    per_anchor = -(log_softmax * positive).sum(1) / weight.clamp(min=1e-6)
    return per_anchor.sum() / (weight > 0).sum().clamp(min=1)
