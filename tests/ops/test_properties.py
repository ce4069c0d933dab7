# SPDX-License-Identifier: Apache-2.0
"""Random shapes, dtypes, strides and flaws: 300 calls of each op on the CPU kernels, some on the emulated CUDA kernels.

Deterministic: hypothesis derives its examples from the test itself and keeps no database. `test_catches` plants bugs
and wants every one of them found.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectralgpt import ops
from spectralgpt.ops import _native
from tests.ops.conftest import use_emulated
from tests.ops.strategies import STRATEGIES
from tests.ops.trials import Trial, judge

OURS = (ValueError, TypeError, IndexError)
NATIVE = bool(_native.devices())
ALWAYS_THE_SAME: dict[str, Any] = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
}


def search(op: str, examples: int, **options: Any) -> None:
    """Judges so many calls of an op."""

    @settings(max_examples=examples, **ALWAYS_THE_SAME, **options)
    @given(STRATEGIES[op]())
    def calls(trial: Trial) -> None:
        judge(trial)

    calls()


def search_emulated(op: str, examples: int, module: ModuleType) -> None:
    """The same on the CUDA kernels under emulation, in any order of the threads; traps are RuntimeError there."""

    @settings(max_examples=examples, **ALWAYS_THE_SAME)
    @given(STRATEGIES[op](), st.integers(0, 2))
    def calls(trial: Trial, schedule: int) -> None:
        module.set_schedule(schedule)
        judge(trial, (*OURS, RuntimeError))

    calls()


@pytest.mark.parametrize("op", STRATEGIES)
def test_cpu_kernels(op: str) -> None:
    search(op, 300 if NATIVE else 60)


@pytest.mark.skipif(not NATIVE, reason="the native module is hidden")
@pytest.mark.parametrize("examples", [20, pytest.param(300, marks=pytest.mark.acceptance)])
@pytest.mark.parametrize("op", STRATEGIES)
def test_emulated_cuda_kernels(op: str, examples: int, emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    use_emulated(monkeypatch, emulated)
    search_emulated(op, examples, emulated)


# ------------------------------------------------------------------------------------------------ the harness can fail


def forgets_strides(patchify3d: Callable[..., Tensor], image: Tensor, patch_size: Any) -> Tensor:
    end = image.storage_offset() + image.numel()
    in_place = image.untyped_storage().nbytes() >= end * image.element_size()
    dense = torch.empty(image.shape, device="meta").stride()
    return patchify3d(image.as_strided(image.shape, dense) if in_place else image, patch_size)


def returns_a_view(unpatchify3d: Callable[..., Tensor], tokens: Tensor, image_size: Any, patch_size: Any) -> Tensor:
    image = unpatchify3d(tokens, image_size, patch_size)
    return tokens.reshape(image.shape) if tokens.shape[1:2] == (1,) else image


def is_off_by_one(gather_patchify3d: Callable[..., Tensor], image: Tensor, ids_keep: Tensor, patch_size: Any) -> Tensor:
    tokens = gather_patchify3d(image, ids_keep, patch_size)
    return gather_patchify3d(image, ids_keep - (ids_keep == 20).long(), patch_size) if len(tokens) else tokens


def writes_its_input(random_cube_mask: Callable[..., Any], sample_ids: Tensor, *arguments: Any, **key: Any) -> Any:
    mask = random_cube_mask(sample_ids, *arguments, **key)
    sample_ids.abs_()
    return mask


def accepts_a_wrong_ratio(cube_mask_from_noise: Callable[..., Any], noise: Tensor, mask_ratio: float) -> Any:
    return cube_mask_from_noise(noise, mask_ratio if 0 <= mask_ratio < 1 else 0.5)


def leaves_a_row_out(assemble_tokens: Callable[..., Tensor], **arguments: Any) -> Tensor:
    out = assemble_tokens(**arguments)
    if out.shape[1] > 25:
        out[-1:, -1] = torch.empty_like(out[-1:, -1])
    return out


def scores_invalid_tokens(reconstruction_loss: Callable[..., Any], **arguments: Any) -> Any:
    return reconstruction_loss(**{**arguments, "valid": None})


def rounds_the_image(reconstruction_loss: Callable[..., Any], image: Tensor, **arguments: Any) -> Any:
    return reconstruction_loss(image=image.to(torch.bfloat16).to(image.dtype), **arguments)


def looks_past_the_box(crop_resize: Callable[..., Tensor], **arguments: Any) -> Tensor:
    out, boxes, layout = crop_resize(**arguments), arguments["boxes"].clone(), arguments["layout"]
    boxes[:, 3] += boxes[:, 1] + boxes[:, 3] < layout[:, 2]
    wider = crop_resize(**{**arguments, "boxes": boxes})
    return torch.cat([out[..., :-1], wider[..., -1:]], -1)


def speaks_another_language(patchify3d: Callable[..., Tensor], image: Tensor, patch_size: Any) -> Tensor:
    try:
        return patchify3d(image, patch_size)
    except ValueError as error:
        raise ValueError("shape mismatch") from error


PLANTS: list[tuple[str, Callable[..., Any], str]] = [
    ("patchify3d", forgets_strides, "values differ"),
    ("patchify3d", speaks_another_language, "not our message"),
    ("unpatchify3d", returns_a_view, "aliases an input"),
    ("gather_patchify3d", is_off_by_one, "values differ"),
    ("random_cube_mask", writes_its_input, "input was changed"),
    ("cube_mask_from_noise", accepts_a_wrong_ratio, "accepted: (ratio of 1|negative ratio|no number)"),
    ("assemble_tokens", leaves_a_row_out, "error nan"),
    ("reconstruction_loss", scores_invalid_tokens, "error"),
    ("reconstruction_loss", rounds_the_image, "error"),
    ("crop_resize", looks_past_the_box, "error nan|error [0-9]"),
]


@pytest.mark.parametrize(("op", "plant", "message"), PLANTS, ids=[f"{op}-{plant.__name__}" for op, plant, _ in PLANTS])
def test_catches(op: str, plant: Callable[..., Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, op, functools.partial(plant, getattr(ops, op)))
    with pytest.raises(AssertionError, match=message):
        search(op, 300, phases=[Phase.generate], report_multiple_bugs=False)
