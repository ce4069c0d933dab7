# SPDX-License-Identifier: Apache-2.0
"""Makes shards of a data set: in parallel, and after any interruption the same command goes on.

What goes into which shard is decided beforehand and noted in `plan.json`. A shard appears whole or not at all, so a
restart keeps those that are there and makes the others, and the result does not depend on what happened in between.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from tqdm import tqdm

from spectralgpt.data import workers
from spectralgpt.data.datasets.base import PatchDataset
from spectralgpt.data.shard_file import Shard
from spectralgpt.data.shard_writer import ShardWriter
from spectralgpt.data.shards import INDEX, Shards, describe, read_json, shard_path, write_json
from spectralgpt.errors import UserError

SHARD_SIZE = 1 << 30

_LEAST_SIZE = 64 << 20
_SHARE_OUT = 16
_SAMPLES = 16
_NAMED = 10


@dataclass(frozen=True)
class Conversion:
    """What `convert` did; `num_made` images were read now, the others before."""

    folder: Path
    num_records: int
    num_made: int
    num_shards: int
    bad: list[tuple[str, str]]


def convert(
    dataset: PatchDataset,
    name: str,
    out: str | Path,
    *,
    num_workers: int = 1,
    shard_size: int = SHARD_SIZE,
    max_bad: float = 0.01,
) -> Conversion:
    """Writes the shards of one split to `<out>/<split>`, or what is missing of them.

    Args:
        dataset: the original files.
        name: of the data set, kept in the index.
        out: folder for all splits.
        num_workers: processes; 0 works in this one.
        shard_size: bytes of a shard, about. Small data sets get up to 16 smaller ones, to share out the work.
        max_bad: share of images that may be unreadable; they are left out and listed in the index.

    Raises:
        UserError: too many bad images, the disk is full, or the folder holds another conversion.
    """
    folder = Path(out) / dataset.split
    if not len(dataset):
        raise UserError(f"{dataset.root}: expected images in split {dataset.split!r}, got none")
    with _only_writer(folder):
        plan = _plan(dataset, name, folder, shard_size)
        size, count = plan["images_per_shard"], plan["num_images"]
        ranges = [range(start, min(start + size, count)) for start in range(0, count, size)]
        paths = [shard_path(folder, number) for number in range(len(ranges))]
        todo = [(path, images) for path, images in zip(paths, ranges, strict=True) if not path.exists()]
        num_made = sum(len(images) for _, images in todo)
        workers.run(
            _write,
            todo,
            dataset,
            num_images=num_made,
            num_workers=num_workers,
            max_bad=max_bad,
            title=str(folder),
        )
        shards = [Shard(path) for path in paths]
        bad = [named for shard in shards for named in shard.bad]
        entries = [list(shard.entry) for shard in shards]
        with _full_disk(folder):
            write_json(folder / INDEX, {**plan, "shards": entries, "bad": [list(named) for named in bad]})
            (folder / "plan.json").unlink(missing_ok=True)
    return Conversion(folder, sum(shard.entry.records for shard in shards), num_made, len(shards), bad)


def verify(root: str | Path, split: str) -> int:
    """Compares everything in a split's shards with its hash and returns the number of records.

    Raises:
        UserError: some are damaged; names them.
    """
    shards = Shards(root, split)
    damaged = []
    for index in tqdm(range(len(shards)), unit=" records", desc=str(Path(root) / split), disable=None):
        try:
            shards.check(index)
        except UserError as error:
            damaged.append(str(error))
    if damaged:
        more = f"; and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
        raise UserError(f"{len(damaged)} of {len(shards)} records damaged: {'; '.join(damaged[:_NAMED])}{more}")
    return len(shards)


def _plan(dataset: PatchDataset, name: str, folder: Path, shard_size: int) -> dict[str, Any]:
    """What goes where: from a conversion that has begun, or made now and noted."""
    digest = xxhash.xxh3_64()
    for index in range(len(dataset)):
        digest.update(dataset.name(index).encode("utf-8", "surrogateescape") + b"\0")
    now = {**describe(dataset, name), "num_images": len(dataset), "names_hash": digest.hexdigest()}
    now["shard_size"] = shard_size
    for path in (folder / INDEX, folder / "plan.json"):
        if path.exists():
            before = read_json(path)
            differing = [key for key, value in now.items() if before.get(key) != value]
            if differing:
                raise UserError(
                    f"{folder}: expected the same conversion as the one it holds, got other {', '.join(differing)}; "
                    "choose another folder or remove this one"
                )
            return {key: before[key] for key in (*now, "images_per_shard")}
    if any(folder.glob("shard-*")):
        raise UserError(f"{folder}: expected an empty folder, got shards without a plan; choose another folder")
    plan = {**now, "images_per_shard": _images_per_shard(dataset, shard_size)}
    with _full_disk(folder):
        write_json(folder / "plan.json", plan)
    return plan


def _images_per_shard(dataset: PatchDataset, shard_size: int) -> int:
    """Estimated from some images spread over the data set."""
    sizes = []
    for index in np.linspace(0, len(dataset) - 1, min(_SAMPLES, len(dataset))).astype(int).tolist():
        try:
            sizes.append(dataset.read(index).pixels.nbytes)
        except (UserError, OSError):
            continue
    total = len(dataset) * (sum(sizes) / len(sizes) if sizes else 1.0)
    count = max(total / shard_size, min(_SHARE_OUT, total / _LEAST_SIZE), 1)
    return int(-(-len(dataset) // count))


def _write(
    dataset: PatchDataset, task: tuple[Path, range], progress: workers.Progress
) -> tuple[None, list[tuple[str, str]]]:
    """Writes one shard; told to stop, it leaves nothing."""
    path, images = task
    bad: list[tuple[str, str]] = []
    with _full_disk(path), ShardWriter(path) as shard:
        for record, named in progress.read(dataset, images):
            if record is None:
                bad.append(named)
            else:
                shard.add(record)
        if not progress.stop.is_set():
            shard.commit(bad)
    return None, bad


@contextmanager
def _full_disk(path: Path) -> Iterator[None]:
    """Says what a failed write means."""
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(path if path.is_dir() else path.parent).free / 1e9
        raise UserError(
            f"{path}: cannot be written ({error.strerror}; {free:.1f} GB free); whole shards are kept: make room and "
            "run the same command again"
        ) from error


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Makes the folder, keeps a second converter out of it, and clears away what a killed one left."""
    with _full_disk(folder.parent):
        folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{folder}: another `spectralgpt prepare shards` is writing here; wait for it") from error
        for path in (*folder.glob(".shard-*"), *folder.glob(".*.json.*")):
            path.unlink()
        yield
    finally:
        os.close(descriptor)
