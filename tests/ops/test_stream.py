# SPDX-License-Identifier: Apache-2.0
"""Results too large for the caches go past them (csrc/core/stream.h): the same bits as in parts that do not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from spectralgpt import ops
from spectralgpt.ops import _native
from tests.ops.cases import FLOATS

pytestmark = pytest.mark.skipif(not _native.devices(), reason="only native kernels do")

PATCH = (3, 8, 8)
PAST = 16 << 20


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test with so many threads."""
    count = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(count)


def rand(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize(("dtype", "patch"), [(torch.float32, PATCH), (torch.uint8, PATCH), (torch.float64, (3, 4, 4))])
def test_patchify(dtype: torch.dtype, patch: tuple[int, int, int]) -> None:
    images = (rand(PAST // (2 * 12 * 96 * 96 * dtype.itemsize) + 2, 12, 96, 96, dtype=torch.float32) * 250).to(dtype)
    assert 2 * images.nbytes >= PAST > 2 * images[1:-1].nbytes
    whole = ops.patchify3d(images, patch)
    assert torch.equal(whole, torch.cat([ops.patchify3d(part, patch) for part in images.split(3)]))


@pytest.mark.parametrize("channels", [512, 513, 20])  # 513: rows of any alignment; 20: half a vector at the end
@pytest.mark.parametrize("dtype", FLOATS)
def test_assemble(dtype: torch.dtype, channels: int) -> None:
    batch, length = PAST // (64 * channels * dtype.itemsize) + 1, 64
    mask = ops.random_cube_mask(torch.arange(batch), length, 0.5, seed=0)
    visible = rand(batch, length // 2, channels, dtype=dtype)
    token, positions = rand(channels, dtype=dtype), rand(length, channels, dtype=dtype)
    whole = ops.assemble_tokens(visible, token, positions, mask.ids_restore)
    assert whole.nbytes >= PAST
    half = batch // 2
    parts = [(visible[:half], mask.ids_restore[:half]), (visible[half:], mask.ids_restore[half:])]
    assert torch.equal(whole, torch.cat([ops.assemble_tokens(v, token, positions, ids) for v, ids in parts]))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_loss(dtype: torch.dtype, normalize: bool) -> None:
    batch = 2 * (PAST // (3 * 2 * 12 * 96 * 96 * dtype.itemsize) + 1)
    images, predictions = rand(batch, 12, 96, 96, dtype=dtype), rand(batch, 576, 192, dtype=dtype)
    mask = ops.random_cube_mask(torch.arange(batch), 576, 0.9, seed=0).mask

    def gradient(part: slice, weight: float) -> Tensor:
        prediction = predictions[part].clone().requires_grad_()
        loss = ops.reconstruction_loss(
            prediction, images[part], mask[part], normalize_targets=normalize, token_weight=weight,
            spectral_weight=weight,
        )  # fmt: skip
        loss.total.backward()
        assert prediction.grad is not None
        return prediction.grad

    assert 3 * predictions.nbytes >= PAST
    halves = [slice(0, batch // 2), slice(batch // 2, batch)]
    parts = [gradient(half, 0.5) for half in halves]  # a part's mean is over half as many: half the weight
    assert torch.equal(gradient(slice(None), 1.0), torch.cat(parts))


@pytest.mark.parametrize("size", [96, 90])  # 90: rows of any alignment, and a quarter of a vector at their end
@pytest.mark.parametrize("dtype", FLOATS)
def test_crop_resize(dtype: torch.dtype, size: int) -> None:
    bands, side = 12, 32
    batch = PAST // (bands * size * size * dtype.itemsize) + 2
    pixels = (rand(batch * bands * side * side, dtype=torch.float32) * 10_000).to(torch.uint16)
    layout = torch.tensor([[i * bands * side * side, side, side] for i in range(batch)])
    boxes = torch.tensor([[i % 5, i % 7, 20 + i % 3, 20 + i % 4] for i in range(batch)], dtype=torch.int32)
    flips = torch.stack([torch.arange(batch) % 2 == 0, torch.arange(batch) % 3 == 0], 1)
    offset, scale = torch.full((batch, bands), 5000.0), torch.full((batch, bands), 1e-4)

    def crops(part: slice) -> Tensor:
        return ops.crop_resize(
            pixels, layout[part], boxes[part], flips[part], size, bands=bands, offset=offset[part],
            scale=scale[part], out_dtype=dtype,
        )  # fmt: skip

    whole = crops(slice(None))
    assert whole.nbytes >= PAST
    assert torch.equal(whole, torch.cat([crops(slice(0, batch // 2)), crops(slice(batch // 2, batch))]))
