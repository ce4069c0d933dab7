# SPDX-License-Identifier: Apache-2.0
"""Scenes as a model wants them: its bands by name, its normalisation, its units.

Percentiles and extremes are those of the whole scene, in one pass, as in pretraining; then units do not matter. Fixed
numbers are in the units of the images they were made from, so values in others are converted where tags tell how, and
refused where they clearly differ and nothing tells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spectralgpt.data.bands import Band, SensorCard, sensor_card
from spectralgpt.data.demo import demo_scene
from spectralgpt.data.discover import find_scenes
from spectralgpt.data.normalize import Normalization, Normalizer
from spectralgpt.data.opening import Missing
from spectralgpt.data.paths import local
from spectralgpt.data.scene import Scene
from spectralgpt.data.sensors import CARDS
from spectralgpt.errors import UserError
from spectralgpt.models.base import SpectralModel
from spectralgpt.models.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from spectralgpt.models.config import ModelConfig

Doubles = NDArray[np.float64]

_LIKELY = (0.02, 500.0)
"""Widths from the 1st to the 99th percentile, normalised by fixed numbers, that can be an image of the same units."""
_SAME_SCALE = 1e-6


@dataclass(frozen=True)
class InputOptions:
    """How scenes are read for a model; what is left None follows from the model and the scene.

    Attributes:
        sensor: whose band names and aliases the model's bands have.
        bands: what the channels of a model without band names are.
        band_order: what the bands of a file without descriptions are, in file order; "-" for one to pass over.
        missing: "error", or "nearest": show the band with the nearest wavelength in place of a missing one.
        normalization: "percentile", "minmax" or "none" instead of the model's own, or a file of statistics.
        scale: a value means (value - offset) * scale in the model's units.
        offset: likewise.
    """

    sensor: str | None = None
    bands: Sequence[str] | None = None
    band_order: Sequence[str] | None = None
    missing: Missing = "error"
    normalization: str | None = None
    scale: float | None = None
    offset: float | None = None


def model_folder(path: str | Path) -> Path:
    """The folder of a model, given itself or the run that made it.

    Raises:
        UserError: neither.
    """
    path = local(path)
    for folder in (path, path / "model"):
        if (folder / CONFIG_FILE).is_file():
            return folder
    there = "one where training has not ended" if (path / "checkpoints").is_dir() else "neither"
    raise UserError(
        f"{path}: expected a run or a model's folder, with {CONFIG_FILE} in it or in model/, got "
        + (there if path.exists() else "no such folder")
    )


def window_side(config: ModelConfig) -> int:
    """Rows and columns of the windows a model is made for.

    Raises:
        UserError: they are not square.
    """
    height, width = config.height_width
    if height != width:
        raise UserError(f"window: expected the side of square windows, the model is made for {height} x {width}")
    return height


def fingerprint(folder: Path) -> str:
    """A hash of a model's files."""
    total = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with open(folder / name, "rb") as file:
            while chunk := file.read(1 << 20):
                total.update(chunk)
    return total.hexdigest()


def card_of(model: SpectralModel, options: InputOptions) -> SensorCard:
    """The model's bands, in its order, with the names that files may have for them.

    Raises:
        UserError: the model does not say what its bands are, or the sensor lacks one.
    """
    config = model.config
    names = tuple(options.bands or ()) or config.band_names or tuple((model.normalization or {}).get("band_names", ()))
    if not names:
        raise UserError(f"model: expected band names, it knows {config.bands} without; name them with --bands")
    if len(names) != config.bands:
        raise UserError(f"bands: expected {config.bands} as the model has, got {len(names)}")
    if options.sensor is not None:
        return sensor_card(options.sensor).select(names)
    own = dict(zip(config.band_names or (), config.wavelengths or (), strict=False))
    for card in CARDS.values():
        there = dict(zip(card.names, card.wavelengths, strict=True))
        if all(name in there and abs(there[name] - own.get(name, there[name])) < 1e-3 for name in names):
            return card.select(names)
    if len(own) < len(names):
        raise UserError(f"model: expected bands of a known sensor, got {' '.join(names)}; name it with --sensor")
    gaps = np.abs(np.subtract.outer(config.wavelengths, config.wavelengths))  # type: ignore[arg-type]
    gaps[gaps == 0] = np.inf
    widths = np.minimum(gaps.min(axis=0), 0.1)
    bands = tuple(Band(name, own[name], float(width), 0.0) for name, width in zip(names, widths, strict=True))
    return SensorCard("model", bands, (), by_wavelength=True).select(names)


def scenes_at(path: str | Path, card: SensorCard) -> list[Path]:
    """The scenes that a path stands for: itself, or those in a folder; "demo" is the demo scene.

    Raises:
        UserError: there is none.
    """
    return [demo_scene().path] if path == "demo" else find_scenes(path, CARDS.get(card.name, card))


def open_scene(path: str | Path, card: SensorCard, options: InputOptions, name: str | None = None) -> Scene:
    """A scene with the bands of `card_of` in the model's order.

    Raises:
        UserError: a band is missing, or the path does not serve.
    """
    return Scene.open(path, CARDS.get(card.name, card), card.names, options.band_order, name, missing=options.missing)


def normalize(scene: Scene, model: SpectralModel, options: InputOptions) -> Normalization:
    """The model's normalisation of a scene.

    Raises:
        UserError: the model has none; no valid pixel in a band; or units that cannot be those of its fixed numbers, or
            that may be others.
    """
    normalizer = _normalizer(model, options).select(scene.band_names)
    is_fixed = normalizer.method in ("fixed", "none")
    if not is_fixed:
        if (options.scale, options.offset) != (None, None):
            raise UserError(
                f"scale and offset: expected none, as the model normalises by the scene's own {normalizer.method} "
                "values, whatever their units"
            )
        return normalizer.of_scene(scene)
    percentiles = Normalizer("percentile").of_scene(scene)  # also finds bands without a valid pixel
    count = len(scene.band_names)
    zero, unit = _units(scene, options)
    offset = np.array(normalizer.offset or (0.0,) * count)
    scale = np.array(normalizer.scale or (1.0,) * count)
    if normalizer.method == "fixed" and options.scale is None:
        _check_units(scene, scale * unit / np.array(percentiles.scale), offset)
    combined = (zero + offset / unit, scale * unit)
    return Normalization(normalizer.method, scene.band_names, *(tuple(values.tolist()) for values in combined))


def _normalizer(model: SpectralModel, options: InputOptions) -> Normalizer:
    if options.normalization is not None:
        if options.normalization.endswith(".json"):
            return Normalizer.from_file(options.normalization)
        return Normalizer(options.normalization)
    known = model.normalization
    if known is None:
        raise UserError("model: expected the normalisation it was trained with, it has none; give --normalization")
    if known["method"] != "fixed":
        return Normalizer(known["method"])
    return Normalizer("fixed", *(tuple(known[key]) for key in ("band_names", "offset", "scale")))


def _units(scene: Scene, options: InputOptions) -> tuple[Doubles, Doubles]:
    """Per band: a value means (value - first) * second in the units of the sensor's own integers."""
    count = len(scene.band_names)
    if options.scale is not None or options.offset is not None:
        return np.full(count, options.offset or 0.0), np.full(count, 1.0 if options.scale is None else options.scale)
    usual, level = scene.card.scale, scene.metadata.get("level")
    if not usual and level:  # Landsat's and EnMAP's levels have other numbers under the same names of bands
        zero, unit = scene.offsets[0], scene.scales[0]
        here = "" if zero is None or unit is None else f"; reflectance is (value - {zero:g}) * {unit:g} here"
        raise UserError(
            f"{scene.name}: expected to know which level the model was trained on, as each has numbers of its own; "
            f"give --offset 0 if it was {level} as here, else --scale and --offset: (value - offset) * scale in its "
            f"units{here}"
        )
    ratios = np.array([1.0 if scale is None or not usual else scale / usual for scale in scene.scales])
    is_other = np.abs(ratios - 1) > _SAME_SCALE
    zeros = np.array([offset or 0.0 for offset in scene.offsets])
    moved = zeros[~is_other & (zeros != 0)]
    if usual and moved.size:  # Sentinel-2 since baseline 04.00: 1000 higher than the images most models know
        raise UserError(
            f"{scene.name}: expected to know what the model was trained on, as {moved[0]:g} stands for reflectance 0 "
            f"here; give --offset {moved[0]:g} to subtract it, or --offset 0 if it was so in the training images too"
        )
    return np.where(is_other, zeros, 0.0), np.where(is_other, ratios, 1.0)


def _check_units(scene: Scene, widths: Doubles, offset: Doubles) -> None:
    width = float(np.median(widths))
    is_small = scene.dtype.kind in "iu" and np.iinfo(scene.dtype.str).max < np.median(offset)
    if not _LIKELY[0] <= width <= _LIKELY[1] or is_small:
        raise UserError(
            f"{scene.name}: expected values in the units of the model's statistics, got a spread of {width:.2g} "
            "deviations; tell the units with --scale and --offset: (value - offset) * scale, for example "
            "--scale 10000 for reflectance from 0 to 1"
        )
