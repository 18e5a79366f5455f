"""The claims over all committed studies, and the results of the top-level README."""

import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from mmtlib.config import ROOT
from study.index import BEGIN, END, GENERATED, POOLED, PUBLIC, committed, ledger, measured, write_index


@pytest.fixture
def root(tmp_path):
    """The committed reports' tables and README, and a second study that asks fewer claims."""
    for study in committed(ROOT / "reports"):
        shutil.copytree(ROOT / "reports" / study / "tables", tmp_path / "reports" / study / "tables")
    shutil.copytree(ROOT / "reports/efficiency", tmp_path / "reports/efficiency")
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def add_study(root, name: str) -> pd.DataFrame:
    claims = pd.read_csv(root / "reports/freedoom/tables/claims.csv").iloc[:2]
    claims = claims.assign(measured=-1.25, ci_low=-3.0, ci_high=-0.5, verdict="does not hold", n_seeds=[5, 0])
    folder = root / "reports" / name / "tables"
    folder.mkdir(parents=True)
    claims.to_csv(folder / "claims.csv", index=False)
    return claims


def test_what_is_committed_follows_from_the_studies_tables(root):
    write_index(root)
    assert (root / "reports/README.md").read_text() == (ROOT / "reports/README.md").read_text()
    assert (root / "README.md").read_text() == (ROOT / "README.md").read_text()
    assert (root / "reports/studies.png").read_bytes() == (ROOT / "reports/studies.png").read_bytes()


def test_a_column_a_study_and_a_cell_for_each_claim_it_asks(root):
    add_study(root, "vggsound")
    table = ledger(root / "reports").set_index("claim")
    assert set(table) == {"paper", "vggsound", POOLED, *committed(root / "reports")}
    first, second = "MAT beats AST", "MAT beats AST at equal parameters"
    assert table.loc[first, "vggsound"] == "-1.2 [-3.0, -0.5] does not hold, 5 seeds"
    assert table.loc[second, "vggsound"] == "not run"
    assert set(table["vggsound"][2:]) == {"not asked"}
    assert "holds, 3 seeds" in table.loc[first, "freedoom"]
    assert table.loc[first, "grid_0db"].endswith("holds (baseline below 1 %), 1 seed")
    found = measured(root / "reports").query("id == 'mat_ast_operations'").set_index("study")
    each, pooled = found.drop([POOLED, *GENERATED]), found.loc[POOLED]
    each = each[(each["unit"] == "points of test top-1") & (each["theirs_value"] >= 1)]  # not those of mAP, nor GRID
    assert "grid_0db" not in each.index
    halves = (each["ci_high"] - each["ci_low"]) / 2
    assert pooled["measured"] == pytest.approx(each["measured"].mean())
    assert pooled["ci_high"] - pooled["measured"] == pytest.approx((halves**2).sum() ** 0.5 / len(each))
    assert table.loc[first, POOLED].endswith(f", {len(each)} sets")


def test_studies_of_one_set_are_pooled_as_one(root):
    def pooled():
        return measured(root / "reports").query("id == 'mat_ast_operations' and study == @POOLED").squeeze()

    file = root / "reports/grid_0db/tables/claims.csv"
    own = pd.read_csv(file).set_index("id", drop=False)
    own.loc["mat_ast_operations", "theirs_value"] = 20.0  # its AST has not learnt the task, so that it does not count
    own.to_csv(file, index=False)
    before = pooled()
    added = add_study(root, "grid").set_index("id")["measured"]["mat_ast_operations"]
    grid = own.loc["mat_ast_operations", "measured"]
    after = pooled()
    assert after["n_studies"] == before["n_studies"]
    moved = ((grid + added) / 2 - grid) / before["n_studies"]
    assert after["measured"] == pytest.approx(before["measured"] + moved)


def test_costs_that_are_measured_once_count_in_no_study(root):
    costs = [
        "MAT needs fewer operations than AST",
        "MAT needs fewer parameters than AST",
        "MAT needs less memory than AST",
    ]
    assert not set(costs) & set(ledger(root / "reports")["claim"])
    write_index(root)
    text, results = (root / "reports/README.md").read_text(), (root / "README.md").read_text()
    for claim in costs:
        assert text.count(claim) == 1
    tested = pd.read_csv(root / "reports/esc10/tables/claims.csv").query("n_seeds > 0 and claim not in @costs")
    line = next(line for line in results.splitlines() if line.startswith("- [esc10]"))
    assert f"claims tested {len(tested)}: holds {(tested.verdict == 'holds').sum()}, does not hold" in line


@pytest.mark.parametrize("name", ["quick", "smoke", "mine"])
def test_studies_that_everyone_runs_and_those_of_ones_own_are_left_out(root, name):
    add_study(root, name)
    assert committed(root / "reports") == committed(ROOT / "reports")


def test_every_other_study_of_the_repository_is_known():
    tracked = subprocess.run(["git", "ls-files", "params"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {Path(name).stem for name in tracked.split()} - {"smoke"} == {*PUBLIC, *GENERATED}


def test_a_readme_without_the_two_lines_is_left_as_it_is(root):
    for text in ("no lines", f"{END} {BEGIN}"):
        (root / "README.md").write_text(text)
        write_index(root)
        assert (root / "README.md").read_text() == text
