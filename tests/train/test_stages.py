# SPDX-License-Identifier: Apache-2.0
"""What a stage hands to the next one, and runs over two image sizes and two sensors that may be cut off anywhere."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import spectralgpt
from spectralgpt.data.bands import SENTINEL2, SENTINEL2_12
from spectralgpt.data.sensors import LANDSAT_OLI
from spectralgpt.data.synthetic import synthetic_scene
from spectralgpt.errors import UserError
from spectralgpt.models.config import ModelConfig
from spectralgpt.nn.positions import resample_spatial, resample_spectral
from spectralgpt.train import recipe, stages
from spectralgpt.train.config import RunConfig, StageConfig
from spectralgpt.train.model_section import ModelSection
from spectralgpt.train.run import prepare
from spectralgpt.train.stages import Snapshot
from spectralgpt.train.tasks.pretrain import Pretrain
from tests.data.rasters import write
from tests.train import small_run

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"embed_dim": 32, "depth": 1, "num_heads": 2, "decoder_embed_dim": 32, "decoder_depth": 1}
CARD = SENTINEL2.select(SENTINEL2_12)
OTHER = LANDSAT_OLI.select(("B1", "B2", "B3", "B4", "B5", "B6", "B7"))
SPATIAL, SPECTRAL = "encoder.positions.spatial", "encoder.positions.spectral"
ADAMW = ("exp_avg", "exp_avg_sq", "step")
TASK = Pretrain(RunConfig())


def first(config: ModelConfig, seed: int) -> Snapshot:
    return stages.untrained(TASK.fresh(config, seed))


def entered(card: Any = CARD, image_size: int = 24, **choices: Any) -> tuple[Snapshot, Snapshot, Snapshot]:
    """The snapshots before and after a change of stage, and the fresh one."""
    section = ModelSection(**SMALL)
    old, new = stages.model_config(section, CARD, 16), stages.model_config(section, card, image_size)
    before, fresh = first(old, 1), first(new, 2)
    generator = torch.Generator().manual_seed(3)
    for key in ("exp_avg", "exp_avg_sq"):
        before.moments[key] = {n: torch.rand(t.shape, generator=generator) for n, t in before.weights.items()}
    before.moments["step"] = {name: torch.tensor(7.0) for name in before.weights}
    before.moments["average"] = dict(before.weights)
    return before, stages.enter(before, old, new, card, StageConfig(**choices), fresh, TASK.build), fresh


def test_another_size_resamples_positions_and_their_moments_and_touches_nothing_else() -> None:
    before, after, _ = entered()
    pairs = [(before.weights, after.weights), *((before.moments[key], after.moments[key]) for key in ADAMW[:2])]
    for old, new in pairs:
        for name, tensor in old.items():
            if name.endswith("spatial"):
                moved = resample_spatial(tensor, (2, 2), (3, 3))
                assert torch.equal(new[name], moved.clamp(min=0) if new is pairs[2][1] else moved)
            else:
                assert torch.equal(new[name], tensor), name
    assert after.moments["step"] == before.moments["step"]
    assert torch.equal(after.moments["average"][SPATIAL], after.weights[SPATIAL])
    assert all((tensor >= 0).all() for tensor in after.moments["exp_avg_sq"].values())


def test_bicubic_weights_cannot_take_a_second_moment_below_zero() -> None:
    section = ModelSection(**SMALL)
    old, new = stages.model_config(section, CARD, 32), stages.model_config(section, CARD, 48)
    before = first(old, 1)
    edge = torch.zeros(16, 32)
    edge[5] = 1.0
    before.moments["exp_avg_sq"] = {n: torch.zeros_like(t) for n, t in before.weights.items()} | {SPATIAL: edge}
    assert resample_spatial(edge, (4, 4), (6, 6)).min() < 0
    after = stages.enter(before, old, new, CARD, StageConfig(), before, TASK.build)
    assert after.moments["exp_avg_sq"][SPATIAL].min() == 0


def test_other_bands_move_spectral_positions_by_wavelength() -> None:
    before, after, _ = entered(OTHER, 16)
    section = ModelSection(**SMALL)
    old, new = (stages.model_config(section, card, 16).group_wavelengths for card in (CARD, OTHER))
    assert len(old) == 4 and len(new) == 3
    assert torch.equal(after.weights[SPECTRAL], resample_spectral(before.weights[SPECTRAL], old, new))
    assert torch.equal(after.weights[SPATIAL], before.weights[SPATIAL])
    moment = before.moments["exp_avg"][SPECTRAL]
    assert torch.equal(after.moments["exp_avg"][SPECTRAL], resample_spectral(moment, old, new))


def test_reinit_draws_spatial_positions_anew_and_forgets_their_moments_only() -> None:
    before, after, fresh = entered(positions="reinit")
    for name in before.weights:
        redrawn = name.endswith("spatial")
        assert torch.equal(after.weights[name], (fresh if redrawn else before).weights[name])
        assert after.moments["step"][name] == (0 if redrawn else 7)
        assert after.moments["exp_avg"][name].any() != redrawn
    assert torch.equal(after.moments["average"][SPATIAL], fresh.weights[SPATIAL])
    _, same_size, fresh = entered(image_size=16, positions="reinit")
    assert not torch.equal(same_size.weights[SPATIAL], fresh.weights[SPATIAL])


def test_a_fresh_optimizer_keeps_weights_and_their_average() -> None:
    before, after, _ = entered(image_size=16, optimizer="fresh")
    for name, tensor in before.weights.items():
        assert torch.equal(after.weights[name], tensor) and torch.equal(after.moments["average"][name], tensor)
        assert not any(after.moments[key][name].any() for key in ADAMW)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, (False, "same", 1.0, 1.0)),
        ({"loss": "normalized"}, (True, "same", 1.0, 1.0)),
        ({"loss": "token_only"}, (False, "same", 1.0, 0.0)),
        ({"loss": "token_only", "normalize_targets": True, "token_weight": 2.0}, (True, "same", 2.0, 0.0)),
        ({"loss": "normalized", "spectral_targets": "raw", "spectral_weight": 0.5}, (True, "raw", 1.0, 0.5)),
    ],
)
def test_loss_presets(keys: dict[str, Any], expected: tuple[Any, ...]) -> None:
    config = stages.model_config(ModelSection(**SMALL, **keys), CARD, 16)
    got = (config.normalize_targets, config.spectral_targets, config.token_weight, config.spectral_weight)
    assert got == expected


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A Sentinel-2 scene of 64 x 128 pixels and a Landsat one, at another place, of seven bands."""
    folder = tmp_path_factory.mktemp("scenes")
    synthetic_scene(folder / "s2.tif", 64, 128, seed=1)
    fields = np.random.default_rng(4).integers(500, 4000, (7, 8, 16)).astype(np.uint16)
    write(folder / "l8.tif", np.kron(fields, np.ones((8, 8), np.uint16)), OTHER.names)
    return folder / "s2.tif", folder / "l8.tif"


def two_sensors(folder: Path, scenes: tuple[Path, Path], **changes: Any) -> Path:
    """The shape of configs/two_sensors.yaml in small."""
    plan = yaml.safe_load((ROOT / "configs/two_sensors.yaml").read_text())
    for stage, image in zip(plan["stages"], scenes, strict=True):
        stage.update(image_size=16, steps=4, batch_size=2, warmup_steps=1)
        stage.setdefault("data", {}).update(root=str(image))
    return small_run.write_recipe(folder, scenes[0], stages=plan["stages"], validate_every=0, **changes)


def test_two_sensors_end_to_end_killed_in_both_stages(scenes: tuple[Path, Path], tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    assert small_run.run({"config": str(two_sensors(tmp_path / "a", scenes))}).code == 0
    options = {"config": str(two_sensors(tmp_path / "b", scenes))}
    run, other = tmp_path / "b/runs/run", tmp_path / "a/runs/run"
    for step in (4, 6):  # the first stage's end, and amid the second
        assert small_run.run(options, before=small_run.kill_after_step, arguments=(step,)).code == -9
        options = {"resume": str(run)}
    assert small_run.run(options).code == 0
    for name in ("metrics.jsonl", "model/model.safetensors", "model/config.json"):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    model = spectralgpt.from_pretrained(run / "model")
    assert model.config.band_names == OTHER.names and len(model.config.groups) == 3
    assert model.normalization["band_names"] == list(OTHER.names)
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in losses if "loss" in row] == ["Sentinel-2"] * 4 + ["Landsat-8"] * 4


def built(folder: Path, scene: Path, **changes: Any) -> Any:
    path = small_run.write_recipe(folder, scene, **changes)
    return recipe.build(recipe.read(path))


def test_epochs_become_steps_and_each_stage_sees_every_window_once_per_epoch(
    scenes: tuple[Path, Path], tmp_path: Path
) -> None:
    first = {"image_size": 24, "steps": 3, "batch_size": 2, "warmup_steps": 1}
    second = {"image_size": 16, "epochs": 5, "warmup_epochs": 1, "batch_size": 4, "accumulate": 2}
    run = prepare(built(tmp_path, scenes[0], stages=[first, second]), None)
    count = len(run.windows[1][0])
    assert count == 24
    assert (run.config.stages[1].steps, run.config.stages[1].warmup_steps) == (5 * 24 // 8, 24 // 8)
    assert run.recipe.stages[1].steps == StageConfig().steps, "the recipe stays as it was written"
    run.progress.step, run.progress.samples = 3, 6
    run.enter_stage(1)
    assert run.first_sample == 24, "the next whole epoch after the windows seen"
    run.progress.advance(8)
    assert run.first_sample == 32


def test_a_stage_has_keys_of_its_own_over_the_runs_data(scenes: tuple[Path, Path], tmp_path: Path) -> None:
    stage = {"image_size": 16, "data": {"root": "elsewhere", "num_workers": 3}}
    config = built(tmp_path, scenes[0], stages=[stage, {"image_size": 16}])
    own = dataclasses.replace(config.data, root="elsewhere", num_workers=3)
    assert config.stages[0].data == own and config.stages[1].data is None
    stored = yaml.safe_load(recipe.to_yaml(config))
    recipe.override(stored, {"stages.1.data.root": "third"})
    assert recipe.build(stored).stages[1].data.root == "third"
    with pytest.raises(UserError, match=r"stages\.0\.data\.rot: unknown key; did you mean stages\.0\.data\.root\?"):
        built(tmp_path, scenes[0], stages=[{"data": {"rot": "x"}}])


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (
            {"image_size": 20},
            r"stages\.1\.image_size: expected a multiple of the patch's 8 pixels, got 20; 16 would do",
        ),
        ({"image_size": 72}, r"expected an image of at least 72 x 72 pixels, got 64 x 128"),
        ({"batch_size": 5, "accumulate": 5}, r"stages\.1\.batch_size: expected at most the 24 windows .* got 5 x 5"),
        ({"data": {"bands": ["B02", "B77"]}}, r"B77"),
        ({"data": {"sensor": "landsat_oli"}}, r"B01|B09|B11|B12|B8A"),
        (
            {"steps": 9, "warmup_steps": 10},
            r"stages\.1\.warmup_steps: expected .* the stage's 9 steps, got 10 steps; shorten",
        ),
        (
            {"epochs": 1, "warmup_epochs": 2},
            r"stages\.1\.warmup_epochs: expected .* the stage's 12 steps, got 24 steps",
        ),
        ({"micro_batch": 0}, r"stages\.1\.micro_batch: expected at least 1, got 0"),
        ({"mask_ratio": 0.99}, r"stages\.1\.mask_ratio: expected one that hides some but not all of the 16 tokens"),
    ],
)
def test_a_later_stage_that_does_not_fit_is_told_at_the_start(
    scenes: tuple[Path, Path], tmp_path: Path, stage: dict[str, Any], words: str
) -> None:
    plain = {"image_size": 16, "batch_size": 2}
    with pytest.raises(UserError, match=words):
        prepare(built(tmp_path, scenes[0], stages=[plain, {**plain, **stage}]), None)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid(path: Path) -> None:
    config = recipe.build(recipe.read(path))
    assert config.stages and recipe.build(yaml.safe_load(recipe.to_yaml(config))) == config


@pytest.mark.parametrize("size", ["base", "large", "huge"])
def test_published_recipes_are_as_published(size: str) -> None:
    config = recipe.build(recipe.read(ROOT / f"configs/pretrain_{size}.yaml"))
    assert (config.model.name, config.optim.betas, config.optim.weight_decay) == (size, (0.9, 0.95), 0.05)
    first, second = config.stages
    assert (first.image_size, first.epochs, first.warmup_epochs, first.mask_ratio) == (96, 200, 20, 0.9)
    assert (second.image_size, second.epochs) == (128, 100)
    for stage, rate in ((first, 2e-4), (second, 1e-4)):
        assert stage.windows_per_step == 4096 and stage.lr == pytest.approx(rate * 4096 / 256)
