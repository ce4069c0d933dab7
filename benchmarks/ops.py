# SPDX-License-Identifier: Apache-2.0
"""Each op beside the published eager chain, torch.compile of that chain, and a plain copy of the same bytes.

    python benchmarks/ops.py --batch 16 --threads 1 --rounds 30 --out ops.json
    python benchmarks/ops.py --device cuda --batch 256
    python benchmarks/ops.py --batch 1 --size 16 --no-compile    # hardly any bytes: what a call costs

All candidates of an op run in turn, round by round, so that whatever else the machine does meets all of them; minima
are compared. Each runs some times on end, since its first calls find the caches full of another's data. On a CPU each
has a process of its own, as a user would run it, in which glibc keeps what is freed, as in `spectralgpt train`, but no
lists of small pieces: with them it may give each result other memory than the last, which is cold, and luck decides for
whom it does. All get their memory back warm, the published chains too.

`share_of_copy` is the share of the machine's own copy rate: bytes that the op must move, over its time, divided by the
same for a copy of as many bytes, the quicker of `torch.clone` and a copy into memory that is at hand. An op's time is
all of it, dispatch, autograd and the results' allocation; the copy's is hardly more than the copying. On a CPU with a
large cache a batch of 16 and its copy may stay in it; `--batch 128` tells of memory. The mask's step changes from call
to call, as in training: a machine learns the branches of a mask that it sees again and again.

On CUDA the calls are queued behind a pause, so that a time is the device's own and no gap of the host's; inputs rotate
through buffers larger than the L2 cache, and a copy moves as many bytes, in and out, as the op must.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import op_rivals as rivals
import torch
from torch import Tensor

from spectralgpt import ops
from spectralgpt.train.device import keep_freed_memory

PATCH = (3, 8, 8)
BANDS, CHANNELS, DECODER, MASK_RATIO = 12, 768, 512, 0.9
ROTATE_BYTES = 256 << 20
REPEATS = 20  # calls on end on a CPU, of which the quickest counts
QUEUED = 6  # calls on end on a GPU
WARM_UP = 3  # rounds that compile, and bring memory
PAUSE_CYCLES = 20_000_000  # about 10 ms of a GPU: longer than the host takes to queue those calls

KINDS = ("ours", "eager", "compiled", "clone", "copy")

Call = Callable[[int], Any]


@dataclass
class Contest:
    """An op, its rivals, and the bytes it cannot avoid to move; a call takes the number of the round."""

    name: str
    num_bytes: int
    ours: Call
    eager: Call | None = None
    compiled: Call | None = None
    samples: int = 0


def backward(function: Callable[..., Tensor], leaves: Sequence[Tensor], gradient: Tensor | None = None) -> Call:
    """Forward and backward; gradients of the leaves are dropped."""

    def run(number: int) -> None:
        function(number).backward(gradient)
        for leaf in leaves:
            leaf.grad = None

    return run


def contests(batch: int, size: int, device: torch.device, dtype: torch.dtype, compile_rivals: bool) -> list[Contest]:
    """Everything to be timed, on images of `size` pixels a side."""

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function) if compile_rivals else function

    copies = max(1, ROTATE_BYTES // (batch * BANDS * size * size * 4)) if device.type == "cuda" else 1
    images = [torch.rand(batch, BANDS, size, size, device=device) for _ in range(copies)]
    length = ops.patchify3d(images[0][:1]).shape[1]
    keep = ops.num_visible(length, MASK_RATIO)
    sample_ids = torch.arange(batch, device=device)
    seed, *steps = (torch.tensor(value, device=device) for value in range(65))
    mask = ops.random_cube_mask(sample_ids, length, MASK_RATIO, seed=0)
    predictions = [torch.rand(batch, length, 192, device=device, dtype=dtype).requires_grad_() for _ in range(copies)]
    width = predictions[0].element_size()
    values = images[0].numel()

    def pick(tensors: list[Tensor], number: int) -> Tensor:
        return tensors[number % copies]

    def losses(normalize: bool) -> Contest:
        rival_mask = mask.mask.float()
        chain = compiled(rivals.loss)

        def ours(number: int) -> Tensor:
            image, prediction = pick(images, number), pick(predictions, number)
            return ops.reconstruction_loss(prediction, image, mask.mask, PATCH, normalize_targets=normalize).total

        def eager(number: int, function: Callable[..., Tensor] = rivals.loss) -> Tensor:
            return function(pick(predictions, number), pick(images, number), rival_mask, PATCH, normalize)

        return Contest(
            f"reconstruction_loss {'normalised' if normalize else 'raw'} fwd+bwd",
            values * (4 + 2 * width),
            backward(ours, predictions),
            backward(eager, predictions),
            backward(lambda number: eager(number, chain), predictions),
        )

    weight = torch.randn(CHANNELS, 1, *PATCH, device=device)
    matrix, bias = weight.flatten(1), torch.randn(CHANNELS, device=device)
    random_chain, embed_chain = compiled(rivals.random_mask), compiled(rivals.embed)
    patchify_chain, assemble_chain = compiled(rivals.patchify), compiled(rivals.assemble)

    visible = torch.rand(batch, keep, DECODER, device=device, dtype=dtype).requires_grad_()
    token = torch.rand(DECODER, device=device).requires_grad_()
    positions = torch.rand(length, DECODER, device=device).requires_grad_()
    gradient = torch.rand(batch, length, DECODER, device=device)
    narrow = gradient.to(dtype)
    leaves = (visible, token, positions)

    return [
        losses(False),
        losses(True),
        Contest(
            "random_cube_mask",
            batch * (keep * 8 + length * 9),
            lambda n: ops.random_cube_mask(sample_ids, length, MASK_RATIO, seed=seed, step=steps[n % len(steps)]),
            lambda _: rivals.random_mask(batch, length, keep, device),
            lambda _: random_chain(batch, length, keep, device),
        ),
        Contest(
            "gather_patchify3d + GEMM",
            0,
            lambda n: torch.addmm(
                bias, ops.gather_patchify3d(pick(images, n), mask.ids_keep).flatten(0, 1), matrix.t()
            ),
            lambda n: rivals.embed(pick(images, n), weight, bias, mask.ids_keep),
            lambda n: embed_chain(pick(images, n), weight, bias, mask.ids_keep),
        ),
        Contest(
            "gather_patchify3d",
            batch * keep * 192 * 12,  # memory comes by 64 bytes, which hold two rows of 8 values, one of them hidden
            lambda n: ops.gather_patchify3d(pick(images, n), mask.ids_keep),
        ),
        Contest(
            "assemble_tokens fwd+bwd",
            (narrow.numel() + visible.numel()) * width * 2,
            backward(lambda _: ops.assemble_tokens(*leaves, mask.ids_restore, out_dtype=dtype), leaves, narrow),
            backward(lambda _: rivals.assemble(*leaves, mask.ids_restore), leaves, gradient),
            backward(lambda _: assemble_chain(*leaves, mask.ids_restore), leaves, gradient),
        ),
        Contest(
            "patchify3d",
            values * 8,
            lambda n: ops.patchify3d(pick(images, n), PATCH),
            lambda n: rivals.patchify(pick(images, n), PATCH),
            lambda n: patchify_chain(pick(images, n), PATCH),
        ),
        crops(batch, size, device),
    ]


def crops(batch: int, size: int, device: torch.device) -> Contest:
    """Random resized crops of 16-bit images of 64 x 64; the rival prepares sample by sample, and on the CPU alone."""
    generator = np.random.default_rng(0)
    stack = generator.integers(0, 10_000, (batch, BANDS, 64, 64)).astype(np.uint16)
    pixels = torch.from_numpy(stack.reshape(-1)).to(device)
    sides = np.sqrt(generator.uniform(0.2, 1.0, batch) * 64 * 64).astype(np.int32)
    corners = [generator.integers(0, 64 - sides + 1) for _ in range(2)]
    boxes = torch.from_numpy(np.stack([*corners, sides, sides], 1).astype(np.int32)).to(device)
    layout = torch.tensor([[i * BANDS * 64 * 64, 64, 64] for i in range(batch)], device=device)
    flips = torch.from_numpy(generator.random((batch, 2)) < 0.5).to(device)
    affine = {name: torch.full((batch, BANDS), 1e-4, device=device) for name in ("offset", "scale")}

    def eager(_: int) -> None:
        for image in stack:
            rivals.augment(image, size, generator)

    return Contest(
        f"crop_resize 64 -> {size}, uint16",
        batch * BANDS * (64 * 64 * 2 + size * size * 4),
        lambda _: ops.crop_resize(pixels, layout, boxes, flips, size, bands=BANDS, **affine),
        eager if device.type == "cpu" else None,
        samples=batch,
    )


def seconds(call: Call, number: int, device: torch.device) -> float:
    """Seconds of one call: of REPEATS the quickest on a CPU, of QUEUED the mean on a GPU."""
    if device.type == "cuda":
        return device_seconds(call, number)
    times = []
    for i in range(REPEATS):
        start = time.perf_counter()
        call(number + i)
        times.append(time.perf_counter() - start)
    return min(times)


def device_seconds(call: Call, number: int) -> float:
    """Seconds of a call between two events of the device, all calls queued before the first one starts."""
    pause = PAUSE_CYCLES
    while True:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(pause)
        start.record()
        for i in range(QUEUED):
            call(number + i)
        behind = start.query()  # the host was slower than the pause
        end.record()
        end.synchronize()
        if not behind:
            return start.elapsed_time(end) / 1e3 / QUEUED
        pause *= 2


def prepare(args: argparse.Namespace, compile_rivals: bool) -> list[Contest]:
    """All contests, of the same tensors in each process."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    return contests(args.batch, args.size, torch.device(args.device), getattr(torch, args.dtype), compile_rivals)


class Candidate:
    """One kind of call of all contests."""

    def __init__(self, kind: str, chosen: Sequence[Contest], device: torch.device) -> None:
        """`kind` is one of KINDS."""
        self._kind, self._contests, self._device = kind, chosen, device

    def call(self, contest: Contest) -> Call | None:
        """What takes part in a contest, if anything."""
        if self._kind not in ("clone", "copy"):
            return {"ours": contest.ours, "eager": contest.eager, "compiled": contest.compiled}[self._kind]
        if not contest.num_bytes:
            return None
        source, target = (torch.ones(contest.num_bytes // 8, device=self._device) for _ in range(2))
        return (lambda _: source.clone()) if self._kind == "clone" else (lambda _: target.copy_(source))

    def run(self, name: str) -> Iterator[float | None]:
        """Seconds in each round of the named contest, inf while it warms up; None where it takes no part."""
        call = next(self.call(contest) for contest in self._contests if contest.name == name)
        for number in itertools.count():
            if call is None:
                yield None
            elif number < WARM_UP:
                call(number)
                yield math.inf
            else:
                yield seconds(call, number, self._device)


class Apart:
    """A candidate in a process of its own, which waits for its turn."""

    def __init__(self, kind: str, args: argparse.Namespace) -> None:
        """Starts it."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        context.Process(target=_serve, args=(theirs, kind, args), daemon=True).start()
        theirs.close()

    def run(self, name: str) -> Iterator[float | None]:
        """As `Candidate.run`."""
        for number in itertools.count():
            self._pipe.send((name, number == 0))
            yield self._pipe.recv()


def _serve(pipe: Connection, kind: str, args: argparse.Namespace) -> None:
    keep_freed_memory()
    candidate, times = Candidate(kind, prepare(args, kind == "compiled"), torch.device(args.device)), iter(())
    with contextlib.suppress(EOFError):  # the benchmark is over
        while True:
            name, begins = pipe.recv()
            if begins:
                times = candidate.run(name)
            pipe.send(next(times))


def measure(contest: Contest, candidates: dict[str, Candidate | Apart], rounds: int) -> dict[str, Any]:
    """Times all candidates in turn."""
    runs = {kind: one.run(contest.name) for kind, one in candidates.items()}
    times: dict[str, list[float]] = {kind: [] for kind in candidates}
    for _ in range(rounds + WARM_UP):
        for kind, run in runs.items():
            took = next(run)
            if took is not None:
                times[kind].append(took)
    best = {kind: min(values) for kind, values in times.items() if values}
    if "copy" in best:
        best["copy"] = min(best["copy"], best.pop("clone"))
    result: dict[str, Any] = {"op": contest.name, **{f"{kind}_ms": 1e3 * value for kind, value in best.items()}}
    for rival in ("eager", "compiled"):
        if rival in best:
            result[f"vs_{rival}"] = best[rival] / best["ours"]
    if "copy" in best:
        result["share_of_copy"] = best["copy"] / best["ours"]
        result["GB_per_s"] = contest.num_bytes / best["ours"] / 1e9
    if contest.samples:
        result["samples_per_s"] = contest.samples / best["ours"]
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Markdown."""
    columns = ("ours_ms", "eager_ms", "compiled_ms", "vs_eager", "vs_compiled", "share_of_copy", "GB_per_s")
    lines = ["| op | " + " | ".join(columns) + " | samples_per_s |", "|---" * (len(columns) + 2) + "|"]
    for result in results:
        cells = [f"{result[column]:.3g}" if column in result else "" for column in columns]
        cells.append(f"{result['samples_per_s']:.0f}" if "samples_per_s" in result else "")
        lines.append(f"| {result['op']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cpu_name() -> str:
    """The processor's model as Linux tells it, else what Python knows."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return platform.processor() or "cpu"
    fields = dict(re.findall(r"^(model name|cpu family|model)\s*: (.+)$", text, re.MULTILINE))
    return ", ".join([fields.pop("model name", "cpu"), *(f"{name} {value}" for name, value in fields.items())])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=96, help="pixels of a side of the images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", default="", help="ops whose name contains this")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile of the rivals out")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table."""
    args = parse(arguments)
    device = torch.device(args.device)
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0")  # of the processes that are started
    kinds = [kind for kind in KINDS if not (kind == "compiled" and args.no_compile)]
    chosen = prepare(args, device.type == "cuda" and not args.no_compile)
    if device.type == "cuda":
        candidates = {kind: Candidate(kind, chosen, device) for kind in kinds}
    else:
        candidates = {kind: Apart(kind, args) for kind in kinds}
    results = [measure(contest, candidates, args.rounds) for contest in chosen if args.only in contest.name]
    print(table(results))
    if args.out:
        about = {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu_name(),
            "torch": torch.__version__,
            "date": time.strftime("%Y-%m-%d"),
            "load_average": os.getloadavg()[0],  # of the last minute, this process included
            **{key: value for key, value in vars(args).items() if key not in ("out", "device")},
        }
        args.out.write_text(json.dumps({**about, "results": results}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
