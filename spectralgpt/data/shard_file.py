# SPDX-License-Identifier: Apache-2.0
"""One shard: a safetensors file that holds a few thousand records as columns.

Any safetensors library opens it. `data` holds the payload of all records (pixels, validity bits, mask) one after
another, each padded to 64 bytes; all other columns together are the index. The payload is written as it comes, in
front of columns nobody knows yet, behind a header that is filled in last. Each record's payload has a hash of its
own, and header and index have one together, which is kept outside the file. `docs/shards.md` tells why safetensors.
"""

from __future__ import annotations

import json
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from spectralgpt.data.raster import Bools, Pixels
from spectralgpt.data.record import Record
from spectralgpt.errors import UserError

VERSION = 1

FORMAT = "spectralgpt-shard"
# Not a whole page: sources and targets of a copy that lie alike in their pages, as images of whole pages and malloc's
# blocks would, copy five times slower (the processor takes loads for copies of recent stores).
HEADER_BYTES = 4096 + 64
DTYPES = tuple(map(np.dtype, ("uint8", "uint16", "int16", "float32", "float64", "int8", "int32", "uint32", "float16")))

HAS_TIME, HAS_VALID, HAS_MASK, HAS_LABEL, HAS_LABELS, HAS_CRS, HAS_TRANSFORM = (1 << bit for bit in range(7))

# In falling order of size, so that every column is aligned.
COLUMNS = {
    "start": np.int64,  # of each record in `data`, and the end of the last
    "hash": np.uint64,
    "label": np.int64,
    "transform": np.float64,
    "low": np.float64,  # of the records one after another, each as long as it has bands (times dates)
    "high": np.float64,
    "name_end": np.int64,
    "shape": np.int32,  # dates (1 where there is no such axis), bands, rows, columns
    "crs": np.int32,  # place in the list `crs_names`
    "flags": np.uint8,
    "dtype": np.uint8,
    "labels": np.uint8,
    "names": np.uint8,  # UTF-8
    "crs_names": np.uint8,  # JSON
    "bad": np.uint8,  # JSON: images that could not be read, as [name, reason]
}


class Entry(NamedTuple):
    """What must be known of a shard to notice that it is not the one that was written."""

    records: int
    bytes: int
    index_hash: str


@dataclass(frozen=True)
class _Place:
    """Where a record's parts lie in its payload."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    pixels: slice
    valid: slice
    mask: slice


class Shard:
    """A shard mapped into memory; pixels and masks are read-only views of it.

    Attributes:
        entry: what the file is now; its index hash was computed on opening.
    """

    def __init__(self, path: Path, expected: Entry | None = None) -> None:
        """Maps the file and checks header and index.

        Raises:
            UserError: missing, cut short, changed, or written by a newer version.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if expected is not None and size != expected.bytes:
                    raise UserError(f"{path}: expected {expected.bytes} bytes, got {size}; {_CONVERT}")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: cannot be read ({error}); {_CONVERT}") from error
        columns, index_hash = _index(path, self._map)
        self.entry = Entry(len(columns["hash"]), size, index_hash)
        if expected is not None and self.entry != expected:
            raise UserError(f"{path}: damaged index, its hash is {index_hash}, not {expected.index_hash}; {_CONVERT}")
        self._columns = columns
        shape = columns["shape"].astype(np.int64)
        self._range_start = np.concatenate([[0], np.cumsum(shape[:, 0] * shape[:, 1])])
        self._label_row = np.cumsum(columns["flags"] & HAS_LABELS != 0) - 1
        self._crs_names: list[str] = json.loads(columns["crs_names"].tobytes())
        self.bad: list[tuple[str, str]] = [(name, why) for name, why in json.loads(columns["bad"].tobytes())]

    def name(self, index: int) -> str:
        """Name of a record."""
        start = int(self._columns["name_end"][index - 1]) if index else 0
        name = self._columns["names"][start : int(self._columns["name_end"][index])]
        return name.tobytes().decode("utf-8", "surrogateescape")

    def labels(self, multi_hot: bool) -> NDArray[Any]:
        """Labels of all records, `(n,)` class indices or `(n, classes)` 0 and 1."""
        return self._columns["labels"] if multi_hot else self._columns["label"]

    def check(self, index: int) -> None:
        """Compares a record's payload with its hash.

        Raises:
            UserError: it is not what was written.
        """
        if xxhash.xxh3_64_intdigest(self._payload(index).data) != int(self._columns["hash"][index]):
            raise UserError(
                f"{self.path}: record {index} ({self.name(index)}) is damaged, its hash differs; {_CONVERT}"
            )

    def read(self, index: int, bands: slice | list[int]) -> Record:
        """A record with some of its bands; the same bits as were added."""
        columns, flags = self._columns, int(self._columns["flags"][index])
        payload, place = self._payload(index), self._place(index)
        pixels = payload[place.pixels].view(place.dtype).reshape(place.shape)[..., bands, :, :]
        leading = place.shape[:-2]
        extent = slice(int(self._range_start[index]), int(self._range_start[index + 1]))
        low, high = (columns[name][extent].reshape(leading)[..., bands].copy() for name in ("low", "high"))
        valid = _unpack(payload[place.valid], place.shape)[..., bands, :, :] if flags & HAS_VALID else None
        if valid is not None and valid.size < np.prod(place.shape) and valid.all():
            valid = None  # as if the other bands had never been read
        label: int | NDArray[np.uint8] | None = None
        if flags & HAS_LABEL:
            label = int(columns["label"][index])
        elif flags & HAS_LABELS:
            label = columns["labels"][self._label_row[index]].copy()
        return Record(
            name=self.name(index),
            pixels=pixels,
            valid=valid,
            low=low,
            high=high,
            label=label,
            mask=payload[place.mask].reshape(place.shape[-2:]) if flags & HAS_MASK else None,
            crs=self._crs_names[columns["crs"][index]] if flags & HAS_CRS else None,
            transform=tuple(columns["transform"][index].tolist()) if flags & HAS_TRANSFORM else None,
        )

    def _payload(self, index: int) -> NDArray[np.uint8]:
        start, end = self._columns["start"][index : index + 2].tolist()
        payload: NDArray[np.uint8] = self._columns["data"][start:end]
        return payload

    def _place(self, index: int) -> _Place:
        flags, dtype = int(self._columns["flags"][index]), DTYPES[self._columns["dtype"][index]]
        dates, bands, rows, columns = self._columns["shape"][index].tolist()
        size = dates * bands * rows * columns
        pixels_end = size * dtype.itemsize
        valid_end = pixels_end + ((size + 7) // 8 if flags & HAS_VALID else 0)
        mask_end = valid_end + rows * columns
        shape = (dates, bands, rows, columns) if flags & HAS_TIME else (bands, rows, columns)
        return _Place(shape, dtype, slice(pixels_end), slice(pixels_end, valid_end), slice(valid_end, mask_end))


_CONVERT = "convert it anew with `spectralgpt prepare shards`"


def _unpack(bits: NDArray[np.uint8], shape: tuple[int, ...]) -> Bools:
    valid: Bools = np.unpackbits(bits, count=int(np.prod(shape))).view(bool).reshape(shape)
    return valid


def _index(path: Path, content: mmap.mmap) -> tuple[dict[str, Pixels], str]:
    """All columns as views, and the hash of everything but the payload."""
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        version = header["__metadata__"]["version"] if header["__metadata__"]["format"] == FORMAT else ""
        if version.isdecimal() and int(version) > VERSION:
            raise UserError(f"{path}: written by a newer version (format {version}, this reads {VERSION}); update")
        columns = {}
        for name, dtype in {"data": np.uint8, **COLUMNS}.items():
            shape, (start, end) = header[name]["shape"], header[name]["data_offsets"]
            column = np.frombuffer(content, np.uint8, end - start, HEADER_BYTES + start)
            columns[name] = column.view(dtype).reshape(shape)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: no shard or a damaged one ({error}); {_CONVERT}") from error
    digest = xxhash.xxh3_64(content[:HEADER_BYTES])
    digest.update(memoryview(content)[HEADER_BYTES + columns["data"].size :])
    return columns, digest.hexdigest()
