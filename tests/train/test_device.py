# SPDX-License-Identifier: Apache-2.0
"""What a run sets up in its process."""

from __future__ import annotations

import platform
import resource
from multiprocessing.connection import Connection

import pytest
import torch

from spectralgpt.train.device import keep_freed_memory
from tests.train import small_run

_SIZE = 2**28


def count_faults(keep: bool, pipe: Connection) -> None:
    """Page faults of filling a tensor whose like was freed before."""
    if keep:
        assert keep_freed_memory()
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(_SIZE, dtype=torch.uint8)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    pipe.send(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_freed_by_a_step_serves_the_next() -> None:
    faults = []
    for keep in (False, True):
        ours, theirs = small_run._CONTEXT.Pipe()
        child = small_run._CONTEXT.Process(target=count_faults, args=(keep, theirs))
        child.start()
        child.join(120)
        assert child.exitcode == 0
        faults.append(ours.recv())
    given_back, kept = faults
    assert given_back > 100  # one for each huge page at least
    assert kept < 32
