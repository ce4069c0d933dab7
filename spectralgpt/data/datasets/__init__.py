# SPDX-License-Identifier: Apache-2.0
"""Data sets, one file each; all yield TorchGeo's sample keys.

`open_dataset` opens one by its name, `detect` tells which a folder holds. `scene` cuts windows from scenes for
pretraining and is opened by the training itself.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectralgpt.errors import UserError

if TYPE_CHECKING:
    from spectralgpt.data.datasets.base import PatchDataset

NAMES = {
    "eurosat": "EuroSAT",
    "bigearthnet": "BigEarthNet",
    "fmow_sentinel": "FMoWSentinel",
    "oscd": "OSCD",
    "segmunich": "SegMunich",
    "folder": "Folder",
}
"""Data sets by name, and the class in the module of that name."""
SHARDS = "shards"
"""In place of a name: copies of any of them, which tell what they were made of."""


def open_dataset(
    name: str,
    root: str | Path,
    split: str = "train",
    bands: Sequence[str] | None = None,
    **options: Any,  # noqa: ANN401 - each data set has its own
) -> PatchDataset:
    """A data set by its name; `options` are its constructor's.

    Raises:
        UserError: no data set has this name or option, or what the constructor says.
    """
    dataset = dataset_class(name)
    known = [key for key in inspect.signature(dataset).parameters if key not in ("root", "split", "bands")]
    unknown = [key for key in options if key not in known]
    if unknown:
        raise UserError(f"option {unknown[0]!r} of {name}: expected one of {', '.join(known)}")
    opened: PatchDataset = dataset(root, split, bands, **options)
    return opened


def detect(root: str | Path) -> str:
    """The name of the data set whose archive a folder looks like; "folder" for any other with images."""
    from spectralgpt.data.paths import local

    path = local(root)
    return next((name for name in NAMES if dataset_class(name).recognises(path)), "folder")


def dataset_class(name: str) -> Any:  # noqa: ANN401 - a subclass of PatchDataset with its own constructor
    """The class behind a name.

    Raises:
        UserError: there is none.
    """
    if name not in NAMES:
        raise UserError(f"data set {name!r}: expected one of {', '.join(NAMES)}")
    return getattr(importlib.import_module(f"{__name__}.{name}"), NAMES[name])
