# SPDX-License-Identifier: Apache-2.0
"""A call of an op, valid or with one flaw, and the judge of the answer.

A valid call must equal the reference, a flawed one must end in our own error. `strategies.py` draws the calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectralgpt import ops
from spectralgpt.ops import reference

BITWISE = {"patchify3d", "unpatchify3d", "gather_patchify3d", "random_cube_mask", "cube_mask_from_noise"}


@dataclass
class Trial:
    """One call of an op by its public arguments; `flaw` says what is wrong with them, if anything."""

    op: str
    arguments: dict[str, Any]
    flaw: str = ""

    def __repr__(self) -> str:  # what hypothesis prints of a failing call
        parts = [f"{name}={_words(value)}" for name, value in self.arguments.items()]
        return f"{self.op}({', '.join(parts)}){' flaw: ' + self.flaw if self.flaw else ''}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def run(self) -> tuple[Tensor, ...]:
        """The op's outputs; for the loss also the gradient."""
        if self.op == "reconstruction_loss":
            return _loss_and_gradient(self.arguments)
        if self.op.endswith("_backward"):
            return _tuple(getattr(torch.ops.spectralgpt, self.op)(*self.arguments.values()))
        return _tuple(getattr(ops, self.op)(**self.arguments))

    def expected(self, exact: bool = False) -> tuple[Tensor, ...]:
        """The same from the reference, in the arguments' dtypes or in float64."""
        arguments = {name: _widened(value) for name, value in self.arguments.items()} if exact else self.arguments
        if exact and "pixels" in arguments:
            arguments["pixels"] = arguments["pixels"].double()
        return _tuple(REFERENCES[self.op](**arguments))


def judge(trial: Trial, errors: tuple[type[Exception], ...] = (ValueError, TypeError, IndexError)) -> None:
    """Right result or right error; inputs untouched, outputs complete and their own memory."""
    inputs = [value for value in trial.arguments.values() if isinstance(value, Tensor) and not value.is_meta]
    before = [_bytes_behind(tensor).clone() for tensor in inputs]
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN and maxima: what a kernel leaves out shows
    try:
        outputs, error = trial.run(), None
    except errors as caught:
        outputs, error = (), caught
    finally:
        torch.use_deterministic_algorithms(False)
    for tensor, old in zip(inputs, before, strict=True):
        assert torch.equal(_bytes_behind(tensor), old), "an input was changed"
    if trial.flaw:
        assert error is not None, f"accepted: {trial.flaw}"
        prefixes = (trial.op.removesuffix("_backward"),)
        assert str(error).startswith(prefixes), f"not our message: {error}"
        return
    assert error is None, f"refused a valid call: {error}"
    owned = {tensor.untyped_storage().data_ptr() for tensor in inputs} - {0}
    assert not owned & {output.untyped_storage().data_ptr() for output in outputs}, "an output aliases an input"
    _compare(trial, outputs)


def _compare(trial: Trial, outputs: tuple[Tensor, ...]) -> None:
    """Bitwise for permutations and masks; else error against float64 at most twice the reference's and a floor."""
    expected = trial.expected()
    for ours, theirs in zip(outputs, expected, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        if trial.op in BITWISE:
            assert torch.equal(_bytes_of(ours), _bytes_of(theirs)), "values differ from the reference"
    if trial.op in BITWISE:
        return
    for ours, theirs, truth in zip(outputs, expected, trial.expected(exact=True), strict=True):
        assert_within_twice(ours, theirs, truth, _floor(trial, ours))


def assert_within_twice(ours: Tensor, theirs: Tensor, truth: Tensor, floor: float = 2e-6) -> None:
    """Error against float64 at most twice that of the same-dtype reference; `floor` x the largest value is free."""
    if truth.numel():
        free = floor * float(truth.abs().max())
        error, allowed = (float((x.double() - truth).abs().max()) for x in (ours, theirs))
        assert error <= 2 * allowed + free, f"error {error:.3g}, the reference's {allowed:.3g}, floor {free:.3g}"


def _floor(trial: Trial, output: Tensor) -> float:
    """What is forgiven where the reference was lucky, as a part of the largest value: roundings of the accumulator."""
    floats = [v for v in trial.arguments.values() if isinstance(v, Tensor) and v.is_floating_point() and v.dim()]
    double = all(tensor.dtype == torch.float64 for tensor in (*floats, output))
    eps = torch.finfo(torch.float64 if double else torch.float32).eps
    if (
        trial.op == "reconstruction_loss"
    ):  # up to 75 groups are summed; a 16-bit gradient is stored, scaled, rounded again
        return 90 * eps + torch.finfo(output.dtype).eps / 2
    return 16 * eps


# ----------------------------------------------------------------------------------------------------------- reference


def _loss_and_gradient(arguments: dict[str, Any]) -> tuple[Tensor, ...]:
    prediction = arguments["prediction"].detach().requires_grad_(arguments["prediction"].is_floating_point())
    loss = ops.reconstruction_loss(**{**arguments, "prediction": prediction})
    loss.total.backward()
    assert prediction.grad is not None
    return (*(term.detach() for term in loss), prediction.grad)


def _loss_reference(
    prediction: Tensor,
    image: Tensor,
    mask: Tensor,
    patch_size: tuple[int, int, int],
    valid: Tensor | None,
    normalize_targets: bool,
    spectral_targets: str,
    token_weight: float | Tensor,
    spectral_weight: float | Tensor,
) -> tuple[Tensor, ...]:
    scalar = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    weights = (torch.as_tensor(weight, dtype=scalar) for weight in (token_weight, spectral_weight))
    raw = normalize_targets and spectral_targets == "raw"
    *terms, gradient, scale = reference.reconstruction_loss(
        prediction, image, mask, patch_size, valid, normalize_targets, raw, *weights, True
    )
    return (*terms, gradient * scale)


def _assemble_reference(
    visible: Tensor, mask_token: Tensor, positions: Tensor, ids_restore: Tensor, out_dtype: torch.dtype | None
) -> Tensor:
    widest = torch.promote_types(torch.promote_types(visible.dtype, mask_token.dtype), positions.dtype)
    return reference.assemble_tokens(visible, mask_token, positions, ids_restore, out_dtype or widest)


def _mask_reference(
    sample_ids: Tensor, num_tokens: int, mask_ratio: float, seed: int | Tensor, step: int | Tensor
) -> tuple[Tensor, ...]:
    keys = (torch.as_tensor(key, dtype=torch.int64) for key in (seed, step))
    return reference.random_cube_mask(sample_ids, num_tokens, int(num_tokens * (1 - mask_ratio)), *keys)


def _noise_reference(noise: Tensor, mask_ratio: float) -> tuple[Tensor, ...]:
    return reference.cube_mask_from_noise(noise, int(noise.shape[1] * (1 - mask_ratio)))


REFERENCES: dict[str, Callable[..., Any]] = {
    "patchify3d": reference.patchify3d,
    "unpatchify3d": reference.unpatchify3d,
    "gather_patchify3d": reference.gather_patchify3d,
    "gather_patchify3d_backward": reference.gather_patchify3d_backward,
    "random_cube_mask": _mask_reference,
    "cube_mask_from_noise": _noise_reference,
    "assemble_tokens": _assemble_reference,
    "assemble_tokens_backward": reference.assemble_tokens_backward,
    "reconstruction_loss": _loss_reference,
    "crop_resize": reference.crop_resize,
}


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(value)


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.double()
    return torch.float64 if isinstance(value, torch.dtype) else value


def _bytes_of(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point():  # torch's gather quiets signalling NaNs: one NaN is as good as another
        tensor = tensor.masked_fill(tensor.isnan(), float("nan"))
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor).view(-1).view(torch.uint8)


def _bytes_behind(tensor: Tensor) -> Tensor:
    """The tensor's whole storage, what lies between its strides included."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.detach().untyped_storage())


def _words(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    if value.numel() <= 12 and not value.is_meta:
        return f"{value.tolist()} {value.dtype} strides {value.stride()}"
    return f"{tuple(value.shape)} {value.dtype} strides {value.stride()} offset {value.storage_offset()}"
