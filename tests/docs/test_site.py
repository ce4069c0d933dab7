# SPDX-License-Identifier: Apache-2.0
"""The documentation site builds without a warning, holds every page, and every link of every page leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.commands import PAGES, ROOT

DOCS = ROOT / "docs"


class _Loader(yaml.SafeLoader):
    """Of a recipe for mkdocs, whose tags are names of functions."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def settings() -> dict[str, Any]:
    """mkdocs.yml."""
    found: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader=_Loader)
    return found


def pages_of(entry: object) -> list[str]:
    """All pages below an entry of the navigation."""
    if isinstance(entry, str):
        return [entry]
    children = entry.values() if isinstance(entry, dict) else entry
    return [page for child in children for page in pages_of(child)]  # type: ignore[attr-defined]


def anchors(path: Path) -> set[str]:
    """The anchors that headings make."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(path), f"{page.name}: {target}"


def test_every_page_of_the_navigation_exists() -> None:
    listed = pages_of(settings()["nav"])
    assert [page for page in listed if not (DOCS / page).is_file()] == []
    assert len(set(listed)) == len(listed)


@pytest.mark.acceptance
def test_every_page_is_in_the_navigation() -> None:
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert there - set(pages_of(settings()["nav"])) == set()


@pytest.mark.acceptance
def test_the_site_builds_strictly_and_holds_the_reference(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    pytest.importorskip("mkdocstrings", reason="needs the extra docs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "WARNING" not in done.stderr
    reference = (tmp_path / "reference" / "index.html").read_text()
    for name in ("create_model", "load_encoder", "random_cube_mask", "Scene", "predict_scene", "push_to_hub"):
        assert re.search(rf'id="spectralgpt\.[\w.]*{name}"', reference), name
    for html in tmp_path.rglob("index.html"):
        sources = re.findall(r'(?:src|href)="(https?://[^"]+)"', html.read_text())
        loaded = [url for url in sources if re.search(r"\.(js|css|woff2?)(\?|$)|fonts\.", url)]
        assert loaded == [], f"{html}: fetches {loaded}"
