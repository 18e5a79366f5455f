"""Batches from a feature folder, and an order of clips that a resumed run repeats exactly.

A batch comes from the arrays on disk, or, where the folder has none (features.cache: false), is decoded by worker
processes; the numbers are the same.
"""

import atexit
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing import current_process
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmtlib.cluster import ahead, connect, spread
from mmtlib.data.decode import DTYPES, Settings, clip_tasks, decode
from mmtlib.data.manifest import label_lists, media_root
from mmtlib.files import digest
from mmtlib.sections import check

Device = torch.device | str
MODALITIES = ("audio", "video", "av")
_STARTING = Lock()  # of the processes that decode, by one of the threads that read
_MAKE = "mmt features --params FILE, with the study's parameter file"
_AHEAD = 2  # batches that are read or decoded while the caller computes


class DatasetError(ValueError):
    """A feature folder that cannot be read; the text is one sentence with the remedy."""


class Batch(NamedTuple):
    """B clips, time first in both modalities; a modality that was not asked for is None.

    A clip that lacks a modality has zeros there, which is the train mean, and False in its flag.
    """

    audio: Float[Tensor, "B 1 time mel"] | None  # log-mel, normalised with the train split's mean and std
    video: Float[Tensor, "B 3 T H W"] | None  # RGB, normalised per channel in the same way
    labels: Int[Tensor, "B ..."]  # a number, or where a clip has several 0 or 1 for each class
    has_audio: Bool[Tensor, " B"]
    has_video: Bool[Tensor, " B"]


class FeatureDataset:
    """One split of a feature folder, an item a row of index.csv: a batch reads, or decodes, its own and no more.

    Attributes: index (the split's rows of index.csv), clip_ids, heads (name -> classes; an ordinary set has the one
    head "label"), num_logits (classes of all heads), sizes (see evaluation.scores), classes (what labels count: with
    several heads their combinations, the last head fastest), labels (int64; of several a clip, a row of 0 and 1 for
    each clip and a column a class), has_audio, has_video (bool), stats (features.json as read: settings, normalisation,
    coverage), fingerprint (of every bit) and identity (which data this is, as JSON: source, classes, settings and a
    hash of the clips' ids; the same on every machine). Of a set of folds, `fold` is the one whose clips are the test
    split; the others are train and val (see fold_splits), without it all are train. Raises DatasetError if the folder
    is missing, incomplete, or has no clip of the split or no such fold.
    """

    def __init__(self, root: str | os.PathLike, split: str, fold: int | None = None):
        self.root, self.split = Path(root), split
        try:
            self.stats = json.loads((self.root / "features.json").read_text(encoding="utf-8"))
            self.heads: dict[str, list[str]] = self.stats.get("heads") or {"label": self.stats["classes"]}
            self.num_logits = sum(len(names) for names in self.heads.values())
            self.multilabel = bool(self.stats.get("multilabel"))
            self.sizes = [1] * self.num_logits if self.multilabel else [len(names) for names in self.heads.values()]
            self.classes = [" ".join(names) for names in itertools.product(*self.heads.values())]
            self.fingerprint: str = self.stats["fingerprint"]
            # Text stays text: a clip may be called 007 and a class NA.
            text = dict.fromkeys(("clip_id", "path", "label", "split", "group", *self.heads), str)
            index = pd.read_csv(self.root / "index.csv", dtype=text, keep_default_na=False, na_values=[""])
            self._media: Path | None = None  # where there are no arrays
            self._settings = check(Settings, self.stats["settings"], "settings")
            if "manifest" in self.stats:
                self._media = media_root(self.root / self.stats["manifest"])
            else:
                self._arrays = {name: np.load(self.root / f"{name}.npy", mmap_mode="r") for name in DTYPES}
                for name, array in self._arrays.items():
                    if list(array.shape) != self.stats[name]["shape"] or len(array) != len(index):
                        raise ValueError(f"{name}.npy has the shape {array.shape}, not the one in features.json")
        except FileNotFoundError as error:
            raise DatasetError(f"{error.filename} is missing; make the features first: {_MAKE}.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{self.root} is damaged ({str(error).strip('.')}); make it anew: {_MAKE}.") from error
        # Arrays differ in last bits between processors, whose encoders round differently; this does not.
        self.identity = self._identify(index)
        if fold is not None:
            folds = self.stats.get("folds", {})
            if str(fold) not in folds:
                known = ", ".join(folds) or "none"
                raise DatasetError(f"{self.root} has no fold {fold}, but {known}; correct `folds` in the parameters.")
            index["split"] = fold_splits(index, fold, next(iter(self.heads)))
            self.stats = self.stats | {name: self.stats[name] | own for name, own in folds[str(fold)].items()}
        self._rows = np.flatnonzero(index["split"] == split)
        if not len(self._rows):
            known = ", ".join(sorted(set(index["split"])))
            hint = "; name a fold, it is a set of folds" if "folds" in self.stats and fold is None else ""
            raise DatasetError(f"{self.root} has no clip of split {split!r}; use one of {known}{hint}.")
        self.index = index.iloc[self._rows].reset_index(drop=True)
        self.clip_ids: list[str] = self.index["clip_id"].tolist()
        if self.multilabel:
            found = label_lists(self.index["label"], self.stats).explode()
            self.labels = torch.zeros(len(self), self.num_logits, dtype=torch.int8)
            self.labels[found.index.tolist(), pd.Index(self.classes).get_indexer(found).tolist()] = 1
        else:
            numbers = [pd.Index(names).get_indexer(self.index[head]) for head, names in self.heads.items()]
            self.labels = torch.from_numpy(np.ravel_multi_index(numbers, self.sizes))
        self.has_audio = torch.tensor(self.index["has_audio"].to_numpy(dtype=bool))
        self.has_video = torch.tensor(self.index["has_video"].to_numpy(dtype=bool))
        whole = pd.Series(self.stats["log_mel"]["shape"][1], self.index.index)
        self._filled = torch.tensor(self.index.get("audio_frames", whole).to_numpy(dtype=np.int64))

    def _identify(self, index: pd.DataFrame) -> dict[str, Any]:
        columns = ["clip_id", "split", "start", "end", "has_audio", "has_video", *self.heads]
        columns += [name for name in ("fold", "group") if "folds" in self.stats]
        rows = index.reindex(columns=columns).to_json(orient="values", double_precision=15)
        about = {name: self.stats.get(name) for name in ("name", "class_list", "source", "settings")}
        about |= {"multilabel": True} if self.multilabel else {}
        # A list of pairs: the order of the heads is that of their logits.
        return about | {"heads": [list(head) for head in self.heads.items()], "clips": digest(rows.encode())}

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: Sequence[int] | Tensor, modality: str = "av", device: Device = "cpu") -> Batch:
        """The clips at these positions of the split, in this order; only what `modality` needs is read.

        `modality` is "audio", "video" or "av". The stored 8- and 16-bit values go to `device` and become
        float32 there. Raises DatasetError for another modality, and for a clip that no longer decodes.
        """
        picked = torch.as_tensor(indices, dtype=torch.int64).cpu()
        return self._normalised(picked, *self._stored(picked, modality), device)

    def stream(self, orders: Iterable[Tensor], modality: str = "av", device: Device = "cpu") -> Iterator[Batch]:
        """`batch` of each tensor of positions in turn; the next two are read or decoded meanwhile."""
        with ThreadPoolExecutor(_AHEAD) as readers:
            asked = ((picked, readers.submit(self._stored, picked, modality)) for picked in orders)
            try:
                for picked, stored in ahead(asked, lambda: _AHEAD):
                    yield self._normalised(picked, *stored.result(), device)
            finally:
                readers.shutdown(cancel_futures=True)  # the caller may stop early

    def _stored(self, picked: Tensor, modality: str) -> tuple[Tensor | None, Tensor | None]:
        """Log-mel and frames of some positions as the arrays hold them, or would hold them."""
        if modality not in MODALITIES:
            raise DatasetError(f"modality is {modality!r}; use one of {', '.join(MODALITIES)}.")
        stored = functools.partial(self._read, picked) if self._media is None else self._decode(picked, modality)
        log_mel = None if modality == "video" else stored("log_mel")
        frames = None if modality == "audio" else stored("frames")
        return log_mel, frames

    def _normalised(self, picked: Tensor, log_mel: Tensor | None, frames: Tensor | None, device: Device) -> Batch:
        has_audio, has_video = self.has_audio[picked].to(device), self.has_video[picked].to(device)
        audio, video = normalised(log_mel, frames, self._filled[picked], self.stats, device)
        if audio is not None:
            audio[~has_audio] = 0.0
        if video is not None:
            video[~has_video] = 0.0
        return Batch(audio, video, self.labels[picked].to(device), has_audio, has_video)

    def _read(self, picked: Tensor, name: str) -> Tensor:
        """Rows of a memory-mapped array in the order asked for, read in the order they lie on disk."""
        rows, places = np.unique(self._rows[picked.numpy()], return_inverse=True)
        return torch.from_numpy(self._arrays[name][rows][places])

    def _decode(self, picked: Tensor, modality: str) -> Callable[[str], Tensor]:
        """What gives for the name of an array what `_read` would give, each clip decoded once."""
        rows = self.index.iloc[picked.numpy()]
        tasks = dict(zip(rows["clip_id"], clip_tasks(rows, self._media), strict=True))
        call, wanted = functools.partial(decode, self._settings, modality=modality), list(tasks.values())
        with _STARTING:
            client = _decoders()
        found = spread(client, call, wanted, chunk=1) if client else map(call, wanted)
        made = dict(zip(tasks, found, strict=True))

        def stored(name: str) -> Tensor:
            arrays, flag = [], {"log_mel": "has_audio", "frames": "has_video"}[name]
            for row in rows.itertuples():
                clip = made[row.clip_id]
                array = getattr(clip.views[getattr(row, "view", 0)], name) if clip.views else None
                if array is None and (getattr(row, flag) or not clip.views):
                    raise DatasetError(
                        f"{tasks[row.clip_id].path} was fine when the features were made and is not any more "
                        f"({clip.reason or name + ' is gone'}); make the features anew: {_MAKE}."
                    )
                arrays.append(np.zeros(self.stats[name]["shape"][1:], DTYPES[name]) if array is None else array)
            return torch.from_numpy(np.stack(arrays))

        return stored


def normalised(
    log_mel: Tensor | None, frames: Tensor | None, ends: Tensor, stats: dict, device: Device
) -> tuple[Float[Tensor, "B 1 time mel"] | None, Float[Tensor, "B 3 T H W"] | None]:
    """Values as they are stored -> audio and video as models take them; from `ends`, of short audio, the train mean.

    With the setting `motion` each clip's mean frame is taken from its frames, in the place of the train mean (ours).
    """
    audio = video = None
    if log_mel is not None:
        audio = log_mel.to(device)[:, None].float().sub_(stats["log_mel"]["mean"]).div_(stats["log_mel"]["std"])
        # After the ends there is no signal.
        audio *= torch.arange(audio.shape[2], device=device)[:, None] < ends.to(device)[:, None, None, None]
    if frames is not None:
        stored = frames.to(device).permute(0, 4, 1, 2, 3)
        video = torch.empty(stored.shape, dtype=torch.float32, device=device).copy_(stored)
        mean, std = (255 * torch.tensor(stats["frames"][name], device=device) for name in ("mean", "std"))
        mean = video.mean(2, keepdim=True) if stats["settings"].get("motion") else mean.view(3, 1, 1, 1)
        video.sub_(mean).div_(std.view(3, 1, 1, 1))
    return audio, video


@functools.cache
def _decoders():
    """A client of processes for all splits, which start with the first batch; None where this one may have none."""
    if current_process().daemon:  # a Dask worker as `dask worker` starts it
        return None
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(connect(0))


VAL_SHARE = 0.15
"""Of the clips of each class in the training folds, held out for validation (our reading)."""


def fold_splits(index: pd.DataFrame, fold: int, head: str) -> np.ndarray:
    """train, val or test of each row of a set of folds, by its columns `fold`, `group` and `head`, the class.

    The clips of the fold are the test split; others of their groups are in none ("left out"). Of the other groups, in
    the order of a hash of their names, as many of each class as hold VAL_SHARE of its clips are val, but never all.
    """
    splits = np.where(index["fold"] == fold, "test", "train").astype(object)
    tested = index["group"].isin(index["group"][splits == "test"]).to_numpy()
    splits[(splits == "train") & tested] = "left out"
    groups = index[splits == "train"].groupby("group").agg(label=(head, "first"), clips=(head, "size"))
    groups = groups.sort_index(key=lambda names: [digest(f"val {fold} {name}".encode()) for name in names])
    by_class = groups.groupby("label")["clips"]
    total, upto = by_class.transform("sum"), by_class.cumsum()
    held = groups.index[(upto - groups["clips"] < VAL_SHARE * total) & (upto < total)]
    splits[(splits == "train") & index["group"].isin(held).to_numpy()] = "val"
    return splits


def epoch_generator(seed: int, epoch: int, stream: str = "") -> torch.Generator:
    """A CPU generator for each (seed, epoch, stream): a resumed epoch draws what an unbroken one would."""
    drawn = hashlib.blake2b(f"{seed}/{epoch}/{stream}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(drawn, "big") >> 1)


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int, weights: Tensor | None = None) -> Sequence[Tensor]:
    """Positions 0..n-1 in an order set by (seed, epoch), `batch_size` at a time; the rest is left out.

    With `weights` n of them are drawn with replacement, each as often as its weight says.
    """
    generator = epoch_generator(seed, epoch, "order")
    order = torch.randperm(n, generator=generator)
    if weights is not None:
        order = torch.multinomial(weights, n, replacement=True, generator=generator)
    return order[: n // batch_size * batch_size].split(batch_size)


def share_of(dataset: FeatureDataset, indices: Int[Tensor, " clips"], share: float) -> Int[Tensor, " fewer"]:
    """A share of the clips of each class (of the first head, or label), at least one; part of any larger share."""
    if share == 1:
        return indices
    labels = label_lists(dataset.index[next(iter(dataset.heads))], dataset.stats).str[0]
    table = pd.DataFrame({"index": indices.numpy(), "label": labels.to_numpy()[indices.numpy()]})
    table["order"] = [digest(dataset.clip_ids[index].encode()) for index in table["index"]]
    place = table.sort_values("order").groupby("label").cumcount()
    count = table.groupby("label")["index"].transform("size")
    return indices[torch.tensor((place.reindex(table.index) < (share * count).round().clip(lower=1)).tolist())]


def views_of(dataset: FeatureDataset, rows: Int[Tensor, " rows"]) -> list[list[int]]:
    """For each clip those of its views, of which training draws one for each pass."""
    table = pd.DataFrame({"clip": np.asarray(dataset.clip_ids)[rows.numpy()], "row": rows.numpy()})
    return table.groupby("clip", sort=False)["row"].apply(list).tolist()


def one_view(views: list[list[int]], generator: torch.Generator) -> Int[Tensor, " clips"]:
    """A view of each clip, drawn at random."""
    counts = torch.tensor([len(rows) for rows in views])
    places = (torch.rand(len(views), generator=generator) * counts).long()
    return torch.tensor([rows[place] for rows, place in zip(views, places.tolist(), strict=True)])
