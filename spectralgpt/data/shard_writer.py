# SPDX-License-Identifier: Apache-2.0
"""Writes shards: records as they come, the index behind them, the header last.

The file has a hidden name until it is whole and on disk, so that a shard with its own name is always a whole one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from spectralgpt.data.record import Record
from spectralgpt.data.shard_file import (
    COLUMNS,
    DTYPES,
    FORMAT,
    HAS_CRS,
    HAS_LABEL,
    HAS_LABELS,
    HAS_MASK,
    HAS_TIME,
    HAS_TRANSFORM,
    HAS_VALID,
    HEADER_BYTES,
    VERSION,
)
from spectralgpt.errors import UserError
from spectralgpt.files import publish

_ALIGNMENT = 64
_NO_PLACE = (0.0,) * 6
_SAFETENSORS = {"int64": "I64", "uint64": "U64", "float64": "F64", "int32": "I32", "uint8": "U8"}


class ShardWriter:
    """Writes a shard under a temporary name; `commit` makes it appear, whole and on disk, or it never was."""

    def __init__(self, path: Path) -> None:
        """Opens the temporary file; OSError where that cannot be."""
        self._path, self._partial = path, path.with_name(f".{path.name}.{os.getpid()}")
        self._file = self._partial.open("wb")
        self._file.write(b"\0" * HEADER_BYTES)
        self._columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self._columns["start"].append(0)
        self._names = bytearray()
        self._crs_names: dict[str, int] = {}

    def __enter__(self) -> ShardWriter:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Removes what was not committed."""
        try:
            self._file.close()  # which writes what is left, and fails where the disk is full
        finally:
            self._partial.unlink(missing_ok=True)

    def __len__(self) -> int:
        """Records so far."""
        return len(self._columns["hash"])

    def add(self, record: Record) -> None:
        """Appends a record.

        Raises:
            UserError: pixels of a type no shard holds.
            OSError: the disk is full.
        """
        if record.pixels.dtype not in DTYPES:
            raise UserError(f"{record.name}: expected 8, 16 or 32-bit pixels or float64, got {record.pixels.dtype}")
        payload = _payload(record)
        self._file.write(payload)
        columns = self._columns
        columns["start"].append(columns["start"][-1] + len(payload))
        columns["hash"].append(xxhash.xxh3_64_intdigest(payload))
        columns["shape"].append((1,) * (4 - record.pixels.ndim) + record.pixels.shape)
        columns["dtype"].append(DTYPES.index(record.pixels.dtype))
        columns["low"].append(record.low.ravel())
        columns["high"].append(record.high.ravel())
        columns["flags"].append(_flags(record))
        multi_hot = isinstance(record.label, np.ndarray)
        columns["label"].append(0 if multi_hot or record.label is None else record.label)
        if multi_hot:
            columns["labels"].append(record.label)
        columns["transform"].append(record.transform or _NO_PLACE)
        columns["crs"].append(self._crs_names.setdefault(record.crs or "", len(self._crs_names)))
        self._names += record.name.encode("utf-8", "surrogateescape")
        columns["name_end"].append(len(self._names))

    def commit(self, bad: list[tuple[str, str]]) -> None:
        """Writes index and header and gives the file its name; OSError where the disk is full."""
        columns = self._arrays(bad)
        tensors: dict[str, Any] = {"__metadata__": {"format": FORMAT, "version": str(VERSION)}}
        end = self._columns["start"][-1]
        tensors["data"] = {"dtype": "U8", "shape": [end], "data_offsets": [0, end]}
        for name, column in columns.items():
            start, end = end, end + column.nbytes
            dtype = _SAFETENSORS[column.dtype.name]
            tensors[name] = {"dtype": dtype, "shape": list(column.shape), "data_offsets": [start, end]}
            self._file.write(column.tobytes())
        header = json.dumps(tensors, separators=(",", ":")).encode().ljust(HEADER_BYTES - 8)
        self._file.seek(0)
        self._file.write(len(header).to_bytes(8, "little") + header)
        self._file.flush()
        publish(self._partial, self._path)

    def _arrays(self, bad: list[tuple[str, str]]) -> dict[str, NDArray[Any]]:
        texts = {"names": bytes(self._names), "crs_names": _json(list(self._crs_names)), "bad": _json(bad)}
        arrays = {}
        for name, dtype in COLUMNS.items():
            if name in texts:
                arrays[name] = np.frombuffer(texts[name], np.uint8)
            elif name in ("low", "high"):
                arrays[name] = np.concatenate(self._columns[name] or [np.empty(0)]).astype(dtype)
            else:
                arrays[name] = np.array(self._columns[name], dtype)
        arrays["transform"] = arrays["transform"].reshape(-1, 6)
        arrays["shape"] = arrays["shape"].reshape(-1, 4)
        return arrays


def _payload(record: Record) -> bytes:
    parts = [np.ascontiguousarray(record.pixels).tobytes()]
    if record.valid is not None:
        parts.append(np.packbits(record.valid).tobytes())
    if record.mask is not None:
        parts.append(np.ascontiguousarray(record.mask).tobytes())
    return b"".join(parts) + b"\0" * (-sum(map(len, parts)) % _ALIGNMENT)


def _flags(record: Record) -> int:
    multi_hot = isinstance(record.label, np.ndarray)
    present = {
        HAS_TIME: record.pixels.ndim == 4,
        HAS_VALID: record.valid is not None,
        HAS_MASK: record.mask is not None,
        HAS_LABEL: record.label is not None and not multi_hot,
        HAS_LABELS: multi_hot,
        HAS_CRS: record.crs is not None,
        HAS_TRANSFORM: record.transform is not None,
    }
    return sum(flag for flag, there in present.items() if there)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
