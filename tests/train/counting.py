# SPDX-License-Identifier: Apache-2.0
"""What the real model keeps in memory, counted under FakeTensorMode: every shape and dtype, no values, no memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed._tools.mem_tracker import MemTracker

from spectralgpt import create_autoencoder, ops
from spectralgpt.models.autoencoder import Autoencoder
from spectralgpt.models.config import ModelConfig
from spectralgpt.nn.block import Block
from spectralgpt.train.memory import Recompute, Training


class FakeStep:
    """One training step of the real model on fake tensors."""

    def __init__(self, config: ModelConfig, training: Training, recompute: Recompute, batch: int) -> None:
        self.precision, self.dtype = training.precision, {"bf16": torch.bfloat16, "fp16": torch.float16}
        with unset_fake_temporarily(), torch.device("meta"):
            self.model: Autoencoder = create_autoencoder(**config.to_dict())
        for module in self.model.modules():
            if isinstance(module, Block):
                module.recompute = recompute
        self.model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), foreach=True)
        self.image = torch.empty(batch, config.bands, *config.height_width)
        self.mask = ops.random_cube_mask(torch.arange(batch), config.num_tokens, training.mask_ratio, seed=0)

    def loss(self) -> Tensor:
        low = self.dtype.get(self.precision)
        with torch.autocast("cpu", low, enabled=low is not None):
            return self.model(self.image, self.mask).loss


def saved_bytes(config: ModelConfig, training: Training, recompute: Recompute) -> float:
    """Bytes per sample that autograd saves: the slope between two batch sizes, each storage counted once."""
    return (_saved(config, training, recompute, 4) - _saved(config, training, recompute, 2)) / 2


def _saved(config: ModelConfig, training: Training, recompute: Recompute, batch: int) -> int:
    with FakeTensorMode():
        step = FakeStep(config, training, recompute, batch)
        own = {parameter.untyped_storage()._cdata for parameter in step.model.parameters()}
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)  # held, so that no address is used twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            step.loss()
        return sum(tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in own)


def peak_bytes(config: ModelConfig, training: Training, recompute: Recompute, batch: int) -> int:
    """The highest point of all live memory in the second micro-step, gradients and moments in place."""
    with FakeTensorMode():
        step = FakeStep(config, training, recompute, batch)
        step.loss().backward()
        step.optimizer.step()
        tracker = MemTracker()
        tracker.track_external(step.model, step.optimizer, step.image, *step.mask)
        with tracker:
            step.loss().backward()
        return max(int(parts["Total"]) for parts in tracker.get_tracker_snapshot("peak").values())


@contextmanager
def whole_attention_matrices() -> Iterator[None]:
    """Attention that keeps its N x N matrices, which no plan counts on."""
    from spectralgpt.nn import attention

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.einsum("bnhd,bmhd->bhnm", q, k).softmax(-1)
        return torch.einsum("bhnm,bmhd->bnhd", weights, v)

    former = attention.BACKENDS["sdpa"]
    attention.BACKENDS["sdpa"] = plain
    try:
        yield
    finally:
        attention.BACKENDS["sdpa"] = former
