# SPDX-License-Identifier: Apache-2.0
"""A validation: errors over every held-out window, and a figure of a few of them under the same masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import default_collate

from spectralgpt import ops
from spectralgpt.models.autoencoder import Autoencoder
from spectralgpt.models.base import SpectralModel, arrange_bands
from spectralgpt.models.config import ModelConfig
from spectralgpt.models.reconstruction import Reconstruction, denormalize, evaluate
from spectralgpt.train.tasks.base import Result, Validation
from spectralgpt.viz.figures import Example, reconstruction_figure

if TYPE_CHECKING:
    from spectralgpt.train.run import Run

_EXAMPLES = 3
_HEADER = (
    "PSNR of hidden tokens in held-out windows, dB; the model's SSIM, spectral angle and ERGAS",
    "model   nearest      mean      SSIM  angle, deg     ERGAS",
)


def result_of(found: Reconstruction) -> Result:
    """The numbers as a run tells them."""
    numbers = {
        "validation_loss": found.loss,
        "psnr": found.psnr,
        "psnr_nearest": found.psnr_nearest,
        "psnr_mean": found.psnr_mean,
        "ssim": found.ssim,
        "sam": found.sam,
        "ergas": found.ergas,
    }
    bands = {name: dataclasses.asdict(error) for name, error in found.bands.items()}
    line = f"{found.psnr:8.2f}  {found.psnr_nearest:8.2f}  {found.psnr_mean:8.2f}"
    line += f"  {found.ssim:8.3f}  {found.sam:10.2f}  {found.ergas:8.2f}"
    return Result(numbers, {"windows": found.windows, "bands": bands}, -found.loss, _HEADER, line)


class ReconstructionValidation(Validation):
    """The held-out windows of one stage; every process measures all of them, which is why there is a limit."""

    def __init__(self, run: Run) -> None:
        """Chooses the windows to picture among the 5 % of most contrast, so that open water is not all one sees."""
        self.windows, self.stage = run.windows[run.progress.stage][1], run.stage
        self.seed, self.device, self._run = run.config.seed, run.device, run
        count = min(len(self.windows), run.config.validate_windows)
        self._measured = [place * len(self.windows) // count for place in range(count)]
        self._normalizations: dict[int, dict[str, Tensor]] = {}
        contrast = torch.cat([batch["image"].std((2, 3)).mean(1) for batch in self._batches()])
        ranks = torch.linspace(1.0, 0.95, _EXAMPLES) * (count - 1)
        self._pictured = [self._measured[place] for place in contrast.argsort()[ranks.round().long()].unique().tolist()]

    def measure(self, model: SpectralModel) -> Result:
        """Errors of the model and the baselines over the windows."""
        assert isinstance(model, Autoencoder)
        return result_of(
            evaluate(model, self._batches(), mask_ratio=self.stage.mask_ratio, seed=self.seed, device=self.device)
        )

    @torch.no_grad()
    def draw(self, model: SpectralModel, path: Path, title: str) -> None:
        """Writes the figure; visible tokens are kept as they are, hidden ones come from the model."""
        config = model.config
        batch = default_collate([self.windows[0, index] for index in self._pictured])
        image, valid, sample_id = (batch[key].to(self.device) for key in ("image", "valid", "sample_id"))
        mask = ops.random_cube_mask(sample_id, valid.shape[1], self.stage.mask_ratio, seed=self.seed)
        was_training = model.training
        model.eval()
        prediction = model(image, mask, valid=valid).prediction.float()
        model.train(was_training)
        truth = ops.patchify3d(arrange_bands(image, config), config.patch_size)
        if config.normalize_targets:
            prediction = denormalize(prediction, truth)
            title += ", level and contrast of each token taken from the truth"
        rebuilt = torch.where(mask.mask[:, :, None], prediction, truth)
        hidden = mask.mask[:, :, None].expand_as(truth)
        shown = list(dict.fromkeys(config.band_order))  # a band repeated to fill a group is drawn once
        columns = [config.band_order.index(band) for band in shown]
        cubes = (self._cube(tokens, config)[:, columns].cpu().numpy() for tokens in (truth, rebuilt, hidden))
        examples = [Example(self._name(index), *arrays) for index, *arrays in zip(self._pictured, *cubes, strict=True)]
        reconstruction_figure(
            path,
            examples,
            [self.windows.band_names[band] for band in shown],
            [self.windows.wavelengths[band] for band in shown],
            title=title,
            unit="normalised reflectance",
        )

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        """The windows in order, without a DataLoader: that would draw from the generator drop path uses."""
        size = self._run.micro_batch  # what fits for training fits here
        for start in range(0, len(self._measured), size):
            indices = self._measured[start : start + size]
            yield default_collate([{**self.windows[0, index], **self._normalization(index)} for index in indices])

    def _normalization(self, index: int) -> dict[str, Tensor]:
        """Offset and scale of a window's scene, to undo them."""
        if index not in self._normalizations:
            numbers = self.windows.normalization_at(index)
            self._normalizations[index] = {
                "offset": torch.tensor(numbers.offset, dtype=torch.float64),
                "scale": torch.tensor(numbers.scale, dtype=torch.float64),
            }
        return self._normalizations[index]

    def _cube(self, tokens: Tensor, config: ModelConfig) -> Tensor:
        return ops.unpatchify3d(tokens, (len(config.band_order), *config.height_width), config.patch_size)

    def _name(self, index: int) -> str:
        scene, row, column = self.windows.origin(index)
        return f"{scene}\nrow {row}, column {column}"
