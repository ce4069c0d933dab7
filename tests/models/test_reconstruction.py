# SPDX-License-Identifier: Apache-2.0
"""The baselines decide an acceptance number, so they are held against a loop that follows their definition word
by word."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import spectralgpt
from spectralgpt import ops
from spectralgpt.models.reconstruction import baselines, denormalize, evaluate

GRID = (4, 3, 5)
BANDS = 3


def slow_baselines(truth: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    groups, height, width = GRID
    nearest, mean = torch.empty_like(truth), torch.empty_like(truth)
    for b in range(truth.shape[0]):
        anything = truth[b][visible[b]]
        fallback = anything.mean() if len(anything) else torch.tensor(0.0)
        for g in range(groups):
            first = g * height * width
            seen = [i for i in range(height * width) if visible[b, first + i]]
            for i in range(height * width):
                if not seen:
                    nearest[b, first + i] = mean[b, first + i] = fallback
                    continue
                distances = [math.dist(divmod(i, width), divmod(j, width)) for j in seen]
                nearest[b, first + i] = truth[b, first + seen[distances.index(min(distances))]]
                bands = torch.stack([truth[b, first + j].reshape(BANDS, -1) for j in seen]).mean((0, 2))
                mean[b, first + i] = bands.repeat_interleave(truth.shape[2] // BANDS)
    return nearest, mean


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 1.0])
def test_baselines_equal_their_definition(share: float) -> None:
    generator = torch.Generator().manual_seed(3)
    truth = torch.randn(5, math.prod(GRID), BANDS * 4, generator=generator)
    visible = torch.rand(truth.shape[:2], generator=generator) < share
    if share == 0.05:
        assert not visible.unflatten(1, (4, -1)).any(2).all(), "a group without visible tokens must occur"
    for fast, slow in zip(baselines(truth, visible, GRID, BANDS), slow_baselines(truth, visible), strict=True):
        torch.testing.assert_close(fast, slow)


def test_equally_near_tokens_are_taken_in_reading_order() -> None:
    truth = torch.arange(9.0).reshape(1, 9, 1)
    visible = torch.zeros(1, 9, dtype=torch.bool)
    visible[0, [1, 3, 5, 7]] = True  # the four neighbours of the middle token 4
    nearest, _ = baselines(truth, visible, (1, 3, 3), 1)
    assert nearest[0, 4, 0] == 1.0


def test_evaluate_scores_hidden_valid_tokens_only_and_all_of_them() -> None:
    """Against the same sums by hand, over batches of unequal size."""
    model = spectralgpt.create_autoencoder("tiny", image_size=32, bands=6)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(5, 6, 32, 32, generator=generator)
    valid = torch.rand(5, 32, generator=generator) < 0.8
    batches = [
        {"image": image[part], "valid": valid[part], "sample_id": torch.arange(5)[part]}
        for part in (slice(3), slice(3, 5))
    ]
    result = evaluate(model, batches, mask_ratio=0.75, seed=7, device=torch.device("cpu"))

    mask = ops.random_cube_mask(torch.arange(5), 32, 0.75, seed=7, step=0)
    truth = ops.patchify3d(image)
    scored = mask.mask & valid
    with torch.no_grad():
        rebuilt = model.eval()(image, mask, valid=valid).prediction
    nearest, mean = baselines(truth, ~mask.mask & valid, (2, 4, 4), 3)
    for candidate, psnr in ((rebuilt, result.psnr), (nearest, result.psnr_nearest), (mean, result.psnr_mean)):
        assert psnr == pytest.approx(-10 * math.log10((candidate - truth)[scored].square().mean().item()), abs=1e-4)
    assert result.windows == 5
    with torch.no_grad():  # however they are batched, every token and every position weighs the same
        whole = model(image, mask, valid=valid)
    assert result.loss == pytest.approx(whole.loss.item(), rel=1e-5)


def test_evaluate_leaves_the_model_in_its_mode() -> None:
    model = spectralgpt.create_autoencoder("tiny", image_size=16, bands=3).train()
    batch = {
        "image": torch.rand(1, 3, 16, 16),
        "valid": torch.ones(1, 4, dtype=torch.bool),
        "sample_id": torch.zeros(1, dtype=torch.int64),
    }
    evaluate(model, [batch], mask_ratio=0.5, seed=0, device=torch.device("cpu"))
    assert model.training


def test_denormalize_undoes_normalized_targets() -> None:
    truth = torch.randn(2, 4, 12) * 3 + 5
    standardized = (truth - truth.mean(-1, keepdim=True)) / (truth.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(denormalize(standardized, truth), truth)


def gaussian_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The SSIM map of one band by its definition: an 11 x 11 Gaussian window, pixel by pixel."""
    reach = np.arange(-5, 6)
    window = np.exp(-(reach**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    c1, c2 = 0.01**2, 0.03**2
    a, b = (np.pad(x, 5, mode="reflect") for x in (a, b))
    out = np.empty((a.shape[0] - 10, a.shape[1] - 10))
    for y, x in np.ndindex(out.shape):
        p, q = (image[y : y + 11, x : x + 11] for image in (a, b))
        mp, mq = (window * p).sum(), (window * q).sum()
        vp, vq = (window * p * p).sum() - mp**2, (window * q * q).sum() - mq**2
        cov = (window * p * q).sum() - mp * mq
        out[y, x] = (2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
    return out


def test_errors_of_bands_against_numpy():
    """Seven bands in groups of three (the last one repeated), nodata, and another normalisation for each sample."""
    model = spectralgpt.create_autoencoder("tiny", image_size=32, bands=[f"B{i}" for i in range(7)]).eval()
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(4, 7, 32, 32, generator=generator)
    valid = torch.rand(4, 48, generator=generator) < 0.8
    scale = 10.0 ** -torch.randint(3, 5, (4, 7), generator=generator)
    offset = 1000 * torch.rand(4, 7, generator=generator)
    samples = {"image": image, "valid": valid, "sample_id": torch.arange(4), "scale": scale, "offset": offset}
    batches = [{key: value[part] for key, value in samples.items()} for part in (slice(3), slice(3, 4))]
    result = evaluate(model, batches, mask_ratio=0.6, seed=7, device=torch.device("cpu"))

    mask = ops.random_cube_mask(torch.arange(4), 48, 0.6, seed=7, step=0)
    with torch.no_grad():
        rebuilt = model(image, mask, valid=valid).prediction
    size, first = (9, 32, 32), slice(7)  # bands 7 and 8 of the cube are band 6 again
    cube = ops.unpatchify3d(rebuilt, size)[:, first].double().numpy()
    spread = lambda flags: ops.unpatchify3d(flags[:, :, None].expand_as(rebuilt), size)[:, first].numpy()  # noqa: E731
    hidden, usable = spread(mask.mask & valid), spread(valid)
    truth = image.double().numpy()
    guess = np.where(hidden, cube, truth)
    raw_truth, raw_guess = (
        x / scale.numpy()[..., None, None] + offset.numpy()[..., None, None] for x in (truth, guess)
    )

    similarity = np.stack([[gaussian_similarity(guess[b, c], truth[b, c]) for c in range(7)] for b in range(4)])
    assert list(result.bands) == [f"B{i}" for i in range(7)]
    relative = []
    for band, error in enumerate(result.bands.values()):
        at = hidden[:, band]
        mse = ((guess - truth)[:, band][at] ** 2).mean()
        rmse = math.sqrt(((raw_guess - raw_truth)[:, band][at] ** 2).mean())
        relative.append(100 * rmse / raw_truth[:, band][at].mean())
        assert error.psnr == pytest.approx(-10 * math.log10(mse), rel=1e-5)
        assert error.rmse == pytest.approx(rmse, rel=1e-4)
        assert error.relative == pytest.approx(relative[-1], rel=1e-4)
        assert error.ssim == pytest.approx(similarity[:, band][at].mean(), abs=1e-4)
    assert result.ergas == pytest.approx(math.sqrt(np.mean(np.square(relative))), rel=1e-4)
    assert result.ssim == pytest.approx(similarity[hidden].mean(), abs=1e-4)

    dot, lengths = (raw_guess * raw_truth).sum(1), [np.linalg.norm(x, axis=1) for x in (raw_guess, raw_truth)]
    angles = np.degrees(np.arccos(np.clip(dot / (lengths[0] * lengths[1]), -1, 1)))
    looked_at = hidden.any(1) & usable.all(1)
    assert 0 < looked_at.sum() < looked_at.size
    assert result.sam == pytest.approx(angles[looked_at].mean(), rel=1e-3)


def test_a_single_band_has_no_spectral_angle():
    model = spectralgpt.create_autoencoder("tiny", bands=1, image_size=16)
    image = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    batch = {"image": image, "valid": torch.ones(2, model.config.num_tokens).bool(), "sample_id": torch.arange(2)}
    result = evaluate(model, [batch], mask_ratio=0.5, seed=0, device="cpu")
    assert math.isnan(result.sam) and 0 < result.ergas < math.inf and math.isfinite(result.ssim)


def test_pixels_without_data_change_no_error():
    model = spectralgpt.create_autoencoder("tiny", image_size=32, bands=6)
    image = torch.rand(2, 6, 32, 32)
    valid = torch.ones(2, 32, dtype=torch.bool)
    valid[:, 5] = False
    nowhere = ops.unpatchify3d(~valid[:, :, None].expand(-1, -1, 192), (6, 32, 32))
    batch = {"image": image, "valid": valid, "sample_id": torch.arange(2)}
    mask_ratio, seed = 0.75, next(s for s in range(99) if hides(s, 5))
    results = []
    for value in (0.0, 0.5):  # what stands there matters to the model alone, so it gets a constant answer
        model.decoder.pred.weight.data.zero_()
        batch["image"] = torch.where(nowhere, value, image)
        results.append(evaluate(model, [batch], mask_ratio=mask_ratio, seed=seed, device=torch.device("cpu")))
    assert [results[0].bands[name].rmse for name in results[0].bands] == pytest.approx(
        [results[1].bands[name].rmse for name in results[1].bands]
    )
    assert (results[0].sam, results[0].psnr, results[0].ergas) == pytest.approx(
        (results[1].sam, results[1].psnr, results[1].ergas)
    )


def hides(seed: int, token: int) -> bool:
    return bool(ops.random_cube_mask(torch.arange(2), 32, 0.75, seed=seed).mask[:, token].all())


def test_a_perfect_model():
    model = spectralgpt.create_autoencoder("tiny", image_size=16, bands=3).eval()
    model.decoder.pred.weight.data.zero_()
    model.decoder.pred.bias.data.fill_(0.25)
    flat = {"image": torch.full((1, 3, 16, 16), 0.25), "sample_id": torch.zeros(1, dtype=torch.int64)}
    flat["valid"] = torch.ones(1, 4, dtype=torch.bool)
    perfect = evaluate(model, [flat], mask_ratio=0.5, seed=0, device=torch.device("cpu"))
    assert (perfect.psnr, perfect.ssim, perfect.ergas) == (math.inf, pytest.approx(1), 0)
    assert perfect.sam == pytest.approx(0, abs=0.05)
