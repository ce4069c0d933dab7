# SPDX-License-Identifier: Apache-2.0
"""The meter: samples per second, the share of the device's rate, and how long the loader was waited for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spectralgpt.train import speed
from spectralgpt.train.flops import gemm_rate
from spectralgpt.train.speed import Reading, Speed


class Clock:
    """A clock that moves when told to."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    monkeypatch.setattr(speed, "gemm_rate", lambda kind, dtype: 50e9)
    return clock


def test_reading(clock: Clock) -> None:
    def batches() -> Iterator[int]:
        for number in range(3):
            clock.now += 0.5
            yield number

    meter = Speed(1e9, torch.device("cpu"), torch.float32, samples=1000, processes=2)
    for _ in meter.watch(batches()):
        clock.now += 1.5
    reading = meter.read(1060)
    assert reading.samples_per_second == pytest.approx(60 / 6)
    assert reading.mfu == pytest.approx(10 * 1e9 / (2 * 50e9)), "of both processes' devices"
    assert reading.loader_wait == pytest.approx(1.5 / 6)
    clock.now += 2
    second = meter.read(1070)
    assert (second.samples_per_second, second.loader_wait) == (pytest.approx(5), 0), "from the first reading on"


def test_memory_is_that_of_the_process() -> None:
    meter = Speed(1e9, torch.device("cpu"), torch.float32)
    assert 5e7 < meter.read(1).memory < 1e12


def test_what_the_bar_shows() -> None:
    assert str(Reading(12.0, 0.456, 12.34e9, 0.015)) == "MFU 46%, 12.3 GB, loader 2%"


class Products(TorchDispatchMode):
    """Notes the order in memory of both sides of each matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.orders: set[tuple[bool, bool]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.mm.default:
            self.orders.add((args[0].is_contiguous(), args[1].is_contiguous()))
        return function(*args, **kwargs or {})


def test_the_rate_is_that_of_products_as_layers_do_them() -> None:
    """In 16 bits a CPU takes other ways for other orders: a model reached 700 % of the rate of plain `mm`."""
    with Products() as layer:
        torch.nn.Linear(8, 8, bias=False)(torch.ones(8, 8))
    with Products() as rate:
        gemm_rate.__wrapped__("cpu", torch.float32)
    assert rate.orders == layer.orders != set()


def test_the_rate_is_measured_once_and_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first = gemm_rate("cpu", torch.float32)
    assert first == gemm_rate("cpu", torch.float32) > 1e8
    assert torch.equal(before, torch.get_rng_state())
