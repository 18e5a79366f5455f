"""Beyond the ablations: how models bear corrupted clips and fewer training clips, and which learning rate each got."""

from collections.abc import Iterator

import pandas as pd

from mmtlib.config import Run
from study.tables.clips import Study
from study.tables.results import ReportError, Result

WITHHELD = {"av": "none", "audio": "no video", "video": "no audio"}  # what a model of both lacks, by what is read


def robustness_table(study: Study) -> pd.DataFrame:
    """Test top-1 (percent) of the models of both whose clips were corrupted, too.

    Columns: row, model, ours, corruption ("none", "no audio", "audio noise", ...), level and unit (dB, s, or neither),
    n_seeds, top1, std (over the seeds), loss (points below the clean clips).
    """
    tested = {r.name: r for r in study.results if r.trained.robustness}
    scores = study.scores[study.scores["run"].isin(list(tested)) & (study.scores["split"] == "test")]
    found = scores.groupby(["run", "condition", "modality"], sort=False)["top1"]
    table = found.agg(n_seeds="size", top1="mean", std="std").reset_index()
    # A condition is named by what is done and, of some, by how much of it: "sound noise -10 dB".
    parts = table["condition"].str.extract(r"^(?P<corruption>.*?)(?: (?P<level>-?[\d.]+) (?P<unit>dB|s))?$")
    table = table.join(parts).rename(columns={"run": "row"}).astype({"level": float})
    # The conditions' names are part of what kept runs are known by; readers get the field's words.
    words = table["corruption"].replace({"sound": "audio", "picture": "video"}, regex=True)
    table["corruption"] = words.where(table["condition"] != "", table["modality"].map(WITHHELD))
    names = pd.Series({name: r.label for name, r in tested.items()}, dtype=str)
    names = names.mask(names.duplicated(keep=False), names + " (" + names.index.astype(str) + ")")
    table["model"] = table["row"].map(names)
    table["ours"] = table["row"].map({name: r.group != "baseline" for name, r in tested.items()})
    clean = table[table["corruption"] == "none"].set_index("row")["top1"]
    table["loss"] = clean.reindex(table["row"]).to_numpy() - table["top1"]
    return table[["row", "model", "ours", "corruption", "level", "unit", "n_seeds", "top1", "std", "loss"]]


def data_table(study: Study) -> pd.DataFrame:
    """Test top-1 (percent) by the share of the training clips, for the models that have rows of the group `data`.

    Columns: model, modality, ours, share, n_seeds, top1, std. What the whole set gives is of the same seeds and clips.
    """
    rows = []
    for model, whole, parts in _by_model(study, "data"):
        seeds = [seed for seed in whole.predictions if all(seed in r.predictions for r in parts)]
        rights = [study.rights(result)[seeds] for result in (*parts, whole)]
        clips = pd.concat(rights, axis=1, join="inner").index  # rows of fewer folds have fewer
        for result, right in zip((*parts, whole), rights, strict=True):
            top1 = right.loc[clips].mean()
            about = {"model": model, "modality": result.modality, "ours": whole.group is None}
            about |= {"share": result.trained.train_share, "n_seeds": len(seeds)}
            rows.append(about | {"top1": top1.mean(), "std": top1.std()})
    table = pd.DataFrame(rows, columns=["model", "modality", "ours", "share", "n_seeds", "top1", "std"])
    return table.sort_values(["model", "share"], kind="stable", ignore_index=True)


def search_table(study: Study) -> pd.DataFrame:
    """The search: model, lr, setting, val_top1 (percent, of the epoch kept), n_seeds, n_folds, best, taken (bool).

    `setting` is the learning rate and what else differs from the run that was taken. All tries of a model are of the
    same seeds and folds; the test split decides nothing.
    """
    rows = []
    for model, used, parts in _by_model(study, "search"):
        trials = [trial for trial in used.curves if all(trial in r.curves for r in parts)]
        for result in [*parts, used]:
            top1 = pd.Series([result.curves[trial]["val_top1"].max() for trial in trials])
            about = {"model": model, "lr": result.trained.lr, "setting": _setting(result.trained, used.trained)}
            about |= {"val_top1": top1.mean(), "n_seeds": len({trial.seed for trial in trials})}
            about |= {"n_folds": len({trial.fold for trial in trials})}
            rows.append(about | {"taken": result is used})
    table = pd.DataFrame(rows, columns=["model", "lr", "setting", "val_top1", "n_seeds", "n_folds", "taken"])
    best = table.groupby("model")["val_top1"].transform("max") == table["val_top1"]
    return table.assign(best=best).sort_values(["model", "lr"], kind="stable", ignore_index=True)


def _setting(run: Run, used: Run) -> str:
    """The learning rate of a run, and what else it changes in another one."""
    told = {"lr", "group", "seeds", "folds", "encoders", "robustness"}
    before, now = (pd.json_normalize(one.model_dump(exclude=told)).iloc[0].to_dict() for one in (used, run))
    names = sorted(name for name in before | now if before.get(name) != now.get(name))
    words = (f"{name.removeprefix('overrides.')} {now.get(name, 'default')}" for name in names)
    return ", ".join([f"lr {run.lr:g}", *words])


def _by_model(study: Study, group: str) -> Iterator[tuple[str, Result, list[Result]]]:
    """Each model with rows of a group: its run that the report is about, a stage's or a baseline's, and those rows.

    Raises ReportError where there is no such run, since some have been trained anew and others have not.
    """
    rows = [r for r in study.results if r.group == group]
    told = [r for r in (*study.defaults.values(), *study.results) if r.group in (None, "baseline")]
    main = {r.trained.model: r for r in reversed(told)}  # the first counts
    for model in dict.fromkeys(r.trained.model for r in rows):
        if model not in main:
            raise ReportError(f"rows of {group} are of {model}, the runs beside them of another model; run them again.")
        yield model, main[model], [r for r in rows if r.trained.model == model]
