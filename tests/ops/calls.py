# SPDX-License-Identifier: Apache-2.0
"""One call of every public op, as a function of tensors alone: what runs must do for all of them alike.

Determinism, compilation, CUDA graphs, streams and the sanitizers each walk this table; a new op is added here once.
Everything that changes from step to step (weights, seeds, steps, boxes) is a tensor among the arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectralgpt import ops


class Call(NamedTuple):
    """One call is `function(*arguments(seed, batch))`; the arguments at the places `gradients` are differentiable."""

    name: str
    function: Callable[..., Any]
    arguments: Callable[[int, int], tuple[Tensor, ...]]
    gradients: tuple[int, ...] = ()
    exact: bool = False  # permutation or mask: the same bits on every device

    @property
    def op(self) -> str:
        return self.name.split("-")[0]


BANDS, SIZE, TOKENS, CHANNELS = 12, 48, 144, 96  # 48 pixels: 4 x 6 x 6 tokens of 192 values


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _image(seed: int, batch: int) -> tuple[Tensor]:
    return (torch.randn(batch, BANDS, SIZE, SIZE, generator=_generator(seed)),)


def _tokens(seed: int, batch: int) -> tuple[Tensor]:
    return (torch.randn(batch, TOKENS, 192, generator=_generator(seed)),)


def _kept(seed: int, batch: int) -> tuple[Tensor, Tensor]:
    ids = torch.rand(batch, TOKENS, generator=_generator(seed)).argsort(1)[:, :36]
    return (*_image(seed, batch), ids.contiguous())


def _key(seed: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.arange(batch) + seed, torch.tensor(seed), torch.tensor(3 * seed)


def _noise(seed: int, batch: int) -> tuple[Tensor]:
    return (torch.rand(batch, TOKENS, generator=_generator(seed)),)


def _assembly(seed: int, batch: int) -> tuple[Tensor, ...]:
    generator = _generator(seed)
    restore = torch.rand(batch, TOKENS, generator=generator).argsort(1)
    visible, token, positions = (
        torch.randn(shape, generator=generator) for shape in ((batch, 36, CHANNELS), (CHANNELS,), (TOKENS, CHANNELS))
    )
    return visible, token, positions, restore


def _loss(seed: int, batch: int) -> tuple[Tensor, ...]:
    generator = _generator(seed)
    mask, valid = (torch.rand(batch, TOKENS, generator=generator) < share for share in (0.9, 0.95))
    mask[:, 0] = valid[:, 0] = True
    weights = (torch.tensor(0.5 + 0.1 * seed), torch.tensor(1.5 - 0.1 * seed))
    return (*_tokens(seed, batch), *_image(seed + 1, batch), mask, valid, *weights)


def _crops(seed: int, batch: int) -> tuple[Tensor, ...]:
    generator = _generator(seed)
    pixels = torch.randint(0, 2**16, (batch * BANDS * 64 * 64,), generator=generator).to(torch.uint16)
    layout = torch.stack([torch.arange(batch) * BANDS * 64 * 64, torch.full((batch,), 64), torch.full((batch,), 64)], 1)
    corners, extents = (torch.randint(*limits, (batch, 2), generator=generator) for limits in ((0, 20), (8, 45)))
    boxes = torch.cat([corners, extents], 1).to(torch.int32)
    flips = torch.rand(batch, 2, generator=generator) < 0.5
    offset, scale = (torch.rand(batch, BANDS, generator=generator) * by for by in (1000, 1e-3))
    return pixels, layout, boxes, flips, offset, scale


def _loss_of(**options: Any) -> Callable[..., Any]:
    def function(
        prediction: Tensor, image: Tensor, mask: Tensor, valid: Tensor, token_weight: Tensor, spectral_weight: Tensor
    ) -> Any:
        weights = {"token_weight": token_weight, "spectral_weight": spectral_weight}
        return ops.reconstruction_loss(prediction, image, mask, valid=valid, **weights, **options)

    return function


def _crop_of(antialias: bool) -> Callable[..., Tensor]:
    def function(pixels: Tensor, layout: Tensor, boxes: Tensor, flips: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
        options: dict[str, Any] = {"bands": BANDS, "offset": offset, "scale": scale, "antialias": antialias}
        return ops.crop_resize(pixels, layout, boxes, flips, 48, **options)

    return function


CALLS = [
    Call("patchify3d", lambda image: ops.patchify3d(image), _image, (0,), exact=True),
    Call("unpatchify3d", lambda tokens: ops.unpatchify3d(tokens, (BANDS, SIZE, SIZE)), _tokens, (0,), exact=True),
    Call("gather_patchify3d", lambda image, ids: ops.gather_patchify3d(image, ids), _kept, (0,), exact=True),
    Call(
        "random_cube_mask",
        lambda ids, seed, step: ops.random_cube_mask(ids, TOKENS, 0.75, seed=seed, step=step),
        _key,
        exact=True,
    ),
    Call("cube_mask_from_noise", lambda noise: ops.cube_mask_from_noise(noise, 0.75), _noise, exact=True),
    Call("assemble_tokens", lambda *tensors: ops.assemble_tokens(*tensors), _assembly, (0, 1, 2)),
    Call("reconstruction_loss-raw", _loss_of(), _loss, (0,)),
    Call("reconstruction_loss-normalized", _loss_of(normalize_targets=True), _loss, (0,)),
    Call("reconstruction_loss-mixed", _loss_of(normalize_targets=True, spectral_targets="raw"), _loss, (0,)),
    Call("crop_resize-antialiased", _crop_of(True), _crops),
    Call("crop_resize-plain", _crop_of(False), _crops),
]
NAMES = [call.name for call in CALLS]


def results(call: Call, arguments: tuple[Tensor, ...], function: Callable[..., Any] | None = None) -> list[Tensor]:
    """Outputs of one call and, where it has gradients, those of a weighted sum of the first output."""
    tensors = [
        tensor.detach().requires_grad_() if place in call.gradients else tensor
        for place, tensor in enumerate(arguments)
    ]
    outputs = (function or call.function)(*tensors)
    outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    if not call.gradients:
        return list(outputs)
    weights = torch.linspace(0.5, 1.5, max(1, outputs[0].numel()), device=outputs[0].device).reshape(outputs[0].shape)
    outputs[0].backward(weights.to(outputs[0].dtype))
    return [*(output.detach() for output in outputs), *(tensors[place].grad for place in call.gradients)]
