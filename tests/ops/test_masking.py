# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from spectralgpt import ops
from spectralgpt.ops import reference
from spectralgpt.ops.random import philox4x32
from tests.ops.cases import check_op

SIZES = [(576, 0.9), (1024, 0.9), (1024, 0.75), (1, 0.0), (3, 0.5), (5, 0.99), (1025, 0.3), (4100, 0.9)]


def assert_consistent(mask: ops.CubeMask, num_tokens: int) -> None:
    """Every token is kept or removed exactly once, and ids_restore is the inverse order."""
    keep = mask.ids_keep.shape[1]
    for sample in range(mask.mask.shape[0]):
        removed = mask.mask[sample].nonzero().flatten()
        order = torch.empty(num_tokens, dtype=torch.int64)
        order[mask.ids_restore[sample]] = torch.arange(num_tokens)
        assert torch.equal(order[:keep], mask.ids_keep[sample])
        assert torch.equal(order[keep:].sort().values, removed)
    assert int((~mask.mask).sum()) == keep * mask.mask.shape[0]


@pytest.mark.parametrize(("num_tokens", "ratio"), SIZES)
def test_equals_reference_and_is_a_partition(kernels: str, num_tokens: int, ratio: float) -> None:
    ids = torch.tensor([0, 1, 2**31, 2**32 + 7, 2**62, -1])
    mask = ops.random_cube_mask(ids, num_tokens, ratio, seed=2**40 + 5, step=9)
    keep = int(num_tokens * (1 - ratio))
    expected = reference.random_cube_mask(ids, num_tokens, keep, torch.tensor(2**40 + 5), torch.tensor(9))
    for ours, theirs in zip(mask, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert_consistent(mask, num_tokens)
    assert torch.equal(mask.ids_keep, mask.ids_keep.sort(dim=1).values)


def test_published_counts() -> None:
    assert [ops.num_visible(n, 0.9) for n in (576, 1024, 1536)] == [57, 102, 153]
    assert [ops.num_visible(n, 0.75) for n in (576, 1024, 1536)] == [144, 256, 384]
    assert [ops.num_visible(n, 0.95) for n in (576, 1024)] == [28, 51]


def test_pure_function_of_seed_step_and_sample(kernels: str) -> None:
    def draw(ids: list[int], seed: int = 1, step: int = 2) -> torch.Tensor:
        return ops.random_cube_mask(torch.tensor(ids), 256, 0.9, seed=seed, step=step).mask

    together = draw([4, 5, 6])
    assert torch.equal(together[1:2], draw([5])) and torch.equal(together, draw([4, 5, 6]))
    for other in (draw([7, 8, 9]), draw([4, 5, 6], seed=2), draw([4, 5, 6], step=3), draw([4, 5, 6], seed=1 + 2**32)):
        assert not torch.equal(together, other)


def test_uniform(kernels: str) -> None:
    """Each token is kept equally often, and so is each pair: chi-square within 5 standard deviations."""
    count = 100 if kernels.startswith("cuda") else 4000
    kept = (~ops.random_cube_mask(torch.arange(count), 24, 0.5, seed=7).mask).double()
    deviation = ((kept.sum(0) - count / 2) ** 2 / (count / 4)).sum() * 23 / 24  # 23 degrees of freedom
    assert 0 < deviation < 23 + 5 * (2 * 23) ** 0.5
    pairs = (kept.t() @ kept)[~torch.eye(24, dtype=torch.bool)] / count
    expected = 12 * 11 / (24 * 23)
    assert (pairs - expected).abs().max() < 5 * (expected * (1 - expected) / count) ** 0.5


def test_philox_known_answers() -> None:
    """The vectors of the paper's own implementation."""
    for counter, key, words in [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ]:
        result = philox4x32([torch.tensor(word) for word in counter], (key[0], key[1]))
        assert [int(word) for word in result] == words


def test_philox_words_do_not_depend_on_their_number() -> None:
    ids = torch.tensor([3, 2**35])
    assert torch.equal(ops.philox(1, ids, 2, ops.Purpose.CROP, 7), ops.philox(1, ids, 2, ops.Purpose.CROP, 64)[:, :7])
    assert not torch.equal(ops.philox(1, ids, 2, ops.Purpose.CROP, 7), ops.philox(1, ids, 2, ops.Purpose.FLIP, 7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_equals_reference(kernels: str, dtype: torch.dtype) -> None:
    noise = torch.rand(4, 300, dtype=dtype)
    noise[1] = 0.5  # ties: index order
    noise[2, ::3] = float("nan")
    noise[3, 5] = float("-inf")
    noise[3, 6], noise[3, 7] = 0.0, -0.0
    mask = ops.cube_mask_from_noise(noise, 0.7)
    for ours, theirs in zip(mask, reference.cube_mask_from_noise(noise, int(300 * (1 - 0.7))), strict=True):
        assert torch.equal(ours, theirs)
    assert_consistent(mask, 300)


def test_empty_batch(kernels: str) -> None:
    for mask in (
        ops.random_cube_mask(torch.zeros(0, dtype=torch.int64), 64, 0.75, seed=0),
        ops.cube_mask_from_noise(torch.zeros(0, 64), 0.75),
    ):
        assert [tuple(part.shape) for part in mask] == [(0, 16), (0, 64), (0, 64)]


def test_opcheck() -> None:
    seed, step = torch.tensor(1), torch.tensor(2)
    check_op(torch.ops.spectralgpt.random_cube_mask.default, torch.arange(3), 64, 16, seed, step)
    check_op(torch.ops.spectralgpt.cube_mask_from_noise.default, torch.rand(2, 64), 16)


def test_compiled_equals_eager() -> None:
    def draw(ids: torch.Tensor, seed: torch.Tensor, step: torch.Tensor) -> ops.CubeMask:
        return ops.random_cube_mask(ids, 64, 0.75, seed=seed, step=step)

    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    for step in range(3):
        arguments = (torch.arange(5), torch.tensor(1), torch.tensor(step))
        for ours, theirs in zip(compiled(*arguments), draw(*arguments), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sample_ids": torch.zeros(2, dtype=torch.int32)}, TypeError, "expected sample_ids of dtype int64"),
        ({"sample_ids": torch.zeros(2, 2, dtype=torch.int64)}, ValueError, r"expected sample_ids of shape \(B,\)"),
        ({"num_tokens": 0}, ValueError, "expected num_tokens in"),
        ({"num_tokens": 2**26 + 1}, ValueError, "expected num_tokens in"),
        ({"seed": -1}, ValueError, r"expected seed in \[0, 2\^63\), got -1"),
        ({"seed": torch.zeros(2, dtype=torch.int64)}, TypeError, "expected seed as an int or a 0-d int64 tensor"),
        ({"step": torch.zeros((), dtype=torch.int32)}, TypeError, "expected step as an int or a 0-d int64 tensor"),
        ({"seed": torch.zeros((), dtype=torch.int64, device="meta")}, ValueError, "expected all tensors on one device"),
    ],
)
def test_wrong_inputs(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"sample_ids": torch.arange(2), "num_tokens": 16, "mask_ratio": 0.5, "seed": 0, "step": 0, **change}
    with pytest.raises(error, match=f"random_cube_mask: {message}"):
        ops.random_cube_mask(**arguments)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_wrong_ratio(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"expected mask_ratio in \[0, 1\)"):
        ops.random_cube_mask(torch.arange(2), 16, ratio, seed=0)


def test_wrong_noise() -> None:
    with pytest.raises(TypeError, match="expected noise of dtype float32 or float64"):
        ops.cube_mask_from_noise(torch.zeros(2, 16, dtype=torch.int64), 0.5)
    with pytest.raises(ValueError, match=r"expected noise of shape \(B, L\)"):
        ops.cube_mask_from_noise(torch.zeros(16), 0.5)
