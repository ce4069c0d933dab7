# SPDX-License-Identifier: Apache-2.0
"""STAC items as three catalogues write them, with their assets beside them."""

import json

import numpy as np
import pytest

from spectralgpt.data.bands import SENTINEL2, SENTINEL2_12
from spectralgpt.data.scene import Scene
from spectralgpt.data.sensors import HLS_L30
from spectralgpt.errors import UserError
from tests.data.rasters import at, noise, write

# The asset keys and common names of one large catalogue; three red-edge bands share a common name there.
KEYS = dict(
    zip(
        SENTINEL2_12,
        "coastal blue green red rededge1 rededge2 rededge3 nir nir08 nir09 swir16 swir22".split(),
        strict=True,
    )
)


def item(folder, assets, *, collection="sentinel-2-l2a", platform="sentinel-2b", version="1.0.0", **properties):
    """An item of these assets."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "item.json"
    content = {
        "type": "Feature",
        "stac_version": version,
        "id": "S2B_32TQM_20240929_0_L2A",
        "collection": collection,
        "properties": {"platform": platform, "constellation": "sentinel-2", **properties},
        "assets": assets,
    }
    path.write_text(json.dumps(content))
    return path


def band_assets(folder, names=SENTINEL2_12, scale=1e-4, offset=-0.1):
    """Assets and files of 10, 20 and 60 m; band number n holds 1000 + 100 n everywhere."""
    assets = {}
    for name in names:
        band = next(band for band in SENTINEL2.bands if band.name == name)
        gsd = int(band.gsd)
        pixels = np.full((1, 120 // gsd, 120 // gsd), 1000 + 100 * SENTINEL2_12.index(name), np.uint16)
        write(folder / f"bands/{KEYS[name]}.tif", pixels, transform=at(gsd))
        common = "rededge" if "rededge" in KEYS[name] else KEYS[name]
        assets[KEYS[name]] = {
            "href": f"./bands/{KEYS[name]}.tif",
            "roles": ["data", "reflectance"],
            "eo:bands": [{"name": KEYS[name], "common_name": common, "center_wavelength": round(band.wavelength, 3)}],
            "raster:bands": [{"nodata": 0, "data_type": "uint16", "scale": scale, "offset": offset}],
        }
    write(folder / "visual.tif", noise(3, 12, 12, dtype=np.uint8))
    picture = [{"name": "red"}, {"name": "green"}, {"name": "blue"}]
    assets["visual"] = {"href": "./visual.tif", "roles": ["visual"], "eo:bands": picture}
    assets["thumbnail"] = {"href": "https://example.com/thumbnail.jpg", "roles": ["thumbnail"]}
    return assets


def first_pixels(scene):
    values, valid = scene.read(0, 0, *scene.shape)
    assert valid.all()
    return values[:, 0, 0]


def test_an_item_is_a_scene_with_the_meaning_of_its_values(tmp_path):
    scene = Scene.open(item(tmp_path, band_assets(tmp_path)))
    assert scene.card.name == "sentinel2_l2a" and scene.band_names == SENTINEL2_12 and scene.shape == (12, 12)
    np.testing.assert_array_equal(first_pixels(scene), 1000 + 100 * np.arange(12))
    np.testing.assert_allclose(scene.offsets, 1000)
    assert set(scene.scales) == {1e-4} and scene.metadata["product"] == "S2B_32TQM_20240929_0_L2A"
    scene = Scene.open(tmp_path / "item.json", None, ("B8A", "B02"), reflectance=True)
    np.testing.assert_allclose(first_pixels(scene), [0.08, 0.01], rtol=1e-4)


def test_bands_by_name_or_wavelength_in_one_file_of_version_1_1(tmp_path):
    write(tmp_path / "cube.tif", np.arange(1, 4)[:, None, None] * np.ones((3, 8, 8), np.uint16))
    bands = [
        {"name": "first", "eo:center_wavelength": 0.665},
        {"name": "OLI_B5", "eo:common_name": "nir08", "eo:center_wavelength": 0.87},
        {"name": "x", "eo:common_name": "swir16"},
    ]
    asset = {"href": "cube.tif", "bands": bands, "raster:scale": 2.75e-5, "raster:offset": -0.2}
    path = item(tmp_path, {"data": asset}, platform="landsat-8", collection="c2-l2", version="1.1.0", constellation="")
    scene = Scene.open(path, None, ("B6", "B5", "B4"))
    assert scene.card.name == "landsat_oli_tirs"
    np.testing.assert_array_equal(first_pixels(scene), [3, 2, 1])
    np.testing.assert_allclose(scene.offsets, 0.2 / 2.75e-5)


def test_the_sensor_may_be_named_and_must_fit(tmp_path):
    path = item(tmp_path, band_assets(tmp_path), collection="mine", platform="none")
    path.write_text(path.read_text().replace("S2B_32TQM_20240929_0_L2A", "x"))
    with pytest.raises(UserError, match="expected an item of a known sensor, got mine sentinel-2 none x; name the"):
        Scene.open(path)
    assert Scene.open(path, "sentinel2", SENTINEL2_12).shape == (12, 12)
    with pytest.raises(UserError, match=r"asset 'nir08': expected band B8A .* name the right sensor"):
        assets = band_assets(tmp_path)
        assets["nir08"]["eo:bands"][0]["center_wavelength"] = 0.945
        Scene.open(item(tmp_path, assets))
    with pytest.raises(UserError, match="expected band B05 of hls_l30"):
        Scene.open(item(tmp_path, {"B05": band_assets(tmp_path)["rededge1"] | {"eo:bands": [
            {"name": "B05", "center_wavelength": 0.704}]}}), HLS_L30)  # fmt: skip


def test_an_offset_that_the_item_contradicts_is_left_to_the_user(tmp_path):
    path = item(tmp_path, band_assets(tmp_path), **{"earthsearch:boa_offset_applied": True})
    with pytest.raises(UserError, match="expected an offset for band B01"):
        Scene.open(path, reflectance=True)
    np.testing.assert_allclose(first_pixels(Scene.open(path, reflectance=True, offset=0))[:2], [0.1, 0.11], rtol=1e-5)


def test_remote_assets_are_never_fetched(tmp_path):
    assets = band_assets(tmp_path)
    assets["blue"]["href"] = "https://example.com/blue.tif"
    path = item(tmp_path, assets)
    assert "B02" not in Scene.open(path, None, ("B03", "B04")).band_names
    with pytest.raises(UserError, match=r"expected band B02, there is .*or download B02, which the item only links to"):
        Scene.open(path, None, ("B02",))
    for asset in assets.values():
        asset["href"] = "s3://bucket/x.tif"
    with pytest.raises(UserError, match=r"got B01 at 's3://bucket/x\.tif'; download them and make the hrefs relative"):
        Scene.open(item(tmp_path, assets))


@pytest.mark.parametrize(
    "href", ["../outside.tif", "/etc/passwd", "/vsicurl/http:x", "a%2f..%2f..%2fb.tif", "file:x.tif"]
)
def test_hrefs_stay_below_the_item(tmp_path, href):
    write(tmp_path / "outside.tif", noise(1, 12, 12))
    assets = band_assets(tmp_path / "item")
    assets["blue"]["href"] = href
    with pytest.raises(UserError, match="expected plain paths below this folder"):
        Scene.open(item(tmp_path / "item", assets))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "got no JSON"),
        ("[]", "a STAC item"),
        ('{"type": "FeatureCollection", "features": []}', "a Feature with stac_version"),
        ('{"type": "Feature", "stac_version": "1.0.0", "assets": {"a": 1}}', "with assets"),
        ('{"type": "Feature", "stac_version": "1.0.0", "assets": {}, "properties": 3}', "with properties"),
        ('{"type": "Feature", "stac_version": "1.0.0", "assets": {}, "id": "S2A_L2A"}', "of a known sensor"),
        ("[" * 100_000, "got no JSON"),
        (" " * (5 << 20), "other JSON"),
    ],
)
def test_what_is_no_item_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "item.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        Scene.open(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_as_the_item_says(tmp_path):
    assets = band_assets(tmp_path)
    write(tmp_path / "bands/blue.tif", noise(2, 12, 12))
    with pytest.raises(UserError, match=r"blue\.tif: expected 1 bands as the STAC item says, got 2"):
        Scene.open(item(tmp_path, assets))
    assets = band_assets(tmp_path)
    assets["blue-again"] = assets["blue"]
    with pytest.raises(UserError, match="band B02 is there twice, as the assets 'blue' and 'blue-again'"):
        Scene.open(item(tmp_path, assets))
    with pytest.raises(UserError, match="found none among 1"):
        Scene.open(item(tmp_path, {"data": {"href": "visual.tif"}}))
