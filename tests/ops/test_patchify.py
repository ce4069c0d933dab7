# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from spectralgpt import ops
from spectralgpt.ops import reference
from tests.ops.cases import ANY, CASES, STRIDES, Case, check_op, image_of, strided

CASE = CASES[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_token_order_is_the_documented_one(kernels: str, case: Case) -> None:
    image = image_of(case)
    tokens = ops.patchify3d(image, case.patch)
    t, p, q = case.patch
    columns, rows = case.shape[3] // q, case.shape[2] // p
    for token in {0, 1, case.tokens // 2, case.tokens - 1} & set(range(case.tokens)):
        group, y, x = token // (rows * columns), token // columns % rows, token % columns
        expected = image[:, group * t : (group + 1) * t, y * p : (y + 1) * p, x * q : (x + 1) * q]
        assert torch.equal(tokens[:, token], expected.flatten(1))


@pytest.mark.parametrize("dtype", ANY, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_reference_and_back(kernels: str, case: Case, dtype: torch.dtype) -> None:
    image = image_of(case, dtype)
    tokens = ops.patchify3d(image, case.patch)
    assert tokens.dtype == dtype
    assert torch.equal(tokens, reference.patchify3d(image, case.patch))
    assert torch.equal(ops.unpatchify3d(tokens, case.shape[1:], case.patch), image)


@pytest.mark.parametrize("how", STRIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint16, torch.uint8], ids=str)
def test_any_strides(kernels: str, how: str, dtype: torch.dtype) -> None:
    image = strided(image_of(CASE, dtype), how)
    before = image.clone()
    assert torch.equal(ops.patchify3d(image), reference.patchify3d(image, (3, 8, 8)))
    assert torch.equal(image, before)
    tokens = reference.patchify3d(image, (3, 8, 8)).transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(ops.unpatchify3d(tokens, CASE.shape[1:]), image)


def test_empty_batch(kernels: str) -> None:
    tokens = ops.patchify3d(torch.zeros(0, 12, 16, 16))
    assert tokens.shape == (0, 16, 192)
    assert ops.unpatchify3d(tokens, (12, 16, 16)).shape == (0, 12, 16, 16)


def test_gradients() -> None:
    case = Case((2, 4, 6, 4), (2, 3, 2))
    image = image_of(case, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.patchify3d(x, case.patch), image)
    assert torch.autograd.gradgradcheck(lambda x: ops.patchify3d(x, case.patch), image)
    tokens = torch.rand(2, case.tokens, case.values, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.unpatchify3d(x, case.shape[1:], case.patch), tokens)


def test_opcheck() -> None:
    image = torch.rand(2, 6, 8, 8, requires_grad=True)
    check_op(torch.ops.spectralgpt.patchify3d.default, image, [3, 4, 4])
    check_op(torch.ops.spectralgpt.unpatchify3d.default, torch.rand(2, 8, 48, requires_grad=True), [6, 8, 8], [3, 4, 4])


def test_compiled_equals_eager() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        return ops.unpatchify3d(ops.patchify3d(x).square(), (12, 16, 16)).sin().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for batch in (2, 3):
        eager, traced = (
            torch.rand(batch, 12, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)
        )
        loss, other = step(eager), compiled(traced)
        loss.backward()
        other.backward()
        assert torch.equal(loss, other) and torch.equal(eager.grad, traced.grad)


@pytest.mark.parametrize(
    ("shape", "patch", "message"),
    [
        ((12, 16, 16), (3, 8, 8), "patchify3d: expected image of shape"),
        ((1, 13, 16, 16), (3, 8, 8), "expected bands divisible by the patch's 3, got 13"),
        ((1, 12, 15, 16), (3, 8, 8), "expected height divisible by the patch's 8, got 15"),
        ((1, 12, 16, 12), (3, 8, 8), "expected width divisible by the patch's 8, got 12"),
        ((1, 12, 16, 16), (3, 0, 8), "expected patch_size of three positive sizes"),
        ((1, 12, 16, 16), (3, 8), "expected patch_size of three positive sizes"),
        ((1, 12, 0, 16), (3, 8, 8), "expected height divisible"),
    ],
)
def test_wrong_image(shape: tuple[int, ...], patch: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.patchify3d(torch.zeros(shape), patch)


@pytest.mark.parametrize("shape", [(2, 16), (2, 15, 192), (2, 16, 191)])
def test_wrong_tokens(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"unpatchify3d: expected tokens of shape \(B, 16, 192\)"):
        ops.unpatchify3d(torch.zeros(shape), (12, 16, 16))
