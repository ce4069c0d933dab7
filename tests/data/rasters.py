# SPDX-License-Identifier: Apache-2.0
"""Small rasters in the layouts people have."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning

UTM = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)}


def write(path, pixels, descriptions=None, mask=None, **profile):
    """A GeoTIFF of `(C, H, W)` pixels, on a 10 m UTM grid unless the profile says otherwise."""
    pixels = np.asarray(pixels)
    count, height, width = pixels.shape
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", **UTM, **profile}
    with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", count=count, height=height, width=width, dtype=pixels.dtype, **profile) as file:
            file.write(pixels)
            if descriptions is not None:
                file.descriptions = descriptions
            if mask is not None:
                file.write_mask(mask)
    return Path(path)


def at(gsd, left=500_000, top=5_000_000):
    """The transform of a north-up grid."""
    return rasterio.Affine(gsd, 0, left, 0, -gsd, top)


def noise(*shape, seed=0, low=1, high=4000, dtype=np.uint16):
    """Integers without the value 0, which means "no data"."""
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def band_folder(folder, bands, **profile):
    """One file per band: name -> (pixel size, `(H, W)` pixels)."""
    for name, (gsd, pixels) in bands.items():
        write(folder / f"scene_{name}.tif", pixels[None], **{"transform": at(gsd), **profile})
    return folder
