# SPDX-License-Identifier: Apache-2.0
"""A running average of the weights, often the better model at a run's end.

    average = decay * average + (1 - decay) * weights        after every optimizer step; at first the weights themselves

It lies beside AdamW's two moments in the optimizer's state and goes wherever they go: into checkpoints and shards,
to other numbers of processes, through a stage's resampling of positions. A step that the guard skipped leaves it as it
was, to the bit; nobody waits for the device to ask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

AVERAGE = "average"
"""The key beside `exp_avg` and `exp_avg_sq`."""


@torch.no_grad()
def update_average(optimizer: Optimizer, decay: float) -> None:
    """Takes in the weights after a step; a few kernels for all of them and no synchronisation.

    Args:
        optimizer: has made a step.
        decay: share of the former average that stays, from 0 to below 1.
    """
    weights = _weights(optimizer)
    averages = []
    for weight in weights:
        state = optimizer.state[weight]
        if AVERAGE not in state:
            state[AVERAGE] = weight.detach().clone()
        averages.append(state[AVERAGE])
    skipped: Tensor | None = getattr(optimizer, "found_inf", None)
    if skipped is None:
        torch._foreach_lerp_(_local(averages), _local(weights), 1.0 - decay)
    else:
        share = (1.0 - decay) * (1.0 - skipped)
        torch._foreach_lerp_(_local(averages), _local(weights), [share] * len(averages))


@contextmanager
def average_applied(optimizer: Optimizer) -> Iterator[None]:
    """The model works with its average while the block lasts; without one with its weights.

    Weights stay where they are in memory, so whatever holds on to them (a recorded graph, a wrapper) is unharmed, and
    come back to the bit.
    """
    weights = [weight for weight in _weights(optimizer) if AVERAGE in optimizer.state[weight]]
    if not weights:
        yield
        return
    present, averages = _local(weights), _local([optimizer.state[weight][AVERAGE] for weight in weights])
    kept = [weight.clone() for weight in present]
    torch._foreach_copy_(present, averages)
    try:
        yield
    finally:
        torch._foreach_copy_(present, kept)


def averaged(weights: Mapping[str, Tensor], moments: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The weights to hand out, by name: averages where there are any."""
    return {**weights, **moments.get(AVERAGE, {})}


def _local(tensors: list[Tensor]) -> list[Tensor]:
    """This process's part of each; the average of a shard is the shard of the average."""
    plain = (tensor.detach() for tensor in tensors)
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in plain]


def _weights(optimizer: Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]
