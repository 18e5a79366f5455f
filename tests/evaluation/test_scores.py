"""Scores against counts; those of several heads are tested with the predictions that have them."""

import numpy as np
import pandas as pd
import pytest
import torch

from mmtlib.evaluation.scores import hits, scores


@pytest.mark.parametrize("k", [1, 2, 5, 9])
@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_topk_equals_a_count_over_sorted_logits(k, kind):
    rng = np.random.default_rng(k)
    logits, labels = rng.normal(size=(50, 7)).astype(np.float32), rng.integers(0, 7, 50)
    ranks = [(row > row[label]).sum() for row, label in zip(logits, labels, strict=True)]
    want = 100 * np.mean([rank < k for rank in ranks])
    if kind == "torch":
        logits, labels = torch.from_numpy(logits), torch.from_numpy(labels)
    assert 100 * hits(logits, labels, k, [logits.shape[1]]).all(1).float().mean() == pytest.approx(want)


def test_scores_are_per_split_and_modality():
    rows = []
    for split, modality, right in [("val", "av", 3), ("val", "audio", 1), ("test", "av", 0)]:
        for clip in range(4):
            logits = np.arange(6, dtype=np.float32)  # class 5 first, then 4, ..., class 0 last
            label = 5 if clip < right else (0 if clip == 3 else 1)
            rows.append({"split": split, "modality": modality, "label_index": label, "logits": logits})
    table = scores(pd.DataFrame(rows))
    assert table.to_dict("records") == [
        {"split": "val", "modality": "av", "n": 4, "top1": 75.0, "top5": 75.0},
        {"split": "val", "modality": "audio", "n": 4, "top1": 25.0, "top5": 75.0},
        {"split": "test", "modality": "av", "n": 4, "top1": 0.0, "top5": 75.0},
    ]


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_from_pandas_give_no_warning():
    """A line on stderr would fail the notebook that shows the scores."""
    table = pd.DataFrame({"split": "val", "modality": "av", "label_index": np.arange(3), "logits": list(np.eye(3))})
    torch.set_warn_always(True)  # else torch warns once in a process
    try:
        assert scores(table)["top1"].tolist() == [100.0]
    finally:
        torch.set_warn_always(False)
