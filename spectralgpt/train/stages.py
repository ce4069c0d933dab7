# SPDX-License-Identifier: Apache-2.0
"""What one stage hands to the next: weights and moments, moved to its image size and bands.

Weights and moments go through the same operators, because a moment belongs to the place of its weight: bicubic
over the grid of tokens, linear along wavelength for other bands. Second moments are cut off at zero, below which
bicubic weights can take them. Tensors that neither move touches are handed on as they are, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spectralgpt.data.bands import SensorCard
from spectralgpt.models.base import SpectralModel
from spectralgpt.models.config import ModelConfig, make_config
from spectralgpt.nn import PositionEmbedding
from spectralgpt.train.config import StageConfig
from spectralgpt.train.model_section import ModelSection

Build = Callable[[ModelConfig], SpectralModel]

_STEP, _SQUARES = "step", "exp_avg_sq"
_ADAMW = (_STEP, "exp_avg", _SQUARES)


@dataclass
class Snapshot:
    """All that training has learnt, as whole tensors on the host by name; meta tensors on ranks other than 0.

    Attributes:
        weights: of the model.
        moments: what the optimizer keeps, name of the moment first (`exp_avg`, `exp_avg_sq`, `step`, ...).
    """

    weights: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def model_config(section: ModelSection, card: SensorCard, image_size: int) -> ModelConfig:
    """The model of a stage."""
    return make_config(**{**section.fields(), "bands": card, "image_size": image_size})


def untrained(model: SpectralModel) -> Snapshot:
    """The weights of a model that no optimizer has seen."""
    return Snapshot({name: tensor.detach() for name, tensor in model.state_dict().items()})


def enter(
    snapshot: Snapshot,
    old: ModelConfig,
    new: ModelConfig,
    card: SensorCard,
    stage: StageConfig,
    fresh: Snapshot,
    build: Build,
) -> Snapshot:
    """The state a stage begins with.

    Args:
        snapshot: what the stage before ended with.
        old: its model.
        new: this stage's.
        card: this stage's bands.
        stage: says what is kept.
        fresh: untrained weights of the new model, for `positions: reinit`.
        build: makes the model of a configuration.

    Raises:
        UserError: bands without wavelengths, between which positions cannot move.
    """
    weights = _moved(snapshot.weights, old, new, card, build)
    moments = {
        key: values if key == _STEP else _moved(values, old, new, card, build)
        for key, values in snapshot.moments.items()
    }
    if _SQUARES in moments:
        moments[_SQUARES] = {name: tensor.clamp(min=0) for name, tensor in moments[_SQUARES].items()}
    drawn = _spatial(new, build) if stage.positions == "reinit" and old.grid[1:] != new.grid[1:] else []
    for name in drawn:
        weights[name] = fresh.weights[name].to(weights[name].device)
    for key, values in moments.items():
        if key in _ADAMW:  # with its step, or the correction for a young average would be left out
            forgotten = values if stage.optimizer == "fresh" else drawn
            moments[key] = {**values, **{name: torch.zeros_like(values[name]) for name in forgotten}}
        else:  # a running average of the weights
            moments[key] = {**values, **{name: weights[name] for name in drawn}}
    return Snapshot(weights, moments)


def _moved(
    tensors: Mapping[str, Tensor], old: ModelConfig, new: ModelConfig, card: SensorCard, build: Build
) -> dict[str, Tensor]:
    """Tensors in the places of the weights, carried by the model's own operators."""
    with torch.device("meta"):
        model = build(old)
    model.load_state_dict(dict(tensors), assign=True)
    if (old.band_names, old.wavelengths, old.groups) != (new.band_names, new.wavelengths, new.groups):
        model.adapt_bands(card)
    model.resize(new.height_width)
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def _spatial(config: ModelConfig, build: Build) -> list[str]:
    """Names of the weights that lie on the grid of tokens."""
    with torch.device("meta"):
        modules = build(config).named_modules()
        found = [(path, module) for path, module in modules if isinstance(module, PositionEmbedding)]
    return [f"{path}.{'flat' if module.is_flat else 'spatial'}" for path, module in found]
