# SPDX-License-Identifier: Apache-2.0
"""Damage to the newest checkpoint is found, named and passed over; a full disk costs the newest one at most."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from spectralgpt.errors import UserError
from spectralgpt.train import durable
from spectralgpt.train.checkpoint import Checkpoint, Checkpoints, read
from tests.train.saving import assert_is, flip, in_child, make

DATA = ("model.safetensors", "state.pt")
SEEDS = range(25)


def _into_a_file(path: Path, draw: random.Random) -> None:
    shutil.rmtree(path)
    path.write_bytes(draw.randbytes(draw.randrange(100)))


def _shorten(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(1, path.stat().st_size))


DAMAGES: dict[str, tuple[Callable[[Path, random.Random], object], str]] = {
    "no bytes": (lambda path, draw: os.truncate(path / draw.choice(DATA), 0), "expected [0-9]+ bytes, got 0"),
    "cut off": (lambda path, draw: _shorten(path / draw.choice(DATA), draw), "expected [0-9]+ bytes"),
    "one bit of data": (
        lambda path, draw: flip(path / draw.choice(DATA), draw.randrange(1 << 20)),
        "(model.safetensors|state.pt): the content does not match its hash",
    ),
    "manifest cut off": (lambda path, draw: _shorten(path / "manifest.json", draw), "manifest.json: "),
    "file gone": (lambda path, draw: (path / draw.choice(DATA)).unlink(), "No such file"),
    "manifest gone": (lambda path, draw: (path / "manifest.json").unlink(), "manifest.json: No such file"),
    "a file for a folder": (_into_a_file, "manifest.json: Not a directory"),
    "one bit of the manifest": (
        lambda path, draw: flip(path / "manifest.json", draw.randrange(1 << 20)),
        "manifest.json: (the content does not match its hash|unreadable)",
    ),
}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    for step in (1, 2, 3):
        Checkpoints(folder, keep=3).save(make(step))
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_falls_back_with_a_warning_that_names_it(three: Path, tmp_path: Path, damage: str) -> None:
    spoil, reason = DAMAGES[damage]
    for seed in SEEDS:
        folder = tmp_path / str(seed)
        shutil.copytree(three, folder)
        spoil(folder / "step-3", random.Random(seed))
        with pytest.warns(UserWarning, match=f"step-3 is damaged .*{reason}") as warned:
            assert_is(Checkpoints(folder, keep=3).load_latest(), 2)
        assert len(warned) == 1
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["../step-2/state.pt", "/etc/passwd", "", ".", "sub/a", "a\0b", "linked"])
def test_a_manifest_may_not_name_what_is_not_in_the_folder(three: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "step-3"
    shutil.copytree(three / "step-3", path)
    (path / "linked").symlink_to(three / "step-2" / "state.pt")
    record = json.loads((path / "manifest.json").read_text())
    record["files"][name] = record["files"]["state.pt"]
    del record["sha256"]
    (path / "manifest.json").write_text(json.dumps({**record, "sha256": durable.digest(record)}))
    found = durable.damage(path)
    assert found is not None
    assert found.endswith("is no name of a file in the folder")


def test_a_loader_that_does_not_verify_takes_flipped_bits_without_a_word(three: Path, tmp_path: Path) -> None:
    """What the tests above would look like without the manifest."""
    path = tmp_path / "step-3"
    shutil.copytree(three / "step-3", path)
    flip(path / "model.safetensors", 8 * ((path / "model.safetensors").stat().st_size - 30))
    found = read(path)
    assert any(not torch.equal(found.weights[name], tensor) for name, tensor in make(3).weights.items())
    assert durable.damage(path) is not None


def test_a_disk_that_fills_up_at_any_size_keeps_the_former_one(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes every write beyond the limit fail, inside safetensors' own code too."""

    def large(step: int) -> Checkpoint:
        return Checkpoint(step, {"a": torch.ones(3000)}, {"moment": torch.ones(3000), "progress": {"stage": 0}})

    folder = tmp_path / "checkpoints"
    path = Checkpoints(folder, keep=2).save(large(1))
    largest = max(file.stat().st_size for file in path.iterdir())
    for limit in (largest * part // 19 for part in range(20)):

        def save_under_limit(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                Checkpoints(folder, keep=2).save(large(2))
            except UserError as error:
                text = str(error)
                told = all(part in text for part in (str(folder / "step-2"), "MiB of free space", "step 1 is kept"))
                os._exit(0 if told and "\n" not in text else 3)
            os._exit(4)

        assert in_child(save_under_limit) == (0 if limit < largest else 4), limit
        if limit < largest:
            assert [file.name for file in folder.iterdir()] == ["step-1"]
            assert Checkpoints(folder, keep=2).load_latest().step == 1
    assert Checkpoints(folder, keep=2).load_latest().step == 2
