# SPDX-License-Identifier: Apache-2.0
"""One pretraining step (forward, backward, AdamW), ours beside the plain one of `rivals.py`.

    python benchmarks/step.py --model base --batch 8 --image-size 96 --threads 2 --rounds 5 --out step.json

Both start from the same weights and must give the same loss before a clock runs. The two are timed in turn,
round by round, so that whatever else the machine does meets both; the minimum is the number to compare, the
median says how quiet it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rivals import PlainAutoencoder
from torch import Tensor

import spectralgpt
from spectralgpt import ops
from spectralgpt.models import SIZES
from spectralgpt.nn.attention import describe

MASK_RATIO = 0.9
ADAMW = {"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 0.05}


def build(args: argparse.Namespace) -> tuple[Callable[[], Tensor], Callable[[], Tensor], float]:
    """The two steps, and the difference of their losses on the same weights, image and mask."""
    torch.manual_seed(0)
    device = torch.device(args.device)
    ours = spectralgpt.create_autoencoder(args.model, image_size=args.image_size).to(device)
    rival = PlainAutoencoder(ours.config).to(device)
    rival.load_state_dict(spectralgpt.reference_state_dict(ours))
    image = torch.rand(args.batch, ours.config.bands, *ours.config.height_width, device=device)
    sample_ids = torch.arange(args.batch, device=device)
    autocast = torch.autocast(device.type, dtype=getattr(torch, args.dtype), enabled=args.dtype != "float32")

    noise = torch.rand(args.batch, ours.config.num_tokens, device=device)
    with torch.no_grad(), autocast:
        losses = (
            ours(image, ops.cube_mask_from_noise(noise, MASK_RATIO)).loss,
            rival(image, MASK_RATIO, noise),
        )
    difference = abs(losses[0].item() - losses[1].item())

    def our_loss() -> Tensor:
        mask = ops.random_cube_mask(sample_ids, ours.config.num_tokens, MASK_RATIO, seed=0)
        return ours(image, mask).loss

    our_step = step(our_loss, torch.optim.AdamW(ours.parameters(), **ADAMW, fused=True), autocast)
    rival_step = step(lambda: rival(image, MASK_RATIO), torch.optim.AdamW(rival.parameters(), **ADAMW), autocast)
    return our_step, rival_step, difference


def step(
    loss_of: Callable[[], Tensor], optimizer: torch.optim.Optimizer, autocast: torch.autocast
) -> Callable[[], Tensor]:
    """One training step over a loss."""

    def run() -> Tensor:
        with autocast:
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return run


def seconds(run: Callable[[], Tensor]) -> float:
    """Wall-clock seconds of one call, the device's queue emptied."""
    start = time.perf_counter()
    run().item()  # the loss is ready before the update; reading it and waiting cover both
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="base", choices=SIZES)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args()


def main() -> int:
    """Prints the table; exit code 1 where the two losses differ."""
    args = parse()
    torch.set_num_threads(args.threads)

    ours, rival, difference = build(args)
    print(f"loss difference on the same weights and mask: {difference:.2e}")
    if args.dtype == "float32" and difference > 1e-4:
        print("error: expected the same loss from both, within 1e-4", file=sys.stderr)
        return 1
    for run in (ours, rival):
        seconds(run)
    times: dict[str, list[float]] = {"ours": [], "rival": []}
    for _ in range(args.rounds):
        times["ours"].append(seconds(ours))
        times["rival"].append(seconds(rival))

    result = {
        **{key: value for key, value in vars(args).items() if key != "out"},
        "torch": torch.__version__,
        "attention": describe(),
        "loss_difference": difference,
        **{name: {"min_s": min(values), "median_s": statistics.median(values)} for name, values in times.items()},
        "ratio_min": min(times["rival"]) / min(times["ours"]),
        "ratio_median": statistics.median(times["rival"]) / statistics.median(times["ours"]),
    }
    print(f"{'':8}{'min s':>10}{'median s':>10}")
    for name, values in times.items():
        print(f"{name:8}{min(values):10.3f}{statistics.median(values):10.3f}")
    print(f"{'ratio':8}{result['ratio_min']:10.2f}{result['ratio_median']:10.2f}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
