"""Beyond accuracy: is a model sure with reason, does audio find its video, do the features tell classes apart.

All of it is of the test split. With several heads (EPIC-KITCHENS-100), classes are those of the first: a top
probability and a calibration belong to one head.
"""

from math import ceil
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import hypergeom
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_samples
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

from mmtlib.evaluation.stats import verdict
from study.tables.clips import Study

BINS = 15  # of equal width of the top probability, for the expected calibration error (Guo et al., ICML 2017)
NEAREST = (1, 5, 10)  # of so many nearest clips one must be right, in retrieval
Vectors = Float[np.ndarray, "clips dim"]
RECALLS, CHANCES = ([f"{name}_{k}" for k in NEAREST] for name in ("recall", "chance"))


def _over_seeds(table: pd.DataFrame) -> dict[str, Any]:
    """Mean of each measure over the seeds, a row each, then their standard deviations (empty with one seed)."""
    return {"n_seeds": len(table), **table.mean(), **table.std().add_suffix("_std")}


def reliability(clips: pd.DataFrame) -> pd.DataFrame:
    """Mean confidence, share of `first` and n of the clips in each of the bins that is not empty."""
    number = np.minimum((clips["confidence"] * BINS).astype(int), BINS - 1)
    bins = clips.groupby(number)
    return bins[["confidence", "first"]].mean().assign(n=bins.size())


def calibration_error(clips: pd.DataFrame) -> float:
    """The expected calibration error, percent: |share right - confidence|, averaged over the clips by their bin."""
    bins = reliability(clips)
    return 100 * float(np.average((bins["first"] - bins["confidence"]).abs(), weights=bins["n"]))


def selective(clips: pd.DataFrame) -> pd.Series:
    """Accuracy over the clips that the model is surest of, by their share, both percent; mean over the seeds."""
    ranked = [part.sort_values("confidence", ascending=False, kind="stable") for _, part in clips.groupby("seed")]
    shares = range(10, 101, 10)
    kept = {share: [part["first"].iloc[: ceil(share * len(part) / 100)].mean() for part in ranked] for share in shares}
    return 100 * pd.DataFrame(kept).mean()


def calibration_table(study: Study) -> pd.DataFrame:
    """Ours and the baselines on what they read: top1, confidence, ece (percent), nll (nats), brier (0 to 2)."""
    rows = []
    for result in study.headliners:
        clips = study.on_test(result)
        seeds = clips.groupby("seed")
        measures = (100 * seeds[["first", "confidence"]].mean()).rename(columns={"first": "top1"})
        measures["ece"] = [calibration_error(part) for _, part in seeds]
        measures = measures.join(seeds[["nll", "brier"]].mean())
        rows.append(result.about | {"n": clips["clip"].nunique()} | _over_seeds(measures))
    return pd.DataFrame(rows)


def recalls(queries: Vectors, candidates: Vectors, names: Int[np.ndarray, " clips"]) -> list[float]:
    """Percent of queries with a candidate of their name among the 1, 5, 10 nearest by cosine (unit norm in).

    One of another name that is just as near counts as nearer.
    """
    before = []
    for block in np.array_split(np.arange(len(names)), ceil(len(names) / 1000)):  # to bound the memory
        similar, wanted = queries[block] @ candidates.T, names[block, None] == names
        best = np.where(wanted, similar, -np.inf).max(axis=1, keepdims=True)
        before += list((~wanted & (similar >= best)).sum(axis=1))
    return [100 * float((np.array(before) < k).mean()) for k in NEAREST]


def chance(names: Int[np.ndarray, " clips"]) -> list[float]:
    """What `recalls` gives on average for candidates in random order, percent."""
    _, place, counts = np.unique(names, return_inverse=True, return_counts=True)
    drawn = [hypergeom(len(names), counts[place], min(k, len(names))) for k in NEAREST]
    return [100 * float(wanted.sf(0).mean()) for wanted in drawn]  # that one at least is wanted


def retrieval_table(study: Study) -> pd.DataFrame:
    """Sound looked up by picture and the other way round, on the test clips that have both, for all models of both.

    `query` is what is given, `wanted` what counts: the own clip, or any of its class (the own one is one). Columns
    recall_1, recall_5, recall_10 (percent, means over the seeds), the same with _std, and chance_1, ... beside them.
    """
    found = []
    for result in (r for r in study.reported if r.modality == "av"):
        for table, audio, video in zip(*(study.by_seed(result, m) for m in ("av", "audio", "video")), strict=True):
            table = table[table["clip"].isin(audio["clip"]) & table["clip"].isin(video["clip"])]
            vectors = np.stack(table["embedding"].tolist()).astype(np.float64)
            heard, seen = map(normalize, np.split(vectors, 2, axis=1))
            labels, folds = table["label"].to_numpy(), table.groupby("fold", dropna=False).indices.values()
            for query, pair in (("audio", (heard, seen)), ("video", (seen, heard))):
                for wanted, names in (("own clip", np.arange(len(table))), ("class", labels)):
                    parts = [recalls(*(side[own] for side in pair), names[own]) + chance(names[own]) for own in folds]
                    run = (result.name, result.label, result.objective)
                    found.append((*run, query, wanted, len(table), *np.mean(parts, axis=0)))
    about = ["row", "model", "objective", "query", "wanted"]
    seeds = pd.DataFrame(found, columns=[*about, "n", *RECALLS, *CHANCES]).groupby(about, sort=False)
    rows = [dict(zip(about, key, strict=True)) | _over_seeds(part.drop(columns=about)) for key, part in seeds]
    columns = [*about, "n_seeds", "n", *RECALLS, *CHANCES, *(f"{name}_std" for name in RECALLS)]
    return pd.DataFrame(rows, columns=columns).astype({"n": int})


def separation(table: pd.DataFrame) -> tuple[dict[str, float], pd.Series]:
    """nmi and ari of k-means with as many clusters as classes, silhouette of the classes; then that of each clip.

    Of unit-norm embeddings. The silhouette is by cosine distance, -1 to 1; 0 where no class has two clips. Of a set
    of folds each is taken by itself, since embeddings of two models do not compare: means over them, and clips named by
    fold and id.
    """
    measures, clips = [], {}
    for fold, part in table.groupby("fold", dropna=False):
        labels = part["label"].to_numpy()
        vectors, classes = normalize(np.stack(part["embedding"].tolist()).astype(np.float64)), len(np.unique(labels))
        with threadpool_limits(1):  # the order of a parallel sum would show in the clusters
            found = KMeans(classes, n_init=10, random_state=0).fit_predict(vectors)
            defined = 1 < classes < len(labels)
            own = silhouette_samples(vectors, labels, metric="cosine") if defined else np.zeros(len(labels))
        measures.append((normalized_mutual_info_score(labels, found), adjusted_rand_score(labels, found), own.mean()))
        clips[fold] = pd.Series(own, index=part["clip"].to_numpy())
    named = pd.concat(clips) if table["fold"].notna().all() else clips.popitem()[1]
    return pd.DataFrame(measures, columns=["nmi", "ari", "silhouette"]).mean().to_dict(), named


def clustering_table(study: Study) -> pd.DataFrame:
    """nmi, ari, silhouette of ours and the baselines (means over the seeds; columns with _std beside them).

    A baseline with the losses of our `default` is compared with it: `difference` of the silhouettes (row - default)
    and its bootstrap interval, `verdict` on the claim that the default separates better. With other losses it is not:
    the embeddings of both come from projection heads, which the contrastive losses alone train.
    """
    rows, silhouettes, compared = [], {}, ("default", "difference", "low", "high", "verdict")
    for result in study.headliners:
        measures, clips = zip(*map(separation, study.by_seed(result)), strict=True)
        silhouettes[result.name] = study.in_groups(pd.concat(dict(zip(result.predictions, clips, strict=True)), axis=1))
        row = result.about | {"n": len(silhouettes[result.name])} | _over_seeds(pd.DataFrame(measures))
        row |= dict.fromkeys(compared)  # of most there is no such comparison
        default = study.defaults[result.modality]
        if result is not default and result.objective == default.objective:
            difference, low, high = study.difference(silhouettes[result.name], silhouettes[default.name])
            row |= {"default": default.label, "difference": difference, "low": low, "high": high}
            row["verdict"] = verdict(-high, -low)
        rows.append(row)
    return pd.DataFrame(rows)
