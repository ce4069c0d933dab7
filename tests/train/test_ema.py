# SPDX-License-Identifier: Apache-2.0
"""The running average follows its formula, survives a stage and a kill to the bit, and is what is exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from spectralgpt import cli
from spectralgpt.data.bands import SENTINEL2
from spectralgpt.data.raster import write_geotiff
from spectralgpt.train.config import OptimConfig
from spectralgpt.train.ema import AVERAGE, average_applied, averaged, update_average
from spectralgpt.train.optim import adamw, guarded_step
from tests.train import small_run, worlds


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "scene.tif"
    pixels = np.random.default_rng(0).integers(1, 9000, (13, 64, 128), dtype=np.uint16)
    write_geotiff(path, pixels, SENTINEL2.names, crs="EPSG:32632", transform=(10, 0, 0, 0, -10, 0))
    return path


def steps(count: int, decay: float) -> tuple[torch.nn.Linear, torch.optim.AdamW, list[torch.Tensor]]:
    """A small model trained for a few steps, and its weights after each."""
    model = torch.nn.Linear(4, 3)
    optimizer = adamw(model, OptimConfig())
    seen = []
    for step in range(count):
        loss = (model(torch.ones(2, 4) * (step + 1)) ** 2).sum()
        loss.backward()
        guarded_step(optimizer, loss.detach(), 0.1, None)
        update_average(optimizer, decay)
        seen.append(model.weight.detach().clone())
    return model, optimizer, seen


def test_the_formula() -> None:
    model, optimizer, seen = steps(6, 0.9)
    expected = seen[0].double()
    for weight in seen[1:]:
        expected = 0.9 * expected + 0.1 * weight.double()
    torch.testing.assert_close(optimizer.state[model.weight][AVERAGE].double(), expected, rtol=1e-6, atol=1e-7)
    assert AVERAGE in optimizer.state[model.bias]


def test_no_decay_is_the_weights_themselves() -> None:
    model, optimizer, _ = steps(3, 0.0)
    assert torch.equal(optimizer.state[model.weight][AVERAGE], model.weight)


def test_a_skipped_step_leaves_the_average_finite() -> None:
    model, optimizer, _ = steps(2, 0.9)
    loss = (model(torch.full((2, 4), torch.nan)) ** 2).sum()
    loss.backward()
    guarded_step(optimizer, loss.detach(), 0.1, None)
    update_average(optimizer, 0.9)
    assert optimizer.state[model.weight][AVERAGE].isfinite().all()


def test_applied_and_taken_back_to_the_bit_in_the_same_memory() -> None:
    model, optimizer, seen = steps(4, 0.9)
    address = model.weight.untyped_storage()._cdata
    with pytest.raises(KeyError), average_applied(optimizer):
        assert torch.equal(model.weight, optimizer.state[model.weight][AVERAGE])
        raise KeyError
    assert torch.equal(model.weight, seen[-1])
    assert model.weight.untyped_storage()._cdata == address


def test_without_an_average_weights_are_handed_out() -> None:
    weights = {"a": torch.ones(2), "b": torch.ones(2)}
    assert averaged(weights, {"exp_avg": {"a": torch.zeros(2)}}) == weights
    assert averaged(weights, {AVERAGE: {"a": torch.zeros(2), "b": torch.ones(2)}})["a"].sum() == 0
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    with average_applied(optimizer):
        pass


def test_resumed_to_the_bit_exported_and_carried_to_the_next_stage(tmp_path: Path, image: Path) -> None:
    folders = [tmp_path / name for name in ("through", "killed")]
    for folder in folders:
        folder.mkdir()
    through, killed = (small_run.write_recipe(folder, image, ema=0.8) for folder in folders)
    assert small_run.run({"config": str(through)}).code == 0
    assert small_run.run({"config": str(killed)}, before=small_run.kill_after_step, arguments=(10,)).code == -9
    assert small_run.run({"resume": str(folders[1] / "runs" / "run")}).code == 0
    whole, parts = (load_file(folder / "runs/run/model/model.safetensors") for folder in folders)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert (folders[0] / "runs/run/metrics.jsonl").read_bytes() == (folders[1] / "runs/run/metrics.jsonl").read_bytes()
    trained = load_file(folders[0] / "runs/run/checkpoints/step-14/model.safetensors")
    assert all(whole[name].shape == trained[name].shape for name in trained), "moved to the second stage's size"
    assert not any(torch.equal(whole[name], trained[name]) for name in trained), "the average is what is exported"


@pytest.mark.acceptance
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_several_processes_average_their_own_weights(tmp_path: Path, image: Path, parallel: str) -> None:
    """Without decay the average is the weights, to the bit, whoever holds which part of them."""
    recipe = small_run.write_recipe(tmp_path, image, ema=0.0, speed={"parallel": parallel})
    assert all(outcome.code == 0 for outcome in worlds.run(2, {"config": str(recipe)}))
    folder = tmp_path / "runs" / "run"
    exported, trained = (load_file(folder / part / "model.safetensors") for part in ("model", "checkpoints/step-14"))
    assert exported.keys() == trained.keys()
    assert all(torch.equal(exported[name], trained[name]) for name in trained)
    state = torch.load(folder / "checkpoints/step-14/state.pt", weights_only=True)
    assert all(torch.equal(value, trained[name]) for name, value in state["optimizer"][AVERAGE].items())


@pytest.mark.parametrize("decay", ["1.0", "-0.1"])
def test_a_share_that_is_none(decay: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--ema", decay]) == 2
    assert f"ema: expected a share from 0 to below 1 such as 0.9999, got {decay}" in capsys.readouterr().err
