# SPDX-License-Identifier: Apache-2.0
"""Whole scenes with most of their tokens hidden and rebuilt: rasters, errors and pictures.

Windows lie side by side, so each token is hidden or seen once and every number counts it once. Masks are a pure
function of (seed, place of the window): the same command hides the same tokens. The scene is read row of windows by
row of windows, and everything appears at the end, by renaming.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from spectralgpt import ops
from spectralgpt.data.normalize import Normalization
from spectralgpt.data.raster import Bools
from spectralgpt.data.raster_write import BLOCK, blaming_writes, write_cog
from spectralgpt.data.scene import Scene
from spectralgpt.errors import UserError
from spectralgpt.files import publish
from spectralgpt.models.autoencoder import Autoencoder
from spectralgpt.models.base import arrange_bands
from spectralgpt.models.reconstruction import Rebuilding, Reconstruction, as_image
from spectralgpt.predict.inputs import window_side
from spectralgpt.predict.layers import Layer, value_layer
from spectralgpt.predict.padded import PaddedScene
from spectralgpt.predict.scene import spare_inputs
from spectralgpt.predict.windows import Floats, Windows
from spectralgpt.predict.work import Work
from spectralgpt.viz.figures import Example, reconstruction_figure
from spectralgpt.viz.gallery import colour_bands
from spectralgpt.viz.scene_figure import Overview, overview_figure

_EXAMPLES = 3
_OVERVIEW = 700  # longest side in pixels
_NAN = math.nan


@dataclass(frozen=True)
class _Row:
    """One row of windows, cut to the scene: `(C, n, W)` in normalised units, and what was hidden and can be scored."""

    truth: Floats
    rebuilt: Floats
    hidden: Bools
    valid: Bools

    def example(self, name: str, cut: Any) -> Example:  # noqa: ANN401 - slices
        return Example(name, self.truth[cut].copy(), self.rebuilt[cut].copy(), self.hidden[cut].copy())


def reconstruct_scene(
    model: Autoencoder,
    scene: Scene,
    normalization: Normalization,
    out: Path,
    *,
    mask_ratio: float = 0.9,
    seed: int = 0,
    batch_size: int = 16,
    overwrite: bool = False,
) -> Reconstruction:
    """Hides tokens of a scene, rebuilds them, and writes what came of it.

    Into `out` go `rebuilt.tif` (hidden values from the model, seen ones as they are, in the scene's numbers, NaN where
    it has none), `error.tif` (root mean square over the hidden bands of each pixel, in normalised units),
    `metrics.json` (PSNR, SSIM, SAM and ERGAS of all hidden values, and per band), `overview.png` and `windows.png`.

    Args:
        model: in evaluation mode, on the device that computes.
        scene: with the model's bands in its order.
        normalization: of the scene.
        out: the folder.
        mask_ratio: share of hidden tokens.
        seed: of the masks.
        batch_size: windows at a time.
        overwrite: replace what is there.

    Returns:
        The errors.

    Raises:
        UserError: a share out of range, a folder that is taken or cannot be written, or nothing to score.
    """
    if not 0 < mask_ratio < 1:
        raise UserError(f"mask ratio: expected a share between 0 and 1, got {mask_ratio}")
    size = window_side(model.config)
    padded = PaddedScene(scene, size)
    windows = Windows(padded.shape, size, 0)
    rebuilding = Rebuilding(model, mask_ratio=mask_ratio, seed=seed, device=next(model.parameters()).device)
    reader = _Windows(model, padded, normalization, rebuilding, windows, batch_size)
    values = value_layer(out / "rebuilt.tif", scene, scene.band_names, nodata=_NAN)
    errors = value_layer(out / "error.tif", scene, ("root mean square error, normalised units",), nodata=_NAN)
    spare_inputs([scene], (), [values, errors])
    overview, examples = _Overview(scene, windows), _Examples()
    with _appearing(out, overwrite) as folder, blaming_writes(out):
        work = Work(folder)
        with tqdm(total=len(windows), desc=scene.name, unit=" windows", disable=None) as bar:
            for start, row in reader.rows(bar):
                raw = np.where(row.valid, normalization.invert(row.rebuilt), _NAN).astype(np.float32)
                error = _error(row)
                work.write_rows("rebuilt", start, raw)
                work.write_rows("error", start, error[None])
                overview.add(start, row, error)
                examples.add(start, row, size)
        result = rebuilding.result()
        if math.isnan(result.psnr):
            raise UserError(f"{scene.name}: expected hidden tokens without invalid pixels, found none")
        for layer, name in ((values, "rebuilt"), (errors, "error")):
            _write(folder, layer, work, name)
        record = {"scene": scene.name, "mask_ratio": mask_ratio, "seed": seed, **_told(model, normalization, result)}
        (folder / "metrics.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        title = f"{scene.name}: {mask_ratio:.0%} of the tokens hidden"
        overview_figure(folder / "overview.png", overview.picture(), title=title, lines=_lines(model, result))
        reconstruction_figure(
            folder / "windows.png",
            examples.chosen(),
            scene.band_names,
            scene.card.wavelengths,
            title=title + _statistics_note(model),
            unit="normalised reflectance",
        )
    return result


class _Windows:
    """Rows of windows, rebuilt."""

    def __init__(
        self,
        model: Autoencoder,
        scene: PaddedScene,
        normalization: Normalization,
        rebuilding: Rebuilding,
        windows: Windows,
        batch_size: int,
    ) -> None:
        self._model, self._scene, self._normalization = model, scene, normalization
        self._rebuilding, self._windows, self._batch_size = rebuilding, windows, batch_size
        affine = [torch.tensor(values, dtype=torch.float64) for values in (normalization.offset, normalization.scale)]
        self._offset, self._scale = affine

    def rows(self, bar: Any) -> Iterator[tuple[int, _Row]]:  # noqa: ANN401 - a tqdm
        """First row of the scene, and the row of windows that begins there."""
        (height, width), size = self._scene.inner.shape, self._windows.size
        for top in self._windows.rows:
            raw, valid = self._scene.read_raw(top, 0, size, self._scene.shape[1])
            usable = np.ones(raw.shape, bool) if valid is None else valid
            image = np.where(usable, self._normalization.apply(raw), np.float32(0))
            inside = usable.copy()  # what is mirrored is no truth
            inside[:, height - top :], inside[:, :, width:] = False, False
            rebuilt, hidden = np.empty_like(image), np.empty_like(usable)
            for columns in self._windows.batches(self._batch_size):
                for column, cube, flags in self._rebuild(top, columns, image, inside):
                    rebuilt[:, :, column : column + size], hidden[:, :, column : column + size] = cube, flags
                bar.update(len(columns))
            part = np.s_[:, : height - top, :width]
            yield top, _Row(image[part], np.where(hidden, rebuilt, image)[part], hidden[part], usable[part])

    def _rebuild(
        self, top: int, columns: Sequence[int], image: Floats, inside: Bools
    ) -> Iterator[tuple[int, Floats, Bools]]:
        config, size = self._model.config, self._windows.size
        cuts = [np.s_[:, :, column : column + size] for column in columns]
        flags = torch.from_numpy(np.stack([inside[cut] for cut in cuts]))
        batch = {
            "image": torch.from_numpy(np.stack([image[cut] for cut in cuts])),
            "valid": ops.patchify3d(arrange_bands(flags, config), config.patch_size).all(2),
            "sample_id": torch.tensor([top * self._scene.shape[1] + column for column in columns]),
            "offset": self._offset.expand(len(columns), -1),
            "scale": self._scale.expand(len(columns), -1),
        }
        tokens, hidden = self._rebuilding.add(batch)
        cubes = (
            as_image(part, config, (size, size)) for part in (tokens.float(), hidden[:, :, None].expand_as(tokens))
        )
        yield from zip(columns, *(cube.cpu().numpy() for cube in cubes), strict=True)


class _Overview:
    """Every step-th pixel of the rows that pass by, in the three bands nearest to red, green and blue."""

    def __init__(self, scene: Scene, windows: Windows) -> None:
        self._step = max(1, -(-max(scene.shape) // _OVERVIEW))
        self._bands = colour_bands(scene.card.wavelengths)
        self._names = tuple(scene.band_names[band] for band in self._bands)
        self._parts: list[tuple[NDArray[Any], ...]] = []

    def add(self, start: int, row: _Row, error: Floats) -> None:
        thin = np.s_[:, -start % self._step :: self._step, :: self._step]
        cubes = (cube[self._bands][thin].copy() for cube in (row.truth, row.rebuilt, row.hidden, row.valid))
        self._parts.append((*cubes, error[thin[1:]].copy()))

    def picture(self) -> Overview:
        truth, rebuilt, hidden, valid = (np.concatenate([part[i] for part in self._parts], 1) for i in range(4))
        error = np.concatenate([part[4] for part in self._parts])
        return Overview(truth, rebuilt, hidden, np.logical_and.reduce(valid), error, self._names)


class _Examples:
    """The windows of most contrast among those whose every pixel is valid, one of a row of windows at most."""

    def __init__(self) -> None:
        self._best: list[tuple[float, Example]] = []

    def add(self, start: int, row: _Row, size: int) -> None:
        width = row.truth.shape[2]
        for column in range(0, width - size + 1, size):
            cut = np.s_[:, :, column : column + size]
            if row.truth.shape[1] < size or not row.valid[cut].all():
                continue
            contrast = float(row.truth[cut].std(axis=(1, 2)).mean())
            if len(self._best) < _EXAMPLES or contrast > self._best[-1][0]:
                self._best.append((contrast, row.example(f"row {start}\ncolumn {column}", cut)))
                self._best.sort(key=lambda pair: -pair[0])
                del self._best[_EXAMPLES:]
        if not self._best:  # a scene smaller than a window, or holes everywhere: the last resort
            self._last = row.example(f"row {start}\ncolumn 0", np.s_[:, :size, :size])

    def chosen(self) -> list[Example]:
        return [example for _, example in self._best] or [self._last]


@contextmanager
def _appearing(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to write into, whose files appear in `out` at the end, or not at all."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not overwrite)):
        raise UserError(f"{out}: expected a new or empty folder; choose another --out, or give --overwrite")
    folder = out.with_name(f".{out.name}.{os.getpid()}")
    with blaming_writes(out):
        folder.mkdir(parents=True)
    try:
        yield folder
        with blaming_writes(out):
            out.mkdir(exist_ok=True)
            for path in sorted(folder.iterdir(), key=lambda path: path.name == "metrics.json"):
                if path.suffix:
                    publish(path, out / path.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, layer: Layer, work: Work, name: str) -> None:
    layout = layer.layout
    shape = len(layout.bands), *layout.shape
    write_cog(folder / layer.path.name, layout, work.read_rows(name, layout.dtype, shape, BLOCK))
    (folder / name).unlink()


def _error(row: _Row) -> Floats:
    """Root mean square over the hidden, valid bands of each pixel; NaN where there are none."""
    counted = row.hidden & row.valid
    number = counted.sum(0)
    squares = (np.where(counted, row.rebuilt - row.truth, 0) ** 2).sum(0)
    error: Floats = np.where(number > 0, np.sqrt(squares / np.maximum(number, 1)), _NAN).astype(np.float32)
    return error


def _statistics_note(model: Autoencoder) -> str:
    return ", level and contrast of each token taken from the truth" if model.config.normalize_targets else ""


def _told(model: Autoencoder, normalization: Normalization, result: Reconstruction) -> dict[str, Any]:
    """Errors, and what they are errors of."""
    numbers = dataclasses.asdict(result)
    known = {key: _plain(value) for key, value in numbers.items() if key != "bands"}
    bands = {name: {key: _plain(value) for key, value in band.items()} for name, band in numbers["bands"].items()}
    return {
        "normalization": normalization.method,
        "token_statistics_from_truth": model.config.normalize_targets,
        **known,
        "bands": bands,
    }


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _lines(model: Autoencoder, result: Reconstruction) -> list[str]:
    """The errors as text for the figure."""
    lines = [
        f"PSNR {result.psnr:.2f} dB; nearest visible token {result.psnr_nearest:.2f}, mean {result.psnr_mean:.2f}",
        f"SSIM {result.ssim:.3f}   spectral angle {result.sam:.2f} degrees   ERGAS {result.ergas:.1f} %",
    ]
    if model.config.normalize_targets:
        lines.append("Level and contrast of each token are taken from the truth.")
    lines += ["", f"{'band':8}{'PSNR':>7}{'SSIM':>7}{'RMSE':>10}{'of mean':>9}"]
    shown = list(result.bands.items())
    for name, band in shown[:16]:
        lines.append(f"{name:8}{band.psnr:7.2f}{band.ssim:7.3f}{band.rmse:10.4g}{band.relative:8.1f}%")
    return lines + ([f"and {len(shown) - 16} more in metrics.json"] if len(shown) > 16 else [])
