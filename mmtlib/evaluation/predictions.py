"""Predictions of a trained model: forward passes over a split, and the table that they are kept in."""

import json
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmtlib.data.corruption import corrupt
from mmtlib.data.dataset import FeatureDataset
from mmtlib.distributed import gather_objects, rank, ranks
from mmtlib.evaluation.scores import probabilities
from mmtlib.models import AVModel


def usable(dataset: FeatureDataset, modality: str) -> Int[Tensor, " clips"]:
    """Indices of the clips that have what a model of this modality needs; one of the two is enough for "av"."""
    audio, video = dataset.has_audio, dataset.has_video
    return {"audio": audio, "video": video, "av": audio | video}[modality].nonzero().flatten()


@torch.inference_mode()
def outputs(
    model: AVModel,
    dataset: FeatureDataset,
    indices: Int[Tensor, " clips"],
    modality: str,
    batch_size: int = 64,
    condition: str | None = None,
) -> tuple[Float[Tensor, "clips logits"], Float[Tensor, "clips embedding"]]:
    """Logits and embeddings of the clips at `indices`, in their order, fp32 on the CPU.

    `modality` is what the model is given of what it reads. Embeddings are those of AVOutput, audio and video side by
    side. `condition` is one of corruption.CONDITIONS. Ranks share the work, and each gets all of the result.
    """
    model.eval()
    device = next(model.parameters()).device
    parts = indices.split(batch_size)
    own, found = list(range(rank(), len(parts), ranks())), []
    for number, batch in zip(own, dataset.stream([parts[number] for number in own], modality, device), strict=True):
        if condition is not None:
            batch = corrupt(batch, condition, number, dataset.stats)
        out = model.read(batch.audio, batch.video, batch.has_audio, batch.has_video)
        found.append((number, out.logits.float().cpu(), out.embedding.float().cpu()))
    found = sorted((part for one in gather_objects(found) for part in one), key=lambda part: part[0])
    _, logits, embeddings = zip(*found, strict=True)
    return torch.cat(logits), torch.cat(embeddings)


def predict(model: AVModel, dataset: FeatureDataset, *, condition: str | None = None) -> pd.DataFrame:
    """Logits and features of every clip of a split that the model can read, one row a clip and modality.

    Columns: clip_id, split, label, label_index (of several labels a list), modality, logits, embedding (both lists);
    with several heads, whose logits lie side by side, also `heads` (JSON: name -> number of classes). A model of both
    modalities is read three times: with both ("av"), and with one withheld ("audio", "video": the other is missing). Of
    a clip with several views the probabilities are averaged, and taken back to logits. Embeddings are in half
    precision, and of the test split with all that the model reads; elsewhere there are none. With `condition`, one of
    corruption.CONDITIONS, clips are read corrupted, with both, and the split is called "test: " and its name.
    Raises ValueError where no clip has what the model reads.
    """
    kind, frames = model.reads, []
    for modality in ("av", "audio", "video") if kind == "av" and condition is None else (kind,):
        indices = usable(dataset, modality)
        if not len(indices):
            continue  # a set without audio, or without video, has no such rows
        logits, embeddings = outputs(model, dataset, indices, modality, condition=condition)
        rows = dataset.index.iloc[indices.numpy()][["clip_id", "split", "label"]].reset_index(drop=True)
        labels = dataset.labels[indices]
        rows["label_index"] = [row.nonzero()[:, 0].numpy() for row in labels] if dataset.multilabel else labels.numpy()
        rows["modality"] = modality
        if "view" in dataset.index:
            clip = torch.from_numpy(pd.factorize(rows["clip_id"])[0])[:, None]
            rows = rows.drop_duplicates("clip_id", ignore_index=True)
            means, embeddings = (
                torch.zeros(len(rows), x.shape[1]).scatter_reduce_(0, clip.expand_as(x), x, "mean", include_self=False)
                for x in (probabilities(logits, dataset.sizes), embeddings)
            )
            logits = means.logit(eps=1e-7) if dataset.multilabel else means.clamp(min=1e-12).log()
        rows["logits"] = list(logits.numpy())
        wanted = dataset.split == "test" and modality == kind and condition is None
        rows["embedding"] = list(embeddings.half().numpy()) if wanted else None
        if condition is not None:
            rows["split"] = f"{dataset.split}: {condition}"
        if len(dataset.heads) > 1:
            rows["heads"] = json.dumps(dict(zip(dataset.heads, dataset.sizes, strict=True)))
        frames.append(rows)
    if not frames:
        raise ValueError(f"no clip of split {dataset.split!r} has what {model.about['name']} reads ({kind})")
    return pd.concat(frames, ignore_index=True)


def read_predictions(path: Path) -> pd.DataFrame:
    """A table of predictions that a training stage wrote; FileNotFoundError says how to make it."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; make it: mmt train --params FILE, the study's")
    return pd.read_parquet(path)
