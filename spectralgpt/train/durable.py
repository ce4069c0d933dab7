# SPDX-License-Identifier: Apache-2.0
"""Folders and files that are whole or absent, whatever moment the power goes.

A folder is filled under a temporary name; every file in it is flushed to disk, its size and sha256 go to
manifest.json, and one rename makes it appear. Nothing is ever written into a committed folder. The manifest is
checked before anything is read, since PyTorch and safetensors load flipped bits without a word; it guards against
damage, not against its author.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spectralgpt.errors import UserError
from spectralgpt.files import publish, sync

FORMAT = 1
"""Of the folders written here; a reader refuses newer ones."""
MANIFEST = "manifest.json"
_TEMPORARY = ".tmp-"
_MAX_MANIFEST = 2**24
_NAME = re.compile(r"\w[\w.-]*")


def commit(final: Path, write: Callable[[Path], None], record: Mapping[str, Any] | None = None) -> None:
    """Makes the folder `final` appear with the files that `write` puts into the folder it is given.

    Args:
        final: takes the place of a damaged folder of that name, if there is one.
        write: fills the temporary folder with files, not folders.
        record: further entries of the manifest.

    Raises:
        OSError: the disk is full or refuses; nothing half-written stays. Also what `write` raises.
    """
    temporary = final.with_name(f"{_TEMPORARY}{final.name}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        clear(final.parent)
        temporary.mkdir()
        write(temporary)
        _seal(temporary, record or {})
        if final.exists():  # a damaged one, passed over when the run was resumed
            discard(final)
        os.rename(temporary, final)
        sync(final.parent)
    except Exception:
        remove(temporary)
        raise


def damage(folder: Path) -> str | None:
    """Why a folder that `commit` made cannot be trusted, naming the file; None where all sizes and hashes agree.

    Raises:
        UserError: a newer version of this library wrote it.
    """
    try:
        if (folder / MANIFEST).stat().st_size > _MAX_MANIFEST:
            return f"{MANIFEST}: too large"
        record = json.loads((folder / MANIFEST).read_bytes())
        if record.pop("sha256") != digest(record):
            return f"{MANIFEST}: the content does not match its hash"
        version = int(record["format"])
        expected = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in record["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST}: {getattr(error, 'strerror', None) or 'unreadable'}"
    if version > FORMAT:
        raise UserError(
            f"{folder}: expected format {FORMAT} or older, got {version}; a newer spectralgpt wrote it: update this one"
        )
    for name, (size, sha256) in expected.items():
        if not _NAME.fullmatch(name) or (folder / name).is_symlink():
            return f"{MANIFEST}: {name[:80]!r} is no name of a file in the folder"
        try:
            if (folder / name).stat().st_size != size:
                return f"{name}: expected {size} bytes, got {(folder / name).stat().st_size}"
            if _sha256(folder / name) != sha256:
                return f"{name}: the content does not match its hash"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return None


def digest(content: Mapping[str, Any]) -> str:
    """What a manifest says of itself."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def replace_file(path: Path, text: str) -> None:
    """Writes a file that appears whole or keeps its former content, by way of a name that `clear` knows."""
    temporary = path.with_name(f"{_TEMPORARY}{path.name}")
    temporary.write_text(text, encoding="utf-8")
    publish(temporary, path)


def discard(folder: Path) -> None:
    """Removes a committed folder so that a kill in between leaves no half of it under its name."""
    doomed = folder.with_name(f"{_TEMPORARY}old-{folder.name}")
    remove(doomed)
    os.rename(folder, doomed)
    remove(doomed)


def clear(folder: Path) -> None:
    """Removes what a killed process left half-written in a folder."""
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        remove(leftover)


def remove(path: Path) -> None:
    """Removes a file or folder as far as the disk lets it; a remainder under a temporary name does no harm."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _seal(folder: Path, record: Mapping[str, Any]) -> None:
    """Flushes every file, writes down what they must be, and flushes that and the folder."""
    files = {}
    for path in sorted(folder.iterdir()):
        sync(path)
        files[path.name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    manifest, content = folder / MANIFEST, {"format": FORMAT, **record, "files": files}
    manifest.write_text(json.dumps({**content, "sha256": digest(content)}, indent=1), encoding="utf-8")
    sync(manifest)
    sync(folder)


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()
