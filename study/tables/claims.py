"""The claims of the paper beside what the runs of a workspace say: a row for each claim, whatever comes out.

A claim that the runs cannot test is undecided, with n_seeds 0 and no figures.
"""

from typing import Any

import pandas as pd

from mmtlib.config import Params
from study.tables.ledger import SIDES, VALUES, efficiency_claims, ledger, saved
from study.tables.results import Result, clip_scores, defaults, paired_difference

MARGIN = 1.0
"""Points that a model may lose and still count as no worse (our reading)."""

SAME = 0.15
"""By what share two models' operations may differ and still count as equal."""


def claims_table(
    results: list[Result], costs: pd.DataFrame, clustering: pd.DataFrame, efficiency: pd.DataFrame, params: Params
) -> pd.DataFrame:
    """The rows of claims.csv, from the runs, costs_table, clustering_table and read_efficiency.

    `measured` is ours less theirs in `unit`, with its interval; the claim holds if all of that lies above
    `holds_above`. `ours_value` and `theirs_value` are what was compared, in `measure`; `modality` is what ours reads.
    """
    mat, mvit, mmt = defaults(results).values()
    losses = {r.objective: r for r in [*_rows(results, "objective", "av")[::-1], mmt]}
    pooled = {frozenset(r.trained.overrides.get("pooling", ())): r for r in _rows(results, "pooling", "audio")[::-1]}
    full = [r for r in _rows(results, "fusion", "av") if r.trained.overrides.get("fusion") == "concat"]
    concat = full[0] if full else None
    mmacs = costs.set_index("model")["mmacs"]
    compared: list[tuple[str, Result | None, list[Result | None]]] = []
    for claim, ours in (("MAT beats AST", mat), ("MMT beats MBT", mmt)):
        for equal, group in (("operations", "baseline"), ("parameters", "parameters")):
            peer = next(iter(_rows(results, group, ours.modality, claim[-3:].lower())), None)
            unequal = peer and group == "baseline" and abs(mmacs[peer.label] / mmacs[ours.label] - 1) > SAME
            compared.append((claim if unequal else f"{claim} at equal {equal}", ours, [peer]))
    compared += [
        ("MMT beats the better single modality", mmt, [mat, mvit]),
        ("AVC helps", losses.get("ce+avc"), [losses.get("ce")]),
        ("IMC helps", losses.get("ce+imc"), [losses.get("ce")]),
        ("AVC and IMC help most together", losses.get("ce+avc+imc"), [*map(losses.get, ("ce", "ce+avc", "ce+imc"))]),
        ("Pooling in stages beats time only", mat, [pooled.get(frozenset({"time"}))]),
        ("Pooling in stages beats none", mat, [pooled.get(frozenset({"none"}))]),
        ("Bottlenecks do no worse than full attention", mmt, [concat]),
    ]
    rows = [_on_scores(claim, ours, theirs, params) for claim, ours, theirs in compared]
    rows[-1]["holds_above"] = -MARGIN
    sides = [(r.label, mmacs.get(r.label, float("nan"))) if r else ("", float("nan")) for r in (mmt, concat)]
    rows.append(saved("Bottlenecks cost less than full attention", "av", "MMACs", rows[-1]["n_seeds"], *sides))
    rows += efficiency_claims(efficiency).to_dict("records")
    row = {"claim": "MAT's features separate better than AST's", "modality": "audio", "n_seeds": 0}
    row |= dict.fromkeys(("unit", "measure"), "silhouette")
    for peer in clustering[clustering["verdict"].notna() & (clustering["modality"] == "audio")].head(1).itertuples():
        row |= {"n_seeds": peer.n_seeds, "ours": peer.default, "theirs": peer.model}
        row |= {"ours_value": peer.silhouette - peer.difference, "theirs_value": peer.silhouette}
        row |= dict(zip(VALUES, (-peer.difference, -peer.high, -peer.low), strict=True))
    return ledger([*rows, row])


def _rows(results: list[Result], group: str, modality: str, model: str = "") -> list[Result]:
    return [r for r in results if (r.group, r.modality) == (group, modality) and r.trained.model.startswith(model)]


def _on_scores(claim: str, ours: Result | None, others: list[Result | None], params: Params) -> dict[str, Any]:
    """Ours against the one of the others with the highest mean, over the seeds that all have."""
    row = {"claim": claim, "modality": ours.modality if ours else "av", "n_seeds": 0}
    row |= {"unit": "points of test top-1", "measure": "% top-1"}
    if ours is None or not all(others):
        return row
    first, *rest = (clip_scores(r, r.modality) for r in (ours, *others))
    seeds = [seed for seed in first if all(seed in scores for scores in rest)]
    if not seeds:
        return row
    second, theirs = max(zip(rest, others, strict=True), key=lambda pair: pair[0][seeds].mean(axis=None))
    found = paired_difference(first[seeds], second[seeds], params.report)
    names = (f"{r.label} {r.objective}" if ours.label == theirs.label else r.label for r in (ours, theirs))
    row |= {"n_seeds": len(seeds)} | dict(zip((*VALUES, *SIDES[::2]), (*found, *names), strict=True))
    return row | {"ours_value": first[seeds].mean(axis=None), "theirs_value": second[seeds].mean(axis=None)}
