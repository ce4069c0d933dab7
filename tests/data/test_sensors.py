# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
import torch

import spectralgpt
from spectralgpt import ops
from spectralgpt.data.bands import SENTINEL2, SENTINEL2_12, Band, SensorCard, _key, sensor_card
from spectralgpt.data.sensors import (
    CARDS,
    ENMAP,
    GAOFEN2_PMS,
    GAOFEN6_WFV,
    HLS_L30,
    HLS_S30,
    HYPERSPECTRAL,
    LANDSAT_OLI,
    LANDSAT_OLI_TIRS,
    SENTINEL2_L2A,
)
from spectralgpt.errors import UserError

FILLED = [card for card in CARDS.values() if card.bands]


@pytest.mark.parametrize("card", FILLED, ids=lambda card: card.name)
def test_every_card_holds_together(card):
    assert sensor_card(card.name) is card and len(set(card.names)) == len(card.names)
    spellings = [(_key(text), band.name) for band in card.bands for text in (band.name, *band.aliases)]
    assert len({key for key, _ in spellings}) == len(set(spellings)), "one spelling, two bands"
    for band in card.bands:
        assert 0.4 < band.wavelength < 13 and 0.01 < band.width < 1.1 and 4 <= band.gsd <= 100
    for group in card.groups:
        assert len(group) == 3 and set(group) <= set(card.names)
        centres = [card.select([name]).wavelengths[0] for name in group]
        assert max(centres) < 3 or min(centres) > 3, "reflectance and temperature in one token"


@pytest.mark.parametrize(
    ("alias", "centres"),
    [("blue", (0.48, 0.495)), ("green", (0.55, 0.57)), ("red", (0.65, 0.67)), ("nir", (0.82, 0.87))],
)
def test_common_names_mean_the_same_light_everywhere(alias, centres):
    for card in FILLED:
        wavelength = card.select([alias]).wavelengths[0]
        assert centres[0] <= wavelength <= centres[1], (card.name, wavelength)


@pytest.mark.parametrize(
    ("card", "name", "wavelength"),
    [
        (LANDSAT_OLI, "nir", 0.86467),
        (LANDSAT_OLI_TIRS, "B10", 10.895),
        (HLS_L30, "B10", 10.895),  # thermal here, cirrus there
        (HLS_S30, "B10", 1.3735),
        (HLS_L30, "B05", 0.86467),  # near infrared here, red edge there
        (HLS_S30, "B05", 0.7041),
        (HLS_S30, "nir", 0.8647),
        (SENTINEL2, "nir", 0.8328),
        (GAOFEN2_PMS, "nir", 0.83),
        (GAOFEN6_WFV, "B7", 0.425),
        (GAOFEN6_WFV, "yellow", 0.61),
    ],
)
def test_one_name_two_sensors(card, name, wavelength):
    assert card.select([name]).wavelengths == (wavelength,)


def test_what_values_mean_is_left_open_where_products_differ():
    assert (SENTINEL2.scale, SENTINEL2.offset, SENTINEL2_L2A.offset) == (1e-4, None, None)
    assert (HLS_L30.scale, HLS_L30.offset, HLS_L30.nodata) == (1e-4, 0, -9999)
    assert LANDSAT_OLI.scale is None and GAOFEN2_PMS.scale is None
    assert SENTINEL2_L2A.names == SENTINEL2_12 and "B10" not in SENTINEL2_L2A.names


def test_groups_fill_up_and_follow_the_spectrum():
    assert GAOFEN2_PMS.groups == (("B1", "B2", "B3"), ("B4", "B4", "B4"))
    assert sum(map(len, HLS_L30.groups)) == 12 and len(HLS_L30.names) == 10
    assert {name for group in HLS_L30.groups for name in group} == set(HLS_L30.names)
    assert GAOFEN6_WFV.groups == (("B7", "B1", "B2"), ("B8", "B3", "B5"), ("B6", "B4", "B4"))
    assert GAOFEN6_WFV.select(GAOFEN6_WFV.names).groups == GAOFEN6_WFV.groups
    assert HLS_L30.select(("red", "green", "blue")).groups == (("B04", "B03", "B02"),)


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_groups_for_other_token_sizes(size):
    for card in FILLED:
        groups = card.group_names(size)
        assert {len(group) for group in groups} == {size}
        flat = [name for group in groups for name in group]
        assert set(flat) == {name for group in card.groups for name in group}
        assert len(flat) - len(set(flat)) < size
    assert SENTINEL2.select(("B02", "B02", "B03", "B03")).group_names(2) == (("B02", "B02"), ("B03", "B03"))


def test_sensors_are_found_by_any_spelling_and_the_unknown_lists_them():
    assert sensor_card("Landsat OLI-TIRS") is LANDSAT_OLI_TIRS and sensor_card("sentinel2_l1c") is SENTINEL2
    assert sensor_card("EnMAP") is ENMAP and not ENMAP.bands and HYPERSPECTRAL.by_wavelength
    with pytest.raises(UserError, match=r"'landsat7': expected sentinel2, .*gaofen6_wfv"):
        sensor_card("landsat7")


def spectrometer(count=224):
    bands = tuple(Band(str(i + 1), 0.4 + 0.009 * i, 0.008, 30) for i in range(count))
    return dataclasses.replace(ENMAP, bands=bands).select([band.name for band in bands])


@pytest.mark.parametrize(
    ("card", "bands", "channels"),
    [(GAOFEN2_PMS, 4, 6), (HLS_L30, 10, 12), (spectrometer(), 224, 225)],
    ids=["gaofen2", "hls", "enmap"],
)
def test_sensors_whose_bands_do_not_divide_train(card: SensorCard, bands, channels):
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2, "decoder_embed_dim": 32, "decoder_depth": 1}
    model = spectralgpt.create_autoencoder("tiny", bands=card, image_size=16, decoder_num_heads=2, **sizes)
    assert len(card.names) == bands and sum(map(len, model.config.groups)) == channels
    names = model.config.band_names
    assert tuple(tuple(names[i] for i in group) for group in model.config.groups) == card.group_names(3)
    image = torch.linspace(0, 1, bands)[None, :, None, None].expand(2, bands, 16, 16).contiguous()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(12):
        mask = ops.random_cube_mask(torch.arange(2), channels // 3 * 4, 0.5, seed=0, step=step)
        loss = model(image, mask).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
