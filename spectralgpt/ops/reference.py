# SPDX-License-Identifier: Apache-2.0
"""Every op in plain PyTorch: the definition, the test oracle, and the fallback for a device without a kernel.

Written for reading, not for speed. Arguments have passed the op's checks; sizes are those of `spectralgpt.ops`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from spectralgpt.ops.random import Purpose, philox

EPSILON = 1e-6


def patchify3d(image: Tensor, patch_size: Sequence[int]) -> Tensor:
    """(B, C, H, W) -> (B, L, P); tokens ordered (group, y, x), values ordered (band, row, column)."""
    t, p, q = patch_size
    batch, bands, height, width = image.shape
    grid = image.reshape(batch, bands // t, t, height // p, p, width // q, q)
    num_tokens = (bands // t) * (height // p) * (width // q)
    tokens = grid.permute(0, 1, 3, 5, 2, 4, 6).clone(memory_format=torch.contiguous_format)  # never a view
    return tokens.view(batch, num_tokens, t * p * q)


def unpatchify3d(tokens: Tensor, image_size: Sequence[int], patch_size: Sequence[int]) -> Tensor:
    """(B, L, P) -> (B, C, H, W), the inverse of `patchify3d`."""
    t, p, q = patch_size
    bands, height, width = image_size
    batch = tokens.shape[0]
    grid = tokens.reshape(batch, bands // t, height // p, width // q, t, p, q)
    image = grid.permute(0, 1, 4, 2, 5, 3, 6).clone(memory_format=torch.contiguous_format)
    return image.view(batch, bands, height, width)


def gather_patchify3d(image: Tensor, ids_keep: Tensor, patch_size: Sequence[int]) -> Tensor:
    """`patchify3d(image)` at `ids_keep`."""
    check_ids("gather_patchify3d", ids_keep, num_tokens(image.shape[1:], patch_size))
    tokens = patchify3d(image, patch_size)
    return tokens.gather(1, ids_keep[:, :, None].expand(-1, -1, tokens.shape[2]))


def gather_patchify3d_backward(
    grad: Tensor, ids_keep: Tensor, image_size: Sequence[int], patch_size: Sequence[int]
) -> Tensor:
    """Gradient of `gather_patchify3d` for the image: zero where no token was kept, summed where one was kept twice."""
    total = num_tokens(image_size, patch_size)
    check_ids("gather_patchify3d_backward", ids_keep, total)
    tokens = grad.new_zeros(grad.shape[0], total, grad.shape[2])
    tokens.scatter_add_(1, ids_keep[:, :, None].expand(-1, -1, grad.shape[2]), grad)
    return unpatchify3d(tokens, image_size, patch_size)


def random_cube_mask(
    sample_ids: Tensor, num_tokens: int, num_keep: int, seed: Tensor, step: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Keeps the `num_keep` tokens with the smallest (Philox word, index): uniform over all subsets."""
    words = philox(seed, sample_ids, step, Purpose.MASK, num_tokens)
    order = words.argsort(dim=1, stable=True)
    mask = torch.ones_like(words, dtype=torch.bool).scatter(1, order[:, :num_keep], False)
    ids_shuffle = mask.to(torch.uint8).argsort(dim=1, stable=True)  # kept ascending, then removed ascending
    return ids_shuffle[:, :num_keep].contiguous(), ids_shuffle.argsort(dim=1), mask


def cube_mask_from_noise(noise: Tensor, num_keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keeps the `num_keep` tokens of smallest noise, in noise order; equal noise in index order, NaN last."""
    ids_shuffle = noise.argsort(dim=1, stable=True)
    ids_restore = ids_shuffle.argsort(dim=1)
    return ids_shuffle[:, :num_keep].contiguous(), ids_restore, ids_restore >= num_keep


def reconstruction_loss(
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
    """(total, token, spectral, gradient, scale): the gradient of total for the prediction is `gradient * scale`."""
    scalar = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    groups = image.shape[1] // patch_size[0]
    truth = patchify3d(image.to(scalar), patch_size)
    target = standardize(truth) if normalize_targets else truth
    difference = prediction.to(scalar) - target

    scored = mask if valid is None else mask & valid
    if not scored.any():
        raise ValueError("reconstruction_loss: expected at least one scored token (masked and valid), got none")
    token = difference[scored].square().mean()

    by_group = difference if not spectral_raw else prediction.to(scalar) - truth
    spectrum = by_group.unflatten(1, (groups, -1)).sum(1)  # (B, h*w, P)
    complete = torch.ones_like(spectrum[..., 0], dtype=torch.bool)
    if valid is not None:
        complete = valid.unflatten(1, (groups, -1)).all(1)
    spectrum = spectrum.where(complete[..., None], 0)
    num_complete = complete.sum().clamp(min=1) * spectrum.shape[2]
    spectral = spectrum.square().sum() / num_complete

    total = token_weight * token + spectral_weight * spectral
    gradient, scale = prediction.new_empty(0), total.new_ones(())
    if with_gradient:
        num_values = scored.sum().to(scalar) * difference.shape[2]
        if prediction.dtype == torch.float16:
            scale = 1 / num_values  # kept apart: errors over millions of values underflow in float16
        by_token = difference.where(scored[..., None], 0) * (2 * token_weight / (num_values * scale))
        by_position = spectrum * (2 * spectral_weight / (num_complete * scale))
        gradient = (by_token + by_position.repeat(1, groups, 1)).to(prediction.dtype)
    return total.to(scalar), token, spectral, gradient, scale.to(scalar)


def reconstruction_loss_scale(gradient: Tensor, grad_total: Tensor, scale: Tensor) -> None:
    """Multiplies the gradient in place."""
    gradient.mul_(grad_total * scale)


def assemble_tokens(
    visible: Tensor, mask_token: Tensor, positions: Tensor, ids_restore: Tensor, out_dtype: torch.dtype
) -> Tensor:
    """(B, L, D): visible tokens at their places, the mask token everywhere else, plus positions; rounded once."""
    check_restore("assemble_tokens", ids_restore, visible.shape[1])
    batch, num_keep, channels = visible.shape
    wide = sum_dtype(visible, mask_token, positions)
    table = torch.cat([visible.to(wide), mask_token.to(wide).expand(batch, 1, channels)], dim=1)
    rows = ids_restore.clamp(max=num_keep)[:, :, None].expand(-1, -1, channels)
    return (table.gather(1, rows) + positions.to(wide)).to(out_dtype)


def assemble_tokens_backward(
    grad: Tensor,
    ids_restore: Tensor,
    num_keep: int,
    visible_dtype: torch.dtype,
    mask_dtype: torch.dtype,
    positions_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `assemble_tokens` for visible, mask_token and positions."""
    check_restore("assemble_tokens_backward", ids_restore, num_keep)
    wide = grad.to(sum_dtype(grad))
    ids_keep = ids_restore.argsort(dim=1)[:, :num_keep, None].expand(-1, -1, grad.shape[2])
    hidden = (ids_restore >= num_keep)[..., None]
    mask_grad = wide.where(hidden, 0).sum((0, 1))
    return grad.gather(1, ids_keep).to(visible_dtype), mask_grad.to(mask_dtype), wide.sum(0).to(positions_dtype)


def crop_resize(
    pixels: Tensor,
    layout: Tensor,
    boxes: Tensor,
    flips: Tensor,
    size: int,
    bands: int,
    offset: Tensor,
    scale: Tensor,
    antialias: bool,
    out_dtype: torch.dtype,
) -> Tensor:
    """(B, bands, size, size): each image's box resized by torch's bicubic, flipped, then `(x - offset) * scale`."""
    check_boxes("crop_resize", pixels.numel(), layout, boxes, bands)
    wide = sum_dtype(pixels)
    out = offset.new_empty(layout.shape[0], bands, size, size, dtype=out_dtype)
    for sample, ((start, height, width), (y, x, h, w)) in enumerate(zip(layout.tolist(), boxes.tolist(), strict=True)):
        image = pixels[start : start + bands * height * width].view(bands, height, width)
        box = image[None, :, y : y + h, x : x + w].to(wide)
        view = F.interpolate(box, (size, size), mode="bicubic", align_corners=False, antialias=antialias)[0]
        view = view.flip([axis for axis, flip in zip((1, 2), flips[sample].tolist(), strict=True) if flip])
        out[sample] = (view - offset[sample, :, None, None].to(wide)) * scale[sample, :, None, None].to(wide)
    return out


def sum_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype that arithmetic is done in: float64 where one of the inputs is, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def standardize(tokens: Tensor) -> Tensor:
    """Each token to zero mean and unit variance (unbiased, epsilon inside the square root)."""
    variance, mean = torch.var_mean(tokens, dim=-1, keepdim=True, correction=1)
    return (tokens - mean) / (variance + EPSILON).sqrt()


def num_tokens(image_size: Sequence[int], patch_size: Sequence[int]) -> int:
    """L = S * h * w."""
    (bands, height, width), (t, p, q) = image_size, patch_size
    return (bands // t) * (height // p) * (width // q)


def check_ids(op: str, ids: Tensor, size: int) -> None:
    """Token ids inside [0, size): IndexError on the CPU; other devices assert on the device, without waiting for it."""
    inside = ((ids >= 0) & (ids < size)).all()
    if ids.device.type == "cpu":
        if not inside:
            raise IndexError(f"{op}: expected token ids in [0, {size}), got {int(ids.min())}..{int(ids.max())}")
    else:
        torch._assert_async(inside, f"{op}: expected token ids in [0, {size})")


def check_restore(op: str, ids_restore: Tensor, num_keep: int) -> None:
    """Each of the places 0 .. K-1 exactly once per sample, none negative, so that every visible token is used once."""
    places = ids_restore.where(ids_restore < num_keep, num_keep).sort(dim=1).values[:, :num_keep]
    right = (places == torch.arange(num_keep, device=places.device)).all() & (ids_restore >= 0).all()
    right &= ((ids_restore < num_keep).sum(1) == num_keep).all()
    message = f"{op}: expected ids_restore to hold each of 0 .. {num_keep - 1} once per sample and nothing below 0"
    if ids_restore.device.type != "cpu":
        torch._assert_async(right, message)
    elif not right:
        raise IndexError(f"{message}, got another set of places")


def check_boxes(op: str, size: int, layout: Tensor, boxes: Tensor, bands: int) -> None:
    """Images inside the buffer, boxes inside the images and not empty."""
    start, height, width = layout.unbind(1)
    y, x, h, w = boxes.to(torch.int64).unbind(1)
    inside = (start >= 0) & (height > 0) & (width > 0) & (width <= size)  # products of untrusted sizes may overflow
    inside &= height <= (size - start.clamp(0, size)) // (bands * width.clamp(1, max(1, size)))
    inside &= (y >= 0) & (x >= 0) & (h > 0) & (w > 0) & (y + h <= height) & (x + w <= width)
    if layout.device.type != "cpu":
        torch._assert_async(inside.all(), f"{op}: expected images inside the buffer and boxes inside the images")
    elif not inside.all():
        sample = int((~inside).to(torch.uint8).argmax())
        raise IndexError(
            f"{op}: expected images inside the buffer of {size} values and boxes inside the images, got sample "
            f"{sample} with start, height, width {layout[sample].tolist()} and box {boxes[sample].tolist()}"
        )
