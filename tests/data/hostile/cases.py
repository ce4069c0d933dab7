# SPDX-License-Identifier: Apache-2.0
"""Files made to hurt a reader, the same ones every time, written kind by kind.

What may come of a `Case` is `PIXELS`, `REFUSED` (a UserError) or, where damage decides, either. What no file may do
is in `test_hostile.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.data.rasters import write

PIXELS, REFUSED = "pixels", "refused"


@dataclass(frozen=True)
class Case:
    """A file, or what stands in for one.

    Attributes:
        path: where it is.
        outcome: the only one allowed, or None.
        after_open: what happens to it between reading the header and reading pixels.
    """

    path: str
    outcome: str | None = None
    after_open: str | None = None


class Kind:
    """Writes the cases of one kind into a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cases = folder, []

    def place(self, name):
        """A path, its folder made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def add(self, path, outcome=None, after_open=None):
        """A case that is written already."""
        self.cases.append(Case(str(path), outcome, after_open))

    def bytes(self, name, data, outcome=None):
        """A case by its bytes."""
        path = self.place(f"{name}.tif")
        path.write_bytes(data)
        self.add(path, outcome)

    def raster(self, name, pixels, outcome=PIXELS, after_open=None, **profile):
        """A case that rasterio writes."""
        path = self.place(f"{name}.tif")
        write(path, pixels, **profile)
        self.add(path, outcome, after_open)
        return path
