# SPDX-License-Identifier: Apache-2.0
"""A function of windows on scenes of any size, into georeferenced rasters on the scenes' own grid.

Everything that decides the output is written into it as one hash. So the same command finds out that its work is
done, an interrupted one goes on, and one with other settings is told so instead of mixing the two.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from spectralgpt.data.mask import Mask
from spectralgpt.data.normalize import Normalization
from spectralgpt.data.raster_write import BLOCK, blaming_writes, names_file, read_tags, write_cog
from spectralgpt.data.scene import Scene
from spectralgpt.errors import UserError
from spectralgpt.files import publish
from spectralgpt.predict.array import Function, overlap_pixels
from spectralgpt.predict.layers import Layer
from spectralgpt.predict.ranks import ALONE, Ranks
from spectralgpt.predict.source import Source
from spectralgpt.predict.stream import share, stream
from spectralgpt.predict.windows import Windows
from spectralgpt.predict.work import Work

FORMAT = 1
"""Of work folders; a change of what the same settings give."""
HASH_TAG = "SPECTRALGPT_SETTINGS"

Normalize = Callable[[Scene], Normalization]


def predict_scene(
    function: Function,
    scenes: Sequence[Scene],
    layers: Sequence[Layer],
    normalize: Normalize,
    *,
    size: int,
    overlap: float = 0.25,
    batch_size: int = 16,
    cell: int = 1,
    masks: Sequence[Mask] = (),
    identity: Mapping[str, Any] | None = None,
    ranks: Ranks = ALONE,
    overwrite: bool = False,
    restart: bool = False,
) -> bool:
    """Applies a function to all windows of a scene and writes rasters of the blended values.

    Memory is bounded by a few hundred rows of the scenes and two rows of windows, whatever the scene's height. A pixel
    is "no data" where any value of any date is invalid or masked.

    Args:
        function: as in `predict_array`.
        scenes: one, or one per date, on one grid.
        layers: what to write, the main raster last; `<its path>.work` holds what is done until all is.
        normalize: gives the normalisation of a scene; called once, before the first window.
        size: rows and columns of a window.
        overlap: share of a window's side that it has in common with each neighbour at least.
        batch_size: windows at a time, at most.
        cell: rows and columns of pixels that get one value, such as a model's patch; the sides of scenes and windows
            are multiples of it, and the function gives values `(B, K, size / cell, size / cell)`.
        masks: pixels to leave out.
        identity: plain values that tell what the function is, such as a hash of its weights.
        ranks: this process among those that share the work.
        overwrite: replace rasters made otherwise.
        restart: give up what an interrupted run has done.

    Returns:
        False if the rasters were there already, made of the same files by the same settings.

    Raises:
        UserError: a damaged file (named with the place), no valid pixel, values that are no numbers, a disk that is
            full or refuses, work of other settings in the way, or an output that is an input.
    """
    spare_inputs(scenes, masks, layers)
    height, width = scenes[0].shape
    if height % cell or width % cell or size % cell:
        raise ValueError(f"expected scenes and windows of whole cells of {cell}, got {scenes[0].shape} and {size}")
    windows = Windows((height // cell, width // cell), size // cell, overlap_pixels(size // cell, overlap))
    settings = {
        "format": FORMAT,
        "scene": [[header.path.name, *header.stamp] for scene in scenes for header in scene.headers],
        "bands": list(scenes[0].band_names),
        "mask": [[mask.header.path.name, *mask.header.stamp] for mask in masks],
        "window": [size, overlap_pixels(size // cell, overlap), batch_size, cell],
        "output": [_plain(layer) for layer in layers],
        **(identity or {}),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    out = layers[-1].path
    if ranks.from_first(_is_there(layers, digest, overwrite)):
        return False
    work = Work(out.with_name(f"{out.name}.work"))
    with blaming_writes(out):
        if ranks.rank == 0:
            out.parent.mkdir(parents=True, exist_ok=True)
            work.take(settings, restart)
    with _kept(work, ranks), blaming_writes(out):
        if ranks.rank == 0:
            work.remember("normalizations", lambda: [normalize(scene).to_dict() for scene in scenes])
            _check_space(work, layers)
        ranks.wait()
        normalizations = [Normalization.from_dict(values) for values in work.remember("normalizations")]
        _fill(function, Source(scenes, normalizations, windows, masks, cell), batch_size, work, layers, ranks)
        ranks.wait()
        if ranks.rank == 0:
            _finish(work, layers, digest, scenes[0].name)
        ranks.wait()
    return True


def spare_inputs(scenes: Sequence[Scene], masks: Sequence[Mask], layers: Sequence[Layer]) -> None:
    """Refuses to write over what is read: --overwrite means maps."""
    read = {header.path.resolve() for scene in scenes for header in scene.headers}
    read |= {mask.header.path.resolve() for mask in masks}
    for layer in layers:
        if layer.path.resolve() in read:
            raise UserError(
                f"{layer.path}: expected an output beside the scene, got a file that is read; choose another --out"
            )


def _is_there(layers: Sequence[Layer], digest: str, overwrite: bool) -> bool:
    there = [layer.path for layer in layers if layer.path.exists()]
    if len(there) == len(layers) and all(read_tags(path).get(HASH_TAG) == digest for path in there):
        return True
    if there and not overwrite and not all(read_tags(path).get(HASH_TAG) == digest for path in there):
        raise UserError(f"{there[0]}: exists, and was made otherwise; choose another --out, or give --overwrite")
    return False


@contextmanager
def _kept(work: Work, ranks: Ranks) -> Iterator[None]:
    """Lets the folder go; what ends the work also tells what is left of it."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(_told(work)) from stop
    except UserError as error:
        if ranks.rank == 0 and work.folder.exists() and not work.done():
            work.remove()
        if not work.folder.exists():
            raise
        raise UserError(f"{error}; {_told(work)}") from error
    finally:
        work.release()


def _told(work: Work) -> str:
    return f"what is done stays in {work.folder}, for the same command"


def _fill(
    function: Function, source: Source, batch_size: int, work: Work, layers: Sequence[Layer], ranks: Ranks
) -> None:
    """This process's rows of the output, as plain numbers in the work folder."""
    windows, done = source.windows, work.done()
    mine = share(len(windows.rows), ranks.rank, ranks.world_size)
    count, left = len(windows.columns), [index for index in mine if index not in done]
    bar = tqdm(
        total=len(mine) * count,
        initial=(len(mine) - len(left)) * count,
        desc=source.scenes[0].name,
        unit=" windows",
        disable=None if ranks.rank == 0 else True,
    )
    with bar:
        for index, start, values in stream(function, source, batch_size, work, left, ranks.rank, bar.update):
            stop = start + values.shape[1]
            valid = source.valid(start, stop)
            for number, layer in enumerate(layers):
                work.write_rows(f"rows-{number}", start, layer.pixels(values, valid))
            if valid.any():
                work.remember("has_valid", lambda: True)
            work.mark_done(index)


def _finish(work: Work, layers: Sequence[Layer], digest: str, name: str) -> None:
    """Makes the finished rows the rasters they are to be."""
    if not work.knows("has_valid"):
        work.remove()
        raise UserError(f"{name}: expected a pixel that is valid in all bands and not masked, got none")
    made = []
    for number, layer in enumerate(layers):
        layout, path = layer.layout, work.folder / f"final-{layer.path.name}"
        shape = len(layout.bands), *layout.shape
        tagged = dataclasses.replace(layout, tags={**layout.tags, HASH_TAG: digest})
        write_cog(path, tagged, work.read_rows(f"rows-{number}", layout.dtype, shape, BLOCK))
        made.append((path, layer.path))
    for path, final in made:
        if names_file(path).exists():
            publish(names_file(path), names_file(final))
        else:  # what a GIS program noted of a raster that is replaced
            names_file(final).unlink(missing_ok=True)
        publish(path, final)
    work.remove()


def _check_space(work: Work, layers: Sequence[Layer]) -> None:
    needed = sum(layer.layout.row_bytes * layer.layout.shape[0] for layer in layers) - work.nbytes()
    free = shutil.disk_usage(work.folder).free
    if needed > free:
        raise UserError(
            f"{work.folder.parent}: expected {needed / 1e9:.3g} GB free for the work beside the output, "
            f"got {free / 1e9:.3g} GB"
        )


def _plain(layer: Layer) -> list[Any]:
    layout = layer.layout
    names = [list(names) for names in (layout.bands, layout.colours, layout.classes)]
    return [layout.dtype, layout.nodata, *names, dict(layout.tags)]
