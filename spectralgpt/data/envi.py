# SPDX-License-Identifier: Apache-2.0
"""ENVI images: a text header `x.hdr` beside a file of bare numbers. GDAL reads the numbers, this checks first.

Bare numbers have no first bytes to know them by, so an ENVI image is opened by its header, and its numbers are
taken from the one file beside it that shares its name: no text in the header is ever a path.
"""

from __future__ import annotations

import re
from pathlib import Path

from spectralgpt.errors import UserError

_MAX_BYTES = 4 << 20
# No two neighbouring parts match the same character: the time stays linear whatever a header holds.
_FIELD = re.compile(r"^([^=\n{}]+)=[ \t]*(\{[^{}]*\}|[^\n]*)", re.MULTILINE)
_ITEM_BYTES = {"1": 1, "2": 2, "3": 4, "4": 4, "5": 8, "12": 2, "13": 4, "14": 8, "15": 8}
_DATA_SUFFIXES = ("", ".img", ".dat", ".bsq", ".bil", ".bip", ".raw", ".bin")


def envi_data_file(header: Path) -> Path:
    """The data file that belongs to an ENVI header.

    Raises:
        UserError: the header is damaged or compressed, or there is not exactly one whole data file.
    """
    fields = _fields(header)
    samples, lines, bands, start = (
        _whole(header, fields, key) for key in ("samples", "lines", "bands", "header offset")
    )
    kind = fields.get("data type", "")
    if kind not in _ITEM_BYTES:
        raise UserError(f"{header}: expected data type {', '.join(_ITEM_BYTES)}, got {kind!r}")
    if fields.get("file compression", "0") != "0":
        raise UserError(f"{header}: expected plain data, got file compression; save it uncompressed")
    data = _beside(header)
    size, needed = data.stat().st_size, start + samples * lines * bands * _ITEM_BYTES[kind]
    if size < needed:
        raise UserError(f"{data}: expected {needed} bytes by {header.name}, got {size}")
    return data


def _fields(header: Path) -> dict[str, str]:
    with header.open("rb") as file:
        raw = file.read(_MAX_BYTES + 1)
    if len(raw) > _MAX_BYTES:
        raise UserError(f"{header}: expected an ENVI header of at most {_MAX_BYTES >> 20} MiB")
    text = raw.decode("utf-8", errors="replace").replace("\r\n", "\n")
    return {" ".join(key.lower().split()): value.strip() for key, value in _FIELD.findall(text)}


def _whole(header: Path, fields: dict[str, str], key: str) -> int:
    text = fields.get(key, "0" if key == "header offset" else "")
    if not re.fullmatch(r"\d{1,18}", text):
        raise UserError(f"{header}: expected a whole number for {key!r}, got {text!r}")
    return int(text)


def _beside(header: Path) -> Path:
    if header.suffix.lower() != ".hdr":
        raise UserError(f"{header}: expected an ENVI header to be named .hdr")
    stem = header.name[: -len(".hdr")]
    names = {stem + form for suffix in _DATA_SUFFIXES for form in (suffix, suffix.upper())}
    paths = [header.with_name(name) for name in sorted(names) if name]
    found = [path for path in paths if path.is_file() and not path.is_symlink()]
    if len(found) != 1:
        got = " and ".join(path.name for path in found) or "none"
        raise UserError(f"{header}: expected one data file of that name beside it (links do not count), got {got}")
    return found[0]
