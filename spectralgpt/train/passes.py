# SPDX-License-Identifier: Apache-2.0
"""How a stage's windows go through a device: how many in a pass, and what the backward pass computes again.

What the recipe leaves open is chosen from the counts of the planner, so that a run fills a GPU without a trial; were
they wrong, the step halves its passes (`step.py`). The arithmetic is the same in any case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from spectralgpt.models.config import ModelConfig
from spectralgpt.nn.block import Recompute
from spectralgpt.train import distributed
from spectralgpt.train.config import RunConfig, StageConfig
from spectralgpt.train.memory import RECOMPUTE, Training
from spectralgpt.train.planner import DEVICES, make_plan

_ENOUGH = 32  # windows that keep a GPU busy: more gain less than recomputation costs


@dataclass(frozen=True)
class Passes:
    """The passes of one stage.

    Attributes:
        micro_batch: windows in each, at most, of one process.
        recompute: what their backward passes compute again.
        planned: whether the planner chose either of them.
    """

    micro_batch: int
    recompute: Recompute
    planned: bool = False


def memory_of(device: torch.device) -> int | None:
    """Bytes that a process may use of its GPU, the least of all processes; None on a CPU."""
    if device.type != "cuda":
        return None
    share = torch.cuda.get_per_process_memory_fraction(device)
    return -distributed.agree(-int(share * torch.cuda.get_device_properties(device).total_memory))


def choose(config: RunConfig, stage: StageConfig, model: ModelConfig, memory: int | None) -> Passes:
    """The passes of a stage.

    Args:
        config: says what may be chosen; of pretraining, for the planner knows no other task.
        stage: likewise.
        model: of the stage.
        memory: of a GPU, in bytes. Without one nothing is chosen: the whole share in a pass, nothing computed again.
    """
    share, asked = stage.batch_size // distributed.world_size(), config.speed.recompute
    if memory is None or config.task != "pretrain" or (stage.micro_batch and asked != "auto"):
        return Passes(min(share, stage.micro_batch or share), "none" if asked == "auto" else asked)
    training = Training(
        precision="bf16" if config.precision == "auto" else config.precision,
        mask_ratio=stage.mask_ratio,
        gpus=distributed.world_size(),
        sharding=config.speed.parallel,
        ema=config.ema is not None,
    )
    plan = make_plan(model, training, memory, DEVICES["h100"])
    open_to = list(filter(config.can_recompute, RECOMPUTE)) if asked == "auto" else [asked]
    allowed = tuple(choice for choice in plan.choices if choice.recompute in open_to)
    chosen = replace(plan, choices=allowed).choose(min(share, stage.micro_batch or _ENOUGH))
    passes = math.ceil(share / (stage.micro_batch or max(1, chosen.micro_batch)))
    return Passes(min(share, stage.micro_batch or math.ceil(share / passes)), chosen.recompute, planned=True)
