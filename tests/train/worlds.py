# SPDX-License-Identifier: Apache-2.0
"""A run in several processes, started as torchrun starts them but from a server that has everything imported, or by
torchrun itself."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from tests.train import small_run

_CONTEXT = multiprocessing.get_context("forkserver")


def run(
    size: int, options: dict[str, str], *, before: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()
) -> list[small_run.Outcome]:
    """How each process of `spectralgpt train` ended; `before(rank, *arguments)` runs in each first."""
    files = [tempfile.NamedTemporaryFile("r") for _ in range(size)]
    with socket.socket() as held:  # to the end, lest another process of the machine be given the port meanwhile
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # which the store that listens on it sets, too
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        children = [
            _CONTEXT.Process(target=_child, args=(rank, size, port, files[rank].name, options, before, arguments))
            for rank in range(size)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join(600)
            if child.exitcode:  # torchrun ends the others, too
                for other in children:
                    other.join(60)
                    other.kill()
    outcomes = [small_run.Outcome(child.exitcode, file.read()) for child, file in zip(children, files, strict=True)]
    for file in files:
        file.close()
    return outcomes


def _child(
    rank: int,
    size: int,
    port: int,
    stderr: str,
    options: dict[str, str],
    before: Callable[..., None] | None,
    arguments: tuple[Any, ...],
) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in names.items()}})
    warnings.simplefilter("default")
    from spectralgpt.train.monitor import Monitor
    from spectralgpt.train.tasks.reconstruction import ReconstructionValidation

    ReconstructionValidation.draw = Monitor.figure = lambda *_: None  # a second each, and nothing here looks at figures
    small_run._child(stderr, options, None if before is None else lambda: before(rank, *arguments), ())


def terminate(rank: int, only: int, step: int) -> None:
    """SIGTERM to one process in the middle of a step."""
    if rank == only:
        small_run.terminate_after_step(step)


def out_of_memory(rank: int, only: int, most: int) -> None:
    """Forward passes of more than `most` windows run out of memory on one process, or on all with -1."""
    import torch

    from spectralgpt.models.encoder import Encoder

    real = Encoder.forward

    def forward(self: Any, image: Any, *rest: Any) -> Any:
        if self.training and len(image) > most and only in (rank, -1):
            raise torch.OutOfMemoryError("no memory, says the test")
        return real(self, image, *rest)

    Encoder.forward = forward


def torchrun(size: int, options: Sequence[str], *launch: str, timeout: int = 240) -> subprocess.CompletedProcess[str]:
    """The plain command of the docs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}", *launch]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", "spectralgpt.cli", "train", *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
