"""Seconds and bytes of calls whose cost is known."""

import pytest
import torch
from torch import nn

from study import timing
from study.timing import available_memory, count_parameters, interleaved, matmul_rate, step_memory


def test_two_models_take_turns_after_an_untimed_call_of_each(monkeypatch):
    calls, clock = [], iter(map(float, range(100)))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    found = interleaved(lambda: calls.append("ours"), lambda: calls.append("peer"), 3)
    assert calls == ["ours", "peer"] * 4
    assert found == ([1, 1, 1], [1, 1, 1])
    calls.clear()
    interleaved(lambda: calls.append("ours"), lambda: calls.append("peer"), 1, warm_up=False)
    assert calls == ["ours", "peer"]


def test_memory_of_a_step_is_what_it_holds_at_most():
    def step():
        first = torch.zeros(1_000_000)  # 4 MB
        del first
        second, third = torch.zeros(500_000), torch.zeros(750_000)  # 5 MB together
        return len(second) + len(third)

    held = torch.zeros(2_000_000)
    assert step_memory(step, torch.device("cpu")) == pytest.approx(5_000_000, rel=0.001)
    assert step_memory(held.sum, torch.device("cpu")) < 1000
    assert step_memory(lambda: None, torch.device("cpu")) == 0


def test_memory_is_the_same_in_two_runs():
    model, x = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)), torch.randn(32, 64)

    def step():
        model(x).square().mean().backward()
        model.zero_grad()

    step()
    first, second = (step_memory(step, torch.device("cpu")) for _ in range(2))
    assert first == second > 4 * count_parameters(model)


def test_the_rate_of_a_matrix_product_is_that_of_the_best_one(monkeypatch):
    seconds = iter([0.5, 0.25, 1.0])
    monkeypatch.setattr(timing, "_seconds", lambda call: next(seconds))
    assert matmul_rate(torch.float32, torch.device("cpu"), 8) == pytest.approx(2 * 8**3 / 0.25 / 1e9)


def test_free_memory_is_some_and_not_all_of_it():
    assert 2**20 < available_memory(torch.device("cpu")) < 2**60
