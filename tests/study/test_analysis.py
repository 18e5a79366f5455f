"""Calibration, retrieval and clustering, against cases that are counted by hand or by scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from made_up_workspace import made_up_params, made_up_workspace
from matplotlib.colors import to_hex
from matplotlib.text import Text
from sklearn.metrics import log_loss

from study.figures.analysis import calibration
from study.figures.style import COLOURS, png
from study.tables import analysis
from study.tables.clips import load_study


@pytest.fixture(scope="module")
def params():
    return made_up_params([0, 1])


@pytest.fixture(scope="module")
def study(tmp_path_factory, params):
    return load_study(made_up_workspace(tmp_path_factory.mktemp("workspace"), params), params)


def test_headliners_are_ours_and_the_baselines_sound_first(study):
    names = [result.label for result in study.headliners]
    assert names == ["mat_t", "ast_t", "mvitv2_t", "mmt_t", "mbt_t"]


def test_confidences_agree_with_scikit_learn(study):
    result = study.results[0]
    found = study.on_test(result)
    assert found["seed"].value_counts().to_dict() == {0: 40, 1: 40}
    table = result.predictions[0].query("split == 'test'")
    logits, labels = np.stack(table["logits"]).astype(np.float64), table["label_index"].to_numpy()
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    first = found[found["seed"] == 0]
    assert first["nll"].mean() == pytest.approx(log_loss(labels, chances))
    assert first["brier"].to_numpy() == pytest.approx(((chances - np.eye(4)[labels]) ** 2).sum(1))
    assert first["confidence"].to_numpy() == pytest.approx(chances.max(1))
    assert first["first"].sum() == 24


CLIPS = pd.DataFrame({"seed": 0, "confidence": [0.91, 0.92, 0.65, 0.61, 1.0], "first": [True, False, True, True, True]})


def test_the_calibration_error_is_counted_by_hand():
    bins = analysis.reliability(CLIPS)  # 0.91 and 0.92 share a bin, 0.61 and 0.65 too; 1 is in the last
    assert bins["n"].tolist() == [2, 2, 1]
    assert bins["first"].tolist() == [1.0, 0.5, 1.0]
    wanted = 100 * (2 * abs(1 - 0.63) + 2 * abs(0.5 - 0.915) + 0) / 5
    assert analysis.calibration_error(CLIPS) == pytest.approx(wanted)


def test_selective_accuracy_is_over_the_surest_clips_of_each_seed():
    both = pd.concat([CLIPS, CLIPS.assign(seed=1, first=True)])
    found = analysis.selective(both)
    assert found.index.tolist() == list(range(10, 101, 10))
    assert found[20] == 100  # the surest clip
    assert found[40] == pytest.approx((50 + 100) / 2)
    assert found[100] == pytest.approx((80 + 100) / 2)


def test_the_calibration_table_has_means_and_deviations_over_the_seeds(study):
    table = analysis.calibration_table(study).set_index("model")
    assert table.loc["mat_t", "top1"] == pytest.approx(100 * (24 + 23) / 80)
    assert table.loc["mat_t", "top1_std"] == pytest.approx(2.5 / np.sqrt(2))
    assert (table["n"] == 40).all()
    assert not table.loc["ast_t", "ours"]


def test_recall_counts_the_rank_of_the_best_wanted_clip():
    queries = np.eye(12)
    candidates = np.roll(np.eye(12), 1, axis=0)  # the own clip is at right angles, as are all but one
    own = np.arange(12)
    assert analysis.recalls(queries, queries, own) == [100, 100, 100]
    assert analysis.recalls(queries, candidates, own) == [0, 0, 0]  # those just as near count as nearer
    assert analysis.recalls(queries, candidates, own // 2) == [50, 50, 50]  # every other one finds its class first


def test_chance_is_what_a_random_order_reaches():
    names = np.array([0, 0, 0, 1, 1, 2] * 3)
    rng = np.random.default_rng(0)
    trials = []
    for _ in range(400):
        order = np.array([rng.permutation(len(names)) for _ in names])
        right = names[order] == names[:, None]
        trials.append([100 * right[:, :k].any(axis=1).mean() for k in analysis.NEAREST])
    assert analysis.chance(names) == pytest.approx(np.mean(trials, axis=0), abs=1.5)
    assert analysis.chance(np.arange(3)) == pytest.approx([100 / 3, 100, 100])  # of three, five are all


def test_retrieval_reads_all_models_of_both_in_both_directions(study):
    table = analysis.retrieval_table(study)
    assert table["row"].unique().tolist() == ["train_mmt", "mbt_t", "mmt_ce", "mmt_late"]
    one = table[table["row"] == "train_mmt"]
    assert list(zip(one["query"], one["wanted"], strict=True)) == [
        (query, wanted) for query in ("audio", "video") for wanted in ("own clip", "class")
    ]
    assert one["chance_1"].tolist() == pytest.approx([2.5, 25, 2.5, 25])
    assert (table["recall_10"] >= table["recall_1"]).all()
    assert (table["n"] == 40).all()


def test_separation_knows_tight_classes_and_copes_with_few_clips():
    labels = np.repeat([0, 1], 10)
    vectors = np.eye(2)[labels] + np.random.default_rng(0).normal(0, 0.01, (20, 2))
    columns = {"label": labels, "embedding": list(vectors), "fold": None, "clip": [f"c{i}" for i in range(20)]}
    table = pd.DataFrame(columns)
    measures, clips = analysis.separation(table)
    assert measures["nmi"] == measures["ari"] == pytest.approx(1)
    assert clips.mean() == measures["silhouette"] > 0.99
    assert analysis.separation(table.iloc[[0, 10]])[0]["silhouette"] == 0  # no class has two clips
    one, two = (analysis.separation(table.assign(fold=fold))[1] for fold in ([1.0] * 20, [1.0, 2.0] * 10))
    assert one.index.tolist() == [(1.0, clip) for clip in table["clip"]]  # of one fold, too, as comparisons need it
    assert sorted(two.index) == sorted(zip([1.0, 2.0] * 10, table["clip"], strict=True))


def test_clustering_compares_rows_of_the_same_losses_only(study):
    table = analysis.clustering_table(study).set_index("model")
    assert table.loc["ast_t", "default"] == "mat_t"
    difference = table.loc["ast_t", "silhouette"] - table.loc["mat_t", "silhouette"]
    assert table.loc["ast_t", "difference"] == pytest.approx(difference)
    assert table.loc["ast_t", "low"] <= difference <= table.loc["ast_t", "high"]
    assert table.loc[["mat_t", "mbt_t"], "default"].isna().all()  # MBT was trained without the contrastive losses


def test_the_calibration_figure_shows_each_model_in_the_colour_of_what_it_reads(study):
    table = analysis.calibration_table(study)
    clips = [study.on_test(result) for result in study.headliners]
    bins, surest = map(analysis.reliability, clips), map(analysis.selective, clips)
    figure = calibration(table, list(bins), list(surest))
    assert [len(axes.lines) for axes in figure.axes] == [3, 2, 3, 2, 1, 2]  # above with the diagonal
    assert to_hex(figure.axes[3].lines[-1].get_color()) == COLOURS["audio"]  # ours lies on top
    assert png(figure)
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 9


def test_the_calibration_figure_tells_peers_apart_and_leaves_out_bins_of_few_clips():
    table = pd.DataFrame(
        {"model": ["mat_t", "ast_t", "vit_audio_t"], "modality": "audio", "ours": [True, False, False]}
    )
    bins = pd.DataFrame({"confidence": [0.1, 0.5, 0.9], "first": [1.0, 0.5, 0.9], "n": [4, 30, 60]})
    axes = calibration(table, 3 * [bins], 3 * [pd.Series({50: 90.0, 100: 60.0})]).axes[0]
    assert len({line.get_linestyle() for line in axes.lines[1:]}) == 3
    assert [line.get_xdata().tolist() for line in axes.lines[1:]] == 3 * [[50.0, 90.0]]
