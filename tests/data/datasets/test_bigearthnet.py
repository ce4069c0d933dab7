# SPDX-License-Identifier: Apache-2.0
import importlib
import json

import numpy as np
import pytest

from spectralgpt.data.datasets import corine
from spectralgpt.data.datasets.bigearthnet import BigEarthNet
from spectralgpt.data.splits import part
from spectralgpt.errors import UserError
from tests.data.datasets import archives
from tests.data.datasets.archives import BEN_BANDS, bigearthnet_patch
from tests.data.rasters import noise, write

TILE = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
ROWS = [
    (f"{TILE}_75_43", ["Pastures", "Mixed forest"], "train"),
    (f"{TILE}_75_44", ["Arable land"], "validation"),
    (f"{TILE}_89_18", ["Marine waters"], "test"),
    (f"{TILE}_89_19", ["Urban fabric"], "train"),
]
V1 = ("S2A_MSIL2A_20171221T112501_56_35", "S2B_MSIL2A_20170617T113321_4_55", "S2A_MSIL2A_20170617T113321_36_85")


def version2(root):
    for number, (name, _, _) in enumerate(ROWS):
        bigearthnet_patch(root / "BigEarthNet-S2" / TILE / name, seed=number)
    rows = [{"patch_id": name, "labels": labels, "split": split, "country": "Austria"} for name, labels, split in ROWS]
    (root / "metadata.json").write_text(json.dumps(rows))
    return root


def version1(root):
    labels = (["Water courses", "Vineyards"], ["Bare rock", "Airports"], ["Non-irrigated arable land", "Rice fields"])
    for number, (name, texts) in enumerate(zip(V1, labels, strict=True)):
        bigearthnet_patch(root / "BigEarthNet-v1.0" / name, texts, seed=number)
    return root


def names(data):
    return [data.name(index) for index in range(len(data))]


def classes(data, index):
    return [data.classes[number] for number in np.flatnonzero(data.labels()[index])]


def test_the_class_table_is_that_of_the_release():
    assert len(corine.CLASSES) == len(corine.COLOURS) == 19
    kept = {name for name, index in corine.NAMES.items() if index is not None} - set(corine.CLASSES)
    dropped = [name for name, index in corine.NAMES.items() if index is None]
    own = {"Industrial or commercial units", "Pastures", "Complex cultivation patterns", "Agro-forestry areas",
           "Broad-leaved forest", "Coniferous forest", "Mixed forest", "Beaches, dunes, sands",
           "Land principally occupied by agriculture, with significant areas of natural vegetation"}  # fmt: skip
    assert len(kept) + len(own) + len(dropped) == 44 and len(dropped) == 12  # 43 labels occur; glaciers only on maps
    assert corine.CLASSES[corine.NAMES["Peatbogs"]] == "Inland wetlands"
    assert corine.CLASSES[corine.CODES[333]] == "Natural grassland and sparsely vegetated areas"
    assert corine.CODES[122] == corine.CODES[999] == 255


def test_version_2_reads_labels_and_the_official_split(tmp_path):
    version2(tmp_path)
    train, val = BigEarthNet(tmp_path), BigEarthNet(tmp_path, "val")
    assert (train.version, names(train), names(val)) == (2, [ROWS[0][0], ROWS[3][0]], [ROWS[1][0]])
    assert classes(train, 0) == ["Pastures", "Mixed forest"] and classes(val, 0) == ["Arable land"]
    assert train.read(0).label.tolist() == train.labels()[0].tolist() and train[0]["label"].sum() == 2
    assert len(BigEarthNet(tmp_path, "all")) == 4


def test_twelve_files_at_three_resolutions_become_one_image(tmp_path):
    version2(tmp_path)
    record = BigEarthNet(tmp_path, "test").read(0)
    assert record.pixels.shape == (12, 120, 120) and record.pixels.dtype == np.uint16
    assert archives.levels(record) == archives.expected(BEN_BANDS)
    np.testing.assert_array_equal(record.pixels[1], archives.cube(["B02"], 120, 120, seed=2)[0])
    some = BigEarthNet(tmp_path / "BigEarthNet-S2", "all", ["B12", "B01"], task="none", split_by="published").read(1)
    assert archives.levels(some) == archives.expected(["B12", "B01"]) and some.label is None


@pytest.mark.parametrize("kind", ["csv", "csv_python", "parquet"])
def test_metadata_comes_in_other_formats(tmp_path, kind):
    version2(tmp_path)
    (tmp_path / "metadata.json").unlink()
    if kind == "parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), importlib.import_module("pyarrow.parquet")
        columns = {key: [row[n] for row in ROWS] for n, key in enumerate(("patch_id", "labels", "split"))}
        parquet.write_table(pyarrow.table(columns), tmp_path / "metadata.parquet")
    else:
        texts = [str(labels) if kind == "csv_python" else ";".join(labels) for _, labels, _ in ROWS]
        lines = [f'{name},"{text}",{split}' for (name, _, split), text in zip(ROWS, texts, strict=True)]
        (tmp_path / "metadata.csv").write_text("\n".join(["patch_id,labels,split", *lines]))
    assert classes(BigEarthNet(tmp_path), 0) == ["Pastures", "Mixed forest"]


def test_parquet_without_pyarrow_says_the_way_out(tmp_path, monkeypatch):
    version2(tmp_path)
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"metadata.parquet: .* run `pip install pyarrow`, or export .* metadata.csv"):
        BigEarthNet(tmp_path)


def test_reference_maps_become_masks(tmp_path):
    version2(tmp_path)
    codes = np.full((120, 120), 312, np.uint16)
    codes[:10], codes[10:20] = 999, 122
    path = tmp_path / "Reference_Maps" / TILE / ROWS[1][0] / f"{ROWS[1][0]}_reference_map.tif"
    write(path, codes[None])
    data = BigEarthNet(tmp_path, "val", task="segmentation")
    mask = data.read(0).mask
    assert mask.dtype == np.uint8 and (mask[:20] == 255).all() and data.classes[mask[50, 50]] == "Coniferous forest"
    write(path, np.where(codes == 999, 777, codes)[None])
    with pytest.raises(UserError, match=r"reference_map.tif: expected class codes .*, got 777 in 8.33 % of the pixels"):
        data.read(0)


def test_version_1_maps_43_labels_and_counts_what_it_drops(tmp_path):
    data = BigEarthNet(version1(tmp_path), "all")
    assert (data.version, len(data)) == (1, 2)
    assert data.notes == ["1 of 3 patches left out: none of the 19 classes"]
    labels = {data.name(index): classes(data, index) for index in range(2)}
    assert labels == {V1[0]: ["Permanent crops", "Inland waters"], V1[2]: ["Arable land"]}
    assert archives.levels(data.read(0)) == archives.expected(BEN_BANDS)
    assert len(BigEarthNet(tmp_path, "all", task="none")) == 3


def test_version_1_takes_the_official_lists_beside_it(tmp_path):
    version1(tmp_path)
    (tmp_path / "train.csv").write_text(f"{V1[2]},S1A_pair\n{V1[0]},S1B_pair\n")
    assert names(BigEarthNet(tmp_path)) == sorted([V1[0], V1[2]])
    with pytest.raises(UserError, match=r"expected the official list .* \(or split_by=published\), as val.csv"):
        BigEarthNet(tmp_path, "val")
    (tmp_path / "val.csv").write_text("S2A_MSIL2A_20170617T113321_1_1\n")
    with pytest.raises(UserError, match="found 0 of 1 listed images, S2A_MSIL2A_20170617T113321_1_1 is the first"):
        BigEarthNet(tmp_path, "val")


def test_the_published_split_hashes_names(tmp_path):
    version1(tmp_path)
    for split in ("train", "val", "test"):
        chosen = [name for name in sorted(V1) if part(name) == split]
        if chosen:
            assert names(BigEarthNet(tmp_path, split, split_by="published", task="none")) == chosen
        else:
            with pytest.raises(UserError, match=f"expected images for the {split} split of BigEarthNet, found none"):
                BigEarthNet(tmp_path, split, split_by="published", task="none")


def test_merged_files_and_their_order(tmp_path):
    for number, name in enumerate(V1[:2]):
        write(tmp_path / name / f"{name}.tif", archives.cube(BEN_BANDS, 120, 120, seed=number))
    data = BigEarthNet(tmp_path, "all", ["B12", "B8A"], task="none")
    assert archives.levels(data.read(0)) == archives.expected(["B12", "B8A"])
    by_name = sorted(BEN_BANDS)  # as a glob finds the band files: B8A last
    write(tmp_path / V1[0] / f"{V1[0]}.tif", archives.cube(by_name, 120, 120), by_name)
    with pytest.raises(UserError, match="expected band 9 to be B8A, its description says 'B09'"):
        data.read(0)
    other = BigEarthNet(tmp_path, "all", ["B12", "B8A"], task="none", band_order=by_name)
    assert archives.levels(other.read(0)) == archives.expected(["B12", "B8A"])


def test_a_fraction_is_reproducible_and_nested(tmp_path):
    for number in range(20):
        (tmp_path / f"S2A_MSIL2A_20171221T112501_0_{number}").mkdir()
    few = names(BigEarthNet(tmp_path, "all", task="none", fraction=0.1))
    many = names(BigEarthNet(tmp_path, "all", task="none", fraction=0.5))
    assert len(few) == 2 and len(many) == 10 and set(few) < set(many)


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(UserError, match="expected patch folders such as BigEarthNet-S2/S2A_MSIL2A_"):
        BigEarthNet(tmp_path)
    version1(tmp_path)
    patch = tmp_path / "BigEarthNet-v1.0" / V1[0]
    (patch / f"{V1[0]}_B05.tif").unlink()
    with pytest.raises(UserError, match="expected band B05"):
        BigEarthNet(tmp_path, "all").read(0 if sorted(V1)[0] == V1[0] else 1)
    write(patch / f"{V1[0]}_B05.tif", noise(1, 60, 60), crs="EPSG:32633")
    with pytest.raises(UserError, match="expected one coordinate system, got EPSG:326"):
        BigEarthNet(tmp_path, "all", task="none").read(sorted(V1).index(V1[0]))
    (patch / f"{V1[0]}_labels_metadata.json").write_text('{"labels": ["Moon dust"]}')
    with pytest.raises(UserError, match="expected CORINE class names as labels, got 'Moon dust'"):
        BigEarthNet(tmp_path, "all")
    (patch / f"{V1[0]}_labels_metadata.json").write_text('{"labels": ')
    with pytest.raises(UserError, match=r"labels_metadata.json: expected a text table, cannot read it"):
        BigEarthNet(tmp_path, "all")
    (patch / f"{V1[0]}_labels_metadata.json").unlink()
    with pytest.raises(UserError, match=r"json: expected a text table, no such file$"):
        BigEarthNet(tmp_path, "all")
    with pytest.raises(UserError, match="expected BigEarthNet version 2 for segmentation, got version 1"):
        BigEarthNet(tmp_path, "all", task="segmentation")
    (tmp_path / "BigEarthNet-v1.0" / ROWS[0][0]).mkdir()
    with pytest.raises(UserError, match="expected patches of one version, got both"):
        BigEarthNet(tmp_path, "all")
