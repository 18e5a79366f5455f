"""Scores that follow from a table of predictions."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Logits = Float[Tensor | np.ndarray, "clips logits"]
Labels = Int[Tensor | np.ndarray, " clips"]


def hits(logits: Logits, labels: Labels, k: int, sizes: Sequence[int] | None = None) -> Bool[Tensor, "clips heads"]:
    """Whether the label is among the k largest logits of each head.

    `sizes` are the numbers of classes of the heads (one head: not needed), whose logits lie side by side; a label of
    several heads counts through all combinations, the last head fastest.
    """
    logits, labels = torch.as_tensor(logits), torch.as_tensor(labels)
    sizes = [logits.shape[1]] if sizes is None else list(sizes)
    found = []
    for part, label in zip(logits.split(sizes, 1), torch.unravel_index(labels, sizes), strict=True):
        found.append((part.topk(min(k, part.shape[1]), dim=1).indices == label[:, None]).any(1))
    return torch.stack(found, dim=1)


def topk_accuracy(logits: Logits, labels: Labels, k: int, sizes: Sequence[int] | None = None) -> float:
    """Share of clips whose label is among the k largest logits, in percent; with several heads, in each of them."""
    return 100.0 * hits(logits, labels, k, sizes).all(1).float().mean().item()


def head_sizes(predictions: pd.DataFrame) -> Mapping[str, int]:
    """Name and number of classes of each head of a table of predictions."""
    if "heads" in predictions:
        return json.loads(predictions["heads"].iloc[0])
    return {"label": len(predictions["logits"].iloc[0])}


def guesses(predictions: pd.DataFrame) -> Int[np.ndarray, " clips"]:
    """The label with the largest logit: by torch's topk, as in the scores, so that ties break alike."""
    sizes = list(head_sizes(predictions).values())
    logits = torch.as_tensor(np.stack(predictions["logits"].tolist()))
    return np.ravel_multi_index([part.topk(1).indices[:, 0].numpy() for part in logits.split(sizes, 1)], sizes)


def scores(predictions: pd.DataFrame) -> pd.DataFrame:
    """Top-1 and top-5 in percent of each split and modality of a table of predictions, with the number of clips.

    With several heads, a clip counts where all of them are right, and columns like `verb_top1` say how each does.
    """
    sizes = head_sizes(predictions)
    rows = []
    for (split, modality), group in predictions.groupby(["split", "modality"], sort=False):
        logits = np.stack(group["logits"].tolist())
        labels = group["label_index"].to_numpy(copy=True)  # pandas lends it read-only, of which torch warns
        right = {k: hits(logits, labels, k, list(sizes.values())) for k in (1, 5)}
        row = {"split": split, "modality": modality, "n": len(group)}
        row |= {f"top{k}": 100.0 * found.all(1).float().mean().item() for k, found in right.items()}
        if len(sizes) > 1:
            for index, head in enumerate(sizes):
                row |= {f"{head}_top{k}": 100.0 * found[:, index].float().mean().item() for k, found in right.items()}
        rows.append(row)
    return pd.DataFrame(rows)
