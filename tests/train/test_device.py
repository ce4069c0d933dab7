# SPDX-License-Identifier: Apache-2.0
"""What a run sets up in its process."""

from __future__ import annotations

import platform
import resource
import statistics
from multiprocessing.connection import Connection

import pytest
import torch

from spectralgpt.heads.base import HeadConfig
from spectralgpt.heads.classification import Classifier
from spectralgpt.models.config import make_config
from spectralgpt.train.config import RunConfig
from spectralgpt.train.device import keep_freed_memory, place
from spectralgpt.train.stages import Snapshot
from tests.train import small_run

_SIZE = 2**26


def count_faults(keep: bool, pipe: Connection) -> None:
    """Page faults of filling a tensor whose like was freed before: the median of many.

    Some get a place of their own, when what is left beside the freed one is too small for the next; which ones is
    a matter of what else the process has allocated.
    """
    if keep:
        assert keep_freed_memory()
    faults = []
    for _ in range(25):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(_SIZE, dtype=torch.uint8)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    pipe.send(statistics.median(faults))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_freed_by_a_step_serves_the_next() -> None:
    faults = []
    for keep in (False, True):
        ours, theirs = small_run._CONTEXT.Pipe()
        child = small_run._CONTEXT.Process(target=count_faults, args=(keep, theirs))
        child.start()
        child.join(600)
        assert child.exitcode == 0
        faults.append(ours.recv())
    given_back, kept = faults
    assert given_back >= _SIZE // 2**21  # one for each huge page at least
    assert kept < _SIZE // 2**22


def test_statistics_of_a_model_come_from_the_snapshot_too() -> None:
    """A model comes to life without weights: whatever is not copied would be whatever memory held."""
    config = make_config("tiny", image_size=32, embed_dim=24, depth=1, num_heads=3)
    head = HeadConfig("single_label", 3, standardize=True)
    weights = {name: torch.full_like(tensor, 2) for name, tensor in Classifier(config, head).state_dict().items()}
    with torch.device("meta"):
        model = Classifier(config, head)
    place(RunConfig(), model, torch.device("cpu"), Snapshot(weights, {}))
    assert all((tensor == 2).all() for tensor in model.state_dict().values())
    assert "standardize.running_var" in weights
