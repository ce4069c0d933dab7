# SPDX-License-Identifier: Apache-2.0
"""The command line as a user meets it: one clear line and exit code 2 for every mistake, and nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from spectralgpt import cli
from spectralgpt.data.bands import SENTINEL2
from spectralgpt.data.raster import write_geotiff

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = {
    "name": "run",
    "threads": 1,
    "device": "cpu",
    "model": {"embed_dim": 32, "depth": 1, "num_heads": 2, "decoder_embed_dim": 32, "decoder_depth": 1},
    "stages": [
        {"image_size": 16, "steps": 2, "batch_size": 2, "warmup_steps": 1},
        {"image_size": 24, "steps": 1, "batch_size": 2, "warmup_steps": 1},
    ],
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a small image, a recipe and some things that are no image."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 9000, (13, 64, 128), dtype=np.uint16)
    write_geotiff(tmp_path / "scene.tif", pixels, SENTINEL2.names, crs="EPSG:32632", transform=(10, 0, 0, 0, -10, 0))
    write_geotiff(
        tmp_path / "rgb.tif", pixels[1:4], ("B02", "B03", "B04"), crs="EPSG:32632", transform=(10, 0, 0, 0, -10, 0)
    )
    (tmp_path / "notes.tif").write_text("not an image at all")
    (tmp_path / "empty").mkdir()
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**SMALL, "data": {"root": "scene.tif"}}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


MISTAKES = {
    "no such path": (["--data.root", "nowhere"], "nowhere: no such file or folder"),
    "a folder without rasters": (["--data.root", "empty"], "empty: expected GeoTIFF"),
    "no raster": (["--data.root", "notes.tif"], "notes.tif"),
    "a missing band": (["--data.root", "rgb.tif"], "B02 B03 B04"),
    "an unknown band": (["--data.bands", "[B77, B02, B03]"], "B77"),
    "an image smaller than the window": (["--stages.1.image_size", "72"], "at least 72 x 72 pixels, got 64 x 128"),
    "a window the patch does not divide": (["--stages.0.image_size", "20"], "multiple of the patch's 8 pixels, got 20"),
    "a mistyped key": (["--stages.0.step", "3"], "stages.0.step: unknown key; did you mean stages.0.steps?"),
    "a value of another type": (["--seed", "one"], "seed: expected int, got 'one'"),
    "a recipe that is not there": (["--config", "nothing.yaml"], "cannot read nothing.yaml: No such file"),
    "an output that cannot be written": (["--output", "scene.tif/runs"], "cannot write scene.tif/runs/run"),
    "no run to resume": (["--resume"], "expected a run with checkpoints at runs/run, found none"),
    "a folder that is no run": (["--resume", "empty"], "expected a folder of a run"),
    "heads that do not divide the width": (["--model.num_heads", "5"], "embed_dim: expected a multiple of num_heads=5"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_training(mistake: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, message = MISTAKES[mistake]
    before = sorted(here.rglob("*"))
    assert cli.main(["train", "--config", "recipe.yaml", *options]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert sorted(here.rglob("*")) == before, "nothing half-written"


def test_a_run_without_checkpoints_cannot_be_resumed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "runs" / "run").mkdir(parents=True)
    (here / "runs" / "run" / "config.yaml").write_text((here / "recipe.yaml").read_text())
    assert cli.main(["train", "--resume", "runs/run"]) == 2
    assert "expected checkpoints in runs/run/checkpoints, found none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "arguments are required: COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["prepare", "everything"], "invalid choice"),
        (["info", "--verbose"], "unrecognized arguments"),
        (["train", "quickly"], "quickly: expected `--key value`"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_the_tool_trains_and_a_second_call_gets_its_own_folder(here: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "tools" / "train.py"), "--config", "recipe.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    first = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert first.returncode == 0, first.stderr
    told = [line.split()[0] for line in first.stdout.splitlines()]
    assert told[:8] == ["data", "model", "device", "run", "PSNR", "step", "2", "3"]
    assert told[8:] == ["model", "report", "figures", "metrics", "curves"]
    assert "samples/s" in first.stderr
    assert cli.main(["train", "--config", "recipe.yaml"]) == 0
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["run", "run-2"]
    assert (here / "runs/run/metrics.jsonl").read_bytes() == (here / "runs/run-2/metrics.jsonl").read_bytes()
    assert (here / "runs/run-2/model/model.safetensors").exists()


def test_print_config_prints_and_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.rglob("*"))
    assert cli.main(["train", "--config", "recipe.yaml", "--optim.weight_decay", "0.1", "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["optim"]["weight_decay"] == 0.1
    assert printed["stages"][1]["image_size"] == 24
    assert sorted(here.rglob("*")) == before


def test_help_is_quick_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys; from spectralgpt import cli\ntry: cli.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert shown.returncode == 0, shown.stderr
    assert all(f"  {name}" in shown.stdout for name in cli.COMMANDS)
    assert cli.main(["train", "--help"]) == 0
    assert "--stages.<place>.lr" in capsys.readouterr().out


def test_info_tells_which_operators_are_native(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    shown = capsys.readouterr().out
    assert "reconstruction_loss" in shown
    assert "attention on cpu" in shown


def test_ctrl_c_is_a_line_and_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(_: object) -> int:
        raise KeyboardInterrupt("what is done stays")

    monkeypatch.setitem(cli.COMMANDS, "info", stopped)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "\nstopped: what is done stays\n"
