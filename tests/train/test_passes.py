# SPDX-License-Identifier: Apache-2.0
"""What a recipe leaves open is chosen for the GPU's memory; what it says is kept."""

from __future__ import annotations

import math
from typing import Any

import pytest

from spectralgpt.models.config import make_config
from spectralgpt.train.config import RunConfig, SpeedConfig, StageConfig
from spectralgpt.train.memory import Training
from spectralgpt.train.model_section import ModelSection
from spectralgpt.train.passes import Passes, choose
from spectralgpt.train.planner import DEVICES, make_plan

GB = 10**9


def chosen(
    memory: int | None, size: str = "huge", batch: int = 1024, micro: int | None = None, **changes: Any
) -> Passes:
    speed = SpeedConfig(**{key: changes.pop(key) for key in ("recompute", "cuda_graph") if key in changes})
    stage = StageConfig(batch_size=batch, micro_batch=micro)
    return choose(RunConfig(speed=speed, stages=[stage], **changes), stage, make_config(size), memory)


@pytest.mark.parametrize(
    ("memory", "recompute"), [(80, "none"), (24, "none"), (18, "none"), (16, "light"), (14, "blocks"), (13, "blocks")]
)
def test_a_gpu_is_filled_in_equal_passes_with_the_least_computed_again(memory: int, recompute: str) -> None:
    plan = make_plan(make_config("huge"), Training(), memory * GB, DEVICES["h100"])
    (most,) = (choice.micro_batch for choice in plan.choices if choice.recompute == recompute)
    number = math.ceil(1024 / most)
    assert chosen(memory * GB) == Passes(math.ceil(1024 / number), recompute, planned=True)  # type: ignore[arg-type]


def test_a_small_batch_goes_through_at_once_and_a_small_gpu_gets_a_try() -> None:
    assert chosen(24 * GB, batch=8) == Passes(8, "none", planned=True)
    assert chosen(8 * GB).micro_batch == 1


def test_what_the_recipe_says_is_kept() -> None:
    assert chosen(24 * GB, micro=100) == Passes(100, "light", planned=True)
    assert chosen(24 * GB, recompute="blocks").recompute == "blocks"
    assert chosen(24 * GB, micro=64, recompute="none") == Passes(64, "none")
    assert chosen(24 * GB, micro=64, batch=16).micro_batch == 16
    dropping = chosen(14 * GB, cuda_graph=True, model=ModelSection(drop_path=0.1))
    assert dropping.recompute == "light", "a graph cannot draw again"


def test_without_a_gpu_or_for_other_tasks_nothing_is_chosen() -> None:
    assert chosen(None) == Passes(1024, "none")
    assert chosen(None, micro=3, recompute="light") == Passes(3, "light")
    assert chosen(24 * GB, task="segmentation") == Passes(1024, "none")
