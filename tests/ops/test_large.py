# SPDX-License-Identifier: Apache-2.0
"""Tensors of more than 2^31 elements: values behind the reach of a 32-bit index arrive, and nothing else moves.

Memory that nobody writes costs nothing (zeros are mapped, not stored), so most checks need only their output.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spectralgpt import ops
from spectralgpt.ops import _registry

pytestmark = pytest.mark.acceptance
SIDE, BANDS = 32, 3
BATCH = 2**31 // (BANDS * SIDE * SIDE) + 3  # images of 3 x 32 x 32 bytes: 2^31 and a few thousand elements


def needs(gib: int, op: str | None = None) -> None:
    """Skips where memory is short; `op` also where only the reference serves it, whose copies are far larger."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) / 2**20
    if free < gib:
        pytest.skip(f"needs {gib} GiB of free memory, {free:.1f} GiB are free")
    if op and _registry._OPS[op].implementations["cpu"] != "native":
        pytest.skip(f"{op} has no native kernel in this build")


def last(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros but for the last entry of the first dimension, which counts up."""
    tensor = torch.zeros(shape, dtype=dtype)
    tensor[-1] = (torch.arange(tensor[-1].numel()) % 250 + 1).to(dtype).reshape(tensor[-1].shape)
    return tensor


def total(tensor: Tensor) -> int:
    """In parts: torch sums bytes by way of a copy in int64."""
    return sum(int(part.sum()) for part in tensor.split(1 << 14))


def check_patchify(patchify3d: Callable[..., Tensor]) -> None:
    """The last image's tokens are right, the first's are zero, and the sum is that of the last alone."""
    image = last((BATCH, BANDS, SIDE, SIDE), torch.uint8)
    tokens = patchify3d(image, (3, 8, 8))
    assert tokens.numel() > 2**31
    assert torch.equal(tokens[-1:], ops.patchify3d(image[-1:].clone(), (3, 8, 8)))
    assert not tokens[0].any() and not tokens[BATCH // 2].any()
    assert total(tokens) == total(image[-1:])


def check_gather(gather_patchify3d: Callable[..., Tensor]) -> None:
    """One image of more than 2^31 values; its first and last token."""
    image = torch.zeros(1, 3, 8, (2**31 // 24 // 8 + 2) * 8, dtype=torch.bfloat16)
    image[..., -8:], image[..., :8] = 2.0, 1.0
    length = image.shape[3] // 8
    tokens = gather_patchify3d(image, torch.tensor([[0, length - 1, 1]]), (3, 8, 8))
    assert [float(token.float().mean()) for token in tokens[0]] == [1.0, 2.0, 0.0]


def check_crop(crop_resize: Callable[..., Tensor]) -> None:
    """An image that begins behind 2^31 values."""
    pixels = torch.zeros(2**31 + 64 * 64, dtype=torch.uint8)
    pixels[2**31 :] = 200
    flat: dict[str, Any] = {"bands": 1, "offset": torch.zeros(1, 1), "scale": torch.ones(1, 1)}
    layout, boxes = torch.tensor([[2**31, 64, 64]]), torch.tensor([[1, 1, 62, 62]], dtype=torch.int32)
    out = crop_resize(pixels, layout, boxes, torch.zeros(1, 2, dtype=torch.bool), 32, **flat)
    torch.testing.assert_close(out, torch.full((1, 1, 32, 32), 200.0))


def check_assemble(assemble_tokens: Callable[..., Tensor]) -> None:
    """More than 2^31 values come out; the last sample's visible token is where it belongs."""
    length, channels = 64, 512
    batch = 2**31 // (length * channels) + 2
    visible = last((batch, 1, channels), torch.bfloat16)
    restore = torch.arange(length).roll(-1).expand(batch, -1)  # the visible token stands last
    out = assemble_tokens(visible, torch.zeros(channels), torch.zeros(length, channels), restore, torch.bfloat16)
    assert out.numel() > 2**31 and not out[0].any()
    assert torch.equal(out[-1, -1], visible[-1, 0]) and not out[-1, :-1].any()


def check_loss(reconstruction_loss: Callable[..., Any]) -> None:
    """Only the last sample errs, by 2 everywhere; its gradient lies behind 2^31 values."""
    tokens, values = SIDE * SIDE // 64, 192
    prediction = torch.zeros(BATCH, tokens, values, dtype=torch.bfloat16)
    prediction[-1] = 2.0
    image = torch.zeros(1, BANDS, SIDE, SIDE, dtype=torch.bfloat16).expand(BATCH, -1, -1, -1)
    mask = torch.ones(1, tokens, dtype=torch.bool).expand(BATCH, -1)
    loss = reconstruction_loss(prediction.requires_grad_(), image, mask)
    torch.testing.assert_close(loss.token, torch.tensor(4.0 / BATCH), rtol=1e-4, atol=0)
    loss.total.backward()
    gradient = prediction.grad
    assert not gradient[0].any() and not gradient[BATCH // 2].any()
    expected = torch.full((tokens, values), 2 * 2 * 2.0 / (BATCH * tokens * values))  # both terms
    torch.testing.assert_close(gradient[-1].float(), expected, rtol=1e-2, atol=0)


def test_patchify() -> None:
    needs(8)
    check_patchify(ops.patchify3d)


def test_unpatchify() -> None:
    needs(8)
    tokens = last((BATCH, SIDE * SIDE // 64, 192), torch.uint8)
    image = ops.unpatchify3d(tokens, (BANDS, SIDE, SIDE))
    assert torch.equal(ops.patchify3d(image[-1:]), tokens[-1:]) and total(image) == total(tokens[-1:])


def test_gather() -> None:
    needs(8)
    check_gather(ops.gather_patchify3d)


def test_crop() -> None:
    needs(8)
    check_crop(ops.crop_resize)


def test_assemble() -> None:
    needs(8, "assemble_tokens")
    check_assemble(lambda *tensors: ops.assemble_tokens(*tensors[:4], out_dtype=tensors[4]))


def test_loss() -> None:
    needs(16, "reconstruction_loss")
    check_loss(ops.reconstruction_loss)


def short(offset: int) -> int:
    """What a 32-bit index makes of an offset."""
    return (offset + 2**31) % 2**32 - 2**31


def test_catches_32_bit_offsets() -> None:
    needs(8)

    def patchify(image: Tensor, patch: tuple[int, int, int]) -> Tensor:
        tokens = ops.patchify3d(image, patch)
        start = (BATCH - 1) * image[0].numel()  # the last image lands where a wrapped offset points
        tokens[-1], tokens[short(start) // image[0].numel()] = 0, ops.patchify3d(image[-1:].clone(), patch)[0]
        return tokens

    def gather(image: Tensor, ids: Tensor, patch: tuple[int, int, int]) -> Tensor:
        return ops.gather_patchify3d(image, ids.where(ids * 192 < 2**31, 1), patch)

    def crop(pixels: Tensor, layout: Tensor, *arguments: Any, **named: Any) -> Tensor:
        return ops.crop_resize(pixels, torch.tensor([[abs(short(2**31)) - 2**31, 64, 64]]), *arguments, **named)

    for check, planted in ((check_patchify, patchify), (check_gather, gather), (check_crop, crop)):
        with pytest.raises(AssertionError):
            check(planted)
