# SPDX-License-Identifier: Apache-2.0
"""No file crashes, stalls or bloats a reader: it gives a right tile, or one line that names the file.

The whole corpus runs in seconds. That the harness notices is shown with readers that lack a check.
"""

import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from spectralgpt.data import raster
from spectralgpt.data.bands import SENTINEL2
from spectralgpt.data.scene import Scene
from tests.data.hostile import wrong_files as files
from tests.data.hostile import wrong_headers as headers
from tests.data.hostile import wrong_pixels as pixels
from tests.data.hostile.cases import Kind
from tests.data.hostile.reader import PATIENCE, Reader
from tests.data.rasters import noise

MAX_SECONDS = 5.0  # of the processor; the slowest case takes 0.8 on one machine, and others are several times slower
MAX_EXTRA_MIB, MAX_MESSAGE = 200, 2000
KINDS = {  # and at least how many cases each has
    pixels.damaged: 410,
    pixels.counts: 11,
    pixels.types: 131,
    pixels.sizes: 43,
    pixels.blocks: 45,
    pixels.bombs: 6,
    pixels.values: 118,
    pixels.stacks: 16,
    pixels.pictures: 15,
    headers.places: 24,
    headers.structures: 304,
    headers.jpeg2000: 44,
    headers.envi: 28,
    headers.products: 26,
    files.disguises: 46,
    files.stand_ins: 21,
    files.changing: 14,
    files.sidecars: 14,
    files.folders: 17,
}


@pytest.fixture(scope="module")
def reader():
    with Reader() as reader:
        yield reader


def written(folder, write_kind):
    kind = Kind(folder)
    write_kind(kind)
    return kind.cases


def complaints(case, result):
    """What is wrong with a result, in words; nothing if it is as it must be."""
    found = []
    if result.outcome not in ("pixels", "refused") or case.outcome not in (None, result.outcome):
        found.append(f"expected {case.outcome or 'pixels or refused'}, got {result.outcome}")
    if result.seconds > MAX_SECONDS:
        found.append(f"took {result.seconds:.1f} s")
    if result.extra_mib > MAX_EXTRA_MIB:
        found.append(f"took {result.extra_mib:.0f} MiB")
    if result.outcome == "refused":
        named = [form.removesuffix(Path(case.path).suffix)[:100] for form in (case.path, ascii(case.path)[1:-1])]
        if not any(name in result.message for name in named):
            found.append("file not named")
        if "\n" in result.message or len(result.message) - len(case.path) > MAX_MESSAGE:
            found.append("more than a line")
    return [f"{case.path}: {text} ({result.message[:300]})" for text in found]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_file_hurts(tmp_path, reader, kind):
    cases = written(tmp_path, kind)
    assert len(cases) >= KINDS[kind]
    wrong = [line for case in cases for line in complaints(case, reader.read(case))]
    assert not wrong, "\n".join(wrong)


def test_sidecars_change_nothing(tmp_path):
    for case in written(tmp_path, files.sidecars):
        scene = Scene.open(case.path, SENTINEL2, ["B01"], ["B01"])
        values, valid = scene.read_raw(0, 0, 32, 32)
        np.testing.assert_array_equal(values, noise(1, 32, 32))
        assert valid is None and scene.transform is None, case.path


def any_block():
    raster._MAX_BLOCK_BYTES = 1 << 60


def any_claim():
    raster._MAX_EXPANSION = 1 << 60


def any_file():
    raster.raster_driver = lambda path: path.read_bytes()[:0].decode() or "GTiff"


def any_error():
    raster._blaming = lambda path: nullcontext()


def any_version():
    raster._stamp = lambda path: (0, 0)


def falls_over():
    raster.read_header = lambda path: os.abort()


@pytest.mark.parametrize(
    ("weaken", "kind", "name", "complaint"),
    [
        (any_block, pixels.blocks, "tile-32768x32768-8-8", "MiB"),
        (any_claim, pixels.sizes, "131072x131072-sparse", "got pixels"),
        (any_file, files.stand_ins, "pipe", "got hang"),
        (any_error, pixels.damaged, "truncated-raw-0", "got error"),
        (any_version, files.changing, "smaller-reopened", "got error"),
        (falls_over, files.stand_ins, "good", "got crash"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_harness_notices_a_missing_check(tmp_path, reader, weaken, kind, name, complaint):
    case, same = (
        next(case for case in written(tmp_path / folder, kind) if Path(case.path).stem == name) for folder in "ab"
    )
    assert not complaints(case, reader.read(case))
    with Reader(weaken, patience=2 if complaint == "got hang" else PATIENCE) as weak:
        assert complaint in " ".join(complaints(same, weak.read(same)))
