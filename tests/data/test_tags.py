# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import rasterio

from spectralgpt.data.raster import read_header, read_window
from spectralgpt.data.tags import Spectrum, spectra
from tests.data.rasters import noise, write


@pytest.mark.parametrize(
    ("band", "imagery", "envi", "expected"),
    [
        ({"wavelength": "665", "fwhm": "30", "wavelength_units": "nm"}, {}, {}, (0.665, 0.03, True)),
        ({"wavelength": "0.665", "wavelength_units": "Micrometers"}, {}, {}, (0.665, None, True)),
        ({"Wavelength": "665.5", "WAVELENGTH_UNITS": "Nanometers", "bbl": "0"}, {}, {}, (0.6655, None, False)),
        ({"wavelength": "665"}, {}, {}, (0.665, None, True)),  # 665 um is no light
        ({"wavelength": "2.2"}, {}, {}, (2.2, None, True)),
        ({"wavelength": "50"}, {}, {}, (None, None, True)),  # nm or um?
        ({"wavelength": "15000", "wavelength_units": "Wavenumber"}, {}, {}, (None, None, True)),
        ({}, {"CENTRAL_WAVELENGTH_UM": "0.665", "FWHM_UM": "0.03"}, {}, (0.665, 0.03, True)),
        (
            {"wavelength": "665.4", "wavelength_units": "nm"},
            {"CENTRAL_WAVELENGTH_UM": "0.665"},
            {},
            (0.6654, None, True),
        ),
        ({}, {}, {"wavelength": "{665}", "wavelength_units": "nm", "fwhm": "{30}", "bbl": "{0}"}, (0.665, 0.03, False)),
        ({}, {}, {"wavelength": "{665, 700}", "wavelength_units": "nm"}, (None, None, True)),
        ({"wavelength": "nan", "fwhm": "-3"}, {}, {}, (None, None, True)),
        ({"wavelength": "red"}, {}, {}, (None, None, True)),
        ({}, {}, {}, (None, None, True)),
    ],
)
def test_spectra_of_one_band(band, imagery, envi, expected):
    assert spectra([band], [imagery], envi) == [Spectrum(*expected)]


def test_headers_tell_what_tags_declare_and_apply_nothing(tmp_path):
    pixels = noise(3, 8, 8)
    path = write(tmp_path / "a.tif", pixels)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (1e-4, 1, 1), (-0.1, 0, 5)
        file.units = ("reflectance", None, "K")
        file.update_tags(1, wavelength="665", fwhm="30", wavelength_units="nm")
        file.update_tags(2, ns="IMAGERY", CENTRAL_WAVELENGTH_UM="0.84")
        file.update_tags(3, bbl="0")
        file.update_tags(sensor="a camera", long="x" * 5000)
    header = read_header(path)
    assert header.scales == (1e-4, None, 1) and header.offsets == (-0.1, None, 5)
    assert header.units[0] == "reflectance" and header.units[2] == "K" and not header.units[1]
    assert header.wavelengths == (0.665, 0.84, None) and header.widths == (0.03, None, None)
    assert header.is_good == (True, True, False) and header.nodatas == (None,) * 3 and not header.has_nodata
    assert header.tags["sensor"] == "a camera" and "long" not in header.tags
    np.testing.assert_array_equal(read_window(header, [1, 2, 3], 0, 0, 8, 8)[0], pixels)
