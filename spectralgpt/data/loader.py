# SPDX-License-Identifier: Apache-2.0
"""Order and batching of samples, with nothing to save for a restart.

The order is a pure function of the seed: sample n of a run is known without drawing those before it. So a run
resumes at any sample from that number alone, and batches do not depend on the number of workers.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spectralgpt import ops

_WORKER_TIMEOUT = 120.0

Key = tuple[int, int]


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
    dataset: Dataset[dict[str, Tensor]],
    sampler: EpochSampler,
    batch_size: int,
    start: int = 0,
    num_workers: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """Batches without end, from sample `start` of the run on; a batch may reach into the next epoch.

    Args:
        dataset: takes the sampler's keys and gives dictionaries of tensors.
        sampler: the order.
        batch_size: samples per batch.
        start: number of samples the run has seen.
        num_workers: processes that read ahead. They start by forkserver, since a forked copy of this process
            may hold locks of the raster library.
    """
    context = None
    if num_workers:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
    batches: DataLoader[dict[str, Tensor]] = DataLoader(
        dataset,
        batch_sampler=_Batches(sampler, batch_size, start),
        num_workers=num_workers,
        multiprocessing_context=context,
        worker_init_fn=_ignore_signals,
        timeout=_WORKER_TIMEOUT if num_workers else 0,
        generator=torch.Generator(),  # its own, or every loader would advance the generator that dropout uses
    )
    return iter(batches)


class _Batches:
    """Endless lists of keys."""

    def __init__(self, sampler: EpochSampler, batch_size: int, start: int) -> None:
        self._sampler, self._batch_size, self._start = sampler, batch_size, start

    def __iter__(self) -> Iterator[list[Key]]:
        start = self._start
        while True:
            yield self._sampler.keys(start, self._batch_size)
            start += self._batch_size


@lru_cache(maxsize=2)
def _order(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    words = ops.philox(seed, torch.arange(num_samples), epoch, ops.Purpose.SHUFFLE, 1)[:, 0]
    order: NDArray[np.int64] = torch.argsort(words, stable=True).numpy()
    return order


def _ignore_signals(worker: int) -> None:
    """Leaves Ctrl-C and termination to the main process, which may still need batches to end in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
