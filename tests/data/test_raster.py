# SPDX-License-Identifier: Apache-2.0
import multiprocessing
import struct
from functools import lru_cache

import numpy as np
import pytest
import rasterio

from spectralgpt.data import raster
from spectralgpt.data.raster import read_header, read_window, write_geotiff
from spectralgpt.errors import UserError
from tests.data.rasters import noise, write


def test_header_and_window(tmp_path):
    pixels = noise(3, 40, 50)
    header = read_header(write(tmp_path / "a.tif", pixels, ["x", None, "z"]))
    assert (header.shape, header.dtype, header.descriptions) == ((40, 50), np.uint16, ("x", None, "z"))
    assert header.crs.to_epsg() == 32632 and tuple(header.transform)[:6] == (10, 0, 500_000, 0, -10, 5_000_000)
    values, valid = read_window(header, [3, 1], 5, 7, 10, 11)
    np.testing.assert_array_equal(values, pixels[[2, 0], 5:15, 7:18])
    assert valid.all()


def test_jpeg2000_by_content(tmp_path):
    pixels = noise(1, 64, 64)
    write(tmp_path / "a.jp2", pixels, driver="JP2OpenJPEG", quality=100, reversible=True)
    (tmp_path / "a.jp2").rename(tmp_path / "a.tif")
    header = read_header(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_window(header, [1], 0, 0, 64, 64)[0], pixels)


def test_what_is_no_raster_is_refused_unopened(tmp_path):
    vrt = tmp_path / "a.tif"
    vrt.write_text('<VRTDataset rasterXSize="8" rasterYSize="8"></VRTDataset>')
    with pytest.raises(UserError, match="expected a GeoTIFF or JPEG 2000"):
        read_header(vrt)


@pytest.mark.parametrize("keep", [4, 60, 1500])
def test_cut_off_files_are_named(tmp_path, keep):
    path = write(tmp_path / "a.tif", noise(2, 64, 64), compress="deflate")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"a\.tif: damaged raster \(.+\)"):
        read_window(read_header(path), [1, 2], 0, 0, 64, 64)


def test_damaged_pixels_are_named(tmp_path):
    path = write(tmp_path / "a.tif", noise(2, 64, 64), compress="lzw")
    data = bytearray(path.read_bytes())
    data[2000:2100] = b"\xff" * 100
    path.write_bytes(data)
    header = read_header(path)
    with pytest.raises(UserError, match=r"a\.tif: damaged raster \(.+\)"):
        read_window(header, [1, 2], 0, 0, 64, 64)


def tiff(tags):
    """A TIFF that is all header: little-endian, one directory, no pixel behind its one block."""
    tags = {"width": 1, "height": 1, "bits": 8, "compression": 1, "photometric": 1, "samples": 1, **tags}
    block = ("tile_offset", "tile_bytes") if "tile_width" in tags else ("offset", "bytes")
    tags = {**tags, **dict.fromkeys(block, 8)}
    numbers = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "offset": 273,
               "samples": 277, "bytes": 279, "tile_width": 322, "tile_height": 323, "tile_offset": 324,
               "tile_bytes": 325}  # fmt: skip
    entries = sorted((numbers[name], value) for name, value in tags.items())
    body = b"".join(struct.pack("<HHII", number, 4, 1, value) for number, value in entries)
    return b"II*\x00" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", 0)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"tile_width": 32768, "tile_height": 32768}, "blocks of at most 64 MiB"),
        ({"tile_width": 2048, "tile_height": 2048, "samples": 64}, "blocks of at most 64 MiB"),
        ({"width": 1000000, "height": 1000000}, "at most 34359738368 pixels"),
        ({"samples": 60000}, "1 to 1024 bands"),
    ],
)
def test_headers_that_claim_gigabytes_are_refused(tmp_path, tags, message):
    path = tmp_path / "bomb.tif"
    path.write_bytes(tiff(tags))
    with pytest.raises(UserError, match=message):
        read_header(path)


def test_sidecar_files_change_nothing(tmp_path):
    pixels = noise(1, 16, 16)
    path = write(tmp_path / "a.tif", pixels)
    value = pixels[0, 0, 0]
    (tmp_path / "a.tif.aux.xml").write_text(
        f"<PAMDataset><PAMRasterBand band='1'><NoDataValue>{value}</NoDataValue></PAMRasterBand></PAMDataset>"
    )
    header = read_header(path)
    assert not header.has_nodata and read_window(header, [1], 0, 0, 16, 16)[1].all()


def test_pixels_must_be_real_numbers(tmp_path):
    path = write(tmp_path / "a.tif", np.ones((1, 8, 8), np.complex64))
    with pytest.raises(UserError, match="integer or floating-point"):
        read_header(path)


def test_a_rewritten_file_is_read_anew(tmp_path):
    path = write(tmp_path / "a.tif", noise(1, 16, 16))
    read_window(read_header(path), [1], 0, 0, 16, 16)
    fresh = noise(1, 16, 16, seed=1)
    write(path, fresh, compress="deflate")
    np.testing.assert_array_equal(read_window(read_header(path), [1], 0, 0, 16, 16)[0], fresh)


def _wrong_reads(header, seed):
    """How many of 400 windows hold other pixels than were written, or cannot be read."""
    whole = noise(1, 2048, 2048)
    wrong = 0
    for row, column in np.random.default_rng(seed).integers(0, 2048 - 64, (400, 2)).tolist():
        try:
            pixels, _ = read_window(header, [1], row, column, 64, 64)
            wrong += not np.array_equal(pixels, whole[:, row : row + 64, column : column + 64])
        except UserError:
            wrong += 1
    return wrong


def _wrong_reads_of_workers(path, start):
    header = read_header(write(path, noise(1, 2048, 2048)))
    read_window(header, [1], 0, 0, 64, 64)  # opens the file here, before the workers start
    with multiprocessing.get_context(start).Pool(4) as pool:
        return sum(pool.starmap(_wrong_reads, [(header, seed) for seed in range(4)]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # newer Pythons warn of forking at all
@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_worker_processes_open_files_of_their_own(tmp_path, start):
    assert _wrong_reads_of_workers(tmp_path / "a.tif", start) == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_shared_handles_would_read_wrong_pixels(tmp_path, monkeypatch):
    shared = lru_cache(raster._opened)
    monkeypatch.setattr(raster, "_open", lambda path, stamp, process: shared(path, stamp))
    assert _wrong_reads_of_workers(tmp_path / "a.tif", "fork") > 0


def test_files_stay_open_until_read_whole_and_a_hundred_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(raster, "_OPEN_FILES", 3)
    monkeypatch.setattr(raster, "_handles", {})
    pixels = noise(1, 8, 8)
    headers = [read_header(write(tmp_path / f"{n}.tif", pixels)) for n in range(4)]
    kept = [path.stem for path, _, _ in raster._handles]
    assert kept == ["1", "2", "3"]
    read_window(headers[1], [1], 0, 0, 4, 8)
    assert [path.stem for path, _, _ in raster._handles] == ["2", "3", "1"]
    for _ in range(2):
        np.testing.assert_array_equal(read_window(headers[2], [1], 0, 0, 8, 8)[0], pixels)
        assert [path.stem for path, _, _ in raster._handles] == ["3", "1"]


def test_write_geotiff_is_tiled_named_and_all_or_nothing(tmp_path):
    path, pixels = tmp_path / "out.tif", noise(2, 300, 300)
    write_geotiff(path, pixels, ["B04", "B03"], crs="EPSG:32632", transform=(10, 0, 5, 0, -10, 7), nodata=0)
    with rasterio.open(path) as file:
        assert (file.descriptions, file.nodata, file.block_shapes[0]) == (("B04", "B03"), 0, (256, 256))
        np.testing.assert_array_equal(file.read(), pixels)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="band"):
        write_geotiff(path, pixels, ["B04"], crs="EPSG:32632", transform=(10, 0, 5, 0, -10, 7))
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.tif"] and path.read_bytes() == before
