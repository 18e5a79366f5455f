"""The tables of scores: headline, ablations, classes, and what belongs beside them."""

import numpy as np
import pandas as pd
from sklearn.manifold import TSNE
from sklearn.metrics import average_precision_score
from threadpoolctl import threadpool_limits

from mmtlib.evaluation.scores import targets_of
from mmtlib.evaluation.stats import verdict
from mmtlib.training.experiment import encoder_runs
from study.tables.clips import Study, scores_table
from study.tables.results import GROUPS, Result
from study.timing import cost


def results_table(study: Study) -> pd.DataFrame:
    """A row for each score (percent), of each fold; with several heads, their own scores follow."""
    runs = pd.DataFrame([{"run": r.name, "model": r.label, "objective": r.objective} for r in study.results])
    table = scores_table(study.clips, folds=True).merge(runs, on="run", how="left").assign(dataset=study.dataset)
    table.loc[table["condition"] != "", "split"] += ": " + table["condition"]
    columns = ["dataset", "model", "modality", "objective", "seed", "fold", "split", "n"]
    return table[[*columns, *table.filter(regex="top[15]$")]]


def costs_table(study: Study) -> pd.DataFrame:
    """model, modality, params_m (millions), mmacs (million multiply-accumulates for a clip of the features)."""
    features = study.features
    sizes = features["log_mel"]["shape"][1:], features["frames"]["shape"][1:4]
    num_classes = sum(len(classes) for classes in features["heads"].values())
    runs = {result.label: result.trained for result in study.reported}
    rows = [(label, *cost(run.model, num_classes, *sizes, **run.overrides)) for label, run in runs.items()]
    return pd.DataFrame(rows, columns=["model", "modality", "params_m", "mmacs"])


def headline_table(study: Study, costs: pd.DataFrame) -> pd.DataFrame:
    """Ours and the baselines on test: each model on what it reads, then those of both with one withheld.

    Means over the seeds; `std` is the standard deviation over them (empty with one seed), `low` and `high` the
    bootstrap interval. With several heads also the top-1 of each.
    """
    readings = [(r, r.modality) for r in study.headliners]
    readings += [(r, m) for m in ("audio", "video") for r, kind in readings if kind == "av"]
    clean = study.scores.query("split == 'test' and condition == ''").set_index(["run", "modality"])
    means = clean.filter(regex="top5|_top1").groupby(level=[0, 1]).mean()
    rows = []
    for result, modality in readings:
        values = study.rights(result, modality)
        row = {"modality": modality, "withheld": modality != result.modality, "n": len(values)}
        row |= dict(zip(("top1", "low", "high"), study.mean(values), strict=True))
        rows.append(result.about | row | {"std": values.mean().std(), **means.loc[(result.name, modality)]})
    return pd.DataFrame(rows).merge(costs.drop(columns="modality"), on="model", how="left")


def ablations_table(study: Study, costs: pd.DataFrame) -> pd.DataFrame:
    """Each row beside its default: top1, difference (row - default) with its interval, verdict, costs.

    The default is the stage's model of the same modality; in the group `modality` it is the model of both. The verdict
    is on the claim that the default is the better one. `default_top1` is of the same clips and seeds, `val_top1` of the
    epochs kept; `folds` are named where they are fewer than the study has.
    """
    main = study.defaults
    pairs = [("modality", main[modality], main["av"]) for modality in ("audio", "video") if "av" in main]
    pairs += [(r.group, r, main[r.modality]) for r in study.reported if r.group]
    pairs.sort(key=lambda pair: list(GROUPS).index(pair[0]))
    rows = []
    for group, result, default in pairs:
        ours, theirs = study.rights(result), study.rights(default)
        difference, low, high = study.difference(ours, theirs)
        seeds = ours.mean()
        row = {"group": group, "row": result.name if result.group else result.label} | result.about
        _, common = ours.align(theirs, join="inner")
        row |= {"default": default.label, "default_top1": common.mean(axis=None), "n_seeds": len(seeds)}
        folds = sorted({trial.fold for trial in result.curves} - {None})
        row["folds"] = "" if folds == (study.params.folds or []) else ", ".join(map(str, folds))
        row["val_top1"] = np.mean([curve["val_top1"].max() for curve in result.curves.values()])
        row |= {"top1": seeds.mean(), "std": seeds.std(), "difference": difference, "low": low, "high": high}
        rows.append(row | {"verdict": verdict(-high, -low)})
    return pd.DataFrame(rows).drop(columns="ours").merge(costs.drop(columns="modality"), on="model", how="left")


def per_class_table(study: Study) -> pd.DataFrame:
    """class of the first head, n (test clips), audio, video, av: percent recognised by each default model.

    Of several labels a clip: the class's average precision.
    """
    table = pd.DataFrame(index=pd.Index(study.features["classes"], name="class"))
    for modality, result in study.defaults.items():
        if study.features["multilabel"]:
            seeds = [(targets_of(found), np.stack(found["logits"].tolist())) for found in study.by_seed(result)]
            precision = [average_precision_score(*pair, average=None) for pair in seeds]
            table["n"], means = seeds[0][0].sum(0), 100 * np.mean(precision, axis=0)
            table[modality] = np.where(table["n"] > 0, means, np.nan)
            continue
        clips = study.on_test(result)  # of all seeds
        by_class = clips.assign(right=100.0 * clips["first"]).groupby(table.index[clips["label"]])
        table["n"], table[modality] = by_class["clip"].nunique(), by_class["right"].mean()
    return table.fillna({"n": 0}).astype({"n": int}).reset_index()


def pairs_table(study: Study) -> pd.DataFrame:
    """Of the test clips of each pair that the data set names, and of all pairs: percent told from the other class.

    `low` and `high` are the bootstrap interval. Logits of the other classes play no part, so chance is 50.
    """
    names, rows = study.features["classes"], []
    for result in study.reported if study.features.get("pairs") else ():
        told = {}
        for pair in study.features["pairs"]:
            numbers = [names.index(name) for name in pair]
            clips = study.on_test(result).query("label in @numbers")
            first, second = np.stack(clips["logits"].tolist())[:, numbers].T
            clips = clips.assign(told=100.0 * ((first > second) == (clips["label"] == numbers[0])))
            order = clips["clip"].unique()  # in which intervals are drawn
            told[" / ".join(pair)] = clips.pivot(index="clip", columns="seed", values="told").loc[order]
        for pair, values in (told | {"all": pd.concat(told.values())}).items():
            rows.append((pair, result.name, *result.about.values(), len(values), *study.mean(values)))
    columns = ["pair", "row", "model", "modality", "objective", "ours", "n", "right", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def ceilings_table(study: Study) -> pd.DataFrame:
    """split, modality, ceiling: the best top-1 (percent) that the data allows; empty where the set states none."""
    ceilings = study.features.get("ceilings", {})
    rows = [(split, name, top) for split, tops in ceilings.items() for name, top in tops.items()]
    return pd.DataFrame(rows, columns=["split", "modality", "ceiling"])


def curves_table(study: Study, costs: pd.DataFrame) -> pd.DataFrame:
    """Learning curves of ours and the baselines: run, modality, ours, seed, fold, epoch, gmacs, ce, val_top1, kept.

    `gmacs`: spent on a training clip so far, encoders' training included; a step counts as three forward passes.
    """
    mmacs, parts = costs.set_index("model")["mmacs"], []
    spent = {r.name: 3e-3 * mmacs[r.label] for r in study.reported}  # GMACs on a clip in an epoch
    for result in (r for r in study.reported if r.group in (None, "baseline")):
        about = {"run": result.label, "modality": result.modality, "ours": result.group is None}
        encoders = encoder_runs(study.params.runs[result.name], study.params).values()
        before = sum(spent[name] * run.epochs for name, run in encoders)
        for (seed, fold), curve in result.curves.items():
            best = curve.sort_values(["val_top1", "val_loss"], ascending=[False, True], kind="stable").index[0]
            about["gmacs"] = before + spent[result.name] * curve["epoch"]
            parts.append(curve.assign(**about, seed=seed, fold=fold, kept=curve.index == best))
    return pd.concat(parts, ignore_index=True)


def tsne_points(study: Study, result: Result, limit: int = 1000) -> pd.DataFrame:
    """x, y, label of at most `limit` test clips: t-SNE of the embeddings of the first seed and fold."""
    _, table = next(iter(study.by_seed(result)[0].groupby("fold", dropna=False)))  # embeddings of one model compare
    table = table.sort_values("clip")
    table = table.iloc[np.unique(np.linspace(0, len(table) - 1, min(limit, len(table))).round().astype(int))]
    vectors = np.stack(table["embedding"].tolist()).astype(np.float64)
    method = TSNE(2, perplexity=min(30.0, (len(vectors) - 1) / 3), init="pca", random_state=0, n_jobs=1)
    with threadpool_limits(1):  # the order of a parallel sum would show in the picture
        places = method.fit_transform(vectors)
    labels = np.asarray(study.features["classes"])[table["label"].to_numpy()]
    return pd.DataFrame({"x": places[:, 0], "y": places[:, 1], "label": labels})
