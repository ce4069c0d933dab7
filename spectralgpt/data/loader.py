# SPDX-License-Identifier: Apache-2.0
"""Order and batching of samples, with nothing to save for a restart.

The order is a pure function of the seed: sample n of a run is known without drawing those before it. So a run
resumes at any sample from that number alone, and batches do not depend on the number of workers.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import signal
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from spectralgpt import ops
from spectralgpt.errors import UserError

_WORKER_TIMEOUT = 120.0
_POLL = 1.0
_NAMED = 10

_log = logging.getLogger(__name__)

Key = tuple[int, int]


class Batched(Protocol):
    """What a loader reads from."""

    def __getitems__(self, keys: list[Key]) -> Any:  # noqa: ANN401
        """The batch of some keys (epoch, index)."""


class EpochSampler:
    """All samples once per epoch, in an order of its own for each epoch, for ever."""

    def __init__(self, num_samples: int, seed: int, shuffle: bool = True) -> None:
        """Order for `num_samples` samples.

        Raises:
            ValueError: there are none.
        """
        if num_samples < 1:
            raise ValueError(f"EpochSampler: expected at least one sample, got {num_samples}")
        self._num_samples, self._seed, self._shuffle = num_samples, seed, shuffle

    def keys(self, start: int, count: int) -> list[Key]:
        """The keys (epoch, index) of samples `start` to before `start + count` of the run."""
        keys = []
        for position in range(start, start + count):
            epoch, place = divmod(position, self._num_samples)
            index = int(_order(self._num_samples, self._seed, epoch)[place]) if self._shuffle else place
            keys.append((epoch, index))
        return keys


def loader(
    dataset: Batched,
    sampler: EpochSampler,
    batch_size: int,
    start: int = 0,
    num_workers: int = 0,
    *,
    stop: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    timeout: float = _WORKER_TIMEOUT,
) -> Iterator[Any]:
    """Batches from sample `start` of the run on; a batch may reach into the next epoch.

    The order of the samples is that of all processes together: each takes its slice of every batch, so that a run
    sees the same batches on any number of processes.

    Args:
        dataset: gives a batch for a list of the sampler's keys.
        sampler: the order.
        batch_size: samples per batch, of all processes together.
        start: number of samples the run has seen.
        num_workers: processes that read ahead. They start by forkserver, since a forked copy of this process
            may hold locks of the raster library.
        stop: number of samples after which to end, the last batch being what is left; None goes on for ever.
        rank: place of this process.
        world_size: number of processes.
        pin_memory: hand out batches in page-locked memory, where there is CUDA.
        timeout: seconds after which a silent worker counts as hanging.

    Raises:
        UserError: the processes cannot share the batches equally; while iterating, what reading raises, and a worker
            that died or hangs.
    """
    if batch_size % world_size:
        raise UserError(f"batch size: expected a multiple of the {world_size} processes, got {batch_size}")
    context = None
    if num_workers:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
    batches: DataLoader[Any] = DataLoader(
        _Fetched(dataset),
        batch_sampler=_Batches(sampler, batch_size, start, stop, rank, world_size),
        collate_fn=_as_it_is,
        num_workers=num_workers,
        multiprocessing_context=context,
        worker_init_fn=_ignore_signals,
        timeout=_POLL if num_workers else 0,  # after which PyTorch looks whether the workers live
        pin_memory=pin_memory and torch.cuda.is_available(),
        generator=torch.Generator(),  # its own, or every loader would advance the generator that dropout uses
    )
    others = multiprocessing.active_children()
    stream = iter(batches)
    workers = [child for child in multiprocessing.active_children() if child not in others]
    atexit.register(_kill, workers)
    return _checked(stream, workers, timeout)


class Rejects:
    """Images that training could not read: named once, counted, and an error where they become too many."""

    def __init__(self, num_images: int, max_share: float = 0.01) -> None:
        """For a data set of `num_images`, of which `max_share` may be bad."""
        self._num_images, self._max_share = num_images, max_share
        self.reasons: dict[str, str] = {}

    def add(self, skipped: Iterable[tuple[str, str]]) -> None:
        """Takes in what a batch skipped.

        Raises:
            UserError: more images than allowed are bad; lists them.
        """
        for name, reason in skipped:
            if name not in self.reasons:
                self.reasons[name] = reason
                _log.warning("image skipped, another one takes its place: %s: %s", name, reason)
        count = len(self.reasons)
        if count > self._max_share * self._num_images:
            named = [f"{name}: {reason}" for name, reason in list(self.reasons.items())[:_NAMED]]
            listed = "; ".join(named + ["..."] * (count > _NAMED))
            raise UserError(
                f"data: expected at most {self._max_share:.2%} bad images, got {count} of {self._num_images}: {listed}"
            )


class _Fetched(Dataset[Any]):
    """Makes a batch where it is read, and gives a user's mistake as a value: raised in a worker it were a traceback."""

    def __init__(self, dataset: Batched) -> None:
        self._dataset = dataset

    def __getitems__(self, keys: list[Key]) -> Any:  # noqa: ANN401
        try:
            return self._dataset.__getitems__(keys)
        except UserError as error:
            return error


class _Batches:
    """Lists of the keys of one process."""

    def __init__(
        self, sampler: EpochSampler, batch_size: int, start: int, stop: int | None, rank: int, world_size: int
    ) -> None:
        self._sampler, self._batch_size, self._start, self._stop = sampler, batch_size, start, stop
        self._share = batch_size // world_size
        self._first = rank * self._share

    def __iter__(self) -> Iterator[list[Key]]:
        start = self._start
        while self._stop is None or start < self._stop:
            count = self._batch_size if self._stop is None else min(self._batch_size, self._stop - start)
            keys = self._sampler.keys(start + self._first, max(min(self._share, count - self._first), 0))
            if keys:
                yield keys
            start += self._batch_size


def _as_it_is(batch: Any) -> Any:  # noqa: ANN401
    return batch


def _checked(batches: Iterator[Any], workers: list[BaseProcess], timeout: float) -> Iterator[Any]:
    """Raises what a worker sends as a value, and tells a worker's end from an error of the program."""
    since = time.monotonic()
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            text = str(error)
            if "DataLoader timed out" in text:
                if time.monotonic() - since < timeout:
                    continue
                _kill(workers)
                raise UserError(
                    f"the processes that read data gave nothing for {timeout:g} s; the disk may hang: look at it, "
                    "then --resume"
                ) from error
            # A batch that was sent is fetched from its worker; one that died meanwhile does not answer.
            unanswered = workers and not isinstance(error, RuntimeError) and not text.startswith("Caught ")
            if unanswered or "DataLoader worker (pid" in text:
                _kill(workers)
                raise UserError(
                    f"a process that reads data died ({_line(error)}), perhaps for lack of memory; set fewer "
                    "data.num_workers, then --resume"
                ) from error
            raise
        if isinstance(batch, UserError):
            raise batch
        yield batch
        since = time.monotonic()


def _kill(workers: list[BaseProcess]) -> None:
    """Ends workers that hang or were forgotten: they ignore gentler signals, and Python waits for them when it ends."""
    for worker in workers:
        if worker.is_alive():
            worker.kill()
    for worker in workers:
        worker.join(_POLL)


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


@lru_cache(maxsize=2)
def _order(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    words = ops.philox(seed, torch.arange(num_samples), epoch, ops.Purpose.SHUFFLE, 1)[:, 0]
    order: NDArray[np.int64] = torch.argsort(words, stable=True).numpy()
    return order


def _ignore_signals(worker: int) -> None:
    """Leaves Ctrl-C and termination to the main process, which may still need batches to end in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
