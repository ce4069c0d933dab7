# SPDX-License-Identifier: Apache-2.0
import json
import multiprocessing
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from spectralgpt.data.convert import convert
from spectralgpt.data.shard_file import Shard
from spectralgpt.data.shard_writer import ShardWriter
from spectralgpt.data.shards import Shards, read_json, write_json
from spectralgpt.errors import UserError
from tests.data.records import KINDS, Made, record, same

FEW = ("B08", "B03", "B02")


def shards(root, dataset, **options):
    convert(dataset, "made", root, num_workers=0, shard_size=150_000)
    return Shards(root, dataset.split, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    return root, Made("segmentation", 20), shards(root, Made("segmentation", 20))


@pytest.mark.parametrize("kind", KINDS)
def test_records_are_those_of_the_files_to_the_bit(tmp_path, kind):
    files = Made(kind, 20)
    found = shards(tmp_path, files)
    assert len(list(tmp_path.glob("train/*.safetensors"))) > 1, "one shard would test less"
    assert (len(found), found.task, found.classes, found.card) == (20, kind, files.classes, files.card)
    assert [found.name(i) for i in range(20)] == [files.name(i) for i in range(20)]
    assert all(same(found.read(i), files.read(i)) for i in range(20))
    few, of_shards = Made(kind, 20, FEW), Shards(tmp_path, bands=FEW, verify=True)
    assert of_shards.card == few.card
    assert all(same(of_shards.read(i), few.read(i)) for i in range(20))
    adjacent = Shards(tmp_path, bands=("B03", "B04"))
    assert np.shares_memory(adjacent.read(1).pixels, adjacent.read(1).pixels), "bands side by side need no copy"
    for a, b in ((files[i], found[i]) for i in range(20)):
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_pixels_keep_their_type(tmp_path, dtype):
    files = Made("none", 5, dtype=dtype)
    found = shards(tmp_path, files)
    assert found.read(1).pixels.dtype == dtype
    assert all(same(found.read(i), files.read(i)) for i in range(5))


def test_pixels_of_other_types_are_refused(tmp_path):
    other = replace(record("none", 1, FEW), pixels=np.ones((3, 4, 4), np.complex64))
    with pytest.raises(UserError, match="got complex64"), ShardWriter(tmp_path / "a") as shard:
        shard.add(other)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_labels_need_no_pixels(tmp_path, kind):
    files = Made(kind, 20)
    expected = np.array([files.read(i).label for i in range(20)])
    assert np.array_equal(shards(tmp_path, files).labels(), expected)


def test_masks_have_no_labels(made):
    assert made[2].labels() is None


def test_any_safetensors_library_reads_a_shard(made):
    root, files, _ = made
    tensors = load_file(root / "train/shard-00000.safetensors")
    first = files.read(0)
    assert tensors["shape"][0].tolist() == [1, *first.pixels.shape]
    size = first.pixels.nbytes
    assert np.array_equal(tensors["data"][:size].view(np.uint16).reshape(first.pixels.shape), first.pixels)
    assert all(tensor.flags.aligned for tensor in tensors.values()) and (tensors["start"] % 64 == 0).all()


def test_other_bands_and_places_are_refused(made):
    root, _, found = made
    with pytest.raises(UserError, match="B10"):
        Shards(root, bands=("B02", "B10"))
    with pytest.raises(UserError, match=r"nowhere/index\.json: no such file; make the shards"):
        Shards(root, "nowhere")
    for index in (-1, 20):
        with pytest.raises(IndexError, match=f"from 0 to 19, got {index}"):
            found.read(index)


def test_another_process_maps_the_shards_itself(made):
    _, files, found = made
    found.read(3)
    copied = pickle.dumps(found)
    assert len(copied) < 10_000
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        assert same(pool.apply(found.read, (3,)), files.read(3))


def damaged(root, tmp_path, name):
    """A copy of the shards and the contents of one file of it, to be changed."""
    copy = tmp_path / "copy"
    (copy / "train").mkdir(parents=True, exist_ok=True)
    for path in (root / "train").iterdir():
        (copy / "train" / path.name).write_bytes(path.read_bytes())
    return copy, copy / "train" / name, bytearray((root / "train" / name).read_bytes())


def flip_bits(root, tmp_path, count):
    """Flips one bit at a time anywhere in the files; how often it was noticed, harmless, and silent."""
    draw, files = np.random.default_rng(0), Made("segmentation", 20)
    outcomes = []
    names = [path.name for path in sorted((root / "train").iterdir())]
    for trial in range(count):
        copy, path, content = damaged(root, tmp_path, names[trial % len(names)])
        # Header, index and anywhere in turn: the pixels are most of the file.
        first, last = ((0, 4096), (-6000, 0), (0, len(content)))[trial // len(names) % 3]
        place = int(draw.integers(first, min(last, len(content)))) % len(content)
        content[place] ^= 1 << int(draw.integers(8))
        path.write_bytes(content)
        try:
            found = Shards(copy, verify=True)
            right = len(found) == 20 and found.classes == files.classes and found.card == files.card
            right &= all(same(found.read(i), files.read(i)) for i in range(20))
            outcomes.append("harmless" if right else "silent")
        except UserError as error:
            assert str(copy) in str(error)
            outcomes.append("noticed")
    return {outcome: outcomes.count(outcome) for outcome in ("noticed", "harmless", "silent")}


def test_flipped_bits_are_never_silent(made, tmp_path):
    assert flip_bits(made[0], tmp_path, 40)["silent"] == 0


@pytest.mark.acceptance
def test_400_flipped_bits_are_never_silent(made, tmp_path):
    outcomes = flip_bits(made[0], tmp_path, 400)
    assert outcomes["silent"] == 0 and outcomes["noticed"] > 300


def test_a_damaged_record_is_named_by_shard_and_name(made, tmp_path):
    copy, path, content = damaged(made[0], tmp_path, "shard-00001.safetensors")
    content[5000] ^= 1
    path.write_bytes(content)
    first = made[2]._ends[0]
    name = made[1].name(first)
    assert not same(Shards(copy).read(first), made[1].read(first)), "or the hash is not needed"
    with pytest.raises(UserError, match=rf"shard-00001\.safetensors: record 0 \({name}\) is damaged"):
        Shards(copy, verify=True).read(first)
    Shards(copy, verify=True).read(first + 1)


def test_files_cut_short_or_missing_are_named(made, tmp_path):
    copy, path, content = damaged(made[0], tmp_path, "shard-00000.safetensors")
    for size in (0, 7, 3000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=rf"shard-00000\.safetensors: expected {len(content)} bytes, got {size}"):
            Shards(copy).read(0)
        with pytest.raises(UserError, match=r"shard-00000\.safetensors: "):
            Shard(path)
    path.unlink()
    with pytest.raises(UserError, match=r"shard-00000\.safetensors: no such file"):
        Shards(copy)
    index = copy / "train/index.json"
    index.write_text(index.read_text()[:500])
    with pytest.raises(UserError, match=r"index\.json: expected a file written by"):
        Shards(copy)
    index.unlink()
    with pytest.raises(UserError, match="the conversion did not end: run the same"):
        Shards(copy)


def test_a_newer_format_is_refused(made, tmp_path):
    copy, path, content = damaged(made[0], tmp_path, "shard-00000.safetensors")
    path.write_bytes(content.replace(b'"version":"1"', b'"version":"2"'))
    with pytest.raises(UserError, match=r"shard-00000\.safetensors: written by a newer version \(format 2"):
        Shards(copy).read(0)
    values = read_json(copy / "train/index.json")
    write_json(copy / "train/index.json", {**values, "version": 2})
    with pytest.raises(UserError, match=r"index\.json: written by a newer version \(format 2"):
        Shards(copy)


def test_another_file_is_no_shard(tmp_path):
    path = tmp_path / "shard-00000.safetensors"
    for content in (b"", b"\xff" * 5000, json.dumps({"a": 1}).encode() * 900, b"[]" + bytes(5000)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"shard-00000\.safetensors: "):
            Shard(path)


def test_an_index_cannot_name_files_elsewhere(made):
    assert "safetensors" not in json.dumps(read_json(made[0] / "train/index.json"))
