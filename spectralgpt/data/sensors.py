# SPDX-License-Identifier: Apache-2.0
"""The sensor cards beside Sentinel-2, and the table of all by name.

Figures are those of the public documents named at each card. Where a document gives the edges of a band and not
its centre, the centre is their mean and the width their distance. Groups keep kinds of light together: a token
never mixes reflectance with temperature, and panchromatic or cirrus bands are in no group unless the data sets
of that sensor carry them as a matter of course (HLS).
"""

from __future__ import annotations

from dataclasses import replace

from spectralgpt.data.bands import SENTINEL2, SENTINEL2_12, Band, SensorCard

SENTINEL2_L2A = replace(SENTINEL2.select(SENTINEL2_12), name="sentinel2_l2a")
"""Sentinel-2A MSI, level 2A: surface reflectance without the cirrus band."""


def _between(name: str, low: float, high: float, gsd: float, *aliases: str) -> Band:
    """A band by its edges in micrometres."""
    return Band(name, round((low + high) / 2, 6), round(high - low, 6), gsd, aliases)


# Barsi et al. 2014, The Spectral Response of the Landsat-8 Operational Land Imager, Remote Sensing 6(10), table of
# band centres and FWHM; Landsat-9's OLI-2 is a copy. TIRS: USGS, band designations for the Landsat satellites.
_OLI = (
    Band("B1", 0.44296, 0.01598, 30, ("coastal", "aerosol", "coastal aerosol", "ultra blue")),
    Band("B2", 0.48204, 0.06004, 30, ("blue",)),
    Band("B3", 0.56141, 0.05733, 30, ("green",)),
    Band("B4", 0.65459, 0.03747, 30, ("red",)),
    Band("B5", 0.86467, 0.02825, 30, ("nir", "nir08", "nir narrow", "narrow nir")),
    Band("B6", 1.60886, 0.08472, 30, ("swir1", "swir16")),
    Band("B7", 2.20073, 0.18666, 30, ("swir2", "swir22")),
    Band("B8", 0.58950, 0.17240, 15, ("pan", "panchromatic")),
    Band("B9", 1.37343, 0.02039, 30, ("cirrus",)),
)
_TIRS = (
    _between("B10", 10.60, 11.19, 100, "tirs1", "lwir11", "thermal infrared 1"),
    _between("B11", 11.50, 12.51, 100, "tirs2", "lwir12", "thermal infrared 2"),
)

LANDSAT_OLI = SensorCard(
    name="landsat_oli",
    bands=_OLI,
    groups=(("B1", "B2", "B3"), ("B4", "B5", "B5"), ("B6", "B7", "B7")),
    nodata=0,
)
"""Landsat-8 and 9, Collection 2. Scale and offset differ between levels: the product's MTL file gives them."""

LANDSAT_OLI_TIRS = replace(
    LANDSAT_OLI, name="landsat_oli_tirs", bands=_OLI + _TIRS, groups=(*LANDSAT_OLI.groups, ("B10", "B11", "B11"))
)
"""The same with the two thermal bands, which hold radiance (level 1) or temperature (level 2)."""

# Harmonized Landsat and Sentinel-2 Product User Guide, version 2.0: all bands on a 30 m grid, surface reflectance
# times 10000, brightness temperature in degrees Celsius times 100, -9999 no data.
HLS_L30 = SensorCard(
    name="hls_l30",
    bands=tuple(
        replace(band, name=f"B{int(band.name[1:]):02}", gsd=30) for band in _OLI + _TIRS if "pan" not in band.aliases
    ),
    groups=(("B01", "B02", "B03"), ("B04", "B05", "B09"), ("B06", "B07", "B07"), ("B10", "B11", "B11")),
    nodata=-9999,
    scale=1e-4,
    offset=0,
)
"""HLS from Landsat-8 and 9. B10 and B11 are thermal here, and cirrus and shortwave infrared in `HLS_S30`."""

_S30_NIR = {"B08": ("nir broad",), "B8A": ("nir", "nir08", "nir narrow", "narrow nir")}
HLS_S30 = SensorCard(
    name="hls_s30",
    bands=tuple(replace(band, gsd=30, aliases=_S30_NIR.get(band.name, band.aliases)) for band in SENTINEL2.bands),
    groups=SENTINEL2.groups,
    nodata=-9999,
    scale=1e-4,
    offset=0,
)
"""HLS from Sentinel-2; "nir" is the narrow band, which agrees with Landsat's."""


def _gaofen(name: str, gsd: float, *edges: tuple[float, float, str]) -> SensorCard:
    bands = tuple(
        _between(f"B{number}", low, high, gsd, alias) for number, (low, high, alias) in enumerate(edges, start=1)
    )
    by_wavelength = tuple(band.name for band in sorted(bands, key=lambda band: band.wavelength))
    whole = SensorCard(name, bands, (), nodata=0)
    return replace(whole, groups=whole.select(by_wavelength).groups)


# Band edges: China Centre for Resources Satellite Data and Application (CRESDA), payload tables of Gaofen-1, 2 and 6.
# Bands are numbered as in the multispectral files; the tables count the panchromatic band as number 1 and so arrive
# at numbers one higher for PMS. Radiance needs yearly calibration coefficients, so no card has a scale.
_FOUR = ((0.45, 0.52, "blue"), (0.52, 0.59, "green"), (0.63, 0.69, "red"), (0.77, 0.89, "nir"))

GAOFEN1_PMS = _gaofen("gaofen1_pms", 8, *_FOUR)
GAOFEN1_WFV = _gaofen("gaofen1_wfv", 16, *_FOUR)
GAOFEN2_PMS = _gaofen("gaofen2_pms", 4, *_FOUR)
GAOFEN6_PMS = _gaofen(
    "gaofen6_pms", 8, (0.45, 0.52, "blue"), (0.52, 0.60, "green"), (0.63, 0.69, "red"), (0.76, 0.90, "nir")
)
GAOFEN6_WFV = _gaofen(
    "gaofen6_wfv",
    16,
    *_FOUR,
    (0.69, 0.73, "rededge1"),
    (0.73, 0.77, "rededge2"),
    (0.40, 0.45, "coastal"),
    (0.59, 0.63, "yellow"),
)
"""Its bands 5 to 8 were added behind the four common ones, so file order is not spectral order; groups are."""

HYPERSPECTRAL = SensorCard("hyperspectral", (), (), by_wavelength=True)
"""Any imaging spectrometer: bands 1, 2, ... with the wavelengths that the file's tags or ENVI header give."""

ENMAP = replace(HYPERSPECTRAL, name="enmap", nodata=-32768)
"""EnMAP HSI. Centre wavelengths belong to each product (the detectors drift), so the file's tags give them."""

CARDS = {
    card.name: card
    for card in (
        SENTINEL2,
        SENTINEL2_L2A,
        LANDSAT_OLI,
        LANDSAT_OLI_TIRS,
        HLS_L30,
        HLS_S30,
        GAOFEN1_PMS,
        GAOFEN1_WFV,
        GAOFEN2_PMS,
        GAOFEN6_PMS,
        GAOFEN6_WFV,
        ENMAP,
        HYPERSPECTRAL,
    )
}
"""All cards by name."""
CARDS["sentinel2_l1c"] = SENTINEL2
