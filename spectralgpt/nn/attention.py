# SPDX-License-Identifier: Apache-2.0
"""One door to attention kernels: (B, N, heads, head_dim) in, the same shape out.

A short list per (device type, dtype, head dim) says which backends may run, best first; the last one always
can. xformers is imported only when a tensor it serves arrives; where it is missing or refuses a case, the
next backend runs and the log says so once. Training on CUDA has the backends timed for each new shape instead
(`choose_by_measurement`), unless it has to repeat to the bit. While torch traces a graph (compile, export) the
answer is always torch's own operator, which compilers and exporters know.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from spectralgpt.errors import UserError
from spectralgpt.nn.trial import Kernel, fastest

logger = logging.getLogger(__name__)

Case = tuple[str, torch.dtype, int]
"""What the choice depends on: device type, dtype, head dim."""

Shape = tuple[Case, int, int, int]
"""What the speed depends on besides: queries, keys, heads."""

_taken: dict[Case, str] = {}  # the newest case last
_refused: dict[Case, dict[str, str]] = {}  # backend and its reason
_fastest: dict[Shape, str] | None = None  # None: the list decides


def attention(q: Tensor, k: Tensor, v: Tensor, backend: str = "auto") -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v.

    Args:
        q: queries, (B, N, heads, head_dim).
        k: keys, (B, M, heads, head_dim).
        v: values, (B, M, heads, head_dim).
        backend: "auto", or one of `BACKENDS` to insist on it.

    Returns:
        (B, N, heads, head_dim).

    Raises:
        UserError: an unknown backend, or an insisted one that cannot serve these tensors.
    """
    if torch.compiler.is_compiling():
        return _sdpa(q, k, v)
    if backend not in ("auto", *BACKENDS):
        raise UserError(f"attention backend: expected auto or one of {', '.join(BACKENDS)}, got {backend!r}")
    case = (q.device.type, q.dtype, q.shape[-1])
    name = _choice(case, q, k, v) if backend == "auto" else backend
    try:
        out = BACKENDS[name](q, k, v)
    except (ImportError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        if backend != "auto" or name == "sdpa":
            raise UserError(f"attention backend: expected {name} to serve {_words(case)}, got: {reason}") from error
        if all(reason != known.get(name) for known in _refused.values()):  # the same for all head dims: said once
            logger.warning("attention: %s does not serve %s (%s); using the next backend", name, _words(case), reason)
        _refused.setdefault(case, {})[name] = reason
        if _fastest is not None:
            _fastest.pop(_shape(case, q, k), None)
        return attention(q, k, v)
    _taken.pop(case, None)
    _taken[case] = name
    return out


def allowed_backends(device_type: str, dtype: torch.dtype, head_dim: int) -> tuple[str, ...]:
    """Backends that may serve a case, best first. A pure function, so that the choice is tested without a GPU."""
    if device_type == "cuda" and dtype in (torch.float16, torch.bfloat16) and head_dim % 8 == 0 and head_dim <= 256:
        return ("xformers", "sdpa")
    return ("sdpa",)


def choose_by_measurement(on: bool = True) -> None:
    """From now on the fastest backend for each new shape of 16-bit CUDA tensors is found by a trial, or not.

    A trial takes some milliseconds, once per shape. Another start may find another backend fastest, whose results
    differ in the last bits.
    """
    global _fastest
    _fastest = {} if on else None


def _choice(case: Case, q: Tensor, k: Tensor, v: Tensor) -> str:
    listed = select_backend(*case, unavailable=_refused.get(case, {}))
    allowed = allowed_backends(*case)
    if _fastest is None or len(allowed) == 1:
        return listed
    shape = _shape(case, q, k)
    if shape not in _fastest:
        if q.is_cuda and torch.cuda.is_current_stream_capturing():  # nothing can be timed now
            return listed
        names = [name for name in (*allowed, *_SDPA) if name not in _refused.get(case, {})]
        _fastest[shape] = fastest({name: BACKENDS[name] for name in names}, q, k, v) or listed
    return _fastest[shape]


def _shape(case: Case, q: Tensor, k: Tensor) -> Shape:
    return case, q.shape[1], k.shape[1], q.shape[2]


def select_backend(device_type: str, dtype: torch.dtype, head_dim: int, *, unavailable: Collection[str] = ()) -> str:
    """The first allowed backend that is not known to be unavailable; the last one where all are."""
    allowed = allowed_backends(device_type, dtype, head_dim)
    return next((name for name in allowed if name not in unavailable), allowed[-1])


def last_backend() -> str | None:
    """The backend that the newest eager call took; None before the first."""
    return next(reversed(_taken.values()), None)


def describe() -> str:
    """One line on which backend served which case so far, and what refused."""
    taken = [f"{name} for {_words(case)}" for case, name in _taken.items()]
    refused = [f"{name} refused {_words(c)}: {why}" for c, names in _refused.items() for name, why in names.items()]
    return "attention: " + ("; ".join(taken + refused) or "not used yet")


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _only(backend: SDPBackend) -> Kernel:
    """Torch's operator held to one of its kernels."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return _sdpa(q, k, v)

    return run


def _xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _import_xformers()(q, k, v)


@functools.cache
def _import_xformers() -> Kernel:
    log = logging.getLogger("xformers")
    level = log.level
    log.setLevel(logging.ERROR)  # it explains at length what our own line says
    try:
        kernel: Kernel = importlib.import_module("xformers.ops").memory_efficient_attention
    except Exception as error:  # one built for another torch fails in many ways
        raise ImportError(f"import xformers failed: {error}") from error
    finally:
        log.setLevel(level)
    library = getattr(sys.modules["xformers"], "_cpp_lib", None)
    if failure := getattr(library, "_cpp_library_load_exception", None):  # imported, but without kernels it refuses all
        raise ImportError(" ".join(line.strip() for line in str(failure).splitlines()[:2]))
    return kernel


def _words(case: Case) -> str:
    device_type, dtype, head_dim = case
    return f"{device_type} {str(dtype).removeprefix('torch.')} head dim {head_dim}"


_SDPA: dict[str, Kernel] = {
    "sdpa-flash": _only(SDPBackend.FLASH_ATTENTION),
    "sdpa-efficient": _only(SDPBackend.EFFICIENT_ATTENTION),
    "sdpa-cudnn": _only(SDPBackend.CUDNN_ATTENTION),
}
BACKENDS: dict[str, Kernel] = {"xformers": _xformers, "sdpa": _sdpa, **_SDPA}
