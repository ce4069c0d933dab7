# SPDX-License-Identifier: Apache-2.0
"""Runs every kernel of a built module over random shapes, against NumPy, with NumPy arrays alone.

A program of its own, so that it can run where torch cannot: under the sanitizers.

    python exercise.py MODULE.so ROUNDS
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Shape:
    """A random image cube and its patch."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.batch, groups, rows, columns = (int(n) for n in rng.integers(1, [4, 5, 5, 5]))
        self.patch = t, p, q = tuple(int(n) for n in rng.choice([1, 2, 3, 4, 5, 8, 16], 3))
        self.size = (groups * t, rows * p, columns * q)
        self.grid = (groups, rows, columns)
        self.tokens, self.values = groups * rows * columns, t * p * q

    def cube(self, image: Array) -> tuple[int, ...]:
        """The eleven numbers of a Cube."""
        return (*image.shape, *(stride // image.itemsize for stride in image.strides), *self.patch)

    def patchify(self, image: Array) -> Array:
        """NumPy's version."""
        (s, h, w), (t, p, q) = self.grid, self.patch
        split = image.reshape(self.batch, s, t, h, p, w, q).transpose(0, 1, 3, 5, 2, 4, 6)
        return np.ascontiguousarray(split).reshape(self.batch, self.tokens, self.values)


def address(array: Array) -> int:
    """Where an array begins."""
    return int(array.ctypes.data)


def window(rng: np.random.Generator, image: Array) -> Array:
    """The same values inside a larger buffer, at any alignment."""
    top, left = (int(n) for n in rng.integers(0, 4, 2))
    buffer = np.zeros((*image.shape[:2], image.shape[2] + top, image.shape[3] + left), image.dtype)
    buffer[:, :, top:, left:] = image
    return buffer[:, :, top:, left:]


def permutations(kernels: ModuleType, where: tuple[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    """patchify3d, unpatchify3d, gather_patchify3d and its backward."""
    device, target = where
    shape = Shape(rng)
    dtype = rng.choice([np.uint8, np.uint16, np.float32, np.float64])
    image = window(rng, (rng.random((shape.batch, *shape.size)) * 200).astype(dtype))
    expected = shape.patchify(image)
    tokens = np.full_like(expected, 77)
    getattr(kernels, f"patchify3d_{device}")(
        address(tokens), address(image), image.itemsize, *shape.cube(image), *target
    )
    np.testing.assert_array_equal(tokens, expected)
    back = np.full(image.shape, 77, dtype)
    getattr(kernels, f"unpatchify3d_{device}")(
        address(back), address(tokens), image.itemsize, *shape.cube(back), *target
    )
    np.testing.assert_array_equal(back, image)

    keep = int(rng.integers(0, shape.tokens + 2))
    ids = rng.integers(0, shape.tokens, (shape.batch, keep))
    kept = np.full((shape.batch, keep, shape.values), 77, dtype)
    arguments = (address(kept), address(image), address(ids), keep, image.itemsize, 0, *shape.cube(image), *target)
    getattr(kernels, f"gather_patchify3d_{device}")(*arguments)
    np.testing.assert_array_equal(kept, np.take_along_axis(expected, ids[:, :, None], 1))

    grad = rng.random((shape.batch, keep, shape.values))
    image_grad = np.full(image.shape, 77.0)
    arguments = (address(image_grad), address(grad), address(ids), keep, 8, 1, *shape.cube(image_grad), *target)
    getattr(kernels, f"gather_patchify3d_backward_{device}")(*arguments)
    summed = np.zeros((shape.batch, shape.tokens, shape.values))
    for sample in range(shape.batch):
        np.add.at(summed[sample], ids[sample], grad[sample])
    np.testing.assert_allclose(shape.patchify(image_grad), summed, rtol=1e-12)


def masks(kernels: ModuleType, where: tuple[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    """random_cube_mask against its defining property, cube_mask_from_noise against argsort."""
    device, target = where
    batch, tokens = int(rng.integers(1, 4)), int(rng.integers(1, 1500))
    keep = int(rng.integers(0, tokens + 1))
    ids_keep, ids_restore = np.full((batch, keep), -7), np.full((batch, tokens), -7)
    mask, order = np.full((batch, tokens), 7, np.uint8), np.full((batch, tokens), -7)
    outputs = (address(ids_keep), address(ids_restore), address(mask))
    samples, seed, step = rng.integers(0, 2**62, batch), rng.integers(0, 2**62, 1), rng.integers(0, 2**32, 1)
    inputs = (address(samples), address(seed), address(step))
    getattr(kernels, f"random_cube_mask_{device}")(*outputs, *inputs, batch, tokens, keep, *target)
    assert set(np.unique(mask)) <= {0, 1} and ((mask == 0).sum(1) == keep).all()
    for sample in range(batch):
        np.testing.assert_array_equal(ids_keep[sample], np.flatnonzero(mask[sample] == 0))
        places = np.concatenate([ids_keep[sample], np.flatnonzero(mask[sample])])
        np.testing.assert_array_equal(ids_restore[sample][places], np.arange(tokens))

    noise = rng.random((batch, tokens)).astype(np.float32).round(3)  # rounded: ties
    arguments = (address(order), address(noise), 0, batch, tokens, keep, *target)
    getattr(kernels, f"cube_mask_from_noise_{device}")(*outputs, *arguments)
    expected = noise.argsort(1, kind="stable")
    np.testing.assert_array_equal(ids_keep, expected[:, :keep])
    np.testing.assert_array_equal(ids_restore, expected.argsort(1))
    np.testing.assert_array_equal(mask, expected.argsort(1) >= keep)


def loss(kernels: ModuleType, where: tuple[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    """reconstruction_loss in float64 against NumPy."""
    device, target = where
    shape = Shape(rng)
    normalize = bool(rng.integers(2)) and shape.values > 1
    raw = normalize and bool(rng.integers(2))
    image = window(rng, rng.random((shape.batch, *shape.size)))
    prediction = rng.random((shape.batch, shape.tokens, shape.values))
    mask, valid = (rng.random((shape.batch, shape.tokens)) < share for share in (0.8, 0.9))
    mask[0, 0] = valid[0, 0] = True
    weights, scalars, gradient = np.array([0.7, 1.3]), np.full(4, 77.0), np.full_like(prediction, 77)
    scratch = np.full(kernels.reconstruction_loss_scratch(normalize, *shape.cube(image)), 77.0)
    getattr(kernels, f"reconstruction_loss_{device}")(
        *(address(scalars[i:]) for i in range(4)),
        *(address(array) for array in (gradient, scratch, prediction, image, mask, valid, weights, weights[1:])),
        *(1, 1, normalize, raw, *shape.cube(image), *target),
    )
    truth = shape.patchify(image)
    wanted = truth
    if normalize:
        wanted = (truth - truth.mean(2, keepdims=True)) / np.sqrt(truth.var(2, ddof=1, keepdims=True) + 1e-6)
    scored = mask & valid
    error = prediction - wanted
    spectrum = (prediction - (truth if raw else wanted)).reshape(shape.batch, shape.grid[0], -1, shape.values).sum(1)
    complete = valid.reshape(shape.batch, shape.grid[0], -1).all(1)
    spectrum *= complete[:, :, None]
    places = max(1, complete.sum()) * shape.values
    token, spectral = np.square(error[scored]).mean(), np.square(spectrum).sum() / places
    np.testing.assert_allclose(scalars, [0.7 * token + 1.3 * spectral, token, spectral, 1], rtol=1e-10)
    by_token = error * scored[:, :, None] * (2 * 0.7 / (scored.sum() * shape.values))
    by_position = np.tile(spectrum * (2 * 1.3 / places), (1, shape.grid[0], 1))
    np.testing.assert_allclose(gradient, by_token + by_position, rtol=1e-9, atol=1e-14)


def assembly(kernels: ModuleType, where: tuple[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    """assemble_tokens and its backward, in float32 and float64."""
    device, target = where
    batch, tokens, channels = (int(n) for n in rng.integers(1, [12, 20, 40]))
    keep, code = int(rng.integers(0, tokens + 1)), int(rng.integers(2))
    dtype = np.float64 if code else np.float32
    places = np.stack([rng.permutation(tokens) for _ in range(batch)])
    visible = rng.random((batch, keep, channels)).astype(dtype)
    mask_token, positions = rng.random(channels).astype(dtype), rng.random((tokens, channels)).astype(dtype)
    out, sizes = np.full((batch, tokens, channels), 77, dtype), (code, code, batch, keep, tokens, channels)
    inputs = (visible, mask_token, positions, places)
    getattr(kernels, f"assemble_tokens_{device}")(address(out), *map(address, inputs), *sizes, *target)
    table = np.concatenate([visible, np.broadcast_to(mask_token, (batch, 1, channels))], 1)
    rows = np.minimum(places, keep)[:, :, None]
    np.testing.assert_array_equal(out, np.take_along_axis(table, rows, 1) + positions)

    grad = rng.random(out.shape).astype(dtype)
    outputs = [np.full_like(array, 77) for array in (visible, mask_token, positions)]
    scratch = np.full(kernels.assemble_scratch(tokens, channels), 77, dtype)
    getattr(kernels, f"assemble_tokens_backward_{device}")(
        *map(address, (*outputs, scratch, grad, places)), *sizes, *target
    )
    ids_keep = np.argsort(places, 1)[:, :keep, None]
    np.testing.assert_array_equal(outputs[0], np.take_along_axis(grad, ids_keep, 1))
    np.testing.assert_allclose(outputs[1], (grad * (places >= keep)[:, :, None]).sum((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(outputs[2], grad.sum(0), rtol=1e-5)


def crops(kernels: ModuleType, where: tuple[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    """crop_resize of boxes inside larger images, against a matrix for each axis."""
    device, target = where
    batch, bands, size = (int(n) for n in rng.integers(1, [4, 4, 20]))
    antialias, inner = bool(rng.integers(2)), rng.integers(1, 40, (batch, 2))
    shapes, corners = inner + rng.integers(0, 5, (batch, 2)), rng.integers(0, 5, (batch, 2))
    shapes += corners
    starts = np.concatenate([[0], np.cumsum(bands * shapes.prod(1))])
    pixels = np.full(starts[-1], 60000, np.uint16)  # seen in the result if read
    boxes = np.concatenate([corners, inner], 1).astype(np.int32)
    for sample, (y, x, h, w) in enumerate(boxes):
        image = pixels[starts[sample] : starts[sample + 1]].reshape(bands, *shapes[sample])
        image[:, y : y + h, x : x + w] = rng.integers(0, 1000, (bands, h, w))
    layout = np.concatenate([starts[:-1, None], shapes], 1)
    flips = rng.random((batch, 2)) < 0.5
    offset, scale = (rng.random((batch, bands)).astype(np.float32) for _ in range(2))
    out = np.full((batch, bands, size, size), 77, np.float32)
    scratch_size = kernels.crop_resize_scratch(size, int(inner.max()), 4)
    scratch = np.full(2 * scratch_size, 77, np.uint8)
    arrays = (out, pixels, layout, boxes, flips, offset, scale, scratch)
    sizes = (batch, bands, size, len(pixels), scratch_size)
    getattr(kernels, f"crop_resize_{device}")(*map(address, arrays), 1, -1, 0, antialias, *sizes, *target)
    for sample, (y, x, h, w) in enumerate(boxes):
        image = pixels[starts[sample] : starts[sample + 1]].reshape(bands, *shapes[sample])[:, y : y + h, x : x + w]
        rows, columns = (
            bicubic(n, size, antialias)[:: -1 if flip else 1] for n, flip in zip((h, w), flips[sample], strict=True)
        )
        view = rows @ image.astype(np.float64) @ columns.T
        expected = (view - offset[sample][:, None, None]) * scale[sample][:, None, None]
        np.testing.assert_allclose(out[sample], expected, rtol=1e-4, atol=1e-2)


def bicubic(length: int, size: int, antialias: bool) -> Array:
    """The matrix that resizes an axis."""
    step = length / size
    wide = max(step, 1.0) if antialias else 1.0
    a = -0.5 if antialias else -0.75
    matrix = np.zeros((size, length))
    for index in range(size):
        centre = (index + 0.5) * step - 0.5
        reach = range(int(np.ceil(centre - 2 * wide)), int(np.floor(centre + 2 * wide)) + 1)
        for place in reach:
            t = abs(place - centre) / wide
            near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
            if antialias and not 0 <= place < length:
                continue
            matrix[index, min(max(place, 0), length - 1)] += near if t < 1 else far if t < 2 else 0.0
    return matrix / matrix.sum(1, keepdims=True)


def main(path: str, rounds: int) -> None:
    """All kernels on both targets; the emulated device in all three thread orders."""
    spec = importlib.util.spec_from_file_location(Path(path).name.split(".")[0], path)
    assert spec and spec.loader
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)
    for number in range(rounds):
        kernels.set_schedule(number % 3)
        for where in (("cpu", (2,)), ("cuda", (0, 0))):
            for check in (permutations, masks, loss, assembly, crops):
                check(kernels, where, np.random.default_rng(number))
    print(f"{rounds} rounds passed")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
