# SPDX-License-Identifier: Apache-2.0
"""How well hidden tokens are rebuilt, beside two baselines without training that see the same masks.

PSNR = 10 log10(1 / MSE), the MSE over every value of every hidden, valid token of all validation windows, in
normalised units. Baselines:

- nearest: a hidden token is a copy of the nearest visible token of its own band group; distance is Euclidean
  between token centres, and among equally near ones the token first in reading order (top to bottom, left to
  right) is taken.
- mean: each band of a hidden token is the mean of that band over the visible tokens of its group. One number
  per band: averaging each of the p x p places on its own would add the noise of a few tokens and make an easier
  baseline.

Invalid tokens count as neither visible nor hidden. A group without a visible token falls back to the mean of
all visible values of its window, for both baselines; a window without any falls back to 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralgpt import ops
from spectralgpt.models.autoencoder import Autoencoder
from spectralgpt.models.base import arrange_bands
from spectralgpt.ops.reference import EPSILON


@dataclass(frozen=True)
class Reconstruction:
    """PSNR in dB of the model and of the two baselines, and the mean losses over the same windows."""

    psnr: float
    psnr_nearest: float
    psnr_mean: float
    loss: float
    windows: int


@torch.no_grad()
def evaluate(
    autoencoder: Autoencoder,
    batches: Iterable[dict[str, Tensor]],
    *,
    mask_ratio: float,
    seed: int,
    device: torch.device,
) -> Reconstruction:
    """Rebuilds the hidden tokens of every batch; masks depend on (seed, sample id) alone: any two models meet the same.

    Args:
        autoencoder: left in the mode it came in.
        batches: dictionaries with `image` (B, C, H, W), `valid` (B, L) and `sample_id` (B,).
        mask_ratio: share of hidden tokens.
        seed: the run's seed; the mask's step is 0, which training never uses.
        device: where the model is.
    """
    config = autoencoder.config
    patch_size = config.patch_size
    errors = torch.zeros(3, dtype=torch.float64, device=device)
    count = torch.zeros((), dtype=torch.float64, device=device)
    loss, windows = torch.zeros((), dtype=torch.float64, device=device), 0
    was_training = autoencoder.training
    autoencoder.eval()
    for batch in batches:
        image, valid, sample_id = (batch[key].to(device) for key in ("image", "valid", "sample_id"))
        mask = ops.random_cube_mask(sample_id, valid.shape[1], mask_ratio, seed=seed)
        output = autoencoder(image, mask, valid=valid)
        truth = ops.patchify3d(arrange_bands(image.float(), config), patch_size)
        rebuilt = denormalize(output.prediction.float(), truth) if config.normalize_targets else output.prediction
        scored = mask.mask & valid
        candidates = (rebuilt, *baselines(truth, ~mask.mask & valid, config.grid_of(*image.shape[-2:]), patch_size[0]))
        errors += torch.stack([(candidate - truth)[scored].double().square().sum() for candidate in candidates])
        count += scored.sum() * truth.shape[2]
        loss += output.loss.double() * len(image)
        windows += len(image)
    autoencoder.train(was_training)
    psnr = [10 * math.log10(1 / mse) if mse > 0 else math.inf for mse in (errors / count).tolist()]
    return Reconstruction(psnr[0], psnr[1], psnr[2], loss.item() / windows, windows)


def baselines(truth: Tensor, visible: Tensor, grid: tuple[int, int, int], bands: int) -> tuple[Tensor, Tensor]:
    """What the two baselines put at every token (see the top of this file).

    Args:
        truth: tokens, (B, L, P).
        visible: tokens that may be used, (B, L) bool.
        grid: (S, h, w) with S * h * w = L.
        bands: bands per token, t.

    Returns:
        (nearest, mean), both (B, L, P).
    """
    groups, height, width = grid
    tokens = truth.unflatten(1, (groups, height * width))  # (B, S, N, P)
    seen = visible.unflatten(1, (groups, height * width))
    weights = seen[..., None].to(truth.dtype)

    fallback = _ratio((tokens * weights).sum((1, 2, 3)), weights.sum((1, 2, 3)) * truth.shape[2])[:, None, None, None]
    any_seen = seen.any(2)[:, :, None, None]

    values = tokens.unflatten(3, (bands, -1))  # (B, S, N, t, p*p)
    band_mean = _ratio((values * weights[..., None]).sum((2, 4)), weights.sum(2) * values.shape[4])  # (B, S, t)
    mean = torch.where(any_seen, band_mean.repeat_interleave(values.shape[4], 2)[:, :, None], fallback).expand_as(
        tokens
    )

    distance = _distances(height, width, truth.device).expand(*seen.shape[:2], -1, -1)  # (B, S, N, N)
    source = distance.masked_fill(~seen[:, :, None], torch.inf).argmin(3)  # argmin: the first of equals
    copied = tokens.gather(2, source[..., None].expand_as(tokens))
    nearest = torch.where(any_seen, copied, fallback)
    return nearest.flatten(1, 2), mean.flatten(1, 2)


def denormalize(prediction: Tensor, truth: Tensor) -> Tensor:
    """Undoes `normalize_targets` by the mean and spread of the *true* tokens: shows shape, not level or contrast."""
    variance, mean = torch.var_mean(truth, dim=-1, keepdim=True, correction=1)
    return prediction * (variance + EPSILON).sqrt() + mean


def _distances(height: int, width: int, device: torch.device) -> Tensor:
    """Squared distances between the tokens of one group, (N, N); exact integers, so that ties are ties."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten(), x.flatten()
    return ((y[:, None] - y).square() + (x[:, None] - x).square()).float().to(device)


def _ratio(total: Tensor, count: Tensor) -> Tensor:
    return total / count.clamp(min=1)
