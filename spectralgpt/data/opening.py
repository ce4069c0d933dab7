# SPDX-License-Identifier: Apache-2.0
"""What a path becomes before it is a `Scene`: its bands found, missing ones dealt with, the meaning of values settled.

Nothing is guessed. A band that is not there is an error unless the caller chose what to do, and reflectance is
given only where scale and offset are known; every choice ends in the metadata.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from spectralgpt.data.bands import SensorCard
from spectralgpt.data.places import Place, Source, file_source, folder_source
from spectralgpt.data.products import product_source
from spectralgpt.data.stac import is_item, stac_source
from spectralgpt.errors import UserError

Missing = Literal["error", "drop", "nearest"]
"""What to do about a band that is not there: refuse, leave it out, or show the nearest by wavelength instead."""

_LANDSAT_LEVEL = re.compile(r"L[CO]0[89]_(L[12][A-Z]{2})_")
_SHORTEST_THERMAL = 3.5  # micrometres; beyond, bands hold emitted radiance or temperature


def find_source(path: Path, card: SensorCard | None, band_order: Sequence[str] | None) -> Source:
    """The bands of a file or folder.

    Args:
        path: the file or folder.
        card: the sensor; None, or one without bands, is taken from the product or from the file's tags.
        band_order: what the bands of a file are, in its order.

    Raises:
        UserError: which band is which, or the sensor, cannot be told beyond doubt.
    """
    if is_item(path):
        return stac_source(path, card)
    if not path.is_dir():
        return file_source(path, card, band_order)
    product = product_source(path)
    if product is None:
        if card is None or not card.bands:
            raise UserError(f"{path}: expected a product folder known by its metadata, got none; name the sensor")
        return folder_source(path, card)
    if card is not None and card.bands:
        centres = dict(zip(product.card.names, product.card.wavelengths, strict=True))
        shared = [band for band in card.bands if band.name in centres]
        if not shared or any(abs(centres[band.name] - band.wavelength) > band.width / 2 for band in shared):
            raise UserError(f"{path}: expected a product of {card.name}, got one of {product.card.name}")
    return product


def complete(
    path: Path, full: SensorCard, wanted: SensorCard, source: Source, policy: Missing
) -> tuple[SensorCard, list[Place], dict[str, str]]:
    """The bands wanted, where each lies, and what is known of the image, with what was done about missing bands.

    Raises:
        UserError: a band is missing and the policy is "error", or all are; or bands of several levels of Landsat.
    """
    places, metadata = source.places, dict(source.metadata)
    missing = [name for name in wanted.names if name not in places]
    if missing and (policy == "error" or not places):
        # Not every command has the option: training refuses stand-ins.
        way_out = "ask for these only, or for the nearest in place of a missing one where the command has --missing"
        there = f"there is {' '.join(places)}; {way_out}" if places else "found none"
        if "remote" in metadata:
            there += f", or download {metadata['remote']}, which the item only links to"
        raise UserError(f"{path}: expected band {' '.join(missing)}, {there}")
    if missing and policy == "drop":
        metadata["dropped"] = " ".join(missing)
        wanted = wanted.select([name for name in wanted.names if name in places])
    stand_ins = full.stand_ins(missing, places) if policy == "nearest" else {}
    if stand_ins:
        metadata["stand_ins"] = " ".join(f"{name}={other}" for name, other in stand_ins.items())
    chosen = [places[stand_ins.get(name, name)] for name in wanted.names]
    return wanted, chosen, metadata | _level(path, chosen, metadata)


def set_values(
    path: Path,
    card: SensorCard,
    places: Sequence[Place],
    metadata: dict[str, str],
    reflectance: bool,
    offset: float | None,
) -> tuple[list[Place], dict[str, str]]:
    """Fills in a given offset, and checks that reflectance, if asked for, is defined.

    Raises:
        UserError: it is not, or the offset given contradicts what is known.
    """
    if offset is not None and not 0 <= offset < math.inf:
        raise UserError(f"offset: expected the number that stands for reflectance 0, such as 1000, got {offset:g}")
    known = sorted({place.offset for place in places if place.offset is not None})
    if offset is not None and not all(math.isclose(offset, value, abs_tol=1e-6) for value in known):
        told = " and ".join(f"{value:g}" for value in known)
        raise UserError(f"{path}: expected offset {told}, as the product, file or card says, got {offset:g}")
    if offset is not None:  # also vouches for floats without tags
        places = [replace(place, offset=offset, scale=place.scale or card.scale) for place in places]
    where = "unknown" if any(place.offset is None for place in places) else "known" if offset is None else "given"
    for band, place in zip(card.bands, places, strict=True) if reflectance else ():
        if place.scale is None or band.wavelength > _SHORTEST_THERMAL:
            raise UserError(f"{path}: expected a scale to reflectance for band {band.name}, got none; leave it out")
        if place.offset is None:
            raise UserError(
                f"{path}: expected an offset for band {band.name} in the metadata, got none; give offset=0, or "
                "offset=1000 for Sentinel-2 from processing baseline 04.00 on"
            )
    return list(places), {**metadata, "offset": where, "values": "reflectance" if reflectance else "as stored"}


def _level(path: Path, places: Sequence[Place], metadata: dict[str, str]) -> dict[str, str]:
    """The level that the names of Landsat's files tell; downloads often come without the metadata file."""
    named = {found[1] for place in places if (found := _LANDSAT_LEVEL.match(place.header.path.name))}
    if not named:
        return {}
    level, *others = sorted({*named, metadata.get("level", min(named))})
    if others:
        raise UserError(
            f"{path}: expected files of one level, got {level} and {others[0]}, whose numbers mean different things; "
            "give each product a folder of its own"
        )
    return {"level": level}
