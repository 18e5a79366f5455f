"""The claims of the paper beside what the runs of a study say: a row for each claim, whatever comes out."""

from typing import Any

import pandas as pd

from study.tables.clips import Study
from study.tables.ledger import VALUES, Claim, Selection, bench_row, claims, ledger, saved
from study.tables.results import Result

SAME = 0.15
"""By what share two models' operations may differ and still count as equal."""


def claims_table(study: Study, costs: pd.DataFrame, clustering: pd.DataFrame, efficiency: pd.DataFrame) -> pd.DataFrame:
    """The rows of claims.csv by id (see `ledger`), from the runs, costs_table, clustering_table, read_efficiency."""
    mmacs, rows = costs.set_index("model")["mmacs"], {}
    for name, claim in claims().items():
        if claim.kind == "bench":
            rows[name] = bench_row(claim, efficiency)
            continue
        ours, *others = (select(study.reported, wanted) for wanted in (claim.ours, *claim.theirs))
        complete = ours is not None and None not in others
        if claim.kind == "top1":
            rows[name] = {"unit": "points of test top-1", "measure": "% top-1"}
            rows[name] |= _top1(study, claim, ours, others, mmacs) if complete else {}
        elif claim.kind == "operations":
            sides = [(r.label, mmacs[r.label]) for r in (ours, *others)] if complete else [("", 0.0)] * 2
            seeds = ours.predictions.keys() & others[0].predictions.keys() if complete else ()
            rows[name] = saved("MMACs", len(seeds), *sides)
        else:
            rows[name] = dict.fromkeys(("unit", "measure"), "silhouette")
            rows[name] |= _silhouette(clustering, others[0]) if complete and len(clustering) else {}
    return ledger(rows, study.params.study)


def select(results: list[Result], wanted: Selection) -> Result | None:
    """The first run that is all of what is wanted."""
    for result in results:
        overrides = result.trained.overrides
        if (
            wanted.name in (None, result.name)
            and (wanted.groups is None or result.group in wanted.groups)
            and result.trained.model.startswith(wanted.model)
            and wanted.objective in (None, result.objective)
            and all(_is_throughout(overrides.get(key), value) for key, value in wanted.overrides.items())
        ):
            return result
    return None


def _is_throughout(value: Any, wanted: Any) -> bool:
    return value == wanted or (isinstance(value, list) and bool(value) and all(part == wanted for part in value))


def _top1(study: Study, claim: Claim, ours: Result, others: list[Result], mmacs: pd.Series) -> dict[str, Any]:
    """Ours against the one of the others with the highest mean, over the seeds that all have."""
    first, *rest = map(study.rights, (ours, *others))
    seeds = [seed for seed in first if all(seed in rights for rights in rest)]
    if not seeds:
        return {}
    second, theirs = max(zip(rest, others, strict=True), key=lambda pair: pair[0][seeds].mean(axis=None))
    names = (f"{r.label} {r.objective}" if ours.label == theirs.label else r.label for r in (ours, theirs))
    row = {"n_seeds": len(seeds)} | dict(zip(("ours", "theirs"), names, strict=True))
    row |= dict(zip(VALUES, study.difference(first[seeds], second[seeds]), strict=True))
    row |= {"ours_value": first[seeds].mean(axis=None), "theirs_value": second[seeds].mean(axis=None)}
    if claim.unequal and abs(mmacs[theirs.label] / mmacs[ours.label] - 1) > SAME:
        row["claim"] = claim.unequal
    return row


def _silhouette(clustering: pd.DataFrame, theirs: Result) -> dict[str, Any]:
    """What the table of clustering says of a baseline beside its default."""
    row = clustering[clustering["model"] == theirs.label].iloc[0]
    if pd.isna(row["verdict"]):  # trained with other losses, so they are not compared
        return {}
    found = {"n_seeds": row["n_seeds"], "ours": row["default"], "theirs": row["model"]}
    found |= {"ours_value": row["silhouette"] - row["difference"], "theirs_value": row["silhouette"]}
    return found | dict(zip(VALUES, (-row["difference"], -row["high"], -row["low"]), strict=True))
