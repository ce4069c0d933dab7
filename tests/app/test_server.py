# SPDX-License-Identifier: Apache-2.0
"""The server over real HTTP messages, and the page in a real browser."""

from __future__ import annotations

import io
import json
import re
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

SCENE = {"scene": "scenes/one.tif", "model": "run/model"}


@pytest.fixture(scope="module")
def server(root):
    """The command itself, on a free port."""
    with socket.socket() as held:  # to the end, lest another process of the machine be given the port meanwhile
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # which the server sets, too
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        command = [sys.executable, "-m", "spectralgpt.cli", "app", str(root), "--port", str(port)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and f"127.0.0.1:{port}" in process.stdout.readline()
            while process.poll() is None:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield port, process
            process.terminate()


def ask(port, path, host=None, **query):
    url = f"http://127.0.0.1:{port}{path}?{urllib.parse.urlencode(query)}"
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_what_it_answers(server):
    port, _ = server
    status, headers, page = ask(port, "/")
    assert status == 200 and b"<title>spectralgpt</title>" in page
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    for name in re.findall(rb'(?:src|href)="([^"]+)"', page):
        assert name.startswith(b"data:") or ask(port, f"/{name.decode()}")[0] == 200, name
    assert json.loads(ask(port, "/api/list")[2]) == {"scenes": ["scenes/one.tif"], "models": ["run/model"]}
    described = json.loads(ask(port, "/api/scene", **SCENE)[2])
    assert described["shape"] == [70, 90] and described["window"] == [32, 32] and len(described["bands"]) == 12
    _, headers, png = ask(port, "/api/quicklook", **SCENE, bands="B04,B03,B02")
    assert headers["X-Step"] == "1" and imread(io.BytesIO(png)).shape[:2] == (70, 90)
    packed = ask(port, "/api/window", **SCENE, row=16, column=16, ratio=0.75, seed=0)[2]
    (length,) = struct.unpack_from("<I", packed)
    told = json.loads(packed[4 : 4 + length])
    assert told["shape"] == [12, 32, 32]
    truth = np.frombuffer(packed, "<f4", 12 * 32 * 32, 4 + length)
    assert truth.min() >= 1 and len(packed) == 4 + length + 12 * 1024 * 9 + 3 * 1024

    assert ask(port, "/api/list", host="evil.example")[0] == 400, "a foreign name for this machine"
    for query, text in (
        ({"scene": "../outside.tif", "model": "run/model"}, "below this folder"),
        ({"scene": "scenes/one.tif", "model": "encoder"}, "expected an autoencoder"),
        ({"scene": "scenes/one.tif"}, "expected other parameters"),
    ):
        status, _, body = ask(port, "/api/scene", **query)
        assert status == 400 and text in json.loads(body)["error"]
    assert ask(port, "/api/../../../../etc/passwd")[0] == 404


def test_it_listens_on_this_machine_alone_and_tells_a_taken_port(server, root):
    port, _ = server
    listening = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()]
    assert [fields[1] for fields in listening if fields[3] == "0A" and fields[1].endswith(f":{port:04X}")] == [
        f"0100007F:{port:04X}"
    ]
    command = [sys.executable, "-m", "spectralgpt.cli", "app", str(root), "--port", str(port)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert second.returncode == 2 and "expected a free port" in second.stderr and "Traceback" not in second.stderr


@pytest.mark.acceptance
def test_the_page_in_a_browser(server, tmp_path):
    """Chooses, clicks and hovers as a person does; nothing on the console, nothing asked of any other machine."""
    playwright = pytest.importorskip("playwright.sync_api")
    port, _ = server
    problems, asked = [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"http://127.0.0.1:{port}/")
        told = page.locator("#window-text")
        playwright.expect(told).to_contain_text("rebuilt at", timeout=60_000)
        page.click("#overview", position={"x": 5, "y": 5})
        playwright.expect(told).to_contain_text("row 0, column 0", timeout=60_000)
        page.hover("#rebuilt")
        assert "row" in page.inner_text("#spectrum-text")
        page.select_option("#red", "B12")
        playwright.expect(page.locator("#status")).to_be_empty(timeout=60_000)
        page.screenshot(path=str(tmp_path / "app.png"))
        drawn = page.evaluate(
            "[...document.querySelectorAll('canvas')].map((c) => new Set(c.getContext('2d')"
            ".getImageData(0, 0, c.width, c.height).data).size)"
        )
        assert min(drawn) > 4, "every picture shows something"
        assert problems == []
        page.evaluate("document.getElementById('scene').add(new Option('gone.tif'))")
        page.select_option("#scene", "gone.tif")
        playwright.expect(page.locator("#status")).to_contain_text("gone.tif", timeout=60_000)
        shown = page.evaluate(
            "[...document.querySelectorAll('canvas')].map((c) => c.getContext('2d')"
            ".getImageData(0, 0, c.width, c.height).data.some((value) => value > 0))"
        )
        assert not any(shown) and not page.inner_text("#window-text"), "nothing of the scene before"
        browser.close()
    assert all(url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:")) for url in asked)
