# SPDX-License-Identifier: Apache-2.0
"""A report as one HTML file: pictures inside it, no script, nothing fetched, readable for years and offline.

Whatever comes from data (names of files, classes, messages) is escaped by the template engine, and the page forbids
itself scripts and connections besides, so a hostile file name stays a file name.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment
from matplotlib.figure import Figure

_MAX_ROWS = 2000


@dataclass(frozen=True)
class Heading:
    """Opens a section."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Facts:
    """Names and values side by side: what was run, on what.

    Attributes:
        values: shown in this order.
    """

    values: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows under a header; numbers are set to the right, floats with three decimals or digits, None as a dash.

    Attributes:
        header: of the columns.
        rows: as many cells each; the first cell names the row.
        caption: below it.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG inside the page.

    Attributes:
        png: the file's bytes (see `png`).
        caption: below it, and for who does not see it.
    """

    png: bytes
    caption: str

    @property
    def address(self) -> str:
        """The picture as a data address."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


Block = Heading | Text | Facts | Table | Picture


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # the same bytes for the same figure
    return buffer.getvalue()


def render(title: str, blocks: Sequence[Block]) -> str:
    """The page's text.

    Args:
        title: of the page.
        blocks: from top to bottom; of a table at most 2000 rows are shown, and the page says so.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = _cell
    template = environment.from_string(_PAGE)
    kinds = [(type(block).__name__, block) for block in blocks]
    return template.render(title=title, blocks=kinds, style=_STYLE, most=_MAX_ROWS)


def write_page(path: Path, title: str, blocks: Sequence[Block]) -> None:
    """Writes the page; its folder exists."""
    path.write_text(render(title, blocks), encoding="utf-8")


def _cell(value: Any) -> str:  # noqa: ANN401
    if value is None:
        return "\u2013"
    if isinstance(value, float):
        return f"{value:.3g}" if 0 < abs(value) < 0.1 else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --soft: #62626c; --line: #dcdce2; --paper: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ec; --soft: #a0a0aa; --line: #3a3a42; --paper: #17171a; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 2.5rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
th { overflow-wrap: break-word; }  /* a long value beside it does not squeeze a name */
h1 { font-size: 1.6rem; margin: 0 0 1rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
table { border-collapse: collapse; margin: 0 0 1rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; }
th { font-weight: 600; } .scroll { overflow-x: auto; }
figure { margin: 0; } figcaption, .caption { color: var(--soft); font-size: .88rem; margin-top: .4rem; }
img { max-width: 100%; height: auto; background: #ffffff; border-radius: 4px; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for kind, block in blocks %}
{% if kind == "Heading" %}
<h2>{{ block.text }}</h2>
{% elif kind == "Text" %}
<p>{{ block.text }}</p>
{% elif kind == "Facts" %}
<table>
{% for name, value in block.values.items() %}
<tr><th scope="row">{{ name }}</th><td>{{ value | cell }}</td></tr>
{% endfor %}
</table>
{% elif kind == "Table" %}
<div class="scroll"><table>
<thead><tr>
{% for name in block.header %}
<th scope="col"{% if not loop.first %} class="number"{% endif %}>{{ name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in block.rows[:most] %}
<tr>
{% for cell in row %}
{% if loop.first %}<th scope="row">{{ cell | cell }}</th>{% elif cell is number or cell is none %}
<td class="number">{{ cell | cell }}</td>{% else %}<td>{{ cell }}</td>{% endif %}
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% if block.rows | length > most %}
<p class="caption">The first {{ most }} of {{ block.rows | length }} rows.</p>
{% endif %}
{% if block.caption %}
<p class="caption">{{ block.caption }}</p>
{% endif %}
{% else %}
<figure><img src="{{ block.address }}" alt="{{ block.caption }}"><figcaption>{{ block.caption }}</figcaption></figure>
{% endif %}
{% endfor %}
</body>
</html>
"""
