# SPDX-License-Identifier: Apache-2.0
"""Predictions in processes of their own, which may be killed or have too little disk; imports happen once."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from torch import nn

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["spectralgpt.predict.command"])

BANDS = ("B02", "B03", "B04")
OPTIONS = {"size": 32, "batch_size": 3, "overlap": 0.4}


def convolution() -> nn.Module:
    """The same in every process."""
    torch.manual_seed(3)
    return nn.Conv2d(3, 4, 9, padding=4)


def start(scene: Path, out: Path, calls: Path, wait_at: int | None = None) -> BaseProcess:
    """Begins a prediction that leaves a byte in a file for each batch it begins.

    With so many bytes in the file it waits to be killed, lest a fast machine be done before that.
    """
    child = _CONTEXT.Process(target=_predict, args=(scene, out, calls, wait_at))
    child.start()
    return child


def run_limited(arguments: list[str], nbytes: int, stderr: Path) -> int:
    """Exit code of a command whose files cannot grow beyond a size, as if the disk were full."""
    child = _CONTEXT.Process(target=_limited, args=(arguments, nbytes, stderr))
    stderr.unlink(missing_ok=True)
    os.mkfifo(stderr)  # a pipe has no size
    child.start()
    text = stderr.read_text()
    child.join(600)
    stderr.unlink()
    stderr.write_text(text)
    assert child.exitcode is not None
    return child.exitcode


def _predict(scene: Path, out: Path, calls: Path, wait_at: int | None) -> None:
    from spectralgpt.data.normalize import Normalizer
    from spectralgpt.data.scene import Scene
    from spectralgpt.predict.layers import value_layer
    from spectralgpt.predict.scene import predict_scene

    torch.set_num_threads(1)
    model, image = convolution(), Scene.open(scene, "sentinel2", BANDS)
    counter = os.open(calls, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def function(batch: torch.Tensor) -> torch.Tensor:
        os.write(counter, b".")
        if wait_at is not None and os.fstat(counter).st_size >= wait_at:
            time.sleep(600)
        return model(batch)

    layers = [value_layer(out, image, "abcd", nodata=-1)]
    predict_scene(function, [image], layers, lambda scene: Normalizer("percentile").of_scene(scene), **OPTIONS)


def _limited(arguments: list[str], nbytes: int, stderr: Path) -> None:
    from spectralgpt.cli import main

    os.dup2(os.open(stderr, os.O_WRONLY), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))
    sys.exit(main(arguments))
