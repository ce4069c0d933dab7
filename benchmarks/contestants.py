# SPDX-License-Identifier: Apache-2.0
"""The contestants of `step.py`: a training step of each, in a process of its own or alone on the GPU."""

from __future__ import annotations

import argparse
import contextlib
import gc
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
from rivals import ModernAutoencoder, PlainAutoencoder
from torch import Tensor, nn

import spectralgpt
from spectralgpt import ops
from spectralgpt.models.config import ModelConfig
from spectralgpt.nn import Block
from spectralgpt.train.device import keep_freed_memory

MASK_RATIO = 0.9
ADAMW = {"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 0.05}
Step = Callable[[], Tensor]


def stepping(model: nn.Module, loss_of: Step, device: str, dtype: torch.dtype, *, fused: bool) -> Step:
    """One training step over a loss."""
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW, fused=fused)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)

    def run() -> Tensor:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = loss_of()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return run


def build(name: str, config: ModelConfig, args: argparse.Namespace, batch: int) -> Step:
    """The step of a contestant, by its name in the table."""
    if name == "ours":
        return ours(config, args, batch)
    return rival(ModernAutoencoder if name == "modern" else PlainAutoencoder, config, args, batch)


def rival(kind: type[PlainAutoencoder], config: ModelConfig, args: argparse.Namespace, batch: int) -> Step:
    """A step of a rival; the modern one is compiled and runs in our dtype."""
    modern = kind is ModernAutoencoder
    model = kind(config).to(args.device)
    image = random_image(config, batch, args.device)
    dtype = torch.float16 if args.device == "cuda" and not modern else getattr(torch, args.dtype)
    forward = torch.compile(model) if modern and not args.no_compile else model
    return stepping(model, lambda: forward(image, MASK_RATIO), args.device, dtype, fused=modern)


def ours(config: ModelConfig, args: argparse.Namespace, batch: int, recompute: str = "none") -> Step:
    """A step of this library; compiled on CUDA, where that pays."""
    model = spectralgpt.create_autoencoder(**config.to_dict()).to(args.device)
    for block in model.modules():
        if isinstance(block, Block):
            block.recompute = recompute
    image, ids = random_image(config, batch, args.device), torch.arange(batch, device=args.device)
    if args.device == "cuda" and not args.no_compile:
        model.compile()

    def loss() -> Tensor:
        return model(image, ops.random_cube_mask(ids, config.num_tokens, MASK_RATIO, seed=0)).loss

    return stepping(model, loss, args.device, getattr(torch, args.dtype), fused=True)


def random_image(config: ModelConfig, batch: int, device: str) -> Tensor:
    """Values do not matter for speed, but zeros would make a GPU run faster than it will."""
    return torch.rand(batch, config.bands, *config.height_width, device=device)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def seconds(run: Step, device: str, clock: str = "wall") -> float:
    """Seconds of one call, the device's queue emptied."""
    start = CLOCKS[clock]()
    run().item()  # the loss is ready before the update; reading it and waiting cover both
    if device == "cuda":
        torch.cuda.synchronize()
    return CLOCKS[clock]() - start


def release(device: str) -> None:
    """Memory of what is not referenced any more goes back."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


class Apart:
    """A contestant in a process of its own, which waits for its turn."""

    def __init__(self, name: str, *rest: object) -> None:
        """Starts it; `rest` as for `build`."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["contestants"])
        self._pipe, theirs = context.Pipe()
        context.Process(target=_serve, args=(theirs, name, *rest), daemon=True).start()
        theirs.close()

    def seconds(self) -> float:
        """Of one step."""
        self._pipe.send(None)
        return self._pipe.recv()


def _serve(pipe: Connection, name: str, config: ModelConfig, args: argparse.Namespace, batch: int) -> None:
    torch.set_num_threads(args.threads)
    if name == "ours":
        keep_freed_memory()
    torch.manual_seed(0)
    step = build(name, config, args, batch)
    with contextlib.suppress(EOFError):  # the benchmark is over
        while True:
            pipe.recv()
            pipe.send(seconds(step, args.device, args.clock))


class Alone:
    """A contestant in this process, with the GPU's memory for itself."""

    def __init__(self, name: str, config: ModelConfig, args: argparse.Namespace, batch: int) -> None:
        """As `build`."""
        release(args.device)
        self._step, self._device = build(name, config, args, batch), args.device

    def seconds(self) -> float:
        """Of one step."""
        return seconds(self._step, self._device)
