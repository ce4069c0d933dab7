# SPDX-License-Identifier: Apache-2.0
"""Several processes on one scene, started by torchrun: they share a file system and meet twice."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch.distributed as dist

_SET_PARENT_DEATH_SIGNAL = 1  # of prctl(2)
_TIMEOUT = timedelta(days=7)  # a process waits for the slowest; a dead one is the launcher's business


class Ranks(NamedTuple):
    """Place of this process, and how many there are; the first one writes what all have made."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def wait(self) -> None:
        """Returns once all processes are here."""
        if self.world_size > 1:
            dist.barrier()

    def from_first(self, value: Any) -> Any:  # noqa: ANN401 - what comes is what went
        """The first process's plain values on all; of the others `value` is ignored."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


ALONE = Ranks()
"""One process that nobody started for a share."""


@contextmanager
def processes() -> Iterator[Ranks]:
    """Joins the processes that torchrun started, if it did, while the block lasts."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield ALONE
        return
    # A launcher that is killed takes nobody with it by itself.
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    dist.init_process_group("gloo", timeout=_TIMEOUT)
    yield Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
    dist.destroy_process_group()  # not after an error: the others may be waiting for us
