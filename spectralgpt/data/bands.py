# SPDX-License-Identifier: Apache-2.0
"""Sensor cards: what the bands of an instrument are called, where they look in the spectrum, how finely.

Bands are always asked for by name or by wavelength. Products order and spell them differently (EuroSAT puts
B8A last, SSL4EO-S12 writes B1 for B01), so a name is found through its aliases and a position in a file never
stands for a band. Sentinel-2 is here, all other cards are in `sensors`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
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

    Attributes:
        name: of the sensor, as `sensor_card` takes it.
        bands: what it measures; no two of a name.
        groups: the spectral groups a model cuts its tokens from, as ordered tuples of band names, all of one
            length. A band that is in no group (cirrus, panchromatic) is left to those who ask for it.
        nodata: the value the product defines as "no data", used where a file declares none itself.
        scale: reflectance is (value - offset) * scale; None where the product defines none.
        offset: the value that stands for reflectance 0; None where it differs between products of one sensor
            (Sentinel-2: 1000 since processing baseline 04.00, 0 before), so that only their metadata or the
            user can say.
        by_wavelength: whether bands are found in files by their centre wavelength instead of by name.
    """

    name: str
    bands: tuple[Band, ...]
    groups: tuple[tuple[str, ...], ...]
    nodata: float | None = None
    scale: float | None = None
    offset: float | None = None
    by_wavelength: bool = False

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
        found = name if name in self._by_name else self._canonical.get(_key(name))
        if found is None:
            known = self.names if len(self.names) <= _MOST_NAMED else (*self.names[:3], "...", self.names[-1])
            raise UserError(f"band {name!r}: expected a band of {self.name}, one of {' '.join(known)}")
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
        """A card of these bands in this order.

        All grouped bands in their own order keep the card's groups; others are grouped in threes as they come, the
        last one repeated to fill up the last group.

        Raises:
            UserError: the sensor lacks a band, or `names` has no order.
        """
        if isinstance(names, str | AbstractSet | Mapping):
            raise UserError(f"bands of {self.name}: expected an ordered list of names, got {names!r}")
        bands = tuple(self._by_name[self.canonical(name)] for name in names)
        chosen = tuple(band.name for band in bands)
        grouped = {name for group in self.groups for name in group}
        is_own = chosen == tuple(name for name in self.names if name in grouped)
        return replace(self, bands=bands, groups=self.groups if is_own else _groups(chosen))

    def nearest(self, wavelength: float, tolerance: float) -> str:
        """Name of the band whose centre lies nearest to a wavelength, both in micrometres.

        Raises:
            UserError: no centre lies within `tolerance`.
        """
        band = _nearest(self.bands, wavelength)
        if not abs(band.wavelength - wavelength) <= tolerance:
            hint = "; wavelengths are in micrometres" if wavelength > 100 else ""
            raise UserError(
                f"wavelength {wavelength:g} um: expected a band of {self.name} within {tolerance:g} um, the nearest "
                f"is {band.name} at {band.wavelength:g} um{hint}"
            )
        return band.name

    def select_wavelengths(self, wavelengths: Sequence[float], tolerance: float) -> SensorCard:
        """A card of the bands nearest to these wavelengths (micrometres), in this order.

        Raises:
            UserError: a wavelength has no band within `tolerance`, or two have the same.
        """
        names = [self.nearest(wavelength, tolerance) for wavelength in wavelengths]
        taken: dict[str, float] = {}
        for name, wavelength in zip(names, wavelengths, strict=True):
            if taken.setdefault(name, wavelength) != wavelength:
                raise UserError(
                    f"wavelengths {taken[name]:g} and {wavelength:g} um: expected two bands of {self.name}, both are "
                    f"nearest to {name}; ask for it once"
                )
        return self.select(names)

    def group_names(self, bands_per_token: int) -> tuple[tuple[str, ...], ...]:
        """The groups for a model with this many bands per token.

        The card's own where they have that length; else its grouped bands in order, the last one repeated to
        fill up the last group.
        """
        if all(len(group) == bands_per_token for group in self.groups):
            return self.groups
        if self.groups == _groups(self.names):  # keeps a band that was asked for twice
            return _groups(self.names, bands_per_token)
        return _groups(tuple(dict.fromkeys(name for group in self.groups for name in group)), bands_per_token)

    def stand_ins(self, names: Sequence[str], present: Collection[str]) -> dict[str, str]:
        """For each of `names` that is not present, the present band with the nearest centre wavelength."""
        there = [band for band in self.bands if band.name in present]
        missing = [name for name in names if name not in present]
        return {name: _nearest(there, self._by_name[name].wavelength).name for name in missing}

    @cached_property
    def _by_name(self) -> dict[str, Band]:
        return {band.name: band for band in self.bands}


def sensor_card(name: str) -> SensorCard:
    """The card of a sensor by its name, such as "sentinel2", "landsat_oli" or "gaofen2_pms".

    "hyperspectral" and "enmap" give a card without bands: `Scene.open` fills it in from the file's own tags.

    Raises:
        UserError: no card has this name.
    """
    from spectralgpt.data.sensors import CARDS  # the other cards are made of this module's classes

    found = {_key(known): card for known, card in CARDS.items()}.get(_key(name))
    if found is None:
        raise UserError(f"sensor {name!r}: expected {', '.join(CARDS)}")
    return found


_CODE = re.compile(r"[Bb]\d+[A-Za-z]?")
_BANDS_PER_TOKEN = 3
_MOST_NAMED = 20


def _key(text: str) -> str:
    """Spelling without case, punctuation and leading zeros: B8A, b08a and B-8a are one band."""
    return re.sub(r"^b0+(?=\d)", "b", re.sub(r"[^a-z0-9]", "", text.lower()))


def _nearest(bands: Sequence[Band], wavelength: float) -> Band:
    return min(bands, key=lambda band: abs(band.wavelength - wavelength))


def _groups(names: tuple[str, ...], size: int = _BANDS_PER_TOKEN) -> tuple[tuple[str, ...], ...]:
    filled = names + names[-1:] * (-len(names) % size)
    return tuple(filled[i : i + size] for i in range(0, len(filled), size))


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
        Band("B08", 0.8328, 0.106, 10, ("nir", "nir broad")),
        Band("B8A", 0.8647, 0.021, 20, ("nir08", "narrow nir", "nir narrow")),
        Band("B09", 0.9451, 0.020, 60, ("nir09", "water vapour", "water vapor")),
        Band("B10", 1.3735, 0.031, 60, ("cirrus",)),
        Band("B11", 1.6137, 0.091, 20, ("swir16", "swir1")),
        Band("B12", 2.2024, 0.175, 20, ("swir22", "swir2")),
    ),
    groups=_groups(SENTINEL2_12),
    nodata=0,
    scale=1e-4,
)
"""Sentinel-2A MSI, level 1C. Figures: ESA, Sentinel-2 Spectral Response Functions, COPE-GSEG-EOPG-TN-15-0007.

Digital number 0 is "no data". Which number stands for reflectance 0 depends on the processing baseline, so the
card leaves the offset open.
"""
