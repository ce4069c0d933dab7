# SPDX-License-Identifier: Apache-2.0
"""Which file and number in it holds each band of an image, and what its values mean.

The meaning, (value - offset) * scale = reflectance, comes from a product's metadata, from the file's tags, or
from the sensor card, in this order, and stays open where none of them knows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from spectralgpt.data.bands import Band, SensorCard
from spectralgpt.data.discover import band_files
from spectralgpt.data.raster import Header, read_header
from spectralgpt.errors import UserError


@dataclass(frozen=True)
class Place:
    """Where a band lies, and reflectance as (value - offset) * scale; None is unknown."""

    header: Header
    number: int
    scale: float | None = None
    offset: float | None = None


@dataclass(frozen=True)
class Source:
    """An image before bands are chosen: its card, the place of each band there is, and what else is known of it."""

    card: SensorCard
    places: dict[str, Place]
    metadata: dict[str, str] = field(default_factory=dict)


def file_source(path: Path, card: SensorCard | None, band_order: Sequence[str] | None) -> Source:
    """The bands of a multi-band file, by the file's descriptions, by `band_order`, or by wavelength.

    Raises:
        UserError: a band cannot be told beyond doubt.
    """
    header = read_header(path)
    if card is None or not card.bands:
        card = card_of_file(header, card)
    if card.by_wavelength and band_order is None:
        numbers = _numbers_by_wavelength(header, card)
    else:
        numbers = _numbers_by_name(header, card, band_order)
    return Source(card, {name: place_of(header, number, card) for name, number in numbers.items()})


def folder_source(folder: Path, card: SensorCard) -> Source:
    """The file of each band in a folder, the finest where a band comes at several resolutions.

    Raises:
        UserError: a band is there twice at one resolution, or a file named after a band holds several.
    """
    places: dict[str, Place] = {}
    for name, paths in band_files(folder, card).items():
        headers = sorted(map(read_header, paths), key=pixel_area)
        if len(headers) > 1 and pixel_area(headers[0]) == pixel_area(headers[1]):
            raise UserError(
                f"{folder}: band {name} is there twice, as {headers[0].path.name} and "
                f"{headers[1].path.name}; give each scene a folder of its own"
            )
        if len(headers[0].descriptions) > 1:
            raise UserError(
                f"{headers[0].path}: expected one band, as the file name says {name}, got "
                f"{len(headers[0].descriptions)}; give multi-band files other names"
            )
        places[name] = place_of(headers[0], 1, card)
    return Source(card, {name: places[name] for name in card.names if name in places})


def card_of_file(header: Header, like: SensorCard | None = None) -> SensorCard:
    """The card of an imaging spectrometer from the wavelengths in a file's tags; bands are named 1, 2, ...

    Bands that the file's bad-band list excludes are left out. Without widths in the tags, a band's width is the
    distance to its nearest neighbour.

    Args:
        header: of the file.
        like: gives the name and the "no data" value.

    Raises:
        UserError: the tags lack a wavelength.
    """
    good = [i for i, is_good in enumerate(header.is_good) if is_good]
    centres = [header.wavelengths[i] for i in good]
    known = [centre for centre in centres if centre is not None]
    if not good or len(known) < len(good):
        raise UserError(
            f"{header.path}: expected the wavelength of each band in the tags, got {len(known)} of {len(good)}; "
            "add wavelength and wavelength_units per band, or name the sensor"
        )
    is_metric = header.transform is not None and header.crs is not None and header.crs.is_projected
    gsd = round(pixel_area(header) ** 0.5, 3) if is_metric else 0.0
    bands = tuple(
        Band(str(i + 1), centre, header.widths[i] or _spacing(known, n), gsd)
        for n, (i, centre) in enumerate(zip(good, known, strict=True))
    )
    card = like or SensorCard("hyperspectral", (), (), by_wavelength=True)
    return replace(card, bands=bands, groups=()).select(tuple(band.name for band in bands))


def pixel_area(header: Header) -> float:
    """For comparing resolutions of one image: area on the ground, or the inverse of the pixel count."""
    if header.transform is None:
        return 1 / (header.shape[0] * header.shape[1])
    return abs(float(header.transform.determinant))


def place_of(header: Header, number: int, card: SensorCard) -> Place:
    """A band by its number in a file; what its values mean, by the file's tags or else the card."""
    scale, offset = header.scales[number - 1], header.offsets[number - 1]
    if scale:
        return Place(header, number, scale, -(offset or 0.0) / scale)
    # A product's factor is for its integers; floats without tags may hold anything, reflectance included.
    return Place(header, number, card.scale if header.dtype.kind in "iu" else None, card.offset)


def _numbers_by_name(header: Header, card: SensorCard, band_order: Sequence[str] | None) -> dict[str, int]:
    count, path = len(header.descriptions), header.path
    if band_order is not None:
        if len(band_order) != count:
            raise UserError(f"{path}: band_order names {len(band_order)} bands, the file has {count}")
        names = [None if name == "-" else card.canonical(name) for name in band_order]
    else:
        names = [None if text is None else card.find(text) for text in header.descriptions]
        if not any(names):
            known = " ".join(card.names)
            way_out = f"name the bands in band_order, out of {known}, or - for one to pass over"
            if any(header.wavelengths):
                way_out = "choose a sensor whose bands go by wavelength, as the file's tags do: enmap or hyperspectral"
            raise UserError(f"{path}: expected band names in the {count} band descriptions, found none; {way_out}")
    numbers: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if name is not None and numbers.setdefault(name, number) != number:
            raise UserError(f"{path}: band {name} is there twice, as {numbers[name]} and {number}; use band_order")
    return numbers


def _numbers_by_wavelength(header: Header, card: SensorCard) -> dict[str, int]:
    """For each band of the card the file's band of that number, or else the nearest, within half the band's width.

    Number before distance: where two detectors overlap, the other one's band may lie nearer by a hair.
    """
    good = {
        number: centre
        for number, centre in enumerate(header.wavelengths, start=1)
        if centre is not None and header.is_good[number - 1]
    }
    if not good:
        raise UserError(f"{header.path}: expected the wavelength of each band in the tags, got none")
    numbers: dict[str, int] = {}
    for band in card.bands:
        distances = {number: abs(centre - band.wavelength) for number, centre in good.items()}
        own = int(band.name) if band.name.isdecimal() else 0
        number = own if distances.get(own, math.inf) <= band.width / 2 else min(distances, key=distances.__getitem__)
        if distances[number] <= band.width / 2:
            numbers[band.name] = number
    first: dict[int, str] = {}
    for name, number in numbers.items():
        if first.setdefault(number, name) != name:
            raise UserError(
                f"{header.path}: expected a band each for {first[number]} and {name}, both are number {number}"
            )
    return numbers


def _spacing(centres: Sequence[float], i: int) -> float:
    return round(min((abs(centres[i] - other) for j, other in enumerate(centres) if j != i), default=0.0), 9)
