# SPDX-License-Identifier: Apache-2.0
"""How much a validation of a pretraining looks at, and in what pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spectralgpt.data.synthetic import synthetic_scene
from spectralgpt.train import recipe
from spectralgpt.train.run import Run, prepare
from spectralgpt.train.tasks.reconstruction import ReconstructionValidation
from tests.train import small_run


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "scene.tif"
    synthetic_scene(path, 64, 128, seed=1)
    return path


def prepared(folder: Path, scene: Path, **changes: Any) -> Run:
    stage = {"image_size": 16, "batch_size": 4, "micro_batch": 2, "mask_ratio": 0.75}
    return prepare(recipe.build(recipe.read(small_run.write_recipe(folder, scene, stages=[stage], **changes))), None)


def test_no_more_windows_than_asked_for_spread_over_all_in_pieces_as_in_training(scene: Path, tmp_path: Path) -> None:
    run = prepared(tmp_path, scene, validate_windows=3)
    windows, read, sizes = run.windows[0][1], set(), []
    assert len(windows) == 8
    real = type(windows).__getitem__

    class Spy(type(windows)):  # type: ignore[misc]
        def __getitem__(self, key: Any) -> Any:
            read.add(key[1])
            return real(self, key)

    windows.__class__ = Spy

    def size(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))

    run.model.register_forward_pre_hook(size)
    result = ReconstructionValidation(run).measure(run.model)
    assert result.details["windows"] == 3 and read == {0, 2, 5} and sizes == [2, 1]


def test_all_windows_where_there_are_fewer(scene: Path, tmp_path: Path) -> None:
    run = prepared(tmp_path, scene)
    assert ReconstructionValidation(run).measure(run.model).details["windows"] == 8
