# SPDX-License-Identifier: Apache-2.0
"""What is no raster but looks like one, changes while it is read, or stands beside a good one."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import rasterio

from tests.data.hostile import layouts as tags
from tests.data.hostile.cases import PIXELS, REFUSED
from tests.data.hostile.layouts import tiff, tiled
from tests.data.rasters import noise, write


def disguises(kind):
    """Other formats under a raster's name, most of which GDAL would gladly open."""
    vrt = (
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"{}'
        "</VRTRasterBand></VRTDataset>"
    )
    raw = ' subClass="VRTRawRasterBand"><SourceFilename relativetoVRT="0">/etc/passwd</SourceFilename>'
    url = "><SimpleSource><SourceFilename>/vsicurl/http://127.0.0.1:9/a.tif</SourceFilename></SimpleSource>"
    texts = {
        "vrt": vrt.format(">"),
        "vrt-raw": vrt.format(raw),
        "vrt-url": vrt.format(url),
        "vrt-bom": "\ufeff" + vrt.format(raw),
        "gti": "<GDALTileIndexDataset><IndexDataset>/etc/passwd</IndexDataset></GDALTileIndexDataset>",
        "wms": '<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1:9/</ServerUrl></Service></GDAL_WMS>',
        "stac": '{"type": "Feature", "stac_version": "1.0.0", "assets": {"a": {"href": "http://127.0.0.1:9"}}}',
        "gdalg": '{"type": "gdal_streamed_alg", "command_line": "gdal raster read /etc/passwd"}',
        "pdf": "%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF",
        "html": "<!DOCTYPE html><html>404</html>",
        "ascii-grid": "ncols 4\nnrows 4\nxllcorner 0\nyllcorner 0\ncellsize 1\n" + "1 2 3 4\n" * 4,
        "envi": "ENVI\nsamples = 8\nlines = 8\nbands = 1\ndata type = 1\n",
        "script": "#!/bin/sh\ntouch /tmp/x\n",
        "svg": "<svg/>",
        "world": "10\n0\n0\n-10\n0\n0\n",
        "pointer": "version https://git-lfs.github.com/spec/v1\n",
    }
    for name, text in texts.items():
        kind.bytes(name, text.encode(), REFUSED)
        kind.bytes(f"{name}-behind-magic", b"II*\0" + text.encode(), REFUSED)
    starts = {
        "png": b"\x89PNG\r\n\x1a\n",
        "gzip": b"\x1f\x8b\x08",
        "zip": b"PK\x03\x04",
        "hdf5": b"\x89HDF\r\n\x1a\n",
        "elf": b"\x7fELF",
        "nitf": b"NITF02.10",
        "grib": b"GRIB",
        "netcdf": b"CDF\x01",
        "jpeg": b"\xff\xd8\xff\xe0",
        "tar": bytes(257) + b"ustar",
        "sqlite": b"SQLite format 3\0",
        "zarr": b"\x02\x01\x21\x02",
        "npy": b"\x93NUMPY",
        "utf16-tiff": b"I\0I\0*\0\0\0",
    }
    for name, start in starts.items():
        kind.bytes(name, start + bytes(range(256)) * 8, REFUSED)


def stand_ins(kind):
    """What is no regular file: links, pipes, sockets, devices, folders."""
    good = kind.raster("good", noise(1, 32, 32))
    for name, target in {
        "loop": "loop.tif",
        "dangling": "nowhere.tif",
        "zero": "/dev/zero",
        "null": "/dev/null",
        "above": "..",
        "itself": ".",
    }.items():
        path = kind.place(f"{name}.tif")
        path.symlink_to(target)
        kind.add(path, REFUSED)
    (path := kind.place("link.tif")).symlink_to(good)
    kind.add(path, PIXELS)
    os.mkfifo(path := kind.place("pipe.tif"))
    kind.add(path, REFUSED)
    with socket.socket(socket.AF_UNIX) as server:
        at = os.getcwd()
        os.chdir(path.parent)  # the address is a short field
        server.bind("socket.tif")
        os.chdir(at)
    kind.add(path.parent / "socket.tif", REFUSED)
    (path := kind.place("folder.tif")).mkdir()
    kind.add(path, REFUSED)
    for name in (
        "line\nbreak.tif",
        "\udcff\udcfe.tif",
        "x" * 251 + ".tif",
        " .tif",
        "-a.tif",
        "a?b=c&d#e.tif",
        "a%2fb.tif",
        "a!b.tif",
    ):
        path = kind.place(name)
        path.write_bytes(good.read_bytes())
        kind.add(path)
    kind.add(kind.folder / ("y" * 300), REFUSED)
    kind.add(kind.folder / "/".join(["z"] * 3000), REFUSED)


def changing(kind):
    """Files that go, shrink or become others after their header was read."""
    for change in ("delete", "empty", "halve", "smaller", "other-type", "pipe", "text"):
        for cached in ("", "-reopened"):
            kind.raster(f"{change}{cached}", noise(1, 64, 64), None, change + cached)


def sidecars(kind):
    """Good images without a place, beside files that would give them another place, nodata or mask."""
    pam = (
        '<PAMDataset><GeoTransform>5,2,0,5,0,-2</GeoTransform><PAMRasterBand band="1"><NoDataValue>{}</NoDataValue>'
        "</PAMRasterBand></PAMDataset>"
    )
    pixels = noise(1, 32, 32)
    vrt = (
        b'<VRTDataset rasterXSize="32" rasterYSize="32"><Metadata><MDI key="INTERNAL_MASK_FLAGS_1">2</MDI></Metadata>'
        b'<VRTRasterBand dataType="Byte" band="1"/></VRTDataset>'
    )
    nowhere = {"crs": None, "transform": None}
    beside = {
        ".tif.aux.xml": pam.format(pixels[0, 0, 0]).encode(),
        ".tif.ovr": vrt,
        ".tif.msk": vrt,
        ".tfw": b"2\n0\n0\n-2\n5\n5\n",
        ".aux": b"EHFA_HEADER_TAG\0" + bytes(64),
        ".tif.vat.dbf": bytes(64),
        "_RPC.TXT": b"LINE_OFF: nan\n",
        ".IMD": b"BEGIN_GROUP\n",
        ".rrd": bytes(64),
        ".tab": b'!table\nDefinition Table\n  File "/etc/passwd"\n',
        ".wld": b"2\n0\n0\n-2\n5\n5\n",
        ".XML": b"<a>" * 50_000,
    }
    for number, (ending, data) in enumerate(beside.items()):
        path = kind.raster(f"image{number}", pixels, **nowhere)
        Path(str(path.with_suffix("")) + ending).write_bytes(data)
    path = kind.raster("mask", pixels, **nowhere)
    with rasterio.open(write(Path(f"{path}.msk"), np.zeros((1, 32, 32), np.uint8)), "r+") as mask:
        mask.update_tags(INTERNAL_MASK_FLAGS_1="2")
    path = kind.raster("overview", pixels, **nowhere)
    write(Path(f"{path}.ovr"), np.zeros((1, 16, 16), np.uint16))


def folders(kind):
    """One file per band, one of them bad or not of the same place."""
    pixels, affine = noise(1, 64, 64), rasterio.Affine
    others = {
        "far": {"transform": affine(10, 0, 1e300, 0, -10, 0)},
        "needles": {"transform": affine(1e-3, 0, 500_000, 0, -1e9, 5_000_000)},
        "tiny": {"transform": affine(1e-150, 0, 500_000, 0, -1e-150, 5_000_000)},
        "turned": {"transform": affine(8, 6, 500_000, 6, -8, 5_000_000)},
        "vast": {"transform": affine(1e150, 0, 500_000, 0, -1e150, 5_000_000)},
        "other-crs": {"crs": "EPSG:4326"},
        "no-crs": {"crs": None},
        "mirrored": {"transform": affine(-10, 0, 500_640, 0, 10, 4_999_360)},
        "no-place": {"crs": None, "transform": None},
    }
    for name, profile in others.items():
        for band, own in (("B02", {}), ("B03", profile)):
            write(kind.place(f"{name}/{band}.tif"), pixels, **own)
        kind.add(kind.folder / name)
    contents = {
        "text": b"<VRTDataset/>",
        "cut": b"II*\0" + bytes(100),
        "empty": b"",
        "sparse": tiff(tiled(2**17, 2**17, 512, 512, tags={tags.TILE_OFFSETS: 0, tags.TILE_BYTES: 0})),
        "square": tiff(tiled(5000, 5000, 512, 512, tags={tags.TILE_OFFSETS: 0, tags.TILE_BYTES: 0})),
        "line": tiff(tiled(2**20, 16, 512, 512, tags={tags.TILE_OFFSETS: 0, tags.TILE_BYTES: 0})),
    }
    for name, data in contents.items():
        write(kind.place(f"{name}/B02.tif"), pixels, crs=None, transform=None)
        kind.place(f"{name}/B03.tif").write_bytes(data)
        kind.add(kind.folder / name)
    for name in ("pipe", "loop"):
        write(kind.place(f"{name}/B02.tif"), pixels)
        path = kind.place(f"{name}/B03.tif")
        os.mkfifo(path) if name == "pipe" else path.symlink_to(path)
        kind.add(path.parent, REFUSED)
