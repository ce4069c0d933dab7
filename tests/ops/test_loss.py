# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from spectralgpt import ops
from spectralgpt.ops import reference
from tests.ops.cases import CASES, FLOATS, STRIDES, Case, check_op, image_of, strided

CASE = CASES[0]
TARGETS = [(False, False), (True, False), (True, True)]  # raw, normalised, mixed


def arguments_of(
    case: Case, dtype: torch.dtype, targets: tuple[bool, bool], valid: bool, image_dtype: torch.dtype | None = None
) -> list[object]:
    """Arguments of the raw op."""
    image = (image_of(case) / 50).to(image_dtype or dtype)
    prediction = torch.randn(case.shape[0], case.tokens, case.values).to(dtype)
    mask = torch.rand(case.shape[0], case.tokens) < 0.8
    mask[0, 0] = True
    validity = torch.rand(case.shape[0], case.tokens) < 0.9 if valid else None
    if validity is not None:
        validity[0, 0] = True
    scalar = torch.float64 if dtype == torch.float64 else torch.float32
    return [
        prediction,
        image,
        mask,
        list(case.patch),
        validity,
        *targets,
        torch.tensor(0.7, dtype=scalar),
        torch.tensor(1.3, dtype=scalar),
        True,
    ]


def exact(arguments: list[object]) -> tuple[Tensor, ...]:
    """The reference in float64."""
    return reference.reconstruction_loss(
        *(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments)
    )


def gradient_of(outputs: tuple[Tensor, ...]) -> Tensor:
    return outputs[3].double() * outputs[4].double()


@pytest.mark.parametrize(("targets", "valid"), list(itertools.product(TARGETS, [False, True])))
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", [case for case in CASES if case.values > 1], ids=str)
def test_error_at_most_twice_that_of_the_reference(
    kernels: str, case: Case, dtype: torch.dtype, targets: tuple[bool, bool], valid: bool
) -> None:
    arguments = arguments_of(case, dtype, targets, valid)
    truth, same_dtype = exact(arguments), reference.reconstruction_loss(*arguments)
    outputs = torch.ops.spectralgpt.reconstruction_loss(*arguments)
    floor = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    for ours, theirs, right in zip(outputs[:3], same_dtype[:3], truth[:3], strict=True):
        assert (ours - right).abs() <= 2 * (theirs - right).abs() + 8 * floor * right.abs()
    right = gradient_of(truth)
    allowed = 2 * (gradient_of(same_dtype) - right).abs().max() + 8 * floor * right.abs().max()
    assert (gradient_of(outputs) - right).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_prediction_beside_float_image(kernels: str, dtype: torch.dtype) -> None:
    arguments = arguments_of(CASE, dtype, (True, False), True, image_dtype=torch.float32)
    outputs, right = torch.ops.spectralgpt.reconstruction_loss(*arguments), exact(arguments)
    torch.testing.assert_close(outputs[0].double(), right[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(
        gradient_of(outputs), gradient_of(right), rtol=1e-2, atol=float(gradient_of(right).abs().max()) * 1e-2
    )


def test_other_dtype_pairs_are_converted(kernels: str) -> None:
    for dtype, image_dtype in [
        (torch.float32, torch.bfloat16),
        (torch.float64, torch.float32),
        (torch.float16, torch.float64),
    ]:
        arguments = arguments_of(CASE, dtype, (False, False), False, image_dtype=image_dtype)
        outputs = torch.ops.spectralgpt.reconstruction_loss(*arguments)
        torch.testing.assert_close(outputs[0].double(), exact(arguments)[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("how", STRIDES)
def test_any_strides(kernels: str, how: str) -> None:
    arguments = arguments_of(CASE, torch.float32, (True, False), True)
    arguments[1] = strided(arguments[1], how)
    outputs = torch.ops.spectralgpt.reconstruction_loss(*arguments)
    for ours, theirs in zip(outputs, reference.reconstruction_loss(*arguments), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_invalid_tokens_do_not_reach_loss_or_gradient(kernels: str) -> None:
    arguments = arguments_of(CASE, torch.float32, (True, False), True)
    plain = torch.ops.spectralgpt.reconstruction_loss(*arguments)
    tokens = ops.patchify3d(arguments[1])
    tokens[~arguments[4]] = float("nan")
    arguments[1] = ops.unpatchify3d(tokens, CASE.shape[1:])
    spoiled = torch.ops.spectralgpt.reconstruction_loss(*arguments)
    for ours, theirs in zip(spoiled, plain, strict=True):
        assert torch.equal(ours, theirs)
    assert not gradient_of(spoiled)[~arguments[4]].any()


def test_no_complete_position_leaves_the_token_term(kernels: str) -> None:
    arguments = arguments_of(CASE, torch.float32, (False, False), True)
    arguments[4] = torch.ones_like(arguments[4])
    arguments[4][:, : CASE.tokens // 4] = False  # the first group is nodata everywhere
    total, token, spectral, *_ = torch.ops.spectralgpt.reconstruction_loss(*arguments)
    assert spectral == 0 and token > 0
    torch.testing.assert_close(total, 0.7 * token)


def test_bitwise_repeatable_over_runs_and_threads() -> None:
    arguments = arguments_of(Case((4, 12, 64, 64), (3, 8, 8)), torch.float32, (True, False), True)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            results.append(torch.ops.spectralgpt.reconstruction_loss(*arguments))
    finally:
        torch.set_num_threads(threads)
    if ops._native.devices():  # torch's own reductions promise no such thing
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("normalize", [False, True])
def test_gradcheck(normalize: bool) -> None:
    case = Case((2, 4, 6, 4), (2, 3, 2))
    prediction, image, mask, patch, valid, *_ = arguments_of(case, torch.float64, (normalize, False), True)
    prediction.requires_grad_()

    def loss(p: Tensor) -> Tensor:
        return ops.reconstruction_loss(
            p, image, mask, patch, valid=valid, normalize_targets=normalize, spectral_weight=0.3
        ).total

    assert torch.autograd.gradcheck(loss, prediction)


def test_terms_are_detached_and_total_scales() -> None:
    prediction, image, mask, *_ = arguments_of(CASE, torch.float32, (False, False), False)
    prediction.requires_grad_()
    loss = ops.reconstruction_loss(prediction, image, mask, token_weight=2.0, spectral_weight=torch.tensor(0.5))
    assert loss.total.requires_grad and not loss.token.requires_grad and not loss.spectral.requires_grad
    torch.testing.assert_close(loss.total.detach(), 2 * loss.token + 0.5 * loss.spectral)
    (loss.total * 3).backward()
    tripled, prediction.grad = prediction.grad, None
    ops.reconstruction_loss(prediction, image, mask, token_weight=2.0, spectral_weight=0.5).total.backward()
    torch.testing.assert_close(tripled, 3 * prediction.grad)


def test_float16_gradient_does_not_underflow() -> None:
    case = Case((4, 12, 96, 96), (3, 8, 8))
    prediction, image, mask, *_ = arguments_of(case, torch.float16, (False, False), False, torch.float32)
    prediction.requires_grad_()
    (ops.reconstruction_loss(prediction, image, mask).total * 65536).backward()  # as a gradient scaler does
    truth = gradient_of(
        exact(
            [
                prediction.detach(),
                image,
                mask,
                [3, 8, 8],
                None,
                False,
                False,
                torch.tensor(1.0),
                torch.tensor(1.0),
                True,
            ]
        )
    )
    torch.testing.assert_close(prediction.grad.double() / 65536, truth, rtol=1e-2, atol=float(truth.abs().max()) * 2e-3)


def test_double_backward_raises() -> None:
    prediction, image, mask, *_ = arguments_of(CASE, torch.float32, (False, False), False)
    prediction.requires_grad_()
    (gradient,) = torch.autograd.grad(
        ops.reconstruction_loss(prediction, image, mask).total, prediction, create_graph=True
    )
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        (prediction.sum() + gradient.square().sum()).backward()  # a gradient penalty


def test_opcheck() -> None:
    case = Case((2, 6, 8, 8), (3, 4, 4))
    arguments = arguments_of(case, torch.float32, (True, False), True)
    arguments[0].requires_grad_()
    check_op(torch.ops.spectralgpt.reconstruction_loss.default, *arguments)


def test_compiled_equals_eager() -> None:
    prediction, image, mask, *_ = arguments_of(CASE, torch.float32, (False, False), False)

    def step(p: Tensor, weight: Tensor) -> Tensor:
        return ops.reconstruction_loss(p.sin(), image, mask, normalize_targets=True, spectral_weight=weight).total

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for weight in (0.5, 2.0):
        eager, traced = (prediction.clone().requires_grad_() for _ in range(2))
        loss, other = step(eager, torch.tensor(weight)), compiled(traced, torch.tensor(weight))
        loss.backward()
        other.backward()
        assert torch.equal(loss, other) and torch.equal(eager.grad, traced.grad)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"prediction": torch.zeros(2, 59, 192)},
            ValueError,
            r"expected prediction of shape \(2, 60, 192\), got \(2, 59, 192\)",
        ),
        ({"prediction": torch.zeros(2, 60, 192, dtype=torch.int64)}, TypeError, "expected prediction of dtype"),
        ({"image": torch.zeros(2, 12, 24, 40, dtype=torch.uint16)}, TypeError, "expected image of dtype"),
        ({"image": torch.zeros(12, 24, 40)}, ValueError, "expected image of shape"),
        ({"image": torch.zeros(2, 12, 24, 40, requires_grad=True)}, ValueError, "expected an image without gradient"),
        ({"mask": torch.zeros(2, 60)}, TypeError, "expected mask of dtype bool"),
        ({"mask": torch.zeros(2, 61, dtype=torch.bool)}, ValueError, r"expected mask of shape \(2, 60\)"),
        ({"valid": torch.zeros(60, dtype=torch.bool)}, ValueError, r"expected valid of shape \(2, 60\)"),
        (
            {"mask": torch.zeros(2, 60, dtype=torch.bool, device="meta")},
            ValueError,
            "expected all tensors on one device",
        ),
        ({"mask": torch.zeros(2, 60, dtype=torch.bool)}, ValueError, "expected at least one scored token"),
        ({"spectral_targets": "both"}, ValueError, 'expected spectral_targets "same" or "raw"'),
        ({"token_weight": torch.zeros(2)}, TypeError, "expected token_weight as a float or a 0-d floating tensor"),
        ({"patch_size": (3, 7, 8)}, ValueError, "expected height divisible by the patch's 7, got 24"),
    ],
)
def test_wrong_inputs(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {
        "prediction": torch.zeros(2, 60, 192),
        "image": torch.zeros(2, 12, 24, 40),
        "mask": torch.ones(2, 60, dtype=torch.bool),
        **change,
    }
    with pytest.raises(error, match=f"reconstruction_loss: {message}"):
        ops.reconstruction_loss(**arguments)


def test_refuses_an_empty_batch_and_single_values() -> None:
    empty = torch.zeros(0, 12, 24, 40)
    with pytest.raises(ValueError, match="expected at least one sample"):
        ops.reconstruction_loss(torch.zeros(0, 60, 192), empty, torch.zeros(0, 60, dtype=torch.bool))
    with pytest.raises(ValueError, match="expected at least 2 values per token"):
        ops.reconstruction_loss(
            torch.zeros(1, 4, 1),
            torch.zeros(1, 1, 2, 2),
            torch.ones(1, 4, dtype=torch.bool),
            (1, 1, 1),
            normalize_targets=True,
        )
