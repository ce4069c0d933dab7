# SPDX-License-Identifier: Apache-2.0
"""Large scenes, the real demo scene, kills of the real command: `pytest -m acceptance`, an hour on two cores."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

import spectralgpt
from benchmarks.predict import write_scene
from spectralgpt.data.bands import SENTINEL2, SENTINEL2_12
from spectralgpt.data.demo import demo_scene
from spectralgpt.predict.array import predict_array
from spectralgpt.predict.command import load_task_model, probabilities_of
from spectralgpt.predict.inputs import InputOptions, card_of, normalize, open_scene

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).resolve().parents[2]
GIGABYTE = 10**9
MEASURED = """
import re, sys
from spectralgpt.cli import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
sys.exit(code)
"""


@pytest.fixture
def run(tmp_path):
    """A segmenter `tiny` with random weights."""
    torch.manual_seed(0)
    model = spectralgpt.create_segmenter("tiny", 4, bands=SENTINEL2.select(SENTINEL2_12))
    model.normalization = {"method": "percentile", "band_names": list(SENTINEL2_12)}
    model.save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def start(*arguments, program=("-m", "spectralgpt.cli")):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)], stdout=subprocess.PIPE, text=True, env=environment
    )


def command(*arguments, **options):
    """What a command prints; it must succeed."""
    with start(*arguments, **options) as process:
        text, _ = process.communicate()
    assert process.returncode == 0
    return text


def read(path):
    with rasterio.open(path) as file:
        return file.read()


def test_twenty_thousand_pixels_a_side(tmp_path):
    options = ("--size", 20_000, "--overlap", 0.25, "--outputs", "bands", "--folder", tmp_path)
    out = tmp_path / "figures.json"
    command(*options, "--out", out, program=(ROOT / "benchmarks" / "predict.py",))
    (found,) = json.loads(out.read_text())["results"]
    assert found["exact"] and found["peak_bytes"] <= 2 * GIGABYTE and found["windows_per_cpu_s"] >= 200


def test_five_thousand_pixels_a_side_with_tiny(tmp_path, run):
    write_scene(tmp_path / "scene.tif", 5000)
    out, options = tmp_path / "map.tif", {"overlap": 0.1, "batch_size": 27}
    arguments = ["predict", tmp_path / "scene.tif", "--model", run, "--out", out, "--probabilities"]
    printed = command(*arguments, "--overlap", 0.1, "--batch-size", 27, program=("-c", MEASURED))
    assert int(printed.split()[-1]) * 1024 <= 2 * GIGABYTE
    torch.set_num_threads(1)  # as there
    model = load_task_model(run)
    scene = open_scene(tmp_path / "scene.tif", card_of(model, InputOptions()), InputOptions())
    image = torch.from_numpy(normalize(scene, model, InputOptions()).apply(scene.read(0, 0, *scene.shape)[0]))
    function = probabilities_of(model, torch.device("cpu"), torch.float32)
    shares = predict_array(function, image, size=96, **options).numpy()
    assert np.array_equal(read(out)[0], shares.argmax(0))
    assert np.array_equal(read(tmp_path / "map-probabilities.tif"), np.rint(shares * np.float32(254)))


def test_the_demo_scene(tmp_path, run):
    scene = demo_scene()
    assert "real" in scene.note, "a package registry is needed for the real scene"
    command("predict", "demo", "--model", run, "--out", tmp_path / "map.tif")
    source = next(scene.path.glob("*B02*"))
    with rasterio.open(tmp_path / "map.tif") as made, rasterio.open(source) as given:
        assert (made.crs, made.transform, made.bounds, made.shape) == (
            given.crs,
            given.transform,
            given.bounds,
            given.shape,
        )
    gdalinfo = shutil.which("gdalinfo")
    if gdalinfo is not None:
        made, given = (
            json.loads(subprocess.run([gdalinfo, "-json", path], check=True, capture_output=True).stdout)
            for path in (tmp_path / "map.tif", source)
        )
        for key in ("size", "geoTransform", "cornerCoordinates", "coordinateSystem"):
            assert made[key] == given[key]


def test_kills_of_the_command(tmp_path, run):
    write_scene(tmp_path / "scene.tif", 700)
    arguments = ("predict", tmp_path / "scene.tif", "--model", run, "--batch-size", 4, "--out")
    command(*arguments, tmp_path / "whole.tif")
    out, moments = tmp_path / "out.tif", random.Random(0)
    work = tmp_path / "out.tif.work"
    for row in range(5):  # of the ten rows of windows
        with start(*arguments, out) as process:
            while process.poll() is None and len(list(work.glob("done-*"))) <= row:
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.3))
            process.kill()
        assert process.returncode < 0 and not out.exists()
    command(*arguments, out)
    assert out.read_bytes() == (tmp_path / "whole.tif").read_bytes() and not work.exists()
