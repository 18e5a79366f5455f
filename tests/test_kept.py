"""The committed report against the kept predictions it is made from, read by other code."""

import subprocess
from functools import cache

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


@pytest.fixture(scope="module")
def right(kept):
    """100 where a test clip is recognised, 0 where not: clips by seeds, straight from the files of a run."""

    @cache
    def read(name, modality):
        columns = {}
        for seed in PARAMS.seeds_of(name):
            wanted = ["split", "modality", "clip_id", "logits", "label_index"]
            table = pd.read_parquet(kept[str(plain(RUNS[name])), seed], columns=wanted)
            table = table[(table["split"] == "test") & (table["modality"] == modality)].sort_values("clip_id")
            columns[seed] = 100.0 * (np.stack(table["logits"]).argmax(axis=1) == table["label_index"]).to_numpy()
        return pd.DataFrame(columns)

    return read


def interval(difference):
    """A slow bootstrap of clips and seeds, with other random numbers."""
    rng, (clips, seeds) = np.random.default_rng(3), difference.shape
    draws = [difference[rng.integers(0, clips, clips)][:, rng.integers(0, seeds, seeds)] for _ in range(2000)]
    return np.percentile([draw.mean() for draw in draws], [2.5, 97.5])


def test_each_run_of_the_profile_is_kept_and_nothing_else(kept):
    wanted = {(str(plain(run)), seed) for name, run in RUNS.items() for seed in PARAMS.seeds_of(name)}
    assert set(kept) == wanted


def test_the_headline_follows_from_what_is_kept(right, headline):
    names = {"mat_t": "pretrain_mat", "mvitv2_t": "pretrain_mvit", "mmt_t": "train_mmt"}
    assert len(headline) == 9
    for row in headline.itertuples():
        matrix = right(names.get(row.model, row.model), row.modality)
        assert row.top1 == pytest.approx(matrix.mean(axis=None), abs=1e-3)
        assert row.std == pytest.approx(matrix.mean().std(), abs=1e-3)


CLAIMS = {
    "MAT beats AST at equal operations": ("pretrain_mat", "ast_t", "audio"),
    "MAT beats AST at equal parameters": ("pretrain_mat", "ast_params", "audio"),
    "MMT beats MBT at equal operations": ("train_mmt", "mbt_t", "av"),
    "MMT beats MBT at equal parameters": ("train_mmt", "mbt_params", "av"),
    "AVC helps": ("mmt_ce_avc", "mmt_ce", "av"),
    "IMC helps": ("mmt_ce_imc", "mmt_ce", "av"),
    "Pooling in stages beats time only": ("pretrain_mat", "mat_time", "audio"),
    "Pooling in stages beats none": ("pretrain_mat", "mat_none", "audio"),
    "Bottlenecks do no worse than full attention": ("train_mmt", "mmt_concat", "av"),
}


@pytest.mark.usefixtures("headline")
@pytest.mark.parametrize("claim", CLAIMS)
def test_the_claims_follow_from_what_is_kept(claim, right):
    row = pd.read_csv(TABLES / "claims.csv").set_index("claim").loc[claim]
    first, second, modality = CLAIMS[claim]
    difference = (right(first, modality) - right(second, modality)).to_numpy()
    assert row["measured"] == pytest.approx(difference.mean(), abs=1e-3)
    width = row["ci_high"] - row["ci_low"]
    assert [row["ci_low"], row["ci_high"]] == pytest.approx(interval(difference), abs=0.1 * width + 0.2)
    low, high = row["ci_low"] - row["holds_above"], row["ci_high"] - row["holds_above"]
    told = "holds" if low > 0 else "does not hold" if high < 0 else "undecided"
    assert (row["verdict"], row["n_seeds"]) == (told, len(PARAMS.seeds))


@pytest.mark.usefixtures("headline")
def test_the_ablations_follow_from_what_is_kept(right):
    table = pd.read_csv(TABLES / "ablations.csv")
    default = {"audio": "pretrain_mat", "av": "train_mmt"}
    rows = table[table["group"] != "modality"].set_index("row")
    assert set(rows.index) == {name for name, row in PARAMS.ablations.items() if row.group not in ("data", "search")}
    for name, row in rows.iterrows():
        ours, theirs = right(name, row["modality"]), right(default[row["modality"]], row["modality"])
        shared = list(ours)
        assert row["n_seeds"] == len(shared)
        assert row["top1"] == pytest.approx(ours.mean(axis=None), abs=1e-3)
        assert row["default_top1"] == pytest.approx(theirs[shared].mean(axis=None), abs=1e-3)
        assert row["difference"] == pytest.approx(row["top1"] - row["default_top1"], abs=1e-3)
        width = row["high"] - row["low"]
        found = interval((ours[shared] - theirs[shared]).to_numpy())
        assert [row["low"], row["high"]] == pytest.approx(found, abs=0.1 * width + 0.2)
        told = "holds" if row["high"] < 0 else "does not hold" if row["low"] > 0 else "undecided"
        assert row["verdict"] == told
