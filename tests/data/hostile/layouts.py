# SPDX-License-Identifier: Apache-2.0
"""TIFF and JPEG 2000 files put together byte by byte, because no library writes a wrong one.

Directory entries are given by tag number. An int is one LONG, a tuple several, text is ASCII, and `Entry` is
whatever it says, so a count may claim more values than there are bytes.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION = 256, 257, 258, 259, 262, 270
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, PLANAR = 273, 277, 278, 279, 284
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES, SUB_IFDS, SAMPLE_FORMAT = 322, 323, 324, 325, 330, 339
PIXEL_SCALE, TIE_POINTS, TRANSFORM, GEO_KEYS, EXIF = 33550, 33922, 34264, 34735, 34665
METADATA, NODATA = 42112, 42113
PIXELS = object()  # an offset the builder fills in
ADOBE_DEFLATE, ZSTD = 8, 50000


class Entry(NamedTuple):
    """A directory entry as it stands in the file: type, claimed count, and the bytes of the values."""

    type: int
    count: int
    data: bytes


def doubles(*values):
    return Entry(12, len(values), struct.pack(f"<{len(values)}d", *values))


def image(width=16, height=16, bits=16, samples=1, **more):
    """The entries of a plain one-strip image; `more` is not checked against anything."""
    size = width * height * samples * ((bits + 7) // 8)
    size = size if size < 1 << 32 else 0xFFFFFFFF
    tags = {
        WIDTH: width, HEIGHT: height, BITS: bits, COMPRESSION: 1, PHOTOMETRIC: 1, STRIP_OFFSETS: PIXELS,
        SAMPLES: samples, ROWS_PER_STRIP: height, STRIP_BYTES: size,
    }  # fmt: skip
    return {**tags, **more.get("tags", {})}


def tiled(width, height, tile_width, tile_height, num_tiles=1, **more):
    """The entries of a tiled image, all tiles the same bytes."""
    tags = image(width, height, **more)
    for tag in (STRIP_OFFSETS, ROWS_PER_STRIP, STRIP_BYTES):
        del tags[tag]
    return {
        **tags, TILE_WIDTH: tile_width, TILE_HEIGHT: tile_height, TILE_OFFSETS: (PIXELS,) * num_tiles,
        TILE_BYTES: (64,) * num_tiles, **more.get("tags", {}),
    }  # fmt: skip


def tiff(*directories, pixels=bytes(512), big=False, next_of_last=0):
    """A little-endian TIFF: header, pixels, then each directory with its values behind it.

    Args:
        directories: entries by tag.
        pixels: stands right behind the header.
        big: BigTIFF.
        next_of_last: where the last directory says that the next one is; "first" or "self" make loops.
    """
    word, head = ("Q", 16) if big else ("I", 8)
    start = head + len(pixels)
    first, body, position = start, b"", start
    for number, tags in enumerate(directories):
        block, values = _directory(tags, position, head, word)
        after = position + len(block) + struct.calcsize(word) + len(values)
        last = {"first": first, "self": position}.get(next_of_last, next_of_last)
        body += block + struct.pack(f"<{word}", after if number + 1 < len(directories) else last) + values
        position = after
    header = b"II+\0" + struct.pack("<HHQ", 8, 0, first) if big else b"II*\0" + struct.pack("<I", first)
    return header + pixels + body


def _directory(tags, position, pixels_at, word):
    size = struct.calcsize(word)
    count = struct.pack("<Q" if size == 8 else "<H", len(tags))
    values_at = position + len(count) + len(tags) * (4 + 2 * size) + size
    block, values = count, b""
    for tag, value in tags.items():
        kind, number, data = _entry(value, pixels_at)
        block += struct.pack(f"<HH{word}", tag, kind, number)
        if len(data) <= size:
            block += data.ljust(size, b"\0")
        else:
            block += struct.pack(f"<{word}", values_at + len(values))
            values += data + b"\0" * (len(data) % 2)
    return block, values


def _entry(value, pixels_at):
    if isinstance(value, Entry):
        return value
    if isinstance(value, str):
        return Entry(2, len(value) + 1, value.encode() + b"\0")
    numbers = [
        pixels_at if number is PIXELS else number for number in (value if isinstance(value, tuple) else (value,))
    ]
    return Entry(4, len(numbers), struct.pack(f"<{len(numbers)}I", *numbers))


def jp2(width=64, height=64, tile_width=64, tile_height=64, components=1, boxes=b"", codestream=None):
    """A JPEG 2000 file that is all header: SIZ, COD, QCD and one empty tile."""
    siz = struct.pack(">HIIIIIIIIH", 0, width, height, 0, 0, tile_width, tile_height, 0, 0, components)
    siz += b"\x0f\x01\x01" * min(components, 16384)
    stream = b"\xff\x4f" + _segment(0xFF51, siz)
    stream += _segment(0xFF52, bytes([0, 0, 0, 1, 0, 5, 4, 4, 0, 1])) + _segment(0xFF5C, bytes([0x40] + [0x88] * 16))
    stream += b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 14, 0, 1) + b"\xff\x93\xff\xd9"
    header = struct.pack(">IIHBBBB", height, width, components & 0xFFFF, 15, 7, 0, 0)
    colour = struct.pack(">BBBI", 1, 0, 0, 17)
    inner = box(b"ihdr", header) + box(b"colr", colour)
    return (
        b"\0\0\0\x0cjP  \r\n\x87\n" + box(b"ftyp", b"jp2 \0\0\0\0jp2 ") + box(b"jp2h", inner) + boxes
        + box(b"jp2c", stream if codestream is None else codestream)
    )  # fmt: skip


def box(kind, content, length=None):
    """A JPEG 2000 box, its length a lie if given."""
    return struct.pack(">I", len(content) + 8 if length is None else length) + kind + content


def _segment(marker, content):
    return struct.pack(">HH", marker, len(content) + 2) + content
