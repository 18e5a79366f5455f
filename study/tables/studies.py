"""Beyond the ablations: how models bear corrupted clips and fewer training clips, and which learning rate each got."""

import re
from collections.abc import Iterator

import pandas as pd

from mmtlib.evaluation.predictions import scores
from study.tables.results import Result, defaults

_SPLIT = re.compile(r"test: (?P<kind>.*?)(?: (?P<level>-?[\d.]+) (?P<unit>dB|s))?")
WITHHELD = {"av": "none", "audio": "no picture", "video": "no sound"}
"""What a model of both lacks when it is read in a modality."""


def robustness_table(results: list[Result]) -> pd.DataFrame:
    """Test top-1 (percent) of the models of both whose clips were corrupted, too.

    Columns: row, model, ours, corruption ("none", "no sound", "sound noise", ...), level and unit (dB, s, or neither),
    n_seeds, top1, std (over the seeds), loss (points below the clean clips).
    """
    rows = []
    for result in (r for r in results if r.trained.robustness):
        tables = pd.concat(scores(table) for table in result.predictions.values())
        tables = tables[tables["split"].str.startswith("test")]
        about = {"row": result.name, "model": result.label, "ours": result.group != "baseline"}
        for (split, modality), part in tables.groupby(["split", "modality"], sort=False):
            found = _SPLIT.fullmatch(split)
            kind = {"kind": WITHHELD[modality], "level": None, "unit": None} if found is None else found.groupdict()
            level = None if kind["level"] is None else float(kind["level"])
            about |= {"corruption": kind["kind"], "level": level, "unit": kind["unit"]}
            rows.append(about | {"n_seeds": len(part), "top1": part["top1"].mean(), "std": part["top1"].std()})
    columns = ["row", "model", "ours", "corruption", "level", "unit", "n_seeds", "top1", "std"]
    table = pd.DataFrame(rows, columns=columns).astype({"level": float})
    clean = table[table["corruption"] == "none"].set_index("row")["top1"]
    return table.assign(loss=table["row"].map(clean) - table["top1"])


def data_table(results: list[Result]) -> pd.DataFrame:
    """Test top-1 (percent) by the share of the training clips, for the models that have rows of the group `data`.

    Columns: model, modality, ours, share, n_seeds, top1, std. What the whole set gives is that of the same seeds.
    """
    rows = []
    for model, whole, parts in _by_model(results, "data"):
        seeds = [seed for seed in whole.predictions if all(seed in r.predictions for r in parts)]
        for result in [*parts, whole]:
            found = pd.concat(scores(result.predictions[seed]) for seed in seeds)
            top1 = found.query("split == 'test' and modality == @result.modality")["top1"]
            about = {"model": model, "modality": result.modality, "ours": whole.group is None}
            about |= {"share": result.trained.train_share, "n_seeds": len(seeds)}
            rows.append(about | {"top1": top1.mean(), "std": top1.std()})
    table = pd.DataFrame(rows, columns=["model", "modality", "ours", "share", "n_seeds", "top1", "std"])
    return table.sort_values(["model", "share"], kind="stable", ignore_index=True)


def search_table(results: list[Result]) -> pd.DataFrame:
    """The search of learning rates: model, lr, val_top1 (percent, of the epoch kept), n_seeds, best, taken (bool).

    All models have as many rates, tried on the same seeds; the test split decides nothing.
    """
    rows = []
    for model, used, parts in _by_model(results, "search"):
        seeds = [seed for seed in used.curves if all(seed in r.curves for r in parts)]
        for result in [*parts, used]:
            top1 = pd.Series([result.curves[seed]["val_top1"].max() for seed in seeds])
            about = {"model": model, "lr": result.trained.lr, "val_top1": top1.mean(), "n_seeds": len(seeds)}
            rows.append(about | {"taken": result is used})
    table = pd.DataFrame(rows, columns=["model", "lr", "val_top1", "n_seeds", "taken"])
    best = table.groupby("model")["val_top1"].transform("max") == table["val_top1"]
    return table.assign(best=best).sort_values(["model", "lr"], kind="stable", ignore_index=True)


def _by_model(results: list[Result], group: str) -> Iterator[tuple[str, Result, list[Result]]]:
    """Each model with rows of a group: its run that the report is about, a stage's or a baseline's, and those rows."""
    ours, rows = defaults(results).values(), [r for r in results if r.group == group]
    for model in dict.fromkeys(r.trained.model for r in rows):
        main = next(r for r in [*ours, *results] if r.trained.model == model and r.group in (None, "baseline"))
        yield model, main, [r for r in rows if r.trained.model == model]
