"""Predictions of a trained model and the scores that follow from them."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmtlib.data.corruption import corrupt
from mmtlib.data.dataset import Batch, FeatureDataset
from mmtlib.distributed import gather_objects, rank, ranks
from mmtlib.models import MODALITY, AVOutput


def forward(model: nn.Module, batch: Batch, modality: str) -> Tensor | AVOutput:
    """Run a model on what it takes of a batch: "audio", "video" or "av"."""
    if modality == "av":
        return model(batch.audio, batch.video, batch.has_audio, batch.has_video)
    return model(batch.audio if modality == "audio" else batch.video)


def usable(dataset: FeatureDataset, modality: str) -> Tensor:
    """Indices of the clips that have what a model of this modality needs; one of the two is enough for "av"."""
    audio, video = dataset.has_audio, dataset.has_video
    return {"audio": audio, "video": video, "av": audio | video}[modality].nonzero().flatten()


@torch.inference_mode()
def outputs(
    model: nn.Module,
    dataset: FeatureDataset,
    indices: Tensor,
    modality: str,
    kind: str,
    batch_size: int = 64,
    condition: str | None = None,
) -> tuple[Float[Tensor, "clips logits"], Float[Tensor, "clips embedding"]]:
    """Logits and embeddings of the clips at `indices`, in their order, fp32 on the CPU.

    `kind` is what the model reads, `modality` what it is given of it. The embedding is what the last linear layer
    reads; of a model of both modalities those of audio and video side by side. `condition` is one of
    corruption.CONDITIONS. Ranks share the work, and each gets all of the result.
    """
    model.eval()
    device = next(model.parameters()).device
    parts = indices.split(batch_size)
    own = list(range(rank(), len(parts), ranks()))
    found = []
    for number, batch in zip(own, dataset.stream([parts[number] for number in own], modality, device), strict=True):
        if condition is not None:
            batch = corrupt(batch, condition, number, dataset.stats)
        logits, embeddings = _read(model, batch, kind)
        found.append((number, logits.float().cpu(), embeddings.float().cpu()))
    found = sorted((part for one in gather_objects(found) for part in one), key=lambda part: part[0])
    _, logits, embeddings = zip(*found, strict=True)
    return torch.cat(logits), torch.cat(embeddings)


def predict(
    model: nn.Module, name: str, dataset: FeatureDataset, *, batch_size: int = 64, condition: str | None = None
) -> pd.DataFrame:
    """Logits and features of every clip of a split that the model can read, one row a clip and modality.

    Columns: clip_id, split, label, label_index, modality, logits, embedding (both lists); with several heads, whose
    logits lie side by side, also `heads` (JSON: name -> number of classes). A model of both modalities is read three
    times: with both ("av"), and with one withheld ("audio", "video": the other is missing). Of a clip with several
    views the probabilities are averaged, and their logarithms are its logits. Embeddings are in half precision, and
    of the test split with all that the model reads; elsewhere there are none. With `condition`, one of
    corruption.CONDITIONS, clips are read corrupted, with both, and the split is called "test: sound late 1.0 s".
    """
    kind = MODALITY[name]
    sizes = {head: len(classes) for head, classes in dataset.heads.items()}
    frames = []
    for modality in ("av", "audio", "video") if kind == "av" and condition is None else (kind,):
        indices = usable(dataset, modality)
        if not len(indices):
            continue  # a set without sound, or without picture, has no such rows
        logits, embeddings = outputs(model, dataset, indices, modality, kind, batch_size, condition)
        rows = dataset.index.iloc[indices.numpy()][["clip_id", "split", "label"]].reset_index(drop=True)
        rows["label_index"] = dataset.labels[indices].numpy()
        rows["modality"] = modality
        if "view" in dataset.index:
            clip, first = (torch.from_numpy(found) for found in _views(rows["clip_id"]))
            probabilities = torch.cat([part.softmax(1) for part in logits.split(list(sizes.values()), 1)], dim=1)
            logits = _mean_by(clip, probabilities).clamp(min=1e-12).log()
            embeddings, rows = _mean_by(clip, embeddings), rows.iloc[first.numpy()].reset_index(drop=True)
        rows["logits"] = list(logits.numpy())
        wanted = dataset.split == "test" and modality == kind and condition is None
        rows["embedding"] = list(embeddings.half().numpy()) if wanted else None
        if condition is not None:
            rows["split"] = f"{dataset.split}: {condition}"
        if len(sizes) > 1:
            rows["heads"] = json.dumps(sizes)
        frames.append(rows)
    if not frames:
        raise ValueError(f"no clip of split {dataset.split!r} has what {name} reads ({kind})")
    return pd.concat(frames, ignore_index=True)


def _views(clip_ids: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """The number of the clip that each row is a view of, and the first row of each clip."""
    numbers, _ = pd.factorize(clip_ids)
    return numbers, np.unique(numbers, return_index=True)[1]


def _mean_by(group: Int[Tensor, " rows"], values: Float[Tensor, "rows columns"]) -> Float[Tensor, "groups columns"]:
    total = values.new_zeros(int(group.max()) + 1, values.shape[1]).index_add_(0, group, values)
    return total / group.bincount()[:, None]


def _read(model: nn.Module, batch: Batch, kind: str) -> tuple[Tensor, Tensor]:
    """Logits and embeddings of a batch."""
    if kind == "av":
        out = forward(model, batch, kind)
        embeddings = [z for z in (out.audio_embedding, out.video_embedding) if z is not None]
        return out.logits, torch.cat(embeddings, dim=-1)
    inputs: list[Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    logits = forward(model, batch, kind)
    hook.remove()
    return logits, inputs[0]


def hits(
    logits: Float[Tensor | np.ndarray, "clips logits"],
    labels: Int[Tensor | np.ndarray, " clips"],
    k: int,
    sizes: Sequence[int] | None = None,
) -> Bool[Tensor, "clips heads"]:
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


def topk_accuracy(
    logits: Float[Tensor | np.ndarray, "clips logits"],
    labels: Int[Tensor | np.ndarray, " clips"],
    k: int,
    sizes: Sequence[int] | None = None,
) -> float:
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
        right = {f"top{k}": hits(logits, labels, k, list(sizes.values())) for k in (1, 5)}
        row = {"split": split, "modality": modality, "n": len(group)}
        row |= {name: 100.0 * found.all(1).float().mean().item() for name, found in right.items()}
        if len(sizes) > 1:
            for index, head in enumerate(sizes):
                row |= {f"{head}_{k}": 100.0 * found[:, index].float().mean().item() for k, found in right.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def predictions_bytes(predictions: pd.DataFrame) -> bytes:
    """A table of predictions as a parquet file."""
    table = pa.Table.from_pandas(predictions, preserve_index=False)
    buffer = io.BytesIO()
    text = [name for name in predictions if name not in ("logits", "embedding")]
    floats = [f"{name}.list.element" for name in ("logits", "embedding") if name in predictions]
    pq.write_table(table, buffer, compression="zstd", use_dictionary=text, use_byte_stream_split=floats)
    return buffer.getvalue()


def read_predictions(path: Path) -> pd.DataFrame:
    """A table of predictions that a training stage wrote; FileNotFoundError says which stage to run."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; run the stage that writes it with `dvc repro`")
    return pd.read_parquet(path)
