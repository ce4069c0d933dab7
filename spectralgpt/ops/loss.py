# SPDX-License-Identifier: Apache-2.0
"""The two-target reconstruction loss, one pass over prediction and image; targets are never built.

The gradient is written in the same pass: the number of scored tokens and positions is known from the masks
beforehand, so nothing needs to be read a second time (SpectralGPT's loss, reference section of the docs: token-wise
plus spectrum-wise mean squared error).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectralgpt.ops import _native, reference
from spectralgpt.ops._registry import define
from spectralgpt.ops.patchify import FLOATS, check_image, check_same_device, sizes


class ReconstructionLoss(NamedTuple):
    """0-d float32 tensors (float64 for float64); only `total` carries a gradient."""

    total: Tensor
    token: Tensor
    spectral: Tensor


def _check_flags(op: str, name: str, flags: Tensor | None, shape: tuple[int, int]) -> None:
    if flags is None:
        return
    if flags.dtype != torch.bool:
        raise TypeError(f"{op}: expected {name} of dtype bool, got {flags.dtype}")
    if tuple(flags.shape) != shape:
        raise ValueError(f"{op}: expected {name} of shape {shape}, got {tuple(flags.shape)}")


def _loss_meta(
    prediction: Tensor,
    image: Tensor,
    mask: Tensor,
    patch_size: Sequence[int],
    valid: Tensor | None,
    normalize_targets: bool,
    spectral_raw: bool,
    token_weight: Tensor,
    spectral_weight: Tensor,
    with_gradient: bool,
) -> tuple[Tensor, ...]:
    op = "reconstruction_loss"
    num_tokens, num_values = check_image(op, image, patch_size)
    for name, tensor in (("prediction", prediction), ("image", image)):
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{op}: expected {name} of dtype float32, float64, float16 or bfloat16, got {tensor.dtype}")
    expected = (image.shape[0], num_tokens, num_values)
    if tuple(prediction.shape) != expected:
        raise ValueError(f"{op}: expected prediction of shape {expected}, got {tuple(prediction.shape)}")
    _check_flags(op, "mask", mask, expected[:2])
    _check_flags(op, "valid", valid, expected[:2])
    for name, weight in (("token_weight", token_weight), ("spectral_weight", spectral_weight)):
        if weight.dim() != 0 or not weight.is_floating_point():
            raise TypeError(
                f"{op}: expected {name} as a float or a 0-d floating tensor, "
                f"got {weight.dtype} of shape {tuple(weight.shape)}"
            )
    check_same_device(
        op,
        prediction=prediction,
        image=image,
        mask=mask,
        valid=valid,
        token_weight=token_weight,
        spectral_weight=spectral_weight,
    )
    if image.shape[0] == 0:
        raise ValueError(f"{op}: expected at least one sample, got a batch of 0")
    if normalize_targets and num_values < 2:
        raise ValueError(f"{op}: expected at least 2 values per token to normalise targets, got {num_values}")
    scalar = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    total, token, spectral, scale = (prediction.new_empty((), dtype=scalar) for _ in range(4))
    gradient = prediction.new_empty(prediction.shape if with_gradient else 0)
    return total, token, spectral, gradient, scale


def _loss_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401
    _, token, spectral, gradient, scale = output
    ctx.save_for_backward(gradient, scale)
    ctx.set_materialize_grads(False)  # or each backward would make zeros as large as the gradient, for nobody
    ctx.mark_non_differentiable(token, spectral, gradient, scale)


def _loss_backward(ctx: Any, grad_total: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:  # noqa: ANN401
    if grad_total is None:
        return (None,) * 10
    gradient, scale = ctx.saved_tensors
    if gradient.numel() == 0:
        raise RuntimeError("reconstruction_loss: expected with_gradient=True for a backward pass, got False")
    if torch.compiler.is_compiling() or type(gradient) is not Tensor:  # in the open, for the compiler to fuse
        gradient = gradient * (grad_total * scale)
    elif torch.is_grad_enabled():  # create_graph=True: a later use of the graph must raise, not see a constant
        gradient = _reconstruction_loss_backward(grad_total, gradient.detach().requires_grad_(), scale)
    elif torch._C._autograd._get_current_graph_task_keep_graph():  # another backward pass may follow
        gradient = _reconstruction_loss_backward(grad_total, gradient, scale)
    else:  # the buffer is nobody's any more; a factor of 1, the usual one, costs nothing
        _reconstruction_loss_scale(gradient, grad_total, scale)
    return (gradient, *[None] * 9)


_reconstruction_loss = define(
    "reconstruction_loss(Tensor prediction, Tensor image, Tensor mask, int[] patch_size, Tensor? valid,"
    " bool normalize_targets, bool spectral_raw, Tensor token_weight, Tensor spectral_weight, bool with_gradient)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    meta=_loss_meta,
    reference=reference.reconstruction_loss,
    native=_native.reconstruction_loss,
    setup_context=_loss_context,
    backward=_loss_backward,
)


def _backward_meta(grad_total: Tensor, gradient: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(gradient)


def _double_backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:  # noqa: ANN401
    raise RuntimeError("reconstruction_loss: double backward is not supported; the op returns first derivatives only")


_reconstruction_loss_backward = define(  # an op of its own, so that its derivative can raise
    "reconstruction_loss_backward(Tensor grad_total, Tensor gradient, Tensor scale) -> Tensor",
    meta=_backward_meta,
    reference=lambda grad_total, gradient, scale: gradient * (grad_total * scale),
    backward=_double_backward,
)


_reconstruction_loss_scale = define(
    "reconstruction_loss_scale(Tensor(a!) gradient, Tensor grad_total, Tensor scale) -> ()",
    meta=lambda gradient, grad_total, scale: None,
    reference=reference.reconstruction_loss_scale,
    native=_native.reconstruction_loss_scale,
)


def _weight(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if not isinstance(value, int | float):
        raise TypeError(f"reconstruction_loss: expected {name} as a float or a 0-d floating tensor, got {value!r}")
    return torch.full(
        (), value, dtype=torch.float64 if like.dtype == torch.float64 else torch.float32, device=like.device
    )


def reconstruction_loss(
    prediction: Tensor,
    image: Tensor,
    mask: Tensor,
    patch_size: Sequence[int] = (3, 8, 8),
    *,
    valid: Tensor | None = None,
    normalize_targets: bool = False,
    spectral_targets: str = "same",
    token_weight: float | Tensor = 1.0,
    spectral_weight: float | Tensor = 1.0,
) -> ReconstructionLoss:
    """How far a prediction is from the image, token by token and spectrum by spectrum.

    With x the image's tokens (normalised or raw), e = prediction - x, M the scored tokens (masked and valid) and Q
    the positions all of whose tokens are valid:

        token    = mean over M of mean over P of e^2
        spectral = mean over Q of mean over P of (sum over the S groups of e)^2
        total    = token_weight * token + spectral_weight * spectral

    Args:
        prediction: (B, L, P) float32, float64, float16 or bfloat16; sums are taken in float32 (float64 for float64).
        image: (B, C, H, W) floating, any strides; a constant: it gets no gradient.
        mask: (B, L) bool, True = removed, as in `CubeMask.mask`.
        patch_size: (t, p, p) bands, rows and columns of a token.
        valid: (B, L) bool, False where a token holds nodata; such a token is never scored.
        normalize_targets: each target token to zero mean and unit (unbiased) variance, epsilon 1e-6 under the root.
        spectral_targets: "same" sums the targets of the token term, "raw" the raw tokens (the published mix).
        token_weight: weight of the token term, float or 0-d tensor.
        spectral_weight: weight of the spectral term. No complete position at all makes this term 0.

    Returns:
        `ReconstructionLoss`; `token` and `spectral` are for reading and carry no gradient.

    Raises:
        ValueError: shapes that do not fit, an empty batch, no scored token (on CUDA a device assert).
        TypeError: other dtypes.
        RuntimeError: a second derivative is asked for.
    """
    if spectral_targets not in ("same", "raw"):
        raise ValueError(f'reconstruction_loss: expected spectral_targets "same" or "raw", got {spectral_targets!r}')
    if image.requires_grad:
        raise ValueError(
            "reconstruction_loss: expected an image without gradient, got one that requires it; pass image.detach()"
        )
    with_gradient = torch.is_grad_enabled() and prediction.requires_grad
    total, token, spectral, _, _ = _reconstruction_loss(
        prediction,
        image,
        mask,
        sizes("reconstruction_loss", "patch_size", patch_size),
        valid,
        normalize_targets,
        normalize_targets and spectral_targets == "raw",
        _weight("token_weight", token_weight, prediction),
        _weight("spectral_weight", spectral_weight, prediction),
        with_gradient,
    )
    return ReconstructionLoss(total, token, spectral)
