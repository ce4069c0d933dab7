# SPDX-License-Identifier: Apache-2.0
"""Reads cases in a child process, through the public readers, and says what it cost.

The child's address space ends 3 GiB above what its imports take. Processor time and memory are measured per
case; whoever does not answer in time, or dies, is replaced.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from spectralgpt.data import raster
from spectralgpt.data.bands import SENTINEL2
from spectralgpt.data.discover import find_scenes
from spectralgpt.data.scene import Scene
from spectralgpt.data.scene_set import DataConfig, SceneSet
from spectralgpt.errors import UserError
from tests.data.rasters import noise, write

ADDRESS_SPACE = 3 << 30
LARGE = 64 << 20  # bytes of pixels; whole, such images take their time without being hostile
PATIENCE = 60.0  # seconds until a silent child is taken to hang; on a busy machine one may only be slow


@dataclass(frozen=True)
class Result:
    """What came of a case: "pixels", "refused", "error", "crash" or "hang", with the message."""

    outcome: str
    message: str = ""
    seconds: float = 0.0
    extra_mib: float = 0.0


class Reader:
    """A child that reads one case after the other."""

    def __init__(self, weaken=None, patience=PATIENCE):
        """`weaken` is called in the child first: it takes a check away, to see that somebody notices."""
        self._weaken, self._patience, self._child = weaken, patience, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stop()

    def read(self, case):
        """The result of one case."""
        if self._child is None:
            self._start()
        self._pipe.send(case)
        try:
            if self._pipe.poll(self._patience):
                return self._pipe.recv()
            outcome = Result("hang", f"no answer in {self._patience} s")
        except EOFError:
            self._child.join()
            outcome = Result("crash", f"exit code {self._child.exitcode}")
        self._stop()
        return outcome

    def _start(self):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # imports once for all children, where no server runs yet
        self._pipe, end = context.Pipe()
        self._child = context.Process(target=_serve, args=(end, self._weaken), daemon=True)
        self._child.start()
        end.close()
        self._pipe.recv()  # its imports are done

    def _stop(self):
        if self._child is not None:
            self._child.kill()
            self._child.join()
            self._pipe.close()
            self._child = None


def _serve(pipe, weaken):
    if weaken is not None:
        weaken()
    limit = _status("VmSize") * 1024 + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    trim = ctypes.CDLL(None).malloc_trim
    pipe.send("ready")
    while True:
        case = pipe.recv()
        raster._handles.clear()
        trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, start = _status("VmRSS"), time.process_time()
        outcome, message = _outcome(case)
        pipe.send(Result(outcome, message, time.process_time() - start, (_status("VmHWM") - before) / 1024))


def _status(field):
    """Kilobytes, from the kernel."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def _outcome(case):
    try:
        return "pixels", str(read(case))
    except UserError as error:
        return "refused", str(error)
    except BaseException as error:
        return "error", f"{type(error).__name__}: {error}"


def read(case):
    """Through every reader, and a check of what they give; returns the shape."""
    path = Path(case.path)
    if path.suffix == ".png":
        return raster.read_png(path).shape
    with suppress(UserError):  # a refusal here is no refusal by those who open a path they were given
        find_scenes(path)
    order = None if os.path.isdir(path) else band_order(path)
    bands = ("B02", "B03") if order is None else SENTINEL2.names[: len(order)][:3]
    scene = Scene.open(path, SENTINEL2, bands, order)
    if case.after_open:
        change(path, case.after_open)
    height, width = scene.shape
    if not case.after_open and order:
        raster.read_pages(raster.read_header(path))
    h, w = min(height, 64), min(width, 64)
    for row, column in ((0, 0), (height - h, width - w), ((height - h) // 2, (width - w) // 2)):
        pixels, valid = scene.read_raw(row, column, h, w)
        check(pixels, valid, (len(bands), h, w), scene.dtype)
    for row, pixels, valid in islice(scene.strips(), LARGE // scene.nbytes + 1):
        check(pixels, valid, (len(bands), min(pixels.shape[1], height - row), width), scene.dtype)
    if scene.nbytes < LARGE and not case.after_open:
        with suppress(UserError):  # nothing but "no data" is no training set
            SceneSet(DataConfig(root=str(path), bands=bands, band_order=order, memory_limit=0.01))
    return scene.shape


def band_order(path):
    """A name for each band of a file, as far as there are names."""
    count = len(raster.read_header(path).descriptions)
    return (*SENTINEL2.names[:count], *"-" * (count - len(SENTINEL2.names)))


def check(pixels, valid, shape, dtype):
    """A tile is right in form, finite, and 0 where it is not valid."""
    good = pixels.shape == shape and pixels.dtype == dtype and (valid is None or valid.shape == shape)
    if not good or not np.isfinite(pixels).all() or (valid is not None and pixels[~valid].any()):
        raise RuntimeError(
            f"a tile of {pixels.shape} {pixels.dtype} for {shape} {dtype}, or invalid pixels that are not 0"
        )


def change(path, how):
    """What others do to a file between its header and its pixels."""
    if how.endswith("-reopened"):
        raster._handles.clear()
    match how.removesuffix("-reopened"):
        case "delete":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "halve":
            os.truncate(path, path.stat().st_size // 2)
        case "smaller":
            write(path, noise(1, 8, 8))
        case "other-type":
            write(path, noise(1, 64, 64).astype(np.complex64))
        case "pipe":
            path.unlink()
            os.mkfifo(path)
        case "text":
            path.write_text("<VRTDataset/>")
