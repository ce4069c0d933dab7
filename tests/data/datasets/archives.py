# SPDX-License-Identifier: Apache-2.0
"""Small archives in the exact layouts of the public data sets, every band recognisable by its values."""

import json

import numpy as np

from tests.data.rasters import at, noise, write

EUROSAT_ORDER = "B01 B02 B03 B04 B05 B06 B07 B08 B09 B10 B11 B12 B8A".split()
FMOW_ORDER = "B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B10 B11 B12".split()
BEN_BANDS = [name for name in FMOW_ORDER if name != "B10"]
PIXEL = {"B01": 60, "B09": 60, "B02": 10, "B03": 10, "B04": 10, "B08": 10}  # 20 m otherwise
LEVEL = {name: 100 * (number + 1) for number, name in enumerate(FMOW_ORDER)}
"""Mean value of each band."""


def cube(order, height, width, seed=0, dtype=np.uint16):
    """Bands in file order, each within 20 of its level."""
    level = np.array([LEVEL[name] for name in order])[:, None, None]
    return (level + noise(len(order), height, width, seed=seed, low=-20, high=20, dtype=np.int64)).astype(dtype)


def levels(record, axis=(-2, -1)):
    """Band levels of a record, as whole hundreds."""
    return np.rint(record.pixels.mean(axis=axis) / 100).astype(int).tolist()


def expected(names):
    """The levels of these bands."""
    return [LEVEL[name] // 100 for name in names]


def eurosat(root, numbers=(1, 2, 3, 4, 5, 6), classes=("AnnualCrop", "Forest"), size=16):
    """`<Class>/<Class>_<n>.tif`: 13 bands without names, B8A last."""
    for name in classes:
        for number in numbers:
            write(root / name / f"{name}_{number}.tif", cube(EUROSAT_ORDER, size, size, seed=number))
    return root


def bigearthnet_patch(folder, labels=None, seed=0, suffix="tif", **profile):
    """A patch folder of 12 one-band files at 10, 20 and 60 m, with version 1's labels where given."""
    for name in BEN_BANDS:
        gsd = PIXEL.get(name, 20)
        pixels = cube([name], 1200 // gsd, 1200 // gsd, seed=seed)
        write(folder / f"{folder.name}_{name}.{suffix}", pixels, **{"transform": at(gsd), **profile})
    if labels is not None:
        text = json.dumps({"labels": labels, "projection": "", "coordinates": {}})
        (folder / f"{folder.name}_labels_metadata.json").write_text(text)
    return folder


def fmow(root, rows, prefix="fmow-sentinel/", listed="fmow-sentinel/", split="train"):
    """The CSV and its images; a row is category, location, image, year, height, width."""
    lines = [",category,location_id,image_id,timestamp,polygon,image_path"]
    for number, (category, location, image, year, height, width) in enumerate(rows):
        path = f"{split}/{category}/{category}_{location}/{category}_{location}_{image}.tif"
        write(root / f"{prefix}{path}", cube(FMOW_ORDER, height, width, seed=number))
        polygon = '"POLYGON ((1 2, 3 4, 5 6, 1 2))"'
        lines.append(f"{number},{category},{location},{image},{year}-05-01T10:11:12Z,{polygon},{listed}{path}")
    (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return root


def oscd_city(images, name, shapes=((40, 50), (40, 50)), rect="_rect", transforms=(None, None)):
    """Two dates of 13 one-band files on one grid; the second date is 1000 brighter."""
    for date, (shape, transform) in enumerate(zip(shapes, transforms, strict=True), start=1):
        profile = {"crs": None, "transform": None} if transform is None else {"transform": transform}
        for band in FMOW_ORDER:
            pixels = cube([band], *shape, seed=3) + np.uint16(1000 * (date - 1))
            write(images / name / f"imgs_{date}{rect}" / f"{band}.tif", pixels, **profile)
    return images / name


def label_tif(path, codes, dtype=np.uint8, **profile):
    """A label raster without georeference."""
    return write(path, np.asarray(codes, dtype)[None], **{"crs": None, "transform": None, **profile})
