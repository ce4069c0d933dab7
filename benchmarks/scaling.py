# SPDX-License-Identifier: Apache-2.0
"""Weak scaling of an optimizer step: n processes with n times the windows, against one process, one thread each.

    python benchmarks/scaling.py --processes 2 --accumulate 4 --out scaling.json

One process does the same step alone before and after; the minima of the steps are compared, so that a busy moment
of the machine meets neither side only. Gradients are exchanged once per step, whatever is accumulated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from spectralgpt.data.synthetic import synthetic_scene
from spectralgpt.train import distributed, recipe
from spectralgpt.train.run import prepare
from spectralgpt.train.step import OptimizerStep


def measure(args: argparse.Namespace) -> list[float]:
    """Seconds of each step after the first two, in this process."""
    share, size = args.batch, args.image_size
    stage = {"image_size": size, "batch_size": share * distributed.world_size(), "accumulate": args.accumulate}
    tree = {
        "model": {"name": args.model},
        "data": {"root": str(args.image)},
        "threads": 1,
        "stages": [stage],
        "speed": {"parallel": args.parallel},
    }
    run = prepare(recipe.build(tree), None)
    generator = torch.Generator().manual_seed(distributed.rank())
    batch = {
        "image": torch.rand(share, 12, size, size, generator=generator),
        "valid": torch.ones(share, run.model.config.num_tokens, dtype=torch.bool),
        "sample_id": torch.arange(share) + share * distributed.rank(),
    }

    def batches() -> Iterator[dict[str, Tensor]]:
        while True:
            yield batch

    step, stream, times = OptimizerStep(run), batches(), []
    for _ in range(args.steps + 2):
        start = time.perf_counter()
        step(stream, 1e-4).tolist()
        times.append(time.perf_counter() - start)
        run.progress.advance(stage["batch_size"] * args.accumulate)
    return times[2:]


def launch(processes: int) -> float:
    """The best step of so many processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run([*command, *sys.argv, "--child"], check=True, capture_output=True, text=True)
    return min(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    """Prints the efficiency."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=4, help="windows per forward pass of a process")
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--parallel", choices=["ddp", "fsdp"], default="ddp")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--image", type=Path, help="a scene to open; a synthetic one without it")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        with distributed.processes("cpu"):
            times = measure(args)
            if distributed.rank() == 0:
                print(json.dumps(times))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        sys.argv += ["--image", str(synthetic_scene(Path(folder) / "scene.tif", 512, 1024))]
        alone = [launch(1)]
        together = launch(args.processes)
        alone.append(launch(1))
    efficiency = min(alone) / together
    print(f"one process {min(alone):.3f} s, {args.processes} processes {together:.3f} s: {efficiency:.0%}")
    if args.out:
        result = {"alone_s": alone, "together_s": together, "efficiency": efficiency, "torch": torch.__version__}
        settings = {key: value for key, value in vars(args).items() if key not in ("image", "out", "child")}
        args.out.write_text(json.dumps({**settings, **result}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
