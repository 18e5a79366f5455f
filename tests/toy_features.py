"""A made-up feature folder that tiny models learn in seconds: a band of sound and a colour tell the class."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd

from mmtlib.config import STAGES, Params, Recipe, Run, load

CLASSES = ["bell", "dog", "drum", "wave"]
AUDIO, VIDEO = (40, 32), (4, 16, 16)  # (time, mel), (T, H, W)
CLIPS = {"train": 8, "val": 3, "test": 2}  # of each class

# What would give that log-mel: 40 frames of 32 bands.
SETTINGS = dict(sample_rate=8000, mel_bins=32, window_ms=25.0, hop_ms=10.0, frames=4, size=16, seconds=0.415)

MAT = {"depths": [1, 1], "dim": 8, "pooling": ["time", "both"], "stem": 0, "patch_stride": 8, "drop_path": 0.2}
MVIT = {"depths": [1, 1], "dim": 8, "stem": [], "drop_path": 0.2}
MMT = {"dim": 16, "num_heads": 2, "fusion_layers": 1, "embedding_dim": 8, "audio": MAT, "video": MVIT}
OVERRIDES = {"mat_t": MAT, "mvitv2_t": MVIT, "mmt_t": MMT}


def write_features(
    folder: Path, *, silent: tuple[int, ...] = (), blind: tuple[int, ...] = (), seed: int = 0, noise: float = 1.0
) -> Path:
    """Write what the features stage writes; `silent` and `blind` are the rows without sound or picture."""
    rng = np.random.default_rng(seed)
    splits = [split for split, count in CLIPS.items() for _ in range(count * len(CLASSES))]
    labels = np.arange(len(splits)) % len(CLASSES)
    audio = rng.normal(-8.0, noise, (len(labels), *AUDIO))
    video = rng.normal(100.0, 20.0 * noise, (len(labels), *VIDEO, 3))
    for row, label in enumerate(labels):
        audio[row, :, 8 * label : 8 * label + 8] += 4.0
        video[row, ..., label % 3] += 60.0 if label < 3 else -60.0
    has_audio, has_video = np.ones(len(labels), bool), np.ones(len(labels), bool)
    has_audio[list(silent)], has_video[list(blind)] = False, False
    index = pd.DataFrame(
        {
            "clip_id": [f"c{row:02d}" for row in range(len(labels))],
            "path": [f"c{row:02d}.mp4" for row in range(len(labels))],
            "label": [CLASSES[label] for label in labels],
            "split": splits,
            "has_audio": has_audio,
            "has_video": has_video,
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "log_mel.npy", audio.astype(np.float16))
    np.save(folder / "frames.npy", video.clip(0, 255).astype(np.uint8))
    index.to_csv(folder / "index.csv", index=False)
    described = {
        "name": "toy",
        "class_list": "toy",
        "classes": CLASSES,
        "settings": SETTINGS,
        "log_mel": {"shape": list(audio.shape), "mean": -7.0, "std": 2.0},
        "frames": {"shape": list(video.shape), "mean": [0.4, 0.4, 0.4], "std": [0.15, 0.15, 0.15]},
    }
    data = b"".join((folder / name).read_bytes() for name in ("log_mel.npy", "frames.npy", "index.csv"))
    described["fingerprint"] = hashlib.sha256(data).hexdigest()
    (folder / "features.json").write_text(json.dumps(described))
    return folder


def make_recipe(**changes) -> Recipe:
    """Batches of 8, no warm-up, no augmentation, fp32."""
    plain = {
        "batch_size": 8,
        "warmup_epochs": 0,
        "label_smoothing": 0.0,
        "spec_augment": {"time_masks": 0, "time_width": 0, "freq_masks": 0, "freq_width": 0},
        "crop_scale": 1.0,
        "flip": False,
        "flip_except": [],
        "mixup": 0.0,
        "gain": 0.0,
        "noise": 0.0,
        "precision": "fp32",
    }
    return Recipe.model_validate(load("params/smoke.yaml").training.model_dump() | plain | changes)


def make_run(model: str = "mat_t", **changes) -> Run:
    """Three epochs of a tiny variant of `model`."""
    return Run.model_validate(
        {"model": model, "epochs": 3, "lr": 3.0e-3, "overrides": OVERRIDES.get(model, {})} | changes
    )


def make_params(recipe: Recipe | None = None, *, study: str = "toy", seeds: tuple[int, ...] = (0,), **runs) -> Params:
    """A study of tiny models, one epoch each: the three stages, of `runs` those and rows of the table beside."""
    stages = {
        "pretrain_mat": make_run("mat_t", epochs=1),
        "pretrain_mvit": make_run("mvitv2_t", epochs=1),
        "train_mmt": make_run("mmt_t", epochs=1, init="pretrained", objective={"avc": 0.1, "imc": 0.1}),
    }
    rows = {"ast_t": {"group": "baseline", "model": "ast_t", "epochs": 1, "lr": 1.0e-3}}
    for name, run in runs.items():
        if name in STAGES:
            stages[name] = run
        else:
            rows[name] = run.model_dump() | {"group": "baseline"}
    recipe = recipe or make_recipe()
    whole = {"study": study, "seeds": list(seeds), "training": recipe.model_dump(), "ablations": rows}
    whole |= {name: run.model_dump() for name, run in stages.items()}
    return Params.model_validate(load("params/smoke.yaml").model_dump() | whole)
