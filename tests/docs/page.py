# SPDX-License-Identifier: Apache-2.0
"""A page of docs: its code blocks, run as they stand, and its links."""

from __future__ import annotations

import re
import types
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


class Page:
    """One page: its text, its python blocks and its headings of the second level."""

    def __init__(self, name: str) -> None:
        self.path = DOCS / name
        self.text = self.path.read_text(encoding="utf-8")
        self.blocks = re.findall(r"```python\n(.*?)```", self.text, re.DOTALL)
        self.headings = re.findall(r"^## (.+)$", self.text, re.MULTILINE)

    def run(self, number: int) -> None:
        """Runs a block on its own; errors name the line of the page."""
        line = self.text[: self.text.index(self.blocks[number])].count("\n")
        exec(compile("\n" * line + self.blocks[number], str(self.path), "exec"), vars(types.ModuleType("page")))

    def broken_links(self) -> list[str]:
        """Targets of links that lead nowhere."""
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in self.headings}
        targets = re.findall(r"\]\(([^)]+)\)", self.text)
        here = [target for target in targets if target.startswith("#") and target[1:] not in anchors]
        files = [target for target in targets if target[0] != "#" and not (DOCS / target.partition("#")[0]).exists()]
        return here + files
