"""Predictions of a trained model and the scores that follow from them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmtlib.data.dataset import Batch, FeatureDataset
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


def batches(dataset: FeatureDataset, modality: str, device: torch.device, batch_size: int = 64) -> Iterator[Batch]:
    """The usable clips in order, in batches."""
    for indices in usable(dataset, modality).split(batch_size):
        yield dataset.batch(indices, modality, device)


@torch.inference_mode()
def predict(model: nn.Module, name: str, dataset: FeatureDataset, *, batch_size: int = 64) -> pd.DataFrame:
    """Logits and features of every clip of a split that the model can read, one row a clip and modality.

    Columns: clip_id, split, label, label_index, modality, logits, embedding (both lists). A model of both
    modalities is read three times: with both ("av"), and with one withheld ("audio", "video": the other is
    missing). The embedding is what the last linear layer reads; for "av", audio and video ones side by side.
    """
    model.eval()
    device = next(model.parameters()).device
    kind = MODALITY[name]
    frames = []
    for modality in ("av", "audio", "video") if kind == "av" else (kind,):
        indices = usable(dataset, modality)
        if not len(indices):
            continue  # a set without sound, or without picture, has no such rows
        outputs = [_read(model, batch, kind) for batch in batches(dataset, modality, device, batch_size)]
        logits, embeddings = zip(*outputs, strict=True)
        rows = dataset.index.iloc[indices.numpy()][["clip_id", "split", "label"]].reset_index(drop=True)
        rows["label_index"] = dataset.labels[indices].numpy()
        rows["modality"] = modality
        rows["logits"] = list(torch.cat(logits).float().cpu().numpy())
        rows["embedding"] = list(torch.cat(embeddings).float().cpu().numpy())
        frames.append(rows)
    if not frames:
        raise ValueError(f"no clip of split {dataset.split!r} has what {name} reads ({kind})")
    return pd.concat(frames, ignore_index=True)


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


def topk_accuracy(
    logits: Float[Tensor | np.ndarray, "clips classes"], labels: Int[Tensor | np.ndarray, " clips"], k: int
) -> float:
    """Share of clips whose label is among the k largest logits, in percent."""
    logits, labels = torch.as_tensor(logits), torch.as_tensor(labels)
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return 100.0 * (best == labels[:, None]).any(1).float().mean().item()


def scores(predictions: pd.DataFrame) -> pd.DataFrame:
    """Top-1 and top-5 in percent of each split and modality of a table of predictions, with the number of clips."""
    rows = []
    for (split, modality), group in predictions.groupby(["split", "modality"], sort=False):
        logits = np.stack(group["logits"].tolist())
        labels = group["label_index"].to_numpy(copy=True)  # pandas lends it read-only, of which torch warns
        top1, top5 = (topk_accuracy(logits, labels, k) for k in (1, 5))
        rows.append({"split": split, "modality": modality, "n": len(group), "top1": top1, "top5": top5})
    return pd.DataFrame(rows)


def read_predictions(path: Path) -> pd.DataFrame:
    """A table of predictions that a training stage wrote; FileNotFoundError says which stage to run."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; run the stage that writes it with `dvc repro`")
    return pd.read_parquet(path)
