# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from spectralgpt import ops
from spectralgpt.ops import _registry, reference
from tests.ops.cases import FLOATS, check_op
from tests.ops.trials import assert_within_twice

SHAPES = [(2, 6, 60, 64), (3, 1, 7, 33), (1, 7, 7, 8), (2, 0, 5, 4), (1, 1, 1, 1), (2, 5, 9, 515)]  # (B, K, L, D)
FORWARD, BACKWARD = (torch.ops.spectralgpt.assemble_tokens, torch.ops.spectralgpt.assemble_tokens_backward)


def inputs(shape: tuple[int, int, int, int], *dtypes: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """visible, mask_token, positions in their dtypes and ids_restore of random permutations."""
    batch, keep, length, channels = shape
    sizes = ((batch, keep, channels), (channels,), (length, channels))
    tensors = [torch.randn(size).to(dtype) for size, dtype in zip(sizes, dtypes or [torch.float32] * 3, strict=True)]
    return (*tensors, torch.rand(batch, length).argsort(1))  # type: ignore[return-value]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_row_is_where_the_formula_puts_it(kernels: str, shape: tuple[int, int, int, int]) -> None:
    visible, token, positions, restore = inputs(shape)
    out = ops.assemble_tokens(visible, token, positions, restore)
    for sample, place in itertools.product(range(shape[0]), range(shape[2])):
        row = int(restore[sample, place])
        assert torch.equal(out[sample, place], (visible[sample, row] if row < shape[1] else token) + positions[place])


@pytest.mark.parametrize("out_dtype", [None, *FLOATS], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_mixed_dtypes_are_summed_wide_and_rounded_once(
    kernels: str, dtype: torch.dtype, out_dtype: torch.dtype | None
) -> None:
    visible, token, positions, restore = inputs(SHAPES[0], dtype, torch.float32, torch.bfloat16)
    out = ops.assemble_tokens(visible, token, positions, restore, out_dtype=out_dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert out.dtype == (out_dtype or wide)
    expected = reference.assemble_tokens(visible.to(wide), token.to(wide), positions.to(wide), restore, wide)
    assert torch.equal(out, expected.to(out.dtype))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward_error_at_most_twice_that_of_the_reference(
    kernels: str, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    batch, keep, length, channels = shape
    grad, restore = torch.randn(batch, length, channels).to(dtype), torch.rand(batch, length).argsort(1)
    dtypes = (dtype, torch.float32, dtype)
    results = BACKWARD(grad, restore, keep, *dtypes)
    same = reference.assemble_tokens_backward(grad, restore, keep, *dtypes)
    truth = reference.assemble_tokens_backward(grad.double(), restore, keep, *[torch.float64] * 3)
    assert [result.dtype for result in results] == list(dtypes)
    assert torch.equal(results[0], same[0])  # visible rows are copied
    for ours, theirs, right in zip(results, same, truth, strict=True):
        assert_within_twice(ours, theirs, right)


@pytest.mark.parametrize("how", ["transposed", "sliced", "expanded"])
def test_any_strides(kernels: str, how: str) -> None:
    visible, token, positions, restore = inputs(SHAPES[0])
    grad = torch.randn(2, 60, 64)
    if how == "transposed":
        visible, positions, restore, grad = (
            x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in (visible, positions, restore, grad)
        )
    elif how == "sliced":
        visible, positions, token, grad = (torch.stack([x, -x], -1)[..., 0] for x in (visible, positions, token, grad))
    else:
        visible, restore, token, grad = (
            visible[:1].expand(2, -1, -1),
            restore[:1].expand(2, -1),
            token[:1].expand(64),
            grad[:1, :1].expand(2, 60, 64),
        )
    dense = [x.contiguous() for x in (visible, token, positions, restore)]
    assert torch.equal(
        ops.assemble_tokens(visible, token, positions, restore), reference.assemble_tokens(*dense, torch.float32)
    )
    dtypes = [torch.float32] * 3
    for ours, theirs in zip(
        BACKWARD(grad, restore, 6, *dtypes),
        reference.assemble_tokens_backward(grad.contiguous(), dense[3], 6, *dtypes),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_empty_batch_and_no_channels(kernels: str) -> None:
    for shape in ((0, 3, 9, 8), (2, 3, 9, 0), (2, 0, 0, 4)):
        tensors = inputs(shape)
        assert ops.assemble_tokens(*tensors).shape == (shape[0], shape[2], shape[3])
        grads = BACKWARD(torch.zeros(shape[0], *shape[2:]), tensors[3], shape[1], *[torch.float32] * 3)
        assert [tuple(grad.shape) for grad in grads] == [tuple(tensor.shape) for tensor in tensors[:3]]
        assert not grads[1].any() and not grads[2].any()


def test_gradients() -> None:
    *tensors, restore = inputs((2, 3, 7, 5), *[torch.float64] * 3)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(lambda *x: ops.assemble_tokens(*x, restore), leaves)
    assert torch.autograd.gradgradcheck(lambda *x: ops.assemble_tokens(*x, restore), leaves)


def test_gradients_have_the_dtypes_of_their_inputs() -> None:
    *tensors, restore = inputs(SHAPES[0], torch.bfloat16, torch.float32, torch.float16)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    ops.assemble_tokens(*leaves, restore, out_dtype=torch.bfloat16).sum().backward()
    assert [leaf.grad.dtype for leaf in leaves] == [leaf.dtype for leaf in leaves]
    assert torch.equal(leaves[0].grad, torch.ones_like(leaves[0]))
    assert torch.equal(leaves[1].grad, torch.full((64,), 2.0 * (60 - 6)))
    assert torch.equal(leaves[2].grad, torch.full((60, 64), 2.0, dtype=torch.float16))


def test_opcheck() -> None:
    *tensors, restore = inputs((2, 3, 7, 5))
    check_op(FORWARD.default, *(tensor.requires_grad_() for tensor in tensors), restore, torch.bfloat16)
    grad = torch.randn(2, 7, 5, requires_grad=True)
    check_op(BACKWARD.default, grad, restore, 3, *[torch.float32] * 3)


def test_compiled_equals_eager() -> None:
    *tensors, restore = inputs(SHAPES[0])

    def step(*x: Tensor) -> Tensor:
        return ops.assemble_tokens(*x, restore, out_dtype=torch.bfloat16).float().square().sum()

    eager, traced = ([tensor.clone().requires_grad_() for tensor in tensors] for _ in range(2))
    loss, other = step(*eager), torch.compile(step, fullgraph=True, backend="aot_eager")(*traced)
    loss.backward()
    other.backward()
    assert torch.equal(loss, other)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(eager, traced, strict=True))


@pytest.mark.parametrize("places", [[1, 2, 3, 4], [0, 0, 2, 3], [0, 1, 1, 3], [-1, 1, 0, 2], [0, 4, 5, 6]], ids=str)
def test_wrong_places(places: list[int]) -> None:
    tensors, restore = inputs((1, 2, 4, 8))[:3], torch.tensor([places])
    with pytest.raises(IndexError, match="assemble_tokens: expected ids_restore"):
        ops.assemble_tokens(*tensors, restore)
    with pytest.raises(IndexError, match=r"assemble_tokens(_backward)?: expected ids_restore"):
        BACKWARD(torch.zeros(1, 4, 8), restore, 2, *[torch.float32] * 3)


def test_hidden_places_may_be_any_behind_the_visible(kernels: str) -> None:
    *tensors, restore = inputs(SHAPES[0])
    blurred = restore.where(restore < 6, 2**40)
    assert torch.equal(ops.assemble_tokens(*tensors, blurred), ops.assemble_tokens(*tensors, restore))


def test_undoes_the_mask(kernels: str) -> None:
    """Cut, hide, assemble: visible tokens are back in place and every hidden one is the mask token."""
    image = torch.randn(2, 12, 24, 40)
    mask = ops.random_cube_mask(torch.arange(2), 60, 0.75, seed=3)
    tokens = ops.patchify3d(image)
    whole = ops.assemble_tokens(
        ops.gather_patchify3d(image, mask.ids_keep), torch.full((192,), 9.0), torch.zeros(60, 192), mask.ids_restore
    )
    assert torch.equal(whole[~mask.mask], tokens[~mask.mask])
    assert (whole[mask.mask] == 9).all()


def test_native_kernel_serves(launched: list[str]) -> None:
    *tensors, restore = inputs(SHAPES[0])
    ops.assemble_tokens(tensors[0].requires_grad_(), *tensors[1:], restore).sum().backward()
    names = ("assemble_tokens", "assemble_tokens_backward")
    assert launched == [name for name in names if _registry._OPS[name].implementations["cpu"] == "native"]
