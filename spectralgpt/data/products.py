# SPDX-License-Identifier: Apache-2.0
"""Product folders as agencies ship them: Sentinel-2 SAFE, Landsat Collection 2, HLS granules, EnMAP.

The metadata file gives the level and what the numbers mean; the band files are those in the folder that are
named after bands. So no text of a metadata file is ever a path, and XML with a document type (which could name
other files, or grow without end) is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from spectralgpt.data.bands import SENTINEL2, Band
from spectralgpt.data.discover import product_marker
from spectralgpt.data.places import Place, Source, folder_source
from spectralgpt.data.raster import read_header
from spectralgpt.data.sensors import ENMAP, HLS_L30, HLS_S30, LANDSAT_OLI, LANDSAT_OLI_TIRS, SENTINEL2_L2A
from spectralgpt.errors import UserError

_MAX_METADATA = 4 << 20
_MAX_TAGS = 1 << 18
_FIRST_OFFSET_BASELINE = (4, 0)
_ENMAP_REFLECTANCE = 1e-4


def product_source(folder: Path) -> Source | None:
    """The bands and metadata of a product folder, or None where the folder is no product known here.

    Raises:
        UserError: its metadata are damaged, or of a sensor without a card.
    """
    marker = product_marker(folder)
    if marker is None:
        return None
    kind, path = marker
    return {"sentinel2": _sentinel2, "landsat": _landsat, "hls": _hls, "enmap": _enmap}[kind](path)


def _sentinel2(path: Path) -> Source:
    """A SAFE folder by its MTD_MSIL1C.xml or MTD_MSIL2A.xml; one granule."""
    xml = _xml(path)
    card, quantification, offset = (
        (SENTINEL2, "QUANTIFICATION_VALUE", "RADIO_ADD_OFFSET")
        if "MSIL1C" in path.name
        else (SENTINEL2_L2A, "BOA_QUANTIFICATION_VALUE", "BOA_ADD_OFFSET")
    )
    granules = sorted(path.parent.glob("GRANULE/*/IMG_DATA"))
    if len(granules) > 1:
        raise UserError(
            f"{path.parent}: expected one granule, got {len(granules)}; give one of {granules[0]} and so on"
        )
    source = folder_source(granules[0] if granules else path.parent, card)
    scale = 1 / _positive(path, quantification, xml.findtext(f".//{quantification}"))
    baseline = xml.findtext(".//PROCESSING_BASELINE") or "unknown"
    # Before baseline 04.00 there is no offset, and no list of them; later the list must be there to be believed.
    # band_id counts the 13 bands in the order of the level-1C card, also where level 2A lacks one.
    offsets: dict[str, float] = dict.fromkeys(card.names, 0.0) if _is_before_offsets(baseline) else {}
    for node in xml.iterfind(f".//{offset}"):
        number = node.get("band_id", "")
        if number.isdecimal() and int(number) < len(SENTINEL2.bands):
            offsets[SENTINEL2.names[int(number)]] = -_number(path, offset, node.text)
    special = {
        (node.findtext("SPECIAL_VALUE_TEXT") or "").upper(): node.findtext("SPECIAL_VALUE_INDEX")
        for node in xml.iter("Special_Values")
    }
    nodata = card.nodata if special.get("NODATA") is None else _number(path, "NODATA", special["NODATA"])
    places = {name: replace(at, scale=scale, offset=offsets.get(name)) for name, at in source.places.items()}
    level = "L1C" if card is SENTINEL2 else "L2A"
    metadata = {"product": "Sentinel-2", "level": level, "processing_baseline": baseline}
    return Source(replace(card, nodata=nodata), places, metadata)


def _landsat(path: Path) -> Source:
    """A Landsat-8 or 9 Collection-2 folder by its MTL file."""
    groups = _mtl(path)
    contents, attributes = groups.get("PRODUCT_CONTENTS", {}), groups.get("IMAGE_ATTRIBUTES", {})
    spacecraft, level = attributes.get("SPACECRAFT_ID", ""), contents.get("PROCESSING_LEVEL", "")
    if spacecraft not in ("LANDSAT_8", "LANDSAT_9") or level[:2] not in ("L1", "L2"):
        raise UserError(f"{path}: expected Landsat 8 or 9, Collection 2, level 1 or 2, got {spacecraft} {level}")
    has_surface = level.startswith("L2")
    # A level-2 file repeats the level-1 factors under the same names in another group.
    factors = groups.get("LEVEL2_SURFACE_REFLECTANCE_PARAMETERS" if has_surface else "LEVEL1_RADIOMETRIC_RESCALING", {})
    sun = (
        1.0
        if has_surface
        else math.sin(math.radians(_positive(path, "SUN_ELEVATION", attributes.get("SUN_ELEVATION"))))
    )
    card = LANDSAT_OLI_TIRS if "TIRS" in attributes.get("SENSOR_ID", "") else LANDSAT_OLI
    if has_surface:
        card = card.select([name for name in card.names if name in ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B10")])
    places = {}
    for name, at in folder_source(path.parent, card).places.items():
        mult, add = (factors.get(f"REFLECTANCE_{key}_BAND_{name[1:]}") for key in ("MULT", "ADD"))
        scale = offset = None  # thermal bands hold no reflectance
        if mult is not None:
            factor = _positive(path, f"REFLECTANCE_MULT_BAND_{name[1:]}", mult)
            scale, offset = factor / sun, -_number(path, f"REFLECTANCE_ADD_BAND_{name[1:]}", add) / factor
        places[name] = replace(at, scale=scale, offset=offset)
    return Source(card, places, {"product": spacecraft.replace("_", " ").title(), "level": level})


def _hls(path: Path) -> Source:
    """An HLS granule by one of its files, HLS.L30.T13SGD.2021001T173012.v2.0.B04.tif."""
    card = HLS_L30 if ".L30." in path.name else HLS_S30
    source = folder_source(path.parent, card)
    places = {name: replace(at, scale=card.scale, offset=card.offset) for name, at in source.places.items()}
    return Source(card, places, {"product": card.name.upper().replace("_", " "), "level": "surface reflectance"})


def _enmap(path: Path) -> Source:
    """An EnMAP folder by its METADATA.XML, which gives the wavelengths; the cube lies in one file."""
    xml = _xml(path)
    cubes = sorted(path.parent.glob(path.name.replace("METADATA.XML", "SPECTRAL_IMAGE.TIF")))
    if len(cubes) != 1:
        raise UserError(
            f"{path}: expected the file {path.name.replace('METADATA.XML', 'SPECTRAL_IMAGE.TIF')} beside it"
        )
    header = read_header(cubes[0])
    nodes = xml.findall(".//bandCharacterisation/bandID")
    if len(nodes) != len(header.nodatas):
        raise UserError(f"{path}: expected {len(header.nodatas)} bands as in {cubes[0].name}, got {len(nodes)}")
    bands = tuple(
        Band(
            str(number),
            round(_positive(path, "wavelengthCenterOfBand", node.findtext("wavelengthCenterOfBand")) / 1000, 9),
            round(_positive(path, "FWHMOfBand", node.findtext("FWHMOfBand")) / 1000, 9),
            30,
        )
        for number, node in enumerate(nodes, start=1)
    )
    card = replace(ENMAP, bands=bands).select([band.name for band in bands])
    is_reflectance = "L2A" in path.name
    scale, offset = (_ENMAP_REFLECTANCE, 0.0) if is_reflectance else (None, None)
    places = {band.name: Place(header, number, scale, offset) for number, band in enumerate(bands, start=1)}
    return Source(card, places, {"product": "EnMAP", "level": "L2A" if is_reflectance else "radiance"})


def _is_before_offsets(baseline: str) -> bool:
    found = re.fullmatch(r"(\d{2})\.(\d{2})", baseline)
    return found is not None and (int(found[1]), int(found[2])) < _FIRST_OFFSET_BASELINE


def _text(path: Path) -> str:
    with path.open("rb") as file:
        raw = file.read(_MAX_METADATA + 1)
    if len(raw) > _MAX_METADATA:
        raise UserError(f"{path}: expected metadata of at most {_MAX_METADATA >> 20} MiB")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected text in UTF-8 ({error})") from error


def _xml(path: Path) -> ElementTree.Element:
    text = _text(path)
    if "<!DOCTYPE" in text:
        raise UserError(f"{path}: expected XML without a document type; take the metadata from the original product")
    if text.count("<") > _MAX_TAGS:
        raise UserError(f"{path}: expected metadata of at most {_MAX_TAGS} tags, got {text.count('<')}")
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(f"{path}: damaged XML ({error})") from error


def _mtl(path: Path) -> Mapping[str, Mapping[str, str]]:
    """The groups of an MTL file, text or JSON."""
    text = _text(path)
    groups: dict[str, dict[str, str]] = {}
    if path.suffix.lower() == ".json":
        try:
            tree = json.loads(text).get("LANDSAT_METADATA_FILE", {})
            return {name: {key: str(value) for key, value in group.items()} for name, group in tree.items()}
        except (ValueError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}: damaged MTL file ({error})") from error
    inside: list[str] = []
    # No two neighbouring parts match the same character: the time stays linear whatever the file holds.
    for key, value in re.findall(r'^[ \t]*(\w+)[ \t]*=[ \t]*"?([^"\n]*)', text, re.MULTILINE):
        value = value.strip()
        if key == "GROUP":
            inside.append(value)
        elif key == "END_GROUP":
            inside = inside[:-1]
        elif inside:
            groups.setdefault(inside[-1], {})[key] = value
    return groups


def _number(path: Path, key: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{path}: expected a number for {key}, got {text!r}")
    return value


def _positive(path: Path, key: str, text: str | None) -> float:
    value = _number(path, key, text)
    if value <= 0:
        raise UserError(f"{path}: expected a positive number for {key}, got {text!r}")
    return value
