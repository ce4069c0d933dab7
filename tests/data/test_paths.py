# SPDX-License-Identifier: Apache-2.0
"""Sixty ways to name what must not be opened, by every door a name comes in: none is opened, nothing connects.

A listening socket counts connections. The canary, a good image outside the folder, tells whether it was opened by
its access time (for GDAL) and by an audit hook (for Python).
"""

import contextlib
import csv
import json
import os
import socket
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralgpt.cli import main
from spectralgpt.data.bands import SENTINEL2
from spectralgpt.data.datasets import open_dataset
from spectralgpt.data.discover import find_scenes
from spectralgpt.data.paths import inside, local
from spectralgpt.data.scene import Scene
from spectralgpt.data.scene_set import DataConfig, SceneSet
from spectralgpt.errors import UserError
from tests.data.rasters import noise, write

NAMES = SENTINEL2.names
# No name of these is a local file, whoever gives it.
FOREIGN = [
    "http://127.0.0.1:PORT/a.tif",
    "HTTP://127.0.0.1:PORT/a.tif",
    "https://127.0.0.1:PORT/a.tif",
    "ftp://127.0.0.1:PORT/a.tif",
    "s3://bucket/a.tif",
    "gs://bucket/a.tif",
    "az://bucket/a.tif",
    "file://CANARY",
    "file:CANARY",
    "FILE:///CANARY",
    "zip+http://127.0.0.1:PORT/a.zip!a.tif",
    "zip://CANARY!a.tif",
    "zip+file://CANARY",
    "/vsicurl/http://127.0.0.1:PORT/a.tif",
    "/VsiCurl/http://127.0.0.1:PORT/a.tif",
    "/vsicurl?url=http://127.0.0.1:PORT/a.tif",
    "/vsis3/bucket/a.tif",
    "/vsizip/CANARY",
    "/vsitar/CANARY/a.tif",
    "/vsigzip/CANARY",
    "/vsisubfile/0_100,CANARY",
    "/vsimem/a.tif",
    "/vsistdin/",
    "GTIFF_DIR:1:CANARY",
    "/vsicurl_streaming/http://127.0.0.1:PORT/a.tif",
    "//vsicurl/http://127.0.0.1:PORT/a.tif",
    "GTIFF_RAW:CANARY",
    "MEM:::DATAPOINTER=1,PIXELS=9,LINES=9",
    'HDF5:"CANARY"://a',
    "NETCDF:CANARY:a",
    "JP2OpenJPEG:CANARY",
    "vrt://CANARY",
    "ENVI:CANARY",
    "WMS:http://127.0.0.1:PORT/?",
    'ZARR:"/vsicurl/http://127.0.0.1:PORT/a"',
    'STACIT:"CANARY"',
    "pipe:cat CANARY",
    '<VRTDataset rasterXSize="9"><VRTRasterBand><SourceFilename>CANARY</SourceFilename></VRTRasterBand>',
    '<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1:PORT/</ServerUrl></Service></GDAL_WMS>',
]
# A user may well name these, but no table below a folder may.
OUTSIDE = [
    "../canary.tif",
    "images/../../canary.tif",
    "./../canary.tif",
    "..",
    "images/..",
    "CANARY",
    "/etc/passwd",
    "~/canary.tif",
    "~root/canary.tif",
    "$HOME/canary.tif",
    ".. /canary.tif",
    "..\\canary.tif",
    "C:\\canary.tif",
    "\\\\127.0.0.1\\share\\a.tif",
    "//127.0.0.1/share/a.tif",
    "%2e%2e/canary.tif",
    "..%2fcanary.tif",
    "\uff0e\uff0e/canary.tif",
    "..\uff0fcanary.tif",
    "..\u2215canary.tif",
    "\u2025/canary.tif",
    ".\u200b./canary.tif",
    "images/\u202e/../../canary.tif",
    "link.tif",
    "out/canary.tif",
    "chain.tif",
    "loop.tif",
    "images/a.tif\0.png",
    "images/a.tif\nb",
    "images/*.tif",
    "images/a.tif|cat",
]


class Trap:
    """A folder of images, a canary above it, links to that, and a socket that listens."""

    def __init__(self, folder):
        self.root, self.canary = folder / "root", folder / "canary.tif"
        self.good = write(self.root / "images" / "a.tif", noise(2, 32, 32), NAMES[:2])
        write(self.canary, noise(2, 32, 32), NAMES[:2])
        (self.root / "link.tif").symlink_to(self.canary)
        (self.root / "out").symlink_to(folder)
        (self.root / "chain.tif").symlink_to("out/../link.tif")
        (self.root / "loop.tif").symlink_to("loop.tif")
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.setblocking(False)
        self.port = self._server.getsockname()[1]
        self.set()

    def set(self):
        """An access time before the last change is one that the system updates, even if told to update few."""
        self.is_connected()
        self.opened = set()
        os.utime(self.canary, (1, time.time()))

    def is_connected(self):
        with contextlib.suppress(BlockingIOError):
            self._server.accept()[0].close()
            return True
        return False

    def is_sprung(self):
        return (
            self.is_connected()
            or self.canary.stat().st_atime != 1
            or bool({str(self.canary), "/etc/passwd"} & self.opened)
        )

    def close(self):
        self._server.close()

    def fill(self, text):
        return text.replace("CANARY", str(self.canary)).replace("PORT", str(self.port))


@pytest.fixture(scope="module")
def trap(tmp_path_factory):
    trap = Trap(tmp_path_factory.mktemp("trap"))
    yield trap
    trap.close()


@pytest.fixture(autouse=True)
def _untouched(trap):
    trap.set()
    yield
    assert not trap.is_sprung()


@pytest.fixture(scope="module", autouse=True)
def _listening(trap):
    def listen(event, arguments):  # a hook cannot be taken away, only be made to do nothing
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike) and not done:
            trap.opened.add(os.path.abspath(os.fsdecode(arguments[0])))

    done = []
    sys.addaudithook(listen)
    yield
    done.append(True)


def test_the_trap_springs(trap):
    assert not trap.is_sprung()
    for spring in (
        lambda: trap.canary.read_bytes(),
        lambda: socket.create_connection(("127.0.0.1", trap.port)).close(),
    ):
        spring()
        assert trap.is_sprung()
        trap.set()


def test_the_trap_springs_where_gdal_opens_the_canary(trap):
    trap.canary.read_bytes()
    notes_reads = trap.canary.stat().st_atime != 1
    trap.set()
    if not notes_reads:
        pytest.skip("this file system keeps no access times")
    Scene.open(trap.root / "link.tif", SENTINEL2, NAMES[:2])
    assert trap.is_sprung()
    trap.set()


def test_there_are_many_ways():
    assert len(FOREIGN) + len(OUTSIDE) >= 60


@pytest.mark.parametrize("text", FOREIGN + OUTSIDE)
def test_inside_refuses(trap, text):
    with pytest.raises(UserError, match="expected p") as caught:
        inside(trap.root, trap.fill(text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value", [None, 5, 1.5, b"images/a.tif", ["images/a.tif"], "", ".", "./", "images//a.tif", "x" * 256]
)
def test_inside_refuses_what_is_no_name(trap, value):
    with pytest.raises(UserError, match="expected plain paths"):
        inside(trap.root, value)


def test_inside_shows_long_names_cut_and_look_alikes_as_codes(trap):
    with pytest.raises(UserError, match=r"got '\\uff0e\\uff0e/a+\.\.\.$"):
        inside(trap.root, "\uff0e\uff0e/" + "a" * 10_000)


LETTERS = st.sampled_from("abcXYZ019_-.,+=@#() äßé中&'%~;")
PARTS = st.text(LETTERS, min_size=1, max_size=20).filter(
    lambda name: name.strip(" .") and not name.startswith("..") and not name.startswith("~") and "%" not in name
)


@settings(max_examples=1000)
@given(st.lists(PARTS, min_size=1, max_size=6).map("/".join))
def test_inside_accepts_plain_paths(trap, text):
    assert inside(trap.root, text) == trap.root / text


def test_inside_follows_links_that_stay(trap):
    (trap.root / "stays").symlink_to("images")
    assert inside(trap.root, "stays/a.tif").read_bytes() == trap.good.read_bytes()
    assert inside(trap.root, "./images/100%20.tif") == trap.root / "images/100%20.tif"


def test_inside_a_relative_root(trap, monkeypatch):
    monkeypatch.chdir(trap.root)
    assert inside(Path("images"), "a.tif") == Path("images/a.tif")
    with pytest.raises(UserError):
        inside(Path("images"), "../link.tif")


def test_inside_a_root_that_is_a_link(trap, tmp_path):
    (tmp_path / "link").symlink_to(trap.root)
    assert inside(tmp_path / "link", "images/a.tif").is_file()


@pytest.mark.parametrize("text", FOREIGN)
def test_no_door_for_users_opens_foreign_names(trap, text):
    text = trap.fill(text)
    for door in (
        local,
        find_scenes,
        lambda text: Scene.open(text, SENTINEL2),
        lambda text: Scene.open(Path(text), SENTINEL2),
        lambda text: SceneSet(DataConfig(root=text)),
        lambda text: open_dataset("folder", text, "all"),
        lambda text: open_dataset("folder", trap.root, "all", table=text),
    ):
        with pytest.raises(UserError) as caught:
            door(text)
        assert "\n" not in str(caught.value)


def test_users_may_name_what_is_local(trap, monkeypatch):
    monkeypatch.setenv("HOME", str(trap.root))
    assert local("~/images") == trap.root / "images"
    assert local("no/such/file") == Path("no/such/file")
    (trap.root / "a:b").mkdir()
    assert local(trap.root / "a:b").is_dir()
    monkeypatch.chdir(trap.root / "images")
    assert local("../images/a.tif").is_file()


@pytest.mark.parametrize("text", ["~nobody-of-that-name/a", "x" * 300, "a/" * 3000, "a\0b", "a\nb"])
def test_users_learn_what_no_file_system_holds(text):
    with pytest.raises(UserError, match="expected a local file or folder") as caught:
        local(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def write_csv(target, /, **row):
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerow(row)


def folder_path(root, text):
    write_csv(root / "list.csv", path=text)
    return open_dataset("folder", root, "all", NAMES[:2], table="list.csv")


def folder_mask(root, text):
    write_csv(root / "list.csv", path="images/a.tif", mask=text)
    return open_dataset("folder", root, "all", NAMES[:2], table="list.csv", classes=["a", "b"])


def folder_unnamed_bands(root, text):
    write_csv(root / "list.csv", path=text)
    return open_dataset("folder", root, "all", sensor="hyperspectral", table="list.csv")


def fmow_path(root, text):
    write_csv(root / "train.csv", category="airport", location_id="0", image_id="0", image_path=text)
    return open_dataset("fmow_sentinel", root)


def fmow_id(root, text):
    write_csv(root / "train.csv", category="airport", location_id="0", image_id=text)
    return open_dataset("fmow_sentinel", root)


def segmunich(root, text):
    (root / "dataset").mkdir(exist_ok=True)
    (root / "dataset" / "train.txt").write_text(text, encoding="utf-8")
    return open_dataset("segmunich", root)


def bigearthnet(root, text):
    (root / "BigEarthNet-S2" / "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP").mkdir(parents=True, exist_ok=True)
    rows = [{"patch_id": text, "labels": ["Pastures"], "split": "train"}]
    (root / "metadata.json").write_text(json.dumps(rows))
    return open_dataset("bigearthnet", root)


@pytest.mark.parametrize(
    "table", [folder_path, folder_mask, folder_unnamed_bands, fmow_path, fmow_id, segmunich, bigearthnet]
)
def test_tables_open_nothing_outside(trap, table):
    assert folder_path(trap.root, "images/a.tif").read(0).pixels.shape == (2, 32, 32)
    for text in FOREIGN + OUTSIDE:
        with pytest.raises(UserError) as caught:
            table(trap.root, trap.fill(text)).read(0)
        assert "\n" not in str(caught.value), text


@pytest.mark.parametrize("text", [*FOREIGN[::8], "../canary.tif"])
def test_the_command_line_opens_nothing_foreign(trap, text, capsys):
    name = trap.fill(text)
    option = "data.root" if text in FOREIGN else "data.bands"
    value = name if text in FOREIGN else json.dumps([name])
    assert main(["train", f"--{option}={value}", f"--run.folder={trap.root / 'run'}"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("text", FOREIGN + OUTSIDE)
def test_band_lists_are_no_paths(trap, text):
    with pytest.raises(UserError) as caught:
        Scene.open(trap.good, SENTINEL2, [trap.fill(text)])
    assert "\n" not in str(caught.value)


def test_relative_roots_follow_the_working_directory(tmp_path, monkeypatch):
    for name, text in (("one", "a.tif"), ("two", "deep/b.tif")):
        (tmp_path / name / "images" / "deep").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / name)
        assert inside(Path("images"), text) == Path("images") / text
    (tmp_path / "two" / "images" / "away").symlink_to(tmp_path / "one" / "images")
    with pytest.raises(UserError, match="got the link"):
        inside(Path("images"), "away/x.tif")
