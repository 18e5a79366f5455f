"""Batches from a feature folder, and an order of clips that a resumed run repeats exactly."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MODALITIES = ("audio", "video", "av")


class DatasetError(ValueError):
    """A feature folder that cannot be read; the text is one sentence with the remedy."""


class Batch(NamedTuple):
    """B clips, time first in both modalities; a modality that was not asked for is None.

    A clip that lacks a modality has zeros there, which is the train mean, and False in its flag.
    """

    audio: Float[Tensor, "B 1 time mel"] | None  # log-mel, normalised with the train split's mean and std
    video: Float[Tensor, "B 3 T H W"] | None  # RGB, normalised per channel in the same way
    labels: Int[Tensor, " B"]
    has_audio: Bool[Tensor, " B"]
    has_video: Bool[Tensor, " B"]


class FeatureDataset:
    """One split of a feature folder, memory-mapped: a batch reads its own rows and no more.

    Attributes: index (the split's rows of index.csv), clip_ids, classes, labels (int64), has_audio, has_video
    (bool), stats (features.json as read: settings, normalisation, coverage) and fingerprint.
    Raises DatasetError if the folder is missing, incomplete or has no clip of the split.
    """

    def __init__(self, root: str | os.PathLike, split: str):
        self.root, self.split = Path(root), split
        try:
            self.stats = json.loads((self.root / "features.json").read_text(encoding="utf-8"))
            # Text stays text: a clip may be called 007 and a class NA.
            text = dict.fromkeys(("clip_id", "path", "label", "split"), str)
            index = pd.read_csv(self.root / "index.csv", dtype=text, keep_default_na=False, na_values=[""])
            self._log_mel = np.load(self.root / "log_mel.npy", mmap_mode="r")
            self._frames = np.load(self.root / "frames.npy", mmap_mode="r")
            for name, array in (("log_mel", self._log_mel), ("frames", self._frames)):
                if list(array.shape) != self.stats[name]["shape"] or len(array) != len(index):
                    raise ValueError(f"{name}.npy has the shape {array.shape}, not the one in features.json")
            self.classes: list[str] = self.stats["classes"]
            self.fingerprint: str = self.stats["fingerprint"]
        except FileNotFoundError as error:
            raise DatasetError(f"{error.filename} is missing; make the features first: dvc repro features.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"{self.root} is damaged ({error}); run the stage again: dvc repro --force features."
            ) from error
        self._rows = np.flatnonzero(index["split"] == split)
        if not len(self._rows):
            known = ", ".join(sorted(set(index["split"])))
            raise DatasetError(f"{self.root} has no clip of split {split!r}; use one of {known}.")
        self.index = index.iloc[self._rows].reset_index(drop=True)
        self.clip_ids: list[str] = self.index["clip_id"].tolist()
        number = {name: position for position, name in enumerate(self.classes)}
        self.labels = torch.tensor([number[label] for label in self.index["label"]])
        self.has_audio = torch.tensor(self.index["has_audio"].to_numpy(dtype=bool))
        self.has_video = torch.tensor(self.index["has_video"].to_numpy(dtype=bool))

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: Sequence[int] | Tensor, modality: str = "av", device: torch.device | str = "cpu") -> Batch:
        """The clips at these positions of the split, in this order; only what `modality` needs is read.

        `modality` is "audio", "video" or "av". The stored 8- and 16-bit values go to `device` and become
        float32 there. Raises DatasetError for another modality.
        """
        if modality not in MODALITIES:
            raise DatasetError(f"modality is {modality!r}; use one of {', '.join(MODALITIES)}.")
        picked = torch.as_tensor(indices, dtype=torch.int64).cpu()
        has_audio, has_video = self.has_audio[picked].to(device), self.has_video[picked].to(device)
        audio = video = None
        if modality != "video":
            audio = self._read(self._log_mel, picked).to(device)[:, None].float()
            audio.sub_(self.stats["log_mel"]["mean"]).div_(self.stats["log_mel"]["std"])
            audio[~has_audio] = 0.0
        if modality != "audio":
            stored = self._read(self._frames, picked).to(device).permute(0, 4, 1, 2, 3)
            video = torch.empty(stored.shape, dtype=torch.float32, device=device).copy_(stored)
            mean, std = (
                255 * torch.tensor(self.stats["frames"][name], device=device).view(3, 1, 1, 1)
                for name in ("mean", "std")
            )
            video.sub_(mean).div_(std)
            video[~has_video] = 0.0
        return Batch(audio, video, self.labels[picked].to(device), has_audio, has_video)

    def _read(self, array: np.ndarray, picked: Tensor) -> Tensor:
        """Rows of a memory-mapped array in the order asked for, read in the order they lie on disk."""
        rows = self._rows[picked.numpy()]
        order = np.argsort(rows)
        out = np.empty((len(rows), *array.shape[1:]), dtype=array.dtype)
        out[order] = array[rows[order]]
        return torch.from_numpy(out)


def epoch_generator(seed: int, epoch: int, stream: str = "") -> torch.Generator:
    """A CPU generator for each (seed, epoch, stream): a resumed epoch draws what an unbroken one would."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{stream}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int, drop_last: bool = True) -> Iterator[Tensor]:
    """Positions 0..n-1 in an order set by (seed, epoch), `batch_size` at a time.

    `drop_last` leaves out the last batch if it is not full, but never the only one.
    Raises DatasetError for a batch size below 1.
    """
    if batch_size < 1:
        raise DatasetError(f"batch_size is {batch_size}; give 1 or more.")
    order = torch.randperm(n, generator=epoch_generator(seed, epoch, "order"))
    batches = order.split(batch_size)
    yield from batches[:-1] if drop_last and n > batch_size and n % batch_size else batches
