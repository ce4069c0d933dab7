# SPDX-License-Identifier: Apache-2.0
"""Splits and subsets as pure functions of the images' names, and the lists that are committed.

No random generator is involved: a name hashes to a number from 0 to 1, the same on every machine and in every
version. `part` reads a split off that number alone, so an image keeps its side when others come or go;
`subset` takes the smallest numbers, so 1 % lies within 10 %.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files

from spectralgpt.errors import UserError

EUROSAT_COUNTS = {
    "AnnualCrop": 3000,
    "Forest": 3000,
    "HerbaceousVegetation": 3000,
    "Highway": 2500,
    "Industrial": 2500,
    "Pasture": 2000,
    "PermanentCrop": 2500,
    "Residential": 3000,
    "River": 2500,
    "SeaLake": 3000,
}
"""Images of each EuroSAT class; they are `<Class>_1.tif` to `<Class>_<count>.tif`."""

PUBLISHED_SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}

_LETTERS = {"t": "train", "v": "val", "e": "test"}
_LINE = 100
_HEADER = (
    "# EuroSAT, 16200 train, 5400 val and 5400 test images. The n-th letter of a class, counted from 1, says where\n"
    "# <Class>_<n>.tif belongs: t train, v val, e test. Written by `python -m spectralgpt.data.splits`.\n"
)


def unit(name: str, seed: int = 0) -> float:
    """The number in [0, 1) that stands for a name."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") / 2**64


def part(name: str, shares: Mapping[str, float] = PUBLISHED_SHARES, seed: int = 0) -> str:
    """The split a name falls into; shares add up to 1."""
    number, border, last = unit(name, seed), 0.0, ""
    for split, share in shares.items():
        border += share
        last = split if share > 0 else last
        if number < border:
            return split
    return last  # a sum a little below 1


def subset(names: Sequence[str], fraction: float, seed: int = 0, labels: Sequence[Hashable] | None = None) -> list[int]:
    """Indices, ascending, of `fraction` of the names; that share of each label's where `labels` are given.

    Raises:
        UserError: the fraction is not above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"fraction: expected a number above 0 and at most 1, got {fraction}")
    groups: dict[Hashable, list[int]] = {}
    for index in range(len(names)):
        groups.setdefault(labels[index] if labels is not None else None, []).append(index)
    chosen: list[int] = []
    for group in groups.values():
        ranked = sorted(group, key=lambda index: (unit(names[index], seed), names[index]))
        chosen += ranked[: max(1, round(fraction * len(group)))]
    return sorted(chosen)


def eurosat_text() -> str:
    """The committed list, computed: of each class 60 %, 20 % and 20 % in the order of the names' numbers."""
    lines = []
    for name, count in EUROSAT_COUNTS.items():
        letters = [""] * count
        ranked = sorted(range(count), key=lambda n: unit(f"{name}_{n + 1}.tif"))
        for rank, n in enumerate(ranked):
            letters[n] = "t" if rank < count * 6 // 10 else "v" if rank < count * 8 // 10 else "e"
        text = "".join(letters)
        lines += [name, *(text[start : start + _LINE] for start in range(0, count, _LINE))]
    return _HEADER + "\n".join(lines) + "\n"


@lru_cache(maxsize=1)
def eurosat() -> Mapping[str, str]:
    """EuroSAT's published sizes: the split of each `<Class>/<Class>_<n>.tif`, from the committed list."""
    splits: dict[str, str] = {}
    name, number = "", 0
    for line in (files(__name__) / "eurosat.txt").read_text("ascii").splitlines():
        if line in EUROSAT_COUNTS:
            name, number = line, 0
        elif not line.startswith("#"):
            for letter in line:
                number += 1
                splits[f"{name}/{name}_{number}.tif"] = _LETTERS[letter]
    return splits
