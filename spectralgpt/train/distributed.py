# SPDX-License-Identifier: Apache-2.0
"""Several processes on one run, started by torchrun: who is who, what they agree on, and how state is spread.

Whole tensors live on rank 0's host whenever they cross a boundary (a checkpoint, the next stage) and are handed
out from there, whatever holds them afterwards: copies under DDP, shards under FSDP2. So a checkpoint is the same
for any number of processes and either kind, and loading has one path. In a single process every function here is
the identity.
"""

from __future__ import annotations

import ctypes
import os
import signal
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.fsdp import fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")

_SET_PARENT_DEATH_SIGNAL = 1  # of prctl(2)
_TIMEOUT = timedelta(minutes=30)


@contextmanager
def processes(device_type: str) -> Iterator[None]:
    """Joins the processes that torchrun started, if it did, while the block lasts.

    Args:
        device_type: "cuda" exchanges gradients over NCCL; flags and objects go over gloo in any case, so that no
            exchange between hosts waits for a device.
    """
    if not is_launched():
        yield
        return
    # A launcher that is killed takes nobody with it by itself: its processes would train on, unwatched.
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, place, count = next(rendezvous("env://", timeout=_TIMEOUT))
    # torchrun keeps the store over a restart: without a name of its own, one start finds the addresses of the last.
    store = PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=place, world_size=count, timeout=_TIMEOUT)
    yield
    dist.destroy_process_group()  # not after an error: the others may be waiting in an exchange, and so would we


def is_launched() -> bool:
    """Whether torchrun, or who does as it does, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """Place of this process among all; 0 writes the run's folder."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def launcher() -> str | None:
    """What tells this launch from others and stays the same when torchrun restarts its processes."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name in (None, "", "none"):
        return f"{os.uname().nodename}-{os.getppid()}" if dist.is_initialized() else None
    return name


def is_restarted() -> bool:
    """Whether torchrun started this process in place of one that died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def agree(flag: int) -> int:
    """The largest of all processes' flags, on the host: the device is not waited for."""
    if world_size() == 1:
        return flag
    largest = torch.tensor(flag)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def total(values: Tensor) -> Tensor:
    """Sum over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def from_first(value: T) -> T:
    """Rank 0's object on all ranks; tensors in it must be small."""
    if world_size() == 1:
        return value
    values: list[T] = [value]
    dist.broadcast_object_list(values, 0, device=torch.device("cpu"))
    return values[0]


def from_all(value: T) -> list[T]:
    """Every rank's object, in the order of the ranks."""
    if world_size() == 1:
        return [value]
    values: list[T] = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


def shard(blocks: Iterable[nn.Module], model: nn.Module, device: torch.device) -> None:
    """FSDP2 in place: each block is gathered just before it runs and dropped after it."""
    # It says so because a prediction is a view of a matrix product; nobody writes into one.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
    mesh = init_device_mesh(device.type, (world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """A tensor on the host, put together from its shards; only rank 0 gets the values, the others a meta tensor."""
    plain = tensor.detach()
    if isinstance(plain, DTensor):
        plain = plain.full_tensor()
    return plain.cpu() if rank() == 0 else plain.to("meta")


def outline(tree: T) -> T:
    """A state with meta tensors in place of weights and moments: all that ranks other than 0 need of it."""
    kept: Any = tree
    if isinstance(tree, Tensor):
        kept = tree.to("meta") if tree.is_floating_point() else tree
    elif isinstance(tree, dict):
        kept = {key: outline(value) for key, value in tree.items()}
    elif isinstance(tree, list | tuple):
        kept = type(tree)(map(outline, tree))
    return cast("T", kept)


@torch.no_grad()
def spread(source: Tensor, like: Tensor) -> Tensor:
    """The inverse of `whole`: rank 0's values on every rank, placed as `like` is."""
    local = source.to(like.device) if rank() == 0 else torch.empty(source.shape, dtype=source.dtype, device=like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(local, like.device_mesh, like.placements)
    if world_size() > 1:
        local = local.contiguous()
        dist.broadcast(local, 0)
    return local
