# SPDX-License-Identifier: Apache-2.0
import pytest

from spectralgpt.data.bands import SENTINEL2, SENTINEL2_12, sensor_card
from spectralgpt.errors import UserError


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("B1", "B01"),
        ("b01", "B01"),
        ("B8A", "B8A"),
        ("b8a", "B8A"),
        ("B08A", "B8A"),
        ("B8", "B08"),
        ("Blue", "B02"),
        ("B-12", "B12"),
    ],
)
def test_spellings_of_a_band(spelling, name):
    assert SENTINEL2.canonical(spelling) == name


@pytest.mark.parametrize("name", ["B13", "B", "", "8", "Band 8", "thermal"])
def test_an_unknown_band_lists_the_known(name):
    with pytest.raises(UserError, match=r"sentinel2.*B01 B02 .* B8A B09 B10 B11 B12"):
        SENTINEL2.canonical(name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("T33UUP_20170613T101031_B8A_20m", "B8A"),
        ("S2A_MSIL2A_20171221T112501_56_35_B01", "B01"),
        ("s2_B12", "B12"),
        ("B4, central wavelength 665 nm", "B04"),
        ("B02_B02", "B02"),
        ("red", "B04"),
        ("Vegetation red edge 1", "B05"),
        ("red edge fields", None),
        ("TCI_10m", None),
        ("B04_B08", None),
        ("band 9", None),
        ("preview", None),
        ("AOT_B99", None),
        ("", None),
    ],
)
def test_bands_in_texts_are_taken_only_beyond_doubt(text, name):
    assert SENTINEL2.find(text) == name


def test_the_card_is_in_spectral_order_and_its_groups_leave_cirrus_out():
    assert len(SENTINEL2.names) == 13
    assert list(SENTINEL2.wavelengths) == sorted(SENTINEL2.wavelengths)
    assert sum(SENTINEL2.groups, ()) == SENTINEL2_12
    assert "B10" not in SENTINEL2_12
    assert SENTINEL2.nodata == 0


def test_select_keeps_the_order_asked_for_and_fills_the_last_group():
    card = SENTINEL2.select(("nir", "B4", "B03", "B02"))
    assert card.names == ("B08", "B04", "B03", "B02")
    assert card.wavelengths[0] == 0.8328
    assert card.groups == (("B08", "B04", "B03"), ("B02", "B02", "B02"))
    assert SENTINEL2.select(("B02", "B02")).names == ("B02", "B02")


def test_sensor_cards_by_name():
    assert sensor_card("Sentinel-2") is SENTINEL2
    with pytest.raises(UserError, match="expected sentinel2"):
        sensor_card("sentinel1")


def test_all_grouped_bands_keep_the_groups_and_all_bands_are_grouped_where_all_are_asked_for():
    assert SENTINEL2.select(SENTINEL2_12).groups == SENTINEL2.groups
    assert len(SENTINEL2.select(SENTINEL2.names).groups) == 5  # B10 was asked for, so no silence about it


@pytest.mark.parametrize("names", ["B02", {"B02", "B03"}, {"B02": 1}, frozenset({"B02"})])
def test_names_without_an_order_are_refused(names):
    with pytest.raises(UserError, match="expected an ordered list of names"):
        SENTINEL2.select(names)


def test_bands_by_wavelength():
    assert SENTINEL2.nearest(0.665, 0.01) == "B04"
    assert SENTINEL2.nearest(0.86, 0.03) == "B8A"
    card = SENTINEL2.select_wavelengths((0.665, 0.56, 0.49), 0.01)
    assert card.names == ("B04", "B03", "B02")
    with pytest.raises(UserError, match=r"wavelength 0\.9 um: .*within 0\.01 um, the nearest is B8A at 0\.8647 um$"):
        SENTINEL2.nearest(0.9, 0.01)
    with pytest.raises(UserError, match="wavelengths are in micrometres"):
        SENTINEL2.nearest(665, 0.01)
    with pytest.raises(UserError, match="expected a band"):
        SENTINEL2.nearest(float("nan"), 0.01)
    with pytest.raises(UserError, match=r"0\.66 and 0\.67 um: expected two bands .* both are nearest to B04"):
        SENTINEL2.select_wavelengths((0.66, 0.56, 0.67), 0.02)


def test_stand_ins_are_the_nearest_by_wavelength():
    assert SENTINEL2.stand_ins(SENTINEL2.names, {"B02", "B8A", "B11"}) == {
        "B01": "B02",
        "B03": "B02",
        "B04": "B02",
        "B05": "B8A",
        "B06": "B8A",
        "B07": "B8A",
        "B08": "B8A",
        "B09": "B8A",
        "B10": "B11",
        "B12": "B11",
    }
