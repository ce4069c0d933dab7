# SPDX-License-Identifier: Apache-2.0
"""What is done of a prediction, kept beside its output so that a killed one goes on where it was.

The folder `<output>.work` holds the settings, the rows of the output that are finished, and the results of the batches
that later rows still need. A batch is appended to a file with its checksum, so whatever a kill or a power cut tears is
found and computed again, and no more: results are never worked into anything that cannot be rebuilt from them. Finished
rows are flushed to disk before they are noted. The output itself appears by one rename.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from spectralgpt.data.raster import Pixels
from spectralgpt.errors import UserError
from spectralgpt.files import write_text
from spectralgpt.predict.windows import Floats

_SETTINGS = "settings.json"
_LOCK = ".lock"
_RECORD = struct.Struct("<4s4IQ")  # mark, shape (count, K, h, w), checksum
_MARK = b"swin"


class Work:
    """The work folder of one output, held by one prediction (of any number of processes) at a time."""

    def __init__(self, folder: Path) -> None:
        """Touches nothing."""
        self.folder = folder
        self._lock = -1

    def take(self, settings: Mapping[str, Any], restart: bool = False) -> None:
        """Makes the folder, or goes on in one that holds the work of an interrupted run of the same settings.

        Args:
            settings: everything that decides the output, plain values.
            restart: forget what an interrupted run has done, of whatever settings.

        Raises:
            UserError: another prediction is at work there, or the settings are others; names those that differ.
        """
        self.folder.mkdir(exist_ok=True)
        self._lock = os.open(self.folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            self._take(json.dumps(settings, indent=1, sort_keys=True), restart)
        except UserError:
            self.release()
            raise

    def knows(self, key: str) -> bool:
        """Whether a value was remembered."""
        return (self.folder / f"{key}.json").exists()

    def remember(self, key: str, make: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401 - plain values
        """A plain value that an interrupted run need not find again; made where it is not there yet."""
        path = self.folder / f"{key}.json"
        if make is not None and not path.exists():
            write_text(path, json.dumps(make()))
        return json.loads(path.read_text(encoding="utf-8"))

    def nbytes(self) -> int:
        """Disk space that the rows written so far take."""
        return sum(path.stat().st_blocks * 512 for path in self.folder.glob("rows-*"))

    def done(self) -> set[int]:
        """Rows of windows whose rows of the output are finished, by any process."""
        return {int(path.name.removeprefix("done-")) for path in self.folder.glob("done-*")}

    def mark_done(self, index: int) -> None:
        """Notes a row of windows, whose rows of the output must be on disk."""
        (self.folder / f"done-{index}").touch()

    def write_rows(self, name: str, start: int, pixels: Pixels) -> None:
        """Puts rows `(bands, n, W)` of the output where they belong in a file of plain numbers, and on disk."""
        rows = np.ascontiguousarray(pixels.transpose(1, 0, 2))
        descriptor = os.open(self.folder / name, os.O_CREAT | os.O_WRONLY, 0o644)
        try:
            left, offset = rows.data.cast("B"), start * rows[0].nbytes
            while left:
                written = os.pwrite(descriptor, left, offset)
                left, offset = left[written:], offset + written
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def read_rows(self, name: str, dtype: str, shape: tuple[int, int, int], step: int) -> Iterator[tuple[int, Pixels]]:
        """All rows of the output, `step` at a time: first row, and pixels `(bands, n, W)`."""
        bands, height, width = shape
        row = bands * width
        with open(self.folder / name, "rb") as file:
            for start in range(0, height, step):
                pixels = np.fromfile(file, dtype, min(step, height - start) * row)
                yield start, pixels.reshape(-1, bands, width).transpose(1, 0, 2)

    def log(self, rank: int, index: int) -> BatchLog:
        """The results of the batches of a row of windows."""
        return BatchLog(self.folder / f"batches-{rank}-{index}")

    def drop_logs(self, rank: int, before: int) -> None:
        """Forgets the batches of this process that no row of windows from `before` on needs."""
        for path in self.folder.glob(f"batches-{rank}-*"):
            if int(path.name.rpartition("-")[2]) < before:
                path.unlink()

    def remove(self) -> None:
        """Ends the work."""
        self._clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def release(self) -> None:
        """Lets others take the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _take(self, text: str, restart: bool) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{self.folder}: another prediction is writing this output; wait for it") from error
        path = self.folder / _SETTINGS
        if restart or not path.exists():  # what is there without settings is half-removed
            self._clear()
            write_text(path, text)
            return
        before, now = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
        differ = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        if differ:
            raise UserError(
                f"{self.folder}: expected the settings of the interrupted prediction, got another "
                f"{', '.join(differ)}; repeat its command, or give --restart to begin anew"
            )

    def _clear(self) -> None:
        """Removes all but the lock; the settings first, lest a half-removed folder count as work."""
        (self.folder / _SETTINGS).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.name != _LOCK:
                path.unlink()


class BatchLog:
    """Results of batches in their order, in a file that may end anywhere."""

    def __init__(self, path: Path) -> None:
        """Touches nothing."""
        self._path = path

    def replay(self) -> Iterator[Floats | None]:
        """The results that are whole; what follows them is cut off."""
        if not self._path.exists():
            return
        with open(self._path, "r+b") as file:
            size, whole = os.fstat(file.fileno()).st_size, 0
            while size - whole >= _RECORD.size:
                mark, *shape, checksum = _RECORD.unpack(file.read(_RECORD.size))
                nbytes = 4 * math.prod(shape)
                if mark != _MARK or nbytes > size - file.tell():
                    break
                content = file.read(nbytes)
                if xxhash.xxh3_64_intdigest(content) != checksum:
                    break
                whole = file.tell()
                yield np.frombuffer(content, np.float32).reshape(shape) if nbytes else None
            file.truncate(whole)

    def append(self, values: Floats | None) -> None:
        """Keeps the results `(count, K, h, w)` of the next batch; None for one that was not computed."""
        content = b"" if values is None else np.ascontiguousarray(values, np.float32).data.cast("B")
        shape = (0, 0, 0, 0) if values is None else values.shape
        with open(self._path, "ab") as file:
            file.write(_RECORD.pack(_MARK, *shape, xxhash.xxh3_64_intdigest(content)))
            file.write(content)
