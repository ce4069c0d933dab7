# SPDX-License-Identifier: Apache-2.0
"""The baselines decide an acceptance number, so they are held against a loop that follows their definition word
by word."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import spectralgpt
from spectralgpt import ops
from spectralgpt.train.metrics import baselines, denormalize, evaluate

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
