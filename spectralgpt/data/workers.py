# SPDX-License-Identifier: Apache-2.0
"""Work over a whole data set in several processes, with a progress bar and a limit to the bad files.

Processes start by forkserver, so that each opens its own raster handles, and end with the process that started them,
also when that is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from spectralgpt.data.datasets.base import PatchDataset
from spectralgpt.data.record import Record
from spectralgpt.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
Bad = list[tuple[str, str]]

_POLL = 0.2
_NAMED = 10

_context = multiprocessing.get_context("forkserver")


class Progress:
    """Counters that all workers share."""

    def __init__(self) -> None:
        """Nothing done yet."""
        self.done, self.bad = _context.Value("q", 0), _context.Value("q", 0)
        self.stop = _context.Event()

    def read(self, dataset: PatchDataset, indices: range) -> Iterator[tuple[Record | None, tuple[str, str]]]:
        """Each image's record, or None with its name and what is wrong with it; ends early when told to stop."""
        for index in indices:
            if self.stop.is_set():
                return
            try:
                yield dataset.read(index), ("", "")
            except (UserError, OSError) as error:
                with self.bad.get_lock():
                    self.bad.value += 1
                yield None, (dataset.name(index), str(error))
            with self.done.get_lock():
                self.done.value += 1


def run(
    function: Callable[[PatchDataset, Task, Progress], tuple[Result, Bad]],
    tasks: Sequence[Task],
    dataset: PatchDataset,
    *,
    num_images: int,
    num_workers: int,
    max_bad: float,
    title: str,
) -> list[Result]:
    """Results of `function(dataset, task, progress)` in the order of the tasks, and a bar of the images done.

    Args:
        function: module-level; gives its result and the images it could not read.
        tasks: what to do.
        dataset: given to each process once.
        num_images: images in all tasks together.
        num_workers: processes; 0 works in this one.
        max_bad: share of images that may be bad.
        title: shown in front of the bar.

    Raises:
        UserError: more bad images, named; or a process died.
    """
    progress = Progress()
    executor: Executor
    if num_workers:
        _context.set_forkserver_preload([__name__])
        executor = ProcessPoolExecutor(min(num_workers, max(len(tasks), 1)), _context, _start, (dataset, progress))
    else:
        executor = ThreadPoolExecutor(1)
    try:
        with tqdm(total=num_images, unit=" images", desc=title, disable=None) as bar:
            if num_workers:
                futures = [executor.submit(_call, function, task) for task in tasks]
            else:
                futures = [executor.submit(function, dataset, task, progress) for task in tasks]
            _watch(futures, progress, bar, max_bad * num_images)
        results = [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise UserError(
            f"{title}: a worker process died (killed, or out of memory); what is finished is kept: run the same "
            "command again, perhaps with fewer --workers"
        ) from error
    finally:
        progress.stop.set()
        executor.shutdown(cancel_futures=True)
    bad = [named for _, some in results for named in some]
    if len(bad) > max_bad * num_images:
        raise UserError(_too_many(title, bad, num_images, max_bad))
    return [result for result, _ in results]


def _watch(futures: list[Future[Any]], progress: Progress, bar: Any, limit: float) -> None:  # noqa: ANN401
    """Waits for all; at the first failure, or with too many bad images, tells the others to stop."""
    pending = set(futures)
    while pending:
        finished, pending = wait(pending, _POLL, FIRST_COMPLETED)
        bar.update(progress.done.value - bar.n)
        failed = any(future.exception() is not None for future in finished)
        if failed or progress.bad.value > limit:
            progress.stop.set()


def _too_many(title: str, bad: Bad, num_images: int, max_bad: float) -> str:
    named = "; ".join(f"{name}: {reason}" for name, reason in bad[:_NAMED]) + ("; ..." if len(bad) > _NAMED else "")
    return f"{title}: expected at most {max_bad:.2%} bad images, got {len(bad)} of {num_images}: {named}"


_worker: tuple[PatchDataset, Progress] | None = None


def _start(dataset: PatchDataset, progress: Progress) -> None:
    """Sets a worker up: it leaves Ctrl-C to its parent and does not outlive it."""
    global _worker
    _worker = dataset, progress
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(function: Callable[[PatchDataset, Task, Progress], tuple[Result, Bad]], task: Task) -> tuple[Result, Bad]:
    if _worker is None:
        raise RuntimeError("worker process was not set up")
    return function(_worker[0], task, _worker[1])
