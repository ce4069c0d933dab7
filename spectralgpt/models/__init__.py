# SPDX-License-Identifier: Apache-2.0
"""Encoder and autoencoder, their configuration and their files. Models know no optimizer and no data set."""

from spectralgpt.models.autoencoder import Autoencoder, AutoencoderOutput
from spectralgpt.models.base import SpectralModel
from spectralgpt.models.config import SIZES, ModelConfig, make_config
from spectralgpt.models.encoder import Encoder
from spectralgpt.models.reference_checkpoint import (
    LoadReport,
    load_reference_checkpoint,
    reference_state_dict,
)
from spectralgpt.models.registry import create_autoencoder, create_model, from_pretrained

__all__ = [
    "SIZES",
    "Autoencoder",
    "AutoencoderOutput",
    "Encoder",
    "LoadReport",
    "ModelConfig",
    "SpectralModel",
    "create_autoencoder",
    "create_model",
    "from_pretrained",
    "load_reference_checkpoint",
    "make_config",
    "reference_state_dict",
]
