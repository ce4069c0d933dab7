# SPDX-License-Identifier: Apache-2.0
"""kill -9 at random moments, several processes, full disks: the same file in the end, or none."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from spectralgpt.data.normalize import Normalizer
from spectralgpt.data.scene import Scene
from spectralgpt.predict.array import overlap_pixels
from spectralgpt.predict.source import Source
from spectralgpt.predict.stream import share, stream
from spectralgpt.predict.windows import Windows
from spectralgpt.predict.work import Work
from tests.data.rasters import noise, write
from tests.predict.children import BANDS, OPTIONS, convolution, run_limited, start

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def image(tmp_path):
    return write(tmp_path / "scene.tif", noise(3, 300, 260), BANDS)


def begun(calls):
    """Batches that were begun."""
    return calls.stat().st_size if calls.exists() else 0


def kill_when(child, condition):
    """Kills a process once a condition holds; whether it was still alive."""
    while child.is_alive() and not condition():
        time.sleep(0.0005)
    child.kill()
    child.join(600)
    return child.exitcode == -signal.SIGKILL


def test_kill_at_random_moments(tmp_path, image):
    whole, out, calls = tmp_path / "whole.tif", tmp_path / "out.tif", tmp_path / "out.calls"
    start(image, whole, tmp_path / "whole.calls").join(600)
    count = begun(tmp_path / "whole.calls")
    moments = random.Random(0)
    for kill in range(5):
        last, pause = begun(calls) + moments.randint(1, count // 10), moments.uniform(0, 0.01)
        assert kill_when(
            start(image, out, calls, wait_at=last + 3),
            lambda last=last, pause=pause: begun(calls) >= last and not time.sleep(pause),
        )
        assert not out.exists() and begun(calls) < count + kill
    work = tmp_path / "out.tif.work"
    kill_when(start(image, out, calls), lambda: list(work.glob("final-*")))  # while the output is put together
    child = start(image, out, calls)
    child.join(600)
    assert child.exitcode == 0 and out.read_bytes() == whole.read_bytes()
    assert count <= begun(calls) <= count + 5  # at most the batch at hand is done twice
    assert not work.exists()


def test_shares_of_the_rows_give_the_same_bits(tmp_path, image):
    scene, model = Scene.open(image, "sentinel2", BANDS), convolution()
    normalization = Normalizer("percentile").of_scene(scene)
    windows = Windows(scene.shape, OPTIONS["size"], overlap_pixels(OPTIONS["size"], OPTIONS["overlap"]))

    def rows(world_size):
        found = {}
        for rank in range(world_size):
            folder = tmp_path / str(world_size)
            folder.mkdir(exist_ok=True)
            source, mine = Source([scene], [normalization], windows), share(len(windows.rows), rank, world_size)
            for index, first, values in stream(model, source, OPTIONS["batch_size"], Work(folder), mine, rank):
                found[index] = (first, values.tobytes())
        return found

    alone = rows(1)
    assert len(alone) == len(windows.rows) > 8
    assert rows(3) == alone and rows(len(windows.rows) + 2) == alone


@pytest.fixture
def run(tmp_path):
    import spectralgpt
    from spectralgpt.data.bands import SENTINEL2

    small = {"image_size": 16, "bands": SENTINEL2.select(BANDS), "embed_dim": 16, "depth": 1, "num_heads": 2}
    model = spectralgpt.create_segmenter("tiny", 3, **small)
    model.normalization = {"method": "percentile", "band_names": list(BANDS)}
    model.save_pretrained(tmp_path / "run" / "model")
    return tmp_path / "run"


def read(path):
    with rasterio.open(path) as file:
        return file.read()


def test_a_full_disk_leaves_no_half_map(tmp_path, run):
    """Each size gives the whole map, or one line, exit code 2 and nothing under its name; later the work goes on."""
    image, codes = write(tmp_path / "scene.tif", noise(3, 50, 70), BANDS), []
    plenty = 1 << 20
    arguments = ["predict", str(image), "--model", str(run), "--overlap", "0", "--batch-size", "1"]
    assert run_limited([*arguments, "--out", str(tmp_path / "whole.tif")], plenty, tmp_path / "err") == 0
    size = (tmp_path / "whole.tif").stat().st_size
    for number, nbytes in enumerate([0, 300, 3_000, 3_600, size - 1]):
        out = tmp_path / f"map{number}.tif"
        codes.append(run_limited([*arguments, "--out", str(out)], nbytes, tmp_path / "err"))
        lines = (tmp_path / "err").read_text().splitlines()
        lines = [line for line in lines if not line.startswith("_tiffWriteProc")]  # what libtiff says by itself
        assert not out.exists() and len(lines) == 1 and "cannot be written" in lines[0]
        assert run_limited([*arguments, "--out", str(out)], plenty, tmp_path / "err") == 0
        assert np.array_equal(read(out), read(tmp_path / "whole.tif"))
        assert not out.with_name(f"{out.name}.work").exists()
    assert codes == [2] * 5


@pytest.mark.acceptance
def test_processes_of_torchrun_share_a_scene(tmp_path, run):
    image = write(tmp_path / "scene.tif", noise(3, 200, 150), BANDS)
    predict = [str(ROOT / "tools" / "predict.py"), str(image), "--model", str(run), "--out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *predict, str(tmp_path / "one.tif")], check=True, env=environment)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    subprocess.run([*torchrun, *predict, str(tmp_path / "three.tif")], check=True, env=environment)
    assert (tmp_path / "three.tif").read_bytes() == (tmp_path / "one.tif").read_bytes()
    assert torch.distributed.is_available() and len(np.unique(read(tmp_path / "one.tif"))) > 1
