# SPDX-License-Identifier: Apache-2.0
"""What a recipe leaves open is chosen for the GPU's memory; what it says is kept."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from spectralgpt.data.synthetic import synthetic_scene
from spectralgpt.models.config import make_config
from spectralgpt.nn import Block
from spectralgpt.train import recipe, run
from spectralgpt.train.command import run_training
from spectralgpt.train.config import RunConfig, SpeedConfig, StageConfig
from spectralgpt.train.memory import Training
from spectralgpt.train.model_section import ModelSection
from spectralgpt.train.passes import Passes, choose, memory_of
from spectralgpt.train.planner import DEVICES, make_plan
from spectralgpt.train.step import OptimizerStep
from tests.train import small_run

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


def test_the_memory_of_a_gpu_is_what_the_process_may_use_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 0.5)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * GB))
    assert memory_of(torch.device("cuda", 0)) == 40 * GB
    assert memory_of(torch.device("cpu")) is None


def test_a_run_goes_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A machine of which the context leaves 1.3 MB, 0.8 of which a model takes."""
    synthetic_scene(tmp_path / "scene.tif", 64, 128, seed=1)
    monkeypatch.setattr(run, "memory_of", lambda device: int((0.6e9 + 1.34e6) / 0.97))
    stage = {"image_size": 16, "batch_size": 8, "mask_ratio": 0.75, "steps": 1, "warmup_steps": 0}
    path = small_run.write_recipe(tmp_path, tmp_path / "scene.tif", stages=[stage], precision="fp32")
    prepared = run.prepare(recipe.build(recipe.read(path)), None)
    assert prepared.passes.planned and 1 < prepared.passes.micro_batch < 8
    blocks = [module for module in prepared.model.modules() if isinstance(module, Block)]
    assert blocks and {block.recompute for block in blocks} == {prepared.passes.recompute} == {"light"}
    assert OptimizerStep(prepared)._micro_batch == prepared.passes.micro_batch
    assert run_training({"config": str(path)}) == 0
    expected = f"of {prepared.passes.micro_batch} windows, GELU and LayerNorm computed again: planned"
    assert expected in capsys.readouterr().out


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
