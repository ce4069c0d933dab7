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

from spectralgpt.ops.reference import sum_dtype

_C: ModuleType | None
try:
    from spectralgpt import _C
except ImportError as error:
    _C = None
    _IMPORT_ERROR = str(error)

_DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_PIXEL_CODES = {torch.uint8: 0, torch.uint16: 1, torch.int16: 2}
_FLOATING_PIXELS = 3


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
    """Gradient of the gather for the image; 16-bit gradients are summed in float32."""
    if grad.element_size() == 2:
        wide = output.new_empty(output.shape, dtype=torch.float32)
        gather_patchify3d_backward(wide, grad.float(), ids_keep, image_size, patch_size)
        output.copy_(wide)
        return
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
    token_weight, spectral_weight = token_weight.to(total.dtype), spectral_weight.to(total.dtype)
    image = _loss_image(image, prediction)
    scratch = torch.empty(_loss_scratch(image, patch_size, normalize_targets), dtype=torch.float64, device=image.device)
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
        token_weight.data_ptr(),
        spectral_weight.data_ptr(),
        _DTYPE_CODES[prediction.dtype],
        _DTYPE_CODES[image.dtype],
        normalize_targets,
        spectral_raw,
        *_cube(image, patch_size),
    )


def reconstruction_loss_scale(_: None, gradient: Tensor, grad_total: Tensor, scale: Tensor) -> None:
    """Gradient times its factors, in place; a product of 1 touches nothing."""
    _launch(
        "reconstruction_loss_scale",
        gradient,
        gradient.data_ptr(),
        grad_total.data_ptr(),
        scale.data_ptr(),
        gradient.numel(),
        _DTYPE_CODES[gradient.dtype],
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


def assemble_tokens(
    output: Tensor,
    visible: Tensor,
    mask_token: Tensor,
    positions: Tensor,
    ids_restore: Tensor,
    out_dtype: torch.dtype,
) -> None:
    """Visible tokens, mask token and positions to the whole sequence."""
    wide = sum_dtype(visible, mask_token, positions)
    whole = output
    if (wide == torch.float64) != (out_dtype == torch.float64):  # rounded, or widened, once at the end
        whole = output.new_empty(output.shape, dtype=wide)
    visible = (visible.to(wide) if wide == torch.float64 else visible).contiguous()
    mask_token, positions = mask_token.to(wide).contiguous(), positions.to(wide).contiguous()
    ids_restore = ids_restore.contiguous()
    _launch(
        "assemble_tokens",
        visible,
        whole.data_ptr(),
        visible.data_ptr(),
        mask_token.data_ptr(),
        positions.data_ptr(),
        ids_restore.data_ptr(),
        _DTYPE_CODES[whole.dtype],
        _DTYPE_CODES[visible.dtype],
        *_assemble_sizes(visible, ids_restore),
    )
    if whole is not output:
        output.copy_(whole)


def assemble_tokens_backward(
    outputs: tuple[Tensor, Tensor, Tensor],
    grad: Tensor,
    ids_restore: Tensor,
    num_keep: int,
    visible_dtype: torch.dtype,
    mask_dtype: torch.dtype,
    positions_dtype: torch.dtype,
) -> None:
    """Gradients of the assembly, each in the dtype sums are taken in, then in its own."""
    assert _C is not None
    wide = sum_dtype(grad)
    own = wide if torch.float64 in (wide, visible_dtype) else visible_dtype  # kernels know float64 with itself only
    visible, mask_token, positions = (
        output if output.dtype == dtype else output.new_empty(output.shape, dtype=dtype)
        for output, dtype in zip(outputs, (own, wide, wide), strict=True)
    )
    grad, ids_restore = grad.contiguous(), ids_restore.contiguous()
    scratch = positions.new_empty(_C.assemble_scratch(*positions.shape))
    _launch(
        "assemble_tokens_backward",
        grad,
        visible.data_ptr(),
        mask_token.data_ptr(),
        positions.data_ptr(),
        scratch.data_ptr(),
        grad.data_ptr(),
        ids_restore.data_ptr(),
        _DTYPE_CODES[grad.dtype],
        _DTYPE_CODES[visible.dtype],
        *_assemble_sizes(visible, ids_restore),
    )
    for output, result in zip(outputs, (visible, mask_token, positions), strict=True):
        if result is not output:
            output.copy_(result)


def _assemble_sizes(visible: Tensor, ids_restore: Tensor) -> tuple[int, int, int, int]:
    batch, num_keep, channels = visible.shape
    return batch, num_keep, ids_restore.shape[1], channels


def crop_resize(
    output: Tensor,
    pixels: Tensor,
    layout: Tensor,
    boxes: Tensor,
    flips: Tensor,
    size: int,
    bands: int,
    offset: Tensor,
    scale: Tensor,
    antialias: bool,
    out_dtype: torch.dtype,
) -> None:
    """Boxes of a packed batch, resized, flipped and normalised."""
    assert _C is not None
    pixels, layout, boxes, flips, offset, scale = (
        tensor.contiguous() for tensor in (pixels, layout, boxes, flips, offset, scale)
    )
    scratch_size, scratch = 0, None
    if pixels.device.type == "cpu" and layout.numel():
        side = max(0, min(int(boxes[:, 2:].max()), pixels.numel()))
        scratch_size = _C.crop_resize_scratch(size, side, 8 if pixels.dtype == torch.float64 else 4)
        threads = min(torch.get_num_threads(), layout.shape[0])
        scratch = torch.empty(threads * scratch_size, dtype=torch.uint8)
    _launch(
        "crop_resize",
        pixels,
        output.data_ptr(),
        *(tensor.data_ptr() for tensor in (pixels, layout, boxes, flips, offset, scale)),
        0 if scratch is None else scratch.data_ptr(),
        _PIXEL_CODES.get(pixels.dtype, _FLOATING_PIXELS),
        _DTYPE_CODES.get(pixels.dtype, -1),
        _DTYPE_CODES[out_dtype],
        antialias,
        layout.shape[0],
        bands,
        size,
        pixels.numel(),
        scratch_size,
    )
