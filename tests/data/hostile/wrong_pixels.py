# SPDX-License-Identifier: Apache-2.0
"""Files whose pixels are damaged, too many, of no known type, or no numbers."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
import rasterio

from tests.data.hostile import layouts as tags
from tests.data.hostile.cases import PIXELS, REFUSED
from tests.data.hostile.layouts import Entry, image, tiff, tiled
from tests.data.rasters import noise

CODECS = {
    "raw": {},
    "lzw": {"compress": "lzw"},
    "zstd": {"compress": "zstd"},
    "deflate": {"compress": "deflate", "tiled": True, "blockxsize": 32, "blockysize": 32},
    "jp2": {"driver": "JP2OpenJPEG", "quality": 100, "reversible": True},
}
NAMES = ["B02", "B03", "B04"]


def damaged(kind):
    """Nothing, 200 truncations, 100 flipped bits anywhere and 100 in headers."""
    for size in range(5):
        kind.bytes(f"empty-{size}", b"II*\0"[:size], REFUSED)
    for codec, profile in CODECS.items():
        path = kind.raster(codec, noise(3, 64, 64), **profile)  # pixels last, so that every cut loses some
        data = path.read_bytes()
        rng = np.random.default_rng(len(data))
        for number, keep in enumerate(np.linspace(5, len(data) - 1, 40).astype(int).tolist()):
            kind.bytes(f"truncated-{codec}-{number}", data[:keep], REFUSED)
        for number in range(40):
            flipped = bytearray(data)
            place = int(rng.integers(len(data) if number % 2 else min(600, len(data))))
            flipped[place] ^= 1 << int(rng.integers(8))
            kind.bytes(f"flipped-{codec}-{number}", flipped)


def counts(kind):
    """Band counts beyond reason, and ones that the other entries contradict."""
    for samples in (0, 1025, 60_000, 65_529, 65_535):
        kind.bytes(f"{samples}", tiff(image(samples=samples)), REFUSED)
    for samples in (1024, 65_529):  # a value for each band, and planes apart
        bits = Entry(3, samples, struct.pack("<H", 16) * samples)
        extra = {tags.BITS: bits, tags.PLANAR: 2, tags.STRIP_OFFSETS: (8,) * samples, tags.STRIP_BYTES: (32,) * samples}
        kind.bytes(f"planes-{samples}", tiff(image(4, 4, samples=samples, tags=extra)))
    for samples, bits in ((2, 1), (2, 3), (4, 3), (1, 2)):
        entry = Entry(3, bits, struct.pack("<H", 16) * bits)
        kind.bytes(f"{samples}-for-{bits}", tiff(image(samples=samples, tags={tags.BITS: entry})))


def types(kind):
    """Every kind of pixel there is, and some that there are not."""
    for name in ("uint8", "int8", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"):
        kind.raster(name, np.arange(1, 4097).reshape(1, 64, 64).astype(name))
    for name in ("complex64", "complex128"):
        kind.raster(name, np.ones((1, 8, 8), name), REFUSED)
    path = kind.place("complex_int16.tif")
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=8,
        height=8,
        count=1,
        dtype="complex_int16",
        transform=rasterio.Affine(10, 0, 0, 0, -10, 0),
    ) as file:
        file.write(np.ones((1, 8, 8), np.complex64))
    kind.add(path, REFUSED)
    for bits in (0, 1, 2, 4, 7, 12, 16, 24, 31, 32, 63, 64, 128, 65_535):
        for sample_format in (1, 2, 3, 4, 5, 6, 99):
            odd = {tags.SAMPLE_FORMAT: sample_format}
            kind.bytes(f"{bits}-bits-{sample_format}", tiff(image(bits=bits, tags=odd), pixels=bytes(8192)))
    for compression in (2, 3, 4, 6, 7, 32_773, 34_661, 34_712, 34_887, 34_925, 50_001, 50_002, 65_000):
        odd = {tags.COMPRESSION: compression}
        kind.bytes(f"codec-{compression}", tiff(image(64, 64, bits=8, tags=odd), pixels=bytes(range(256)) * 16))
    for photometric in (0, 2, 3, 5, 6, 8, 32_803, 65_535):
        odd = {tags.PHOTOMETRIC: photometric, 530: (3, 5), 320: Entry(3, 1 << 20, struct.pack("<I", 8))}
        kind.bytes(f"photometric-{photometric}", tiff(image(samples=3, bits=8, tags=odd), pixels=bytes(4096)))


def sizes(kind):
    """Widths and heights of nothing, and of more than any machine holds."""
    big = 2**31 - 1
    claims = [
        (0, 16),
        (16, 0),
        (0, 0),
        (big, big),
        (big + 1, 1),
        (2**32 - 1, 2**32 - 1),
        (10**6, 10**6),
        (1, 2**32 - 1),
    ]
    for width, height in claims:
        kind.bytes(f"{width}x{height}", tiff(image(width, height)), REFUSED)
    for width, height in ((big, 1), (1, big), (2**20, 2**14), (2**17, 2**17), (2**18, 512), (30_000, 30_000)):
        kind.bytes(f"{width}x{height}", tiff(image(width, height)))
        rows = {tags.ROWS_PER_STRIP: 1, tags.STRIP_OFFSETS: 0, tags.STRIP_BYTES: 0}
        kind.bytes(f"{width}x{height}-sparse-rows", tiff(image(width, height, tags=rows)))
        kind.bytes(f"{width}x{height}-tiles", tiff(tiled(width, height, 512, 512)))
        sparse = tiled(width, height, 512, 512, tags={tags.TILE_OFFSETS: 0, tags.TILE_BYTES: 0})
        kind.bytes(f"{width}x{height}-sparse", tiff(sparse), REFUSED)
        kind.bytes(f"{width}x{height}-sparse-big", tiff(sparse, big=True), REFUSED)
    empty = {tags.TILE_OFFSETS: (0,) * 65_536, tags.TILE_BYTES: (0,) * 65_536}  # bytes enough for what it claims
    kind.bytes("long-rows", tiff(tiled(2**20, 4096, 4096, 16, tags=empty)), PIXELS)
    kind.bytes("longer-rows", tiff(tiled(2**23, 512, 2048, 32, tags=empty)), REFUSED)
    for samples in (12, 300, 1024):
        sparse = {tags.TILE_OFFSETS: 0, tags.TILE_BYTES: 0, tags.PLANAR: 2}
        kind.bytes(f"{samples}-bands", tiff(tiled(2**15, 2**15, 512, 512, samples=samples, tags=sparse)))


def blocks(kind):
    """Tiles and strips that take gigabytes to read one pixel."""
    for width, height in ((2**30, 2**30), (2**30, 16), (32_768, 32_768), (16, 2**30), (2**20, 2**12), (8192, 8192)):
        for bits in (8, 32):
            for compression in (1, 5, tags.ADOBE_DEFLATE):
                entries = tiled(1, 1, width, height, bits=bits, tags={tags.COMPRESSION: compression})
                outcome = None if width == 8192 and bits == 8 else REFUSED
                kind.bytes(f"tile-{width}x{height}-{bits}-{compression}", tiff(entries), outcome)
    for side in (0, 1, 3, 17):
        kind.bytes(f"tile-{side}", tiff(tiled(64, 64, side, side)))
    for compression in (1, 5, tags.ADOBE_DEFLATE, tags.ZSTD):
        entries = image(30_000, 30_000, tags={tags.COMPRESSION: compression})
        kind.bytes(f"strip-{compression}", tiff(entries), REFUSED)
    many = tiled(1, 1, 2048, 2048, samples=64)
    kind.bytes("pixel-interleaved", tiff(many), REFUSED)


def bombs(kind):
    """A few kilobytes that unpack to hundreds of megabytes, within what the header says and beyond it."""
    side, tile = 16_384, 4096
    for fill in (0, 1):  # no data, and data
        data = zlib.compress(bytes([fill]) * (tile * tile * 2), 9)
        number = (side // tile) ** 2
        whole = {tags.COMPRESSION: tags.ADOBE_DEFLATE, tags.TILE_BYTES: (len(data),) * number}
        kind.bytes(f"deflate-{fill}", tiff(tiled(side, side, tile, tile, number, tags=whole), pixels=data))
        over = {tags.COMPRESSION: tags.ADOBE_DEFLATE, tags.STRIP_BYTES: len(data)}
        kind.bytes(f"deflate-over-{fill}", tiff(image(16, 16, tags=over), pixels=data))
    kind.raster(
        "zstd", np.ones((1, 8192, 8192), np.uint8), None, compress="zstd", tiled=True, blockxsize=2048, blockysize=2048
    )
    kind.raster("lzw", np.ones((1, 4096, 4096), np.uint8), None, compress="lzw", tiled=True)


def values(kind):
    """Pixels that are no numbers, no data, or no numbers that fit."""
    for fill in (np.nan, np.inf, -np.inf, 3e38, 1e-40):
        kind.raster(f"all-{fill}", np.full((3, 32, 32), fill, np.float32), descriptions=NAMES)
    kind.raster("beyond-float32", np.full((1, 32, 32), 1e300))
    for fill, nodata in ((7, 7), (0, None), (65_535, 65_535), (7, 0)):
        pixels = np.full((3, 32, 32), fill, np.uint16)
        kind.raster(f"all-{fill}-nodata-{nodata}", pixels, descriptions=NAMES, nodata=nodata)
    for dtype in ("uint8", "int16", "uint16", "float32", "float64", "int64"):
        path = kind.raster(f"whole-{dtype}", np.ones((1, 16, 16), dtype), nodata=1)
        data = path.read_bytes()
        for number, text in enumerate((b"-9", b"1e", b"na", b"\xff\xfe", b"99", b"0x", b"- ", b"\0\0")):
            kind.bytes(f"nodata-{dtype}-{number}", data.replace(b"1\0", text, 1) if data.count(b"1\0") else data)
        for text in ("-9999", "70000", "1e400", "-inf", "nan", "1.5", "99999999999999999999999", "x" * 5000, "-" * 300):
            bits, sample_format = {"u": (16, 1), "i": (16, 2), "f": (32, 3)}[np.dtype(dtype).kind]
            entries = image(bits=bits, tags={tags.SAMPLE_FORMAT: sample_format, tags.NODATA: text})
            kind.bytes(f"nodata-{dtype}-{text[:9]}", tiff(entries, pixels=bytes(range(256)) * 4))


def stacks(kind):
    """Pages that are to be one array by the description of the first, but do not lie so."""
    plain, deep = image(4, 4), [image(4, 4)] * 1999
    for rows, columns, bands in (
        (0, 4, 4),
        (1, 4, 4),
        (2, 4, 4),
        (2000, 4, 4),
        (9999, 4, 4),
        (1, 99_999, 9999),
        (3, 0, 0),
    ):
        first = {**plain, tags.DESCRIPTION: f'{{"shape": [{rows}, {columns}, {bands}]}}'}
        kind.bytes(f"one-{rows}-{columns}-{bands}", tiff(first))
        kind.bytes(f"loop-{rows}-{columns}-{bands}", tiff(first, plain, next_of_last="first"))
        if rows >= 2000:
            kind.bytes(f"many-{rows}-{columns}-{bands}", tiff(first, *deep))


def pictures(kind):
    """PNG label pictures: bombs, cuts, lies."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    def png(width, height, bits=8, colour=0, data=b"", more=b""):
        header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
        parts = chunk(b"IHDR", header) + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + parts

    zeros = [zlib.compress(bytes(size), 9) for size in (72, 16_385 * 16_384)]
    contents = {
        "good": png(8, 8, data=zeros[0]),
        "bomb": png(16_384, 16_384, data=zeros[1]),
        "over": png(8, 8, data=zeros[1]),
        "text": png(8, 8, data=zeros[0], more=chunk(b"zTXt", b"a\0\0" + zeros[1])),
        "profile": png(8, 8, data=zeros[0], more=chunk(b"iCCP", b"a\0\0" + zeros[1])),
        "cut": png(64, 64, data=zeros[0][:6]),
        "vast": png(2**31 - 1, 2**31 - 1),
        "negative": png(2**31, 5),
        "nothing": png(0, 0),
        "deep": png(16_384, 16_384, 16, 6, data=zeros[1]),
        "no-colours": png(8, 8, 8, 3, data=zeros[0]),
        "magic": b"\x89PNG\r\n\x1a\n",
        "tiff": tiff(image()),
        "empty": b"",
    }
    for name, data in contents.items():
        path = kind.place(f"{name}.png")
        path.write_bytes(data)
        kind.add(path, PIXELS if name in ("good", "text", "profile") else REFUSED)
    os.mkfifo(path := kind.place("pipe.png"))
    kind.add(path, REFUSED)
