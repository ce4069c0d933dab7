# SPDX-License-Identifier: Apache-2.0
"""Encoders as timm models: importing this module registers `spectralgpt_{size}_patch8_{96,128}`.

A model has the interface of timm's vision transformers (features, intermediates, a head that can be replaced, groups
for layer-wise decay), so TorchGeo, segmentation-models-pytorch and TerraTorch find it by its name. A token belongs to
a place *and* a spectral group; feature maps need one vector per place, so `spectral_pool` says how groups become one.

    timm.create_model("spectralgpt_base_patch8_96", in_chans=12, num_classes=10)
    timm.create_model("spectralgpt_base_patch8_96", features_only=True, out_indices=(2, 5, 8, 11))
    timm.create_model(..., pretrained=True, pretrained_cfg_overlay={"file": "runs/NAME"})
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from torch import Tensor, nn

from spectralgpt.errors import UserError
from spectralgpt.heads.features import as_map, by_group, feature_maps
from spectralgpt.models.config import SIZES, make_config, one_of
from spectralgpt.models.encoder import Encoder

try:
    from timm.models import build_model_with_cfg, register_model
except ImportError as error:
    raise UserError(f"timm: expected the library to be installed ({error}); pip install 'spectralgpt[timm]'") from error

if TYPE_CHECKING:
    from spectralgpt.heads.base import TaskModel

__all__: list[str] = ["SpectralViT"]

Indices = int | Sequence[int] | None


class SpectralViT(nn.Module):
    """An encoder behind timm's interface; sizes B, D, L, S, h, w as everywhere.

    Attributes:
        encoder: the encoder.
        config: its configuration.
        normalization: of the pixels the weights have seen, where `load_pretrained` found one.
        num_classes: of the head; 0 for none.
        num_features: D.
        feature_info: channels and reduction of every block's map.
    """

    def __init__(
        self,
        size: str,
        *,
        in_chans: int = 12,
        bands: Any = None,  # noqa: ANN401 - the forms that create_model takes
        num_classes: int = 1000,
        img_size: int | tuple[int, int] = 96,
        global_pool: Literal["avg", ""] = "avg",
        spectral_pool: Literal["mean", "concat"] = "mean",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **config: Any,  # noqa: ANN401 - fields of ModelConfig
    ) -> None:
        """Fresh weights.

        Args:
            size: tiny, small, base, large or huge.
            in_chans: number of bands.
            bands: names or a sensor card, before `in_chans`; needed to move weights from other bands.
            num_classes: of the head; 0 for none.
            img_size: that the positions are learnt for; images of other multiples of the patch work as well.
            global_pool: "avg" of the tokens before the head, or "" for none.
            spectral_pool: of feature maps: "mean" of the groups (D channels) or all of them, "concat" (S*D channels).
            drop_rate: dropout before the head.
            drop_path_rate: chance that the last block skips a branch in training.
            **config: fields of `ModelConfig`.

        Raises:
            UserError: a value that does not fit.
        """
        super().__init__()
        one_of("global_pool", global_pool, ("avg", ""))
        one_of("spectral_pool", spectral_pool, ("mean", "concat"))
        self.config = make_config(
            size, bands=in_chans if bands is None else bands, image_size=img_size, drop_path=drop_path_rate, **config
        )
        self.encoder = Encoder(self.config)
        # TorchGeo asks the first layer for its channels, to compare them with the second dimension of its weights.
        self.encoder.patch_embed.proj.in_channels = self.config.num_values  # type: ignore[assignment]
        self.normalization: dict[str, Any] | None = None
        self.num_classes, self.in_chans = num_classes, self.config.bands
        self.global_pool, self.spectral_pool = global_pool, spectral_pool
        self.num_features = self.embed_dim = self.head_hidden_size = self.config.embed_dim
        self.num_prefix_tokens = 0
        channels = self.embed_dim * (len(self.config.groups) if spectral_pool == "concat" else 1)
        self.feature_info = [
            {"module": f"encoder.blocks.{i}", "num_chs": channels, "reduction": self.config.patch_size[1]}
            for i in range(self.config.depth)
        ]
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module
        self.reset_classifier(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes); (B, D) without a head."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L, D), group after group."""
        tokens: Tensor = self.encoder(x)
        return tokens

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, L, D) -> (B, num_classes), or what the head would see."""
        pooled = self.head_drop(x.mean(1) if self.global_pool == "avg" else x)
        out: Tensor = pooled if pre_logits else self.head(pooled)
        return out

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Indices = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        **_: Any,  # noqa: ANN401 - switches of transformers with prefix tokens, which this one lacks
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of some blocks, and all tokens of the last one.

        Args:
            x: (B, C, H, W).
            indices: blocks, or how many of the last ones; all by default.
            norm: apply the final LayerNorm to every map.
            stop_early: blocks after the last one asked for do not run, with `intermediates_only`.
            output_fmt: "NCHW" for maps (B, D or S*D, h, w), "NLC" for tokens (B, L, D).
            intermediates_only: give the list alone.

        Returns:
            The list, or (tokens (B, L, D), list).
        """
        one_of("output_fmt", output_fmt, ("NCHW", "NLC"))
        layers = self._layers(indices)
        last = [] if intermediates_only else [-1]
        levels = self.encoder.intermediate(x, [*layers, *last], norm=False)
        final = levels.pop() if last else None
        levels = [self.encoder.norm(level) if norm else level for level in levels]
        if output_fmt == "NCHW":
            levels = [self._map(level, x) for level in levels]
        return levels if final is None else (self.encoder.norm(final), levels)

    def feature_maps(self, x: Tensor, indices: Indices = None) -> list[Tensor]:
        """Maps (B, D or S*D, h, w) of some blocks, the last block's normalised as the encoder gives it."""
        return feature_maps(self.encoder, x, self._layers(indices), self.spectral_pool)

    def prune_intermediate_layers(
        self, indices: Indices = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what maps of these blocks do not need; returns the blocks counted from the first."""
        layers = self._layers(indices)
        self.encoder.blocks = self.encoder.blocks[: max(layers) + 1]
        if prune_norm:
            self.encoder.norm = nn.Identity()  # type: ignore[assignment]
        if prune_head:
            self.reset_classifier(0, "")
        return layers

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head for other classes; 0 for none."""
        if global_pool is not None:
            one_of("global_pool", global_pool, ("avg", ""))
            self.global_pool = cast("Literal['avg', '']", global_pool)
        self.num_classes = num_classes
        self.head = nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether the backward pass computes blocks again instead of keeping what is in them."""
        for block in self.encoder.blocks:
            block.recompute = "blocks" if enable else "none"  # type: ignore[assignment]

    def no_weight_decay(self) -> set[str]:
        """Names of the positions."""
        return {name for name, _ in self.named_parameters() if name.startswith("encoder.positions.")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """How parameters belong to layers, for layer-wise learning rates."""
        blocks: Any = r"^encoder\.blocks\.(\d+)"
        return {
            "stem": r"^encoder\.(?:patch_embed|positions)",
            "blocks": blocks if coarse else [(blocks, None), (r"^encoder\.norm", (99999,))],
        }

    def load_pretrained(self, checkpoint_path: str) -> None:
        """What `pretrained=True` calls with `file` of `pretrained_cfg_overlay`: a run, a saved model or a .pth file.

        Raises:
            UserError: as `spectralgpt.heads.weights.load_encoder`.
        """
        from spectralgpt.heads.weights import load_encoder

        load_encoder(cast("TaskModel", self), checkpoint_path)

    def _layers(self, indices: Indices) -> list[int]:
        """Block indices from the first."""
        depth = len(self.encoder.blocks)
        if indices is None or isinstance(indices, int):
            count = depth if indices is None else indices
            indices = range(depth - count, depth)
        layers = [index + depth if index < 0 else index for index in indices]
        if not layers or not all(0 <= layer < depth for layer in layers):
            raise UserError(f"out_indices: expected block indices from {-depth} to {depth - 1}, got {tuple(indices)}")
        return layers

    def _map(self, tokens: Tensor, x: Tensor) -> Tensor:
        groups, height, width = self.config.grid_of(*x.shape[-2:])
        grouped = by_group(tokens, groups)
        pooled = grouped.mean(1) if self.spectral_pool == "mean" else grouped.movedim(1, -2).flatten(-2)
        return as_map(pooled, height, width)


def _register(size: str, image_size: int) -> None:
    name = f"spectralgpt_{size}_patch8_{image_size}"

    def build(pretrained: bool = False, **options: Any) -> nn.Module:  # noqa: ANN401 - timm's
        options.setdefault("img_size", image_size)
        overlay = options.get("pretrained_cfg_overlay") or {}
        if overlay.get("file"):  # a folder or published file, which `load_pretrained` reads, not a state dict of timm's
            options["pretrained_cfg_overlay"] = {**overlay, "custom_load": True}
        options |= {"feature_cfg": {"out_indices": 4, "feature_cls": "getter"}, "size": size}
        model: nn.Module = build_model_with_cfg(SpectralViT, name, pretrained, **options)
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"SpectralGPT {size}, positions for {image_size} pixels, tokens of 3 bands x 8 x 8 pixels."
    default_cfgs[name] = _default_cfg(image_size)
    register_model(build)


def _default_cfg(image_size: int) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (12, image_size, image_size),
        "pool_size": None,
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "mean": (0.0,) * 12,  # pixels come normalised: the data layer does that per image
        "std": (1.0,) * 12,
        "first_conv": None,  # loading moves bands itself
        "classifier": "head",
        "custom_load": True,
        "license": "apache-2.0",
    }


default_cfgs: dict[str, dict[str, Any]] = {}
for _size in SIZES:
    for _image_size in (96, 128):
        _register(_size, _image_size)
