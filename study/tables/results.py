"""What the stages left in a workspace, and the tables that follow from it.

Scores come from the stored predictions. Every interval is a bootstrap over clips and seeds, paired by both where two
models are compared.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from mmtlib.config import Objective, Params, Report, Run
from mmtlib.evaluation.predictions import guesses, head_sizes, read_predictions, scores
from mmtlib.models import MODALITY, build_model
from mmtlib.models.cost import count_macs, count_parameters
from mmtlib.training.experiment import run_of
from study.tables.ledger import verdict

STAGES = {"audio": "pretrain_mat", "video": "pretrain_mvit", "av": "train_mmt"}
"""The stage that trains the default model of each modality."""

GROUPS = {
    "modality": "Are sound and picture together better than either alone?",
    "baseline": "Is the multiscale Transformer better than its single-scale peer?",
    "parameters": "Is it better with as many parameters, too?",
    "longer": "Is it still better if its peer trains longer?",
    "init": "Is starting from trained encoders better than from scratch?",
    "objective": "Is the default objective better than these?",
    "fusion": "Is the default fusion better than these?",
    "pooling": "Is the default pooling of the audio Transformer better than these?",
    "dropout": "Is training with both modalities of every clip better than withholding one from some?",
}
"""The blocks of ablations.csv, each with the claim that its rows test: the default is the better one.

Rows of other groups (less data, the search for learning rates) have tables of their own.
"""


class ReportError(RuntimeError):
    """Something that an earlier stage writes is missing or unreadable; the message names that stage."""


@dataclass(frozen=True)
class Result:
    """One run of params.yaml, of every seed, as it was trained.

    `stage` is what to run again, `label` the model's name in the tables (see model_label), `trained` the run's
    section as it was then. `predictions` and `curves` are by seed.
    """

    stage: str
    name: str
    group: str | None
    label: str
    trained: Run
    predictions: dict[int, pd.DataFrame]
    curves: dict[int, pd.DataFrame]

    @property
    def modality(self) -> str:
        """What the model reads: audio, video or av."""
        return MODALITY[self.trained.model]

    @property
    def objective(self) -> str:
        """ce, ce+avc, ce+imc or ce+avc+imc."""
        return objective_name(self.trained.objective)


def load_results(workspace: Path, params: Params) -> list[Result]:
    """Everything that params.yaml asks to be trained: the three stages, then the rows of `ablations`.

    Raises ReportError, naming the stage to run, for the first file that is missing or damaged.
    """
    stages = [(stage, stage, None) for stage in STAGES.values()]
    rows = [("ablations", name, row.group) for name, row in params.ablations.items()]
    results = []
    for folder, name, group in stages + rows:
        stage = name if group is None else f"ablations for row {name}"
        trained, predictions, curves = None, {}, {}
        for seed in params.seeds_of(name):
            file = f"{name}-seed{seed}"
            about, curve = (_find(workspace / "models" / folder, f"{file}.{end}", stage) for end in ("json", "csv"))
            table = _find(workspace / "predictions" / folder, f"{file}.parquet", stage)
            try:
                trained = run_of(json.loads(about.read_text(encoding="utf-8"))["parts"])
                predictions[seed], curves[seed] = read_predictions(table), pd.read_csv(curve)
            except (ValueError, OSError, KeyError, TypeError) as error:
                raise ReportError(f"{error!r} in the files of {name}; run stage {stage} again.") from error
        reference = next((r for r in results if r.group is None and r.trained.model == trained.model), None)
        label = trained.model if group is None else model_label(name, trained, reference and reference.trained)
        results.append(Result(stage, name, group, label, trained, predictions, curves))
    return results


def model_label(row: str, run: Run, reference: Run | None) -> str:
    """The model's name in the tables: `mmt_t` where a row changes the objective only, else `mmt_t-concat`.

    `reference` is the stage's run of the same model, if there is one.
    """
    if row == run.model:
        return run.model
    if reference is not None:
        left_out = {"objective", "robustness"}  # the latter is how it is tested
        same = run.model_dump(exclude=left_out) == reference.model_dump(exclude=left_out)
        if same and objective_name(run.objective) != objective_name(reference.objective):
            return run.model
    variant = re.sub(f"^({run.model}|{run.model.rsplit('_', 1)[0]})[_-]", "", row)
    return f"{run.model}-{variant.replace('_', '-')}"


def objective_name(objective: Objective) -> str:
    """ce, ce+avc, ce+imc or ce+avc+imc: the losses that have a weight."""
    return "+".join(["ce"] + [part for part in ("avc", "imc") if getattr(objective, part) > 0])


def _find(folder: Path, file: str, stage: str) -> Path:
    """A file of a run: in its stage's folder, that of a row one folder deeper."""
    found = sorted(folder.glob(f"**/{file}"))
    if not found:
        raise ReportError(f"{folder} has no {file}; run stage {stage}.")
    return found[0]


def read_features(workspace: Path) -> dict[str, Any]:
    """features.json; ReportError if the stage has not run.

    `heads` is always there; with several of them `classes` are those of the first, by which the report tells classes.
    """
    path = workspace / "data/features/features.json"
    try:
        features = json.loads(path.read_text(encoding="utf-8"))
        heads = features.get("heads") or {"label": features["classes"]}
        return features | {"heads": heads, "classes": next(iter(heads.values()))}
    except FileNotFoundError:
        raise ReportError(f"{path} does not exist; run stage features.") from None
    except ValueError as error:
        raise ReportError(f"{path} is damaged ({error}); run stage features again.") from error


def _on_test(result: Result, modality: str) -> list[pd.DataFrame]:
    """The test clips as read in one modality, a table for each seed. Raises ReportError where there is none."""
    tables = []
    for table in result.predictions.values():
        tables.append(table[(table["split"] == "test") & (table["modality"] == modality)])
        if tables[-1].empty:
            raise ReportError(
                f"the predictions of {result.name} hold no test clip for modality {modality}; "
                f"run stage {result.stage} again."
            )
    return tables


def clip_scores(result: Result, modality: str) -> pd.DataFrame:
    """100 where a test clip is recognised and 0 where not: a row for each clip_id, a column for each seed."""
    columns = {}
    for seed, table in zip(result.predictions, _on_test(result, modality), strict=True):
        right = guesses(table) == table["label_index"].to_numpy()
        columns[seed] = pd.Series(100.0 * right, index=table["clip_id"].to_numpy())
    return pd.concat(columns, axis=1, join="inner").sort_index()


def class_numbers(predictions: pd.DataFrame, labels: Int[np.ndarray, " clips"]) -> Int[np.ndarray, " clips"]:
    """The class, of the first head, that `labels` of these predictions stand for."""
    return np.unravel_index(labels, list(head_sizes(predictions).values()))[0]


def bootstrap(values: pd.DataFrame, report: Report) -> tuple[float, float, float]:
    """Mean of `values`, a row for each clip and a column for each seed, and its interval, the same on every call.

    A resample draws as many clips and, apart from them, as many seeds, both with replacement; the interval has the
    percentiles of the resamples' means. With one seed it draws clips alone and says nothing of other seeds. With a
    few it covers what it promises, or more, as long as clips matter more than seeds; three seeds that differ by a
    standard deviation of 4 points get 88 % for 95 %.
    """
    matrix, rng = values.to_numpy(np.float64), np.random.default_rng(0)
    means = np.empty(report.bootstrap)
    for start in range(0, len(means), 256):  # in blocks, to bound the memory
        block = means[start : start + 256]
        clips, seeds = (_shares(rng, len(block), size) for size in matrix.shape)
        block[:] = ((clips @ matrix) * seeds).sum(axis=1)
    low, high = np.quantile(means, [(1 - report.confidence) / 2, (1 + report.confidence) / 2])
    return float(matrix.mean()), float(low), float(high)


def _shares(rng: np.random.Generator, resamples: int, size: int) -> Float[np.ndarray, "resamples size"]:
    """How often each of `size` things is drawn in `size` draws with replacement, as a share."""
    places = rng.integers(0, size, (resamples, size)) + size * np.arange(resamples)[:, None]
    return np.bincount(places.ravel(), minlength=places.size).reshape(places.shape) / size


def paired_difference(first: pd.DataFrame, second: pd.DataFrame, report: Report) -> tuple[float, float, float]:
    """Mean of first - second over the clips and seeds that both have, and its interval: see `bootstrap`.

    Raises ReportError where they have no clip or no seed in common.
    """
    clips, seeds = first.index.intersection(second.index).sort_values(), first.columns.intersection(second.columns)
    if clips.empty or seeds.empty:
        raise ReportError(
            "two models have no test clip or no seed in common; run the training stages again on one data set."
        )
    return bootstrap(first.loc[clips, seeds] - second.loc[clips, seeds], report)


def results_table(results: list[Result], dataset: str) -> pd.DataFrame:
    """A row for each score: dataset, model, modality, objective, seed, split, n, top1, top5 (percent).

    With several heads, their own scores follow.
    """
    tables = [
        scores(predictions).assign(model=result.label, objective=result.objective, seed=seed)
        for result in results
        for seed, predictions in result.predictions.items()
    ]
    columns = ["dataset", "model", "modality", "objective", "seed", "split", "n", "top1", "top5"]
    table = pd.concat(tables).assign(dataset=dataset)
    return table[[*columns, *(name for name in table if name not in columns)]]


def costs_table(results: list[Result], features: dict[str, Any]) -> pd.DataFrame:
    """model, modality, params_m (millions), mmacs (million multiply-accumulates for a clip of `features`)."""
    audio, video = features["log_mel"]["shape"][1:], features["frames"]["shape"][1:4]
    inputs = {"audio": torch.zeros(1, 1, *audio), "video": torch.zeros(1, 3, *video)}
    rows = []
    for label, result in {result.label: result for result in results}.items():
        overrides = {"audio_size": audio, "video_size": video} | result.trained.overrides
        num_classes = sum(len(classes) for classes in features["heads"].values())
        model = build_model(result.trained.model, num_classes, **overrides)
        given = [inputs[name] for name in inputs if result.modality in ("av", name)]
        rows.append((label, result.modality, count_parameters(model) / 1e6, count_macs(model, *given) / 1e6))
    return pd.DataFrame(rows, columns=["model", "modality", "params_m", "mmacs"])


def defaults(results: list[Result]) -> dict[str, Result]:
    """The default model of each modality."""
    return {modality: next(r for r in results if r.name == stage) for modality, stage in STAGES.items()}


def headliners(results: list[Result]) -> list[Result]:
    """Ours and the baselines, by what they read."""
    return sorted((r for r in results if r.group in (None, "baseline")), key=lambda r: list(STAGES).index(r.modality))


def headline_table(results: list[Result], costs: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Ours and the baselines on test: each model on what it reads, then those of both with one withheld.

    Columns: model, modality, objective, ours, withheld, n, top1, low, high, std, top5, params_m, mmacs; with several
    heads also the top-1 of each. Means over the seeds; `std` is the standard deviation over them (empty with one
    seed), `low` and `high` the bootstrap interval.
    """
    readings = [(r, r.modality) for r in headliners(results)]
    readings += [(r, m) for m in ("audio", "video") for r, kind in readings if kind == "av"]
    rows = []
    for result, modality in readings:
        values = clip_scores(result, modality)
        top1, low, high = bootstrap(values, params.report)
        rows.append(
            {
                "model": result.label,
                "modality": modality,
                "objective": result.objective,
                "ours": result.group is None,
                "withheld": modality != result.modality,
                "n": len(values),
                "top1": top1,
                "low": low,
                "high": high,
                "std": values.mean().std(),
                **pd.concat(map(scores, _on_test(result, modality))).filter(regex="top5|_top1").mean(),
            }
        )
    return pd.DataFrame(rows).merge(costs.drop(columns="modality"), on="model", how="left")


def ablations_table(results: list[Result], costs: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Each row beside its default: top1, difference (row - default) with its interval, verdict, costs.

    The default is the stage's model of the same modality; in the group `modality` it is the model of both.
    The verdict is on the claim that the default is the better one. Columns: group, row, model, modality, objective,
    default, default_top1 (over the same seeds), n_seeds, val_top1 (of the epochs kept), top1, std, difference, low,
    high, verdict, params_m, mmacs.
    """
    main = defaults(results)
    pairs = [("modality", main[modality], main["av"]) for modality in ("audio", "video")]
    pairs += [(r.group, r, main[r.modality]) for r in results if r.group in GROUPS]
    pairs.sort(key=lambda pair: list(GROUPS).index(pair[0]))
    rows = []
    for group, result, default in pairs:
        ours, theirs = (clip_scores(model, model.modality) for model in (result, default))
        difference, low, high = paired_difference(ours, theirs, params.report)
        seeds = ours.mean()
        rows.append(
            {
                "group": group,
                "row": result.name if result.group else result.label,
                "model": result.label,
                "modality": result.modality,
                "objective": result.objective,
                "default": default.label,
                "default_top1": theirs[ours.columns.intersection(theirs.columns)].mean(axis=None),
                "n_seeds": len(seeds),
                "val_top1": np.mean([curve["val_top1"].max() for curve in result.curves.values()]),
                "top1": seeds.mean(),
                "std": seeds.std(),
                "difference": difference,
                "low": low,
                "high": high,
                "verdict": verdict(-high, -low),
            }
        )
    return pd.DataFrame(rows).merge(costs.drop(columns="modality"), on="model", how="left")


def per_class_table(results: list[Result], classes: list[str]) -> pd.DataFrame:
    """class, n (test clips), audio, video, av: percent recognised by the default model of each modality."""
    table = pd.DataFrame(index=pd.Index(classes, name="class"))
    for modality, result in defaults(results).items():
        test = _on_test(result, modality)[0]
        labels = np.asarray(classes)[class_numbers(test, test["label_index"].to_numpy())]
        values = clip_scores(result, modality).mean(axis=1).groupby(pd.Series(labels, index=test["clip_id"].to_numpy()))
        if modality == "av":
            table.insert(0, "n", values.size().reindex(classes, fill_value=0))
        table[modality] = values.mean().reindex(classes)
    return table.reset_index()


def coverage_table(features: dict[str, Any]) -> pd.DataFrame:
    """split, then how many clips were listed, used, missing, broken, and are silent, blind or too short."""
    return pd.DataFrame([{"split": split} | counts for split, counts in features["coverage"].items()])


def ceilings_table(workspace: Path) -> pd.DataFrame:
    """split, modality, ceiling: the best top-1 (percent) that the data allows; empty where it states none."""
    path = workspace / "data/clips/dataset.json"
    try:
        given = json.loads(path.read_text(encoding="utf-8")).get("ceilings", {}) if path.exists() else {}
        rows = [(split, name, float(top)) for split, tops in given.items() for name, top in tops.items()]
    except (ValueError, TypeError, AttributeError) as error:
        raise ReportError(f"{path} is damaged ({error}); run stage download again.") from error
    return pd.DataFrame(rows, columns=["split", "modality", "ceiling"])


def curves_table(results: list[Result]) -> pd.DataFrame:
    """Learning curves of ours and the baselines: run, modality, ours, seed, epoch, ce, val_top1, kept."""
    parts = []
    for result in results:
        if result.group not in (None, "baseline"):
            continue
        about = {"run": result.label, "modality": result.modality, "ours": result.group is None}
        for seed, curve in result.curves.items():
            kept = curve.sort_values(["val_top1", "val_loss"], ascending=[False, True], kind="stable").index[0]
            part = curve[["epoch", "ce", "val_top1"]]
            parts.append(part.assign(**about, seed=seed, kept=part.index == kept))
    return pd.concat(parts, ignore_index=True)


def confusion_matrix(result: Result, modality: str, classes: list[str]) -> Float[np.ndarray, "classes classes"]:
    """Test clips by true (rows) and predicted (columns) class, summed over the seeds."""
    matrix = np.zeros((len(classes), len(classes)))
    for table in _on_test(result, modality):
        pair = (class_numbers(table, labels) for labels in (table["label_index"].to_numpy(), guesses(table)))
        np.add.at(matrix, tuple(pair), 1)
    return matrix


def tsne_points(result: Result, modality: str, classes: list[str], limit: int = 1000) -> pd.DataFrame:
    """x, y, label of at most `limit` test clips: t-SNE of the first seed's embeddings."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    table = _on_test(result, modality)[0].sort_values("clip_id")
    table = table.iloc[np.unique(np.linspace(0, len(table) - 1, min(limit, len(table))).round().astype(int))]
    vectors = np.stack(table["embedding"].tolist()).astype(np.float64)
    if len(vectors) > 9:
        method = TSNE(2, perplexity=min(30.0, (len(vectors) - 1) / 3), init="pca", random_state=0, n_jobs=1)
    else:  # too few for neighbourhoods
        method = PCA(2, random_state=0)
    with threadpool_limits(1):  # the order of a parallel sum would show in the picture
        places = method.fit_transform(vectors)
    labels = np.asarray(classes)[class_numbers(table, table["label_index"].to_numpy())]
    return pd.DataFrame({"x": places[:, 0], "y": places[:, 1], "label": labels})
