# SPDX-License-Identifier: Apache-2.0
"""AdamW as published, a learning rate that is a pure function of the step, and one guarded update.

The guard never waits for the device: the fused AdamW kernels take `found_inf`, a flag on the device, and leave
weights, moments and step count untouched where it is set. So a NaN is caught before it reaches a weight, and
the host learns of it when it next reads the losses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from spectralgpt.train.config import OptimConfig, StageConfig

_BLOCK = re.compile(r"encoder\.blocks\.(\d+)\.")
_FIRST = re.compile(r"encoder\.(patch_embed|positions)\.")
_POLY = 0.9


def adamw(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW whose decay spares biases and norms (one dimension) but not positions and mask token, as published.

    Each group has a `scale`, by which `guarded_step` multiplies the learning rate.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    scales = layer_scales(trained, config.layer_decay)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        decay = config.weight_decay if parameter.dim() >= 2 else 0.0
        groups.setdefault((scales[name], decay), []).append(parameter)
    options = [{"params": group, "scale": scale, "weight_decay": decay} for (scale, decay), group in groups.items()]
    return AdamW(options, lr=0.0, betas=config.betas, fused=True)


def layer_scales(names: Iterable[str], decay: float) -> dict[str, float]:
    """Factor on the learning rate of each parameter, from its name: `decay` to the number of layers above it.

    Layer 0 is the patch embedding with all positions (in the published code separable positions fell to the last
    layer), layers 1 to depth are the encoder's blocks, and everything else belongs to the layer after them.
    """
    names = list(names)
    depth = 1 + max((int(match[1]) for name in names if (match := _BLOCK.search(name))), default=-1)
    layers = {name: depth + 1 for name in names}
    for name in names:
        if match := _BLOCK.search(name):
            layers[name] = int(match[1]) + 1
        elif _FIRST.search(name):
            layers[name] = 0
    return {name: decay ** (depth + 1 - layer) for name, layer in layers.items()}


def learning_rate(stage: StageConfig, step: int) -> float:
    """The rate of the stage's step (from 0): linear warm-up to `lr`, then down to `min_lr` as `schedule` says."""
    if step < stage.warmup_steps:
        return stage.lr * (step + 1) / stage.warmup_steps
    done = (step - stage.warmup_steps) / max(1, stage.steps - stage.warmup_steps)
    if stage.schedule == "exponential":
        return stage.lr * math.exp(done * math.log(stage.min_lr / stage.lr))
    left = (1.0 - done) ** _POLY if stage.schedule == "poly" else 0.5 * (1.0 + math.cos(math.pi * done))
    return stage.min_lr + (stage.lr - stage.min_lr) * left


def guarded_step(
    optimizer: AdamW, loss: Tensor, lr: float, clip_norm: float | None, *, keep_buffers: bool = False
) -> Tensor:
    """One update, left out on the device where `loss` or a gradient is not finite; gradients are cleared either way.

    Args:
        optimizer: from `adamw`, with gradients in place.
        loss: 0-d, the loss these gradients belong to.
        lr: this step's learning rate, before each group's own scale.
        clip_norm: largest gradient norm, or None.
        keep_buffers: clear gradients in place, for those who hold on to their memory.

    Returns:
        The gradient norm before clipping, 0-d; not finite where the update was left out because of a gradient.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)
    optimizer.found_inf = (~torch.isfinite(loss + norm)).float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=not keep_buffers)
    return norm
