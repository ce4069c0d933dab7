# SPDX-License-Identifier: Apache-2.0
"""Whole scenes without a model's share of the work: reading, blending, writing; memory; exactness.

    python benchmarks/predict.py --size 2048 --out predict.json
    python benchmarks/predict.py --size 20000 --outputs bands --out large.json       # needs 30 GB of disk

A per-pixel stub stands for the model, on a cloud-optimised 12-band uint16 scene that this script writes. Two outputs
are timed: all bands as they came (checked pixel by pixel) and a class map. Windows per second are per second of CPU
time of one thread, the figure to compare where others use the machine; peak memory is the process's own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import torch
from rasterio.windows import Window

from spectralgpt.data.bands import SENTINEL2_12
from spectralgpt.data.normalize import Normalization
from spectralgpt.data.raster_write import BLOCK
from spectralgpt.data.scene import Scene
from spectralgpt.predict.layers import class_layer, value_layer
from spectralgpt.predict.scene import predict_scene
from spectralgpt.predict.windows import Windows

CELL = 16
"""Rows and columns of equal pixels: what compresses well is quick to write, and reading is what is timed."""


def pixels(start: int, stop: int, width: int) -> np.ndarray:
    """Rows of the synthetic scene, `(12, n, W)`; no pixel is 0, and neighbouring cells differ in every band."""
    rows, columns = np.arange(start // CELL, -(-stop // CELL))[:, None], np.arange(-(-width // CELL))
    cells = ((rows * 31 + columns * 17 + 331 * np.arange(12)[:, None, None]) % 4093 + 1).astype(np.uint16)
    whole = cells.repeat(CELL, 1).repeat(CELL, 2)
    return whole[:, start % CELL : start % CELL + stop - start, :width]


def strips(size: int) -> Iterator[tuple[int, np.ndarray]]:
    """The scene, a row of blocks at a time."""
    for start in range(0, size, BLOCK):
        yield start, pixels(start, min(start + BLOCK, size), size)


def write_scene(path: Path, size: int) -> None:
    """The scene as a COG; without overviews, which take longer than the rest and which nobody reads here."""
    plain = path.with_name("plain.tif")
    shape = {"count": 12, "height": size, "width": size, "dtype": "uint16", "nodata": 0, "crs": "EPSG:32632"}
    blocks = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "zstd", "zstd_level": 1}
    place = {"transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6), "bigtiff": "if_safer"}
    with rasterio.open(plain, "w", driver="GTiff", interleave="band", **shape, **blocks, **place) as file:
        for row, rows in strips(size):
            file.write(rows, window=Window(0, row, size, rows.shape[1]))
        file.descriptions = SENTINEL2_12
    rasterio.shutil.copy(plain, path, driver="COG", COMPRESS="DEFLATE", LEVEL=1, BLOCKSIZE=BLOCK, OVERVIEWS="NONE")
    plain.unlink()


def is_exact(path: Path, size: int) -> bool:
    """Whether a raster is the scene."""
    with rasterio.open(path) as file:
        return all(
            np.array_equal(file.read(window=Window(0, start, size, expected.shape[1])), expected)
            for start, expected in strips(size)
        )


def as_it_is(scene: Scene) -> Normalization:
    """Values unchanged."""
    return Normalization("none", scene.band_names, (0.0,) * 12, (1.0,) * 12)


def run(folder: Path, output: str, size: int, window: int, overlap: float, queue: Any) -> None:  # noqa: ANN401 - a multiprocessing queue
    """One prediction in a process of its own; puts its figures into a queue."""
    torch.set_num_threads(1)
    scene = Scene.open(folder / "scene.tif", "sentinel2", SENTINEL2_12)
    out = folder / f"{output}.tif"
    if output == "bands":
        layers, function = [value_layer(out, scene, SENTINEL2_12, "uint16", 0)], lambda batch: batch
    else:
        layers, function = [class_layer(out, scene, list("abcd"))], lambda batch: batch[:, :4]
    began, cpu, before = time.perf_counter(), time.process_time(), peak_memory()
    predict_scene(function, [scene], layers, as_it_is, size=window, overlap=overlap)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - began
    count = len(Windows(scene.shape, window, round(window * overlap)))
    queue.put({"windows": count, "cpu_s": cpu, "wall_s": wall, "peak_bytes": peak_memory(), "before_bytes": before})


def peak_memory() -> int:
    """Largest resident memory of this process so far; the kernel's other figure, ru_maxrss, knows its parent's too."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def measure(folder: Path, output: str, size: int, window: int, overlap: float) -> dict[str, Any]:
    """Figures of one output."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=run, args=(folder, output, size, window, overlap, queue))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{output}: the process ended with {process.exitcode}")
    found = queue.get()
    return {"output": output, "windows_per_cpu_s": found["windows"] / found["cpu_s"], **found}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048, help="rows and columns of the scene")
    parser.add_argument("--window", type=int, default=96)
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--outputs", nargs="+", default=["classes", "bands"])
    parser.add_argument("--folder", type=Path, help="for the rasters (a temporary one)")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_scene(folder / "scene.tif", options.size)
        results = []
        for output in options.outputs:
            result = measure(folder, output, options.size, options.window, options.overlap)
            if output == "bands":
                result["exact"] = is_exact(folder / "bands.tif", options.size)
            results.append(result)
            print(
                ", ".join(
                    f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                    for key, value in result.items()
                )
            )
    record = {
        "size": options.size,
        "bands": 12,
        "window": options.window,
        "overlap": options.overlap,
        "results": results,
    }
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
