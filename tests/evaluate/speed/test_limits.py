"""The limits of the machine, by a clock that is told."""

from __future__ import annotations

import torch

from depthdial.evaluate.speed.limits import Gauge, MachineLimits


def test_rates_are_work_over_the_fastest_time(ticks):
    gauge = Gauge(16 * 4096 * 4, torch.float32, torch.device("cpu"), clock=ticks, times=2)
    limits = gauge()
    assert limits.read == 16 * 4096 * 4  # each try takes one tick
    assert limits.multiply == 2048**3


def test_the_fastest_reader_sets_the_limit(ticks):
    content = []

    def reader(memory: torch.Tensor) -> None:
        content.append(memory.shape)
        ticks.now -= 0.5

    gauge = Gauge(16 * 4096 * 4, torch.float32, torch.device("cpu"), clock=ticks, times=2, reader=reader)
    assert gauge().read == 2 * 16 * 4096 * 4
    assert content == [(16, 4096)] * 2


def test_a_small_model_is_read_from_a_small_buffer(ticks):
    assert Gauge(1, torch.float32, torch.device("cpu"), clock=ticks)().read == 16 * 4096 * 4


def test_the_median_of_rounds():
    rounds = [MachineLimits(1e9, 30.0), MachineLimits(5e9, 10.0), MachineLimits(2e9, 20e9)]
    assert MachineLimits.median(rounds) == MachineLimits(2e9, 30.0)
    assert MachineLimits(2e9, 3e9).to_json() == {"read_gigabytes_per_second": 2.0, "gigamacs_per_second": 3.0}
