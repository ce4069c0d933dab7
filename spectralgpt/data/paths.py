# SPDX-License-Identifier: Apache-2.0
"""Which paths may be opened: what a table or manifest names stays below its folder, what a user names is local.

Names in a CSV or JSON file are untrusted. `inside` admits the few characters that mean nothing to a URL, to GDAL
or to another system, instead of listing what is dangerous, so it needs no list of schemes and drivers.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from spectralgpt.errors import UserError

_SPECIAL = frozenset('\\:!<>|"*?$')
_NOT_LOCAL = re.compile(r"^\s*([a-z][\w+.-]+:|<|/+vsi)|[\x00-\x1f]", re.IGNORECASE)
_MAX_NAME_BYTES = 255


def inside(root: Path, text: object) -> Path:
    """The path below `root` that an untrusted text names; it need not exist.

    Raises:
        UserError: the text is no plain relative path, or a link on the way leads out of `root`.
    """
    if not isinstance(text, str) or not all(map(_is_plain, _spellings(text))):
        raise UserError(f"{root}: expected plain paths below this folder, such as images/a.tif, got {_shown(text)}")
    path = root / text
    try:
        # Absolute before they meet the cache: what a relative path means changes with the working directory.
        real = path.resolve() if path.is_symlink() else _real(path.parent.absolute())
        is_inside = real.is_relative_to(_real(root.absolute()))
    except (OSError, RuntimeError) as error:  # a loop of links, a folder closed to us, a path too long
        raise UserError(f"{root}: expected paths that can be followed, got {_shown(text)}") from error
    if not is_inside:
        raise UserError(f"{root}: expected paths that stay below this folder, got the link {_shown(text)}")
    return path


def local(text: str | Path) -> Path:
    """The path of a file or folder a user names, "~" expanded; it need not exist.

    Raises:
        UserError: a URL, a virtual path of GDAL, or nothing a file system can hold.
    """
    name = str(text)
    if _NOT_LOCAL.search(name):
        raise UserError(f"{_shown(name)}: expected a local file or folder; give one with a colon by its full path")
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # a name too long, a user unknown
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{_shown(name)}: expected a local file or folder ({reason})") from error
    return path


_real = lru_cache(maxsize=1 << 16)(Path.resolve)  # tables name a million files in far fewer folders


def _is_plain(text: str) -> bool:
    names = text.removeprefix("./").split("/")
    return (
        text.isprintable()
        and text[:1] != "~"
        and not _SPECIAL & set(text)
        and all(name.strip(" .") and name[:2] != ".." and len(name.encode()) <= _MAX_NAME_BYTES for name in names)
    )


def _spellings(text: str) -> set[str]:
    """The text, and what it becomes where percent signs are decoded or look-alike characters are unified."""
    return {form for spelling in (text, unquote(text)) for form in (spelling, unicodedata.normalize("NFKC", spelling))}


def _shown(text: object) -> str:
    """For one line of a message; look-alike and invisible characters as their codes."""
    shown = ascii(text)
    return shown if len(shown) <= 120 else f"{shown[:117]}..."
