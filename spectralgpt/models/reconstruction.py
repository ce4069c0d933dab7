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

Beside them, for the model alone and with the same hidden values:

- SSIM in normalised units, data range 1, Gaussian window of deviation 1.5; the mean of its map.
- SAM, the angle between true and rebuilt spectra, over pixels with a hidden value and without an invalid one.
- ERGAS = 100 sqrt(mean over bands of (RMSE / mean of the truth)^2), without the factor for a change of resolution.

SAM, ERGAS and the RMSE of each band are in the numbers of the image files, normalisation undone: an angle or a relative
error means nothing where zero is not zero. What the model saw is left as it is in the images that SSIM and SAM look at.

Invalid tokens count as neither visible nor hidden. A group without a visible token falls back to the mean of
all visible values of its window, for both baselines; a window without any falls back to 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchmetrics.functional.image import spectral_angle_mapper, structural_similarity_index_measure

from spectralgpt import ops
from spectralgpt.models.autoencoder import Autoencoder
from spectralgpt.models.base import arrange_bands
from spectralgpt.models.config import ModelConfig
from spectralgpt.ops.reference import EPSILON


@dataclass(frozen=True)
class BandError:
    """How well one band is rebuilt.

    Attributes:
        psnr: in dB.
        ssim: structural similarity.
        rmse: in the numbers of the image files.
        relative: RMSE over the mean of the truth, percent.
    """

    psnr: float
    ssim: float
    rmse: float
    relative: float


@dataclass(frozen=True)
class Reconstruction:
    """How well a model rebuilds; a number is NaN where nothing could be scored.

    Attributes:
        psnr: in dB, of the model.
        psnr_nearest: in dB, of the first baseline.
        psnr_mean: in dB, of the second.
        loss: mean over the windows.
        windows: how many there were.
        ssim: structural similarity, 1 where nothing differs.
        sam: spectral angle, degrees; NaN for a single band.
        ergas: relative error over all bands, percent.
        bands: the same for each band, by its name.
    """

    psnr: float
    psnr_nearest: float
    psnr_mean: float
    loss: float
    windows: int
    ssim: float = math.nan
    sam: float = math.nan
    ergas: float = math.nan
    bands: dict[str, BandError] = field(default_factory=dict)


@torch.no_grad()
def evaluate(
    autoencoder: Autoencoder,
    batches: Iterable[dict[str, Tensor]],
    *,
    mask_ratio: float,
    seed: int,
    device: torch.device,
) -> Reconstruction:
    """Rebuilds the hidden tokens of every batch and scores them.

    Args:
        autoencoder: left in the mode it came in.
        batches: as `Rebuilding.add` takes them.
        mask_ratio: share of hidden tokens.
        seed: the run's seed.
        device: where the model is.
    """
    was_training = autoencoder.training
    autoencoder.eval()
    rebuilding = Rebuilding(autoencoder, mask_ratio=mask_ratio, seed=seed, device=device)
    for batch in batches:
        rebuilding.add(batch)
    autoencoder.train(was_training)
    return rebuilding.result()


class Rebuilding:
    """Hides tokens of images, rebuilds them, and keeps count of the errors.

    Masks depend on (seed, sample id) alone, so any two models meet the same; their step is 0, which training never
    uses.
    """

    def __init__(self, autoencoder: Autoencoder, *, mask_ratio: float, seed: int, device: torch.device) -> None:
        """For a model in evaluation mode on `device`."""
        self._autoencoder, self._mask_ratio, self._seed, self._device = autoencoder, mask_ratio, seed, device
        self._errors = torch.zeros(3, dtype=torch.float64, device=device)
        self._count = torch.zeros((), dtype=torch.float64, device=device)
        self._loss, self._weights = torch.zeros(2, 2, dtype=torch.float64, device=device)  # of tokens and of positions
        self._windows = 0
        self._by_band = _BandErrors(autoencoder.config, device)

    @torch.no_grad()
    def add(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Rebuilds a batch.

        Args:
            batch: `image` (B, C, H, W), `valid` (B, L) and `sample_id` (B,), and `offset` and `scale` (B, C) where
                pixels were normalised by (x - offset) * scale.

        Returns:
            Every token as rebuilt, (B, L, P), in the units of the image (`denormalize` is applied), and which tokens
            were hidden, (B, L) bool.
        """
        config, patch_size = self._autoencoder.config, self._autoencoder.config.patch_size
        image, valid, sample_id = (batch[key].to(self._device) for key in ("image", "valid", "sample_id"))
        mask = ops.random_cube_mask(sample_id, valid.shape[1], self._mask_ratio, seed=self._seed)
        scored = mask.mask & valid
        has_scored = bool(scored.any())  # the loss wants something to score
        output = self._autoencoder(image, mask, valid=valid if has_scored else None)
        truth = ops.patchify3d(arrange_bands(image.float(), config), patch_size)
        rebuilt = denormalize(output.prediction.float(), truth) if config.normalize_targets else output.prediction
        if not has_scored:
            return rebuilt, mask.mask
        candidates = (rebuilt, *baselines(truth, ~mask.mask & valid, config.grid_of(*image.shape[-2:]), patch_size[0]))
        self._errors += torch.stack([(guess - truth)[scored].double().square().sum() for guess in candidates])
        self._count += scored.sum() * truth.shape[2]
        self._by_band.add(rebuilt, batch, scored, valid)
        complete = valid.unflatten(1, (config.grid_of(*image.shape[-2:])[0], -1)).all(1)
        weights = torch.stack([scored.sum(), complete.sum()])
        self._loss += weights * torch.stack([output.token_loss, output.spectral_loss]).double()
        self._weights += weights
        self._windows += len(image)
        return rebuilt, mask.mask

    def result(self) -> Reconstruction:
        """The errors over all batches so far."""
        psnr = [_decibel(mse) for mse in (self._errors / self._count).tolist()]
        token, spectral = (self._loss / self._weights.clamp(min=1)).tolist()
        config = self._autoencoder.config
        loss = config.token_weight * token + config.spectral_weight * spectral if self._windows else math.nan
        return Reconstruction(psnr[0], psnr[1], psnr[2], loss, self._windows, *self._by_band.result())


class _BandErrors:
    """Sums over hidden values, per band of the image; a band repeated to fill a group counts where it comes first."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self._config = config
        self._bands = list(dict.fromkeys(config.band_order))
        self._places = [config.band_order.index(band) for band in self._bands]
        zeros = torch.zeros(len(self._bands), dtype=torch.float64, device=device)
        self._squares, self._ssim, self._raw_squares, self._raw, self._count = (zeros.clone() for _ in range(5))
        self._angle = torch.zeros(2, dtype=torch.float64, device=device)  # sum and count

    def add(self, rebuilt: Tensor, batch: dict[str, Tensor], scored: Tensor, valid: Tensor) -> None:
        """Takes in a batch: rebuilt tokens (B, L, P), which of them to score and which are valid, (B, L)."""
        image = batch["image"].to(rebuilt.device).float()
        truth = image[:, self._bands]
        hidden, usable = (self._cube(flags[:, :, None].expand_as(rebuilt), image) for flags in (scored, valid))
        guess = torch.where(hidden, self._cube(rebuilt.float(), image), truth)
        _, similarity = structural_similarity_index_measure(guess, truth, data_range=1.0, return_full_image=True)
        raw_truth, raw_guess = (self._raw_numbers(pixels, batch) for pixels in (truth, guess))
        for total, values in (
            (self._squares, (guess - truth).square()),
            (self._ssim, similarity),
            (self._raw_squares, (raw_guess - raw_truth).square()),
            (self._raw, raw_truth),
            (self._count, torch.ones_like(truth)),
        ):
            total += torch.where(hidden, values.double(), 0).sum((0, 2, 3))
        if len(self._bands) == 1:  # numbers have no angle
            return
        angles = spectral_angle_mapper(raw_guess, raw_truth, reduction="none")
        looked_at = hidden.any(1) & usable.all(1) & angles.isfinite()  # no angle with a spectrum of zeros
        self._angle += torch.stack([angles[looked_at].double().sum(), looked_at.sum()])

    def result(self) -> tuple[float, float, float, dict[str, BandError]]:
        """SSIM, SAM in degrees, ERGAS and the table of bands."""
        names = self._config.band_names or tuple(f"band {number}" for number in range(1, self._config.bands + 1))
        rmse = (self._raw_squares / self._count).sqrt()
        relative = 100 * rmse / (self._raw / self._count).abs()
        columns = (self._squares / self._count, self._ssim / self._count, rmse, relative)
        rows = zip(self._bands, *(column.tolist() for column in columns), strict=True)
        table = {names[band]: BandError(_decibel(mse), *others) for band, mse, *others in rows}
        ssim = self._ssim.sum() / self._count.sum()
        sam = torch.rad2deg(self._angle[0] / self._angle[1])
        ergas = relative[relative.isfinite()].square().mean().sqrt()
        return ssim.item(), sam.item(), ergas.item(), table

    def _cube(self, tokens: Tensor, image: Tensor) -> Tensor:
        size = (len(self._config.band_order), *image.shape[-2:])
        return ops.unpatchify3d(tokens, size, self._config.patch_size)[:, self._places]

    def _raw_numbers(self, pixels: Tensor, batch: dict[str, Tensor]) -> Tensor:
        if "scale" not in batch:
            return pixels
        scale, offset = (batch[key].to(pixels)[:, self._bands, None, None] for key in ("scale", "offset"))
        return pixels / scale + offset


def _decibel(mse: float) -> float:
    return 10 * math.log10(1 / mse) if mse > 0 else math.inf if mse == 0 else math.nan


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


def as_image(tokens: Tensor, config: ModelConfig, size: tuple[int, int]) -> Tensor:
    """The image that tokens show: the inverse of cutting it into them.

    Args:
        tokens: (B, L, P), any dtype.
        config: the model's; a band repeated to fill a group is taken from where it comes first.
        size: (H, W).

    Returns:
        (B, C, H, W), in the order of the image's bands.
    """
    cube = ops.unpatchify3d(tokens, (len(config.band_order), *size), config.patch_size)
    return cube[:, [config.band_order.index(band) for band in range(config.bands)]]


def _distances(height: int, width: int, device: torch.device) -> Tensor:
    """Squared distances between the tokens of one group, (N, N); exact integers, so that ties are ties."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten(), x.flatten()
    return ((y[:, None] - y).square() + (x[:, None] - x).square()).float().to(device)


def _ratio(total: Tensor, count: Tensor) -> Tensor:
    return total / count.clamp(min=1)
