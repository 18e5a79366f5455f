"""The two supervised contrastive losses of MMT: AVC across the modalities and IMC within each.

Both are SupCon (Khosla et al., NeurIPS 2020): for an anchor, the mean over its positives of minus the
log-softmax of cosine similarity over temperature. Positives are clips of the anchor's label. The paper names the
losses but gives no formula; who is a positive and what is averaged is our reading.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Embeddings = Float[Tensor, "batch dim"]
Labels = Int[Tensor, " batch"]


def audio_video_contrastive(
    audio_z: Embeddings, video_z: Embeddings, labels: Labels, temperature: float = 0.1
) -> Float[Tensor, ""]:
    """AVC: anchors in one modality, candidates in the other, positives of the same label (the own clip is one).

    Both directions are averaged. Embeddings need not be unit norm: the cosine is taken here.
    """
    positive = labels[:, None] == labels[None, :]
    logits = cosine(audio_z, video_z) / temperature
    return (supervised_contrast(logits, positive) + supervised_contrast(logits.T, positive)) / 2


def intra_modal_contrastive(z: Embeddings, labels: Labels, temperature: float = 0.1) -> Float[Tensor, ""]:
    """IMC of one modality: anchors and candidates in the same modality, the anchor itself left out.

    An anchor without another clip of its label does not count; a batch without any positive gives 0.
    """
    own = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = (labels[:, None] == labels[None, :]) & ~own
    return supervised_contrast((cosine(z, z) / temperature).masked_fill(own, -torch.inf), positive)


def cosine(a: Float[Tensor, "n dim"], b: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
    """Cosine similarity of every pair, in fp32 also under autocast."""
    with torch.autocast(a.device.type, enabled=False):
        return F.normalize(a.float(), dim=-1) @ F.normalize(b.float(), dim=-1).T


def supervised_contrast(
    logits: Float[Tensor, "anchors candidates"], positive: Bool[Tensor, "anchors candidates"]
) -> Float[Tensor, ""]:
    """Mean over the anchors that have a positive of the mean over those of -log softmax; -inf: not a candidate."""
    log_softmax = logits.log_softmax(dim=1)
    count = positive.sum(1)
    per_anchor = -log_softmax.masked_fill(~positive, 0.0).sum(1) / count.clamp(min=1)
    return per_anchor.sum() / (count > 0).sum().clamp(min=1)
