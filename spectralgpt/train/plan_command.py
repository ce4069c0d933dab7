# SPDX-License-Identifier: Apache-2.0
"""`spectralgpt plan`: from options or a recipe to one table per image size."""

from __future__ import annotations

from typing import Any

import torch

from spectralgpt.errors import UserError
from spectralgpt.models.config import ModelConfig, make_config
from spectralgpt.train import recipe
from spectralgpt.train.config import RunConfig, StageConfig
from spectralgpt.train.memory import Training
from spectralgpt.train.planner import DEVICES, Device, make_plan, measured_device, parse_bytes, table

_DEFAULTS: dict[str, Any] = {"model": "base", "image_size": 96, "mask_ratio": 0.9, "epochs": 200, "images": 712_874}
"""The published first stage: 200 epochs over fMoW-Sentinel."""
_IMAGES = {"bigearthnet": 237_871}  # training split of version 2; of other data sets as many as fMoW-Sentinel has


def run_plan(options: dict[str, Any]) -> int:
    """Prints the tables; `options` are those of the command line, None where not given.

    Raises:
        UserError: options that contradict each other or make no sense.
    """
    text = options["memory"] or _memory_at_hand()
    memory = parse_bytes(text)
    cases = _from_recipe(options) if options["config"] else [_from_options(options)]
    for number, (model, training, samples, schedule) in enumerate(cases):
        plan = make_plan(model, training, memory, _device(options, model, training, memory))
        if number:
            print("\n" + "-" * 118)
        print(table(plan, samples, schedule))
    return 0


Case = tuple[ModelConfig, Training, float, str]


def _from_options(options: dict[str, Any]) -> Case:
    chosen = {key: default if options[key] is None else options[key] for key, default in _DEFAULTS.items()}
    for key in ("epochs", "images"):
        if chosen[key] < 1:
            raise UserError(f"--{key}: expected at least 1, got {chosen[key]}")
    model = make_config(chosen["model"], image_size=chosen["image_size"], bands=options["bands"] or 12)
    training = _training(options, chosen["mask_ratio"], options["precision"] or "bf16", bool(options["ema"]))
    schedule = f"{chosen['epochs']} epochs of {chosen['images']:,} images"
    return model, training, float(chosen["epochs"] * chosen["images"]), schedule


def _from_recipe(options: dict[str, Any]) -> list[Case]:
    taken = [f"--{key.replace('_', '-')}" for key in _DEFAULTS if key != "images" and options[key] is not None]
    if taken:
        raise UserError(
            f"--config: expected it without {taken[0]}, which the recipe holds; change a copy of the recipe"
        )
    config = recipe.build(recipe.read(options["config"]))
    if config.task != "pretrain":
        raise UserError(
            f"--config: expected a recipe of pretraining, got {config.task}: plan counts an autoencoder; train without "
            "a plan: passes are halved where memory runs out, and the bar shows memory and time left"
        )
    return [_stage(options, config, stage) for stage in config.stages]


def _stage(options: dict[str, Any], config: RunConfig, stage: StageConfig) -> Case:
    data = stage.data or config.data
    bands = options["bands"] or len(data.bands) or 12
    model = make_config(**config.model.fields(), image_size=stage.image_size, bands=bands)
    precision = options["precision"] or ("bf16" if config.precision == "auto" else config.precision)
    training = _training(options, stage.mask_ratio, precision, bool(config.ema or options["ema"]))
    if stage.epochs:
        images = options["images"] or _IMAGES.get(data.dataset or "", _DEFAULTS["images"])
        told = "" if options["images"] else " (assumed; --images tells)"
        schedule = f"stage {stage.name!r}, {stage.epochs} epochs of {images:,} images{told}"
        return model, training, float(stage.epochs * images), schedule
    return model, training, float(stage.steps * stage.windows_per_step), f"stage {stage.name!r}, {stage.steps:,} steps"


def _training(options: dict[str, Any], mask_ratio: float, precision: str, ema: bool) -> Training:
    if not 0 < mask_ratio < 1:
        raise UserError(f"--mask-ratio: expected a share between 0 and 1, got {mask_ratio}")
    if options["gpus"] < 1:
        raise UserError(f"--gpus: expected at least 1, got {options['gpus']}")
    return Training(
        precision=precision,  # type: ignore[arg-type]  # the parsers of recipe and command line checked it
        mask_ratio=mask_ratio,
        gpus=options["gpus"],
        sharding=options["sharding"],
        optimizer_state=options["optimizer_state"],
        ema=ema,
    )


def _memory_at_hand() -> str:
    if not torch.cuda.is_available():
        raise UserError("--memory: expected the memory of a GPU, as there is none here to ask; for example 24GB")
    return str(torch.cuda.get_device_properties(0).total_memory)


def _device(options: dict[str, Any], model: ModelConfig, training: Training, memory: float) -> Device:
    """The one named, else the GPU at hand, measured; else the one that the memory suggests."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if options["measure"] or (options["gpu"] is None and kind == "cuda"):
        assumed = make_plan(model, training, memory, DEVICES["h100"])
        batch = 2 if kind == "cpu" else max(1, min(64, assumed.choices[0].micro_batch))
        return measured_device(model, training, batch, kind)
    return DEVICES[options["gpu"] or ("rtx4090" if memory < 40e9 else "h100")]
