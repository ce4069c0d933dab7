# SPDX-License-Identifier: Apache-2.0
"""A function over tensors as one CUDA graph: its kernels are recorded once and replayed by a single launch.

A replay reads and writes the memory of the recording, so inputs are copied into buffers that stay, and whatever
the function adds to (gradients) must exist before and must never be replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Function = Callable[[], Tensor]

_WARM_UP = 3  # lazy initialisation of libraries must not be recorded


class Captured:
    """`function(**inputs)`, recorded for the shapes of `inputs`; calling it with other values replays it."""

    def __init__(
        self,
        function: Callable[..., Tensor],
        inputs: Mapping[str, Tensor],
        accumulated: Sequence[Tensor],
        record: Callable[[Function], Function] | None = None,
    ) -> None:
        """Records; nothing but time has passed afterwards.

        Args:
            function: adds to `accumulated` and gives a tensor; it must not read a device value on the host.
            inputs: of the shapes and types to record for.
            accumulated: buffers that the function adds to, left as they are.
            record: a stand-in for `on_device`, for machines without CUDA.
        """
        self._inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        before = [tensor.clone() for tensor in accumulated]
        self._replay = (record or on_device)(lambda: function(**self._inputs))
        for tensor, value in zip(accumulated, before, strict=True):
            tensor.copy_(value)

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The function's result, in a buffer that the next call overwrites."""
        for name, tensor in self._inputs.items():
            tensor.copy_(inputs[name], non_blocking=True)
        return self._replay()


def on_device(function: Function) -> Function:
    """Warms a function up on a stream of its own, records it, and gives what replays it."""
    generator = torch.cuda.get_rng_state()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.set_rng_state(generator)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
