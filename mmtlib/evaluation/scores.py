"""Scores that follow from a table of predictions.

The logits of several heads lie side by side; `sizes` are their numbers of classes. A clip of several labels has a head
of one class for each: is it there, or not.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Integer, UInt8
from torch import Tensor

Logits = Float[Tensor | np.ndarray, "clips logits"]
Labels = Int[Tensor | np.ndarray, " clips"]


def hits(logits: Logits, labels: Labels, k: int, sizes: Sequence[int]) -> Bool[Tensor, "clips heads"]:
    """Whether the label is among the k largest logits of each head, which have so many classes.

    A label of several heads counts through all combinations, the last head fastest.
    """
    logits, labels, sizes, found = torch.as_tensor(logits), torch.as_tensor(labels), list(sizes), []
    for part, label in zip(logits.split(sizes, 1), torch.unravel_index(labels, sizes), strict=True):
        found.append((part.topk(min(k, part.shape[1]), dim=1).indices == label[:, None]).any(1))
    return torch.stack(found, dim=1)


def probabilities(logits: Float[Tensor, "clips logits"], sizes: Sequence[int]) -> Float[Tensor, "clips logits"]:
    """Of each class among those of its head; of a head of one class, that it is there."""
    if max(sizes) == 1:
        return logits.sigmoid()
    return torch.cat([part.softmax(1) for part in logits.split(list(sizes), 1)], dim=1)


def label_scores(logits: Logits, targets: Integer[Tensor | np.ndarray, "clips classes"]) -> dict[str, float]:
    """Of clips with several labels: mAP and AUC (percent) and d', means over the classes that some clips have, not all.

    map: average precision; auc: area under the ROC curve; dprime: the distance of two normal distributions with that
    area, as AST's authors take it from the mean (Gong et al., 2021). Raises ValueError where there is no such class.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score  # slow to import

    logits, targets = np.asarray(logits), np.asarray(targets) > 0
    known = targets.any(0) & ~targets.all(0)
    if not known.any():
        raise ValueError(f"no class is in some of {len(targets)} clips but not in all, so mAP is undefined; add clips")
    pairs = list(zip(targets.T[known], logits.T[known], strict=True))
    precision, area = (np.mean([score(*pair) for pair in pairs]) for score in (average_precision_score, roc_auc_score))
    dprime = 2**0.5 * torch.special.ndtri(torch.tensor(area)).item()
    return {"map": float(100 * precision), "auc": float(100 * area), "dprime": dprime}


def thresholds(predictions: pd.DataFrame) -> dict[str, list[float]]:
    """By modality, for each class the probability from which on naming it has the best F1 on these clips.

    Of clips with several labels (our reading); a class that no clip has gets 1.
    """
    found = {}
    for modality, table in predictions.groupby("modality", sort=False):
        targets, logits = targets_of(table), torch.from_numpy(np.stack(table["logits"].tolist()))
        chances, order = probabilities(logits, [1]).sort(dim=0, descending=True)
        hit = torch.from_numpy(targets).gather(0, order).cumsum(0)
        f1 = 2 * hit / (torch.arange(1, 1 + len(hit))[:, None] + hit[-1])
        f1[:-1].masked_fill_(chances[:-1] == chances[1:], -1)  # no cut can part these
        best = f1.argmax(0, keepdim=True)
        # Halfway to the next lower probability, so that a clip of the same bits or so is on the same side.
        cuts = (chances.gather(0, best) + chances.gather(0, (best + 1).clamp(max=len(hit) - 1))) / 2
        found[modality] = torch.where(hit[-1] > 0, cuts[0], 1.0).tolist()
    return found


def targets_of(predictions: pd.DataFrame) -> UInt8[np.ndarray, "clips classes"] | None:
    """0 or 1 for each class, of a table of clips with several labels; None of another one."""
    if predictions["label_index"].dtype != object:
        return None
    targets = np.zeros((len(predictions), len(predictions["logits"].iloc[0])), np.uint8)
    for row, numbers in zip(targets, predictions["label_index"], strict=True):
        row[numbers] = 1
    return targets


def head_sizes(predictions: pd.DataFrame) -> Mapping[str, int]:
    """Name and number of classes of each head of a table of predictions."""
    if "heads" in predictions:
        return json.loads(predictions["heads"].iloc[0])
    return {"label": len(predictions["logits"].iloc[0])}


def scores(predictions: pd.DataFrame) -> pd.DataFrame:
    """Top-1 and top-5 in percent of each split and modality of a table of predictions, with the number of clips.

    With several heads, a clip counts where all of them are right, and columns like `verb_top1` say how each does. Of
    clips with several labels it is what `label_scores` gives instead.
    """
    sizes, rows = head_sizes(predictions), []
    for (split, modality), group in predictions.groupby(["split", "modality"], sort=False):
        logits = np.stack(group["logits"].tolist())
        row = {"split": split, "modality": modality, "n": len(group)}
        if (targets := targets_of(group)) is not None:
            rows.append(row | label_scores(logits, targets))
            continue
        labels = group["label_index"].to_numpy(copy=True)  # pandas lends it read-only, of which torch warns
        right = {k: hits(logits, labels, k, list(sizes.values())) for k in (1, 5)}
        row |= {f"top{k}": 100.0 * found.all(1).float().mean().item() for k, found in right.items()}
        if len(sizes) > 1:
            for index, head in enumerate(sizes):
                row |= {f"{head}_top{k}": 100.0 * found[:, index].float().mean().item() for k, found in right.items()}
        rows.append(row)
    return pd.DataFrame(rows)
