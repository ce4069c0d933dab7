# SPDX-License-Identifier: Apache-2.0
"""The section of a recipe that says what the model is, with its presets of the loss."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class ModelSection:
    """The model: a named size, its loss, and what differs from it; data and stages give bands and image size.

    Attributes:
        weights: what the encoder of every task but pretrain starts from, its sizes included: the folder of a run or of
            `save_pretrained`, or a published .pth file. Null draws fresh ones.
        name: size; it gives every width and depth left at 0. Null is that of the weights, or tiny.
        loss: preset for the four keys that follow: as published (raw tokens and spectra summed over the groups), the
            same with each token normalised, or hidden tokens alone. Null in a key is the preset's value.
        normalize_targets: rebuild each token at zero mean and unit variance.
        spectral_targets: tokens that the spectral term sums: the ones scored, or always the raw ones.
        token_weight: weight of the error of the hidden tokens.
        spectral_weight: weight of the error of the spectra summed over the band groups.
        patch_size: bands, rows and columns of a token.
        embed_dim: channels of the encoder.
        depth: blocks of the encoder.
        num_heads: attention heads of the encoder.
        mlp_ratio: hidden width of an MLP relative to its input.
        drop_path: chance that the last encoder block skips a branch in training.
        position_embedding: one vector for space plus one for the spectrum, or one per token.
        position_init: what positions start from: small normal values, as published, or sines and cosines of row and
            column, which learns much faster from scratch.
        decoder_embed_dim: channels of the decoder.
        decoder_depth: blocks of the decoder.
        decoder_num_heads: attention heads of the decoder.
    """

    weights: str | None = None
    name: Literal["tiny", "small", "base", "large", "huge"] | None = None
    loss: Literal["reference", "normalized", "token_only"] = "reference"
    normalize_targets: bool | None = None
    spectral_targets: Literal["same", "raw"] | None = None
    token_weight: float | None = None
    spectral_weight: float | None = None
    patch_size: tuple[int, int, int] = (3, 8, 8)
    embed_dim: int = 0
    depth: int = 0
    num_heads: int = 0
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    position_embedding: Literal["separable", "flat"] = "separable"
    position_init: Literal["normal", "sincos"] = "normal"
    decoder_embed_dim: int = 0
    decoder_depth: int = 0
    decoder_num_heads: int = 0

    def fields(self) -> dict[str, Any]:
        """The fields of `models.ModelConfig` that this section decides, presets filled in."""
        chosen = asdict(self)
        preset = {**_REFERENCE_LOSS, **_LOSSES[chosen.pop("loss")]}
        chosen["name"] = chosen["name"] or "tiny"
        del chosen["position_init"], chosen["weights"]
        return {key: preset[key] if value is None else value for key, value in chosen.items()}


_REFERENCE_LOSS = {"normalize_targets": False, "spectral_targets": "same", "token_weight": 1.0, "spectral_weight": 1.0}
_LOSSES: dict[str, dict[str, Any]] = {
    "reference": {},
    "normalized": {"normalize_targets": True},
    "token_only": {"spectral_weight": 0.0},
}
