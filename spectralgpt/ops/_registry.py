# SPDX-License-Identifier: Apache-2.0
"""How an op reaches `torch.library`: schema, checks, kernels and gradient in one call of `define`.

Each op has one `meta` function that checks its inputs and allocates its outputs. It is the fake kernel and also the
first line of every real kernel, so the two cannot disagree. The plain PyTorch reference serves every device; a native
kernel takes over where the build has one. `Library.define` with Python kernels costs a third of the `custom_op`
decorator per call, and an autograd kernel of our own half of what `torch.library.register_autograd` adds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectralgpt.ops import _native

_LIBRARY = torch.library.Library("spectralgpt", "DEF")
_OPS: dict[str, Op] = {}


@dataclass(frozen=True)
class Op:
    """One registered op: its name and the implementation that serves each device type."""

    name: str
    implementations: dict[str, str]


def define(
    schema: str,
    *,
    meta: Callable[..., Any],
    reference: Callable[..., Any],
    native: Callable[..., None] | None = None,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Registers `spectralgpt::<name>` and returns its callable.

    Args:
        schema: `name(arguments) -> returns`.
        meta: checks the arguments and returns empty outputs; runs for fake and real tensors.
        reference: the op in plain PyTorch, same arguments as the schema.
        native: writes the kernel's result: `native(outputs, *arguments)`; None where aten itself is the kernel.
        setup_context: saves what `backward` needs.
        backward: gradients of the inputs, one each; both as `torch.library.register_autograd` expects them.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, _reference_kernel(name, meta, reference, native), "CompositeExplicitAutograd")
    implementations = {device: "reference" for device in ("cpu", "cuda")}
    for device in _native.devices() if native is not None else ():
        _LIBRARY.impl(name, _native_kernel(meta, native), device.upper())
        implementations[device] = "native"
    torch.library.register_fake(f"spectralgpt::{name}", meta, lib=_LIBRARY)
    op: Callable[..., Any] = getattr(torch.ops.spectralgpt, name).default
    if backward is not None:
        _LIBRARY.impl(name, _autograd_kernel(name, op, setup_context, backward), "Autograd")
    if native is None:
        implementations = dict.fromkeys(implementations, "aten")
    _OPS[name] = Op(name, implementations)
    return op


def _autograd_kernel(
    name: str, op: Callable[..., Any], setup_context: Callable[..., None] | None, backward: Callable[..., Any]
) -> Callable[..., Any]:
    def below(*arguments: Any) -> Any:  # noqa: ANN401
        with torch._C._AutoDispatchBelowAutograd():
            return op(*arguments)

    def forward(ctx: Any, *arguments: Any) -> Any:  # noqa: ANN401
        output = below(*arguments)
        if setup_context is not None:
            setup_context(ctx, arguments, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(name, (torch.autograd.Function,), methods)  # named for tracebacks and profiles

    def kernel(*arguments: Any) -> Any:  # noqa: ANN401
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments):
            return function.apply(*arguments)
        return below(*arguments)

    return kernel


def _native_kernel(meta: Callable[..., Any], native: Callable[..., None] | None) -> Callable[..., Any]:
    def kernel(*arguments: Any) -> Any:  # noqa: ANN401
        outputs = meta(*arguments)
        assert native is not None
        native(outputs, *arguments)
        return outputs

    return kernel


def _reference_kernel(
    name: str, meta: Callable[..., Any], reference: Callable[..., Any], native: Callable[..., None] | None
) -> Callable[..., Any]:
    def kernel(*arguments: Any) -> Any:  # noqa: ANN401
        if native is not None and os.environ.get("SPECTRALGPT_REQUIRE_NATIVE") == "1":
            raise RuntimeError(
                f"{name}: no native kernel ({_native.reason()}), and SPECTRALGPT_REQUIRE_NATIVE=1 forbids the reference"
            )
        meta(*arguments)
        return reference(*arguments)

    return kernel


def table() -> str:
    """Which implementation serves each op on each device, as printed by `python -m spectralgpt.ops`."""
    width = max(len(name) for name in _OPS)
    rows = [f"{'op':{width}}  cpu        cuda"]
    rows += [f"{op.name:{width}}  {op.implementations['cpu']:9}  {op.implementations['cuda']}" for op in _OPS.values()]
    return "\n".join(rows)
