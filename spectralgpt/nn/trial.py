# SPDX-License-Identifier: Apache-2.0
"""Which of several attention kernels is the fastest for tensors at hand: each runs forward and backward on copies.

A trial leaves no trace: it draws from no generator, and hooks that count or drop what autograd saves do not see it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]

_SAMPLES = 16
_ROUNDS = 4  # the first one warms up; the minimum counts


def fastest(kernels: Mapping[str, Kernel], q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """The name of the kernel that takes the least time.

    Args:
        kernels: by name; one that raises is left out.
        q: queries, (B, N, heads, head_dim), of which at most 16 samples are tried.
        k: keys, (B, M, heads, head_dim).
        v: values, (B, M, heads, head_dim).

    Returns:
        None where no kernel serves these tensors.
    """
    times: dict[str, float] = {}
    for name, kernel in kernels.items():
        inputs = [tensor[:_SAMPLES].detach().clone().requires_grad_() for tensor in (q, k, v)]
        try:
            with warnings.catch_warnings(), torch.enable_grad(), saved_tensors_hooks(_same, _same):
                warnings.simplefilter("ignore")  # torch explains at length why a kernel does not serve
                times[name] = min(_seconds(kernel, inputs) for _ in range(_ROUNDS))
        except (ImportError, RuntimeError):  # NotImplementedError and running out of memory among them
            continue
    return min(times, key=lambda name: times[name], default=None)


def _seconds(kernel: Kernel, inputs: list[Tensor]) -> float:
    on_cuda = inputs[0].device.type == "cuda"
    if on_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    torch.autograd.grad(kernel(*inputs).sum(), inputs)
    if on_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _same(tensor: Tensor) -> Tensor:
    return tensor
