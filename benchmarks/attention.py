# SPDX-License-Identifier: Apache-2.0
"""xformers against the backends of scaled_dot_product_attention, at the sequence lengths of this model.

    python benchmarks/attention.py --out rows.json

(57, 64) and (102, 80) are the encoder on visible tokens, (576, 32) and (1024, 32) the decoder. Inputs are
(B, N, heads, head_dim), as the model has them, so each backend pays for the layout it wants. Error is against float32.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

CASES = {(57, 64): (256, 12), (102, 80): (256, 16), (576, 32): (64, 16), (1024, 32): (64, 16)}  # (N, hd): (B, heads)
DTYPES = (torch.bfloat16, torch.float16)
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def sdpa(backend: SDPBackend) -> Kernel:
    """One backend of torch and no other."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    return run


def xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The operator that xformers picks itself."""
    out: Tensor = importlib.import_module("xformers.ops").memory_efficient_attention(q, k, v)
    return out


KERNELS: dict[str, Kernel] = {
    "xformers": xformers,
    "sdpa flash": sdpa(SDPBackend.FLASH_ATTENTION),
    "sdpa efficient": sdpa(SDPBackend.EFFICIENT_ATTENTION),
    "sdpa cudnn": sdpa(SDPBackend.CUDNN_ATTENTION),
    "sdpa math": sdpa(SDPBackend.MATH),
}


def microseconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of one call, warm; device events on CUDA, the wall clock elsewhere."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3)
        else:
            begin = time.perf_counter()
            run()
            times.append((time.perf_counter() - begin) * 1e6)
    return statistics.median(times)


def measure(
    name: str, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, repeats: int
) -> dict[str, Any]:
    """One backend on (B, N, heads, head_dim): times forward and forward + backward, rate, error; or why it refused."""
    batch, length, heads, head_dim = shape
    row: dict[str, Any] = {
        "tokens": length, "head_dim": head_dim, "dtype": str(dtype).removeprefix("torch."), "backend": name
    }  # fmt: skip
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (torch.randn(shape, device=device, dtype=dtype, generator=generator) for _ in range(3))
    truth = KERNELS["sdpa math"](*(x[:2].float() for x in (q, k, v)))
    leaves, gradient = [x.requires_grad_() for x in (q, k, v)], torch.randn_like(q)

    def both() -> None:
        torch.autograd.grad(KERNELS[name](*leaves), leaves, gradient)

    try:
        out = KERNELS[name](*leaves)
        both()
    except (RuntimeError, ImportError, NotImplementedError, ValueError) as error:
        return {**row, "refused": str(error).strip().split("\n")[0][:120]}
    row["error"] = float((out[:2].detach().float() - truth).abs().max())
    with torch.no_grad():
        row["forward_us"] = microseconds(lambda: KERNELS[name](q, k, v), device, repeats)
    row["both_us"] = microseconds(both, device, repeats)
    row["tflops_both"] = 3.5 * 4 * batch * heads * length**2 * head_dim / row["both_us"] / 1e6  # 2 + 5 products
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints and writes one row per case and backend."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args(arguments)
    rows = []
    for (length, head_dim), (batch, heads) in CASES.items():
        for dtype in DTYPES:
            for name in KERNELS:
                shape = (batch, length, heads, head_dim)
                rows.append(measure(name, shape, dtype, torch.device(args.device), args.repeats))
                print(json.dumps(rows[-1]))
    args.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
