# SPDX-License-Identifier: Apache-2.0
"""Headers that lie, loop, or say where an image is in no usable way: TIFF, JPEG 2000, ENVI, product metadata."""

from __future__ import annotations

import os
import struct

import rasterio

from tests.data.hostile import layouts as tags
from tests.data.hostile.cases import PIXELS, REFUSED
from tests.data.hostile.layouts import Entry, box, doubles, image, jp2, tiff
from tests.data.rasters import noise, write

NAMES = ["B02", "B03", "B04"]


def places(kind):
    """Coordinate systems and geotransforms that are missing, turned, flat or no numbers."""
    pixels = noise(3, 32, 32)
    affine = rasterio.Affine
    kind.raster("no-crs", pixels, descriptions=NAMES, crs=None)
    kind.raster("nothing", pixels, descriptions=NAMES, crs=None, transform=None)
    kind.raster("turned", pixels, descriptions=NAMES, transform=affine(8, 6, 0, 6, -8, 0))
    kind.raster("south-up", pixels, descriptions=NAMES, transform=affine(10, 0, 0, 0, 10, 0))
    nan, inf = float("nan"), float("inf")
    for number, scale in enumerate(
        [(0, 0), (0, 1), (nan, nan), (inf, inf), (1e308, 1e308), (1e-320, 1e-320), (-1, -1)]
    ):
        entries = {tags.PIXEL_SCALE: doubles(*scale, 0), tags.TIE_POINTS: doubles(0, 0, 0, 1, 1, 0)}
        kind.bytes(f"scale-{number}", tiff(image(tags=entries)))
        matrix = [scale[0], scale[1], 0, nan, scale[0], scale[1], 0, 5, 0, 0, 0, 0, 0, 0, 0, 1]
        kind.bytes(f"matrix-{number}", tiff(image(tags={tags.TRANSFORM: doubles(*matrix)})))
    for number, keys in enumerate(
        [
            (1, 1, 0, 65_535),
            (9, 9, 9, 9),
            (1, 1, 0, 1, 3072, 0, 1, 60_000),
            (1, 1, 0, 2, 1024, 34_737, 65_535, 65_535, 3072, 34_736, 9, 60_000),
            (1, 1, 0, 1, 3072, 0, 1, 32_767),
        ]
    ):
        entry = Entry(3, len(keys), struct.pack(f"<{len(keys)}H", *keys))
        more = {tags.GEO_KEYS: entry, 34_736: doubles(nan, inf), 34_737: "PCS Name = /vsicurl/http://127.0.0.1|" * 200}
        kind.bytes(f"keys-{number}", tiff(image(tags=more)))
    points = {tags.TIE_POINTS: doubles(*([0.0] * 6 * 5000))}
    kind.bytes("control-points", tiff(image(tags=points)))


def structures(kind):
    """Directories that loop, lie about their length, or point where they should not."""
    plain = image()
    for big in (False, True):
        kind.bytes(f"self-{big}", tiff(plain, big=big, next_of_last="self"))
        kind.bytes(f"loop-{big}", tiff(plain, plain, plain, big=big, next_of_last="first"))
        kind.bytes(f"chain-{big}", tiff(*[plain] * 5000, big=big))
        kind.bytes(f"beyond-{big}", tiff(plain, big=big, next_of_last=0x7FFFFFFF))
        top = 2**64 - 1 if big else 2**32 - 1
        for tag in (
            tags.BITS,
            tags.DESCRIPTION,
            tags.STRIP_OFFSETS,
            tags.STRIP_BYTES,
            tags.SUB_IFDS,
            tags.GEO_KEYS,
            tags.METADATA,
            tags.NODATA,
            tags.TIE_POINTS,
            tags.EXIF,
            320,
            338,
            347,
            700,
            34_675,
            34_377,
            50_909,
        ):
            for count in (0, 10**6, 2**31, top):
                for type_ in (2, 4):
                    entry = Entry(type_, count, struct.pack("<Q" if big else "<I", 8))
                    kind.bytes(f"count-{tag}-{count}-{type_}-{big}", tiff(image(tags={tag: entry}), big=big))
    for type_ in (0, 5, 12, 13, 16, 99, 65_535):
        kind.bytes(f"type-{type_}", tiff(image(tags={tags.WIDTH: Entry(type_, 1, b"\x10\0\0\0")})))
    for name, offset in {"header": 0, "beyond": 2**31, "end": 2**32 - 1, "directory": 520}.items():
        kind.bytes(f"offset-{name}", tiff(image(tags={tags.STRIP_OFFSETS: offset})))
    overlapping = {tags.ROWS_PER_STRIP: 1, tags.STRIP_OFFSETS: (8,) * 16, tags.STRIP_BYTES: (512,) * 16}
    kind.bytes("overlapping", tiff(image(tags=overlapping)))
    kind.bytes("long-strip", tiff(image(tags={tags.STRIP_BYTES: 2**32 - 1, tags.COMPRESSION: 5})))
    kind.bytes("unsorted", tiff(dict(reversed(plain.items()))))
    kind.bytes("entries", b"II*\0" + struct.pack("<IH", 8, 65_535) + bytes(12))
    kind.bytes("sub-loop", tiff(image(tags={tags.SUB_IFDS: (8, 8, 520), tags.EXIF: 520}), pixels=bytes(512)))
    metadata = {
        "laughs": '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><GDALMetadata>&b;</GDALMetadata>',
        "file": '<!DOCTYPE a [<!ENTITY a SYSTEM "/etc/passwd">]><GDALMetadata><Item name="A">&a;</Item></GDALMetadata>',
        "deep": "<GDALMetadata>" + "<Item>" * 50_000,
        "long": f'<GDALMetadata><Item name="{"x" * 10**6}">1</Item></GDALMetadata>',
        "sample": '<GDALMetadata><Item name="DESCRIPTION" sample="9999999" role="description">B</Item></GDALMetadata>',
        "scale": '<GDALMetadata><Item name="SCALE" sample="0" role="scale">nan</Item></GDALMetadata>',
        "many": "<GDALMetadata>" + '<Item name="a" sample="0">1</Item>' * 20_000 + "</GDALMetadata>",
    }
    for name, text in metadata.items():
        kind.bytes(f"metadata-{name}", tiff(image(tags={tags.METADATA: text})))
    text = b'<GDALMetadata><Item name="DESCRIPTION" sample="0" role="description">\xff\xfe\xc3</Item></GDALMetadata>\0'
    kind.bytes("metadata-no-text", tiff(image(tags={tags.METADATA: Entry(2, len(text), text)})))


def jpeg2000(kind):
    """The same lies in JPEG 2000."""
    for width, height in ((0, 64), (2**31 - 1, 2**31 - 1), (2**32 - 1, 1), (10**6, 10**6), (30_000, 30_000), (64, 64)):
        for tile in (0, 1, 64, 2**31):
            kind.bytes(f"{width}x{height}-{tile}", jp2(width, height, tile, tile))
    for components in (0, 3, 1025, 16_384, 65_535):
        kind.bytes(f"components-{components}", jp2(components=components))
    for number, length in enumerate((0, 1, 2, 7, 2**31, 2**32 - 1)):
        kind.bytes(f"box-{number}", jp2(boxes=box(b"xml ", b"<a/>", length)))
    nested = b"".join(struct.pack(">I", 8 * (5000 - depth)) + b"asoc" for depth in range(5000))
    kind.bytes("nested", jp2(boxes=nested))
    gml = b'<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a"><gml:FeatureCollection>&a;</gml:FeatureCollection>'
    label = box(b"lbl ", b"gml.data")
    kind.bytes(
        "gml", jp2(boxes=box(b"asoc", label + box(b"asoc", box(b"lbl ", b"gml.root-instance") + box(b"xml ", gml))))
    )
    geo = bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03")
    kind.bytes("geo", jp2(boxes=box(b"uuid", geo + tiff(image(0, 0), next_of_last="first"))))
    for name, stream in {"none": b"", "start": b"\xff\x4f", "rubbish": b"\xff\x4f" + b"\xff" * 5000}.items():
        kind.bytes(f"stream-{name}", jp2(codestream=stream))
        kind.bytes(f"bare-{name}", b"\xff\x4f\xff\x51" + stream)


def envi(kind):
    """Headers whose text names other files, lies about sizes, or takes a careless pattern for ever."""
    good = (
        "ENVI\nsamples = 8\nlines = 8\nbands = 1\ndata type = 12\ninterleave = bsq\nbyte order = 0\n"
        "map info = {UTM,1,1,0,0,10,10,33,North}\n"
    )
    headers = {
        "good": good,
        "short": good.replace("lines = 8", "lines = 9"),
        "zero": good.replace("bands = 1", "bands = 0"),
        "many": good.replace("bands = 1", "bands = 99999"),
        "huge": good.replace("samples = 8", "samples = 999999999999"),
        "huger": good.replace("lines = 8", "lines = 99999999999999999999"),
        "minus": good.replace("lines = 8", "lines = -8"),
        "offset": good + "header offset = 99999999999999999\n",
        "back": good + "header offset = -8\n",
        "type": good.replace("type = 12", "type = 6"),
        "no-type": good.replace("type = 12", "type = /etc/passwd"),
        "file": good + "data file = /etc/passwd\n",
        "url": good + "data file = http://127.0.0.1:9/a\n",
        "twice": good + "samples = 4\nsamples = 800\n",
        "map": good.replace("10,10,33", "nan,0,99"),
        "unclosed": good + "wavelength = {" + "1," * 3 * 10**5,
        "spaces": good + "a" + " " * 3 * 10**5 + "b",
        "lines": good + "\n" * 3 * 10**5,
        "equals": good + "a = " + " b" * 3 * 10**5 + "\0",
        "fields": good + "a = {\n" * 10**5,
        "words": good + "a " * 3 * 10**5,
        "nul": good + "\0" * 1000,
        "long": good + ";" * (5 << 20),
        "compressed": good + "file compression = 1\n",
        "waves": good + "wavelength = {nan, inf, 1e999}\nfwhm = {-1}\nbbl = {2}\nwavelength units = {}\n",
        "nodata": good + "data ignore value = 1e999\n",
    }
    for name, text in headers.items():
        path = kind.place(f"{name}.hdr")
        path.write_text(text)
        path.with_suffix(".img").write_bytes(noise(1, 8, 8).tobytes())
        kind.add(path, PIXELS if name == "good" else None)
    for name, target in {"link": "/etc/passwd", "pipe": None}.items():
        path = kind.place(f"{name}.hdr")
        path.write_text(good)
        data = path.with_suffix(".img")
        data.symlink_to(target) if target else os.mkfifo(data)
        kind.add(path, REFUSED)


def products(kind):
    """Product folders whose metadata grow without end, or are no metadata."""
    doctype = '<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><a>&a;</a>'
    safe = "<a><QUANTIFICATION_VALUE>{}</QUANTIFICATION_VALUE><PROCESSING_BASELINE>{}</PROCESSING_BASELINE>{}</a>"
    offset = '<RADIO_ADD_OFFSET band_id="{}">{}</RADIO_ADD_OFFSET>'
    xml = {
        "good": safe.format(10000, "05.00", offset.format(1, -1000)),
        "entity": doctype,
        "own-entity": '<!DOCTYPE a [<!ENTITY q "10000">]>' + safe.format("&q;", "05.00", ""),
        "text": "no XML",
        "empty": "",
        "deep": "<a>" * 10**6,
        "deeper": "<a>" * 10**5 + "</a>" * 10**5,
        "wide": f"<a>{'<b/>' * 10**6}</a>",
        "long": "<a>" + " " * (5 << 20) + "</a>",
        "words": safe.format("ten", "x", ""),
        "zero": safe.format(0, "05.00", ""),
        "inf": safe.format("inf", "05.00", ""),
        "band": safe.format(1, "05.00", offset.format(10**9, -1)),
        "bands": safe.format(1, "99.99", offset.format("²", "nan")),
        "attributes": "<a " + " ".join(f'a{i}="1"' for i in range(10**5)) + "/>",
        "nul": "<a>\0</a>",
        "long-name": f"<{'a' * 10**6}/>",
    }
    mtl = {
        "lines": "\n" * 10**6,
        "spaces": "A = " + " " * 10**6 + "x",
        "quotes": 'A = "' + '"' * 10**6 + "x",
        "groups": "GROUP = A\n" * 10**5,
        "ends": "END_GROUP = A\n" * 10**5,
        "deep": "[" * 10**5,
        "null": "null",
        "other": '{"LANDSAT_METADATA_FILE": [1]}',
        "numbers": '{"LANDSAT_METADATA_FILE": {"IMAGE_ATTRIBUTES": {"SPACECRAFT_ID": ' + "9" * 10**5 + "}}}",
    }
    pixels = noise(1, 32, 32)
    for name, text in xml.items():
        for band in ("B02", "B03"):
            write(kind.place(f"safe-{name}/T32TQM_20210101T100000_{band}.tif"), pixels)
        kind.place(f"safe-{name}/MTD_MSIL1C.xml").write_text(text)
        kind.add(kind.folder / f"safe-{name}", {"good": PIXELS, "own-entity": REFUSED}.get(name))
    for name, text in mtl.items():
        ending = "json" if text[0] in "{[n" else "txt"
        write(kind.place(f"landsat-{name}/LC08_L1TP_1_B2.TIF"), pixels)
        kind.place(f"landsat-{name}/LC08_L1TP_1_MTL.{ending}").write_text(text)
        kind.add(kind.folder / f"landsat-{name}", REFUSED)
