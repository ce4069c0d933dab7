# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or absent: what order things reach the disk in, and what a failure leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spectralgpt import files


def test_content_reaches_the_disk_before_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, replace = [], os.replace

    def renamed(old: Path, new: Path) -> None:
        calls.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", lambda number: calls.append(os.readlink(f"/proc/self/fd/{number}")))
    monkeypatch.setattr(os, "replace", renamed)
    with files.replacing(tmp_path / "a.json") as draft:
        draft.write_text("new")
    assert calls == [str(draft), "rename", str(tmp_path)]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_failure_keeps_the_former_content_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("former")
    with pytest.raises(OSError, match="full"), files.replacing(tmp_path / "a.json") as draft:
        draft.write_text("ne")
        raise OSError("the disk is full")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.json": "former"}
