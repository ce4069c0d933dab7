# SPDX-License-Identifier: Apache-2.0
"""Product folders in the layouts of the agencies; GeoTIFF inside .jp2, since formats go by content."""

import json

import numpy as np
import pytest

from spectralgpt.data import products
from spectralgpt.data.bands import SENTINEL2, SENTINEL2_12
from spectralgpt.data.discover import find_scenes
from spectralgpt.data.scene import Scene
from spectralgpt.data.sensors import HLS_L30, HLS_S30, LANDSAT_OLI_TIRS
from spectralgpt.errors import UserError
from tests.data.rasters import at, noise, write

LEVELS = {
    "1C": ("QUANTIFICATION_VALUE", "RADIO_ADD_OFFSET", SENTINEL2.names),
    "2A": ("BOA_QUANTIFICATION_VALUE", "BOA_ADD_OFFSET", SENTINEL2_12),
}


def safe(root, level="2A", baseline="05.11", offsets=True, extra="", head="", quantification="10000"):
    """A SAFE folder; every pixel of a band is 1100 + 100 * its band_id, and each band has an offset of its own."""
    product = root / f"S2B_MSIL{level}_20240929T100719_N0511_R022_T32TQM_20240929T130000.SAFE"
    images = product / f"GRANULE/L{level}_T32TQM_A039559_20240929T101159/IMG_DATA"
    quantity, offset, names = LEVELS[level]
    for name in names:
        gsd = int(next(band.gsd for band in SENTINEL2.bands if band.name == name))
        pixels = np.full((1, 120 // gsd, 120 // gsd), 1100 + 100 * SENTINEL2.names.index(name), np.uint16)
        sizes = sorted({gsd, 60}) if level == "2A" else [gsd]
        for size in sizes:
            folder = images / f"R{size}m" if level == "2A" else images
            suffix = f"_{size}m" if level == "2A" else ""
            step = size // gsd
            write(folder / f"T32TQM_20240929T100719_{name}{suffix}.jp2", pixels[:, ::step, ::step], transform=at(size))
    write(images / "T32TQM_20240929T100719_TCI.jp2", noise(3, 12, 12, dtype=np.uint8))
    values = "".join(f'<{offset} band_id="{i}">{-1000 - i}</{offset}>' for i in range(13))
    (product / f"MTD_MSIL{level}.xml").write_text(
        f'<?xml version="1.0" encoding="UTF-8"?>{head}<n1:Level-{level}_User_Product xmlns:n1="https://psd-15"><n1:General_Info>'
        f"<Product_Info><PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE><IMAGE_FILE>../../../../etc/passwd"
        "</IMAGE_FILE></Product_Info><Product_Image_Characteristics><Special_Values><SPECIAL_VALUE_TEXT>NODATA"
        "</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX></Special_Values>"
        f'<Values><{quantity} unit="none">{quantification}</{quantity}></Values>'
        f"{f'<List>{values}</List>' if offsets else ''}{extra}</Product_Image_Characteristics></n1:General_Info>"
        f"</n1:Level-{level}_User_Product>"
    )
    return product


def pixel(scene):
    """One value per band: those of the synthetic products are the same everywhere."""
    values, valid = scene.read(0, 0, *scene.shape)
    assert valid.all() and (values == values[:, :1, :1]).all()
    return values[:, 0, 0]


@pytest.mark.parametrize("level", ["1C", "2A"])
def test_a_safe_folder_is_one_scene_with_its_own_meaning(tmp_path, level):
    product, names = safe(tmp_path, level), LEVELS[level][2]
    assert find_scenes(tmp_path) == [product]
    raw = Scene.open(product)
    numbers = np.array([SENTINEL2.names.index(name) for name in names])
    assert raw.band_names == names and raw.shape == (12, 12) and raw.dtype == np.uint16
    np.testing.assert_array_equal(pixel(raw), 1100 + 100 * numbers)
    assert raw.metadata == {
        "product": "Sentinel-2",
        "level": f"L{level}",
        "processing_baseline": "05.11",
        "offset": "known",
        "values": "as stored",
    }
    assert raw.offsets == tuple(1000 + numbers) and set(raw.scales) == {1e-4}
    scene = Scene.open(product, SENTINEL2, ("B8A", "B02"), reflectance=True)
    assert scene.dtype == np.float32 and scene.metadata["values"] == "reflectance"
    np.testing.assert_allclose(pixel(scene), [(100 + 99 * 8) / 1e4, (100 + 99 * 1) / 1e4], rtol=1e-6)


def test_the_offset_comes_from_the_metadata_or_a_flag_and_is_never_guessed(tmp_path):
    bands = ("B02", "B03")
    early = Scene.open(safe(tmp_path / "early", "1C", "03.01", offsets=False), None, bands, reflectance=True)
    np.testing.assert_allclose(pixel(early), [0.12, 0.13], rtol=1e-6)  # none existed yet
    for baseline in ("04.00", "99.99", "N0500"):
        product = safe(tmp_path / baseline, "1C", baseline, offsets=False)
        raw = Scene.open(product, None, bands)
        assert raw.offsets == (None, None) and raw.metadata["offset"] == "unknown"
        np.testing.assert_array_equal(pixel(raw), [1200, 1300])
        with pytest.raises(
            UserError, match=r"offset for band B02 in the metadata, got none; give offset=0, or offset=1000"
        ):
            Scene.open(product, None, bands, reflectance=True)
        given = Scene.open(product, None, bands, reflectance=True, offset=1000)
        assert given.metadata["offset"] == "given"
        np.testing.assert_allclose(pixel(given), [0.02, 0.03], rtol=1e-5)
    product = safe(tmp_path / "known", "1C")
    with pytest.raises(UserError, match=r"expected offset 1001 and 1002, as the product, file or card says, got 0"):
        Scene.open(product, None, bands, offset=0)
    with pytest.raises(UserError, match="such as 1000, got -1000"):
        Scene.open(product, None, bands, offset=-1000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>', "extra": "&a;"}, "without a document type"),
        ({"head": '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>', "extra": "&b;"}, "without a document type"),
        ({"extra": "<"}, r"MTD_MSIL2A\.xml: damaged XML"),
        ({"quantification": "0"}, "a positive number for BOA_QUANTIFICATION_VALUE, got '0'"),
        ({"quantification": "nan"}, "a number for BOA_QUANTIFICATION_VALUE, got 'nan'"),
        ({"extra": '<BOA_ADD_OFFSET band_id="3">x</BOA_ADD_OFFSET>'}, "a number for BOA_ADD_OFFSET, got 'x'"),
    ],
)
def test_hostile_or_damaged_xml_is_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        Scene.open(safe(tmp_path, **changes))


def test_metadata_are_capped_and_utf8(tmp_path):
    product = safe(tmp_path)
    path = product / "MTD_MSIL2A.xml"
    text = path.read_text()
    path.write_bytes(text.replace("UTF-8", "UTF-16").encode("utf-16"))
    with pytest.raises(UserError, match="expected text in UTF-8"):
        Scene.open(product)
    path.write_text(text + " " * products._MAX_METADATA)
    with pytest.raises(UserError, match="expected metadata of at most"):
        Scene.open(product)


def test_bands_a_product_lacks(tmp_path):
    product = safe(tmp_path)
    with pytest.raises(
        UserError, match=r"expected band B10, there is B01 B02 .*; ask for these only, or for the nearest"
    ):
        Scene.open(product, SENTINEL2)
    scene = Scene.open(product, SENTINEL2, ("B02", "B10", "B11"), missing="nearest")
    assert scene.metadata["stand_ins"] == "B10=B11" and pixel(scene).tolist() == [1200, 2200, 2200]
    scene = Scene.open(product, SENTINEL2, ("B02", "B10", "B11"), missing="drop")
    assert scene.metadata["dropped"] == "B10" and scene.band_names == ("B02", "B11")
    assert "dropped" not in Scene.open(product, SENTINEL2, ("B02",), missing="drop").metadata
    with pytest.raises(UserError, match="one granule, got 2"):
        (product / "GRANULE/another/IMG_DATA").mkdir(parents=True)
        Scene.open(product)


# Landsat


def mtl(level="L2SP", spacecraft="LANDSAT_9", sensor="OLI_TIRS", sun=30.0):
    """Groups of an MTL file: a level-2 one repeats the level-1 factors and file names under the same keys."""
    bands = range(1, 10)
    groups = {
        "PRODUCT_CONTENTS": {"PROCESSING_LEVEL": level, "FILE_NAME_BAND_4": "/etc/passwd"},
        "IMAGE_ATTRIBUTES": {"SPACECRAFT_ID": spacecraft, "SENSOR_ID": sensor, "SUN_ELEVATION": sun},
        "LEVEL1_RADIOMETRIC_RESCALING": {
            **{f"REFLECTANCE_MULT_BAND_{n}": 2e-05 for n in bands},
            **{f"REFLECTANCE_ADD_BAND_{n}": -0.1 for n in bands},
            "RADIANCE_MULT_BAND_10": 3.342e-04,
        },
    }
    if level.startswith("L2"):
        groups["LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"] = {
            **{f"REFLECTANCE_MULT_BAND_{n}": 2.75e-05 for n in range(1, 8)},
            **{f"REFLECTANCE_ADD_BAND_{n}": -0.2 for n in range(1, 8)},
        }
        groups["LEVEL2_SURFACE_TEMPERATURE_PARAMETERS"] = {"TEMPERATURE_MULT_BAND_ST_B10": 0.00341802}
    return groups


def landsat(root, level="L2SP", form="txt", **changes):
    folder = root / f"LC09_{level}_193028_20260822_20260823_02_T1"
    prefix = {"L2SP": "SR_", "L1TP": ""}[level]
    numbers = range(1, 8) if level == "L2SP" else range(1, 12)
    for n in numbers:
        gsd = 15 if n == 8 else 30
        pixels = np.full((1, 240 // gsd, 240 // gsd), 10000 + 100 * n, np.uint16)
        write(folder / f"{folder.name}_{prefix}B{n}.TIF", pixels, transform=at(gsd))
    for name in ("ST_B10", "QA_PIXEL", "SR_QA_AEROSOL", "ST_EMIS") if level == "L2SP" else ("QA_PIXEL", "SAA"):
        write(folder / f"{folder.name}_{name}.TIF", np.full((1, 8, 8), 40000, np.uint16), transform=at(30))
    groups = mtl(level, **changes)
    if form == "json":
        (folder / f"{folder.name}_MTL.json").write_text(json.dumps({"LANDSAT_METADATA_FILE": groups}))
    else:
        body = "".join(
            f"  GROUP = {name}\n"
            + "".join(
                f'    {key} = "{value}"\n' if isinstance(value, str) else f"    {key} = {value}\n"
                for key, value in group.items()
            )
            + f"  END_GROUP = {name}\n"
            for name, group in groups.items()
        )
        (folder / f"{folder.name}_MTL.txt").write_text(
            f"GROUP = LANDSAT_METADATA_FILE\n{body}END_GROUP = LANDSAT_METADATA_FILE\nEND\n"
        )
    return folder


@pytest.mark.parametrize("form", ["txt", "json"])
def test_landsat_level_2_takes_its_own_factors(tmp_path, form):
    folder = landsat(tmp_path, form=form)
    assert find_scenes(tmp_path) == [folder]
    raw = Scene.open(folder)
    assert raw.band_names == ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B10")
    assert pixel(raw)[[0, 6, 7]].tolist() == [10100, 10700, 40000]
    assert (raw.metadata["product"], raw.metadata["level"]) == ("Landsat 9", "L2SP")
    scene = Scene.open(folder, LANDSAT_OLI_TIRS, ("red", "nir"), reflectance=True)
    np.testing.assert_allclose(pixel(scene), [10400 * 2.75e-5 - 0.2, 10500 * 2.75e-5 - 0.2], rtol=1e-5)
    with pytest.raises(UserError, match="scale to reflectance for band B10, got none; leave it out"):
        Scene.open(folder, reflectance=True)


def test_landsat_level_1_is_corrected_for_the_sun(tmp_path):
    folder = landsat(tmp_path, "L1TP", sun=30.0)
    assert Scene.open(folder).shape == (16, 16)  # the panchromatic grid
    scene = Scene.open(folder, None, ("B4", "B9"), reflectance=True)
    np.testing.assert_allclose(pixel(scene), [(10400 * 2e-5 - 0.1) * 2, (10900 * 2e-5 - 0.1) * 2], rtol=1e-5)
    with pytest.raises(UserError, match=r"positive number for SUN_ELEVATION, got '-3\.0'"):
        Scene.open(landsat(tmp_path / "night", "L1TP", sun=-3.0))


def test_the_level_of_landsat_files_without_metadata_is_in_their_names(tmp_path):
    for level in ("L1TP", "L2SP"):
        folder = landsat(tmp_path, level)
        next(folder.glob("*_MTL.txt")).unlink()
        scene = Scene.open(folder, LANDSAT_OLI_TIRS, ("B2", "B3"))
        assert scene.metadata["level"] == level and scene.scales == (None, None)
    (red,) = (tmp_path / "LC09_L1TP_193028_20260822_20260823_02_T1").glob("*_B4.TIF")
    next(folder.glob("*_SR_B4.TIF")).unlink()
    red.rename(folder / red.name)
    assert Scene.open(folder, LANDSAT_OLI_TIRS, ("B2", "B3")).metadata["level"] == "L2SP"
    with pytest.raises(UserError, match="expected files of one level, got L1TP and L2SP, whose numbers mean different"):
        Scene.open(folder, LANDSAT_OLI_TIRS, ("B2", "B4"))


def test_landsat_files_of_another_level_than_the_metadata_say_are_refused(tmp_path):
    surface, top = landsat(tmp_path, "L2SP"), landsat(tmp_path, "L1TP")
    next(surface.glob("*_MTL.txt")).unlink()
    (metadata,) = top.glob("*_MTL.txt")
    metadata.rename(surface / metadata.name)
    with pytest.raises(
        UserError, match=r"L2SP_.*: expected files of one level, got L1TP and L2SP, .* a folder of its own"
    ):
        Scene.open(surface, LANDSAT_OLI_TIRS, ("B2", "B3"))


def test_other_landsats_and_other_sensors_are_refused(tmp_path):
    with pytest.raises(UserError, match="Landsat 8 or 9, Collection 2, level 1 or 2, got LANDSAT_7 L2SP"):
        Scene.open(landsat(tmp_path / "seven", spacecraft="LANDSAT_7"))
    with pytest.raises(UserError, match="expected a product of sentinel2, got one of landsat_oli_tirs"):
        Scene.open(landsat(tmp_path / "nine"), SENTINEL2, ("B02",))
    folder = landsat(tmp_path / "json", form="json")
    next(folder.glob("*_MTL.json")).write_text("[" * 100_000)
    with pytest.raises(UserError, match="damaged MTL file"):
        Scene.open(folder)


# HLS


def hls(root, kind):
    card = {"L30": HLS_L30, "S30": HLS_S30}[kind]
    folder = root / f"HLS.{kind}.T13SGD.2021001T173012.v2.0"
    for i, name in enumerate((*card.names, "Fmask", "SZA")):
        pixels = np.full((1, 8, 8), 1000 + 10 * i, np.int16)
        pixels[0, 0, 0] = -9999
        write(folder / f"{folder.name}.{name}.tif", pixels, transform=at(30))
    return folder


@pytest.mark.parametrize(("kind", "nir"), [("L30", "B05"), ("S30", "B8A")])
def test_hls_granules_know_their_sensor(tmp_path, kind, nir):
    folder = hls(tmp_path, kind)
    scene = Scene.open(folder, None, ("nir", "swir1"), reflectance=True)
    assert scene.band_names[0] == nir and scene.metadata["product"] == f"HLS {kind}"
    values, valid = scene.read(0, 0, 8, 8)
    names = Scene.open(folder).band_names
    expected = [(1000 + 10 * names.index(name)) * 1e-4 for name in scene.band_names]
    np.testing.assert_allclose(values[:, 4, 4], expected, rtol=1e-5)
    assert not valid[:, 0, 0].any() and valid.sum() == 2 * 63 and not values[:, 0, 0].any()


def test_the_bands_of_one_hls_sensor_are_not_those_of_the_other(tmp_path):
    with pytest.raises(UserError, match="expected a product of hls_s30, got one of hls_l30"):
        Scene.open(hls(tmp_path, "L30"), HLS_S30, ("B05",))
    with pytest.raises(UserError, match="expected a product of sentinel2, got one of hls_l30"):
        Scene.open(tmp_path / "HLS.L30.T13SGD.2021001T173012.v2.0", SENTINEL2, ("B02",))
    with pytest.raises(UserError, match="reflectance for band B10"):
        Scene.open(tmp_path / "HLS.L30.T13SGD.2021001T173012.v2.0", reflectance=True)


# EnMAP


def enmap(root, level="L2A", bands=5, listed=5):
    stem = f"ENMAP01-____{level}-DT0000002446_20220724T104526Z_001_V010111_20221116T122112Z-"
    nodes = "".join(
        f'<bandID number="{i + 1}"><wavelengthCenterOfBand>{420 + 6 * i}</wavelengthCenterOfBand>'
        f"<FWHMOfBand>6.5</FWHMOfBand></bandID>"
        for i in range(listed)
    )
    pixels = np.arange(1, bands + 1, dtype=np.int16)[:, None, None] * np.full((1, 8, 8), 100, np.int16)
    pixels[:, 2] = -32768
    write(root / f"{stem}SPECTRAL_IMAGE.TIF", pixels, transform=at(30))
    (root / f"{stem}METADATA.XML").write_text(
        f"<level_X><specific><bandCharacterisation>{nodes}</bandCharacterisation></specific></level_X>"
    )
    return root


def test_enmap_wavelengths_come_from_its_metadata(tmp_path):
    scene = Scene.open(enmap(tmp_path), reflectance=True)
    assert scene.card.name == "enmap" and scene.band_names == ("1", "2", "3", "4", "5")
    assert scene.card.wavelengths == (0.42, 0.426, 0.432, 0.438, 0.444) and scene.card.bands[0].width == 0.0065
    values, valid = scene.read(0, 0, 8, 8)
    np.testing.assert_allclose(values[:, 0, 0], [0.01, 0.02, 0.03, 0.04, 0.05], rtol=1e-5)
    assert not valid[:, 2].any() and valid.sum() == 5 * 56


def test_enmap_that_does_not_fit_together(tmp_path):
    for name in ("radiance", "count", "image"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="scale to reflectance"):
        Scene.open(enmap(tmp_path / "radiance", "L1C"), reflectance=True)
    with pytest.raises(UserError, match=r"expected 5 bands as in .*SPECTRAL_IMAGE\.TIF, got 4"):
        Scene.open(enmap(tmp_path / "count", listed=4))
    next(enmap(tmp_path / "image").glob("*.TIF")).unlink()
    with pytest.raises(UserError, match=r"expected the file .*SPECTRAL_IMAGE\.TIF beside it"):
        Scene.open(tmp_path / "image")
