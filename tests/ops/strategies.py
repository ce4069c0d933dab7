# SPDX-License-Identifier: Apache-2.0
"""One strategy per op: any call its contract allows, with sizes 0 and 1, odd patches, many bands and any strides, or
a call with one flaw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

from tests.ops.cases import ANY, FLOATS
from tests.ops.drawing import (
    Draw,
    Flaws,
    batch,
    grid,
    grid_flaws,
    ids_flaws,
    noise_bits,
    places,
    places_flaws,
    poison,
    restride,
    spoil,
    token_ids,
    values,
)
from tests.ops.trials import Trial


@st.composite
def patchify3d(draw: Draw) -> Trial:
    size, patch, _ = grid(draw)
    image = restride(draw, noise_bits(draw, batch(draw), *size, dtype=draw(st.sampled_from(ANY))), (0, 1, 2, 3))
    flaws = {
        **grid_flaws(size, patch),
        "no batch dimension": lambda: {"image": image[0] if len(image) else image.flatten()},
        "no rows": lambda: {"image": image[:, :, :0]},
        "no bands": lambda: {"image": image[:, :0]},
    }
    return spoil(draw, Trial("patchify3d", {"image": image, "patch_size": patch}), flaws)


@st.composite
def unpatchify3d(draw: Draw) -> Trial:
    size, patch, length = grid(draw)
    tokens = noise_bits(draw, batch(draw), length, patch[0] * patch[1] * patch[2], dtype=draw(st.sampled_from(ANY)))
    tokens = restride(draw, tokens, (0, 1, 2))
    flaws = {
        **grid_flaws(size, patch),
        "a token too few": lambda: {"tokens": tokens[:, 1:]},
        "a value too few": lambda: {"tokens": tokens[:, :, 1:]},
        "no batch dimension": lambda: {"tokens": tokens.flatten(0, 1)},
        "image of two sizes": lambda: {"image_size": size[1:]},
        "image of no height": lambda: {"image_size": (size[0], 0, size[2])},
    }
    return spoil(draw, Trial("unpatchify3d", {"tokens": tokens, "image_size": size, "patch_size": patch}), flaws)


@st.composite
def gather_patchify3d(draw: Draw) -> Trial:
    size, patch, length = grid(draw)
    image = restride(draw, noise_bits(draw, batch(draw), *size, dtype=draw(st.sampled_from(FLOATS))), (0, 1, 2, 3))
    ids = token_ids(draw, len(image), length)
    flaws = {
        **grid_flaws(size, patch),
        **ids_flaws(ids, length),
        "integer image": lambda: {"image": torch.zeros(image.shape, dtype=torch.uint16)},
    }
    trial = Trial("gather_patchify3d", {"image": image, "ids_keep": ids, "patch_size": patch})
    return spoil(draw, trial, flaws)


@st.composite
def gather_patchify3d_backward(draw: Draw) -> Trial:
    size, patch, length = grid(draw)
    ids = token_ids(draw, batch(draw), length)
    dtype = draw(st.sampled_from(FLOATS))
    grad = values(draw, *ids.shape, patch[0] * patch[1] * patch[2], dtype=dtype)
    if dtype.itemsize == 2:  # tokens kept twice are added in the gradient's own dtype: small integers stay exact there
        grad = grad.round()
    grad = restride(draw, grad, (0, 1, 2))
    flaws = {
        **grid_flaws(size, patch),
        **ids_flaws(ids, length),
        "integer gradient": lambda: {"grad": torch.zeros(grad.shape, dtype=torch.int64)},
        "a value too few": lambda: {"grad": grad[:, :, 1:]},
    }
    trial = Trial(
        "gather_patchify3d_backward", {"grad": grad, "ids_keep": ids, "image_size": size, "patch_size": patch}
    )
    return spoil(draw, trial, flaws)


RATIOS = st.one_of(st.sampled_from([0.0, 0.5, 0.75, 0.9, 0.999999]), st.floats(0, 1, exclude_max=True))
BAD_RATIOS = {
    "ratio of 1": lambda: {"mask_ratio": 1.0},
    "negative ratio": lambda: {"mask_ratio": -1e-9},
    "no number": lambda: {"mask_ratio": float("nan")},
}


@st.composite
def random_cube_mask(draw: Draw) -> Trial:
    ids = torch.tensor(draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3)), dtype=torch.int64)
    key = st.integers(0, 2**63 - 1).flatmap(lambda number: st.sampled_from([number, torch.tensor(number)]))
    arguments = {
        "sample_ids": restride(draw, ids),
        "num_tokens": draw(st.one_of(st.integers(1, 8), st.integers(1, 700))),
        "mask_ratio": draw(RATIOS),
        "seed": draw(key),
        "step": draw(key),
    }
    flaws = {
        **BAD_RATIOS,
        "32-bit ids": lambda: {"sample_ids": ids.int()},
        "a column of ids": lambda: {"sample_ids": ids[:, None]},
        "no tokens": lambda: {"num_tokens": 0},
        "too many tokens": lambda: {"num_tokens": 2**26 + 1},
        "negative seed": lambda: {"seed": -1},
        "negative step": lambda: {"step": -1},
        "vector seed": lambda: {"seed": torch.zeros(1, dtype=torch.int64)},
        "float step": lambda: {"step": torch.tensor(1.0)},
        "seed elsewhere": lambda: {"seed": torch.zeros((), dtype=torch.int64, device="meta")},
    }
    return spoil(draw, Trial("random_cube_mask", arguments), flaws)


@st.composite
def cube_mask_from_noise(draw: Draw) -> Trial:
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    shape = (batch(draw), draw(st.integers(1, 200)))
    noise = values(draw, *shape, dtype=dtype)
    if draw(st.booleans()):  # ties, both zeros, infinities and every kind of NaN
        odd = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), -float("nan"), 1.0], dtype=dtype)
        noise = odd[(noise.abs() * 100).long() % len(odd)]
    noise = restride(draw, noise, (0, 1))
    flaws = {
        **BAD_RATIOS,
        "flat noise": lambda: {"noise": noise.flatten()},
        "half noise": lambda: {"noise": noise.half()},
        "integer noise": lambda: {"noise": torch.zeros(shape, dtype=torch.int64)},
        "no tokens": lambda: {"noise": noise[:, :0]},
    }
    return spoil(draw, Trial("cube_mask_from_noise", {"noise": noise, "mask_ratio": draw(RATIOS)}), flaws)


def assembly(draw: Draw) -> tuple[int, int, int, int]:
    """(B, K, L, D), any of them 0."""
    length = draw(st.integers(0, 30))
    return batch(draw), draw(st.integers(0, length)), length, draw(st.sampled_from([0, 1, 2, 7, 8, 33, 64, 130]))


@st.composite
def assemble_tokens(draw: Draw) -> Trial:
    rows, keep, length, channels = assembly(draw)
    float_dtype = st.sampled_from(FLOATS)
    visible, token, positions = (
        restride(draw, values(draw, *shape, dtype=draw(float_dtype)))
        for shape in ((rows, keep, channels), (channels,), (length, channels))
    )
    restore = places(draw, rows, length, keep)
    arguments = {
        "visible": visible,
        "mask_token": token,
        "positions": positions,
        "ids_restore": restore,
        "out_dtype": draw(st.sampled_from([None, *FLOATS])),
    }
    flaws = {
        **places_flaws(restore, keep),
        "flat visible": lambda: {"visible": visible.flatten()},
        "integer visible": lambda: {"visible": visible.long()},
        "complex positions": lambda: {"positions": positions.to(torch.complex64)},
        "integer result": lambda: {"out_dtype": torch.int32},
        "a channel too many": lambda: {"mask_token": token.new_zeros(channels + 1)},
        "a position too many": lambda: {"positions": positions.new_zeros(length + 1, channels)},
        "positions elsewhere": lambda: {"positions": positions.to("meta")},
    }
    return spoil(draw, Trial("assemble_tokens", arguments), flaws)


@st.composite
def assemble_tokens_backward(draw: Draw) -> Trial:
    rows, keep, length, channels = assembly(draw)
    grad = values(draw, rows, length, channels, dtype=draw(st.sampled_from(FLOATS)))
    grad, restore = restride(draw, grad, (0, 1, 2)), places(draw, rows, length, keep)
    arguments = {"grad": grad, "ids_restore": restore, "num_keep": keep}
    for name in ("visible_dtype", "mask_dtype", "positions_dtype"):
        arguments[name] = draw(st.sampled_from(FLOATS))
    flaws = {
        **places_flaws(restore, keep),
        "integer gradient": lambda: {"grad": grad.long()},
        "flat gradient": lambda: {"grad": grad.flatten()},
    }
    return spoil(draw, Trial("assemble_tokens_backward", arguments), flaws)


@st.composite
def reconstruction_loss(draw: Draw) -> Trial:
    size, patch, length = grid(draw)
    rows, num_values = draw(st.integers(1, 3)), patch[0] * patch[1] * patch[2]
    float_dtype = st.sampled_from(FLOATS)
    prediction = restride(draw, values(draw, rows, length, num_values, dtype=draw(float_dtype)), (0, 1, 2))
    image = restride(draw, values(draw, rows, *size, dtype=draw(float_dtype)), (0, 1))
    mask, valid = (values(draw, rows, length) < level for level in (0.8, 1.3))
    mask[0, 0] = valid[0, 0] = True
    weight = st.sampled_from([1.0, 0.0, 0.3, torch.tensor(1.7), torch.tensor(2.5, dtype=torch.float64)])
    arguments = {
        "prediction": prediction,
        "image": image,
        "mask": restride(draw, mask),
        "patch_size": patch,
        "valid": draw(st.sampled_from([None, restride(draw, valid)])),
        "normalize_targets": num_values > 1 and draw(st.booleans()),
        "spectral_targets": draw(st.sampled_from(["same", "raw"])),
        "token_weight": draw(weight),
        "spectral_weight": draw(weight),
    }
    flaws = {
        **grid_flaws(size, patch),
        "empty batch": lambda: {"prediction": prediction[:0], "image": image[:0], "mask": mask[:0], "valid": None},
        "integer prediction": lambda: {"prediction": prediction.long()},
        "integer image": lambda: {"image": image.long()},
        "a value too few": lambda: {"prediction": prediction[:, :, 1:]},
        "number mask": lambda: {"mask": mask.float()},
        "a flag too many": lambda: {"valid": torch.ones(rows, length + 1, dtype=torch.bool)},
        "nothing scored": lambda: {"mask": torch.zeros_like(mask)},
        "nothing valid": lambda: {"valid": torch.zeros_like(mask)},
        "integer weight": lambda: {"token_weight": torch.tensor(1)},
        "vector weight": lambda: {"spectral_weight": torch.ones(1)},
        "unknown targets": lambda: {"spectral_targets": "both"},
        "image with gradient": lambda: {"image": image.detach().clone().requires_grad_()},
        "mask elsewhere": lambda: {"mask": mask.to("meta")},
    }
    return spoil(draw, Trial("reconstruction_loss", arguments), flaws)


PIXELS = [torch.uint8, torch.uint16, torch.int16, *FLOATS]


@st.composite
def crop_resize(draw: Draw) -> Trial:
    rows, bands, size = batch(draw), draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 5, 8, 13, 32]))
    dtype, start, layout, boxes = draw(st.sampled_from(PIXELS)), 0, [], []
    for _ in range(rows):
        height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
        start += draw(st.sampled_from([0, 1, 5]))
        layout.append([start, height, width])
        start += bands * height * width
        y, x = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        boxes.append([y, x, draw(st.integers(1, height - y)), draw(st.integers(1, width - x))])
    pixels = poison((start + draw(st.integers(0, 3)),), dtype)  # outside the boxes it stays so
    for (first, height, width), (y, x, h, w) in zip(layout, boxes, strict=True):
        image = pixels[first : first + bands * height * width].view(bands, height, width)
        image[:, y : y + h, x : x + w] = values(draw, bands, h, w, dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    order = values(draw, rows) > 0
    arguments = {
        "pixels": restride(draw, pixels, ()),
        "layout": restride(draw, torch.tensor(layout, dtype=torch.int64).reshape(-1, 3), ()),
        "boxes": restride(draw, torch.tensor(boxes, dtype=torch.int32).reshape(-1, 4), ()),
        "flips": restride(draw, torch.stack([order, ~order.flip(0)], 1)),
        "size": size,
        "bands": bands,
        "offset": restride(draw, values(draw, rows, bands, dtype=wide)),
        "scale": restride(draw, values(draw, rows, bands, dtype=wide)),
        "antialias": draw(st.booleans()),
        "out_dtype": draw(st.sampled_from(FLOATS)),
    }
    return spoil(draw, Trial("crop_resize", arguments), crop_flaws(arguments))


def crop_flaws(right: dict[str, Any]) -> Flaws:
    pixels, layout, boxes, offset = (right[name] for name in ("pixels", "layout", "boxes", "offset"))

    def moved(name: str, column: int, by: int) -> Callable[[], dict[str, Any]]:
        return lambda: {name: right[name] + torch.eye(right[name].shape[1], dtype=right[name].dtype)[column] * by}

    flaws: Flaws = {
        "32-bit layout": lambda: {"layout": layout.int()},
        "64-bit boxes": lambda: {"boxes": boxes.long()},
        "number flips": lambda: {"flips": right["flips"].int()},
        "a box too many": lambda: {"boxes": boxes.new_zeros(len(boxes) + 1, 4)},
        "packed in two dimensions": lambda: {"pixels": pixels[:, None]},
        "64-bit pixels": lambda: {"pixels": torch.zeros(pixels.shape, dtype=torch.int64)},
        "no size": lambda: {"size": 0},
        "no bands": lambda: {"bands": 0, "offset": offset[:, :0], "scale": offset[:, :0]},
        "half offset": lambda: {"offset": offset.half()},
        "a band too many": lambda: {"scale": offset.new_zeros(len(offset), right["bands"] + 1)},
        "integer result": lambda: {"out_dtype": torch.uint8},
        "pixels with gradient": lambda: {"offset": offset.detach().clone().requires_grad_()},
        "layout elsewhere": lambda: {"layout": layout.to("meta")},
    }
    if len(boxes):
        flaws |= {
            "image before the buffer": moved("layout", 0, -(2**40)),
            "image past the buffer": moved("layout", 0, pixels.numel()),
            "image past 64 bits": moved("layout", 1, 2**61),
            "box above the image": moved("boxes", 0, -50),
            "box left of the image": moved("boxes", 1, -50),
            "box too high": moved("boxes", 2, 50),
            "box too wide": moved("boxes", 3, 50),
            "box past 32 bits": moved("boxes", 2, 2**31 - 50),
            "empty box": lambda: {"boxes": boxes * torch.tensor([1, 1, 0, 1], dtype=torch.int32)},
        }
    return flaws


STRATEGIES: dict[str, Callable[[], st.SearchStrategy[Trial]]] = {
    strategy.__name__: strategy
    for strategy in (
        patchify3d,
        unpatchify3d,
        gather_patchify3d,
        gather_patchify3d_backward,
        random_cube_mask,
        cube_mask_from_noise,
        assemble_tokens,
        assemble_tokens_backward,
        reconstruction_loss,
        crop_resize,
    )
}
