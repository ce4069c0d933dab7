# SPDX-License-Identifier: Apache-2.0
"""torch.compile: one graph without breaks, the same values as eager, and no second compilation when values change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from spectralgpt import ops
from tests.ops.calls import CALLS, NAMES, Call, results


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No graph of another test."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compilations(call: Call, function: Callable[..., Any]) -> int:
    """Compiles `function`, compares it with the eager call for three sets of values, and counts the graphs."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for seed in (1, 2, 3):  # other pixels, seeds, steps, ids, weights and boxes; the same shapes
        arguments = call.arguments(seed, 2)
        for ours, theirs in zip(results(call, arguments, compiled), results(call, arguments), strict=True):
            assert torch.equal(ours, theirs), f"{call.name}: compiled and eager differ for seed {seed}"
    return counter.frame_count


@pytest.mark.parametrize("call", CALLS, ids=NAMES)
def test_equals_eager_and_compiles_once(call: Call) -> None:
    assert compilations(call, call.function) == 1


def test_another_batch_size_compiles_at_most_once_more() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    call = CALLS[NAMES.index("reconstruction_loss-raw")]
    compiled = torch.compile(call.function, fullgraph=True, backend=counter)
    for batch in (2, 3, 4, 5):
        arguments = call.arguments(1, batch)
        for ours, theirs in zip(results(call, arguments, compiled), results(call, arguments), strict=True):
            assert torch.equal(ours, theirs)
    assert counter.frame_count <= 2


def test_catches_a_recompilation() -> None:
    call, taken = CALLS[NAMES.index("random_cube_mask")], []

    def planted(ids: Tensor, seed: Tensor, step: Tensor) -> ops.CubeMask:
        return ops.random_cube_mask(ids, 144, 0.75, seed=seed, step=step + 0 * len(taken))  # a Python number: a guard

    def grow(*arguments: Tensor) -> ops.CubeMask:
        taken.append(0)
        return compiled(*arguments)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(planted, fullgraph=True, backend=counter)
    for seed in (1, 2, 3):
        results(call, call.arguments(seed, 2), grow)
    assert counter.frame_count > 1


def test_catches_a_graph_break_and_other_values() -> None:
    call = CALLS[NAMES.index("patchify3d")]

    def broken(image: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return call.function(image)

    with pytest.raises(torch._dynamo.exc.Unsupported):
        compilations(call, broken)
    with pytest.raises(AssertionError, match="compiled and eager differ"):
        compilations(call, lambda image: call.function(image + torch.compiler.is_compiling()))
