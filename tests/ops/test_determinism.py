# SPDX-License-Identifier: Apache-2.0
"""The same bits on every run and for every number of threads, forward and backward, for every op."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from spectralgpt.ops import _registry
from tests.ops.calls import CALLS, NAMES, Call, results

BATCH = 16  # large enough that the kernels share the work among threads


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Puts back the number of threads."""
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def differing(call: Call, repeats: int, function: Callable[..., Any] | None = None) -> list[str]:
    """Runs whose bits are not those of the first."""
    arguments = call.arguments(1, BATCH)
    found = []
    torch.set_num_threads(1)
    first = results(call, arguments, function)
    for run in range(repeats):
        torch.set_num_threads(1 + run % 4)
        again = results(call, arguments, function)
        if not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
            found.append(f"run {run} with {1 + run % 4} threads")
    return found


@pytest.mark.parametrize("call", CALLS, ids=NAMES)
def test_same_bits_over_50_runs_on_1_to_4_threads(call: Call) -> None:
    if _registry._OPS[call.op].implementations["cpu"] != "native" and call.gradients and not call.exact:
        pytest.skip("no native kernel, and torch's own reductions promise nothing over thread counts")
    assert differing(call, 50) == []


def test_catches_chance() -> None:
    call = CALLS[NAMES.index("patchify3d")]

    def planted(image: Tensor) -> Tensor:
        return call.function(image) + (torch.rand(()) > 0.9) * 1e-7

    assert differing(call, 50, planted)


def test_catches_sums_that_follow_the_threads() -> None:
    call = CALLS[NAMES.index("patchify3d")]

    def planted(image: Tensor) -> tuple[Tensor, Tensor]:
        parts = image.flatten().chunk(torch.get_num_threads())
        return call.function(image), torch.stack([part.sum() for part in parts]).sum()

    found = differing(call, 8, planted)
    assert found and not any(run.endswith("with 1 threads") for run in found)
