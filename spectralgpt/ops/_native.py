# SPDX-License-Identifier: Apache-2.0
"""The door to the compiled module `spectralgpt._C`: the only file that imports it or takes the address of a tensor.

Every function writes into outputs that the op's `meta` allocated and checked. The C++ side knows neither torch nor
Python: it gets addresses, sizes and strides in the field order of the params structs in `csrc/ops/*.h`, then the
thread count (CPU) or device and stream (CUDA).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

_C: ModuleType | None
try:
    from spectralgpt import _C
except ImportError as error:
    _C = None
    _IMPORT_ERROR = str(error)

_DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def devices() -> tuple[str, ...]:
    """Device types with native kernels in this build."""
    if _C is None:
        return ()
    return ("cpu", "cuda") if _C.build_info()["cuda"] else ("cpu",)


def build_info() -> dict[str, str | bool]:
    """Compiler, CUDA architectures and flags of the native module; empty without one."""
    return {} if _C is None else dict(_C.build_info())


def reason() -> str:
    """Why an op may have no native kernel."""
    if _C is None:
        return f"spectralgpt._C cannot be imported: {_IMPORT_ERROR}"
    return f"spectralgpt._C was built for {' and '.join(devices())}"


def _where(tensor: Tensor) -> tuple[int, ...]:
    """The launch target: thread count on the CPU, device index and stream on CUDA."""
    if tensor.device.type == "cuda":
        return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream
    return (torch.get_num_threads(),)


def _launch(name: str, anchor: Tensor, *arguments: object) -> None:
    getattr(_C, f"{name}_{anchor.device.type}")(*arguments, *_where(anchor))


def _cube(image: Tensor, patch_size: Sequence[int]) -> tuple[int, ...]:
    """The fields of `Cube`: sizes, strides in elements, patch."""
    return (*image.shape, *image.stride(), *patch_size)


def patchify3d(output: Tensor, image: Tensor, patch_size: Sequence[int]) -> None:
    """Image cube to tokens."""
    _launch("patchify3d", image, output.data_ptr(), image.data_ptr(), image.element_size(), *_cube(image, patch_size))


def unpatchify3d(output: Tensor, tokens: Tensor, image_size: Sequence[int], patch_size: Sequence[int]) -> None:
    """Tokens to image cube."""
    tokens = tokens.contiguous()
    _launch(
        "unpatchify3d", tokens, output.data_ptr(), tokens.data_ptr(), tokens.element_size(), *_cube(output, patch_size)
    )


def gather_patchify3d(output: Tensor, image: Tensor, ids_keep: Tensor, patch_size: Sequence[int]) -> None:
    """Visible tokens of the image cube."""
    ids_keep = ids_keep.contiguous()
    _launch(
        "gather_patchify3d",
        image,
        output.data_ptr(),
        image.data_ptr(),
        ids_keep.data_ptr(),
        ids_keep.shape[1],
        image.element_size(),
        _DTYPE_CODES.get(image.dtype, -1),
        *_cube(image, patch_size),
    )


def gather_patchify3d_backward(
    output: Tensor, grad: Tensor, ids_keep: Tensor, image_size: Sequence[int], patch_size: Sequence[int]
) -> None:
    """Gradient of the gather for the image."""
    grad, ids_keep = grad.contiguous(), ids_keep.contiguous()
    _launch(
        "gather_patchify3d_backward",
        grad,
        output.data_ptr(),
        grad.data_ptr(),
        ids_keep.data_ptr(),
        ids_keep.shape[1],
        grad.element_size(),
        _DTYPE_CODES[grad.dtype],
        *_cube(output, patch_size),
    )


def random_cube_mask(
    outputs: tuple[Tensor, Tensor, Tensor],
    sample_ids: Tensor,
    num_tokens: int,
    num_keep: int,
    seed: Tensor,
    step: Tensor,
) -> None:
    """Masks keyed by (seed, step, sample id)."""
    sample_ids = sample_ids.contiguous()
    _launch(
        "random_cube_mask",
        sample_ids,
        *(output.data_ptr() for output in outputs),
        sample_ids.data_ptr(),
        seed.data_ptr(),
        step.data_ptr(),
        sample_ids.shape[0],
        num_tokens,
        num_keep,
    )


def cube_mask_from_noise(outputs: tuple[Tensor, Tensor, Tensor], noise: Tensor, num_keep: int) -> None:
    """Masks by the order of given noise."""
    noise = noise.contiguous()
    order = torch.empty_like(outputs[1])
    _launch(
        "cube_mask_from_noise",
        noise,
        *(output.data_ptr() for output in outputs),
        order.data_ptr(),
        noise.data_ptr(),
        _DTYPE_CODES[noise.dtype],
        noise.shape[0],
        noise.shape[1],
        num_keep,
    )


def reconstruction_loss(
    outputs: tuple[Tensor, ...],
    prediction: Tensor,
    image: Tensor,
    mask: Tensor,
    patch_size: Sequence[int],
    valid: Tensor | None,
    normalize_targets: bool,
    spectral_raw: bool,
    token_weight: Tensor,
    spectral_weight: Tensor,
    with_gradient: bool,
) -> None:
    """Loss terms and gradient in one pass."""
    total, token, spectral, gradient, scale = outputs
    prediction, mask = prediction.contiguous(), mask.contiguous()
    valid = None if valid is None else valid.contiguous()
    weights = torch.stack([token_weight, spectral_weight]).to(torch.float64)
    image = _loss_image(image, prediction)
    scratch = torch.zeros(_loss_scratch(image, patch_size, normalize_targets), dtype=torch.float64, device=image.device)
    _launch(
        "reconstruction_loss",
        prediction,
        total.data_ptr(),
        token.data_ptr(),
        spectral.data_ptr(),
        scale.data_ptr(),
        gradient.data_ptr() if with_gradient else 0,
        scratch.data_ptr(),
        prediction.data_ptr(),
        image.data_ptr(),
        mask.data_ptr(),
        0 if valid is None else valid.data_ptr(),
        weights.data_ptr(),
        _DTYPE_CODES[prediction.dtype],
        _DTYPE_CODES[image.dtype],
        normalize_targets,
        spectral_raw,
        *_cube(image, patch_size),
    )


def _loss_image(image: Tensor, prediction: Tensor) -> Tensor:
    """The loss is built for an image of the prediction's dtype, or float32 beside a 16-bit prediction."""
    if image.dtype == prediction.dtype or (image.dtype == torch.float32 and prediction.dtype != torch.float64):
        return image
    return image.to(torch.float64 if prediction.dtype == torch.float64 else torch.float32)


def _loss_scratch(image: Tensor, patch_size: Sequence[int], normalize_targets: bool) -> int:
    """Doubles that the loss needs: counts, two partial sums per unit of positions, target statistics per token."""
    assert _C is not None
    return int(_C.reconstruction_loss_scratch(normalize_targets, *_cube(image, patch_size)))
