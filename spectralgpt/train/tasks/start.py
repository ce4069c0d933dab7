# SPDX-License-Identifier: Apache-2.0
"""What a fine-tuning must know of the weights it starts from: the encoder's shape and how its pixels were normalised.

Both go into the run's checkpoints, so that a run goes on when the weights are no longer where they were.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spectralgpt.data.normalize import Normalizer
from spectralgpt.data.scene_set import DataConfig
from spectralgpt.errors import UserError
from spectralgpt.models.checkpoint import CONFIG_FILE, read_pretrained
from spectralgpt.models.config import SIZES
from spectralgpt.models.reference_checkpoint import LoadReport, unwrap
from spectralgpt.train.model_section import ModelSection

_SHAPE = ("name", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "position_embedding")


@dataclass(frozen=True)
class Start:
    """Of the weights to start from.

    Attributes:
        shape: fields of the encoder's `ModelConfig`; empty without weights.
        normalization: as the data layer writes it; None where the weights do not tell.
        bands: names of the bands the encoder saw; none where the weights do not tell.
    """

    shape: dict[str, Any]
    normalization: dict[str, Any] | None
    bands: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def model_fields(self, section: ModelSection) -> dict[str, Any]:
        """The fields of `ModelConfig` that weights and recipe decide together.

        Raises:
            UserError: the recipe names another size than that of the weights.
        """
        fields, plain = section.fields(), ModelSection()
        for key, value in self.shape.items():
            asked = getattr(section, key)
            if asked != getattr(plain, key) and asked != value:
                raise UserError(
                    f"model.{key}: expected {value} as in the weights {section.weights}, got {asked}; leave it out"
                )
            fields[key] = value
        return fields

    def normalizer(self, data: DataConfig, may_differ: bool) -> Normalizer | None:
        """The rule for pixels: that of the weights, or None where the data's own holds.

        Raises:
            UserError: the recipe asks for another rule and does not say that it may.
        """
        if self.normalization is None:
            return None
        fixed = self.normalization["method"] == "fixed"
        names = tuple(self.normalization["band_names"])
        own = Normalizer.from_dict(self.normalization) if fixed else Normalizer(self.normalization["method"], names)
        if data.normalization == "auto":
            return own
        asked = data.normalizer((1, 1))
        if asked.method == own.method and (not fixed or asked == own.select(asked.band_names)):
            return own
        if not may_differ:
            raise UserError(
                f"data.normalization: expected {own.method} as for the weights (auto takes it), got "
                f"{data.normalization}; --finetune.other_normalization true allows it"
            )
        return None


def told(weights: str, report: LoadReport) -> str:
    """A line about weights that were taken over; positions that moved are named, and all that was not found."""
    parts = [f"{len(report.loaded)} tensors as they are"]
    for word in ("resized", "missing", "unexpected", "mismatched"):
        if keys := getattr(report, word):
            parts.append(f"{len(keys)} {word} ({', '.join(keys)})")
    if report.unused:
        parts.append(f"{len(report.unused)} of a decoder or head left")
    return f"weights     {weights}: {', '.join(parts)}"


def read_start(weights: str | None) -> Start:
    """Looks at weights.

    Raises:
        UserError: there are none, or they are no encoder's.
    """
    if weights is None:
        return Start({}, None)
    path = Path(weights)
    folder = path / "model" if (path / "model" / CONFIG_FILE).is_file() else path
    if folder.is_dir():
        saved = read_pretrained(folder)
        config = {**saved.config.to_dict(), "patch_size": tuple(saved.config.patch_size)}
        return Start({key: config[key] for key in _SHAPE}, saved.normalization, saved.config.band_names or ())
    return Start(_published_shape(unwrap(weights), weights), None)


def _published_shape(tensors: dict[str, Any], weights: str) -> dict[str, Any]:
    """From the published names and shapes of tensors."""
    kernel = tensors.get("patch_embed.proj.weight")
    blocks = [int(match[1]) for key in tensors if (match := re.match(r"blocks\.(\d+)\.", key))]
    if kernel is None or kernel.dim() != 5 or not blocks:
        raise UserError(f"model.weights: expected an encoder's weights in {weights}, found none under known names")
    dim, depth = kernel.shape[0], 1 + max(blocks)
    name = next((name for name, size in SIZES.items() if size[:2] == (dim, depth)), None)
    if name is None:
        raise UserError(f"model.weights: expected a known size in {weights}, got {depth} blocks of {dim} channels")
    hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
    flat = "pos_embed" in tensors and "pos_embed_spatial" not in tensors
    return {
        "name": name,
        "patch_size": tuple(kernel.shape[2:]),
        **dict(zip(("embed_dim", "depth", "num_heads"), SIZES[name][:3], strict=True)),
        "mlp_ratio": hidden / dim,
        "position_embedding": "flat" if flat else "separable",
    }
