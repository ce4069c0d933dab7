# SPDX-License-Identifier: Apache-2.0
"""Lists and CSV tables that come with data sets: untrusted text, named by file, line and column in errors."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectralgpt.errors import UserError


def read_table(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> dict[str, list[str]]:
    """Columns of a CSV file with a header line, by name; an optional one that is not there is left out.

    Raises:
        UserError: the file is missing or damaged, or lacks a column.
    """
    regular(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in columns if name not in header]
            if missing:
                there = ", ".join(filter(None, header)) or "nothing"
                raise UserError(f"{path}: expected column {', '.join(missing)}, there is {there}; rename or add it")
            wanted = [name for name in (*columns, *optional) if name in header]
            places = [header.index(name) for name in wanted]
            table: dict[str, list[str]] = {name: [] for name in wanted}
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise UserError(
                        f"{path}, line {reader.line_num}: expected {len(header)} columns as in the header, "
                        f"got {len(row)}; put quotes around commas"
                    )
                for name, place in zip(wanted, places, strict=True):
                    table[name].append(row[place].strip())
            return table
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise unreadable(path, error) from error


def read_lines(path: Path) -> list[str]:
    """The first column of a list without a header: one id per line, empty lines passed over.

    Raises:
        UserError: the file is missing or damaged.
    """
    regular(path)
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error
    return [id for line in text.splitlines() if (id := line.split(",")[0].strip())]


def regular(path: Path) -> Path:
    """The path.

    Raises:
        UserError: nothing is there, or something that is no file.
    """
    if not path.is_file():  # opening a pipe waits for a writer
        raise UserError(f"{path}: expected a text table, no such file")
    return path


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """The content of a JSON file.

    Raises:
        UserError: the file is missing or damaged.
    """
    regular(path)
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> UserError:
    """The error for a table or list that cannot be read."""
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return UserError(f"{path}: expected a text table, cannot read it ({reason})")


def packed(texts: Sequence[str]) -> NDArray[np.bytes_]:
    """Many strings as one array, which goes to worker processes as one block instead of a million objects."""
    return np.array([text.encode() for text in texts], np.bytes_)


def first_existing(candidates: Sequence[Path], what: str) -> Path:
    """The first path that exists.

    Raises:
        UserError: none does.
    """
    for path in candidates:
        if path.exists():
            return path
    raise UserError(
        f"{candidates[0].parent}: expected {what}, as {' or '.join(dict.fromkeys(path.name for path in candidates))}"
    )
