# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or absent under their name, whatever moment the power goes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a hidden name beside `path`; the file that the block writes there takes its place in one step.

    Raises:
        OSError: the disk is full or refuses. `path` keeps its former content, also where the block raises.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text in place of `path`'s, as `replacing` does."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def publish(temporary: Path, final: Path) -> None:
    """Makes a finished file appear under its name in one step, on disk afterwards."""
    sync(temporary)
    os.replace(temporary, final)
    sync(final.parent)  # which holds the name: a rename alone may be lost


def sync(path: Path) -> None:
    """Returns once a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
