# SPDX-License-Identifier: Apache-2.0
"""What the loop moves forward (data, autoencoder, progress), and how it becomes a checkpoint and comes back.

All stages' images are opened before anything is trained, so a window that does not fit stage three is told now,
not in a week.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.optim import AdamW

import spectralgpt
from spectralgpt.data.bands import sensor_card
from spectralgpt.data.datasets.scene import SceneWindows, open_windows
from spectralgpt.errors import UserError
from spectralgpt.models.autoencoder import Autoencoder
from spectralgpt.train.checkpoint import Checkpoint
from spectralgpt.train.config import RunConfig, StageConfig
from spectralgpt.train.initialize import start_from_geometry
from spectralgpt.train.recipe import to_yaml


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        stage: place of the current stage.
        stage_step: optimizer steps done in it.
        step: optimizer steps done in the run.
        samples: windows consumed in the run; the place in the order of the data.
    """

    stage: int = 0
    stage_step: int = 0
    step: int = 0
    samples: int = 0

    def advance(self, samples: int) -> None:
        """One optimizer step over `samples` windows is done."""
        self.stage_step += 1
        self.step += 1
        self.samples += samples


@dataclass
class Run:
    """Everything a loop needs but the outputs. `windows` holds (training, validation) per stage."""

    config: RunConfig
    device: torch.device
    windows: list[tuple[SceneWindows, SceneWindows]]
    autoencoder: Autoencoder
    progress: Progress
    optimizer_state: dict[str, Any] | None = None

    @property
    def stage(self) -> StageConfig:
        """The current stage."""
        return self.config.stages[self.progress.stage]

    def enter_stage(self, index: int) -> None:
        """Goes to a stage's start, or stays in the one a checkpoint was in; weights carry over, positions resampled."""
        if index != self.progress.stage:
            self.progress.stage, self.progress.stage_step = index, 0
            self.autoencoder.resize(self.stage.image_size)

    def restore(self, optimizer: AdamW) -> None:
        """Hands the checkpoint's optimizer state to the first optimizer built after it; later stages start afresh."""
        if self.optimizer_state is not None:
            optimizer.load_state_dict(self.optimizer_state)
            self.optimizer_state = None

    @property
    def dtype(self) -> torch.dtype:
        """What matrices are multiplied in: bf16 where the recipe and the device want it."""
        precision = self.config.precision
        bf16 = precision == "bf16" or (precision == "auto" and self.device.type == "cuda")
        return torch.bfloat16 if bf16 else torch.float32

    def autocast(self) -> AbstractContextManager[None]:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def checkpoint(self, optimizer: AdamW) -> Checkpoint:
        """The state after a finished step."""
        state = {
            "progress": asdict(self.progress),
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),  # drop path draws from it; data and masks do not
            "rng_cuda": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
            "config": yaml.safe_load(to_yaml(self.config)),
        }
        return Checkpoint(self.progress.step, self.autoencoder.state_dict(), state)

    def export(self, folder: Path) -> None:
        """Writes the model for `spectralgpt.from_pretrained`."""
        self.autoencoder.save_pretrained(folder)


def prepare(config: RunConfig, saved: Checkpoint | None) -> Run:
    """Opens the data of all stages and builds the autoencoder, with fresh weights or those of a checkpoint.

    Raises:
        UserError: images that do not fit the recipe, or a checkpoint of another model.
    """
    if saved is not None:
        _check_same_model(saved.state, yaml.safe_load(to_yaml(config)))
    device = _set_up_torch(config)
    progress = Progress(**saved.state["progress"]) if saved else Progress()
    windows = [
        (
            open_windows(config.data, stage.image_size, config.model.patch_size, "train", config.seed),
            open_windows(config.data, stage.image_size, config.model.patch_size, "val", config.seed),
        )
        for stage in config.stages
    ]
    torch.manual_seed(config.seed)
    autoencoder = _build(config, config.stages[progress.stage].image_size)
    autoencoder.normalization = _normalization(windows[0][0])
    run = Run(config, device, windows, autoencoder.to(device), progress)
    if saved is not None:
        autoencoder.load_state_dict(saved.weights)
        run.optimizer_state = saved.state["optimizer"]
        torch.set_rng_state(saved.state["rng"])
        if device.type == "cuda" and saved.state["rng_cuda"] is not None:
            torch.cuda.set_rng_state(saved.state["rng_cuda"])
    return run


def differing_keys(saved: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two recipes' trees; stages by their place."""
    keys: list[str] = []
    for key in {**saved, **now}:
        old, new = (_by_place(tree[key]) if key == "stages" else tree.get(key) for tree in (saved, now))
        if isinstance(old, dict) and isinstance(new, dict):
            keys += differing_keys(old, new, f"{prefix}{key}.")
        elif old != new:
            keys.append(f"{prefix}{key} ({old} before, {new} now)")
    return keys


def _by_place(items: list[Any]) -> dict[str, Any]:
    return {str(place): item for place, item in enumerate(items)}


def _build(config: RunConfig, image_size: int) -> Autoencoder:
    card = sensor_card(config.data.sensor).select(config.data.bands)
    fields = asdict(config.model)
    position_init = fields.pop("position_init")
    autoencoder = spectralgpt.create_autoencoder(image_size=image_size, bands=card, **fields)
    if position_init == "sincos":
        start_from_geometry(autoencoder)
    return autoencoder


def _normalization(windows: SceneWindows) -> dict[str, Any]:
    """What travels with the model: the numbers of a single image; of several just the method, as each has its own."""
    first, *others = windows.normalizations.values()
    plain = first.to_dict()
    return {"method": plain["method"], "band_names": plain["band_names"]} if others else plain


def _set_up_torch(config: RunConfig) -> torch.device:
    """Applies device, threads and determinism, which belong to the process."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: expected a CUDA device, got none; leave it at auto")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if cuda else "cpu")


def _check_same_model(state: dict[str, Any], now: dict[str, Any]) -> None:
    """A resumed run may get other lengths, rates or folders, but no other model, bands or random numbers."""
    stage = state["progress"]["stage"]
    pinned = ("model.", "data.sensor", "data.bands", "data.val_fraction", "seed", f"stages.{stage}.image_size")
    fixed = [key for key in differing_keys(state["config"], now) if key.startswith(pinned)]
    if stage >= len(now["stages"]):
        fixed.append(f"stages ({len(now['stages'])} now, but stage {stage} is reached)")
    if fixed:
        raise UserError(
            f"--resume: expected the model the run began with, got other values of {'; '.join(fixed)}; "
            "start anew with a --name"
        )
