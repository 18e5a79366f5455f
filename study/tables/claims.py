"""The claims of claims.yaml and their table: a row for each, from runs or from `make bench`, whatever comes out."""

from functools import cache
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import Field, JsonValue

from mmtlib.config import Section, check
from mmtlib.evaluation.stats import verdict
from study.tables.clips import Study
from study.tables.results import QUESTIONS, Result

COLUMNS = ["study", "claim", "paper", "measured", "ci_low", "ci_high", "n_seeds", "verdict", "unit", "holds_above"]
COLUMNS += ["modality", "measure", "ours", "ours_value", "theirs", "theirs_value", "id"]
VALUES = COLUMNS[3:6]
SAME = 0.15  # by what share two models' operations may differ and still count as equal


class Selection(Section):
    """A run of the report: the first that is all of what is said here."""

    name: str | None = None
    groups: list[str | None] | None = Field(default=None, description="null among them: a stage's run")
    model: str = Field(default="", description="how the model's name begins")
    objective: str | None = None
    overrides: dict[str, JsonValue] = Field(default={}, description="of a list: what each of its values is")

    def fits(self, result: Result) -> bool:
        run = result.trained
        named = self.name in (None, result.name) and self.objective in (None, result.objective)
        placed = self.groups is None or result.group in self.groups
        built = all(_is_throughout(run.overrides.get(key), value) for key, value in self.overrides.items())
        return named and placed and built and run.model.startswith(self.model)


class Claim(Section):
    """A claim; the fields are explained in claims.yaml."""

    claim: str
    unequal: str | None = None
    paper: dict[str, float] | list[float] = Field(default=[])
    kind: Literal["top1", "operations", "bench", "silhouette"]
    modality: Literal["audio", "video", "av"]
    ours: Selection
    theirs: list[Selection]
    margin: float = 0.0
    measure: str = ""

    @property
    def stated(self) -> str:
        """What the paper states, in words."""
        if isinstance(self.paper, dict):
            return ", ".join(f"{name} {points:+g}" for name, points in self.paper.items())
        return " or ".join(f"{percent:g}" for percent in self.paper)


@cache
def claims() -> dict[str, Claim]:
    """The claims by id. Raises ParamsError where claims.yaml is wrong."""
    return {name: check(Claim, value, f"claims.yaml: {name}") for name, value in QUESTIONS["claims"].items()}


def ledger(rows: dict[str, dict[str, Any]], study: str = "") -> pd.DataFrame:
    """The rows of claims.csv, by the ids of the claims.

    `measured` is ours less theirs in `unit`, with its interval; the claim holds if all of that lies above
    `holds_above`. `ours_value` and `theirs_value` are what was compared, in `measure`; `modality` is what ours reads.
    A claim that nothing tests is undecided, with n_seeds 0 and no figures.
    """
    table = []
    for name, row in rows.items():
        claim = claims()[name]
        about = {"study": study, "id": name, "claim": claim.claim, "paper": claim.stated, "modality": claim.modality}
        row = about | {"n_seeds": 0, "holds_above": 0.0 - claim.margin} | row
        low, high = (row.get(bound, float("nan")) - row["holds_above"] for bound in ("ci_low", "ci_high"))
        table.append(row | {"verdict": verdict(low, high)})
    return pd.DataFrame(table, index=list(rows), columns=COLUMNS)


def of_runs(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of claims.csv but for what `make bench` measures: once, on models of another size than a study's."""
    return table[[claims()[name].kind != "bench" for name in table["id"]]]


def saved(measure: str, n_seeds: int, ours: tuple[str, float], theirs: tuple[str, float]) -> dict[str, Any]:
    """How much less ours takes than theirs, percent, each a name and a value; a count, so its interval is itself."""
    row = {"measure": measure, "unit": "% less", "n_seeds": n_seeds}
    if n_seeds:
        row |= dict.fromkeys(VALUES, 100 * (1 - ours[1] / theirs[1]))
        row |= {"ours": ours[0], "ours_value": ours[1], "theirs": theirs[0], "theirs_value": theirs[1]}
    return row


def read_efficiency(root: Path) -> pd.DataFrame:
    """What `make bench` measured, efficiency.csv; nothing where it has not run."""
    path = root / "reports/efficiency/efficiency.csv"
    return pd.read_csv(path) if path.is_file() else pd.DataFrame()


def bench_row(claim: Claim, table: pd.DataFrame) -> dict[str, Any]:
    """A row from what was measured, once, in fp32."""
    ours, theirs, columns = claim.ours.model, claim.theirs[0].model, [claim.measure, f"peer_{claim.measure}"]
    table = table.reindex(columns=["model", "peer", "precision", *columns])
    values = table.query("model == @ours and peer == @theirs and precision == 'fp32'")[columns].astype(float).mean()
    return saved(claim.measure, int(values.notna().all()), (ours, values.iloc[0]), (theirs, values.iloc[1]))


def efficiency_claims(table: pd.DataFrame) -> pd.DataFrame:
    """What the paper states of MAT-B beside AST-B, what efficiency.csv has of it (% less), and what follows."""
    return ledger({name: bench_row(claim, table) for name, claim in claims().items() if claim.kind == "bench"})


def claims_table(study: Study, costs: pd.DataFrame, clustering: pd.DataFrame, efficiency: pd.DataFrame) -> pd.DataFrame:
    """The rows of claims.csv by id (see `ledger`), from the runs, costs_table, clustering_table, read_efficiency."""
    mmacs, rows = costs.set_index("model")["mmacs"], {}
    for name, claim in claims().items():
        ours, *others = (select(study.reported, wanted) for wanted in (claim.ours, *claim.theirs))
        complete = ours is not None and None not in others
        if claim.kind == "bench":
            rows[name] = bench_row(claim, efficiency)
        elif claim.kind == "top1":
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
    return next(filter(wanted.fits, results), None)


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
    both = first.index.intersection(second.index), seeds
    row |= {"ours_value": first.loc[both].mean(axis=None), "theirs_value": second.loc[both].mean(axis=None)}
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
