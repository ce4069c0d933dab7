# SPDX-License-Identifier: Apache-2.0
"""Encoders as TerraTorch backbones: importing this module registers `spectralgpt_{tiny,small,base,large,huge}`.

TerraTorch finds no plug-ins by itself: point `custom_modules_path` at a folder whose `__init__.py` says
`import spectralgpt.integrations.terratorch`, then name the backbone in the recipe:

    model_args:
      backbone: spectralgpt_base
      backbone_model_bands: [BLUE, GREEN, RED, NIR_NARROW, SWIR_1, SWIR_2]
      backbone_pretrained: true
      backbone_ckpt_data: runs/NAME
      backbone_out_indices: [2, 5, 8, 11]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, cast

from torch import Tensor, nn

from spectralgpt.data.bands import SENTINEL2_12, sensor_card
from spectralgpt.errors import UserError
from spectralgpt.heads.features import feature_maps
from spectralgpt.models.config import SIZES, make_config, one_of
from spectralgpt.models.encoder import Encoder

try:
    from terratorch.registry import TERRATORCH_BACKBONE_REGISTRY
except ImportError as error:
    raise UserError(
        f"terratorch: expected the library to be installed ({error}); pip install 'spectralgpt[terratorch]'"
    ) from error

if TYPE_CHECKING:
    from spectralgpt.heads.base import TaskModel


class SpectralBackbone(nn.Module):
    """An encoder that gives the list of maps TerraTorch's necks and decoders take.

    Attributes:
        encoder: the encoder; its stacked projections are called `qkv`, for `peft_config.replace_qkv`.
        config: its configuration.
        normalization: of the pixels the weights have seen, where they came with one.
        out_channels: of each map.
        patch_size: pixels of a patch; TerraTorch pads images to a multiple.
    """

    def __init__(
        self, encoder: Encoder, out_indices: Sequence[int], spectral_pool: Literal["mean", "concat"] = "mean"
    ) -> None:
        """Maps of the blocks `out_indices`, groups averaged ("mean", D channels) or side by side ("concat", S*D)."""
        super().__init__()
        one_of("spectral_pool", spectral_pool, ("mean", "concat"))
        self.encoder, self.config = encoder, encoder.config
        self.normalization: dict[str, Any] | None = None
        self.layers, self.spectral_pool = tuple(out_indices), spectral_pool
        channels = self.config.embed_dim * (len(self.config.groups) if spectral_pool == "concat" else 1)
        self.out_channels = [channels] * len(self.layers)
        self.patch_size = self.config.patch_size[1]

    def forward(self, x: Tensor, **_: object) -> list[Tensor]:
        """(B, C, H, W) -> one (B, out_channels, h, w) per block; TerraTorch's metadata arguments are not used."""
        return feature_maps(self.encoder, x, self.layers, self.spectral_pool)


def backbone(
    size: str,
    model_bands: Sequence[str | Enum] | None = None,
    *,
    pretrained: bool = False,
    ckpt_data: str | None = None,
    out_indices: Sequence[int] | None = None,
    sensor: str = "sentinel2",
    img_size: int | tuple[int, int] = 96,
    spectral_pool: Literal["mean", "concat"] = "mean",
    **config: Any,  # noqa: ANN401 - fields of ModelConfig
) -> SpectralBackbone:
    """What the registered names build.

    Args:
        size: tiny, small, base, large or huge.
        model_bands: of the images, in their order: TerraTorch's names (BLUE, NIR_NARROW, ...) or the sensor's own; the
            12 bands of the published models by default.
        pretrained: load `ckpt_data`.
        ckpt_data: a run, a saved model or a published .pth file; its spectral positions move to `model_bands`.
        out_indices: blocks whose maps are given; four, evenly spread, by default.
        sensor: whose bands these are.
        img_size: that the positions are made for; others are resampled on the fly.
        spectral_pool: "mean" (D channels) or "concat" (S*D channels).
        **config: fields of `ModelConfig`.

    Raises:
        UserError: a band the sensor lacks, a block the encoder lacks, or weights that are missing or do not fit.
    """
    names = [band.value if isinstance(band, Enum) else band for band in model_bands or SENTINEL2_12]
    made = make_config(size, bands=sensor_card(sensor).select(names), image_size=img_size, **config)
    layers = _spread(made.depth) if out_indices is None else tuple(out_indices)
    if not layers or not all(-made.depth <= layer < made.depth for layer in layers):
        raise UserError(f"out_indices: expected block indices below {made.depth}, got {layers}")
    model = SpectralBackbone(Encoder(made), layers, spectral_pool)
    if pretrained and ckpt_data is None:
        raise UserError("ckpt_data: expected a run, a saved model or a .pth file for pretrained=True, got none")
    if pretrained and ckpt_data is not None:
        from spectralgpt.heads.weights import load_encoder

        load_encoder(cast("TaskModel", model), ckpt_data)
    return model


def _spread(depth: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys(max(depth * quarter // 4 - 1, 0) for quarter in (1, 2, 3, 4)))


def _register(size: str) -> None:
    def build(*arguments: Any, **options: Any) -> SpectralBackbone:  # noqa: ANN401 - those of `backbone`
        return backbone(size, *arguments, **options)

    named: Callable[..., SpectralBackbone] = build
    build.__name__ = build.__qualname__ = f"spectralgpt_{size}"
    build.__doc__ = backbone.__doc__
    if build.__name__ not in TERRATORCH_BACKBONE_REGISTRY:
        TERRATORCH_BACKBONE_REGISTRY.register(named)


for _size in SIZES:
    _register(_size)
