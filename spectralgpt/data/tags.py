# SPDX-License-Identifier: Apache-2.0
"""What the tags of a file say about the spectrum of its bands.

Three spellings are in use: `wavelength` and `fwhm` with `wavelength_units` per band (EnMAP-Box, ENVI), GDAL's
IMAGERY domain (`CENTRAL_WAVELENGTH_UM`, `FWHM_UM`), and lists in the ENVI domain. Everything becomes micrometres.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_MAX_TAG = 1 << 12
_ADDED_BY_ENVI = re.compile(r" \([\d.eE+-]+ [A-Za-z]+\)$")  # "Red (665 Nanometers)": the name is "Red"

_PER_MICROMETRE = {
    "nm": 1000.0,
    "nanometer": 1000.0,
    "nanometers": 1000.0,
    "nanometre": 1000.0,
    "nanometres": 1000.0,
    "um": 1.0,
    "µm": 1.0,  # both signs for "micro" occur
    "μm": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometers": 1.0,
    "micrometre": 1.0,
    "micrometres": 1.0,
}


class Spectrum(NamedTuple):
    """One band: centre and full width at half maximum in micrometres, and whether the band list calls it good."""

    wavelength: float | None
    width: float | None
    is_good: bool


def spectra(
    bands: Sequence[Mapping[str, str]], imagery: Sequence[Mapping[str, str]], envi: Mapping[str, str]
) -> list[Spectrum]:
    """The spectra of a file's bands.

    Args:
        bands: the default tags of each band.
        imagery: the tags of each band in GDAL's IMAGERY domain.
        envi: the file's tags in the ENVI domain.
    """
    lists = {key: _items(envi.get(key, "")) for key in ("wavelength", "fwhm", "bbl")}
    found = []
    for i, (own, gdal) in enumerate(zip(bands, imagery, strict=True)):
        tags = {key: values[i] for key, values in lists.items() if len(values) == len(bands)}
        tags |= {key.lower(): value for key, value in own.items()}
        if not tags and not gdal:
            found.append(Spectrum(None, None, True))
            continue
        unit = tags.get("wavelength_units") or tags.get("wavelength_unit") or envi.get("wavelength_units", "")
        centre, width = _number(tags.get("wavelength")), _number(tags.get("fwhm"))
        divisor = _divisor(unit, centre)
        if centre is None or divisor is None:
            centre, width = _number(gdal.get("CENTRAL_WAVELENGTH_UM")), _number(gdal.get("FWHM_UM"))
            divisor = 1.0
        found.append(
            Spectrum(
                None if centre is None else round(centre / divisor, 9),
                None if width is None else round(width / divisor, 9),
                tags.get("bbl", "1").strip() not in ("0", "0.0"),
            )
        )
    return found


def declared(file: Any) -> dict[str, Any]:  # noqa: ANN401 - an open raster; this module needs no rasterio
    """The fields of a `Header` that come from the tags of an open raster."""
    envi = file.tags(ns="ENVI")
    spectrum = spectra(
        [file.tags(number) for number in file.indexes],
        [file.tags(number, ns="IMAGERY") for number in file.indexes],
        envi,
    )
    divisor = _number(envi.get("reflectance_scale_factor"))
    silent = (None, None) if divisor is None else (1 / divisor, 0.0)
    # GDAL gives scale 1 and offset 0 where a file declares none.
    pairs = [silent if pair == (1, 0) else pair for pair in zip(file.scales, file.offsets, strict=True)]
    return {
        "descriptions": tuple(text and _ADDED_BY_ENVI.sub("", text) for text in file.descriptions),
        "nodatas": tuple(file.nodatavals),
        "tags": {key: value for key, value in file.tags().items() if len(value) <= _MAX_TAG},
        "scales": tuple(scale for scale, _ in pairs),
        "offsets": tuple(offset for _, offset in pairs),
        "units": tuple(file.units),
        "wavelengths": tuple(band.wavelength for band in spectrum),
        "widths": tuple(band.width for band in spectrum),
        "is_good": tuple(band.is_good for band in spectrum),
    }


def _divisor(unit: str, centre: float | None) -> float | None:
    """What a wavelength is divided by; without a unit the two ranges that light allows tell them apart."""
    known = _PER_MICROMETRE.get(unit.strip().lower())
    if known is not None or unit.strip().lower() not in ("", "unknown") or centre is None:
        return known
    return 1.0 if 0.2 <= centre <= 20 else 1000.0 if 200 <= centre <= 20000 else None


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.strip("{} \n").split(",")] if text.strip("{} \n") else []


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
