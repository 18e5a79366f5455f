"""Pairs, their tables and the page, on made-up measurements and tiny models."""

import os
import re

import nbformat
import pandas as pd
import pytest
import stand_ins
import torch
from torch import nn
from torchvision.models.video import MViT, mvit_v2_s

from mmtlib import config as params
from mmtlib.config import ROOT, ParamsError, load
from study import bench as benchmark
from study.bench import BenchmarkError, Efficiency, Pair, build_pair, costs_table, efficiency_claims, pairs_table
from study.figures.style import png

CPU, META = torch.device("cpu"), torch.device("meta")
VIDEO = [16, 224, 224]
TINY = Pair(peer="ast_t", batch=2, seconds=0.5, rounds=1)
FOUND = {
    "train": {
        "gflops": 100.0,
        "times": [1.0, 2.0, 1.0],
        "peer_times": [3.0, 4.0, 4.0],
        "peak": 2**30,
        "peer_peak": 2**31,
    },
    "inference": {"gflops": 100.0, "times": [0.5], "peer_times": [0.25]},
}


def made_up(name, pair, mode, precision):
    return dict(FOUND[mode])


def test_the_peer_for_video_is_the_model_that_torchvision_publishes():
    pair = Pair(peer="torchvision", batch=1, video=VIDEO, rounds=1)
    peer = build_pair("mvitv2_s", pair, META)[1]
    assert isinstance(peer, MViT)
    assert {name: value.shape for name, value in peer.state_dict().items()} == {
        name: value.shape for name, value in mvit_v2_s().state_dict().items()
    }
    with pytest.raises(
        BenchmarkError, match=r"^efficiency\.pairs\.mvitv2_s: torchvision's model reads \[16, 224, 224\]"
    ):
        build_pair("mvitv2_s", pair.model_copy(update={"video": [8, 64, 64]}), META)


def test_the_peers_cost_what_is_published():
    """AST-base at 1024 x 128: 130.5 GMAC, 103.3 as counters say that miss fused attention; mvit_v2_s: 64.2."""
    sound = Pair(peer="ast_b", batch=8, seconds=10.26, rounds=1)
    picture = Pair(peer="torchvision", batch=1, video=VIDEO, rounds=1)
    table = costs_table([("mvitv2_s", picture), ("mat_b", sound)], META)
    assert list(table["input"]) == ["16 x 224 x 224", "1024 x 128"]
    assert list(table["peer_gmacs"]) == pytest.approx([64.2, 130.5], abs=0.05)
    assert table["peer_gmacs_no_attention"][1] == pytest.approx(103.3, abs=0.1)
    assert list(table["peer_params_m"]) == pytest.approx([34.5, 86.5], abs=0.05)


@pytest.mark.parametrize(
    ("name", "changed", "problem"),
    [
        ("mat_t", {"peer": "xyz"}, "xyz is not known"),
        ("xyz", {}, "xyz is not known"),
        ("mat_t", {"peer": "mvitv2_t"}, "mvitv2_t reads video, but was given audio"),
        ("mmt_t", {"peer": "mbt_t"}, "mmt_t reads av, but was given audio"),
        ("mat_t", {"peer": "torchvision"}, "torchvision reads video, but was given audio"),
        ("mvitv2_t", {"seconds": None, "video": VIDEO}, "ast_t reads audio, but was given video"),
    ],
)
def test_a_pair_that_does_not_fit_is_refused_by_name(name, changed, problem):
    with pytest.raises(BenchmarkError, match=rf"^efficiency\.pairs\.{name}: model {problem}; change peer"):
        build_pair(name, TINY.model_copy(update=changed), META)


@pytest.mark.parametrize("file", ["params.yaml", "params/smoke.yaml"])
def test_the_section_of_a_parameter_file_is_one_of_pairs(file):
    section = params.check(Efficiency, load(file).efficiency, file)
    for name, pair in section.pairs.items():
        build_pair(name, pair, META)


def test_a_pair_that_reads_nothing_is_refused():
    with pytest.raises(ParamsError, match="neither seconds nor video is given"):
        params.check(Pair, {"peer": "ast_t", "batch": 1, "rounds": 1}, "pair")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_run_in_their_precision_and_a_training_step_trains(precision):
    seen = []

    class Probe(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            seen.append((out.dtype, self.training, torch.is_grad_enabled()))
            return out

    model, inputs = Probe(6, 5), [torch.randn(4, 6)]
    before, optimizer = model.weight.clone(), benchmark.AdamW(model.parameters())
    benchmark.step_of(model, inputs, precision, optimizer)()
    assert not torch.equal(model.weight, before)
    assert model.weight.grad is None  # nothing is held between two steps
    after = model.weight.clone()
    benchmark.step_of(model, inputs, precision)()
    assert torch.equal(model.weight, after)
    dtype = benchmark.DTYPES[precision]
    assert seen == [(dtype, True, True), (dtype, False, False)]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(benchmark.timing, "matmul_rate", lambda dtype, device, size: 50.0)


def test_a_comparison_measures_both_models(quick):
    found = benchmark.compare("mat_t", TINY, "train", "fp32")
    assert len(found["times"]) == len(found["peer_times"]) == TINY.rounds
    weights = 12 * benchmark.timing.count_parameters(build_pair("mat_t", TINY, META)[0])
    one = benchmark.compare("mat_t", TINY.model_copy(update={"batch": 1}), "train", "fp32")
    # The gradients are a third of what is held already; the states of AdamW, two thirds, are not counted twice.
    assert weights * 4 / 3 < one["peak"] < weights * 5 / 3
    assert one["peak"] < found["peak"]
    assert one["peer_peak"] < found["peer_peak"]
    assert "peak" not in benchmark.compare("mat_t", TINY, "inference", "fp32")


def test_a_batch_that_would_not_fit_is_not_timed_and_says_why(quick, monkeypatch):
    monkeypatch.setattr(benchmark.timing, "available_memory", lambda device: 2**20)
    found = benchmark.compare("mat_t", TINY, "train", "fp32")
    assert not {"times", "peak"} & found.keys()
    assert found["skipped"].endswith("GiB where 0.0 GiB are free")
    table = pairs_table([("mat_t", TINY)], ["fp32"], measure=lambda *_: found)
    assert table["skipped"][0] == found["skipped"]
    assert "train_s" not in table


def test_a_comparison_runs_in_a_process_of_its_own():
    one, two = (benchmark.in_fresh_process("mat_t", TINY, "train", "bf16", stand_ins.given) for _ in range(2))
    assert len({one["pid"], two["pid"], os.getpid()}) == 3
    assert one["given"] == ("mat_t", TINY, "train", "bf16")


@pytest.mark.parametrize(
    ("measure", "why"), [(stand_ins.failing, "MemoryError: no memory left"), (stand_ins.killed, "BrokenProcessPool")]
)
def test_a_comparison_that_dies_is_named_with_what_it_died_of(measure, why):
    with pytest.raises(BenchmarkError, match=rf"^mat_t against ast_t, train in fp32, failed \({why}.*lower its batch"):
        benchmark.in_fresh_process("mat_t", TINY, "train", "fp32", measure)


def test_columns_are_ratios_and_shares_worked_out_by_hand():
    table = pairs_table([("mat_t", TINY)], ["fp32", "bf16"], measure=made_up)
    first = [
        "model",
        "input",
        "params_m",
        "gmacs",
        "gmacs_no_attention",
        "train_step_ratio",
        "peak_memory_ratio",
        "peer",
    ]
    assert list(table)[:8] == first
    assert list(table["precision"]) == ["fp32", "bf16"]
    row = table.iloc[0]
    assert (row.train_step_ratio, row.train_step_ratio_low, row.train_step_ratio_high) == (3.0, 2.0, 4.0)
    assert (row.inference_ratio, row.peak_memory_ratio, row.peer_peak_memory_gib) == (0.5, 0.5, 2.0)
    assert (row.train_s, row.peer_train_s) == (1.0, 4.0)
    # two clips, two operations a MAC, the backward pass twice the forward one; 100 GFLOP/s could be had
    assert row.train_share == pytest.approx(row.gmacs * 2 * 2 * 3 / 1.0 / 100)
    assert row.peer_inference_share == pytest.approx(row.peer_gmacs * 2 * 2 / 0.25 / 100)
    assert row.gmacs_no_attention < row.gmacs


def claims(gmacs, params_m, memory):
    row = {"model": "mat_b", "peer": "ast_b", "precision": "fp32", "peer_gmacs": 100.0, "peer_params_m": 100.0}
    row |= {"gmacs": gmacs, "params_m": params_m, "peak_memory_gib": memory, "peer_peak_memory_gib": 10.0}
    return efficiency_claims(pd.DataFrame([row, row | {"model": "mat_t", "gmacs": 1.0}]))


def test_claims_are_settled_by_the_numbers():
    good, bad = claims(10.0, 58.0, 5.0), claims(101.0, 120.0, 11.0)
    assert list(good["verdict"]) == ["holds"] * 3
    assert list(good["measured"]) == pytest.approx([90, 42, 50])
    assert list(good["paper"]) == ["3 or 80", "42", "9.8"]
    assert list(bad["verdict"]) == ["does not hold"] * 3
    empty = claims(10.0, 58.0, float("nan"))
    assert list(empty["verdict"]) == ["holds", "holds", "undecided"]
    others = efficiency_claims(pairs_table([("mat_t", TINY)], ["fp32"], measure=made_up))
    assert list(others["verdict"]) == ["undecided"] * 3
    assert others["measured"].isna().all()


def test_tables_figures_and_page_are_written(tmp_path):
    pairs = pairs_table([("mat_t", TINY)], ["fp32", "bf16"], measure=made_up)
    written = benchmark.write_efficiency(tmp_path, pairs)
    assert set(written.values()) == {path for path in tmp_path.rglob("*.*") if path.is_file()}
    read = pd.read_csv(written["efficiency.csv"])
    assert list(read) == list(pairs)
    assert written["efficiency.png"].read_bytes().startswith(b"\x89PNG")
    text = written["README.md"].read_text()
    assert str(tmp_path) not in text
    assert "(efficiency.png)" in text
    assert "(efficiency.csv)" in text
    assert all(f"| {column} " in text for column in ["ours / peer", "GMACs", "inference, times as fast"])
    assert text.count("| mat_t / ast_t | ") == len(pairs)
    assert all(f"| {name} " in text for name in benchmark.machine())
    before = {path: path.read_bytes() for path in written.values()}
    written["README.md"].unlink()
    assert {path: path.read_bytes() for path in benchmark.show_efficiency(tmp_path).values()} == before


def test_the_notebook_says_what_each_column_means():
    cells = nbformat.read(ROOT / "notebooks" / "08_efficiency.ipynb", as_version=4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for column in pairs_table([("mat_t", TINY)], ["fp32"], measure=made_up):
        name = re.sub(r"^.*(_ratio_(low|high))$", r"...\1", column.removeprefix("peer_"))
        assert f"`{name}`" in prose or column in ("model", "peer"), column


def test_figures_show_what_was_not_timed_as_nothing():
    pairs = pairs_table([("mat_t", TINY)], ["fp32"], measure=lambda *_: {"gflops": 1.0, "skipped": "too large"})
    assert png(benchmark.figures.efficiency(pairs))
    assert list(benchmark.beside(pairs)) == ["ours / peer", "precision", "input", "params (M)", "GMACs", "skipped"]
    assert list(efficiency_claims(pairs)["verdict"]) == ["undecided"] * 3
