# SPDX-License-Identifier: Apache-2.0
"""What a recipe means on this machine: device, precision, and the model and its optimizer on the device.

`place` is the only way there. It fills parameters that already lie where they belong, whole or in shards, from
whole tensors on the first process, so a model that no single device holds is never put together on one.
"""

from __future__ import annotations

import ctypes
import os

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from spectralgpt.errors import UserError
from spectralgpt.models.base import SpectralModel
from spectralgpt.nn import Block
from spectralgpt.nn.attention import choose_by_measurement
from spectralgpt.nn.block import Recompute
from spectralgpt.train import distributed
from spectralgpt.train.config import RunConfig
from spectralgpt.train.optim import adamw
from spectralgpt.train.stages import Snapshot

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of mallopt(3)


def device_type(config: RunConfig) -> str:
    """Where a run computes: "cpu" or "cuda"."""
    return "cuda" if config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available()) else "cpu"


def set_up_torch(config: RunConfig) -> torch.device:
    """Applies device, threads and determinism, which belong to the process."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: expected a CUDA device, got none; leave it at auto")
    if config.speed.cuda_graph and device_type(config) != "cuda":
        raise UserError("speed.cuda_graph: expected a CUDA device, got cpu; turn it off")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if device_type(config) == "cuda":
        choose_by_measurement(not config.deterministic)
        return torch.device("cuda", torch.cuda.current_device())
    keep_freed_memory()
    return torch.device("cpu")


def keep_freed_memory() -> bool:
    """Lets the C library keep what a step frees for the next step, as PyTorch does with a GPU's memory.

    By default glibc gives every large tensor back to the kernel when it is freed and asks for new, zeroed pages at the
    next one: half a million page faults in a step of Base at batch 16.

    Returns:
        Whether the C library could be told; others than glibc cannot.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 2**26}
    return all([mallopt(option, value) for option, value in options.items()])


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, on the device or on the host, for which torch has no type of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def matrix_dtype(config: RunConfig, device: torch.device) -> torch.dtype:
    """What matrices are multiplied in."""
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def place(
    config: RunConfig, model: SpectralModel, device: torch.device, snapshot: Snapshot, recompute: Recompute = "none"
) -> tuple[nn.Module, AdamW]:
    """Brings a model without weights to life with those of the snapshot, on the device, whole or in shards.

    Returns:
        The module to call in training, and the optimizer.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        block.recompute = recompute
    several = distributed.world_size() > 1
    if several and config.speed.parallel == "fsdp":
        distributed.shard(blocks, model, device)
    model.to_empty(device=device)
    optimizer = adamw(model, config.optim)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(distributed.spread(snapshot.weights[name], parameter))
            for key, values in snapshot.moments.items():
                if name not in values:  # frozen
                    continue
                like = parameter if values[name].dim() else torch.empty((), device=device)
                optimizer.state[parameter][key] = distributed.spread(values[name], like)
        for name, buffer in model.named_buffers():  # statistics; the same in every process
            buffer.copy_(snapshot.weights[name])
    if config.speed.compile:
        model.compile()
    wrapped: nn.Module = model
    if several and config.speed.parallel == "ddp" and not config.speed.cuda_graph:
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
    model.train()
    return wrapped, optimizer
