# SPDX-License-Identifier: Apache-2.0
"""How fast a run goes and what it waits for, told from clocks on the host alone.

The device is never waited for: between two readings of the losses, which do wait, the clock is right on average.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from spectralgpt.train.flops import gemm_rate

T = TypeVar("T")


@dataclass(frozen=True)
class Reading:
    """What happened since the last reading.

    Attributes:
        samples_per_second: of all processes together.
        mfu: share of the rate of matrix products measured on this device that the model's FLOPs reached.
        memory: bytes at the highest point so far: tensors on CUDA, the whole process on the CPU.
        loader_wait: share of the time spent waiting for data.
    """

    samples_per_second: float
    mfu: float
    memory: float
    loader_wait: float

    def __str__(self) -> str:
        """For the progress bar."""
        return f"MFU {self.mfu:.0%}, {self.memory / 1e9:.1f} GB, loader {self.loader_wait:.0%}"


class Speed:
    """The meter of one stage."""

    def __init__(
        self, flops: float, device: torch.device, dtype: torch.dtype, *, samples: int = 0, processes: int = 1
    ) -> None:
        """Starts the clock.

        Args:
            flops: of a training step, per sample.
            device: where it runs.
            dtype: what matrices are multiplied in.
            samples: how many the run has consumed so far.
            processes: how many share the work, each on a device like this one.
        """
        self._flops, self._device = flops, device
        self._rate = processes * gemm_rate(device.type, dtype)
        self._samples = samples
        self._waited = 0.0
        self._since = time.perf_counter()

    def watch(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; the time to get one is noted as waiting."""
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += time.perf_counter() - start
            yield batch

    def read(self, samples: int) -> Reading:
        """The reading at `samples` consumed; the next one starts here."""
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        per_second = (samples - self._samples) / seconds
        reading = Reading(per_second, per_second * self._flops / self._rate, self._memory(), self._waited / seconds)
        self._since, self._samples, self._waited = now, samples, 0.0
        return reading

    def _memory(self) -> float:
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self._device))
        return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
