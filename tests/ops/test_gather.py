# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from spectralgpt import ops
from spectralgpt.ops import reference
from tests.ops.cases import CASES, FLOATS, STRIDES, Case, check_op, image_of, strided

CASE = CASES[0]


def ids_of(case: Case, keep: int) -> torch.Tensor:
    """Distinct token ids per sample, in random order."""
    return torch.rand(case.shape[0], case.tokens).argsort(1)[:, :keep].contiguous()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_patchify_at_ids(kernels: str, case: Case, dtype: torch.dtype) -> None:
    image, ids = image_of(case, dtype), ids_of(case, max(1, case.tokens // 3))
    expected = reference.patchify3d(image, case.patch)
    expected = expected[torch.arange(case.shape[0])[:, None], ids]
    assert torch.equal(ops.gather_patchify3d(image, ids, case.patch), expected)


@pytest.mark.parametrize("how", STRIDES)
def test_any_strides(kernels: str, how: str) -> None:
    image, ids = strided(image_of(CASE), how), ids_of(CASE, 7)
    assert torch.equal(ops.gather_patchify3d(image, ids), reference.gather_patchify3d(image, ids, (3, 8, 8)))
    assert torch.equal(
        ops.gather_patchify3d(image, ids.t().contiguous().t()), reference.gather_patchify3d(image, ids, (3, 8, 8))
    )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward_equals_reference_also_for_repeated_ids(kernels: str, case: Case, dtype: torch.dtype) -> None:
    ids = torch.randint(case.tokens, (case.shape[0], 5))
    ids[:, 3] = ids[:, 1]  # at least one token twice
    grad = torch.rand(case.shape[0], 5, case.values).to(dtype)
    arguments = (grad, ids, list(case.shape[1:]), list(case.patch))
    result = torch.ops.spectralgpt.gather_patchify3d_backward(*arguments)
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(dtype, 1e-6)
    torch.testing.assert_close(result, reference.gather_patchify3d_backward(*arguments), rtol=tolerance, atol=tolerance)


def test_empty(kernels: str) -> None:
    assert ops.gather_patchify3d(torch.zeros(0, 12, 16, 16), torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3, 192)
    assert ops.gather_patchify3d(torch.zeros(2, 12, 16, 16), torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0, 192)


def test_gradients() -> None:
    case = Case((2, 4, 6, 4), (2, 3, 2))
    image = image_of(case, torch.float64).requires_grad_()
    ids = torch.tensor([[0, 3, 5], [2, 2, 7]])
    assert torch.autograd.gradcheck(lambda x: ops.gather_patchify3d(x, ids, case.patch), image)
    assert torch.autograd.gradgradcheck(lambda x: ops.gather_patchify3d(x, ids, case.patch), image)


def test_opcheck() -> None:
    ids = torch.tensor([[0, 3], [7, 1]])
    check_op(
        torch.ops.spectralgpt.gather_patchify3d.default, torch.rand(2, 6, 8, 8, requires_grad=True), ids, [3, 4, 4]
    )
    grad = torch.rand(2, 2, 48, requires_grad=True)
    check_op(torch.ops.spectralgpt.gather_patchify3d_backward.default, grad, ids, [6, 8, 8], [3, 4, 4])


def test_compiled_equals_eager() -> None:
    ids = ids_of(CASE, 7)

    def step(x: torch.Tensor) -> torch.Tensor:
        return ops.gather_patchify3d(x, ids).square().sum()

    eager, traced = image_of(CASE).requires_grad_(), None
    traced = eager.detach().clone().requires_grad_()
    loss, other = step(eager), torch.compile(step, fullgraph=True, backend="aot_eager")(traced)
    loss.backward()
    other.backward()
    assert torch.equal(loss, other) and torch.equal(eager.grad, traced.grad)


@pytest.mark.parametrize("bad", [-1, 16, 2**40])
def test_ids_outside_the_grid(bad: int) -> None:
    ids = torch.tensor([[0, 1, bad]])
    with pytest.raises(IndexError, match=r"gather_patchify3d: expected token ids in \[0, 16\)"):
        ops.gather_patchify3d(torch.zeros(1, 12, 16, 16), ids)
    with pytest.raises(IndexError, match=r"gather_patchify3d_backward: expected token ids in \[0, 16\)"):
        torch.ops.spectralgpt.gather_patchify3d_backward(torch.zeros(1, 3, 192), ids, [12, 16, 16], [3, 8, 8])


def test_ids_outside_the_grid_trap_on_the_device(emulated: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.ops.conftest import use_emulated

    if not ops._native.devices():
        pytest.skip("the native module is hidden")
    use_emulated(monkeypatch, emulated)
    with pytest.raises(RuntimeError, match="expected token ids inside the grid, got 16"):
        ops.gather_patchify3d(torch.zeros(1, 12, 16, 16), torch.tensor([[0, 16]]))


@pytest.mark.parametrize(
    ("image", "ids", "error", "message"),
    [
        (
            torch.zeros(1, 12, 16, 16, dtype=torch.uint16),
            torch.zeros(1, 2, dtype=torch.int64),
            TypeError,
            "expected a floating image",
        ),
        (
            torch.zeros(1, 12, 16, 16),
            torch.zeros(1, 2, dtype=torch.int32),
            TypeError,
            "expected ids_keep of dtype int64",
        ),
        (
            torch.zeros(1, 12, 16, 16),
            torch.zeros(2, 2, dtype=torch.int64),
            ValueError,
            r"expected ids_keep of shape \(1, K\)",
        ),
        (
            torch.zeros(1, 12, 16, 16),
            torch.zeros(2, dtype=torch.int64),
            ValueError,
            r"expected ids_keep of shape \(1, K\)",
        ),
        (
            torch.zeros(1, 12, 16, 16),
            torch.zeros(1, 2, dtype=torch.int64, device="meta"),
            ValueError,
            "expected all tensors on one device",
        ),
        (torch.zeros(1, 11, 16, 16), torch.zeros(1, 2, dtype=torch.int64), ValueError, "expected bands divisible"),
    ],
)
def test_wrong_inputs(image: torch.Tensor, ids: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"gather_patchify3d: {message}"):
        ops.gather_patchify3d(image, ids)
