# SPDX-License-Identifier: Apache-2.0
"""The page as an HTML parser reads it: complete, self-contained, and data stays data."""

from __future__ import annotations

import base64
from html.parser import HTMLParser

from matplotlib.figure import Figure

from spectralgpt.viz.page import Facts, Heading, Picture, Table, Text, png, render, write_page

EVIL = "<script>alert(1)</script>\"'&{{ 7 * 7 }}"


class Reader(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())


def blocks(text=EVIL):
    figure = Figure(figsize=(1, 1))
    figure.add_subplot().plot([0, 1])
    table = Table([text, "b"], [[text, 0.12345], ["x", None], ["y", 12345], ["z", text]], caption=text)
    return [Heading(text), Text(text), Facts({text: text, "n": 3}), table, Picture(png(figure), text)]


def test_hostile_names_are_shown_and_nothing_more():
    page = Reader(render(EVIL, blocks()))
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert page.texts.count(EVIL) == 11, "title twice, then each place that holds the name"
    assert [given["alt"] for tag, given in page.tags if tag == "img"] == [EVIL]


def test_the_page_needs_no_other_file():
    page = Reader(render("t", blocks("plain")))
    assert not [tag for tag, _ in page.tags if tag in ("link", "script", "iframe", "object")]
    assert not [given for _, given in page.tags if "href" in given]
    (address,) = [given["src"] for _, given in page.tags if "src" in given]
    kind, _, data = address.partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data).startswith(b"\x89PNG")
    policy = [given["content"] for _, given in page.tags if given.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_numbers_are_set_for_reading():
    texts = Reader(render("t", blocks("plain"))).texts
    assert {"0.123", "\u2013", "12,345"} <= set(texts)


def test_small_numbers_keep_their_digits():
    page = Reader(render("t", [Facts({"loss": 0.004209, "zero": 0.0, "psnr": 24.4732})]))
    assert {"0.00421", "0.000", "24.473"} <= set(page.texts)


def test_long_tables_are_cut_and_say_so():
    page = Reader(render("t", [Table(["a"], [[str(i)] for i in range(2500)])]))
    assert "The first 2000 of 2500 rows." in page.texts
    assert "1999" in page.texts and "2000" not in page.texts


def test_the_file_is_the_same_for_the_same_report(tmp_path):
    for name in ("a", "b"):
        write_page(tmp_path / name, "Bänder", blocks())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert "Bänder" in (tmp_path / "a").read_text(encoding="utf-8")
