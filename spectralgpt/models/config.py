# SPDX-License-Identifier: Apache-2.0
"""Everything that decides the shape of a model, as one frozen dataclass that survives YAML and JSON.

The named sizes fill in whatever width or depth is left at 0. Bands reach the tokens by *groups* of t band
indices, so a sensor whose band count the patch does not divide repeats its last band, and a sensor card may
leave bands out.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from spectralgpt.errors import UserError
from spectralgpt.nn.attention import BACKENDS
from spectralgpt.nn.positions import Grid

_WIDTHS = ("embed_dim", "depth", "num_heads", "decoder_embed_dim", "decoder_depth", "decoder_num_heads")
SIZES: dict[str, tuple[int, int, int, int, int, int]] = {
    "tiny": (128, 4, 4, 96, 2, 4),
    "small": (384, 12, 6, 512, 4, 16),
    "base": (768, 12, 12, 512, 4, 16),
    "large": (1024, 24, 16, 512, 4, 16),
    "huge": (1280, 32, 16, 512, 4, 16),
}
"""Embedding, depth and heads of the encoder, then of the decoder."""

MAX_SIZE = 1 << 20  # a configuration file from elsewhere cannot ask for absurd loops


@dataclass(frozen=True)
class ModelConfig:
    """A model's sizes, bands and loss.

    Attributes:
        name: one of `SIZES`; gives every width and depth left at 0.
        image_size: pixels that the positions are learnt for, one number or (H, W); others are resampled on the fly.
        bands: number of bands of an image, C.
        band_names: their names, in the image's order.
        wavelengths: their centre wavelengths in micrometres; needed to move the model to other bands.
        groups: t band indices per spectral group; empty means consecutive bands, the last one repeated to fill up.
        patch_size: (t, p, p) bands, rows and columns of a token.
        embed_dim: encoder channels, D.
        depth: encoder blocks.
        num_heads: encoder attention heads.
        mlp_ratio: hidden width of an MLP relative to its input, encoder and decoder.
        drop_path: chance that the last encoder block skips a branch for a sample in training; grows linearly from 0.
        position_embedding: "separable" (space + spectrum) or "flat" (one vector per token).
        decoder_embed_dim: decoder channels.
        decoder_depth: decoder blocks.
        decoder_num_heads: decoder attention heads.
        normalize_targets: reconstruct each token at zero mean and unit variance.
        spectral_targets: "same" sums the targets of the token term over the groups, "raw" the raw tokens.
        token_weight: weight of the token term of the loss.
        spectral_weight: weight of its spectral term.
        attention_backend: "auto", or one attention backend to insist on.
    """

    name: str = "tiny"
    image_size: int | tuple[int, int] = 96
    bands: int = 12
    band_names: tuple[str, ...] | None = None
    wavelengths: tuple[float, ...] | None = None
    groups: tuple[tuple[int, ...], ...] = ()
    patch_size: tuple[int, int, int] = (3, 8, 8)
    embed_dim: int = 0
    depth: int = 0
    num_heads: int = 0
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    position_embedding: str = "separable"
    decoder_embed_dim: int = 0
    decoder_depth: int = 0
    decoder_num_heads: int = 0
    normalize_targets: bool = False
    spectral_targets: str = "same"
    token_weight: float = 1.0
    spectral_weight: float = 1.0
    attention_backend: str = "auto"

    def __post_init__(self) -> None:
        """Completes what was left open, brings sequences to tuples, and checks every value."""
        one_of("name", self.name, SIZES)
        for key, value in zip(_WIDTHS, SIZES[self.name], strict=True):
            self._set(key, getattr(self, key) or value)
        for key in ("bands", *_WIDTHS):
            count(key, getattr(self, key), most=1024 if "depth" in key else MAX_SIZE)
        self._set("image_size", _sizes("image_size", self.image_size, 2))
        self._set("patch_size", _sizes("patch_size", self.patch_size, 3))
        self._set("band_names", _per_band("band_names", self.band_names, str, self.bands))
        self._set("wavelengths", _per_band("wavelengths", self.wavelengths, float, self.bands))
        self._set("groups", _index_groups(self.groups, self.bands, self.patch_size[0]))
        one_of("position_embedding", self.position_embedding, ("separable", "flat"))
        one_of("spectral_targets", self.spectral_targets, ("same", "raw"))
        one_of("attention_backend", self.attention_backend, ("auto", *BACKENDS))
        for dim, heads in (("embed_dim", "num_heads"), ("decoder_embed_dim", "decoder_num_heads")):
            if getattr(self, dim) % getattr(self, heads):
                raise UserError(
                    f"{dim}: expected a multiple of {heads}={getattr(self, heads)}, got {getattr(self, dim)}"
                )
        if not (math.isfinite(self.mlp_ratio) and min(self.embed_dim, self.decoder_embed_dim) * self.mlp_ratio >= 1):
            raise UserError(f"mlp_ratio: expected a factor that leaves an MLP some width, got {self.mlp_ratio}")
        if not 0.0 <= self.drop_path < 1.0:
            raise UserError(f"drop_path: expected a rate in [0, 1), got {self.drop_path}")
        self.grid_of(*self.height_width)

    def _set(self, key: str, value: object) -> None:
        object.__setattr__(self, key, value)  # only while the frozen dataclass completes itself

    @property
    def height_width(self) -> tuple[int, int]:
        """Image size (H, W)."""
        return cast("tuple[int, int]", self.image_size)

    @property
    def grid(self) -> Grid:
        """Token grid (S, h, w) of `image_size`."""
        return self.grid_of(*self.height_width)

    @property
    def num_tokens(self) -> int:
        """Tokens per image of `image_size`, L."""
        return math.prod(self.grid)

    @property
    def num_values(self) -> int:
        """Values per token, P."""
        return math.prod(self.patch_size)

    @property
    def band_order(self) -> tuple[int, ...]:
        """Index of the image band behind each band that the tokens see, group after group."""
        return tuple(index for group in self.groups for index in group)

    @property
    def group_wavelengths(self) -> tuple[float, ...] | None:
        """Centre wavelength of each group: the mean of its bands."""
        if self.wavelengths is None:
            return None
        return tuple(sum(self.wavelengths[i] for i in group) / len(group) for group in self.groups)

    def grid_of(self, height: int, width: int) -> Grid:
        """Token grid (S, h, w) of an image of another size.

        Raises:
            UserError: a size that the patch does not divide.
        """
        _, p, q = self.patch_size
        for what, size, by in (("height", height, p), ("width", width, q)):
            if size < by or size % by:
                raise UserError(
                    f"image: expected a {what} divisible by the patch's {by}, got {size}; crop or pad the image"
                )
        return len(self.groups), height // p, width // q

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as for JSON."""
        return dataclasses.asdict(self)


def make_config(name: str, **config: Any) -> ModelConfig:  # noqa: ANN401 - the fields of ModelConfig
    """The configuration behind `create_model` and its kin.

    Args:
        name: one of `SIZES`.
        **config: fields of `ModelConfig`; `bands` may also be a sequence of names or a sensor card: an object with
            `names`, `wavelengths` and perhaps `groups` of names, used where each has t bands.

    Raises:
        UserError: an unknown field, named together with the nearest known one, or a value that does not fit.
    """
    refuse_unknown("model config", config, [field.name for field in dataclasses.fields(ModelConfig)])
    patch_size = _sizes("patch_size", config.get("patch_size", ModelConfig.patch_size), 3)
    bands = band_fields(config.pop("bands", ModelConfig.bands), patch_size[0])
    return ModelConfig(name=name, **{**bands, **config})


def refuse_unknown(what: str, keys: Iterable[str], known: Collection[str]) -> None:
    """Raises a UserError that names the first unknown key and the nearest known one."""
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{what}: expected one of {', '.join(known)}, got {key!r}{hint}")


def one_of(key: str, value: str, known: Collection[str]) -> None:
    """Raises a UserError where a value is none of the known ones."""
    if value not in known:
        raise UserError(f"{key}: expected one of {', '.join(known)}, got {value!r}")


def count(key: str, value: object, *, least: int = 1, most: int = MAX_SIZE) -> None:
    """Raises a UserError where a value is no whole number of the range."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UserError(f"{key}: expected a whole number from {least} to {most}, got {value!r}")


def band_fields(bands: Any, bands_per_token: int) -> dict[str, Any]:  # noqa: ANN401 - three forms, told apart here
    """The fields `bands`, `band_names`, `wavelengths` and `groups` for a count, names, or a sensor card."""
    if isinstance(bands, int):
        return {"bands": bands, "band_names": None, "wavelengths": None, "groups": ()}
    if hasattr(bands, "names") and hasattr(bands, "wavelengths"):
        names = tuple(bands.names)
        regroup = getattr(bands, "group_names", None)
        groups = regroup(bands_per_token) if regroup else tuple(map(tuple, getattr(bands, "groups", ())))
        usable = all(len(group) == bands_per_token and set(group) <= set(names) for group in groups)
        return {
            "bands": len(names),
            "band_names": names,
            "wavelengths": tuple(bands.wavelengths),
            "groups": tuple(tuple(names.index(name) for name in group) for group in groups) if usable else (),
        }
    if isinstance(bands, Sequence) and not isinstance(bands, str) and all(isinstance(name, str) for name in bands):
        return {"bands": len(bands), "band_names": tuple(bands), "wavelengths": None, "groups": ()}
    raise UserError(f"bands: expected a count, a sequence of names or a sensor card, got {bands!r}")


def _sizes(key: str, value: Any, length: int) -> tuple[int, ...]:  # noqa: ANN401 - YAML and JSON give lists
    sizes = (value,) * length if isinstance(value, int) and length == 2 else value
    if not isinstance(sizes, Sequence) or isinstance(sizes, str) or len(sizes) != length:
        raise UserError(f"{key}: expected {length} whole numbers, got {value!r}")
    for size in sizes:
        count(key, size)
    return tuple(sizes)


def _per_band(key: str, values: Sequence[Any] | None, kind: type, bands: int) -> tuple[Any, ...] | None:
    if values is not None and len(values) != bands:
        raise UserError(f"{key}: expected {bands} entries, one per band, got {len(values)}")
    return None if values is None else tuple(map(kind, values))


def _index_groups(groups: Sequence[Sequence[int]], bands: int, bands_per_token: int) -> tuple[tuple[int, ...], ...]:
    if not groups:
        starts = range(0, bands, bands_per_token)
        return tuple(tuple(min(start + i, bands - 1) for i in range(bands_per_token)) for start in starts)
    for group in groups:
        if len(group) != bands_per_token or not all(isinstance(i, int) and 0 <= i < bands for i in group):
            raise UserError(
                f"groups: expected {bands_per_token} band indices below {bands} in each, got {tuple(group)}"
            )
    return tuple(tuple(group) for group in groups)
