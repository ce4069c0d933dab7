# SPDX-License-Identifier: Apache-2.0
"""Building models by the name of their size, or from a saved folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from spectralgpt.errors import UserError
from spectralgpt.models.autoencoder import Autoencoder
from spectralgpt.models.base import KINDS, SpectralModel
from spectralgpt.models.checkpoint import CONFIG_FILE, WEIGHTS_FILE, read_pretrained
from spectralgpt.models.config import make_config
from spectralgpt.models.encoder import Encoder


def create_model(name: str, **config: Any) -> Encoder:  # noqa: ANN401 - the fields of ModelConfig
    """An encoder with fresh weights: (image, ids_keep=None) -> tokens.

    Args:
        name: tiny, small, base, large or huge.
        **config: fields of `ModelConfig`; `bands` is a count, names, or a sensor card.

    Example:
        >>> create_model("tiny", image_size=64)(torch.zeros(2, 12, 64, 64)).shape
        torch.Size([2, 256, 128])
    """
    return Encoder(make_config(name, **config))


def create_autoencoder(name: str, **config: Any) -> Autoencoder:  # noqa: ANN401 - the fields of ModelConfig
    """A masked autoencoder with fresh weights: (image, mask, valid=None) -> `AutoencoderOutput`.

    Arguments as `create_model`.
    """
    return Autoencoder(make_config(name, **config))


def from_pretrained(
    folder: str | Path,
    *,
    bands: Any = None,  # noqa: ANN401 - the forms that create_model takes
    image_size: int | tuple[int, int] | None = None,
) -> SpectralModel:
    """The model that `save_pretrained` wrote, of the kind it was.

    `spectralgpt.from_pretrained` is this function with the task models of `spectralgpt.heads` known.

    Args:
        folder: with `model.safetensors` and `config.json`.
        bands: move the model to these bands (`SpectralModel.adapt_bands`).
        image_size: resample the positions to this size (`SpectralModel.resize`).

    Raises:
        UserError: a missing or damaged file, or bands that the model cannot move to.
    """
    saved = read_pretrained(folder)
    if saved.kind not in KINDS:
        raise UserError(f"{Path(folder) / CONFIG_FILE}: expected kind {', '.join(KINDS)}, got {saved.kind!r}")
    try:
        with torch.device("meta"):  # no time and memory for weights that are replaced at once
            model = KINDS[saved.kind].build(saved.config, saved.head)
    except UserError as error:
        raise UserError(f"{Path(folder) / CONFIG_FILE}: {error}") from error
    try:
        model.load_state_dict(saved.tensors, assign=True)
    except RuntimeError as error:
        what = " ".join(str(error).split())[:300]
        raise UserError(
            f"{Path(folder) / WEIGHTS_FILE}: expected the weights of its {CONFIG_FILE}, got {what}"
        ) from error
    model.normalization = saved.normalization
    if bands is not None:
        model.adapt_bands(bands)
    if image_size is not None:
        model.resize(image_size)
    return model
