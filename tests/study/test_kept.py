"""The committed report against the kept predictions it is made from, read by other code."""

import subprocess
from functools import cache

import numpy as np
import pandas as pd
import pytest

from freedoom_sounds.generate import VERSION
from mmtlib.config import ROOT, load
from mmtlib.training.experiment import is_kept, kept_runs, planned, run_of
from mmtlib.training.experiment import kept as kept_at

PARAMS = load("params/freedoom.yaml")
TABLES = ROOT / "reports/freedoom/tables"
KEPT = ROOT / PARAMS.training.kept
DATA = kept_runs(KEPT)[0].about["parts"]["data"]


@pytest.fixture(scope="module")
def kept():
    """(name, seed) -> file."""
    return {(name, seed): kept_at(KEPT, parts).predictions for name, (seed, _), parts in planned(PARAMS, DATA)}


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
        for seed, _ in PARAMS.trials(name):
            wanted = ["split", "modality", "clip_id", "logits", "label_index"]
            table = pd.read_parquet(kept[name, seed], columns=wanted)
            table = table[(table["split"] == "test") & (table["modality"] == modality)].sort_values("clip_id")
            columns[seed] = 100.0 * (np.stack(table["logits"]).argmax(axis=1) == table["label_index"]).to_numpy()
        return pd.DataFrame(columns)

    return read


def interval(difference):
    """A slow bootstrap of clips and seeds, with other random numbers."""
    rng, (clips, seeds) = np.random.default_rng(3), difference.shape
    draws = [difference[rng.integers(0, clips, clips)][:, rng.integers(0, seeds, seeds)] for _ in range(2000)]
    return np.percentile([draw.mean() for draw in draws], [2.5, 97.5])


STUDIES = {path.stem: load(str(path)) for path in sorted(ROOT.glob("params/*.yaml"))}
WITH_RUNS = [name for name, own in STUDIES.items() if own.training.kept and (ROOT / own.training.kept).is_dir()]


@pytest.mark.parametrize("study", WITH_RUNS)
def test_each_run_of_a_study_is_kept_under_todays_key_and_nothing_else(study):
    """A miss would train for hours; `mmt runs --params params/freedoom.yaml` says what differs."""
    params = STUDIES[study]
    folder = ROOT / params.training.kept
    data = kept_runs(folder)[0].about["parts"]["data"]
    wanted = [(f"{name} {trial}", kept_at(folder, parts)) for name, trial, parts in planned(params, data)]
    assert [name for name, run in wanted if not is_kept(run)] == []
    assert {run for _, run in wanted} == set(kept_runs(folder))
    assert len(list(folder.iterdir())) == 2 * len(wanted)


def test_a_kept_run_is_of_the_run_and_the_data_that_the_profile_asks_for():
    for name, (seed, _), parts in planned(PARAMS, DATA):
        about = kept_at(KEPT, parts).about["parts"]
        assert (about["seed"], run_of(about).model) == (seed, PARAMS.runs[name].model)
    read = PARAMS.features.model_dump(exclude={"cache", "workers", "clips", "crops", "snr", "region", "motion"})
    assert DATA["settings"] == read
    assert DATA["source"] == {
        "version": VERSION,
        "seed": PARAMS.download.seed,
        "clips_per_class": PARAMS.download.clips_per_class.model_dump(),
    }


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
    "MAT's pooling beats time only": ("pretrain_mat", "mat_time", "audio"),
    "MAT's pooling beats none": ("pretrain_mat", "mat_none", "audio"),
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


def test_the_scores_beside_the_study_are_those_of_its_report(headline):
    lines = (ROOT / "params/freedoom.yaml").read_text().splitlines()
    (line,) = [text for text in lines if text.startswith("# Score: ")]
    top1 = headline[~headline["withheld"]].set_index("model")["top1"]
    names = {"MMT": "mmt_t", "MBT": "mbt_t", "MAT": "mat_t", "AST": "ast_t"}
    scores = ", ".join(f"{name} {top1[model]:.1f}" for name, model in names.items())
    assert line == f"# Score: {scores} (test top-1, %)."
