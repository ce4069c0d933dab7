# SPDX-License-Identifier: Apache-2.0
"""The page of a run: everything that the folder holds is on it, whatever its names are."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from spectralgpt.cli import main
from spectralgpt.data.raster_write import write_cog
from spectralgpt.data.scene import Scene
from spectralgpt.errors import UserError
from spectralgpt.predict.layers import class_layer, probability_layer
from spectralgpt.train.report import write_report
from spectralgpt.viz.scene_figure import save_picture
from tests.data.rasters import noise, write

EVIL = "<script>alert(1)</script>&\"'"


@pytest.fixture
def run(tmp_path):
    """A folder as training, `evaluate` and `predict` leave it; data with names that would be markup."""
    folder = tmp_path / "run"
    (folder / "figures").mkdir(parents=True)
    recipe = f"name: run\nseed: 3\nmodel: {{name: tiny}}\ndata: {{root: {json.dumps(EVIL)}, bands: [B02, B03]}}\n"
    (folder / "config.yaml").write_text(recipe + "stages:\n- {name: one, lr: 0.1}\n- {name: two, lr: 0.2}\n")
    rows = [
        {"step": step, "stage": "one" if step < 150 else "two", "samples": 4 * step, "lr": 0.1, "loss": 1 / step,
         "token_loss": 0.5 / step, "gradient_norm": None if step == 7 else 1.0}
        for step in range(1, 301)
    ]  # fmt: skip
    rows.append({"step": 150, "stage": "one", "psnr": 20.0, "psnr_mean": 18.0})
    rows.append({"step": 300, "stage": "two", "psnr": 21.5, "psnr_mean": 18.0, "bands": {EVIL: {"psnr": 4.25}}})
    text = "\n".join(map(json.dumps, rows)) + '\n{"step": 301, "torn'
    (folder / "metrics.jsonl").write_text(text)
    save_picture(folder / "figures" / "step-300.png", np.zeros((4, 4, 3), np.uint8))
    (folder / "evaluation" / "test").mkdir(parents=True)
    results = {"scores": {"accuracy": 0.8125, "count": 16, "per_class": {}}, "intervals": {"accuracy": [0.7, 0.9]}}
    (folder / "evaluation" / "test" / "results.json").write_text(json.dumps(results))
    scene = Scene.open(write(tmp_path / "scene.tif", noise(1, 40, 60), ["B02"]), "sentinel2", ["B02"])
    (folder / "maps").mkdir()
    layer = class_layer(folder / "maps" / "map.tif", scene, ("water", EVIL), ("#0000ff", "#00ff00"))
    write_cog(layer.path, layer.layout, [(0, np.eye(40, 60, dtype=np.uint8)[None])])
    beside = probability_layer(folder / "maps" / "map-probabilities.tif", scene, ("water", EVIL))
    write_cog(beside.path, beside.layout, [(0, np.zeros((2, 40, 60), np.uint8))])
    return folder


class Page(HTMLParser):
    """Text and pictures of a page, by a real parser."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.pictures = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])

    def handle_data(self, data):
        self.words.append(data)


def test_all_of_it_is_on_the_page(run, capsys):
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    page = Page((run / "report.html").read_text())
    words = " ".join(page.words)
    for expected in (
        "Run: run",
        "21.500",
        "4.250",
        "0.812",
        "0.700",
        "Map: map.tif",
        "stages.1.lr",
        "B02, B03",
        "1,200",
    ):
        assert expected in words, expected
    assert len(page.pictures) == 3 and all(src.startswith("data:image/png;base64,") for src in page.pictures)
    assert EVIL in words and "script" not in page.tags
    assert not re.search(r"(src|href)=\"(?!data:)", (run / "report.html").read_text())


def test_a_run_that_has_just_begun(run):
    (run / "metrics.jsonl").unlink()
    (run / "maps" / "map.tif").unlink()
    page = Page(write_report(run).read_text())
    assert "No validation yet." in " ".join(page.words) and not page.pictures[1:]


def test_mistakes_are_told(run, tmp_path):
    with pytest.raises(UserError, match="expected a folder of a run"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="expected a map of classes"):
        write_report(run, [tmp_path / "scene.tif"])
    (run / "evaluation" / "test" / "results.json").write_text("{}")
    with pytest.raises(UserError, match="expected results of spectralgpt evaluate"):
        write_report(run)


@pytest.mark.acceptance
def test_it_opens_in_a_browser_without_a_word_on_the_console(run):
    playwright = pytest.importorskip("playwright.sync_api")
    path, problems, asked = write_report(run), [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        sizes = page.evaluate("[...document.images].map((image) => image.naturalWidth)")
        browser.close()
    assert problems == [] and len(sizes) == 3 and min(sizes) > 0
    assert all(url.startswith(("file://", "data:")) for url in asked)
