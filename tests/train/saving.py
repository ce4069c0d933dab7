# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints, ways to spoil them, and children that die: what the tests of saving share."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from spectralgpt.train.checkpoint import Checkpoint


def make(step: int, stage: int = 0) -> Checkpoint:
    weights = {"a": torch.full((40, 3), float(step)), "b": torch.arange(5.0) + step}
    progress = {"step": step, "stage": stage}
    return Checkpoint(
        step, weights, {"progress": progress, "moment": torch.full((200,), float(step)), "lr": (0.9, None)}
    )


def assert_is(found: Checkpoint, step: int) -> None:
    assert found.step == step == found.state["progress"]["step"]
    assert found.state["lr"] == (0.9, None)
    assert torch.equal(found.state["moment"], make(step).state["moment"])
    assert set(found.weights) == {"a", "b"}
    for name, tensor in make(step).weights.items():
        assert torch.equal(found.weights[name], tensor)


def flip(path: Path, place: int) -> None:
    """Turns one bit of a file; `place` wraps around."""
    data = bytearray(path.read_bytes())
    data[place // 8 % len(data)] ^= 1 << place % 8
    path.write_bytes(data)


def in_child(action: Callable[[], None]) -> int:
    """Runs `action` in a forked child and returns its exit code, negative for a signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons: beside xdist's thread
        child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
