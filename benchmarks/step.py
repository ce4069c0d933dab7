# SPDX-License-Identifier: Apache-2.0
"""One pretraining step (forward, backward, AdamW), ours beside the rivals of `rivals.py`.

    python benchmarks/step.py --model base --batch 16 --threads 2 --out step.json
    python benchmarks/step.py --model huge --device cuda --dtype bfloat16 --batch 80 --memory 24GB --largest

- published: the plain eager step at `--published-batch`; on CUDA in fp16 with a loss scaler, as published.
- published, best batch: the same at that of `--batches` that gives most samples per second.
- modern: what PyTorch offers a good user (fused attention and q/k/v, compiled, fused AdamW), at our batch and dtype.
- ours: at `--batch`.

All start from the same weights and must give the same loss before a clock runs. On the CPU each has a process of its
own, as a user would run it (ours with memory kept from step to step, as `spectralgpt train` does), and they are timed
in turn, round by round, so that whatever else the machine does meets all; on CUDA one after another, alone in memory.
The minimum is the number to compare, the median says how quiet it was. The rate of a large matrix product is
measured in every round, and the share of it that a step's FLOPs reach is told.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from contestants import CLOCKS, MASK_RATIO, Alone, Apart, Step, build, ours, random_image, release, seconds
from rivals import ModernAutoencoder, PlainAutoencoder

import spectralgpt
from spectralgpt import ops
from spectralgpt.models import SIZES
from spectralgpt.models.config import ModelConfig, make_config
from spectralgpt.nn.attention import describe
from spectralgpt.train.flops import forward_flops, gemm_rate
from spectralgpt.train.memory import RECOMPUTE, Training
from spectralgpt.train.planner import DEVICES, make_plan, parse_bytes

LOW = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def loss_difference(config: ModelConfig) -> float:
    """The largest difference of a rival's loss to ours on the same weights, image and mask, in fp32 on the CPU."""
    torch.manual_seed(0)
    model = spectralgpt.create_autoencoder(**config.to_dict())
    image, noise = random_image(config, 2, "cpu"), torch.rand(2, config.num_tokens)
    differences = []
    with torch.no_grad():
        loss = model(image, ops.cube_mask_from_noise(noise, MASK_RATIO)).loss
        for kind in (PlainAutoencoder, ModernAutoencoder):
            other = kind(config)
            other.load_state_dict(spectralgpt.reference_state_dict(model))
            differences.append(abs(other(image, MASK_RATIO, noise) - loss).item())
    return max(differences)


def samples_per_second(make: Callable[[int], Step], batch: int, device: str) -> float:
    """Of two steps after the first; 0 where memory runs out."""
    release(device)
    speed = 0.0
    try:
        step = make(batch)
        seconds(step, device)
        speed = batch / min(seconds(step, device) for _ in range(2))
    except torch.OutOfMemoryError:
        pass  # its traceback holds on to the tensors until this block ends
    step = None
    release(device)
    return speed


def largest(make: Callable[[int], Step], device: str) -> int:
    """The largest batch that fits, by doubling and bisection."""
    low, high = 0, 1
    while samples_per_second(make, high, device):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if samples_per_second(make, middle, device) else (low, middle)
    return low


def timed(
    config: ModelConfig, args: argparse.Namespace, batches: dict[str, int]
) -> tuple[dict[str, dict[str, float]], float]:
    """Seconds (minimum, median) and peak memory of each, and the best rate of a matrix product in between."""
    rates: list[float] = []
    times: dict[str, list[float]] = {name: [] for name in batches}
    peaks: dict[str, int] = {}
    cuda = args.device == "cuda"

    def time_together(names: list[str]) -> None:
        running = {name: (Alone if cuda else Apart)(name, config, args, batches[name]) for name in names}
        for _ in range(2):  # compiles and warms up
            for step in running.values():
                step.seconds()
        for _ in range(args.rounds):
            rates.append(gemm_rate.__wrapped__(args.device, getattr(torch, args.dtype), CLOCKS[args.clock]))
            for name, step in running.items():
                times[name].append(step.seconds())
        if cuda:
            peaks[names[0]] = torch.cuda.max_memory_allocated()

    for group in [[name] for name in batches] if cuda else [list(batches)]:
        time_together(group)
    found: dict[str, dict[str, float]] = {}
    for name, values in times.items():
        found[name] = {"min_s": min(values), "median_s": statistics.median(values)}
        if name in peaks:
            found[name]["peak_bytes"] = peaks[name]
    return found, max(rates)


def best_batch(config: ModelConfig, args: argparse.Namespace) -> int:
    """The batch at which the published step gives most samples per second; those that do not fit are passed over."""
    batches = args.batches or ([16, 32, 64, 128, 256] if args.device == "cuda" else [args.published_batch])
    if len(batches) == 1:
        return batches[0]
    return max(
        batches,
        key=lambda batch: samples_per_second(lambda n: build("published", config, args, n), batch, args.device),
    )


def compare(config: ModelConfig, args: argparse.Namespace) -> dict[str, object]:
    """Times everybody."""
    flops = forward_flops(config, MASK_RATIO).step
    best = best_batch(config, args)
    batches = {
        "published": args.published_batch,
        "published, best batch": best,
        "modern": args.batch,
        "ours": args.batch,
    }
    timing = dict(batches)
    if best == args.published_batch:
        del timing["published, best batch"]
    found, rate = timed(config, args, timing)
    found.setdefault("published, best batch", dict(found["published"]))
    for name, numbers in found.items():
        numbers["batch"] = batches[name]
        numbers["samples_per_second"] = batches[name] / numbers["min_s"]
        numbers["share_of_gemm_rate"] = numbers["samples_per_second"] * flops / rate
    mine = found["ours"]["samples_per_second"]
    ratios = {name: mine / found[name]["samples_per_second"] for name in batches if name != "ours"}
    return {"flops_per_sample": flops, "gemm_rate": rate, "contestants": found, "ours_over": ratios}


def largest_batches(config: ModelConfig, args: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Measured beside planned, for each way to recompute."""
    total = torch.cuda.get_device_properties(0).total_memory
    memory = parse_bytes(args.memory) if args.memory else total
    plan = make_plan(config, Training(LOW[args.dtype], MASK_RATIO), memory, DEVICES["h100"])
    planned = {choice.recompute: choice.micro_batch for choice in plan.choices}
    found = {}
    for recompute in RECOMPUTE:
        measured = largest(lambda batch, way=recompute: ours(config, args, batch, way), args.device)
        found[recompute] = {"measured": measured, "planned": planned[recompute]}
    return found


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="base", choices=SIZES)
    parser.add_argument("--batch", type=int, default=16, help="of ours and of the modern step (%(default)s)")
    parser.add_argument("--published-batch", type=int, default=16, help="of the published step (%(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", help="among which the published step's best is looked for")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="cpu: with --threads 1 on a busy machine")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=list(LOW))
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out everywhere")
    parser.add_argument("--memory", help="cap on CUDA memory, such as 24GB")
    parser.add_argument("--largest", action="store_true", help="on CUDA: find the largest batch for each recomputation")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args()


def show(result: dict[str, object]) -> None:
    """The table."""
    heads = {"batch": 6, "min s": 9, "median s": 10, "samples/s": 11, "of GEMM rate": 14, "peak GB": 9, "ours x": 8}
    print(" " * 24 + "".join(f"{name:>{width}}" for name, width in heads.items()))
    for name, row in result["contestants"].items():
        peak = f"{row['peak_bytes'] / 1e9:9.2f}" if "peak_bytes" in row else f"{'-':>9}"
        ratio = result["ours_over"].get(name)
        print(
            f"{name:24}{row['batch']:6}{row['min_s']:9.3f}{row['median_s']:10.3f}{row['samples_per_second']:11.2f}"
            f"{row['share_of_gemm_rate']:14.1%}{peak}" + (f"{ratio:8.2f}" if ratio else "")
        )
    rate, flops = result["gemm_rate"] / 1e9, result["flops_per_sample"] / 1e9
    print(f"matrix products: {rate:,.1f} GFLOP/s; {flops:.1f} GFLOP a sample")
    for way, sizes in result.get("largest_batch", {}).items():
        print(f"largest batch, recomputing {way}: {sizes['measured']} measured, {sizes['planned']} planned")


def main() -> int:
    """Prints the table; exit code 1 where the losses differ."""
    args = parse()
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # or the idle threads of those who wait take the cores
    torch.set_num_threads(args.threads)
    config = make_config(args.model, image_size=args.image_size)
    difference = loss_difference(config)
    print(f"loss difference on the same weights and mask: {difference:.2e}")
    if difference > 1e-4:
        print("error: expected the same loss from all, within 1e-4", file=sys.stderr)
        return 1
    if args.memory and args.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, parse_bytes(args.memory) / total))
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    result = {**settings, "torch": torch.__version__, "loss_difference": difference, **compare(config, args)}
    if args.largest and args.device == "cuda":
        result["largest_batch"] = largest_batches(config, args)
    result["attention"] = describe()
    show(result)
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
