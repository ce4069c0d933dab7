# SPDX-License-Identifier: Apache-2.0
"""docs/scenes.md: every command runs, every option exists, the example runs, the borders are as invisible as told."""

from __future__ import annotations

import re
import shlex
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import spectralgpt
from spectralgpt.cli import main
from spectralgpt.data.bands import SENTINEL2
from tests.data.rasters import noise, write

PAGE = Path(__file__).parents[2] / "docs" / "scenes.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (.+)$|`(spectralgpt predict .+?)`", TEXT, re.MULTILINE)
BANDS = ("B02", "B03", "B04")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Scenes and runs of the names that the page uses."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("scene", "before", "after", "a", "b")):
        write(tmp_path / f"{name}.tif", noise(3, 40, 50, seed=seed), BANDS)
    small = {"image_size": 16, "bands": SENTINEL2.select(BANDS), "embed_dim": 16, "depth": 1, "num_heads": 2}
    models = {
        "town": spectralgpt.create_segmenter("tiny", 3, **small),
        "change": spectralgpt.create_change_detector("tiny", **small),
    }
    for name, model in models.items():
        model.normalization = {"method": "percentile", "band_names": list(BANDS)}
        model.save_pretrained(tmp_path / "runs" / name / "model")
    return tmp_path


def test_commands_run(here, capsys):
    lines = [one or other for one, other in COMMANDS]
    assert len(lines) == 4
    for line in lines:
        words = shlex.split(line)
        start = words.index("tools/predict.py") if words[0] == "torchrun" else words.index("predict")
        assert main(["predict", *words[start + 1 :]]) == 0, line
    assert sorted(path.name for path in here.rglob("*.tif") if path.stem not in ("scene", "before", "after")) == [
        "a.tif",
        "a.tif",
        "b.tif",
        "b.tif",
        "change.tif",
        "map-probabilities.tif",
        "map.tif",
        "shared.tif",
    ]


def test_options_exist(capsys):
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) | {"--nproc-per-node"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", TEXT)) <= known


def test_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), vars(types.ModuleType("page")))


def border_step(overlap: float) -> tuple[float, float]:
    """Mean step across the worst border of windows, and the 99th percentile of steps between other columns."""
    from spectralgpt.predict.array import overlap_pixels, predict_array
    from spectralgpt.predict.windows import Windows

    torch.manual_seed(0)
    model = spectralgpt.create_segmenter("tiny", 3, image_size=32, bands=3, embed_dim=32, depth=2, num_heads=2).eval()
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, 20, 20, generator=generator)
    image = torch.nn.functional.interpolate(coarse, size=(160, 160), mode="bicubic")[0]
    shares = predict_array(model.probabilities, image, size=32, overlap=overlap).numpy()
    columns = Windows((160, 160), 32, overlap_pixels(32, overlap)).columns
    borders = sorted({start - 1 for start in columns[1:]} | {start + 31 for start in columns[:-1]})
    steps = np.abs(np.diff(shares, axis=2)).mean(axis=0)
    return float(steps[:, borders].mean(axis=0).max()), float(np.percentile(np.delete(steps, borders, axis=1), 99))


def test_borders_cannot_be_seen():
    abrupt, _ = border_step(0)
    for overlap in (0.25, 0.5):
        border, interior = border_step(overlap)
        assert border <= interior
        assert border < abrupt / 2  # so the figure can tell
