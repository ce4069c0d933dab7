# SPDX-License-Identifier: Apache-2.0
"""A STAC item, the JSON file beside a download that says which asset holds which band, as one scene.

Items are read as plain JSON (1.0 with `eo:bands` and `raster:bands`, 1.1 with `bands`), without a client: assets are
opened where they lie below the item's folder, and nothing is ever fetched. A band is found by its name, the asset's
key, its common name or its wavelength, in this order, and refused where name and wavelength contradict each other.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from spectralgpt.data.bands import SENTINEL2, SensorCard
from spectralgpt.data.paths import inside
from spectralgpt.data.places import Place, Source, pixel_area, place_of
from spectralgpt.data.raster import Header, read_header
from spectralgpt.data.sensors import HLS_L30, HLS_S30, LANDSAT_OLI_TIRS, SENTINEL2_L2A
from spectralgpt.errors import UserError

_MAX_ITEM = 4 << 20
_NEAR = 0.01  # micrometres: items round centre wavelengths to two decimals
_PICTURES = {"visual", "overview", "thumbnail", "preview", "rendered_preview", "tilejson", "metadata", "cloud"}
_SENSORS: tuple[tuple[str, SensorCard], ...] = (
    (r"hls\w*\W*s30", HLS_S30),
    (r"hls\w*\W*l30", HLS_L30),
    (r"sentinel-?2.*l1c", SENTINEL2),
    (r"sentinel-?2.*l2a", SENTINEL2_L2A),
    (r"landsat-?[89]", LANDSAT_OLI_TIRS),
)


class _Asset(NamedTuple):
    """Band `number` of the `of` bands of an asset; scale and offset in the item's sense, value * scale + offset."""

    key: str
    href: str
    number: int
    of: int
    names: tuple[str, ...]
    wavelength: float | None
    scale: float | None
    offset: float | None
    nodata: float | None


def is_item(path: Path) -> bool:
    """Whether a file is taken for a STAC item: by its name, since JSON has no signature."""
    return path.suffix.lower() in (".json", ".geojson") and path.is_file()


def stac_source(path: Path, card: SensorCard | None) -> Source:
    """The bands whose assets lie below the item's folder, and what the item says of their values.

    Args:
        path: the item.
        card: the sensor; None takes it from the item's collection, platform and id.

    Raises:
        UserError: no item, a sensor that cannot be told, an asset that is remote or leads elsewhere, or a band twice.
    """
    item = _item(path)
    properties = item.get("properties") or {}
    if card is None or not card.bands:
        card = _card(path, item, properties)
    # Such items say "offset -0.1" of pixels it was already taken from: neither is believed, the user can tell.
    is_doubtful = properties.get("earthsearch:boa_offset_applied") is True
    found: dict[str, list[tuple[Place, _Asset]]] = {}
    remote: dict[str, str] = {}
    for asset in _assets(item["assets"]):
        name = _band(path, asset, card)
        if name is None:
            continue
        if "://" in asset.href:
            remote.setdefault(name, asset.href)
        elif (file := inside(path.parent, asset.href)).is_file():
            place = _place(read_header(file), asset, card)
            doubtful = is_doubtful and bool(place.offset)
            found.setdefault(name, []).append((replace(place, offset=None) if doubtful else place, asset))
    if not found:
        raise UserError(f"{path}: {_why_empty(item['assets'], remote)}")
    chosen = {name: _finest(path, name, found[name]) for name in card.names if name in found}
    nodatas = {asset.nodata for _, asset in chosen.values()} - {None}
    metadata = {"product": str(item.get("id", path.stem))}
    if missing := sorted(remote.keys() - chosen.keys()):
        metadata["remote"] = " ".join(missing)
    nodata = nodatas.pop() if len(nodatas) == 1 else card.nodata
    return Source(replace(card, nodata=nodata), {name: place for name, (place, _) in chosen.items()}, metadata)


def _item(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_ITEM + 1)
        item = json.loads(text) if len(text) <= _MAX_ITEM else None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected a STAC item, got no JSON ({error})") from error
    assets = item.get("assets") if isinstance(item, dict) else None
    if not isinstance(item, dict) or item.get("type") != "Feature" or "stac_version" not in item:
        raise UserError(f"{path}: expected a STAC item (a Feature with stac_version), got other JSON")
    if not isinstance(assets, dict) or not all(isinstance(asset, dict) for asset in assets.values()):
        raise UserError(f"{path}: expected a STAC item with assets, got none")
    if not isinstance(item.get("properties") or {}, dict):
        raise UserError(f"{path}: expected a STAC item with properties, got {type(item['properties']).__name__}")
    return item


def _card(path: Path, item: Mapping[str, Any], properties: Mapping[str, Any]) -> SensorCard:
    known = [item.get("collection"), properties.get("constellation"), properties.get("platform"), item.get("id")]
    text = " ".join(str(part).lower() for part in known if part)
    # The level may stand before the platform's name, in the collection or in the id.
    level = next((code for code in ("l1c", "l2a") if code in text), "")
    for pattern, card in _SENSORS:
        if re.search(pattern, f"{text} {level}"):
            return card
    raise UserError(f"{path}: expected an item of a known sensor, got {text[:100] or 'none'}; name the sensor")


def _assets(assets: Mapping[str, Any]) -> Iterator[_Asset]:
    """Every band of every asset that may hold measurements."""
    for key, asset in assets.items():
        roles = asset.get("roles") or []
        if key in _PICTURES or (isinstance(roles, list) and _PICTURES & {str(role) for role in roles}):
            continue
        bands = _dicts(asset.get("bands")) or _dicts(asset.get("eo:bands"))
        rasters = _dicts(asset.get("raster:bands"))
        for i, band in enumerate(bands):
            own = {**asset, **(rasters[i] if len(rasters) == len(bands) else {}), **band}
            names = [band.get("name"), key if len(bands) == 1 else None]
            names += [band.get("eo:common_name"), band.get("common_name")]
            yield _Asset(
                key,
                str(asset.get("href", "")),
                i + 1,
                len(bands),
                tuple(str(name) for name in names if name),
                _number(own, "eo:center_wavelength", "center_wavelength"),
                _number(own, "raster:scale", "scale"),
                _number(own, "raster:offset", "offset"),
                _number(own, "nodata"),
            )


def _band(path: Path, asset: _Asset, card: SensorCard) -> str | None:
    """The card's band that an asset's band is, or None."""
    centres = {band.name: band for band in card.bands}
    name = next((found for text in asset.names if (found := card.find(text)) is not None), None)
    if asset.wavelength is None:
        return name
    if name is None:
        near = min(card.bands, key=lambda band: abs(band.wavelength - (asset.wavelength or 0)))
        return near.name if abs(near.wavelength - asset.wavelength) <= near.width / 2 else None
    band = centres[name]
    if abs(band.wavelength - asset.wavelength) > max(band.width / 2, _NEAR):
        raise UserError(
            f"{path}: asset {asset.key!r}: expected band {name} of {card.name} at {band.wavelength:g} um, got "
            f"{asset.wavelength:g} um; name the right sensor"
        )
    return name


def _place(header: Header, asset: _Asset, card: SensorCard) -> Place:
    if len(header.descriptions) != asset.of:
        raise UserError(
            f"{header.path}: expected {asset.of} bands as the STAC item says, got {len(header.descriptions)}"
        )
    if asset.scale:
        return Place(header, asset.number, asset.scale, -(asset.offset or 0.0) / asset.scale)
    return place_of(header, asset.number, card)


def _finest(path: Path, name: str, places: list[tuple[Place, _Asset]]) -> tuple[Place, _Asset]:
    ordered = sorted(places, key=lambda pair: pixel_area(pair[0].header))
    if len(ordered) > 1 and pixel_area(ordered[0][0].header) == pixel_area(ordered[1][0].header):
        keys = " and ".join(repr(asset.key) for _, asset in ordered[:2])
        raise UserError(f"{path}: band {name} is there twice, as the assets {keys}; remove one from the item")
    return ordered[0]


def _why_empty(assets: Mapping[str, Any], remote: Mapping[str, str]) -> str:
    if remote:
        name, href = next(iter(remote.items()))
        return (
            f"expected assets below the item's folder, got {name} at {ascii(href)[:100]}; download them and "
            "make the hrefs relative"
        )
    return f"expected assets with bands of the sensor below the item's folder, found none among {len(assets)}"


def _dicts(values: object) -> list[dict[str, Any]]:
    is_list = isinstance(values, list) and all(isinstance(value, dict) for value in values)
    return list(values) if is_list else []  # type: ignore[call-overload]


def _number(values: Mapping[str, Any], *keys: str) -> float | None:
    for key in keys:
        value = values.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    return None
