"""What a ledger of claims holds, and its rows on what MAT costs, which `make bench` measures."""

from pathlib import Path
from typing import Any

import pandas as pd

from mmtlib.config import ROOT

# What the paper states. Top-1: points on Kinetics-Sounds, EPIC-KITCHENS-100 and VGGSound, by the abstracts of arXiv
# 2303.10757 and 2401.04023 (against MBT without the second); the better single modality: on VGGSound's public board,
# 66.2 with both and 57.0 with sound. Costs: percent less of MAT-B than of AST-B, where the abstracts differ: operations
# 3 (2401.04023) or 5 times (2303.10757), parameters 42 (2303.10757), memory 9.8 (2401.04023).
PAPER = {
    "MAT beats AST": "KS +22.2, EPIC +4.4, VGG +4.7",
    "MMT beats MBT": "KS +7.3, VGG +2.1",
    "MMT beats the better single modality": "VGG +9.2",
    "MAT needs fewer operations than AST": "3 or 80",
    "MAT needs fewer parameters than AST": "42",
    "MAT needs less memory than AST": "9.8",
}

COLUMNS = ["claim", "paper", "measured", "ci_low", "ci_high", "n_seeds", "verdict", "unit", "holds_above", "modality"]
COLUMNS += ["measure", "ours", "ours_value", "theirs", "theirs_value"]
VALUES, SIDES = COLUMNS[2:5], COLUMNS[-4:]
_SAVED = {"fewer operations": "gmacs", "fewer parameters": "params_m", "less memory": "peak_memory_gib"}


def verdict(low: float, high: float) -> str:
    """What the interval of an advantage says of the claim that there is one."""
    return "holds" if low > 0 else "does not hold" if high < 0 else "undecided"


def saved(
    claim: str, modality: str, measure: str, n_seeds: int, ours: tuple[str, float], theirs: tuple[str, float]
) -> dict[str, Any]:
    """How much less ours takes than theirs, percent, each a name and a value; a count, so its interval is itself."""
    row = {"claim": claim, "modality": modality, "measure": measure, "n_seeds": n_seeds, "unit": "% less"}
    row |= dict.fromkeys(VALUES, 100 * (1 - ours[1] / theirs[1]))
    return row | dict(zip(SIDES, (*ours, *theirs), strict=True))


def read_efficiency(workspace: Path) -> pd.DataFrame:
    """What `make bench` measured of MAT-B: efficiency.csv of the workspace, else of the repository, else nothing."""
    paths = [root / "reports/tables/efficiency.csv" for root in (workspace, ROOT)]
    found = [pd.read_csv(path) for path in paths if path.is_file()]
    return next((table for table in found if "mat_b" in table["model"].tolist()), pd.DataFrame())


def efficiency_claims(table: pd.DataFrame) -> pd.DataFrame:
    """What a table like efficiency.csv says of MAT-B beside AST-B in fp32, as rows of claims.csv."""
    columns = [f"{peer}{measure}" for measure in _SAVED.values() for peer in ("", "peer_")]
    table = table.reindex(columns=["model", "peer", "precision", *columns])
    row = table.query("model == 'mat_b' and peer == 'ast_b' and precision == 'fp32'")[columns].astype(float).mean()
    rows = []
    for less, measure in _SAVED.items():
        sides = ("mat_b", row[measure]), ("ast_b", row[f"peer_{measure}"])
        known = int(row[[measure, f"peer_{measure}"]].notna().all())  # one measurement
        rows.append(saved(f"MAT needs {less} than AST", "audio", measure, known, *sides))
    return ledger(rows)


def ledger(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows).reindex(columns=COLUMNS).fillna({"holds_above": 0.0})
    table["paper"] = [PAPER.get(claim.split(" at equal")[0], "") for claim in table["claim"]]
    bounds = table[["ci_low", "ci_high", "holds_above"]].astype(float).to_numpy()
    return table.assign(verdict=[verdict(low - above, high - above) for low, high, above in bounds])
