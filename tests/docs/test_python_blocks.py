# SPDX-License-Identifier: Apache-2.0
"""The python blocks of pages without a test of their own, in one namespace a page, as a reader would type them."""

from __future__ import annotations

import re
import types
from pathlib import Path

import pytest

from tests.docs.commands import PAGES, ROOT
from tests.docs.world import World

TESTED_ALONE = {"ops.md", "models.md", "scenes.md"}
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
FOUND = [page for page in PAGES if page.name not in TESTED_ALONE and BLOCK.search(page.read_text())]
SLOW = {"README.md", "data.md"}
"""They load `base`, and make all of EuroSAT."""


@pytest.mark.filterwarnings("ignore::FutureWarning:timm")
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.acceptance] if page.name in SLOW else []) for page in FOUND],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "import timm" in page.read_text():
        pytest.importorskip("timm", reason="needs timm")
    monkeypatch.chdir(tmp_path)
    world, text = World(tmp_path, page.name), page.read_text()
    namespace = vars(types.ModuleType("page"))
    for match in BLOCK.finditer(text):
        code = world.prepared(match[1])
        exec(compile("\n" * text[: match.start(1)].count("\n") + code, str(page), "exec"), namespace)
