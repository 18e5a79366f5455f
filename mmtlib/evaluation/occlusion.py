"""What drives a decision: occlusion (Zeiler and Fergus, ECCV 2014) of sound, frames and picture.

A part of the clip is painted over, and what the log-probability of a class loses by it is the part's weight. The paint
is 0, the mean of the training clips: SpecAugment masks with it, so a model of sound has learnt to read it as nothing
known, and convolutions pad with it. A clip's own mean would depend on what it is to hide (with `motion`, 0 is that).
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmtlib.evaluation.scores import probabilities


class Attribution(NamedTuple):
    """By how many nats the log-probability of a class falls without a part of the clip; below 0: it rises.

    What the model was not given is None.
    """

    log_probability: float  # of the whole clip
    sound: Float[Tensor, "times bands"] | None  # without a block of the log-mel
    frames: Float[Tensor, " frames"] | None  # without a frame
    picture: Float[Tensor, "rows columns"] | None  # without a field of the picture, in all frames


@torch.inference_mode()
def occlusion(
    model: nn.Module,
    kind: str,
    audio: Float[Tensor, "1 1 time mel"] | None,
    video: Float[Tensor, "1 3 frames height width"] | None,
    target: int,
    *,
    blocks: tuple[int, int] = (10, 8),
    fields: tuple[int, int] = (8, 8),
    heads: Sequence[int] | None = None,
    batch_size: int = 16,
) -> Attribution:
    """Weigh the parts of one clip, normalised as the model takes it, for the class `target`.

    `kind` is what the model reads: "audio", "video" or "av". The log-mel is cut into `blocks` (along time, along mel),
    the picture into `fields` (along height, along width), as equal as whole numbers allow. Of several heads, whose
    logits lie side by side, `heads` are the numbers of classes; the probability is then one among the classes of the
    target's head. `batch_size` parts are asked at a time. Raises ValueError for a clip without what the model
    reads, more than one clip, an unknown class, and more parts than there are values.
    """
    model.eval()
    device = next(model.parameters()).device
    clip = {"audio": audio, "video": video}
    reads = tuple(clip) if kind == "av" else (kind,)
    given = {name: clip[name].to(device) for name in reads if clip[name] is not None}
    if not given:
        raise ValueError(f"the clip has nothing of what the model reads ({' or '.join(reads)}); give another.")
    count = max(map(len, given.values()))
    if count != 1:
        raise ValueError(f"{count} clips were given at once; give one after the other.")

    def ask(count: int = 1, **changed: Tensor) -> Float[Tensor, "clips logits"]:
        """Log-probabilities of `count` clips; of what is not `changed` each time the same."""
        inputs = {name: changed.get(name, whole).expand(count, *whole.shape[1:]) for name, whole in given.items()}
        out = model(*map(inputs.get, reads))
        logits = (out.logits if kind == "av" else out).double()
        return probabilities(logits, heads or [logits.shape[1]]).log()

    classes = ask()[0]
    if not 0 <= target < len(classes):
        raise ValueError(f"class {target} is unknown to a model of {len(classes)}; count from 0.")

    def falls(name: str, *counts: int) -> Float[Tensor, "..."]:
        axes = [_spans(length, count) for length, count in zip(given[name].shape[2:], counts, strict=True)]
        every, answers = itertools.product(*axes), []
        while places := list(itertools.islice(every, batch_size)):
            clips = given[name].repeat(len(places), 1, *[1] * len(counts))
            for clip, place in zip(clips, places, strict=True):
                clip[:, *place] = 0.0
            answers.append(ask(len(places), **{name: clips})[:, target])
        return (classes[target] - torch.cat(answers)).reshape(counts).cpu()

    sound = falls("audio", *blocks) if "audio" in given else None
    frames = picture = None
    if "video" in given:
        frames = falls("video", given["video"].shape[2], 1, 1).flatten()
        picture = falls("video", 1, *fields)[0]
    return Attribution(classes[target].item(), sound, frames, picture)


def _spans(length: int, count: int) -> list[slice]:
    """An axis in equal parts, or parts of which some are longer by one."""
    if not 1 <= count <= length:
        raise ValueError(f"{length} values cannot be cut into {count} parts; ask for 1 to {length}.")
    edges = [round(part * length / count) for part in range(count + 1)]
    return [slice(*edge) for edge in itertools.pairwise(edges)]
