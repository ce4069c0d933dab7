# SPDX-License-Identifier: Apache-2.0
"""The published checkpoints, in and out, with every tensor accounted for.

One table (`_entries`) says under which name and shape each of our parameters is published; loading and
exporting both walk it. A .pth file is a pickle: `safe_load` reads it, which builds tensors and an
argparse.Namespace and runs nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spectralgpt.errors import UserError
from spectralgpt.models.autoencoder import Autoencoder
from spectralgpt.models.base import SpectralModel
from spectralgpt.models.config import ModelConfig
from spectralgpt.models.safe_load import load_tensors
from spectralgpt.nn import resample_spatial

_DECODER = re.compile(r"decoder_|mask_token$")
_FUSED = re.compile(r"\.attn\.(to_qkv|qkv)\.")


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of a checkpoint and of every parameter of the model, by published name.

    Attributes:
        loaded: copied as they are.
        resized: positions resampled to the model's image size, moved to its bands, or summed to its flat form.
        missing: parameters that the checkpoint does not have; they keep their values.
        unexpected: tensors that the model has no place for.
        mismatched: of a shape that cannot be converted, with both shapes; the parameters keep their values.
        unused: the checkpoint's decoder, where the model has none; no error.
    """

    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line per kind that has entries."""
        kinds = ("resized", "missing", "unexpected", "mismatched", "unused")
        lines = [f"loaded {len(self.loaded)} tensors"]
        lines += [f"{kind} {len(keys)}: {', '.join(keys)}" for kind in kinds if (keys := getattr(self, kind))]
        return "\n".join(lines)


class _Entry(NamedTuple):
    key: str
    shape: tuple[int, ...]
    parameter: nn.Parameter
    rows: slice  # of the parameter; q, k and v share one


def load_reference_checkpoint(
    model: SpectralModel, source: str | Path | Mapping[str, Any], *, strict: bool = True
) -> LoadReport:
    """Copies a published checkpoint into a model; spatial positions of another image size are resampled.

    Args:
        model: an autoencoder; or an encoder or task model: the checkpoint's decoder is then reported as unused. A model
            for maps takes on the published head where the checkpoint has it.
        source: path of a .pth file, or a state dict with published names; with or without a `module.` prefix,
            separate q, k, v or fused to_qkv, by itself or under the key "model".
        strict: raise unless every parameter found its tensor and every tensor its place; the model is then untouched.

    A model for other bands than the checkpoint's is made in two steps: load into a model with the checkpoint's
    bands (a sensor card), then `model.adapt_bands(...)`.

    Raises:
        UserError: the file is missing or is no checkpoint of tensors, or `strict` and something is left over.
    """
    tensors = split_fused(unwrap(source))
    with model.expecting(tensors):
        return _load(model, tensors, strict)


def _load(model: SpectralModel, tensors: dict[str, Tensor], strict: bool) -> LoadReport:
    joined = _join_positions(model, tensors)
    copies: list[tuple[_Entry, Tensor]] = []
    found: dict[str, list[str]] = {kind: [] for kind in ("loaded", "resized", "missing", "mismatched")}
    for entry in _entries(model):
        tensor = tensors.pop(entry.key, None)
        fitted = None if tensor is None else _fit(tensor, entry, model.config)
        if tensor is None:
            found["missing"].append(entry.key)
        elif fitted is None:
            found["mismatched"].append(f"{entry.key} (expected {entry.shape}, got {tuple(tensor.shape)})")
        else:
            as_it_is = fitted is tensor and entry.key not in joined
            found["loaded" if as_it_is else "resized"].append(joined.get(entry.key, entry.key))
            copies.append((entry, fitted))
    unused = [key for key in tensors if _DECODER.match(key)] if not isinstance(model, Autoencoder) else []
    unexpected = [key for key in tensors if key not in unused]
    kinds = {kind: tuple(keys) for kind, keys in found.items()}
    report = LoadReport(**kinds, unexpected=tuple(unexpected), unused=tuple(unused))
    if strict and (report.missing or report.unexpected or report.mismatched):
        raise UserError(
            f"reference checkpoint: expected every tensor to find its place (strict=False accepts less), got {report}"
        )
    with torch.no_grad():
        for entry, tensor in copies:
            entry.parameter[entry.rows].copy_(tensor.reshape(entry.parameter[entry.rows].shape))
    return report


def reference_state_dict(model: SpectralModel, *, grads: bool = False) -> dict[str, Tensor]:
    """A model's parameters, or their gradients, under the published names and shapes, copied.

    Raises:
        UserError: gradients are asked for and a parameter has none.
    """
    state = {}
    for entry in _entries(model):
        values = entry.parameter.grad if grads else entry.parameter.detach()
        if values is None:
            raise UserError(
                f"reference_state_dict: expected a gradient for {entry.key}, got none; call backward() first"
            )
        state[entry.key] = values[entry.rows].reshape(entry.shape).clone()
    return state


def _entries(model: SpectralModel) -> Iterator[_Entry]:
    """Every parameter with its published name and shape; the fused qkv as three."""
    for name, parameter in model.named_parameters():
        key = name.removeprefix("encoder.")
        for ours, published in model.published_names.items():
            key = key.replace(ours, published)
        shape = tuple(parameter.shape)
        if "pos_embed" in key or key == "mask_token":
            shape = (1, *shape)
        elif key == "patch_embed.proj.weight":
            shape = (shape[0], 1, *model.config.patch_size)
        if ".attn.qkv." not in key:
            yield _Entry(key, shape, parameter, slice(None))
            continue
        rows = shape[0] // 3
        for i, part in enumerate("qkv"):
            block = slice(i * rows, (i + 1) * rows)
            yield _Entry(key.replace(".qkv.", f".{part}."), (rows, *shape[1:]), parameter, block)


def _fit(tensor: Tensor, entry: _Entry, config: ModelConfig) -> Tensor | None:
    """The tensor itself, the same resampled in space, or None where the shape cannot be converted."""
    if tuple(tensor.shape) == entry.shape:
        return tensor
    spatial = re.search(r"pos_embed(_spatial)?$", entry.key)
    if not spatial or tensor.dim() != 3 or tensor.shape[0] != 1 or tensor.shape[2] != entry.shape[2]:
        return None
    groups = 1 if spatial[1] else len(config.groups)
    side = math.isqrt(tensor.shape[1] // groups)
    if groups * side * side != tensor.shape[1]:  # published images are square
        return None
    return resample_spatial(tensor[0].float(), (side, side), config.grid[1:])


def _join_positions(model: SpectralModel, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Separable positions summed where the model has flat ones; the flat keys with what they were made of."""
    joined = {}
    for key in [entry.key for entry in _entries(model) if entry.key.endswith("pos_embed")]:
        parts = (f"{key}_temporal", f"{key}_spatial")
        if key not in tensors and all(part in tensors and tensors[part].dim() == 3 for part in parts):
            spectral, spatial = (tensors.pop(part) for part in parts)
            tensors[key] = (spectral[:, :, None] + spatial[:, None]).flatten(1, 2)
            joined[key] = f"{key} ({' + '.join(parts)})"
    return joined


def unwrap(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, without wrappers' prefixes."""
    state = source if isinstance(source, Mapping) else _read(Path(source))
    state = state["model"] if isinstance(state.get("model"), Mapping) else state
    others = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if others or not state:
        raise UserError(f"reference checkpoint: expected tensors by name, got {', '.join(others[:5]) or 'nothing'}")
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def split_fused(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fused to_qkv (or qkv) matrices and biases as the three they are made of."""
    split: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if _FUSED.search(key) and tensor.dim() > 0 and tensor.shape[0] % 3 == 0:
            split |= {
                _FUSED.sub(f".attn.{part}.", key): rows for part, rows in zip("qkv", tensor.chunk(3), strict=True)
            }
        else:
            split[key] = tensor
    return split


def _read(path: Path) -> Mapping[str, Any]:
    content = load_tensors(path, "a checkpoint of tensors only")
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: expected a dictionary of tensors, got {type(content).__name__}")
    return content
