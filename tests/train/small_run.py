# SPDX-License-Identifier: Apache-2.0
"""A run small enough for tests: two stages over a synthetic GeoTIFF, in a process of its own that may be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["spectralgpt.train.command", "torch._dynamo"])  # imported once, not per attempt


def write_recipe(folder: Path, image: Path, **changes: object) -> Path:
    """A recipe of 8 + 6 steps with a checkpoint every 3; drop path makes it depend on the generator's state too."""
    stage = {"batch_size": 2, "warmup_steps": 2, "lr": 1e-3, "mask_ratio": 0.75}
    recipe = {
        "name": "run",
        "output": str(folder / "runs"),
        "seed": 5,
        "threads": 1,
        "device": "cpu",
        "model": {
            "embed_dim": 32,
            "depth": 2,
            "num_heads": 2,
            "decoder_embed_dim": 32,
            "decoder_depth": 1,
            "drop_path": 0.3,
        },
        "data": {"root": str(image)},
        "stages": [
            {"name": "first", "image_size": 16, "steps": 8, "accumulate": 2, **stage},
            {"name": "second", "image_size": 24, "steps": 6, **stage},
        ],
        "log_every": 1,
        "validate_every": 5,
        "checkpoint_every": 3,
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


class Outcome(NamedTuple):
    """How a child ended: its exit code, -9 where it was killed, and what it wrote to stderr."""

    code: int | None
    stderr: str


def run(
    options: dict[str, str], *, before: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()
) -> Outcome:
    """Runs `spectralgpt train` in a child after `before(*arguments)`."""
    with tempfile.NamedTemporaryFile("r") as stderr:
        child = _CONTEXT.Process(target=_child, args=(stderr.name, options, before, arguments))
        child.start()
        child.join(600)  # seconds alone; where many share a machine, minutes
        assert not child.is_alive(), "the run hangs"
        return Outcome(child.exitcode, stderr.read())


def _child(
    stderr: str, options: dict[str, str], before: Callable[..., None] | None, arguments: tuple[Any, ...]
) -> None:
    from spectralgpt.errors import UserError
    from spectralgpt.train.command import run_training

    os.dup2(os.open(stderr, os.O_WRONLY), 2)
    if before is not None:
        before(*arguments)
    try:
        sys.exit(run_training(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def kill_after_step(step: int) -> None:
    """The process dies by SIGKILL once a step's row is written, before anything else happens at that step."""
    from spectralgpt.train.monitor import Monitor

    _signal_in(Monitor, "flush", step, signal.SIGKILL)


def terminate_after_step(step: int) -> None:
    """The process gets SIGTERM in the middle of a step."""
    from spectralgpt.train.monitor import Monitor

    _signal_in(Monitor, "record", step, signal.SIGTERM)


def kill_inside_save(call: int) -> None:
    """The process dies at the `call`-th flush to disk of its checkpoints."""
    from spectralgpt.train import durable

    real, calls = durable.sync, iter(range(1, 1000))

    def sync(path: Path) -> None:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        real(path)

    durable.sync = sync


def _signal_in(owner: type, method: str, step: int, number: signal.Signals) -> None:
    real_record, real = owner.record, getattr(owner, method)
    reached = 0

    def record(self: Any, progress: Any, *rest: Any) -> None:
        nonlocal reached
        reached = progress.step
        real_record(self, progress, *rest)

    def wrapped(self: Any, *rest: Any) -> None:
        (record if method == "record" else real)(self, *rest)
        if reached == step:
            os.kill(os.getpid(), number)

    owner.record = record
    setattr(owner, method, wrapped)
