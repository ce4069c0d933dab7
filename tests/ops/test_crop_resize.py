# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spectralgpt import ops
from spectralgpt.ops import _registry, reference
from tests.ops.cases import FLOATS, check_op
from tests.ops.drawing import poison
from tests.ops.trials import assert_within_twice

PIXELS = [torch.uint8, torch.uint16, torch.int16, *FLOATS]
HEIGHT, WIDTH, BANDS = 40, 56, 3
BOXES = {  # y, x, h, w in an image of 40 x 56
    "whole": (0, 0, 40, 56),
    "inside": (5, 9, 24, 24),
    "upper left": (0, 0, 17, 11),
    "lower right": (23, 45, 17, 11),
    "flat": (39, 0, 1, 56),
    "narrow": (0, 55, 40, 1),
    "one pixel": (39, 55, 1, 1),
    "two pixels": (20, 20, 1, 2),
}
SIZES = [1, 7, 24, 64]  # shrinking, equal to "inside", and growing


def batch_of(boxes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Images behind each other; every pixel outside the boxes is NaN or the largest number, to be seen if read."""
    pixels = poison((len(boxes) * BANDS * HEIGHT * WIDTH + 7,), dtype)
    for image, (y, x, h, w) in zip(pixels[4:-3].view(-1, BANDS, HEIGHT, WIDTH), boxes, strict=True):
        values = torch.rand(BANDS, h, w, dtype=torch.float64) * 200
        image[:, y : y + h, x : x + w] = values.to(dtype)
    starts = 4 + torch.arange(len(boxes)) * BANDS * HEIGHT * WIDTH
    return {
        "pixels": pixels,
        "layout": torch.stack([starts, torch.full_like(starts, HEIGHT), torch.full_like(starts, WIDTH)], 1),
        "boxes": torch.tensor(boxes, dtype=torch.int32).reshape(-1, 4),
        "flips": torch.zeros(len(boxes), 2, dtype=torch.bool),
        "bands": BANDS,
        "offset": torch.zeros(len(boxes), BANDS, dtype=torch.float64 if dtype == torch.float64 else torch.float32),
        "scale": torch.ones(len(boxes), BANDS, dtype=torch.float64 if dtype == torch.float64 else torch.float32),
    }


def resized(batch: dict[str, Any], sample: int, size: int, antialias: bool, dtype: torch.dtype) -> Tensor:
    """torch's bicubic of the box alone."""
    start = int(batch["layout"][sample, 0])
    y, x, h, w = batch["boxes"][sample].tolist()
    image = batch["pixels"][start : start + BANDS * HEIGHT * WIDTH].view(BANDS, HEIGHT, WIDTH)
    box = image[None, :, y : y + h, x : x + w].to(dtype)
    return F.interpolate(box, (size, size), mode="bicubic", align_corners=False, antialias=antialias)[0]


@pytest.mark.parametrize("antialias", [True, False], ids=["antialiased", "plain"])
@pytest.mark.parametrize("size", SIZES)
def test_equals_interpolate_and_reads_only_the_box(kernels: str, size: int, antialias: bool) -> None:
    batch = batch_of(list(BOXES.values()))
    out = ops.crop_resize(**batch, size=size, antialias=antialias)
    assert out.shape == (len(BOXES), BANDS, size, size) and out.dtype == torch.float32
    for sample, name in enumerate(BOXES):
        assert out[sample].isfinite().all(), name
        theirs, truth = (resized(batch, sample, size, antialias, dtype) for dtype in (torch.float32, torch.float64))
        assert_within_twice(out[sample], theirs, truth)


@pytest.mark.parametrize("antialias", [True, False], ids=["antialiased", "plain"])
@pytest.mark.parametrize("dtype", PIXELS, ids=str)
def test_every_pixel_dtype(kernels: str, dtype: torch.dtype, antialias: bool) -> None:
    batch = batch_of(list(BOXES.values()), dtype)
    wide = batch["offset"].dtype
    out = ops.crop_resize(**batch, size=19, antialias=antialias, out_dtype=torch.float64)
    for sample in range(len(BOXES)):
        theirs, truth = (resized(batch, sample, 19, antialias, kind) for kind in (wide, torch.float64))
        assert_within_twice(out[sample], theirs, truth, 2e-6 if wide == torch.float32 else 1e-14)


def test_the_ends_of_the_integer_ranges(kernels: str) -> None:
    for dtype, ends in ((torch.uint8, (0, 255)), (torch.uint16, (0, 65535)), (torch.int16, (-32768, 32767))):
        batch = batch_of([(0, 0, 40, 56)], dtype)
        batch["pixels"][4:-3] = torch.tensor(ends, dtype=torch.int64).repeat(BANDS * HEIGHT * WIDTH // 2).to(dtype)
        out = ops.crop_resize(**batch, size=24, antialias=False)
        torch.testing.assert_close(out[0], resized(batch, 0, 24, False, torch.float32), rtol=1e-5, atol=0.1)


@pytest.mark.parametrize("out_dtype", FLOATS, ids=str)
def test_offset_scale_and_result_dtype(kernels: str, out_dtype: torch.dtype) -> None:
    batch = batch_of(list(BOXES.values())[:3], torch.uint16)
    batch["offset"], batch["scale"] = torch.rand(3, BANDS) * 100, torch.rand(3, BANDS) * 0.1
    out = ops.crop_resize(**batch, size=16, out_dtype=out_dtype)
    assert out.dtype == out_dtype
    arguments = [batch[name] for name in ("pixels", "layout", "boxes", "flips")]
    affine = (batch["offset"], batch["scale"])
    same = reference.crop_resize(*arguments, 16, BANDS, *affine, True, out_dtype)
    arguments[0] = arguments[0].double()
    truth = reference.crop_resize(*arguments, 16, BANDS, *(x.double() for x in affine), True, torch.float64)
    assert_within_twice(out, same, truth)


@pytest.mark.parametrize("flips", [(False, True), (True, False), (True, True)], ids=str)
def test_flips_are_those_of_the_result(kernels: str, flips: tuple[bool, bool]) -> None:
    batch = batch_of(list(BOXES.values()), torch.uint8)
    straight = ops.crop_resize(**batch, size=15)
    batch["flips"][1::2] = torch.tensor(flips)
    flipped = ops.crop_resize(**batch, size=15)
    axes = [axis for axis, flip in zip((2, 3), flips, strict=True) if flip]
    assert torch.equal(flipped[0::2], straight[0::2])
    assert torch.equal(flipped[1::2], straight[1::2].flip(axes))


@pytest.mark.parametrize("antialias", [True, False], ids=["antialiased", "plain"])
def test_same_size_is_a_copy_and_constants_stay(kernels: str, antialias: bool) -> None:
    batch = batch_of([(5, 9, 24, 24)], torch.uint16)
    out = ops.crop_resize(**batch, size=24, antialias=antialias)
    image = batch["pixels"][4:-3].view(BANDS, HEIGHT, WIDTH)
    torch.testing.assert_close(out[0], image[:, 5:29, 9:33].float(), rtol=1e-6, atol=1e-4)
    image[:, 5:29, 9:33] = torch.full((), 777, dtype=torch.uint16)
    for size in SIZES:
        torch.testing.assert_close(
            ops.crop_resize(**batch, size=size, antialias=antialias), torch.full((1, BANDS, size, size), 777.0)
        )


def test_images_of_different_sizes_in_one_buffer(kernels: str) -> None:
    sizes = [(3, 5), (31, 2), (1, 1), (16, 16)]
    images = [torch.rand(BANDS, height, width) for height, width in sizes]
    starts = torch.tensor([0, *(BANDS * h * w for h, w in sizes)]).cumsum(0)[:-1]
    out = ops.crop_resize(
        torch.cat([image.flatten() for image in images]),
        torch.cat([starts[:, None], torch.tensor(sizes)], 1),
        torch.tensor([(0, 0, *size) for size in sizes], dtype=torch.int32),
        torch.zeros(4, 2, dtype=torch.bool),
        9,
        bands=BANDS,
        offset=torch.zeros(4, BANDS),
        scale=torch.ones(4, BANDS),
    )
    for image, ours in zip(images, out, strict=True):
        expected = F.interpolate(image[None], (9, 9), mode="bicubic", antialias=True)[0]
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_any_strides_and_inputs_untouched(kernels: str) -> None:
    batch = batch_of(list(BOXES.values()))
    expected = ops.crop_resize(**batch, size=12)
    batch["pixels"] = torch.stack([batch["pixels"], torch.zeros_like(batch["pixels"])], 1)[:, 0]
    for name in ("layout", "boxes", "flips", "offset", "scale"):
        batch[name] = batch[name].t().contiguous().t()
    before = {name: value.clone() for name, value in batch.items() if isinstance(value, Tensor)}
    assert torch.equal(ops.crop_resize(**batch, size=12), expected)
    for name, value in before.items():
        assert torch.equal(
            batch[name].nan_to_num() if name == "pixels" else batch[name],
            value.nan_to_num() if name == "pixels" else value,
        )


def test_empty_batch(kernels: str) -> None:
    assert ops.crop_resize(**batch_of([]), size=6).shape == (0, BANDS, 6, 6)


def test_opcheck() -> None:
    batch = batch_of([(0, 0, 6, 5), (1, 2, 3, 4)], torch.uint16)
    inputs = [batch[name] for name in ("pixels", "layout", "boxes", "flips")]
    affine = [batch[name] for name in ("offset", "scale")]
    check_op(torch.ops.spectralgpt.crop_resize.default, *inputs, 4, BANDS, *affine, True, torch.float32)


def test_no_gradient() -> None:
    batch = batch_of([(0, 0, 6, 5)])
    for name in ("pixels", "offset", "scale"):
        leaf = batch[name].detach().clone().requires_grad_()
        with pytest.raises(ValueError, match="crop_resize: expected pixels, offset and scale without gradient"):
            ops.crop_resize(**{**batch, name: leaf}, size=4)


def test_compiled_equals_eager() -> None:
    compiled = torch.compile(ops.crop_resize, fullgraph=True, backend="aot_eager")
    for boxes in ([(0, 0, 6, 5), (1, 2, 30, 40)], [(3, 3, 9, 9), (8, 8, 1, 1)]):
        batch = batch_of(boxes, torch.uint16)
        assert torch.equal(compiled(**batch, size=8), ops.crop_resize(**batch, size=8))


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("layout", 0, -1),
        ("layout", 0, 6728),  # one value past the buffer
        ("layout", 1, HEIGHT + 1),
        ("layout", 1, 0),
        ("layout", 2, -WIDTH),
        ("layout", 2, 2**62),  # bands x height x width overflows 64 bits
        ("boxes", 0, -1),
        ("boxes", 1, WIDTH),
        ("boxes", 2, HEIGHT),
        ("boxes", 2, 0),
        ("boxes", 3, 2**31 - 1),  # x + w overflows 32 bits
    ],
)
def test_boxes_and_images_that_do_not_exist(name: str, column: int, value: int) -> None:
    batch = batch_of([(1, 1, 6, 5), (1, 1, 6, 5)])
    batch[name][1, column] = value
    with pytest.raises(IndexError, match="crop_resize: expected images inside the buffer"):
        ops.crop_resize(**batch, size=4)


def test_native_kernel_serves(launched: list[str]) -> None:
    ops.crop_resize(**batch_of([(0, 0, 6, 5)]), size=4)
    native = _registry._OPS["crop_resize"].implementations["cpu"] == "native"
    assert launched == (["crop_resize"] if native else [])
