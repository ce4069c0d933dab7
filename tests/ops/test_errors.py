# SPDX-License-Identifier: Apache-2.0
"""Every wrong shape, dtype, device, grid, count and ratio ends in `<op>: expected ..., got ...`, eager and compiled."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, zeros

from spectralgpt import ops

IMAGE, TOKENS, FLAGS = zeros(1, 12, 16, 16), zeros(1, 16, 192), torch.ones(1, 16, dtype=torch.bool)
IDS, BOXES = zeros(1, 2, dtype=torch.int64), torch.tensor([[0, 0, 6, 8]], dtype=torch.int32)
RIGHT: dict[str, dict[str, Any]] = {
    "patchify3d": {"image": IMAGE},
    "unpatchify3d": {"tokens": TOKENS, "image_size": (12, 16, 16)},
    "gather_patchify3d": {"image": IMAGE, "ids_keep": IDS},
    "random_cube_mask": {
        "sample_ids": torch.arange(2),
        "num_tokens": 16,
        "mask_ratio": 0.5,
        "seed": torch.tensor(0),
    },
    "cube_mask_from_noise": {"noise": zeros(1, 16), "mask_ratio": 0.5},
    "assemble_tokens": {
        "visible": zeros(1, 2, 8),
        "mask_token": zeros(8),
        "positions": zeros(4, 8),
        "ids_restore": torch.tensor([[3, 1, 0, 2]]),
    },
    "reconstruction_loss": {"prediction": TOKENS, "image": IMAGE, "mask": FLAGS},
    "crop_resize": {
        "pixels": zeros(96),
        "layout": torch.tensor([[0, 6, 8]]),
        "boxes": BOXES,
        "flips": zeros(1, 2, dtype=torch.bool),
        "size": 4,
        "bands": 2,
        "offset": zeros(1, 2),
        "scale": zeros(1, 2),
    },
}


def elsewhere(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("patchify3d", {"image": zeros(12, 16, 16)}, ValueError, "image of shape (B, C, H, W), got"),
    ("patchify3d", {"image": zeros(1, 12, 15, 16)}, ValueError, "height divisible by the patch"),
    ("patchify3d", {"patch_size": (3, 8)}, ValueError, "patch_size of three positive sizes"),
    ("unpatchify3d", {"tokens": zeros(1, 15, 192)}, ValueError, "tokens of shape (B, 16, 192)"),
    ("unpatchify3d", {"image_size": (16, 16)}, ValueError, "image_size (bands, height, width), got (16, 16)"),
    ("gather_patchify3d", {"image": IMAGE.to(torch.uint16)}, TypeError, "a floating image, got torch.uint16"),
    ("gather_patchify3d", {"ids_keep": IDS.int()}, TypeError, "ids_keep of dtype int64, got torch.int32"),
    ("gather_patchify3d", {"ids_keep": IDS[0]}, ValueError, "ids_keep of shape (1, K), got (2,)"),
    (
        "gather_patchify3d",
        {"ids_keep": elsewhere(IDS)},
        ValueError,
        "all tensors on one device, got image on cpu, ids_keep on meta",
    ),
    ("random_cube_mask", {"sample_ids": IDS}, ValueError, "sample_ids of shape (B,), got (1, 2)"),
    ("random_cube_mask", {"sample_ids": torch.arange(2.0)}, TypeError, "sample_ids of dtype int64, got torch.float32"),
    ("random_cube_mask", {"num_tokens": 0}, ValueError, "num_tokens in [1, "),
    ("random_cube_mask", {"seed": -1}, ValueError, "seed in [0, 2^63), got -1"),
    ("random_cube_mask", {"seed": torch.tensor(0.0)}, TypeError, "seed as an int or a 0-d int64 tensor"),
    ("random_cube_mask", {"mask_ratio": 1.0}, ValueError, "mask_ratio in [0, 1), got 1.0"),
    ("random_cube_mask", {"mask_ratio": None}, TypeError, "mask_ratio as a number, got None"),
    ("random_cube_mask", {"num_tokens": 16.0}, TypeError, "num_tokens as an int, got 16.0"),
    ("random_cube_mask", {"num_tokens": None}, TypeError, "num_tokens as an int, got None"),
    ("random_cube_mask", {"seed": 1.5}, TypeError, "seed as an int or a 0-d int64 tensor, got 1.5"),
    ("random_cube_mask", {"step": 2**63}, ValueError, "step in [0, 2^63), got"),
    ("cube_mask_from_noise", {"mask_ratio": -0.5}, ValueError, "mask_ratio in [0, 1), got -0.5"),
    ("patchify3d", {"patch_size": 8}, TypeError, "patch_size of three sizes (bands, rows, columns), got 8"),
    (
        "patchify3d",
        {"patch_size": (3.0, 8, 8)},
        TypeError,
        "patch_size of three sizes (bands, rows, columns), got (3.0, 8, 8)",
    ),
    ("reconstruction_loss", {"token_weight": None}, TypeError, "token_weight as a float or a 0-d floating tensor"),
    ("cube_mask_from_noise", {"noise": zeros(16)}, ValueError, "noise of shape (B, L), got (16,)"),
    (
        "cube_mask_from_noise",
        {"noise": zeros(1, 16).half()},
        TypeError,
        "noise of dtype float32 or float64, got torch.float16",
    ),
    ("assemble_tokens", {"visible": zeros(2, 8)}, ValueError, "visible of shape (B, K, D), got (2, 8)"),
    ("assemble_tokens", {"visible": zeros(1, 2, 8).long()}, TypeError, "visible of dtype float32"),
    ("assemble_tokens", {"mask_token": zeros(7)}, ValueError, "mask_token of shape (8,), got (7,)"),
    ("assemble_tokens", {"positions": zeros(5, 8)}, ValueError, "positions of shape (4, 8), got (5, 8)"),
    (
        "assemble_tokens",
        {"ids_restore": zeros(1, 1, dtype=torch.int64)},
        ValueError,
        "ids_restore of shape (1, L) with L >= 2",
    ),
    ("assemble_tokens", {"ids_restore": zeros(1, 4)}, TypeError, "ids_restore of dtype int64"),
    ("assemble_tokens", {"out_dtype": torch.int32}, TypeError, "out_dtype float32"),
    ("assemble_tokens", {"positions": elsewhere(zeros(4, 8))}, ValueError, "all tensors on one device"),
    (
        "reconstruction_loss",
        {"prediction": zeros(1, 15, 192)},
        ValueError,
        "prediction of shape (1, 16, 192), got (1, 15, 192)",
    ),
    ("reconstruction_loss", {"image": IMAGE.long()}, TypeError, "image of dtype float32"),
    ("reconstruction_loss", {"mask": FLAGS.float()}, TypeError, "mask of dtype bool, got torch.float32"),
    ("reconstruction_loss", {"spectral_targets": "both"}, ValueError, 'spectral_targets "same" or "raw", got'),
    (
        "reconstruction_loss",
        {"prediction": TOKENS[:0], "image": IMAGE[:0], "mask": FLAGS[:0]},
        ValueError,
        "at least one sample, got a batch of 0",
    ),
    (
        "crop_resize",
        {"pixels": zeros(96).long()},
        TypeError,
        "pixels of dtype uint8, uint16, int16 or floating, got torch.int64",
    ),
    ("crop_resize", {"pixels": zeros(2, 48)}, ValueError, "pixels as a packed 1-D buffer, got"),
    ("crop_resize", {"size": 0}, ValueError, "size and bands of at least 1, got 0 and 2"),
    ("crop_resize", {"layout": zeros(1, 2, dtype=torch.int64)}, ValueError, "layout of shape (1, 3), got (1, 2)"),
    (
        "crop_resize",
        {"boxes": zeros(1, 4, dtype=torch.int64)},
        TypeError,
        "boxes of dtype torch.int32, got torch.int64",
    ),
    ("crop_resize", {"flips": zeros(2, 2, dtype=torch.bool)}, ValueError, "flips of shape (1, 2), got (2, 2)"),
    ("crop_resize", {"scale": zeros(1, 3)}, ValueError, "scale of shape (1, 2), got (1, 3)"),
    ("crop_resize", {"offset": zeros(1, 2).double()}, TypeError, "offset of dtype torch.float32, got torch.float64"),
    ("crop_resize", {"out_dtype": torch.uint8}, TypeError, "out_dtype float32"),
    ("crop_resize", {"boxes": elsewhere(BOXES)}, ValueError, "all tensors on one device"),
]


def call_of(op: str) -> Callable[..., Any]:
    return getattr(ops, op)


@pytest.mark.parametrize(("op", "change", "error", "message"), WRONG)
def test_eager(op: str, change: dict[str, Any], error: type[Exception], message: str) -> None:
    call_of(op)(**RIGHT[op])
    with pytest.raises(error, match=re.escape(f"{op}: expected {message}")):
        call_of(op)(**{**RIGHT[op], **change})


@pytest.mark.parametrize(("op", "change", "error", "message"), WRONG)
def test_compiled(op: str, change: dict[str, Any], error: type[Exception], message: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(call_of(op), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=re.escape(f"{op}: expected {message}")) as caught:
        compiled(**{**RIGHT[op], **change})
    assert isinstance(caught.value, (error, torch._dynamo.exc.TorchDynamoException))


def test_empty_batches_pass_through_everything_but_the_loss() -> None:
    def empty(op: str, *names: str) -> Any:
        return call_of(op)(**{name: value[:0] if name in names else value for name, value in RIGHT[op].items()})

    assert empty("patchify3d", "image").shape == (0, 16, 192)
    assert empty("unpatchify3d", "tokens").shape == (0, 12, 16, 16)
    assert empty("gather_patchify3d", "image", "ids_keep").shape == (0, 2, 192)
    assert [part.shape[0] for part in empty("random_cube_mask", "sample_ids")] == [0, 0, 0]
    assert [part.shape[0] for part in empty("cube_mask_from_noise", "noise")] == [0, 0, 0]
    assert empty("assemble_tokens", "visible", "ids_restore").shape == (0, 4, 8)
    assert empty("crop_resize", "layout", "boxes", "flips", "offset", "scale").shape == (0, 2, 4, 4)
    with pytest.raises(ValueError, match="got a batch of 0"):
        empty("reconstruction_loss", "prediction", "image", "mask")
