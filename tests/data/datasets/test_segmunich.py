# SPDX-License-Identifier: Apache-2.0
import json
import struct

import numpy as np
import pytest

from spectralgpt.data.datasets.segmunich import CODES, FILE_ORDER, SegMunich
from spectralgpt.errors import UserError
from tests.data.datasets import archives
from tests.data.rasters import write

PLAIN = {"crs": None, "transform": None}


def labels(size=32):
    """Every code of the table, in blocks."""
    return np.resize(np.repeat(list(CODES), 8), (size, size)).astype(np.uint8)


def archive(root, train=("1", "2"), test=("7",), size=32):
    for part, ids in (("train", train), ("test", test)):
        for id in ids:
            pixels = archives.cube(FILE_ORDER, size, size, seed=int(id), dtype=np.float32)
            write(root / part / "img" / f"{id}.tif", pixels, **PLAIN)
            archives.label_tif(root / part / "label" / f"{id}.tif", labels(size))
        (root / "dataset").mkdir(exist_ok=True)
        (root / "dataset" / f"{part}.txt").write_text("\n".join(ids) + "\n")
    return root


def tifffile_stack(path, array, moved=0):
    """What tifffile writes of an array `(H, W, C)`: H pages of W x C, their pixels in one block.

    The last page's pixels lie `moved` bytes further on.
    """
    height, width, bands = array.shape
    text = json.dumps({"shape": array.shape}).encode() + b"\0"
    page = width * bands * 4
    block = 8 + len(text) + len(text) % 2
    parts, position = [struct.pack("<2sHI", b"II", 42, block + height * page), text.ljust(block - 8, b"\0")], 0
    parts.append(array.astype("<f4").tobytes())
    for number in range(height):
        entries = [
            (256, 4, 1, bands), (257, 4, 1, width), (258, 3, 1, 32), (259, 3, 1, 1), (262, 3, 1, 1),
            *([(270, 2, len(text), 8)] if number == 0 else []),
            (273, 4, 1, block + number * page + moved * (number == height - 1)),
            (277, 3, 1, 1), (278, 4, 1, width), (279, 4, 1, page), (339, 3, 1, 3),
        ]  # fmt: skip
        position = block + height * page + sum(map(len, parts[3:]))
        following = 0 if number == height - 1 else position + 2 + 12 * len(entries) + 4
        directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
        parts.append(struct.pack("<H", len(entries)) + directory + struct.pack("<I", following))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(parts))


def test_bands_are_in_the_true_order_and_labels_13_classes(tmp_path):
    data = SegMunich(archive(tmp_path))
    record = data.read(1)
    assert (len(data), data.name(1), data.bands) == (2, "train/img/2.tif", FILE_ORDER)
    assert archives.levels(record) == archives.expected(FILE_ORDER) and record.pixels.dtype == np.float32
    infrared = SegMunich(tmp_path, "test", ["nir", "B8A"]).read(0)
    assert archives.levels(infrared) == archives.expected(["B08", "B8A"])
    assert record.mask.dtype == np.uint8 and set(np.unique(record.mask)) == set(range(13))
    named = {int(code): data.classes[index] for code, index in zip(labels().flat, record.mask.flat, strict=True)}
    assert (
        named[21] == "Arable land"
        and named[5] == "Surface water"
        and named[11] == "Urban fabric"
        and named[0] == "Background"
    )
    assert len(data.colours) == 13 and len(data.plot(data[0]).get_axes()) == 2


def test_the_published_files_are_pages_of_tifffile(tmp_path):
    """GDAL sees 32 images of 32 x 10 pixels there."""
    archive(tmp_path)
    pixels = archives.cube(FILE_ORDER, 32, 32, seed=5, dtype=np.float32)
    tifffile_stack(tmp_path / "train" / "img" / "1.tif", np.moveaxis(pixels, 0, -1))
    record = SegMunich(tmp_path).read(0)
    np.testing.assert_array_equal(record.pixels, pixels)
    assert (record.valid, record.crs, record.transform) == (None, None, None)
    np.testing.assert_array_equal(record.low, pixels.min(axis=(1, 2)))
    swapped = SegMunich(tmp_path, bands=["B12", "B02"]).read(0)
    np.testing.assert_array_equal(swapped.pixels, pixels[[9, 0]])
    pixels[:, 3, 4] = np.nan
    tifffile_stack(tmp_path / "train" / "img" / "1.tif", np.moveaxis(pixels, 0, -1))
    record = SegMunich(tmp_path).read(0)
    assert (~record.valid).sum() == 10 and (record.pixels[:, 3, 4] == 0).all()


def test_pages_that_lie_elsewhere_or_have_other_bands(tmp_path):
    archive(tmp_path)
    path = tmp_path / "train" / "img" / "1.tif"
    tifffile_stack(path, np.ones((32, 32, 9), np.float32))
    with pytest.raises(UserError, match=r"expected 10 bands as the last axis, got \(32, 32, 9\)"):
        SegMunich(tmp_path).read(0)
    tifffile_stack(path, np.ones((32, 32, 10), np.float32), moved=4)
    with pytest.raises(UserError, match="expected 32 uncompressed pages, one after another"):
        SegMunich(tmp_path).read(0)
    tifffile_stack(path, np.ones((32, 32, 10), np.float32))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"shape": [32, 32, 10]', b'"shape": [16, 32, 10]'))
    with pytest.raises(UserError, match=r"1.tif"):
        SegMunich(tmp_path).read(0)
    path.write_bytes(whole.replace(b'"shape": [32, 32, 10]', b'"shape": [32, 64, 10]'))
    with pytest.raises(UserError, match="expected 32 uncompressed pages, one after another"):
        SegMunich(tmp_path).read(0)


def test_validation_tiles_lie_with_the_training_tiles(tmp_path):
    archive(tmp_path)
    with pytest.raises(UserError, match=r"val.txt: expected a text table, no such file"):
        SegMunich(tmp_path, "val")
    (tmp_path / "dataset" / "val.txt").write_text("2\n7\n\n")
    data = SegMunich(tmp_path, "val")
    assert [data.name(index) for index in range(2)] == ["train/img/2.tif", "test/img/7.tif"]


def test_what_is_wrong_is_named(tmp_path):
    archive(tmp_path)
    path = tmp_path / "train" / "label" / "1.tif"
    archives.label_tif(path, np.full((32, 32), 51))
    with pytest.raises(UserError, match=r"label/1.tif: expected class codes out of 0 21 .* 12, got 51 in 100 %"):
        SegMunich(tmp_path).read(0)
    archives.label_tif(path, np.zeros((32, 30)))
    with pytest.raises(UserError, match=r"expected labels of 32 x 32 pixels as the image, got \(32, 30\)"):
        SegMunich(tmp_path).read(0)
    archives.label_tif(path, np.full((32, 32), 0.5), np.float32)
    with pytest.raises(UserError, match="expected whole numbers as class codes, got fractions"):
        SegMunich(tmp_path).read(0)
    write(path, np.zeros((3, 32, 32), np.uint8), **PLAIN)
    with pytest.raises(UserError, match="expected one band of class codes, got 3"):
        SegMunich(tmp_path).read(0)
    path.unlink()
    with pytest.raises(UserError, match="expected a label raster, no such file"):
        SegMunich(tmp_path).read(0)
    with pytest.raises(UserError, match=r"bands: expected bands of SegMunich, B02 B03 B04 B08 .*, got B01 B10"):
        SegMunich(tmp_path, bands=["B01", "B02", "B10"])
    (tmp_path / "dataset" / "train.txt").write_text("1\n3\n")
    with pytest.raises(UserError, match="found 1 of 2 listed images, 3 is the first missing"):
        SegMunich(tmp_path)
    assert SegMunich(tmp_path, partial=True).notes == ["found 1 of 2 listed images, 3 is the first missing"]
    (tmp_path / "dataset" / "train.txt").write_text("1\n2\n1.tif\n")
    with pytest.raises(UserError, match=r"train.txt: expected every image once, 1 is there twice"):
        SegMunich(tmp_path)
    (tmp_path / "dataset" / "train.txt").write_text("../../etc/passwd\n")
    with pytest.raises(UserError, match="expected plain paths below this folder"):
        SegMunich(tmp_path)
