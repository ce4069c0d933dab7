# SPDX-License-Identifier: Apache-2.0
"""What every model shares: its configuration, saving, and moving to another image size or other bands.

A model carries the normalisation its pixels had (`normalization`, a plain dict of the data layer): weights
are of no use without it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spectralgpt.errors import UserError
from spectralgpt.models.checkpoint import write_pretrained
from spectralgpt.models.config import ModelConfig, band_fields
from spectralgpt.nn import PositionEmbedding

logger = logging.getLogger(__name__)

KINDS: dict[str, type[SpectralModel]] = {}
"""What `from_pretrained` can build: each class with a `kind` of its own enters itself when its module is imported."""


class SpectralModel(nn.Module):
    """A model built from one `ModelConfig`."""

    kind: ClassVar[str]
    """Which class `from_pretrained` builds."""
    published_names: Mapping[str, str] = {
        "positions.spatial": "pos_embed_spatial",
        "positions.spectral": "pos_embed_temporal",
        "positions.flat": "pos_embed",
    }
    """Parts of our parameter names and what published checkpoints call them."""

    def __init_subclass__(cls) -> None:
        """Enters the class in `KINDS`."""
        super().__init_subclass__()
        if "kind" in vars(cls):
            KINDS[cls.kind] = cls

    def __init__(self, config: ModelConfig) -> None:
        """Sub-classes add the layers."""
        super().__init__()
        self.config = config
        self.normalization: dict[str, Any] | None = None

    @classmethod
    def build(cls, config: ModelConfig, head: Mapping[str, Any] | None = None) -> SpectralModel:
        """A model with fresh weights from what `config.json` holds; `head` is the record of a task model."""
        return cls(config)

    def head_record(self) -> dict[str, Any] | None:
        """What `build` needs beside the configuration, as plain values."""
        return None

    def plain_state_dict(self, tensors: Mapping[str, Tensor] | None = None) -> Mapping[str, Tensor]:
        """The state dict that a model built from the configuration loads; `tensors` instead of the model's own."""
        return self.state_dict() if tensors is None else tensors

    @contextmanager
    def expecting(self, published: Collection[str]) -> Iterator[None]:
        """Surrounds the loading of a published checkpoint with these names; where it fails, the model is as before."""
        yield

    def save_pretrained(self, folder: str | Path, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Writes `model.safetensors` and `config.json`; `spectralgpt.from_pretrained(folder)` reads them back.

        Args:
            folder: made where it does not exist.
            tensors: a state dict instead of the model's own, such as averaged weights.

        Raises:
            UserError: the folder cannot be written.
        """
        weights = self.plain_state_dict(tensors)
        write_pretrained(folder, self.kind, self.config, self.normalization, weights, self.head_record())

    def resize(self, image_size: int | tuple[int, int]) -> None:
        """Resamples all spatial positions (bicubic) to another image size for good.

        For the stages of progressive pretraining. The position parameters are new objects afterwards: build the
        optimizer after this call.

        Raises:
            UserError: a size that the patch does not divide.
        """
        config = dataclasses.replace(self.config, image_size=image_size)
        for module in self.modules():
            if isinstance(module, PositionEmbedding):
                module.resize(config.grid[1:])
        self._adopt(config)

    def adapt_bands(self, bands: Any) -> None:  # noqa: ANN401 - the forms that create_model takes
        """Moves the model to another band set for good: spectral positions go by centre wavelength.

        All other weights stay. The normalisation belonged to the old bands and is dropped. Build the optimizer after
        this call.

        Args:
            bands: a sensor card, or (for the same number of groups only) a count or names.

        Raises:
            UserError: the number of groups changes and either band set has no wavelengths.
        """
        self.take_bands(**band_fields(bands, self.config.patch_size[0]))

    def take_bands(self, **fields: Any) -> None:  # noqa: ANN401 - fields of ModelConfig
        """`adapt_bands` to the fields of a configuration: `bands`, `band_names`, `wavelengths` and `groups`."""
        config = dataclasses.replace(self.config, **fields)
        old, new = self.config.group_wavelengths, config.group_wavelengths
        if old is not None and new is not None:
            for module in self.modules():
                if isinstance(module, PositionEmbedding):
                    module.move_spectrum(old, new)
            logger.info("spectral positions moved from %d to %d groups by wavelength", len(old), len(new))
        elif len(config.groups) != len(self.config.groups):
            raise UserError(
                f"bands: expected wavelengths of old and new bands to go from {len(self.config.groups)} to "
                f"{len(config.groups)} spectral groups, got none for one of them; give a sensor card"
            )
        self._adopt(config)
        self.normalization = None

    def _adopt(self, config: ModelConfig) -> None:
        for module in self.modules():
            if isinstance(module, SpectralModel):
                module.config = config


def arrange_bands(image: Tensor, config: ModelConfig) -> Tensor:
    """The image's bands as the tokens see them, group after group; often the image itself.

    Args:
        image: (B, C, H, W).
        config: the model's.

    Returns:
        (B, S*t, H, W).

    Raises:
        UserError: another shape or band count than the model's.
    """
    if image.dim() != 4 or image.shape[1] != config.bands:
        named = f" ({', '.join(config.band_names)})" if config.band_names else ""
        raise UserError(
            f"image: expected shape (B, {config.bands}, H, W) for the bands{named}, got {tuple(image.shape)}"
        )
    if config.band_order == tuple(range(config.bands)):
        return image
    return torch.cat([image[:, index : index + 1] for index in config.band_order], dim=1)
