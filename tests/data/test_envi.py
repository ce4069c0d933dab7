# SPDX-License-Identifier: Apache-2.0
import os
import time

import numpy as np
import pytest

from spectralgpt.data.discover import find_scenes
from spectralgpt.data.raster import read_header, read_window
from spectralgpt.data.scene import Scene
from spectralgpt.errors import UserError
from tests.data.rasters import noise, write

CODES = {"uint8": 1, "int16": 2, "float32": 4, "float64": 5, "uint16": 12}
AXES = {"bsq": (0, 1, 2), "bil": (1, 0, 2), "bip": (1, 2, 0)}


def envi(folder, pixels, name="cube", suffix=".img", interleave="bsq", start=0, **fields):
    """A header and bare numbers; a field given as None is left out."""
    folder.mkdir(exist_ok=True)
    bands, lines, samples = pixels.shape
    known = {
        "samples": samples,
        "lines": lines,
        "bands": bands,
        "header offset": start,
        "data type": CODES[pixels.dtype.name],
        "interleave": interleave,
        "byte order": 0,
        "map info": "{UTM, 1, 1, 500000, 5000000, 30, 30, 32, North, WGS-84, units=Meters}",
        **{key.replace("_", " "): value for key, value in fields.items()},
    }
    lines = [f"{key} = {value}" for key, value in known.items() if value is not None]
    header = folder / f"{name}.hdr"
    header.write_text("\n".join(["ENVI", "description = {a cube,", "  from a test}", *lines, ""]))
    (folder / f"{name}{suffix}").write_bytes(b"\xff" * start + pixels.transpose(AXES[interleave]).tobytes())
    return header


@pytest.mark.parametrize("interleave", list(AXES))
@pytest.mark.parametrize("suffix", ["", ".img", ".DAT"])
def test_an_image_is_opened_by_its_header(tmp_path, interleave, suffix):
    pixels = noise(5, 6, 7).astype(np.int16)
    path = envi(tmp_path, pixels, suffix=suffix, interleave=interleave, start=13)
    header = read_header(path)
    assert (header.shape, header.dtype, header.path) == ((6, 7), np.int16, path)
    assert header.crs.to_dict()["proj"] in ("utm", "tmerc") and header.transform.a == 30
    np.testing.assert_array_equal(read_window(header, [4, 2], 1, 2, 4, 3)[0], pixels[[3, 1], 1:5, 2:5])
    assert find_scenes(tmp_path) == [path]


@pytest.mark.parametrize(
    ("units", "divisor"),
    [("Nanometers", 1000), ("nm", 1000), ("Micrometers", 1), ("um", 1), ("Unknown", 1), (None, 1000)],
)
def test_the_header_is_its_own_card(tmp_path, units, divisor):
    centres = [0.45, 0.55, 0.65, 0.85]
    fields = {
        "wavelength": "{" + ", ".join(f"{centre * divisor:.6g}" for centre in centres[:2]) + ",\n  "
        + ", ".join(f"{centre * divisor:.6g}" for centre in centres[2:]) + "}",
        "fwhm": "{" + ", ".join(f"{0.01 * divisor:.6g}" for _ in centres) + "}",
        "bbl": "{1, 1, 0, 1}",
        "wavelength_units": units,
    }  # fmt: skip
    pixels = noise(4, 8, 8)
    scene = Scene.open(envi(tmp_path, pixels, **fields))
    assert scene.card.name == "hyperspectral" and scene.band_names == ("1", "2", "4")
    assert scene.card.wavelengths == (0.45, 0.55, 0.85) and scene.card.bands[0].width == 0.01
    assert scene.card.bands[0].gsd == 30 and scene.card.groups == (("1", "2", "4"),)
    np.testing.assert_array_equal(scene.read(0, 0, 8, 8)[0], pixels[[0, 1, 3]])


def test_names_no_data_and_factors_of_the_header(tmp_path):
    pixels = noise(3, 8, 8)
    pixels[0, 0, 0] = 9
    fields = {"band_names": "{Red, Green, Blue}", "data_ignore_value": 9, "reflectance_scale_factor": 10000}
    path = envi(tmp_path, pixels, **fields, wavelength="{660, 560, 480}", wavelength_units="Nanometers")
    scene = Scene.open(path, "gaofen2_pms", ("blue", "red"), reflectance=True)
    values, valid = scene.read(0, 0, 8, 8)
    np.testing.assert_allclose(values[0], pixels[2] / 1e4, rtol=1e-6)
    assert valid.sum() == 127 and not valid[1, 0, 0]
    assert read_header(path).scales == (1e-4,) * 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"samples": None}, "a whole number for 'samples', got ''"),
        ({"lines": -4}, "a whole number for 'lines', got '-4'"),
        ({"bands": "1e9"}, "a whole number for 'bands'"),
        ({"bands": 10**17}, r"cube\.img: expected \d+ bytes by cube\.hdr, got 128"),
        ({"lines": 9}, r"cube\.img: expected 144 bytes by cube\.hdr, got 128"),
        ({"header_offset": 1}, r"expected 129 bytes"),
        ({"data_type": 6}, "expected data type 1, 2, .*, got '6'"),
        ({"file_compression": 1}, "file compression; save it uncompressed"),
    ],
)
def test_headers_that_do_not_fit_their_numbers(tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        read_header(envi(tmp_path, noise(1, 8, 8), **fields))


def test_numbers_are_found_by_name_alone(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"password" * 16)
    header = envi(tmp_path / "a", noise(1, 8, 8), data_file=str(secret), file_name=str(secret))
    (tmp_path / "a/cube.img").unlink()
    with pytest.raises(UserError, match=r"expected one data file of that name beside it .*, got none"):
        read_header(header)
    os.symlink(secret, tmp_path / "a/cube.img")
    with pytest.raises(UserError, match=r"\(links do not count\), got none"):
        read_header(header)
    (tmp_path / "a/cube.dat").write_bytes(noise(1, 8, 8).tobytes())
    (tmp_path / "a/cube.bsq").write_bytes(noise(1, 8, 8).tobytes())
    with pytest.raises(UserError, match=r"got cube\.bsq and cube\.dat"):
        read_header(header)


def test_the_header_read_is_the_header_checked(tmp_path):
    pixels = noise(1, 8, 8)
    first = envi(tmp_path, pixels, samples=64, lines=1)
    second = envi(tmp_path, pixels, name="cube.img", suffix="")
    assert read_header(second).shape == (8, 8)
    assert read_header(first).shape == (1, 64)


@pytest.mark.parametrize("ending", [".msk", ".ovr", ".aux.xml", ".aux"])
def test_what_lies_beside_an_image_is_not_looked_at(tmp_path, ending):
    pixels = noise(1, 8, 8)
    header = envi(tmp_path, pixels)
    canary = write(tmp_path / "canary.tif", np.zeros((1, 8, 8), np.uint8))
    os.utime(canary, (1, time.time()))
    (tmp_path / f"cube.img{ending}").write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="8"><Metadata><MDI key="INTERNAL_MASK_FLAGS_1">2</MDI></Metadata>'
        f'<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename>{canary}</SourceFilename>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    values, valid = read_window(read_header(header), [1], 0, 0, 8, 8)
    np.testing.assert_array_equal(values, pixels)
    assert valid.all() and canary.stat().st_atime == 1


def test_rewritten_numbers_are_read_anew(tmp_path):
    path = envi(tmp_path, noise(1, 8, 8))
    before = read_header(path)
    read_window(before, [1], 0, 0, 8, 8)
    fresh = noise(1, 8, 8, seed=1)
    (tmp_path / "cube.img").unlink()  # a new file, so that the open handle still shows the old one
    os.utime(envi(tmp_path, fresh), ns=(before.stamp[0], before.stamp[0]))
    np.testing.assert_array_equal(read_window(read_header(path), [1], 0, 0, 8, 8)[0], fresh)
    assert os.environ["GDAL_DISABLE_READDIR_ON_OPEN"] == "EMPTY_DIR"
