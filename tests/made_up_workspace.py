"""A made-up study with known scores: all that the report reads, without a model trained."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from mmtlib import config as params_module
from mmtlib.config import Params
from mmtlib.data.corruption import CONDITIONS
from mmtlib.folders import Folders
from mmtlib.models import MODALITY
from mmtlib.training.experiment import plain

CLASSES = ["bell", "dog", "drum", "wave"]
SPLITS = {"train": 8, "val": 3, "test": 10}  # clips of each class

ROWS = {
    # So wide they cost as much as ours.
    "ast_t": {"group": "baseline", "model": "ast_t", "epochs": 2, "lr": 1e-3, "overrides": {"dim": 84}},
    "mbt_t": {"group": "baseline", "model": "mbt_t", "epochs": 2, "lr": 1e-3, "overrides": {"dim": 90}},
    "mmt_ce": {"group": "objective", "model": "mmt_t", "epochs": 1, "lr": 5e-4, "init": "pretrained"},
    "mmt_late": {
        "group": "fusion",
        "model": "mmt_t",
        "epochs": 1,
        "lr": 5e-4,
        "init": "pretrained",
        "objective": {"avc": 0.1, "imc": 0.1, "temperature": 0.1},
        "overrides": {"fusion": "late"},
    },
}
RIGHT = {
    "pretrain_mat": {"audio": 24},
    "pretrain_mvit": {"video": 20},
    "train_mmt": {"av": 36, "audio": 23, "video": 19},
    "ast_t": {"audio": 14},
    "mbt_t": {"av": 35, "audio": 20, "video": 20},
    "mmt_ce": {"av": 34, "audio": 22, "video": 18},
    "mmt_late": {"av": 40, "audio": 24, "video": 20},
}
"""How many of the 40 test clips each run recognises with seed 0; one fewer with each further seed."""

_MMT = {"model": "mmt_t", "epochs": 1, "lr": 5e-4, "init": "pretrained"}
ALL_ROWS = ROWS | {
    "ast_wide": ROWS["ast_t"] | {"group": "parameters", "overrides": {"dim": 96}},
    "mmt_ce_avc": _MMT | {"group": "objective", "objective": {"avc": 0.1}},
    "mmt_ce_imc": _MMT | {"group": "objective", "objective": {"imc": 0.1}},
    "mmt_concat": ROWS["mmt_late"] | {"overrides": {"fusion": "concat"}},
    "mat_time": {
        "group": "pooling",
        "model": "mat_t",
        "epochs": 2,
        "lr": 1e-3,
        "overrides": {"pooling": ["time", "time", "time"]},
    },
    "mmt_half": _MMT | {"group": "data", "train_share": 0.5, "seeds": [0]},
}
"""One for each claim, but for those on pooling nowhere and on MBT at equal parameters; and one of another group."""
ALL_RIGHT = RIGHT | {
    "ast_wide": {"audio": 30},
    "mmt_ce_avc": {"av": 35, "audio": 22, "video": 18},
    "mmt_ce_imc": {"av": 30, "audio": 22, "video": 18},
    "mmt_concat": {"av": 36, "audio": 22, "video": 18},
    "mat_time": {"audio": 20},
    "mmt_half": {"av": 8, "audio": 6, "video": 5},
}


def made_up_params(seeds: list[int], rows: dict | None = None) -> Params:
    """The smoke profile with these seeds and ablation rows."""
    values = params_module.load("params/smoke.yaml").model_dump()
    values["seeds"], values["ablations"] = seeds, ROWS if rows is None else rows
    return Params.model_validate(values)


def made_up_workspace(root: Path, params: Params, right: dict | None = None, splits: dict | None = None) -> Folders:
    """Write features.json, curves and predictions below `root` and return their folders."""
    right, splits, folders = right or RIGHT, splits or SPLITS, Folders(root, params.study)
    counts = dict.fromkeys(("listed", "used", "missing", "broken", "silent", "blind", "too_short"), 0)
    features = {
        "name": "made-up",
        "class_list": "made-up",
        "classes": CLASSES,
        "log_mel": {"shape": [1, 198, 128]},
        "frames": {"shape": [1, 16, 64, 64, 3]},
        "coverage": {split: counts | {"listed": 4 * n, "used": 4 * n} for split, n in splits.items()},
        "fingerprint": "f" * 64,
        "notes": ["2 clips of val and test are in train, too"],
        "ceilings": {split: {"audio": 80.0, "video": 75.0} for split in splits},
    }
    _write_json(folders.features / "features.json", features)
    for place, (name, run) in enumerate(params.runs.items()):
        for trial in params.trials(name):
            _write_run(folders, name, run, trial, right[name], splits, place)
    return folders


def _write_run(folders, name, run, trial, right, splits, place) -> None:
    weights, seed = folders.weights(name, *trial), trial.seed  # no such file: the report reads those beside it
    parts = {"run": plain(run), "conditions": {} if run.robustness else None}
    parts["run"].pop("robustness")
    _write_json(weights.with_suffix(".json"), {"key": "0" * 16, "parts": parts})
    epochs = np.arange(1, 5)
    curve = {"epoch": epochs, "lr": 1e-3, "loss": 2 / epochs, "ce": 2 / epochs}
    curve |= {"val_loss": [1.4, 1.2, 1.1, 1.3], "val_top1": [30.0, 50.0, 60.0 + place, 55.0]}
    pd.DataFrame(curve).to_csv(weights.with_suffix(".csv"), index=False)
    tables = []
    for modality in ("av", "audio", "video") if MODALITY[run.model] == "av" else (MODALITY[run.model],):
        for split in ("val", "test"):
            count = min(right[modality] - seed, 4 * splits[split])
            tables.append(_predictions(split, 4 * splits[split], count, modality, 100 * place + seed))
    for index, condition in enumerate(CONDITIONS if run.robustness else ()):
        split = f"test: {condition}"
        count = max(right["av"] - 2 * index - seed, 0)
        tables.append(_predictions(split, 4 * splits["test"], count, "av", 100 * place + seed))
    path, found = folders.predictions(name, *trial), pd.concat(tables, ignore_index=True)
    if trial.fold is not None:  # each fold has clips of its own
        found["clip_id"] = f"fold{trial.fold}-" + found["clip_id"]
    path.parent.mkdir(parents=True, exist_ok=True)
    found.to_parquet(path, index=False)


def _predictions(split: str, n: int, right: int, modality: str, seed: int) -> pd.DataFrame:
    """The first `right` clips are recognised, the others taken for the next class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % len(CLASSES)
    guesses = np.where(np.arange(n) < right, labels, (labels + 1) % len(CLASSES))
    logits = rng.normal(0, 0.1, (n, len(CLASSES)))
    logits[np.arange(n), guesses] += 4
    centres = np.random.default_rng(1).normal(0, 2, (len(CLASSES), 8))
    return pd.DataFrame(
        {
            "clip_id": [f"{split}-{index:03d}" for index in range(n)],
            "split": split,
            "label": [CLASSES[label] for label in labels],
            "label_index": labels,
            "modality": modality,
            "logits": list(logits.astype(np.float32)),
            "embedding": list((centres[labels] + rng.normal(0, 1, (n, 8))).astype(np.float32)),
        }
    )


def _write_json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
