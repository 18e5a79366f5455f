"""The ledger of claims: each row against other code that reads the stored predictions itself."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from made_up_workspace import ALL_RIGHT, ALL_ROWS, ROWS, made_up_params, made_up_workspace
from matplotlib.colors import to_hex
from matplotlib.text import Text

from mmtlib.config import ParamsError, Report, check
from study.figures import results as figures
from study.figures.style import COLOURS, png
from study.report import build_report, write_report
from study.tables.claims import Claim, Selection, claims_table, efficiency_claims, read_efficiency, select
from study.tables.claims import claims as stated
from study.tables.clips import load_study

MEASURED = {"model": "mat_b", "peer": "ast_b", "precision": "fp32", "gmacs": 5.0, "peer_gmacs": 100.0}
MEASURED |= {"params_m": 58.0, "peer_params_m": 100.0, "peak_memory_gib": 3.0, "peer_peak_memory_gib": 2.0}
SEEDS = [0, 1, 2]


@pytest.fixture(scope="module")
def params():
    params = made_up_params(SEEDS, ALL_ROWS)
    return params.model_copy(update={"report": Report(bootstrap=5000, confidence=0.95)})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, params):
    folders = made_up_workspace(tmp_path_factory.mktemp("workspace"), params, ALL_RIGHT)
    measured = folders.root / "reports/efficiency/efficiency.csv"
    measured.parent.mkdir(parents=True)
    pd.DataFrame([MEASURED]).to_csv(measured, index=False)
    return folders


@pytest.fixture(scope="module")
def written(workspace, params):
    return write_report(workspace, params)


@pytest.fixture(scope="module")
def claims(written):
    return pd.read_csv(written["tables"]["claims"]).set_index("claim")


# What each run is called in the parameters and what it reads.
RUNS = {
    "mat_t": ("pretrain_mat", "audio"),
    "mvitv2_t": ("pretrain_mvit", "video"),
    "mmt_t": ("train_mmt", "av"),
    **{row: (row, "audio" if row.startswith(("mat", "ast")) else "av") for row in ALL_ROWS if row != "mmt_half"},
}
PAIRS = {
    "MAT beats AST at equal operations": ("mat_t", "ast_t"),
    "MAT beats AST at equal parameters": ("mat_t", "ast_wide"),
    "MMT beats MBT at equal operations": ("mmt_t", "mbt_t"),
    "MMT beats the better single modality": ("mmt_t", "mat_t"),  # 24 clips of sound, 20 of picture
    "AVC helps": ("mmt_ce_avc", "mmt_ce"),
    "IMC helps": ("mmt_ce_imc", "mmt_ce"),
    "AVC and IMC help most together": ("mmt_t", "mmt_ce_avc"),  # of 34, 35 and 30
    "MAT's pooling beats time only": ("mat_t", "mat_time"),
    "Bottlenecks do no worse than full attention": ("mmt_t", "mmt_concat"),
}
NOT_RUN = [
    "MMT beats MBT at equal parameters",
    "MAT's pooling beats none",
    "Pooling time first beats both axes throughout",
]


def read(workspace, run, modality, seeds=SEEDS):
    """Right (100) or wrong (0), clips by seeds, straight from the files."""
    columns = []
    for seed in seeds:
        table = pd.read_parquet(workspace.predictions(run, seed))
        table = table[table["split"].eq("test") & table["modality"].eq(modality)].sort_values("clip_id")
        columns.append(100.0 * (np.stack(table["logits"]).argmax(axis=1) == table["label_index"]).to_numpy())
    return np.array(columns).T


def resampled(matrix, resamples=3000):
    """A slow bootstrap of clips and seeds, with other random numbers: the 2.5 and 97.5 % points."""
    rng = np.random.default_rng(5)
    means = []
    for _ in range(resamples):
        clips, seeds = (rng.choice(size, size) for size in matrix.shape)
        means.append(matrix[clips][:, seeds].mean())
    return np.percentile(means, [2.5, 97.5])


def agree(row, matrix, names=("low", "high")):
    width = row[names[1]] - row[names[0]]
    assert row[list(names)].to_numpy(float) == pytest.approx(resampled(matrix), abs=0.08 * width + 0.3)


@pytest.mark.parametrize("claim", PAIRS)
def test_each_claim_on_scores_is_rebuilt_from_the_raw_predictions(claim, claims, workspace):
    ours, theirs = (read(workspace, *RUNS[name]) for name in PAIRS[claim])
    row = claims.loc[claim]
    assert row["measured"] == pytest.approx((ours - theirs).mean(), abs=1e-4)
    assert [row["ours_value"], row["theirs_value"]] == pytest.approx([ours.mean(), theirs.mean()], abs=1e-4)
    agree(row, ours - theirs, ("ci_low", "ci_high"))
    bound = -1 if "no worse" in claim else 0
    wanted = "holds" if row["ci_low"] > bound else "does not hold" if row["ci_high"] < bound else "undecided"
    assert (row["verdict"], row["n_seeds"]) == (wanted, 3)


def test_the_headline_is_rebuilt_from_the_raw_predictions(written, workspace):
    table = pd.read_csv(written["tables"]["headline"])
    assert len(table) == 9
    for _, row in table.iterrows():
        matrix = read(workspace, RUNS[row["model"]][0], row["modality"])
        assert row["top1"] == pytest.approx(matrix.mean(), abs=1e-4)
        assert row["std"] == pytest.approx(matrix.mean(axis=0).std(ddof=1), abs=1e-4)
        agree(row, matrix)


def test_the_ablations_are_rebuilt_from_the_raw_predictions(written, workspace):
    table = pd.read_csv(written["tables"]["ablations"]).set_index("row")
    assert set(table.index) == set(RUNS) - {"mmt_t"}  # the row of group data has its own page
    for name, row in table.iterrows():
        ours, default = (read(workspace, *RUNS[run]) for run in (name, row["default"]))
        assert row["top1"] == pytest.approx(ours.mean(), abs=1e-4)
        assert row["difference"] == pytest.approx((ours - default).mean(), abs=1e-4)
        agree(row, ours - default)
        wanted = "holds" if row["high"] < 0 else "does not hold" if row["low"] > 0 else "undecided"
        assert (row["verdict"], row["n_seeds"]) == (wanted, 3)


def test_what_bears_on_the_gaps_is_named_in_the_report(written, workspace):
    ours, default = (read(workspace, *RUNS[run]).mean() for run in ("ast_wide", "mat_t"))
    wanted = f"beside the rows ast_wide {ours:.1f} % (mat_t {default:.1f} %, seeds: 3)."
    assert wanted in written["readme"].read_text().split("## Limits")[1]


def test_the_columns_that_others_read_come_first_and_no_claim_is_dropped(claims, written):
    first = ["study", "claim", "paper", "measured", "ci_low", "ci_high", "n_seeds", "verdict"]
    assert list(pd.read_csv(written["tables"]["claims"]))[:8] == first
    assert len(claims) == 18
    assert not claims["verdict"].isna().any()
    assert claims.loc["MAT beats AST at equal parameters", "paper"] == "KS +22.2, EPIC +4.4, VGG +4.7"


def test_what_was_not_run_is_undecided_and_listed(claims, written):
    missing = claims[claims["n_seeds"] == 0]
    assert list(missing.index) == NOT_RUN
    assert missing[["measured", "ci_low", "ci_high", "ours_value"]].isna().all(axis=None)
    assert (missing["verdict"] == "undecided").all()
    text = written["readme"].read_text().split("## Claims")[1].split("## Results")[0]
    assert "(3 of them without the runs that would test it)" in text
    assert all(f"| {claim}" in text for claim in NOT_RUN)
    assert "so that another may say otherwise: none." in text  # all of three seeds
    assert text.count("not run") == 3


def test_costs_are_counts_whose_interval_is_the_value(claims, written):
    costs = pd.read_csv(written["tables"]["costs"]).set_index("model")["mmacs"]
    row = claims.loc["Bottlenecks cost less than full attention"]
    assert row["measured"] == pytest.approx(100 * (1 - costs["mmt_t"] / costs["mmt_t-concat"]), abs=1e-3)
    measured = claims.loc[
        [f"MAT needs {what} than AST" for what in ("fewer operations", "fewer parameters", "less memory")]
    ]
    assert measured["measured"].tolist() == pytest.approx([95, 42, -50])
    assert measured["verdict"].tolist() == ["holds", "holds", "does not hold"]
    for _, one in [("", row), *measured.iterrows()]:
        assert one["ci_low"] == one["measured"] == one["ci_high"]


def test_costs_that_were_not_measured_are_undecided(tmp_path):
    found = efficiency_claims(read_efficiency(tmp_path))
    assert found["n_seeds"].tolist() == [0, 0, 0]
    assert found["measured"].isna().all()
    other = pd.DataFrame([{"model": "mat_t", "peer": "ast_t"}])  # as the study smoke leaves it
    assert (efficiency_claims(other)["verdict"] == "undecided").all()


def test_what_the_paper_states_is_data():
    assert stated()["mat_ast_operations"].stated == "KS +22.2, EPIC +4.4, VGG +4.7"
    assert stated()["fewer_operations"].stated == "3 or 80"
    assert stated()["avc"].stated == ""


def test_a_claim_that_names_an_unknown_kind_is_refused():
    good = stated()["avc"].model_dump()
    with pytest.raises(ParamsError, match="kind"):
        check(Claim, good | {"kind": "magic"}, "claims.yaml")


def test_models_of_unequal_operations_are_not_called_equal(workspace, params):
    study, table = load_study(workspace, params), None
    costs = pd.DataFrame({"model": [r.label for r in study.reported], "mmacs": 100.0}).drop_duplicates()
    clustering = pd.DataFrame({"model": ["ast_t"], "verdict": [None]})
    for mmacs, name in ((110.0, "MAT beats AST at equal operations"), (120.0, "MAT beats AST")):
        costs.loc[costs["model"] == "ast_t", "mmacs"] = mmacs
        table = claims_table(study, costs, clustering, pd.DataFrame())
        assert table.loc["mat_ast_operations", "claim"] == name
    assert table.loc["separation", "n_seeds"] == 0  # the baseline had other losses


def test_a_run_is_selected_by_all_that_is_said_of_it(workspace, params):
    results = load_study(workspace, params).reported
    pooled = Selection(groups=["pooling"], model="mat", overrides={"pooling": "time"})
    assert select(results, pooled).name == "mat_time"
    assert select(results, Selection(groups=["pooling"], overrides={"pooling": "none"})) is None
    for losses, name in (("ce", "mmt_ce"), ("ce+avc+imc", "train_mmt")):
        assert select(results, Selection(groups=[None, "objective"], model="mmt", objective=losses)).name == name


def test_pooling_time_first_is_tested_only_where_the_default_does(workspace, params):
    results, ours = load_study(workspace, params).reported, stated()["pooling_both"].ours
    for pooling, asked in ((["time", "time", "both"], True), (["both", "both", "both"], False)):
        run = results[0].trained.model_copy(update={"overrides": {"pooling": pooling}})
        assert (select([dataclasses.replace(results[0], trained=run)], ours) is not None) == asked


def test_features_are_compared_as_in_the_table_of_clustering(claims, written):
    table = pd.read_csv(written["tables"]["clustering"]).set_index("model")["silhouette"]
    row = claims.loc["MAT's features separate better than AST's"]
    assert row["measured"] == pytest.approx(table["mat_t"] - table["ast_t"], abs=2e-4)
    assert row["ci_low"] < row["measured"] < row["ci_high"]


def test_one_seed_is_said_to_draw_clips_alone(tmp_path):
    params = made_up_params([0], {"ast_t": ROWS["ast_t"]})
    text = build_report(made_up_workspace(tmp_path, params), params).text
    assert "resamples of the test clips" in text
    assert "With one seed, what another one might change is not in them." in text


def test_a_row_with_fewer_seeds_is_compared_over_those_that_both_have(tmp_path):
    params = made_up_params([0, 1, 2], {"ast_t": ROWS["ast_t"] | {"seeds": [1]}})
    report = build_report(made_up_workspace(tmp_path, params), params)
    row = report.tables["claims"].iloc[0]
    assert (row["n_seeds"], row["measured"]) == (1, pytest.approx(100 * (23 - 13) / 40))
    assert report.tables["ablations"].set_index("row").loc["ast_t", "n_seeds"] == 1


def test_the_figure_shows_every_tested_claim_in_the_colour_of_what_it_reads(written):
    table = pd.read_csv(written["tables"]["claims"], keep_default_na=False, na_values=[""])
    figure = figures.claims(table.fillna({"paper": ""}))
    names = [text.get_text() for axes in figure.axes for text in axes.get_yticklabels()]
    assert sorted(names) == sorted(table.loc[table["n_seeds"] > 0, "claim"])
    points = figure.axes[0].containers
    assert {to_hex(bars.lines[0].get_color()) for bars in points} == set(COLOURS.values())
    assert png(figure).startswith(b"\x89PNG")
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 9
