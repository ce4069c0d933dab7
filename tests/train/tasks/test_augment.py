# SPDX-License-Identifier: Apache-2.0
"""Erasing and mixing are functions of seed, step and sample, and do what they say."""

from __future__ import annotations

import torch

from spectralgpt.data.mixing import MixConfig
from spectralgpt.train.tasks.augment import erased, mixed


def boxes(images: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    return (images != result).any(1)


def test_erasing_fills_boxes_of_the_area_asked_for_with_the_mean() -> None:
    images, ids, step = torch.rand(400, 3, 32, 48), torch.arange(400), torch.tensor(7)
    result = erased(images, ids, 0.5, 3, step)
    changed = boxes(images, result)
    area = changed.float().mean((1, 2))
    assert 0.4 < (area > 0).float().mean() < 0.6
    assert 0.01 < area[area > 0].min() and area.max() < 0.36
    for index in area.nonzero()[:20, 0].tolist():
        rows, columns = changed[index].any(1).nonzero()[:, 0], changed[index].any(0).nonzero()[:, 0]
        assert changed[index].sum() == len(rows) * len(columns), "a box"
        mean = images[index].mean((1, 2))
        torch.testing.assert_close(result[index][:, rows[0], columns[0]], mean)


def test_erasing_depends_on_the_sample_and_the_step_alone() -> None:
    images, ids = torch.rand(8, 3, 16, 16), torch.arange(8)
    whole = erased(images, ids, 1.0, 3, torch.tensor(1))
    parts = torch.cat([erased(images[i : i + 2], ids[i : i + 2], 1.0, 3, torch.tensor(1)) for i in range(0, 8, 2)])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, erased(images, ids, 1.0, 3, torch.tensor(2)))
    assert torch.equal(images, erased(images, ids, 0.0, 3, torch.tensor(1)))


def test_mixing_depends_on_step_and_place_and_touches_no_generator() -> None:
    images, target = torch.rand(6, 3, 16, 16), torch.eye(6)
    before = torch.get_rng_state()
    draws = [mixed(images, target, MixConfig(), 3, *key) for key in ((1, 0), (1, 0), (1, 1), (2, 0))]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(draws[0][0], draws[1][0]) and torch.equal(draws[0][1], draws[1][1])
    assert not torch.equal(draws[0][0], draws[2][0]) and not torch.equal(draws[0][0], draws[3][0])
    torch.testing.assert_close(draws[0][1].sum(1), torch.ones(6))
