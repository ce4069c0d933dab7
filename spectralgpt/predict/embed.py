# SPDX-License-Identifier: Apache-2.0
"""Embeddings of whole scenes: one vector per patch of pixels as a raster, one per tile as a table, a picture of both.

A raster of embeddings is a scene's map on a grid `p` times as coarse, p being the rows and columns of the model's
patch. Overlapping windows are blended like maps. Its outermost patches may reach beyond the scene, which is mirrored
there.

Tokens of a transformer remember their place in the window: of a small model over a coast, 61 % of the variance of its
embeddings was that, a grid over every picture. What an encoder says of a place is what it answers to a window of
nothing but the scene's mean colours; with that taken away 1 % was left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectralgpt.data.normalize import Normalization
from spectralgpt.data.raster import Bools
from spectralgpt.data.raster_write import RasterLayout, blaming_writes, read_layout, read_parts, write_cog
from spectralgpt.data.scene import Scene
from spectralgpt.errors import UserError
from spectralgpt.files import publish
from spectralgpt.heads.features import feature_maps
from spectralgpt.models.encoder import Encoder
from spectralgpt.predict.array import Function
from spectralgpt.predict.components import Components, as_colours
from spectralgpt.predict.inputs import window_side
from spectralgpt.predict.layers import value_layer
from spectralgpt.predict.padded import PaddedScene
from spectralgpt.predict.scene import predict_scene
from spectralgpt.predict.windows import Floats
from spectralgpt.viz.scene_figure import save_picture

_BLOCK, _BLOCKS = 64, 8  # pixels, and how many along each side, that the mean colours come from
_PART = (128, 512)  # rows and columns of a raster of embeddings that are read at a time


def embedding_function(
    encoder: Encoder, pool: str, layer: int, colours: Callable[[], Tensor] | None, device: torch.device
) -> Function:
    """Windows (B, C, size, size) to embeddings (B, D, size / p, size / p), on the CPU or `device`.

    Args:
        encoder: in evaluation mode, on `device`.
        pool: as for `embed_scene`.
        layer: likewise.
        colours: gives (C,), normalised, at the first window: the answer to a window of these alone, less its mean over
            the window, is taken away.
        device: where to compute.
    """

    def function(batch: Tensor) -> Tensor:
        return feature_maps(encoder, batch.to(device), [layer], pool)[0]

    if colours is None:
        return function
    height, width = encoder.config.height_width

    @cache
    @torch.inference_mode()
    def places() -> Tensor:
        answer = function(colours()[None, :, None, None].expand(1, -1, height, width).contiguous())
        return answer - answer.mean((2, 3), keepdim=True)

    return lambda batch: function(batch) - places()


def embed_scene(
    encoder: Encoder,
    scene: Scene,
    normalize: Callable[[Scene], Normalization],
    out: Path,
    *,
    pool: str = "mean",
    layer: int = -1,
    keep_places: bool = False,
    overlap: float = 0.5,
    batch_size: int = 16,
    identity: dict[str, Any] | None = None,
    overwrite: bool = False,
    restart: bool = False,
) -> bool:
    """Writes the embedding of every patch of a scene as a COG of D bands, NaN where a pixel is missing.

    Interrupted work goes on when called again, as in `predict_scene`.

    Args:
        encoder: in evaluation mode, on the device that computes.
        scene: with the encoder's bands in its order.
        normalize: gives the scene's normalisation.
        out: the raster.
        pool: "mean" over the spectral groups, or "concat" them.
        layer: which block's tokens; -1 are the last one's, normalised.
        keep_places: leave in what tokens say of their place in the window.
        overlap: of the windows, as a share of their side.
        batch_size: windows at a time.
        identity: plain values that tell what the encoder is.
        overwrite: replace a raster made otherwise.
        restart: give up what an interrupted run has done.

    Returns:
        False if the raster was there already, made by the same settings.

    Raises:
        UserError: as `predict_scene`.
    """
    side, (_, cell, across) = window_side(encoder.config), encoder.config.patch_size
    if across != cell:
        raise UserError(f"patch: expected a model of square patches, got {cell} x {across}")
    padded: Any = PaddedScene(scene, cell)
    channels = encoder.config.embed_dim * (len(encoder.config.groups) if pool == "concat" else 1)
    names = [f"embedding_{number}" for number in range(channels)]
    normalization = cache(lambda: normalize(scene))  # a pass over the scene, needed for what is not done yet alone
    colours = None if keep_places else lambda: mean_colours(scene, normalization())
    return predict_scene(
        embedding_function(encoder, pool, layer, colours, next(encoder.parameters()).device),
        [padded],
        [value_layer(out, scene, names, nodata=math.nan, cell=cell)],
        lambda _: normalization(),
        size=side,
        overlap=overlap,
        batch_size=batch_size,
        cell=cell,
        identity={"embedding": [pool, layer, keep_places], **(identity or {})},
        overwrite=overwrite,
        restart=restart,
    )


def mean_colours(scene: Scene, normalization: Normalization) -> Tensor:
    """Mean of each band over the valid pixels of blocks spread over the scene, normalised, (C,) float32."""
    sums, counts = np.zeros((2, len(scene.band_names)))
    rows, columns = (np.linspace(0, max(length - _BLOCK, 0), _BLOCKS).astype(int) for length in scene.shape)
    for row in np.unique(rows).tolist():
        for column in np.unique(columns).tolist():
            height, width = min(_BLOCK, scene.shape[0] - row), min(_BLOCK, scene.shape[1] - column)
            values, valid = scene.read(row, column, height, width)
            sums += np.where(valid, normalization.apply(values), 0).sum((1, 2), dtype=np.float64)
            counts += valid.sum((1, 2))
    return torch.from_numpy((sums / np.maximum(counts, 1)).astype(np.float32))


def write_components(raster: Path, name: str) -> tuple[Path, Path]:
    """The first three principal components of a raster of embeddings, as a COG and as a PNG in red, green and blue.

    Args:
        raster: what `embed_scene` wrote.
        name: of the files beside it, without an ending.

    Returns:
        Their paths.

    Raises:
        UserError: too few embeddings, or a disk that refuses.
    """
    made = read_layout(raster)
    components = Components()
    for _, _, vectors, valid in parts(raster):
        components.add(vectors[:, valid].T)
    mean, axes = components.axes(3)
    scores, whole = np.zeros((*made.shape, 3), np.float32), np.zeros(made.shape, bool)
    for row, column, vectors, valid in parts(raster):
        place = np.s_[row : row + valid.shape[0], column : column + valid.shape[1]]
        scores[place] = np.moveaxis(np.tensordot(axes, vectors - mean[:, None, None], 1), 0, -1)
        whole[place] = valid
    colours = as_colours(scores, whole)
    bands = ("component 1", "component 2", "component 3", "alpha")
    layout = RasterLayout(made.shape, "uint8", bands, made.crs, made.transform)
    picture = np.concatenate([colours, np.where(whole, 255, 0).astype(np.uint8)[..., None]], 2)
    files = raster.with_name(f"{name}.tif"), raster.with_name(f"{name}.png")
    for path in files:
        temporary = path.with_name(f".{path.name}")
        with blaming_writes(path):
            if path.suffix == ".tif":
                write_cog(temporary, layout, [(0, np.moveaxis(picture, -1, 0))])
            else:
                save_picture(temporary, picture)
            publish(temporary, path)
    return files


def parts(raster: Path) -> Iterator[tuple[int, int, Floats, Bools]]:
    """A raster of embeddings piece by piece: row, column, vectors (D, n, m), and which of them there are (n, m)."""
    return read_parts(raster, *_PART)


def tile_means(raster: Path, tile: int) -> tuple[Floats, Floats]:
    """Mean embedding of every tile of so many rows and columns of patches, and the share of patches that there are.

    Tiles lie side by side from the upper left; the last ones of a row and a column may be smaller.

    Returns:
        (rows, columns, D), NaN where there is none, and (rows, columns).

    Raises:
        UserError: tiles of nothing.
    """
    if tile < 1:
        raise UserError(f"tile: expected at least one patch, got {tile}")
    made = read_layout(raster)
    shape = tuple(-(-length // tile) for length in made.shape)
    sums = np.zeros((*shape, len(made.bands)))
    counts, sizes = np.zeros(shape), np.zeros(shape)
    for row, column, vectors, valid in parts(raster):
        rows = (row + np.arange(valid.shape[0])) // tile
        columns = (column + np.arange(valid.shape[1])) // tile
        places = np.broadcast_to(rows[:, None], valid.shape), np.broadcast_to(columns, valid.shape)
        np.add.at(sizes, places, 1)
        np.add.at(counts, places, valid)
        chosen = tuple(place[valid] for place in places)
        np.add.at(sums, chosen, vectors[:, valid].T)
    with np.errstate(invalid="ignore"):
        means: Floats = (sums / counts[..., None]).astype(np.float32)
    shares: Floats = (counts / sizes).astype(np.float32)
    return means, shares


def write_tiles(raster: Path, scene: Scene, cell: int, tile: int, path: Path) -> int:
    """Mean embeddings of tiles as GeoParquet: `tile`, `row`, `column` (pixels), `valid` share, `embedding`, geometry.

    Geometry is in the scene's coordinate system; of a scene without one, columns and rows of pixels.

    Args:
        raster: what `embed_scene` wrote of the scene.
        scene: the scene.
        cell: rows and columns of pixels of a patch.
        tile: rows and columns of patches of a tile.
        path: the file.

    Returns:
        Number of tiles; those without a valid patch are left out.

    Raises:
        UserError: the extra `geo` is missing, or the disk refuses.
    """
    try:
        import geopandas  # type: ignore[import-untyped]
        from shapely import Polygon  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError("tiles: expected geopandas and pyarrow, found none; pip install 'spectralgpt[geo]'") from error
    means, shares = tile_means(raster, tile)
    places = np.argwhere(shares > 0)
    pixels = places * (tile * cell)
    table = {
        "tile": [f"{row}-{column}" for row, column in places],
        "row": pixels[:, 0],
        "column": pixels[:, 1],
        "valid": shares[tuple(places.T)],
        "embedding": [vector.tolist() for vector in means[tuple(places.T)]],
    }
    geometry = [Polygon(_corners(scene, row, column, tile * cell)) for row, column in pixels.tolist()]
    frame = geopandas.GeoDataFrame(table, geometry=geometry, crs=None if scene.crs is None else scene.crs.to_wkt())
    temporary = path.with_name(f".{path.name}")
    with blaming_writes(path):
        frame.to_parquet(temporary, index=False)
        publish(temporary, path)
    return len(frame)


def _corners(scene: Scene, row: int, column: int, size: int) -> Sequence[tuple[float, float]]:
    bottom, right = min(row + size, scene.shape[0]), min(column + size, scene.shape[1])
    corners = ((column, row), (right, row), (right, bottom), (column, bottom))
    if scene.transform is None:
        return corners
    a, b, c, d, e, f = tuple(scene.transform)[:6]
    return [(a * x + b * y + c, d * x + e * y + f) for x, y in corners]
