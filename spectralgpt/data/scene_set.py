# SPDX-License-Identifier: Apache-2.0
"""All scenes of one configuration: found, checked, normalised, split into a train and a validation side.

The split never depends on the window, so that what one stage of a progressive training holds out stays held
out in the next. A scene gives its east to validation, behind a strip wide enough that no file pixel, blurred
over by resampling, is seen from both sides. Of patch files, too small to cut, whole files go to one side,
chosen by a hash of the place they show (or of their name, without georeference), so that several dates of one
place stay together.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from spectralgpt.data.bands import SENTINEL2_12, sensor_card
from spectralgpt.data.datasets import NAMES, SHARDS
from spectralgpt.data.demo import demo_scene
from spectralgpt.data.discover import find_scenes
from spectralgpt.data.normalize import Normalization, Normalizer, Survey
from spectralgpt.data.raster import Bools
from spectralgpt.data.scene import Scene
from spectralgpt.errors import UserError

Split = Literal["train", "val"]

PATCH_FILE_SIZE = 512
"""Images of at most so many rows and columns are patch files: normalised by minimum and maximum, not cut."""

_MOST_NAMED = 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataConfig:
    """Which images to read, and how.

    Attributes:
        root: a raster file, a folder with one file per band, or a folder of such; "demo" is the demo scene. With
            `dataset`, the folder of its archive or of its shards.
        dataset: a data set's name or "shards": whole images, cropped and resized; null cuts windows from scenes.
        train_split: of a data set.
        val_split: of a data set, for the images held out.
        options: of a data set, as KEY=VALUE.
        train_options: more of them for the training split alone, such as fraction=0.01.
        crop: of a data set's images in training: "resize" a box of `crop_area`, or cut a "window" of the image size
            from the pixels as they are, for images larger than it.
        crop_area: smallest and largest share of an image of a data set that a training crop covers.
        max_bad: share of a data set's images that may be unreadable; others take their places.
        sensor: name of the sensor card.
        bands: names of the bands to use, in this order; none stands for all that an imaging spectrometer's file tells.
        band_order: what the bands of multi-band files without band descriptions are, in file order; "-" for
            one that is no band of the sensor.
        normalization: "percentile" (1st to 99th) or "minmax" of each image, "none", the statistics file that
            `spectralgpt prepare stats` wrote, or "auto": minmax for patch files, percentile for scenes.
        val_fraction: share of each scene, or of the patch files, that is held out.
        num_workers: processes that read ahead; 0 is best for what fits in memory.
        memory_limit: GiB of pixels to keep in memory; scenes beyond it are read window by window.
    """

    root: str = "demo"
    dataset: str | None = None
    train_split: str = "train"
    val_split: str = "val"
    options: tuple[str, ...] = ()
    train_options: tuple[str, ...] = ()
    crop: Literal["resize", "window"] = "resize"
    crop_area: tuple[float, float] = (0.2, 1.0)
    max_bad: float = 0.01
    sensor: str = "sentinel2"
    bands: tuple[str, ...] = SENTINEL2_12
    band_order: tuple[str, ...] | None = None
    normalization: str = "auto"
    val_fraction: float = 0.25
    num_workers: int = 0
    memory_limit: float = 2.0

    def __post_init__(self) -> None:
        """Checks what types alone cannot say."""
        object.__setattr__(self, "bands", tuple(self.bands))
        object.__setattr__(self, "options", tuple(self.options))
        object.__setattr__(self, "train_options", tuple(self.train_options))
        object.__setattr__(self, "crop_area", tuple(self.crop_area))
        if self.band_order is not None:
            object.__setattr__(self, "band_order", tuple(self.band_order))
        if self.dataset not in (None, *NAMES, SHARDS):
            raise UserError(
                f"data.dataset: expected one of {', '.join(NAMES)}, or {SHARDS}, got {self.dataset!r}; "
                "null cuts windows from scenes"
            )
        if self.band_order is not None and self.dataset is not None:
            raise UserError(
                f"data.band_order: expected none with data.dataset {self.dataset}; data sets that take one have it in "
                'data.options: ["band_order=[B02, B03, B04]"]'
            )
        if not 0 <= self.max_bad <= 1:
            raise UserError(f"data.max_bad: expected a share from 0 to 1, got {self.max_bad}")
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"data.val_fraction: expected a number from 0 to below 1, got {self.val_fraction}")
        if self.num_workers < 0:
            raise UserError(f"data.num_workers: expected at least 0, got {self.num_workers}")
        if self.normalization not in ("auto", "percentile", "minmax", "none") and not self._has_statistics:
            raise UserError(
                "data.normalization: expected auto, percentile, minmax, none or a .json file of statistics, got "
                f"{self.normalization!r}"
            )
        if not self.bands and sensor_card(self.sensor).bands:
            raise UserError("data.bands: expected at least one band name, got none")

    @property
    def _has_statistics(self) -> bool:
        return self.normalization.endswith(".json")

    def normalizer(self, shape: tuple[int, int]) -> Normalizer:
        """The rule for an image of these rows and columns.

        Raises:
            UserError: the statistics cannot be read.
        """
        if self._has_statistics:
            return Normalizer.from_file(self.normalization)
        if self.normalization == "auto":
            return Normalizer("minmax" if max(shape) <= PATCH_FILE_SIZE else "percentile")
        return Normalizer(self.normalization)


class Side(NamedTuple):
    """Columns `left` to before `right` of a scene, given by its number."""

    scene: int
    left: int
    right: int


class Origin(NamedTuple):
    """Upper left pixel of a window in a scene, given by its number."""

    scene: int
    row: int
    column: int


class SceneSet:
    """Scenes in the order of their paths.

    Attributes:
        config: what was asked for.
        card: the sensor, cut to the bands asked for.
        title: what the images are, for messages.
        scenes: those that can be used.
        normalizations: one for each scene.
        valid_fractions: share of valid values of each scene.
        skipped: names of the images that cannot be used, and why.
    """

    def __init__(self, config: DataConfig) -> None:
        """Opens and surveys every scene; of several, unusable ones are skipped with a warning.

        Raises:
            UserError: no scene can be used.
        """
        config.normalizer((1, 1))  # statistics that cannot be read are no fault of the images
        sensor = sensor_card(config.sensor)
        if sensor.bands:
            sensor.select(config.bands)  # a misspelt band is told before any file is looked for
        self.config = config
        demo = demo_scene() if config.root == "demo" else None
        root = Path(config.root).expanduser() if demo is None else demo.path
        self.title = str(root) if demo is None else f"demo ({demo.note})"
        self.scenes: list[Scene] = []
        self.normalizations: list[Normalization] = []
        self.valid_fractions: list[float] = []
        self.skipped: dict[str, str] = {}
        self._memory = config.memory_limit * 2**30
        self._origins: dict[int, list[Origin]] = {}
        self._num_empty: dict[int, int] = {}
        paths = find_scenes(root, sensor)
        if not sensor.bands:  # a spectrometer: the first file's own bands, which every other file must have
            sensor = Scene.open(paths[0], sensor).card
        self.card = sensor.select(config.bands or sensor.names)
        for path in paths:
            name = "demo" if demo else path.relative_to(root).as_posix() if path != root else root.resolve().name
            try:
                self._add(Scene.open(path, sensor, self.card.names, config.band_order, name))
            except UserError as error:
                if len(paths) == 1:
                    raise
                self.skipped[name] = str(error)
        if self.skipped:
            self._report_skipped()
        self._sides = _split(self.scenes, config.val_fraction)

    def train_sides(self, window: int) -> list[Side]:
        """The train sides that hold a window.

        Raises:
            UserError: there are none.
        """
        return self._large_enough("train", window)

    def val_origins(self, window: int) -> list[Origin]:
        """The validation windows: side by side on the validation sides, those less than half valid left out.

        Raises:
            UserError: there are none, although some images are to be held out.
        """
        if window not in self._origins:
            sides = self._large_enough("val", window) if self.config.val_fraction else []
            grid = [
                Origin(side.scene, row, column)
                for side in sides
                for row in range(0, self.scenes[side.scene].shape[0] - window + 1, window)
                for column in range(side.left, side.right - window + 1, window)
            ]
            origins = [origin for origin in grid if self._is_half_valid(origin, window)]
            if sides and not origins:
                raise UserError(f"{self.title}: expected validation windows that are half valid, found none")
            self._origins[window], self._num_empty[window] = origins, len(grid) - len(origins)
        return self._origins[window]

    def describe(self, window: int) -> str:
        """One line for the console."""
        shapes = sorted({scene.shape for scene in self.scenes})
        sizes = " to ".join(f"{height} x {width}" for height, width in dict.fromkeys((shapes[0], shapes[-1])))
        areas = [scene.shape[0] * scene.shape[1] for scene in self.scenes]
        no_data = 100 * (1 - float(np.average(self.valid_fractions, weights=areas)))
        methods = " and ".join(sorted({normalization.method for normalization in self.normalizations}))
        train, val = self.train_sides(window), self.val_origins(window)
        num_train = sum(num_windows(self.scenes[side.scene], side, window) for side in train)
        unused = len(self.scenes) - len({side.scene for side in train} | {origin.scene for origin in val})
        left_out = f" ({len(self.skipped)} skipped, {unused} unused)" if self.skipped or unused else ""
        empty = f" ({self._num_empty[window]} left out as no data)" if self._num_empty[window] else ""
        names = self.card.names
        bands = " ".join(names) if len(names) <= _MOST_NAMED else f"{names[0]} to {names[-1]} ({len(names)})"
        return (
            f"{self.title}: {len(self.scenes)} image{'s' * (len(self.scenes) > 1)}{left_out}, {sizes} pixels, "
            f"{no_data:.2g} % no data; bands {bands}; {methods} normalisation; "
            f"{num_train} train and {len(val)} validation windows of {window} x {window}{empty}"
        )

    def _add(self, scene: Scene) -> None:
        if scene.nbytes <= self._memory:
            scene.load()
        survey = Survey(scene, self.config.normalizer(scene.shape))
        self._memory -= scene.nbytes if scene.is_loaded else 0
        self.scenes.append(scene)
        self.normalizations.append(survey.normalization)
        self.valid_fractions.append(survey.valid_fraction)

    def _report_skipped(self) -> None:
        names, reason = list(self.skipped), next(iter(self.skipped.values()))
        number = len(names) + len(self.scenes)
        if not self.scenes:
            raise UserError(f"{self.title}: none of {number} images can be used; the first: {reason}")
        some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        _log.warning("skipped %d of %d images: %s; the first: %s", len(names), number, some, reason)

    def _is_half_valid(self, origin: Origin, window: int) -> bool:
        if self.valid_fractions[origin.scene] == 1:
            return True
        scene = self.scenes[origin.scene]
        return valid_share(scene.read_raw(origin.row, origin.column, window, window)[1]) >= 0.5

    def _large_enough(self, split: Split, window: int) -> list[Side]:
        fit, problems = [], []
        for side in self._sides[split]:
            scene, (height, width) = self.scenes[side.scene], self.scenes[side.scene].shape
            if min(height, width) < window:
                problems.append(
                    f"{scene.name}: expected an image of at least {window} x {window} pixels, "
                    f"got {height} x {width}; choose a smaller window"
                )
            elif side.right - side.left < window:
                problems.append(
                    f"{scene.name}: expected at least {window} columns for {split}, got "
                    f"{side.right - side.left} of {width}; change data.val_fraction or the window"
                )
            else:
                fit.append(side)
        if not fit:
            raise UserError(problems[0])
        return fit


def open_scenes(config: DataConfig) -> SceneSet:
    """The scenes of a configuration, read once for all data sets that are in use at a time."""
    scenes = _in_use.get(config)
    if scenes is None:
        scenes = _in_use[config] = SceneSet(config)
    return scenes


def num_windows(scene: Scene, side: Side, window: int) -> int:
    """How many windows fit on a side without overlap."""
    return (scene.shape[0] // window) * ((side.right - side.left) // window)


def valid_share(valid: Bools | None) -> float:
    """Share of valid values; None stands for all."""
    return 1.0 if valid is None else float(valid.mean())


_in_use: WeakValueDictionary[DataConfig, SceneSet] = WeakValueDictionary()


def _split(scenes: Sequence[Scene], val_fraction: float) -> dict[Split, list[Side]]:
    words = {i: _word(scene) for i, scene in enumerate(scenes) if max(scene.shape) <= PATCH_FILE_SIZE}
    places = sorted(set(words.values()))
    if len(places) < 2:  # nothing to share out: cut as scenes are
        words = {}
    else:
        # By the word's own value, so that a file keeps its side when others are added; but no side may be
        # empty.
        last_held_out = min(max(val_fraction, places[0]), places[-2])
    sides: dict[Split, list[Side]] = {"train": [], "val": []}
    for number, scene in enumerate(scenes):
        width = scene.shape[1]
        if not val_fraction:
            sides["train"].append(Side(number, 0, width))
        elif number in words:
            sides["val" if words[number] <= last_held_out else "train"].append(Side(number, 0, width))
        else:
            border = width - round(val_fraction * width)
            sides["train"].append(Side(number, 0, scene.columns_apart(border)))
            sides["val"].append(Side(number, border, width))
    return sides


def _word(scene: Scene) -> float:
    """A number in [0, 1) that stands for the place a scene shows, or for its name."""
    place = f"{scene.crs} {tuple(scene.transform)} {scene.shape}" if scene.transform is not None else scene.name
    return int.from_bytes(hashlib.sha256(place.encode()).digest()[:8], "big") / 2**64
