"""The committed report against the kept predictions it is made from, read by other code."""

import subprocess

import numpy as np
import pandas as pd
import pytest

from mmtlib.evaluation import read_about
from mmtlib.params import load
from mmtlib.paths import ROOT
from mmtlib.trainer import plain

PARAMS = load("params/multiseed.yaml")
RUNS = {name: getattr(PARAMS, name) for name in ("pretrain_mat", "pretrain_mvit", "train_mmt")} | PARAMS.ablations
TABLES = ROOT / "reports/tables"


@pytest.fixture(scope="module")
def kept():
    """(run as JSON, seed) -> file."""
    folder = ROOT / PARAMS.training.kept
    return {(str(about["run"]), about["seed"]): path for path, about in ((p, read_about(p)) for p in folder.iterdir())}


@pytest.fixture(scope="module")
def headline():
    git = ["git", "-C", str(ROOT), "diff", "--quiet", "HEAD", "--", str(TABLES)]
    if subprocess.run(git, capture_output=True).returncode:
        pytest.skip("reports/ does not hold the committed report (or this is no Git checkout)")
    return pd.read_csv(TABLES / "headline.csv")


def right(kept, name, modality):
    """100 where a test clip is recognised, 0 where not: clips by seeds, straight from the files."""
    columns = []
    for seed in PARAMS.seeds_of(name):
        table = pd.read_parquet(kept[str(plain(RUNS[name])), seed])
        table = table[(table["split"] == "test") & (table["modality"] == modality)].sort_values("clip_id")
        columns.append(100.0 * (np.stack(table["logits"]).argmax(axis=1) == table["label_index"]).to_numpy())
    return np.array(columns).T


def test_each_run_of_the_profile_is_kept_and_nothing_else(kept):
    wanted = {(str(plain(run)), seed) for name, run in RUNS.items() for seed in PARAMS.seeds_of(name)}
    assert set(kept) == wanted


def test_the_headline_follows_from_what_is_kept(kept, headline):
    names = {"mat_t": "pretrain_mat", "mvitv2_t": "pretrain_mvit", "mmt_t": "train_mmt"}
    assert len(headline) == 9
    for row in headline.itertuples():
        matrix = right(kept, names.get(row.model, row.model), row.modality)
        assert row.top1 == pytest.approx(matrix.mean(), abs=1e-3)
        assert row.std == pytest.approx(matrix.mean(axis=0).std(ddof=1), abs=1e-3)


@pytest.mark.usefixtures("headline")
def test_the_claims_follow_from_what_is_kept(kept):
    claims = pd.read_csv(TABLES / "claims.csv").set_index("claim")
    ours, ast, mbt = right(kept, "pretrain_mat", "audio"), right(kept, "ast_t", "audio"), right(kept, "mbt_t", "av")
    mmt = right(kept, "train_mmt", "av")
    pairs = {"MAT beats AST at equal operations": (ours, ast), "MMT beats MBT at equal operations": (mmt, mbt)}
    pairs["AVC helps"] = right(kept, "mmt_ce_avc", "av"), right(kept, "mmt_ce", "av")
    pairs["IMC helps"] = right(kept, "mmt_ce_imc", "av"), right(kept, "mmt_ce", "av")
    pairs["Pooling in stages beats time only"] = ours, right(kept, "mat_time", "audio")
    rng = np.random.default_rng(3)
    for claim, (first, second) in pairs.items():
        row, difference = claims.loc[claim], first - second
        assert row["measured"] == pytest.approx(difference.mean(), abs=1e-3)
        clips, seeds = difference.shape
        draws = [difference[rng.integers(0, clips, clips)][:, rng.integers(0, seeds, seeds)] for _ in range(2000)]
        low, high = np.percentile([draw.mean() for draw in draws], [2.5, 97.5])
        assert [row["ci_low"], row["ci_high"]] == pytest.approx([low, high], abs=0.1 * (high - low) + 0.2)
        told = "holds" if row["ci_low"] > 0 else "does not hold" if row["ci_high"] < 0 else "undecided"
        assert (row["verdict"], row["n_seeds"]) == (told, seeds)
