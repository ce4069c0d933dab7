# SPDX-License-Identifier: Apache-2.0
"""The commands of `spectralgpt prepare`: each does its work and returns what to tell the user."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from spectralgpt.data.convert import convert
from spectralgpt.data.convert import verify as verify_split
from spectralgpt.data.datasets import SHARDS, detect, open_dataset
from spectralgpt.data.datasets.base import PatchDataset
from spectralgpt.data.demo import demo_scene
from spectralgpt.data.paths import local
from spectralgpt.data.report import parse_options
from spectralgpt.data.shards import INDEX, Shards
from spectralgpt.data.statistics import measure
from spectralgpt.errors import UserError


def demo(cache: Path | None) -> str:
    """Fetches the demo scene ahead of the first training."""
    scene = demo_scene(cache)
    return f"{scene.note}\n{scene.path}"


def stats(
    root: str,
    out: Path,
    dataset: str | None,
    split: str,
    bands: Sequence[str] | None,
    option: Sequence[str],
    workers: int,
    max_bad: float,
) -> str:
    """Writes statistics of the bands of a data set."""
    images, name = _open(root, dataset, split, bands, option)
    found, bad = measure(images, name, num_workers=workers, max_bad=max_bad)
    found.save(out)
    lines = [f"{'band':8} {'mean':>11} {'std':>11} {'min':>11} {'max':>11} {'valid':>7}"]
    rows = zip(found.band_names, found.mean, found.std, found.low, found.high, found.valid_share, strict=True)
    lines += [
        f"{band:8} {mean:11.5g} {std:11.5g} {low:11.5g} {high:11.5g} {valid:7.2%}"
        for band, mean, std, low, high, valid in rows
    ]
    return "\n".join([*lines, f"{out}: {found.num_images} images{_left_out(bad)}"])


def shards(
    root: str,
    out: str,
    shard_size: int,
    dataset: str | None,
    split: str,
    bands: Sequence[str] | None,
    option: Sequence[str],
    workers: int,
    max_bad: float,
) -> str:
    """Makes shards of a data set, or what is missing of them."""
    if shard_size < 1:
        raise UserError(f"--shard-size: expected at least 1 MiB, got {shard_size}")
    images, name = _open(root, dataset, split, bands, option)
    start = time.monotonic()
    done = convert(images, name, out, num_workers=workers, shard_size=shard_size << 20, max_bad=max_bad)
    seconds = max(time.monotonic() - start, 1e-9)
    made = f"{done.num_made / seconds:.0f} images/s" if done.num_made else "nothing left to do"
    size = sum(path.stat().st_size for path in done.folder.glob("shard-*")) / 1e9
    what = f"{done.num_records} records in {done.num_shards} shards, {size:.2f} GB; {made}"
    return f"{done.folder}: {what}{_left_out(done.bad)}"


def verify(root: str) -> str:
    """Compares all splits' shards with their hashes."""
    folders = sorted(path.parent for path in local(root).glob(f"*/{INDEX}"))
    if not folders:
        raise UserError(f"{root}: expected shards, found no {INDEX} in the folders of splits below it")
    counts = {folder.name: verify_split(root, folder.name) for folder in folders}
    return f"{root}: whole; " + ", ".join(f"{count} records in {split}" for split, count in counts.items())


def _open(
    root: str, dataset: str | None, split: str, bands: Sequence[str] | None, options: Sequence[str]
) -> tuple[PatchDataset, str]:
    if dataset == SHARDS:
        return Shards(root, split, bands), dataset
    kind = dataset or detect(root)
    return open_dataset(kind, root, split, bands, **parse_options(options)), kind


def _left_out(bad: Sequence[tuple[str, str]]) -> str:
    return "".join(f"\nleft out: {name}: {reason}" for name, reason in bad)
