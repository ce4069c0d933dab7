# SPDX-License-Identifier: Apache-2.0
"""Cloud-optimised GeoTIFFs from strips of rows."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio

from spectralgpt.data import raster_write
from spectralgpt.data.raster_write import RasterLayout, read_tags, write_cog
from spectralgpt.errors import UserError
from tests.data.rasters import UTM, noise


def strips(pixels, rows=512):
    return ((row, pixels[:, row : row + rows]) for row in range(0, pixels.shape[1], rows))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_rows_become_a_cog(tmp_path, dtype):
    pixels = noise(2, 700, 1100, dtype=dtype, high=200)
    layout = RasterLayout((700, 1100), dtype, ("a", "b"), UTM["crs"], UTM["transform"], 7, scale=0.5, tags={"X": "y"})
    write_cog(tmp_path / "a.tif", layout, strips(pixels))
    with rasterio.open(tmp_path / "a.tif") as file:
        assert np.array_equal(file.read(), pixels) and file.dtypes[0] == dtype
        assert (file.crs, file.transform, file.nodata) == (UTM["crs"], UTM["transform"], 7)
        assert (file.descriptions, file.scales) == (("a", "b"), (0.5, 0.5))
        assert file.block_shapes[0] == (512, 512) and file.overviews(1) and file.compression.value == "DEFLATE"
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    assert read_tags(tmp_path / "a.tif")["X"] == "y"
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_the_same_rows_give_the_same_file(tmp_path):
    pixels = noise(1, 600, 600, dtype=np.uint8, high=9)
    layout = RasterLayout((600, 600), "uint8", ("class",), nodata=255, colours=("#102030",) * 9, is_categorical=True)
    write_cog(tmp_path / "a.tif", layout, strips(pixels))
    write_cog(tmp_path / "b.tif", layout, strips(pixels, 100))
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


@pytest.mark.parametrize("is_categorical", [False, True])
def test_overviews_halve_down_to_a_block(tmp_path, is_categorical):
    """The mean of numbers, the most frequent of classes; "no data" takes no part."""
    cell = np.array([[4, 4], [4, 8]] if is_categorical else [[4, 8], [6, 200]], np.uint8)
    layout = RasterLayout((1040, 600), "uint8", ("a",), *UTM.values(), nodata=200, is_categorical=is_categorical)
    write_cog(tmp_path / "a.tif", layout, strips(np.tile(cell, (520, 300))[None]))
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.overviews(1) == [2, 4]
        assert (file.read(1, out_shape=(520, 300)) == (4 if is_categorical else 6)).all()
    layout = RasterLayout((512, 300), "uint8", ("a",), *UTM.values())
    write_cog(tmp_path / "b.tif", layout, strips(np.tile(cell, (256, 150))[None]))
    with rasterio.open(tmp_path / "b.tif") as file:
        assert file.overviews(1) == []


def test_a_file_that_came_out_changed_is_told(tmp_path, monkeypatch):
    """As by the last bytes of a full disk, which pass without an error."""
    real = raster_write.rasterio.shutil.copy

    def spoil(source, target, **options):
        real(source, target, **options)
        with rasterio.open(target, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
            file.write(file.read(1)[:1] + 1, 1, window=((0, 1), (0, 90)))

    monkeypatch.setattr(raster_write.rasterio.shutil, "copy", spoil)
    layout = RasterLayout((80, 90), "uint8", ("a",), UTM["crs"], UTM["transform"])
    with pytest.raises(UserError, match=r"a\.tif: cannot be written \(rows 0 to 79 came out changed\)"):
        write_cog(tmp_path / "a.tif", layout, strips(noise(1, 80, 90, dtype=np.uint8, high=99)))


def test_where_nothing_can_be_written(tmp_path):
    layout = RasterLayout((8, 8), "uint8", ("a",), UTM["crs"], UTM["transform"])
    with pytest.raises(UserError, match=r"a\.tif: cannot be written \("):
        write_cog(tmp_path / "none" / "a.tif", layout, [])
    (tmp_path / "text.tif").write_text("no raster")
    assert read_tags(tmp_path / "text.tif") == {}
