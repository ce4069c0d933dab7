# SPDX-License-Identifier: Apache-2.0
"""The dates of pairs as images of their own, for training without labels.

Each date is then drawn, cropped and counted like any other image, so that a stage mixes all of them.
"""

from __future__ import annotations

from dataclasses import replace

from spectralgpt.data.datasets.base import PatchDataset
from spectralgpt.data.record import Record

_PAIR = 2


class SingleDates(PatchDataset):
    """Image i of a pair's data set is date i % 2 of its pair i // 2, without labels."""

    title = "dates of pairs"

    def __init__(self, pairs: PatchDataset) -> None:
        """Of a data set whose task is change."""
        self._pairs = pairs
        self.root, self.split, self.card = pairs.root, pairs.split, pairs.card
        self.transforms, self.notes = None, pairs.notes

    def __len__(self) -> int:
        """Number of dates in all."""
        return _PAIR * len(self._pairs)

    def name(self, index: int) -> str:
        """The pair's name and which date of it."""
        return f"{self._pairs.name(index // _PAIR)}, date {index % _PAIR + 1}"

    def read(self, index: int) -> Record:
        """One date, as `PatchDataset.read`."""
        pair, date = self._pairs.read(index // _PAIR), index % _PAIR
        return replace(
            pair,
            name=self.name(index),
            pixels=pair.pixels[date],
            valid=None if pair.valid is None else pair.valid[date],
            low=pair.low[date],
            high=pair.high[date],
            label=None,
            mask=None,
        )
