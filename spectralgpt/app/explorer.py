# SPDX-License-Identifier: Apache-2.0
"""What the page shows: scenes and models below one folder, quick-looks, and single windows rebuilt by a model.

Nothing here knows the web. Names that come from a browser are relative paths, and `data.paths.inside` refuses
whatever leads out of the folder.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectralgpt import ops
from spectralgpt.data.discover import find_scenes
from spectralgpt.data.normalize import Normalization
from spectralgpt.data.paths import inside, local
from spectralgpt.data.scene import Scene
from spectralgpt.errors import UserError
from spectralgpt.models.autoencoder import Autoencoder
from spectralgpt.models.base import arrange_bands
from spectralgpt.models.checkpoint import CONFIG_FILE, WEIGHTS_FILE
from spectralgpt.models.reconstruction import as_image, denormalize
from spectralgpt.models.registry import from_pretrained
from spectralgpt.predict.components import Components, as_colours
from spectralgpt.predict.inputs import InputOptions, card_of, normalize, open_scene

_QUICKLOOK = 1000  # longest side in pixels
_KEPT = 4
_MAX_LISTED = 500
_PERCENTILES = (1, 99)
_GAMMA = 0.8

T = TypeVar("T")
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Window:
    """One window of a scene and what a model makes of it; all in the scene's own numbers.

    Attributes:
        row: first row in the scene.
        column: first column.
        truth: (C, H, W) float32, C bands of the model.
        rebuilt: the same with every hidden value from the model.
        hidden: (C, H, W) bool, what the model did not see.
        embedding: (H, W, 3) uint8, first three principal components of the tokens' embeddings, as colours.
        psnr: of the hidden values in normalised units, dB.
    """

    row: int
    column: int
    truth: Floats
    rebuilt: Floats
    hidden: NDArray[np.bool_]
    embedding: NDArray[np.uint8]
    psnr: float


class Explorer:
    """Scenes and models below a folder."""

    def __init__(self, root: str | Path, sensor: str | None = None, band_order: Sequence[str] | None = None) -> None:
        """For everything below `root`.

        Args:
            root: the folder; nothing outside it is ever opened.
            sensor: whose names the models' bands have; found by the bands where it is not given.
            band_order: what the bands of files without band descriptions are.

        Raises:
            UserError: no such folder.
        """
        self._root = local(root).resolve()
        if not self._root.is_dir():
            raise UserError(f"{root}: expected a folder with scenes and models, found none")
        self._inputs = InputOptions(sensor=sensor, band_order=band_order)
        self._lock = threading.Lock()  # the page asks from several threads, models compute one after another
        self._scenes: OrderedDict[Any, Scene] = OrderedDict()
        self._models: OrderedDict[Any, Autoencoder] = OrderedDict()
        self._normalizations: OrderedDict[Any, Normalization] = OrderedDict()
        self._quicklooks: OrderedDict[Any, tuple[Floats, int]] = OrderedDict()

    def listing(self) -> dict[str, list[str]]:
        """Relative paths of all scenes, and of all folders that hold an autoencoder."""
        try:
            scenes = find_scenes(self._root)
        except UserError:
            scenes = []
        folders = [path.parent for path in sorted(self._root.rglob(CONFIG_FILE)) if _kind(path) == Autoencoder.kind]
        models = [folder for folder in folders if (folder / WEIGHTS_FILE).is_file()]
        return {"scenes": self._names(scenes), "models": self._names(models)}

    def _names(self, paths: Sequence[Path]) -> list[str]:
        """Those that may be opened: links may lead out of the folder."""
        below = [path for path in paths if path.resolve().is_relative_to(self._root)]
        return [path.relative_to(self._root).as_posix() for path in below[:_MAX_LISTED]]

    def describe(self, scene: str, model: str) -> dict[str, Any]:
        """Size, coordinate system and bands of a scene as a model sees it, and the size of the model's windows."""
        opened, autoencoder = self._open(scene, model)
        height, width = autoencoder.config.height_width
        return {
            "shape": list(opened.shape),
            "crs": None if opened.crs is None else str(opened.crs),
            "bands": list(opened.band_names),
            "wavelengths": list(opened.card.wavelengths),
            "window": [height, width],
            "normalization": self._normalization(scene, model).method,
        }

    def quicklook(self, scene: str, model: str, bands: Sequence[str]) -> tuple[NDArray[np.uint8], int]:
        """A scene in three of its bands, (h, w, 3), thinned to one pixel of `step` rows and columns; and `step`."""
        opened, _ = self._open(scene, model)
        channels = [_place(opened.band_names, band) for band in bands]
        pixels, step = self._kept(self._quicklooks, (scene, model), lambda: _thinned(opened))
        chosen = np.moveaxis(pixels[channels], 0, -1)
        valid = np.isfinite(chosen).all(-1)
        if not valid.any():
            return np.zeros(chosen.shape, np.uint8), step
        low, high = np.percentile(chosen[valid], _PERCENTILES, axis=0)
        shown = ((np.nan_to_num(chosen) - low) / np.maximum(high - low, 1e-6)).clip(0, 1) ** _GAMMA
        shown[~valid] = 0
        return (shown * 255).astype(np.uint8), step

    @torch.no_grad()
    def window(self, scene: str, model: str, row: int, column: int, mask_ratio: float, seed: int) -> Window:
        """Hides a share of the tokens of the window around a pixel, and rebuilds them.

        Raises:
            UserError: a share or a seed out of range, a scene smaller than a window, or one without valid pixels here.
        """
        if not 0 < mask_ratio < 1 or not 0 <= seed < 2**31:
            raise UserError(f"expected a share between 0 and 1 and a seed from 0, got {mask_ratio} and {seed}")
        opened, autoencoder = self._open(scene, model)
        config = autoencoder.config
        size = config.height_width
        if opened.shape[0] < size[0] or opened.shape[1] < size[1]:
            raise UserError(f"{scene}: expected at least {size[0]} x {size[1]} pixels, got {opened.shape}")
        top = min(max(row - size[0] // 2, 0), opened.shape[0] - size[0])
        left = min(max(column - size[1] // 2, 0), opened.shape[1] - size[1])
        with self._lock:
            raw, usable = opened.read(top, left, *size)
        normalization = self._normalization(scene, model)
        image = torch.from_numpy(np.where(usable, normalization.apply(raw), 0).astype(np.float32))[None]
        flags = torch.from_numpy(usable)[None]
        valid = ops.patchify3d(arrange_bands(flags, config), config.patch_size).all(2)
        mask = ops.random_cube_mask(
            torch.tensor([top * opened.shape[1] + left]), config.num_tokens, mask_ratio, seed=seed
        )
        with self._lock:
            output = autoencoder(image, mask, valid=valid | ~valid.any())
            flat = image.mean((2, 3), keepdim=True).expand_as(image).contiguous()
            embedding, places = autoencoder.encoder(torch.cat([image, flat])).unbind()  # see predict.embed
        truth = ops.patchify3d(arrange_bands(image, config), config.patch_size)
        rebuilt = denormalize(output.prediction, truth) if config.normalize_targets else output.prediction
        scored = mask.mask & valid
        error = (rebuilt - truth)[scored].square().mean().item() if scored.any() else float("nan")
        hidden = as_image(mask.mask[:, :, None].expand_as(truth), config, size)
        guess = torch.where(hidden, as_image(rebuilt, config, size), image)[0].numpy()
        return Window(
            row=top,
            column=left,
            truth=raw,
            rebuilt=np.where(hidden[0].numpy(), normalization.invert(guess), raw).astype(np.float32),
            hidden=hidden[0].numpy(),
            embedding=_component_colours(embedding - places, config.grid, size),
            psnr=float(-10 * np.log10(error)) if error > 0 else float("nan"),
        )

    def _open(self, scene: str, model: str) -> tuple[Scene, Autoencoder]:
        """Both of them, opened once; the scene with the model's bands in the model's order."""

        def load() -> Autoencoder:
            loaded = from_pretrained(inside(self._root, model))
            if not isinstance(loaded, Autoencoder):
                raise UserError(f"{model}: expected an autoencoder, got a model of kind {loaded.kind}")
            if loaded.normalization is None or loaded.config.band_names is None:
                raise UserError(f"{model}: expected a model that knows its bands and their normalisation, got none")
            return loaded.eval()

        autoencoder = self._kept(self._models, model, load)
        card, path = card_of(autoencoder, self._inputs), inside(self._root, scene)
        opened = self._kept(self._scenes, (scene, card), lambda: open_scene(path, card, self._inputs, scene))
        return opened, autoencoder

    def _normalization(self, scene: str, model: str) -> Normalization:
        opened, autoencoder = self._open(scene, model)
        return self._kept(self._normalizations, (scene, model), lambda: normalize(opened, autoencoder, self._inputs))

    def _kept(self, known: OrderedDict[Any, T], key: Any, make: Callable[[], T]) -> T:  # noqa: ANN401
        """The few last used ones stay."""
        with self._lock:
            if key not in known:
                known[key] = make()
            known.move_to_end(key)
            while len(known) > _KEPT:
                known.popitem(last=False)
            return known[key]


def _kind(path: Path) -> str | None:
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("kind")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return kind if isinstance(kind, str) else None


def _place(names: Sequence[str], band: str) -> int:
    if band not in names:
        raise UserError(f"bands: expected some of {', '.join(names)}, got {band!r}")
    return list(names).index(band)


def _thinned(scene: Scene) -> tuple[Floats, int]:
    """Every step-th pixel of all bands, (C, h, w), NaN where invalid."""
    step = max(1, -(-max(scene.shape) // _QUICKLOOK))
    parts = []
    for row, pixels, valid in scene.strips():
        thin = (slice(None), slice(-row % step, None, step), slice(None, None, step))
        part = pixels[thin].astype(np.float32)
        if valid is not None:
            part[~valid[thin]] = np.nan
        parts.append(part)
    return np.concatenate(parts, axis=1), step


def _component_colours(tokens: Tensor, grid: tuple[int, int, int], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Embeddings (L, D), averaged over the spectral groups, as their first three principal components, (H, W, 3)."""
    places = tokens.unflatten(0, (grid[0], -1)).mean(0).numpy()
    components = Components()
    components.add(places)
    mean, axes = components.axes(3)
    scores = ((places - mean) @ axes.T).astype(np.float32).reshape(*grid[1:], 3)
    colours = as_colours(scores, np.ones(grid[1:], bool))
    return colours.repeat(size[0] // grid[1], 0).repeat(size[1] // grid[2], 1)
