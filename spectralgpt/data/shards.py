# SPDX-License-Identifier: Apache-2.0
"""A data set as memory-mapped shards: the same records as from the original files, to the bit, far faster.

A folder `<root>/<split>` holds shards and `index.json`, which is written last: without it the conversion did not end,
and `prepare shards` goes on with it. Headers and indices are always checked against their hashes; pixels on each read
with `verify=True`, or all at once by `spectralgpt prepare verify`.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from spectralgpt.data.bands import Band, SensorCard
from spectralgpt.data.datasets.base import Labels, PatchDataset, Sample
from spectralgpt.data.paths import local
from spectralgpt.data.record import Record
from spectralgpt.data.shard_file import VERSION, Entry, Shard
from spectralgpt.errors import UserError
from spectralgpt.files import write_text

INDEX = "index.json"

_FORMAT = "spectralgpt-shards"


class Shards(PatchDataset):
    """The records of one split of a converted data set.

    Attributes:
        dataset: name of the data set they were made of, as the command line knows it.
        bad: images that could not be read at the conversion, with the reason.
    """

    title = "shards"

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        bands: Sequence[str] | None = None,
        transforms: Callable[[Sample], Sample] | None = None,
        verify: bool = False,
    ) -> None:
        """Reads the index; shards are opened when they are first needed.

        Args:
            root: the folder that `prepare shards` wrote.
            split: which part.
            bands: names of the bands to read, in this order; all by default.
            transforms: applied to the samples that indexing gives.
            verify: compare each record's payload with its hash.

        Raises:
            UserError: no such shards or bands, or a damaged index.
        """
        self.root, self.split, self.transforms, self._verify = local(root), split, transforms, verify
        index = read_index(self.root / split)
        stored = card_from_dict(index["card"])
        self.dataset: str = index["dataset"]
        self.task, self.classes, self.colours = index["task"], tuple(index["classes"]), tuple(index["colours"])
        self.notes = list(index["notes"])
        self.card = stored if bands is None else stored.select(bands)
        self._bands = _selection([stored.names.index(name) for name in self.card.names], len(stored.names))
        self._entries = [Entry(*entry) for entry in index["shards"]]
        self._ends = list(accumulate(entry.records for entry in self._entries))
        self._open: dict[int, Shard] = {}
        self.bad: list[tuple[str, str]] = [(name, reason) for name, reason in index["bad"]]

    def __len__(self) -> int:
        """Number of records."""
        return self._ends[-1]

    def name(self, index: int) -> str:
        """Name of a record."""
        shard, place = self._find(index)
        return shard.name(place)

    def read(self, index: int) -> Record:
        """The record; pixels and mask are read-only views of the file.

        Raises:
            UserError: the shard is missing or damaged, and with `verify`, the record is.
        """
        shard, place = self._find(index)
        if self._verify:
            shard.check(place)
        return shard.read(place, self._bands)

    def check(self, index: int) -> None:
        """Compares a record's payload with its hash.

        Raises:
            UserError: the record is damaged.
        """
        shard, place = self._find(index)
        shard.check(place)

    def labels(self) -> Labels | None:
        """Every image's label, from the indices of all shards."""
        if self.task not in ("single_label", "multi_label"):
            return None
        multi_hot = self.task == "multi_label"
        parts = [self._shard(number).labels(multi_hot) for number in range(len(self._entries))]
        return np.concatenate(parts)

    def _find(self, index: int) -> tuple[Shard, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.root}: expected an image from 0 to {len(self) - 1}, got {index}")
        number = bisect_right(self._ends, index)
        return self._shard(number), index - self._ends[number] + self._entries[number].records

    def _shard(self, number: int) -> Shard:
        if number not in self._open:
            self._open[number] = Shard(shard_path(self.root / self.split, number), self._entries[number])
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: it maps the shards itself."""
        return {**self.__dict__, "_open": {}}


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard-{number:05}.safetensors"


def describe(dataset: PatchDataset, name: str) -> dict[str, Any]:
    """What an index says of the data set itself."""
    return {
        "format": _FORMAT,
        "version": VERSION,
        "dataset": name,
        "split": dataset.split,
        "task": dataset.task,
        "classes": list(dataset.classes),
        "colours": list(dataset.colours),
        "notes": list(dataset.notes),
        "card": json.loads(json.dumps(asdict(dataset.card))),
    }


def card_from_dict(values: dict[str, Any]) -> SensorCard:
    """A sensor card from the plain values of `asdict`, after JSON made lists of its tuples."""
    known = {field.name: _tuples(values[field.name]) for field in fields(SensorCard) if field.name in values}
    bands = tuple(Band(**{key: _tuples(value) for key, value in band.items()}) for band in values["bands"])
    return SensorCard(**{**known, "bands": bands})


def read_index(folder: Path) -> dict[str, Any]:
    """The contents of a split's index.

    Raises:
        UserError: it is missing, damaged or of a newer version, or a shard is missing.
    """
    path = folder / INDEX
    if not path.is_file():
        begun = any(folder.glob("shard-*.safetensors")) or (folder / "plan.json").exists()
        way_out = (
            "the conversion did not end: run the same `spectralgpt prepare shards` again"
            if begun
            else ("make the shards with `spectralgpt prepare shards`")
        )
        raise UserError(f"{path}: no such file; {way_out}")
    index = read_json(path)
    missing = [number for number in range(len(index["shards"])) if not shard_path(folder, number).is_file()]
    if missing:
        raise UserError(f"{shard_path(folder, missing[0])}: no such file, one of {len(missing)} missing shards")
    return index


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes values with their hash; the file appears whole or not at all, and is on disk afterwards."""
    write_text(path, json.dumps({**values, "hash": _hash(values)}, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The values that `write_json` wrote.

    Raises:
        UserError: damaged, of another format or a newer version.
    """
    try:
        values = json.loads(path.read_bytes())
        found, name, version = values.pop("hash"), values["format"], values["version"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: expected a file written by `spectralgpt prepare`, got a damaged one ({error})"
        ) from error
    if name != _FORMAT:
        raise UserError(f"{path}: expected {_FORMAT}, got {name!r}")
    if isinstance(version, int) and version > VERSION:
        raise UserError(f"{path}: written by a newer version (format {version}, this reads {VERSION}); update")
    if found != _hash(values):
        raise UserError(f"{path}: damaged, its hash differs; remove it and run `spectralgpt prepare shards` again")
    return dict(values)


def _hash(values: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(values, sort_keys=True).encode())


def _tuples(value: Any) -> Any:  # noqa: ANN401
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _selection(places: list[int], count: int) -> slice | list[int]:
    """Places of bands as a slice, which copies nothing, where they follow each other."""
    if places == list(range(places[0], places[0] + len(places))):
        return slice(None) if len(places) == count else slice(places[0], places[0] + len(places))
    return places
