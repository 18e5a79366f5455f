"""The tidy table of clips, scored once, from which every table of scores follows."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, UInt8
from scipy.special import log_softmax

from mmtlib.config import Params
from mmtlib.evaluation import stats
from mmtlib.evaluation.scores import head_sizes, hits, label_scores, targets_of
from mmtlib.folders import Folders
from study.tables.results import GROUPS, STAGES, ReportError, Result, load_results, read_features, stage_of


@dataclass(frozen=True)
class Study:
    """A study's runs as they left them, and what the tables have in common."""

    params: Params
    features: dict[str, Any]
    results: list[Result]

    @property
    def reported(self) -> list[Result]:
        """The runs of the claims and ablations; those of other groups have tables of their own."""
        return [result for result in self.results if result.group in (None, *GROUPS)]

    @property
    def defaults(self) -> dict[str, Result]:
        """The default model of each modality."""
        return {result.modality: result for result in self.results if result.group is None}

    @property
    def headliners(self) -> list[Result]:
        """Ours and the baselines, by what they read."""
        found = [r for r in self.results if r.group in (None, "baseline")]
        return sorted(found, key=lambda result: list(STAGES).index(result.modality))

    @property
    def dataset(self) -> str:
        """The data set's name, and that of its list of classes where it has several."""
        name, classes = self.features["name"], self.features["class_list"]
        return name if classes == name else f"{name} ({classes})"

    @cached_property
    def clips(self) -> pd.DataFrame:
        return clips_table(self.results)

    @cached_property
    def scores(self) -> pd.DataFrame:
        return scores_table(self.clips)

    @cached_property
    def _tests(self) -> dict[tuple[str, str], pd.DataFrame]:
        clean = self.clips[(self.clips["split"] == "test") & (self.clips["condition"] == "")]
        return dict(list(clean.groupby(["run", "modality"])))

    def on_test(self, result: Result, modality: str | None = None) -> pd.DataFrame:
        """The rows of a run's test clips, not corrupted, as read in one modality (all that the model reads).

        Raises ReportError where a seed has none.
        """
        modality = modality or result.modality
        found = self._tests.get((result.name, modality))
        if found is None or found["seed"].nunique() < len(result.predictions):
            problem = f"the predictions of {result.name} hold no test clip for modality {modality}"
            raise ReportError(f"{problem}; run stage {stage_of(result.name, result.group)} again.")
        return found

    def by_seed(self, result: Result, modality: str | None = None) -> list[pd.DataFrame]:
        """The same, a table for each seed."""
        return [part for _, part in self.on_test(result, modality).groupby("seed", sort=False)]

    def rights(self, result: Result, modality: str | None = None) -> pd.DataFrame:
        """100 where a test clip is recognised and 0 where not: a row for each clip, a column for each seed.

        Of several labels a clip its part in mAP (map_parts). Of a set of folds rows are named by fold, group and clip.
        """
        index = "clip" if self.params.folds is None else ["fold", "clip"]
        clips = self.on_test(result, modality).astype({"right": float})
        return 100 * self.in_groups(clips.pivot(index=index, columns="seed", values="right").dropna())

    def in_groups(self, values: pd.DataFrame) -> pd.DataFrame:
        """Rows named by fold and clip as rows by fold, group and clip, which intervals resample; others as they are."""
        if values.index.nlevels > 1:
            named, (folds, clips) = self.features.get("groups", {}), map(values.index.get_level_values, (0, 1))
            groups = [named.get(clip, clip) for clip in clips]
            return values.set_axis(pd.MultiIndex.from_arrays([folds, groups, clips], names=["fold", "group", "clip"]))
        return values

    def mean(self, values: pd.DataFrame) -> stats.Interval:
        """Mean of a value for each clip and seed, with its bootstrap interval."""
        return stats.bootstrap(values, self.params.report.bootstrap, self.params.report.confidence)

    def difference(self, ours: pd.DataFrame, theirs: pd.DataFrame) -> stats.Interval:
        """Mean of ours less theirs by clip and seed, with its bootstrap interval. Raises ReportError."""
        try:
            return stats.paired_difference(ours, theirs, self.params.report.bootstrap, self.params.report.confidence)
        except ValueError as error:
            raise ReportError(f"{error}; run the training stages again on one data set.") from error


def load_study(folders: Folders, params: Params) -> Study:
    """What the stages left of a study. Raises ReportError, naming the stage to run."""
    return Study(params, read_features(folders), load_results(folders, params))


def clips_table(results: Iterable[Result]) -> pd.DataFrame:
    """A row for each run, seed, fold, split, condition, modality and clip.

    `condition` is how the clip was corrupted ("": not at all), `modality` what was read of it. `label` and `guess` are
    classes of the first head, by number. `first`: whether that guess is right; `right`: those of all heads; `top5`: so
    with the five best guesses. With several heads, columns like `verb_top1` say the same of each. `confidence` is the
    top probability of the first head, `nll` (nats) the negative logarithm of that of the truth, `brier` the squared
    distance between the probabilities and the truth, summed over the classes: 0 to 2. Of several labels a clip there is
    `right` alone, by map_parts. The other columns are those of the predictions.
    """
    parts = [_scored(table).assign(run=r.name, seed=seed) for r in results for seed, table in r.predictions.items()]
    return pd.concat(parts, ignore_index=True)


def _scored(predictions: pd.DataFrame) -> pd.DataFrame:
    split = predictions["split"].str.partition(": ")
    table = predictions.rename(columns={"clip_id": "clip"}).assign(split=split[0], condition=split[2])
    logits = np.stack(predictions["logits"].tolist())
    if (targets := targets_of(predictions)) is not None:
        places = [*table.groupby(["split", "condition", "modality"]).indices.values()]
        parts = np.concatenate([map_parts(logits[rows], targets[rows]) for rows in places]) / 100
        return table.assign(right=pd.Series(parts, np.concatenate(places)))
    heads = head_sizes(predictions)
    sizes, labels = list(heads.values()), predictions["label_index"].to_numpy(copy=True)
    top1, top5 = (hits(logits, labels, k, sizes).numpy() for k in (1, 5))
    label = np.unravel_index(labels, sizes)[0]
    guess = torch.as_tensor(logits[:, : sizes[0]]).topk(1).indices[:, 0].numpy()  # as in `hits`: ties break alike
    logs = log_softmax(logits[:, : sizes[0]].astype(np.float64), axis=1)
    chances, own = np.exp(logs), logs[np.arange(len(logs)), label]
    columns = {
        "label": label,
        "guess": guess,
        "first": label == guess,
        "right": top1.all(axis=1),
        "top5": top5.all(axis=1),
        "confidence": chances.max(axis=1),
        "nll": -own,
        "brier": (chances**2).sum(axis=1) - 2 * np.exp(own) + 1,
    }
    if len(heads) > 1:
        for number, head in enumerate(heads):
            columns |= {f"{head}_top1": top1[:, number], f"{head}_top5": top5[:, number]}
    return table.assign(**columns)


def map_parts(
    logits: Float[np.ndarray, "clips classes"], targets: UInt8[np.ndarray, "clips classes"]
) -> Float[np.ndarray, " clips"]:
    """Values of the clips whose mean is their mAP (percent), and whose bootstrap is near that of mAP.

    They are the jackknife's (Efron, 1982): what mAP would gain or lose without the clip, times the number of clips. A
    class that only that clip has, or all have, is left out of its value.
    """
    count, order = len(logits), np.argsort(-logits, axis=0, kind="stable")
    hit = np.take_along_axis(targets, order, 0).astype(np.float64)  # (clips, classes), the most probable clip first
    found, total, rank = hit.cumsum(0), hit.sum(0), np.arange(1, count + 1)[:, None]
    precision, one_less = hit * found / rank, np.maximum(rank - 1, 1)  # of those after it the rank is one less
    after, each = (part.sum(0) - part.cumsum(0) for part in (hit * found / one_less, hit / one_less))
    rest = precision.cumsum(0) - precision + after - hit * each
    whole, fewer = precision.sum(0) / np.maximum(total, 1), total - hit
    known = (fewer > 0) & (total > 0) & (total < count)
    moved = np.where(known, (count - 1) * (whole - rest / np.maximum(fewer, 1)), 0.0)
    values = np.empty_like(moved)
    np.put_along_axis(values, order, moved, 0)
    parts = 100 * values[:, (total > 0) & (total < count)].mean(1)
    return parts - parts.mean() + label_scores(logits, targets)["map"]


def scores_table(clips: pd.DataFrame, folds: bool = False) -> pd.DataFrame:
    """Percent recognised of a table of clips, of all heads and of each, of all folds together or of each."""
    columns = ["run", "seed", *(["fold"] if folds else []), "split", "condition", "modality"]
    groups = clips.groupby(columns, sort=False, dropna=False)
    shares = groups[["right", *clips.filter(regex="top[15]$")]].mean().rename(columns={"right": "top1"})
    table = 100 * shares.astype(np.float32).astype(np.float64)  # as in mmtlib's scores, to the last digit
    table.insert(0, "n", groups.size())
    return table.reset_index()
