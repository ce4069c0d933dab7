# SPDX-License-Identifier: Apache-2.0
"""docs/ops.md: every code block runs, every public op has a section, every link leads somewhere."""

from __future__ import annotations

import re
import types
from pathlib import Path

import pytest

from spectralgpt import ops

PAGE = Path(__file__).parents[2] / "docs" / "ops.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
HEADINGS = re.findall(r"^## (.+)$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_block_runs(number: int) -> None:
    line = TEXT[: TEXT.index(BLOCKS[number])].count("\n")
    code = compile("\n" * line + BLOCKS[number], str(PAGE), "exec")  # errors name the line of the page
    exec(code, vars(types.ModuleType("page")))


def test_every_op_has_a_section_and_an_example() -> None:
    functions = [
        name
        for name in ops.__all__
        if isinstance(getattr(ops, name), types.FunctionType) and name not in ("num_visible", "philox")
    ]
    for name in functions:
        assert any(name in heading for heading in HEADINGS), f"{name} has no section"
        assert any(f"ops.{name}(" in block for block in BLOCKS), f"{name} has no example"


def test_links_lead_somewhere() -> None:
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADINGS}
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        else:
            assert (PAGE.parent / target).exists(), target
