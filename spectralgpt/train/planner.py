# SPDX-License-Identifier: Apache-2.0
"""What a run will need before it is started: memory, the largest micro-batch, samples per second, days.

Memory is counted (`train/memory.py`), speed is estimated: the FLOPs of `train/flops.py` over a device's rate, the
encoder's and the decoder's each at the share of that rate they are expected to reach. The shares are assumptions
until a step is measured; every table says which of the two it rests on.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass

import torch

import spectralgpt
from spectralgpt import ops
from spectralgpt.errors import UserError
from spectralgpt.models.config import ModelConfig
from spectralgpt.nn.block import Recompute
from spectralgpt.train.flops import forward_flops, gemm_rate
from spectralgpt.train.memory import RECOMPUTE, Activations, States, Training, activations, states

_CONTEXT = 0.6e9  # bytes of a CUDA context with its libraries' workspaces
_FRAGMENTED = 0.03
_MORE_FLOPS = {"none": 0.0, "light": 0.02, "blocks": 1 / 3}
"""What recomputation adds to a step: memory traffic worth 2 %, or one more forward pass over three."""
_SCALING = 0.92  # of several GPUs; one reduction per optimizer step, overlapped with the last backward pass
_UNITS = {"": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class Device:
    """What a step's time is estimated from.

    Attributes:
        name: for the table.
        rate: FLOPs per second of large matrix products in 16 bits.
        rate_fp32: the same in fp32 without TF32.
        encoder: share of it that the encoder reaches.
        decoder: share that the decoder reaches; narrow, with much attention.
        source: where the shares come from.
    """

    name: str
    rate: float
    rate_fp32: float
    encoder: float
    decoder: float
    source: str = "assumed"


DEVICES = {
    "h100": Device("H100", 790e12, 51e12, 0.57, 0.33),
    "rtx4090": Device("RTX 4090", 165e12, 66e12, 0.72, 0.58),
}


@dataclass(frozen=True)
class Choice:
    """One way to recompute.

    Attributes:
        recompute: what is computed again.
        bytes: what a sample takes.
        micro_batch: samples that fit at once; 0 where not even one does.
        samples_per_second: of all GPUs together.
    """

    recompute: Recompute
    bytes: Activations
    micro_batch: int
    samples_per_second: float


@dataclass(frozen=True)
class Plan:
    """What a model takes under one way to train it, choice by choice."""

    model: ModelConfig
    training: Training
    device: Device
    memory: float
    states: States
    choices: tuple[Choice, ...]

    def choose(self, batch: int) -> Choice:
        """The fastest choice that holds `batch` samples at once, or else the one with the largest micro-batch."""
        fitting = [choice for choice in self.choices if choice.micro_batch >= batch]
        return fitting[0] if fitting else max(self.choices, key=lambda choice: choice.micro_batch)


def make_plan(model: ModelConfig, training: Training, memory: float, device: Device) -> Plan:
    """Counts and estimates for one image size; `memory` in bytes per GPU."""
    held = states(model, training)
    choices = []
    for recompute in RECOMPUTE:
        sample = activations(model, training, recompute)
        fit = max(0, math.floor((usable(memory) - held.total) / sample.total))
        speed = _samples_per_second(model, training, device, recompute) * training.gpus
        choices.append(Choice(recompute, sample, fit, speed * (_SCALING if training.gpus > 1 else 1)))
    return Plan(model, training, device, memory, held, tuple(choices))


def usable(memory: float) -> float:
    """What tensors may fill of a GPU's memory."""
    return (1 - _FRAGMENTED) * memory - _CONTEXT


def parse_bytes(text: str) -> float:
    """`24GB` (10^9), `24GiB` (2^30), `24564MiB`, or plain bytes.

    Raises:
        UserError: anything else.
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS or not float(match[1]) > 0:
        raise UserError(f"--memory: expected a size like 24GB, 24GiB or 24564MiB, got {text!r}")
    return float(match[1]) * _UNITS[match[2].upper()]


def measured_device(model: ModelConfig, training: Training, batch: int, kind: str, rounds: int = 5) -> Device:
    """The device at hand: its rate, and the share that whole steps of this model reach on it.

    Args:
        model: what to run.
        training: precision and mask ratio.
        batch: samples per step.
        kind: "cuda" or "cpu".
        rounds: steps to time; the fastest counts.
    """
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(training.precision, torch.float32)
    autoencoder = spectralgpt.create_autoencoder(**model.to_dict()).to(kind)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), fused=True)
    image = torch.zeros(batch, model.bands, *model.height_width, device=kind)
    mask = ops.random_cube_mask(torch.arange(batch, device=kind), model.num_tokens, training.mask_ratio, seed=0)
    best = math.inf
    for _ in range(rounds + 1):  # the first one warms up
        start = time.perf_counter()
        with torch.autocast(kind, low, enabled=low != torch.float32):
            loss = autoencoder(image, mask).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if kind == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    rate = gemm_rate(kind, low)
    share = forward_flops(model, training.mask_ratio).step * batch / best / rate
    name = torch.cuda.get_device_name() if kind == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return Device(name, rate, rate, share, share, f"measured now over {rounds} steps of {batch}")


def _samples_per_second(model: ModelConfig, training: Training, device: Device, recompute: Recompute) -> float:
    flops = forward_flops(model, training.mask_ratio)
    rate = device.rate_fp32 if training.precision == "fp32" else device.rate
    encoder, decoder = 3 * flops.encoder + 2 * flops.patches, 3 * (flops.decoder + flops.edges)
    seconds = encoder / (rate * device.encoder) + decoder / (rate * device.decoder)
    return 1 / (seconds * (1 + _MORE_FLOPS[recompute]))


def table(plan: Plan, samples: float, schedule: str) -> str:
    """The plan in text.

    Args:
        plan: what to print.
        samples: how many are trained on in all.
        schedule: what these are, in words.
    """
    model, training = plan.model, plan.training
    visible = ops.masking.num_visible(model.num_tokens, training.mask_ratio)
    height, width = model.height_width
    return "\n".join(
        [
            f"{model.name}, {height} x {width} pixels, {model.bands} bands: {model.num_tokens} tokens of "
            f"{model.num_values} values, {visible} visible; {training.precision}",
            *_state_lines(plan),
            *_choice_lines(plan, samples),
            *_speed_lines(plan, samples, schedule),
        ]
    )


def _state_lines(plan: Plan) -> list[str]:
    training, held = plan.training, plan.states
    where = f", each of {training.gpus} GPUs, {training.sharding}" if training.gpus > 1 else ""
    rows = {
        "parameters": held.parameters,
        "gradients": held.gradients,
        f"AdamW moments, {training.optimizer_state}": held.moments,
        f"{training.precision} working copy": held.working_copy,
        "blocks gathered for work": held.gathered,
        "running average (EMA)": held.ema,
    }
    lines = [f"\nstates{where}"]
    lines += [f"  {name:28}{size / 1e9:8.2f} GB" for name, size in rows.items() if size]
    lines.append(f"  {'total':28}{held.total / 1e9:8.2f} GB")
    lines.append(
        f"  {'left for samples':28}{(usable(plan.memory) - held.total) / 1e9:8.2f} GB of {plan.memory / 1e9:.2f}, less "
        f"{_CONTEXT / 1e9} for the CUDA context and {_FRAGMENTED:.0%} lost between blocks"
    )
    if training.optimizer_state != "fp32":
        lines.append(f"  (a what-if: training here keeps moments in fp32, not {training.optimizer_state})")
    return lines


def _choice_lines(plan: Plan, samples: float) -> list[str]:
    words = {"none": "nothing", "light": "GELU, LayerNorm", "blocks": "whole blocks"}
    lines = [
        f"\n{'computed again':16}{'MB a sample:':>13} encoder  decoder   edges  workspace    total"
        f"{'micro-batch':>14}{'samples/s':>12}{'days':>9}"
    ]
    for choice in plan.choices:
        size = choice.bytes
        parts = "".join(f"{part / 1e6:9.1f}" for part in (size.encoder, size.decoder, size.edges))
        fits = f"{choice.micro_batch:14}{choice.samples_per_second:12,.0f}{_days(samples, choice):9.1f}"
        lines.append(
            f"{words[choice.recompute]:16}{'':12}{parts}{size.workspace / 1e6:11.1f}{size.total / 1e6:9.1f}"
            + (fits if choice.micro_batch else f"{'does not fit':>14}")
        )
    return lines


def _speed_lines(plan: Plan, samples: float, schedule: str) -> list[str]:
    device, training = plan.device, plan.training
    rate = device.rate_fp32 if training.precision == "fp32" else device.rate
    step = forward_flops(plan.model, training.mask_ratio).step
    scaling = f", {training.gpus} GPUs at {_SCALING:.0%} (assumed)" if training.gpus > 1 else ""
    return [
        f"\n{step / 1e9:.1f} GFLOP a sample; {device.name} at {rate / 1e12:.3g} TFLOP/s in matrix products, "
        f"of which the encoder reaches {device.encoder:.0%} and the decoder {device.decoder:.0%} "
        f"({device.source}){scaling}",
        f"schedule: {schedule}, {samples / 1e6:,.1f} M samples",
    ]


def _days(samples: float, choice: Choice) -> float:
    return samples / choice.samples_per_second / 86400
