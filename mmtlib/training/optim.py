"""What a step minimises and how it moves: the objective, AdamW's groups of parameters, the learning rate."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmtlib.config import Objective
from mmtlib.data.dataset import Batch
from mmtlib.distributed import gather, ranks
from mmtlib.losses import audio_video_contrastive, intra_modal_contrastive
from mmtlib.models import AVOutput

Logits = Float[Tensor, "batch logits"]


def training_loss(
    out: AVOutput, batch: Batch, targets: Logits, objective: Objective, label_smoothing: float, sizes: Sequence[int]
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy + avc * AVC + imc * IMC of one batch, and the value of each part.

    `targets` are of all heads, side by side, and may be soft (mixup); how far two are alike weighs how much of a
    positive one clip is to the other (our reading). The contrastive losses take only clips that have the modality: of a
    model of one modality IMC alone, on what its head reads. They see the clips of all ranks. Averaged over the ranks,
    the gradient is that of one process with all clips.
    """
    loss = cross_entropy(out.logits.float(), targets, sizes, label_smoothing)
    parts = {"loss": 0.0, "ce": loss.item()}
    contrasts = {}
    if max(objective.avc, objective.imc) > 0:
        labels, scale = gather(targets), objective.temperature
        pairs = (out.audio_embedding, batch.has_audio), (out.video_embedding, batch.has_video)
        read = [(gather(z), gather(has)) for z, has in pairs if z is not None]
        if objective.avc > 0 and len(read) == 2:
            (audio, has_audio), (video, has_video) = read
            both = has_audio & has_video
            contrasts["avc"] = audio_video_contrastive(audio[both], video[both], labels[both], scale, sizes)
        if objective.imc > 0:
            contrasts["imc"] = sum(intra_modal_contrastive(z[has], labels[has], scale, sizes) for z, has in read)
    for name, contrast in contrasts.items():
        parts[name] = contrast.item()
        # Each rank has the gradient of its own clips alone, and an average over the ranks divides that.
        loss = loss + ranks() * getattr(objective, name) * contrast
    parts["loss"] = parts["ce"] + sum(getattr(objective, name) * parts[name] for name in contrasts)
    return loss, parts


def one_hot(labels: Int[Tensor, "batch ..."], sizes: Sequence[int]) -> Logits:
    """Targets of labels, side by side for the heads (see evaluation.scores); several labels a clip are targets."""
    if labels.ndim == 2:
        return labels.float()
    parts = zip(torch.unravel_index(labels, sizes), sizes, strict=True)
    return torch.cat([F.one_hot(label, size) for label, size in parts], dim=1).float()


def cross_entropy(logits: Logits, targets: Logits, sizes: list[int], label_smoothing: float = 0.0) -> Float[Tensor, ""]:
    """Cross-entropy, averaged over the heads (our reading) and the batch; of heads of one class the binary one."""
    if max(sizes) == 1:
        return F.binary_cross_entropy_with_logits(logits, targets + label_smoothing * (0.5 - targets))
    pairs = zip(logits.split(sizes, 1), targets.split(sizes, 1), strict=True)
    return sum(F.cross_entropy(*pair, label_smoothing=label_smoothing) for pair in pairs) / len(sizes)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """AdamW's groups: no weight decay on 1-D parameters (norms, biases), nor on tokens and position tables."""
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        table = any(word in name for word in ("token", "position", "rel_pos", "bottleneck", "modality"))
        (plain if parameter.ndim <= 1 or table else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def warmup_cosine(warmup_steps: int, steps: int) -> Callable[[int], float]:
    """Learning-rate factor of a step: linear warm-up, then half a cosine down to 0."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(steps - warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    return factor


def choose_precision(wanted: str, device: torch.device) -> str:
    """fp32 or bf16: as wanted, or for "auto" bf16 on a GPU that has it."""
    if wanted != "auto":
        return wanted
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def emulates_bf16(device: torch.device) -> bool:
    """Whether bf16 is slower than fp32 there: on a CPU for which oneDNN, which has the kernels, has none of bf16."""
    by_onednn = device.type == "cpu" and torch.backends.mkldnn.is_available()
    return by_onednn and not torch.ops.mkldnn._is_mkldnn_bf16_supported()  # of no public name
