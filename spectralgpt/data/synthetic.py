# SPDX-License-Identifier: Apache-2.0
"""A synthetic Sentinel-2 scene: for demos without a network, and for tests.

Four spectra (water, vegetation, soil, built-up) mix over fractal land, since fields of 1/f noise have detail
at every scale, as land has. The 20 and 60 m bands can be as blurred as a real product's. A pure function of
size and seed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spectralgpt.data.bands import SENTINEL2
from spectralgpt.data.raster import write_geotiff
from spectralgpt.data.resample import Axis, Floats, resample

# Top-of-atmosphere reflectance x 10000, one row per cover in the order of the sensor card.
_SPECTRA = np.array(
    [
        [1300, 1050, 800, 550, 480, 420, 400, 370, 340, 150, 12, 150, 110],  # water
        [1230, 950, 880, 600, 1050, 2700, 3400, 3600, 3800, 1200, 15, 1900, 950],  # vegetation
        [1500, 1400, 1550, 1850, 2150, 2400, 2600, 2650, 2850, 900, 25, 3400, 2900],  # soil
        [1700, 1650, 1650, 1700, 1850, 2000, 2100, 2200, 2250, 750, 20, 2300, 2100],  # built-up
    ],
    np.float32,
)
_GSD = 10
_NOISE = 12.0


def synthetic_scene(path: str | Path, height: int = 1024, width: int = 1024, seed: int = 0, blur: bool = True) -> Path:
    """Writes a 13-band uint16 GeoTIFF on a 10 m grid, tiled, georeferenced, with band descriptions.

    Args:
        path: the file to write.
        height: rows.
        width: columns.
        seed: another seed is another landscape.
        blur: give the 20 and 60 m bands their real resolution.

    Returns:
        `path`.
    """
    rng = np.random.default_rng(seed)
    shares = _land_cover(rng, height, width)
    light = 1 + 0.06 * _fractal(rng, height, width, 1.2)
    pixels = np.tensordot(_SPECTRA.T, shares, axes=1) * light
    for plane, band in zip(pixels, SENTINEL2.bands, strict=True):
        if blur and band.gsd > _GSD:
            plane[:] = _at_resolution(plane, int(band.gsd) // _GSD)
        plane += _NOISE * rng.standard_normal((height, width), np.float32)
    transform = (_GSD, 0, 500_000, 0, -_GSD, 5_000_000)
    values = np.clip(np.rint(pixels), 1, 65_535).astype(np.uint16)  # 0 is "no data"
    path = Path(path)
    write_geotiff(path, values, SENTINEL2.names, crs="EPSG:32632", transform=transform)
    return path


def _land_cover(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Shares of the four covers, `(4, H, W)`, adding up to one."""
    elevation = _fractal(rng, height, width, 1.8)
    moisture = _fractal(rng, height, width, 1.3)
    settlement = _fractal(rng, height, width, 1.5)
    streets = _fractal(rng, height, width, 0.8)
    # Sharp shores, gradual fields, towns made of grain; a softmax of these scores mixes the borders.
    water = -6 * (elevation + 0.7)
    vegetation = 2.5 * moisture
    soil = -2.5 * moisture
    built_up = 4 * (settlement - 1.2) + 2 * streets
    scores = np.stack([water, vegetation, soil, built_up])
    weights = np.exp(scores - scores.max(axis=0))
    shares: Floats = (weights / weights.sum(axis=0)).astype(np.float32)
    return shares


def _fractal(rng: np.random.Generator, height: int, width: int, slope: float) -> Floats:
    """White noise filtered to amplitude 1/f**slope, mean 0 and standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf  # no mean
    noise: NDArray[np.float64] = rng.standard_normal((height, width))
    field = np.fft.irfft2(np.fft.rfft2(noise) / frequency**slope, s=(height, width))
    scaled: Floats = (field / field.std()).astype(np.float32)
    return scaled


def _at_resolution(plane: Floats, factor: int) -> Floats:
    """What a detector with pixels `factor` times as wide sees, interpolated back to the fine grid."""
    height, width = plane.shape
    padded = np.pad(plane, ((0, -height % factor), (0, -width % factor)), mode="edge")
    coarse = padded.reshape(padded.shape[0] // factor, factor, -1, factor).mean(axis=(1, 3), dtype=np.float32)
    rows, columns = Axis(0.0, 1 / factor, coarse.shape[0]), Axis(0.0, 1 / factor, coarse.shape[1])
    fine, _ = resample(coarse, np.ones(coarse.shape, bool), rows.taps(0, height), columns.taps(0, width))
    return fine
