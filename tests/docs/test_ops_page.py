# SPDX-License-Identifier: Apache-2.0
"""docs/ops.md: every code block runs, every public op has a section, every link leads somewhere."""

from __future__ import annotations

import types

import pytest

from spectralgpt import ops
from tests.docs.page import Page

PAGE = Page("ops.md")


@pytest.mark.parametrize("number", range(len(PAGE.blocks)))
def test_block_runs(number: int) -> None:
    PAGE.run(number)


def test_every_op_has_a_section_and_an_example() -> None:
    functions = [
        name
        for name in ops.__all__
        if isinstance(getattr(ops, name), types.FunctionType) and name not in ("num_visible", "philox")
    ]
    for name in functions:
        assert any(name in heading for heading in PAGE.headings), f"{name} has no section"
        assert any(f"ops.{name}(" in block for block in PAGE.blocks), f"{name} has no example"


def test_links_lead_somewhere() -> None:
    assert PAGE.broken_links() == []
