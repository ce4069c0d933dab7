# SPDX-License-Identifier: Apache-2.0
"""Masked autoencoding: the reconstruction loss in shares, and how well held-out windows are rebuilt.

A piece's share counts hidden valid tokens (and complete positions) against those a step without nodata would have, so
that no process needs to know the others' masks; a token weighs the same wherever it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from spectralgpt import ops
from spectralgpt.data.source import Source, open_source
from spectralgpt.errors import UserError
from spectralgpt.models.autoencoder import Autoencoder
from spectralgpt.models.config import ModelConfig
from spectralgpt.train import stages
from spectralgpt.train.config import StageConfig
from spectralgpt.train.flops import forward_flops
from spectralgpt.train.initialize import start_from_geometry
from spectralgpt.train.tasks.base import Batch, Objective, Task
from spectralgpt.train.tasks.reconstruction import ReconstructionValidation

if TYPE_CHECKING:
    from spectralgpt.train.run import Run


class Pretrain(Task):
    """Rebuilds hidden tokens of images without labels."""

    measured: ClassVar[tuple[str, ...]] = ("loss", "token_loss", "spectral_loss")
    figure: ClassVar[str] = "reconstruction"

    def open(self, index: int, split: Literal["train", "val"]) -> Source:
        """Windows over scenes, or views of a data set's images."""
        config, stage = self.config, self.config.stages[index]
        source = open_source(stage.data or config.data, stage.image_size, config.model.patch_size, split, config.seed)
        tokens = self.model_config(source, stage).num_tokens
        if not 0 < ops.masking.num_visible(tokens, stage.mask_ratio) < tokens:
            raise UserError(
                f"stages.{index}.mask_ratio: expected one that hides some but not all of the {tokens} tokens of a "
                f"window, got {stage.mask_ratio}"
            )
        return source

    def model_config(self, source: Source, stage: StageConfig) -> ModelConfig:
        """The autoencoder of a stage."""
        return stages.model_config(self.config.model, source.card, stage.image_size)

    def build(self, config: ModelConfig) -> Autoencoder:
        """The autoencoder."""
        return Autoencoder(config)

    def fresh(self, config: ModelConfig, seed: int) -> Autoencoder:
        """As published, or with positions that begin as geometry."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            autoencoder = Autoencoder(config)
            if self.config.model.position_init == "sincos":
                start_from_geometry(autoencoder)
        return autoencoder

    def objective(self, run: Run, place: Tensor) -> MaskedReconstruction:
        """Masked reconstruction."""
        return MaskedReconstruction(run, place)

    def validation(self, run: Run) -> ReconstructionValidation:
        """Reconstruction beside two baselines."""
        return ReconstructionValidation(run)

    def flops(self, config: ModelConfig, stage: StageConfig) -> float:
        """Of the visible tokens in the encoder and all of them in the decoder."""
        return forward_flops(config, stage.mask_ratio).step


class MaskedReconstruction(Objective):
    """The sums are those of token errors and their count, then the same of positions."""

    num_sums = 4

    def __init__(self, run: Run, place: Tensor) -> None:
        """The seed is a tensor, which a recorded graph needs."""
        super().__init__(run, place)
        self._seed = torch.tensor(run.config.seed, device=run.device)

    def inputs(self, batch: Batch, number: int) -> Batch:
        """Images, and what decides their masks and scores."""
        return {key: batch[key] for key in ("image", "valid", "sample_id")}

    def forward_backward(self, image: Tensor, valid: Tensor, sample_id: Tensor) -> Tensor:  # type: ignore[override]
        """A piece of B images under the masks of this step."""
        run, stage, config = self._run, self._run.stage, self._run.model.config
        mask = ops.random_cube_mask(sample_id, valid.shape[1], stage.mask_ratio, seed=self._seed, step=self._place)
        positions = valid.unflatten(1, (config.grid[0], -1))
        hidden = mask.mask.shape[1] - mask.ids_keep.shape[1]
        count = (mask.mask & valid).sum()
        nothing = count == 0  # all nodata: the loss wants something to score, and it then weighs nothing
        counts = torch.stack([count, torch.where(nothing, 0, positions.all(1).sum())]).float()
        shares = counts * self._share
        unit = run.scaler.scale(self._unit)
        with run.autocast():
            output = run.wrapped(
                image,
                mask,
                valid=valid | nothing,
                token_weight=unit * shares[0] * (config.token_weight / hidden),
                spectral_weight=unit * shares[1] * (config.spectral_weight / positions.shape[2]),
            )
        output.loss.backward()
        return torch.stack([output.token_loss * counts[0], counts[0], output.spectral_loss * counts[1], counts[1]])

    def measured(self, sums: Tensor) -> Tensor:
        """Loss, token term, spectral term."""
        config = self._run.model.config
        token, spectral = sums[0] / sums[1], sums[2] / sums[3].clamp(min=1)
        return torch.stack([config.token_weight * token + config.spectral_weight * spectral, token, spectral])
