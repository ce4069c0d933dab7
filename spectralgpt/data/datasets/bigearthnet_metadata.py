# SPDX-License-Identifier: Apache-2.0
"""The table that comes with BigEarthNet version 2: labels and the official split of every patch.

The release has it as Parquet, which only pyarrow reads; without pyarrow a CSV or JSON export serves.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, NamedTuple

from spectralgpt.data.datasets.tables import first_existing, read_json, read_table, regular, unreadable
from spectralgpt.data.paths import local
from spectralgpt.errors import UserError

_COLUMNS = ("patch_id", "labels", "split")
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")


class Row(NamedTuple):
    """Labels and split of a patch."""

    labels: list[str]
    split: str


def read_metadata(root: Path, path: str | Path | None) -> dict[str, Row]:
    """Rows by patch id.

    Raises:
        UserError: the table is missing or damaged, lacks a column, or is Parquet and pyarrow is not installed.
    """
    names = ("metadata.parquet", "metadata.csv", "metadata.json")
    found = first_existing([root / name for name in names], "the table of version 2") if path is None else local(path)
    table: dict[str, list[Any]]
    if found.suffix == ".parquet":
        table = _parquet(found)
    elif found.suffix == ".json":
        table = _json(found)
    else:
        table = dict(read_table(found, _COLUMNS))
        table["labels"] = [_texts(text) for text in table["labels"]]
    return {id: Row(labels, split) for id, labels, split in zip(*(table[name] for name in _COLUMNS), strict=True)}


def _parquet(path: Path) -> dict[str, list[Any]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UserError(
            f"{path}: expected pyarrow to read Parquet, it is not installed; run `pip install pyarrow`, or export "
            "the table as metadata.csv or metadata.json"
        ) from error
    regular(path)
    try:
        missing = [name for name in _COLUMNS if name not in parquet.read_schema(path).names]
        if not missing:
            table: dict[str, list[Any]] = parquet.read_table(path, columns=list(_COLUMNS)).to_pydict()
            return table
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    raise UserError(f"{path}: expected columns {', '.join(_COLUMNS)}, {', '.join(missing)} missing")


def _json(path: Path) -> dict[str, list[Any]]:
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() >= set(_COLUMNS) for row in rows):
        raise UserError(f"{path}: expected a list of rows with {', '.join(_COLUMNS)}")
    if not all(isinstance(row["labels"], list) for row in rows):
        raise UserError(f'{path}: expected a list of names under "labels" in every row')
    return {name: [row[name] for row in rows] for name in _COLUMNS}


def _texts(text: str) -> list[str]:
    """The names in a CSV cell: quoted, as Python and NumPy print lists, or separated by semicolons."""
    quoted = [single or double for single, double in _QUOTED.findall(text)]
    return quoted or [name.strip() for name in text.split(";") if name.strip()]
