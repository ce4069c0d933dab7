# SPDX-License-Identifier: Apache-2.0
"""Sensor cards: what the bands of an instrument are called, where they look in the spectrum, how finely.

Bands are always asked for by name. Products order and spell them differently (EuroSAT puts B8A last,
SSL4EO-S12 writes B1 for B01), so a name is found through its aliases and a position in a file never stands
for a band.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from spectralgpt.errors import UserError


@dataclass(frozen=True)
class Band:
    """One spectral band: centre and full width at half maximum in micrometres, ground sampling in metres."""

    name: str
    wavelength: float
    width: float
    gsd: float
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class SensorCard:
    """The bands of a sensor, in order.

    `groups` are the spectral groups a model cuts its tokens from, as ordered tuples of band names. `nodata`
    is the value the product defines as "no data", used where a file declares none itself.
    """

    name: str
    bands: tuple[Band, ...]
    groups: tuple[tuple[str, ...], ...]
    nodata: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical band names, in order."""
        return tuple(band.name for band in self.bands)

    @property
    def wavelengths(self) -> tuple[float, ...]:
        """Centre wavelengths in micrometres, in order."""
        return tuple(band.wavelength for band in self.bands)

    @cached_property
    def _canonical(self) -> dict[str, str]:
        return {_key(text): band.name for band in self.bands for text in (band.name, *band.aliases)}

    def canonical(self, name: str) -> str:
        """The card's own name for `name`, which may be an alias ("B1", "b01", "B08A", "blue").

        Raises:
            UserError: the sensor has no such band.
        """
        found = self._canonical.get(_key(name))
        if found is None:
            raise UserError(f"band {name!r}: expected a band of {self.name}, one of {' '.join(self.names)}")
        return found

    def find(self, text: str) -> str | None:
        """The band that a file name or band description speaks of, or None where that is not beyond doubt.

        Either the whole text is a name or alias ("red", "Red edge 1"), or exactly one band code stands in it
        ("T33UUP_20170613_B8A_20m", "B4, central wavelength 665 nm").
        """
        whole = self._canonical.get(_key(text))
        if whole is not None:
            return whole
        codes = {self._canonical.get(_key(word)) for word in re.findall(r"[A-Za-z0-9]+", text) if _CODE.fullmatch(word)}
        codes.discard(None)
        return codes.pop() if len(codes) == 1 else None

    def select(self, names: Sequence[str]) -> SensorCard:
        """A card of these bands in this order, grouped in threes; the last band fills up the last group."""
        by_name = {band.name: band for band in self.bands}
        bands = tuple(by_name[self.canonical(name)] for name in names)
        return replace(self, bands=bands, groups=_groups(tuple(band.name for band in bands)))


def sensor_card(name: str) -> SensorCard:
    """The card of a sensor by its name.

    Raises:
        UserError: no card has this name.
    """
    for card in (SENTINEL2,):
        if _key(card.name) == _key(name):
            return card
    raise UserError(f"sensor {name!r}: expected {SENTINEL2.name}")


_CODE = re.compile(r"[Bb]\d+[A-Za-z]?")
_GROUP_SIZE = 3


def _key(text: str) -> str:
    """Spelling without case, punctuation and leading zeros: B8A, b08a and B-8a are one band."""
    return re.sub(r"^b0+(?=\d)", "b", re.sub(r"[^a-z0-9]", "", text.lower()))


def _groups(names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    filled = names + names[-1:] * (-len(names) % _GROUP_SIZE)
    return tuple(filled[i : i + _GROUP_SIZE] for i in range(0, len(filled), _GROUP_SIZE))


SENTINEL2_12 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
"""The bands of the published models, in their order. B10 sees cirrus, not the ground, and L2A lacks it."""

SENTINEL2 = SensorCard(
    name="sentinel2",
    bands=(
        Band("B01", 0.4427, 0.021, 60, ("coastal", "aerosol", "coastal aerosol")),
        Band("B02", 0.4924, 0.066, 10, ("blue",)),
        Band("B03", 0.5598, 0.036, 10, ("green",)),
        Band("B04", 0.6646, 0.031, 10, ("red",)),
        Band("B05", 0.7041, 0.015, 20, ("rededge1", "vegetation red edge 1")),
        Band("B06", 0.7405, 0.015, 20, ("rededge2", "vegetation red edge 2")),
        Band("B07", 0.7828, 0.020, 20, ("rededge3", "vegetation red edge 3")),
        Band("B08", 0.8328, 0.106, 10, ("nir",)),
        Band("B8A", 0.8647, 0.021, 20, ("nir08", "narrow nir", "nir narrow")),
        Band("B09", 0.9451, 0.020, 60, ("nir09", "water vapour", "water vapor")),
        Band("B10", 1.3735, 0.031, 60, ("cirrus",)),
        Band("B11", 1.6137, 0.091, 20, ("swir16", "swir1")),
        Band("B12", 2.2024, 0.175, 20, ("swir22", "swir2")),
    ),
    groups=_groups(SENTINEL2_12),
    nodata=0,
)
"""Sentinel-2A MSI. Level 1C and 2A products define digital number 0 as "no data"."""
