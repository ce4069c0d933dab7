# SPDX-License-Identifier: Apache-2.0
"""The schedule's shape, which weights decay, and that a non-finite step changes nothing at all."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from torch import Tensor, nn

import spectralgpt
from spectralgpt.train.config import OptimConfig, StageConfig
from spectralgpt.train.optim import adamw, guarded_step, learning_rate


def test_warm_up_then_half_cosine() -> None:
    stage = StageConfig(steps=110, warmup_steps=10, lr=2.0, min_lr=0.5)
    rates = [learning_rate(stage, step) for step in range(110)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0
    assert rates[60] == pytest.approx(1.25)
    assert rates[109] == pytest.approx(0.5 + 0.75 * (1 + math.cos(math.pi * 0.99)))
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert learning_rate(StageConfig(steps=1, warmup_steps=0, lr=1.0), 0) == 1.0


def test_biases_and_norms_are_spared_from_decay_positions_and_mask_token_are_not() -> None:
    model = spectralgpt.create_autoencoder("tiny", image_size=16, bands=3)
    decayed, spared = adamw(model, OptimConfig(weight_decay=0.3)).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert all(names[id(p)].endswith("bias") or "norm" in names[id(p)] for p in spared["params"])
    assert {"positions", "mask_token"} <= {part for p in decayed["params"] for part in names[id(p)].split(".")}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    moments = [value.clone() for state in optimizer.state.values() for value in state.values()]
    return [parameter.detach().clone() for parameter in model.parameters()] + moments


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("where", ["loss", "one gradient element"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_changes_no_bit(value: float, where: str, clip_norm: float | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    optimizer = adamw(model, OptimConfig())

    def step(bad: bool) -> Tensor:
        loss = model(torch.ones(3, 4)).square().mean()
        loss.backward()
        if bad and where == "loss":
            loss = loss * value
        elif bad:
            model[0].weight.grad[1, 2] = value
        return guarded_step(optimizer, loss.detach(), 0.1, clip_norm)

    step(bad=False)
    before = _state(model, optimizer)
    step(bad=True)
    assert all(torch.equal(a, b) for a, b in zip(before, _state(model, optimizer), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    norm = step(bad=False)
    assert norm.isfinite()
    assert not any(torch.equal(a, b) for a, b in zip(before[:2], _state(model, optimizer)[:2], strict=True))


def test_clipping_shortens_the_update_and_reports_the_full_norm() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = adamw(nn.ParameterList([weight]), OptimConfig(weight_decay=0.0))
    seen: list[float] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(weight.grad.norm().item()))
    weight.grad = torch.full((2, 2), 3.0)
    assert guarded_step(optimizer, torch.tensor(1.0), 0.1, 1.5).item() == pytest.approx(6.0)
    assert seen == pytest.approx([1.5])


def test_layer_decay_counts_from_the_head_down_and_positions_are_at_the_bottom() -> None:
    model = spectralgpt.create_classifier("tiny", 3, image_size=16, bands=3, depth=4)
    optimizer = adamw(model, OptimConfig(layer_decay=0.5))
    scale = {id(p): group["scale"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: scale[id(parameter)] for name, parameter in model.named_parameters()}
    assert len(found) == len(list(model.parameters()))
    for name, factor in found.items():
        block = re.search(r"encoder\.blocks\.(\d)", name)
        lowest = name.startswith(("encoder.patch_embed", "encoder.positions"))
        assert factor == (0.5**5 if lowest else 0.5 ** (4 - int(block[1])) if block else 1.0), name
    loss = sum(parameter.sum() for parameter in model.parameters())
    loss.backward()
    guarded_step(optimizer, loss.detach(), 0.1, None)
    assert {group["lr"] for group in optimizer.param_groups} == {0.1 * factor for factor in found.values()}


def test_schedules_fall_from_the_rate_to_the_last() -> None:
    for schedule, half in (("cosine", 0.505), ("poly", 0.01 + 0.99 * 0.5**0.9), ("exponential", 0.1)):
        stage = StageConfig(steps=110, warmup_steps=10, lr=1.0, min_lr=0.01, schedule=schedule)  # type: ignore[arg-type]
        assert learning_rate(stage, 10) == 1.0
        assert learning_rate(stage, 60) == pytest.approx(half)
        assert learning_rate(stage, 110) == pytest.approx(0.01)
    published = StageConfig(steps=300, warmup_steps=0, lr=1e-4, min_lr=1e-4 * 0.95**300, schedule="exponential")
    assert learning_rate(published, 20) == pytest.approx(1e-4 * 0.95**20)
