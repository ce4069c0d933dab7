# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import rasterio

from spectralgpt.data.bands import SENTINEL2
from spectralgpt.data.scene import Scene
from spectralgpt.errors import UserError
from tests.data.rasters import at, band_folder, noise, write

ORDER = ("B01", "B02", "B03", "B04")


def whole(scene):
    return scene.read(0, 0, *scene.shape)


def mixed_folder(tmp_path, **coarse):
    """10, 20 and 60 m bands; the coarse grids start west of the fine one, and end before it."""
    return band_folder(
        tmp_path / "scene",
        {"B02": (10, noise(125, 133)), "B05": (20, noise(62, 66, seed=1)), "B01": (60, noise(20, 22, seed=2))},
        **coarse,
    )


# Which band is which


def test_bands_come_by_description_in_the_order_asked_for(tmp_path):
    pixels = noise(4, 20, 30)
    path = write(tmp_path / "a.tif", pixels, ["B8A", "cloud mask", "B2", "B4, central wavelength 665 nm"])
    scene = Scene.open(path, SENTINEL2, ("red", "B02", "B8A"))
    assert (scene.name, scene.band_names, scene.shape, scene.dtype) == (
        "a.tif",
        ("B04", "B02", "B8A"),
        (20, 30),
        np.uint16,
    )
    values, valid = whole(scene)
    assert values.dtype == np.float32 and valid.all()
    np.testing.assert_array_equal(values, pixels[[3, 2, 0]])


def test_a_band_may_be_asked_for_twice(tmp_path):
    pixels = noise(2, 20, 30)
    scene = Scene.open(write(tmp_path / "a.tif", pixels, ["B02", "B03"]), SENTINEL2, ("B02", "B03", "B02"))
    np.testing.assert_array_equal(whole(scene)[0], pixels[[0, 1, 0]])


def test_positions_are_never_guessed(tmp_path):
    """EuroSAT has all 13 bands and no descriptions, but not in the card's order."""
    path = write(tmp_path / "a.tif", noise(13, 8, 8))
    with pytest.raises(
        UserError,
        match=r"13 band descriptions, found none; name the bands in band_order, .* B11 B12, or - for one to pass over$",
    ):
        Scene.open(path, SENTINEL2)


def test_wavelengths_without_names_point_to_the_sensors_that_go_by_them(tmp_path):
    path = write(tmp_path / "a.tif", noise(2, 8, 8))
    with rasterio.open(path, "r+") as file:
        file.update_tags(1, wavelength="665", wavelength_units="nm")
    with pytest.raises(UserError, match="found none; choose a sensor whose bands go by wavelength"):
        Scene.open(path, SENTINEL2)


def test_band_order_names_the_bands_of_a_file(tmp_path):
    pixels = noise(4, 8, 8)
    path = write(tmp_path / "a.tif", pixels)
    scene = Scene.open(path, SENTINEL2, ("B8A", "B02"), band_order=("B2", "-", "B03", "B08A"))
    np.testing.assert_array_equal(whole(scene)[0], pixels[[3, 0]])
    with pytest.raises(UserError, match=r"band_order names 3 bands, the file has 4"):
        Scene.open(path, SENTINEL2, band_order=ORDER[:3])
    with pytest.raises(UserError, match="'B99': expected a band of sentinel2"):
        Scene.open(path, SENTINEL2, band_order=("B99", "B02", "B03", "B04"))
    with pytest.raises(UserError, match="B02 is there twice, as 1 and 4"):
        Scene.open(path, SENTINEL2, band_order=("B02", "B03", "B04", "B02"))


def test_missing_bands_are_named_beside_those_there(tmp_path):
    path = write(tmp_path / "a.tif", noise(2, 8, 8), ["B02", "B03"])
    with pytest.raises(
        UserError,
        match=r"a\.tif: expected band B11 B12, there is B02 B03; ask for these only, or for the nearest in place of a "
        r"missing one where the command has --missing$",
    ):
        Scene.open(path, SENTINEL2, ("B02", "B11", "B12"))
    folder = band_folder(tmp_path / "folder", {"B02": (10, noise(8, 8)), "B03": (10, noise(8, 8))})
    with pytest.raises(UserError, match="expected band B04, there is B02 B03"):
        Scene.open(folder, SENTINEL2, ("B02", "B04"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="expected band B04, found none"):
        Scene.open(tmp_path / "empty", SENTINEL2, ("B04",))
    with pytest.raises(UserError, match="no such file or folder"):
        Scene.open(tmp_path / "missing", SENTINEL2)


def test_of_several_resolutions_the_finest_is_taken(tmp_path):
    fine = noise(1, 40, 40)
    write(tmp_path / "s/R10m/T_B02_10m.tif", fine)
    write(tmp_path / "s/R20m/T_B02_20m.tif", noise(1, 20, 20), transform=at(20))
    write(tmp_path / "s/R20m/T_B8A_20m.tif", noise(1, 20, 20), transform=at(20))
    scene = Scene.open(tmp_path / "s", SENTINEL2, ("B02", "B8A"))
    np.testing.assert_array_equal(whole(scene)[0][0], fine[0])
    write(tmp_path / "s/T_20200101_B02.tif", fine)
    with pytest.raises(UserError, match=r"B02 is there twice, as .*give each scene a folder of its own"):
        Scene.open(tmp_path / "s", SENTINEL2, ("B02", "B8A"))


def test_files_named_after_a_band_hold_that_band_alone(tmp_path):
    folder = band_folder(tmp_path, {"B02": (10, noise(8, 8))})
    write(folder / "stack_B12.tif", noise(3, 8, 8))
    with pytest.raises(UserError, match=r"stack_B12\.tif: expected one band, as the file name says B12, got 3"):
        Scene.open(folder, SENTINEL2, ("B02", "B12"))


# The common grid


def test_coarse_bands_follow_their_geotransform_not_their_shape(tmp_path):
    """Brightness that is linear on the ground must stay linear, although the 20 m grid starts 10 m further west."""
    ground = lambda x, y: x - 500_000 + 2 * (5_000_000 - y)  # noqa: E731
    y, x = np.mgrid[:50, :60]
    fine = ground(500_005 + 10 * x, 4_999_995 - 10 * y)
    y, x = np.mgrid[:25, :31]
    coarse = ground(500_000 + 20 * x, 4_999_990 - 20 * y)
    write(tmp_path / "B02.tif", fine[None].astype(np.uint16) + 100)
    write(tmp_path / "B05.tif", coarse[None].astype(np.uint16) + 100, transform=at(20, left=499_990))
    scene = Scene.open(tmp_path, SENTINEL2, ("B05", "B02"))
    values, valid = whole(scene)
    assert scene.shape == (50, 60) and valid.all()
    np.testing.assert_array_equal(values[0, 1:-1, :-1], values[1, 1:-1, :-1])


def test_resampled_integers_are_rounded(tmp_path):
    folder = band_folder(tmp_path, {"B02": (10, noise(8, 8)), "B05": (40, np.array([[10, 11], [10, 11]], np.uint16))})
    values, _ = whole(Scene.open(folder, SENTINEL2, ("B02", "B05")))
    assert values[1, 0].tolist() == [10, 10, 10, 10, 11, 11, 11, 11]  # 10, 10, 10.125, 10.375, 10.625, 10.875, 11, 11


def test_the_finest_band_asked_for_sets_the_grid(tmp_path):
    folder = mixed_folder(tmp_path)
    assert Scene.open(folder, SENTINEL2, ("B01", "B05", "B02")).shape == (125, 133)
    scene = Scene.open(folder, SENTINEL2, ("B01", "B05"))
    assert scene.shape == (62, 66) and scene.transform.a == 20 and scene.crs.to_epsg() == 32632


def test_a_window_has_the_bits_of_the_whole_from_disk_and_memory(tmp_path):
    scene = Scene.open(mixed_folder(tmp_path), SENTINEL2, ("B01", "B05", "B02"))
    loaded = Scene.open(scene.path, SENTINEL2, scene.band_names)
    loaded.load()
    pixels, valid = whole(scene)
    assert not valid[0].all() and valid[2].all()  # the 60 m band ends at 120 of 125 rows, 132 of 133 columns
    assert pixels.min() >= 0 and not pixels[~valid].any() and (pixels == np.rint(pixels)).all()
    rng = np.random.default_rng(0)
    for _ in range(20):
        row, column = int(rng.integers(0, 100)), int(rng.integers(0, 100))
        height, width = int(rng.integers(1, 126 - row)), int(rng.integers(1, 134 - column))
        for source in (scene, loaded):
            part, part_valid = source.read(row, column, height, width)
            np.testing.assert_array_equal(part, pixels[:, row : row + height, column : column + width])
            np.testing.assert_array_equal(part_valid, valid[:, row : row + height, column : column + width])


def test_without_geotransform_the_shapes_set_the_scale(tmp_path):
    for name, size in (("B02", 40), ("B05", 20)):
        values = (np.arange(size)[:, None] + np.zeros(size) + 0.5) * (4000 / size) + 50
        write(tmp_path / f"{name}.tif", values[None].astype(np.uint16), crs=None, transform=rasterio.Affine.identity())
    scene = Scene.open(tmp_path, SENTINEL2, ("B02", "B05"))
    values, valid = whole(scene)
    assert scene.shape == (40, 40) and scene.transform is None and valid.all()
    np.testing.assert_array_equal(values[1, 1:-1], values[0, 1:-1])


def test_files_that_do_not_belong_together_are_named(tmp_path):
    fine = {"B02": (10, noise(20, 20))}
    crs = band_folder(band_folder(tmp_path / "crs", fine), {"B05": (20, noise(10, 10))}, crs="EPSG:32633")
    with pytest.raises(
        UserError, match=r"scene_B02\.tif, scene_B05\.tif: expected one coordinate system.*32632.*32633"
    ):
        Scene.open(crs, SENTINEL2, ("B02", "B05"))
    turned = rasterio.Affine(20, 3, 500_000, 3, -20, 5_000_000)
    rotated = band_folder(band_folder(tmp_path / "turned", fine), {"B05": (20, noise(10, 10))}, transform=turned)
    with pytest.raises(UserError, match=r"scene_B05\.tif: expected a grid parallel to that of scene_B02\.tif"):
        Scene.open(rotated, SENTINEL2, ("B02", "B05"))
    bare = band_folder(tmp_path / "bare", fine)
    write(bare / "scene_B05.tif", noise(1, 10, 10), transform=rasterio.Affine.identity())
    with pytest.raises(UserError, match="expected a geotransform in all files or in none"):
        Scene.open(bare, SENTINEL2, ("B02", "B05"))


# No data


def only_valid(scene):
    values, valid = whole(scene)
    assert not values[~valid].any() and np.isfinite(values).all()
    return valid


def test_digital_number_0_is_no_data_unless_the_file_says_otherwise(tmp_path):
    pixels = noise(2, 16, 16)
    pixels[0, :4], pixels[1, 5, 5] = 0, 77
    expected = np.ones(pixels.shape, bool)
    expected[0, :4] = False
    scene = Scene.open(write(tmp_path / "a.tif", pixels, ["B02", "B03"]), SENTINEL2, ("B02", "B03"))
    np.testing.assert_array_equal(only_valid(scene), expected)
    scene = Scene.open(write(tmp_path / "b.tif", pixels, ["B02", "B03"], nodata=77), SENTINEL2, ("B02", "B03"))
    np.testing.assert_array_equal(only_valid(scene), pixels != 77)


def test_masks_and_values_that_are_no_numbers_are_invalid(tmp_path):
    pixels = noise(2, 16, 16).astype(np.float64)
    pixels[0, 0, :4] = np.nan, np.inf, -np.inf, 1e300
    mask = np.full((16, 16), 255, np.uint8)
    mask[10:] = 0
    expected = np.ones(pixels.shape, bool)
    expected[0, 0, :4], expected[:, 10:] = False, False
    scene = Scene.open(write(tmp_path / "a.tif", pixels, ["B02", "B03"], mask=mask), SENTINEL2, ("B02", "B03"))
    assert scene.dtype == np.float32
    np.testing.assert_array_equal(only_valid(scene), expected)


def test_no_data_of_a_coarse_band_stays_within_its_pixels(tmp_path):
    coarse = noise(10, 10, low=1000, high=1100)
    coarse[4:6, 4:6] = 0
    folder = band_folder(tmp_path / "s", {"B02": (10, noise(20, 20)), "B05": (20, coarse)})
    values, valid = whole(Scene.open(folder, SENTINEL2, ("B02", "B05")))
    np.testing.assert_array_equal(valid[1], np.kron(coarse > 0, np.ones((2, 2), bool)))
    assert valid[0].all() and values[1][valid[1]].min() >= 1000


def test_the_cards_value_counts_for_the_bands_that_declare_none(tmp_path):
    """One file says 77, the other nothing: 0 is no data only in the second."""
    for name, nodata in (("B02", 77), ("B03", None)):
        write(tmp_path / f"{name}.tif", np.array([[[0, 77, 5]]], np.uint16), nodata=nodata)
    valid = whole(Scene.open(tmp_path, SENTINEL2, ("B02", "B03")))[1]
    assert valid[:, 0].tolist() == [[True, False, True], [False, True, True]]


# What values mean


def declared(path, scales, offsets):
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = scales, offsets
    return path


def test_declared_factors_are_told_and_applied_only_on_request(tmp_path):
    pixels = noise(2, 8, 8, low=1001)
    pixels[0, 0, 0] = 0
    path = declared(write(tmp_path / "a.tif", pixels, ["B02", "B03"]), (1e-4, 2e-4), (-0.1, 0.0))
    raw = Scene.open(path, SENTINEL2, ("B03", "B02"))
    np.testing.assert_allclose(raw.offsets, (0, 1000))
    assert raw.scales == (2e-4, 1e-4) and raw.metadata == {"offset": "known", "values": "as stored"}
    np.testing.assert_array_equal(whole(raw)[0], pixels[[1, 0]])
    values, valid = whole(Scene.open(path, SENTINEL2, ("B03", "B02"), reflectance=True))
    expected = np.stack([pixels[1] * 2e-4, pixels[0] * 1e-4 - 0.1])
    expected[1, 0, 0] = 0
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert not valid[1, 0, 0] and valid.sum() == 127


def test_reflectance_of_coarse_bands_and_of_windows(tmp_path):
    fine, coarse = noise(20, 20), noise(10, 10, seed=1)
    folder = band_folder(tmp_path, {"B02": (10, fine), "B05": (20, coarse)})
    scene = Scene.open(folder, SENTINEL2, ("B05", "B02"), reflectance=True, offset=1000)
    values, _ = whole(scene)
    raw, _ = whole(Scene.open(folder, SENTINEL2, ("B05", "B02")))
    np.testing.assert_allclose(values[1], (fine - 1000.0) / 1e4, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values[0], (raw[0] - 1000) / 1e4, atol=0.51e-4)  # stored numbers are rounded
    np.testing.assert_array_equal(scene.read(3, 4, 7, 8)[0], values[:, 3:10, 4:12])
    scene.load()
    np.testing.assert_array_equal(whole(scene)[0], values)


def test_floats_without_tags_are_not_taken_for_digital_numbers(tmp_path):
    path = write(tmp_path / "a.tif", np.full((1, 8, 8), 0.3, np.float32), ["B02"])
    with pytest.raises(UserError, match="a scale to reflectance for band B02, got none"):
        Scene.open(path, SENTINEL2, ("B02",), reflectance=True)
    with pytest.raises(UserError, match="an offset for band B02"):
        Scene.open(write(tmp_path / "b.tif", noise(1, 8, 8), ["B02"]), SENTINEL2, ("B02",), reflectance=True)
    vouched = Scene.open(path, SENTINEL2, ("B02",), reflectance=True, offset=0)
    assert whole(vouched)[0][0, 0, 0] == pytest.approx(0.3e-4)


def test_missing_bands_follow_the_policy_and_leave_a_record(tmp_path):
    pixels = noise(2, 8, 8)
    path = write(tmp_path / "a.tif", pixels, ["B02", "B11"])
    nearest = Scene.open(path, SENTINEL2, ("B12", "B02", "B03"), missing="nearest")
    np.testing.assert_array_equal(whole(nearest)[0], pixels[[1, 0, 0]])
    assert nearest.metadata["stand_ins"] == "B12=B11 B03=B02" and nearest.band_names == ("B12", "B02", "B03")
    dropped = Scene.open(path, SENTINEL2, ("B12", "B02", "B03"), missing="drop")
    assert dropped.metadata["dropped"] == "B12 B03" and dropped.band_names == dropped.card.names == ("B02",)
    for missing in ("nearest", "drop"):
        with pytest.raises(UserError, match="expected band B04"):
            Scene.open(band_folder(tmp_path / "none", {"TCI": (10, noise(8, 8))}), SENTINEL2, ("B04",), missing=missing)


# Imaging spectrometers


def spectrometer(path, centres, pixels, bad=(), unit="Nanometers", nodata=-32768):
    write(path, pixels, [f"band {i + 1} ({centre} {unit})" for i, centre in enumerate(centres)], nodata=nodata)
    with rasterio.open(path, "r+") as file:
        for number, centre in enumerate(centres, start=1):
            tags = {"wavelength": centre, "fwhm": 8, "wavelength_units": unit, "bbl": int(number not in bad)}
            file.update_tags(number, **tags)
    return path


def test_a_spectrometer_file_is_its_own_card(tmp_path):
    centres, pixels = [420.0, 660.0, 655.0, 1350.0, 1650.0], noise(5, 8, 8, dtype=np.int16)
    path = spectrometer(tmp_path / "a.tif", centres, pixels, bad=(4,))
    for card in (None, "hyperspectral", "enmap"):
        scene = Scene.open(path, card)
        assert scene.band_names == ("1", "2", "3", "5") and scene.card.name == (card or "hyperspectral")
        assert scene.card.wavelengths == (0.42, 0.66, 0.655, 1.65)
        assert scene.card.groups == (("1", "2", "3"), ("5", "5", "5"))
        np.testing.assert_array_equal(whole(scene)[0], pixels[[0, 1, 2, 4]])
    red = scene.card.select_wavelengths((1.65, 0.661), 0.005)
    np.testing.assert_array_equal(whole(Scene.open(path, scene.card, red.names))[0], pixels[[4, 1]])


def test_another_file_of_a_spectrometer_is_matched_by_wavelength(tmp_path):
    pixels = noise(4, 8, 8, dtype=np.int16)
    card = Scene.open(spectrometer(tmp_path / "a.tif", [420, 650, 655, 1650], pixels)).card
    drifted = Scene.open(spectrometer(tmp_path / "b.tif", [420.8, 653.1, 652.9, 1649], pixels), card)
    np.testing.assert_array_equal(whole(drifted)[0], pixels)  # by number where that fits: not 3 for 2
    moved = Scene.open(spectrometer(tmp_path / "c.tif", [1650, 655, 650, 420], pixels), card)
    assert whole(moved)[0][0, 0, 0] == pixels[3, 0, 0] and whole(moved)[0][3, 0, 0] == pixels[0, 0, 0]
    short = spectrometer(tmp_path / "d.tif", [420, 652, 700], pixels[:3])
    with pytest.raises(UserError, match=r"d\.tif: expected a band each for 2 and 3, both are number 2"):
        Scene.open(short, card)
    with pytest.raises(UserError, match=r"expected band 4, there is 1 2"):
        Scene.open(spectrometer(tmp_path / "e.tif", [420, 650, 655, 1600], pixels), card)


def test_spectra_that_are_not_told_are_not_made_up(tmp_path):
    path = write(tmp_path / "a.tif", noise(3, 8, 8))
    with pytest.raises(UserError, match=r"the wavelength of each band in the tags, got 0 of 3; .* or name the sensor"):
        Scene.open(path)
    with pytest.raises(UserError, match="expected a product folder known by its metadata, got none; name the sensor"):
        Scene.open(tmp_path)
    with pytest.raises(UserError, match="'enmapp': expected sentinel2"):
        Scene.open(path, "enmapp")


# The split


@pytest.mark.parametrize("column", [60, 61, 66, 100, 131])
def test_columns_apart_share_no_file_pixel(tmp_path, column):
    """Changing every file pixel that the east depends on must leave the columns apart from it alone."""
    folder = mixed_folder(tmp_path)
    scene = Scene.open(folder, SENTINEL2, ("B02", "B05", "B01"))
    before, _ = whole(scene)
    apart = scene.columns_apart(column)
    assert column - 13 < apart <= column
    for name, gsd in (("B02", 10), ("B05", 20), ("B01", 60)):
        path = folder / f"scene_{name}.tif"
        with rasterio.open(path) as file:
            pixels = file.read()
        centre = gsd * (np.arange(pixels.shape[2]) + 0.5)
        pixels[:, :, centre > 10 * column - (gsd if gsd > 10 else 0)] += 5000
        write(path, pixels, transform=at(gsd))
    after, _ = whole(Scene.open(folder, SENTINEL2, scene.band_names))
    np.testing.assert_array_equal(after[:, :, :apart], before[:, :, :apart])
    assert scene.columns_apart(133) == 133
    assert (after[:, :119, column] != before[:, :119, column]).all()


def test_windows_outside_are_refused(tmp_path):
    scene = Scene.open(write(tmp_path / "a.tif", noise(1, 16, 16), ["B02"]), SENTINEL2, ("B02",))
    for window in ((-1, 0, 4, 4), (0, 13, 4, 4)):
        with pytest.raises(ValueError, match="expected a window in"):
            scene.read(*window)
