# SPDX-License-Identifier: Apache-2.0
"""Labels of whole images: average the tokens, normalise, and one or two linear layers.

The order (average, then the encoder's own final LayerNorm) is the published one, so that one class serves published
and fresh heads; a published classifier leaves token 0 out of the average (`pool_skip_first`), an inheritance from
models with a class token.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spectralgpt.heads.base import HeadConfig, TaskModel, task_configs
from spectralgpt.heads.features import SpectralPool, by_group
from spectralgpt.models.config import ModelConfig


class Standardize(nn.BatchNorm1d):
    """Batch normalisation that takes a batch of one as it takes those of an evaluation."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        if self.training and len(features) == 1:
            return nn.functional.batch_norm(features, self.running_mean, self.running_var, eps=self.eps)
        normalised: Tensor = super().forward(features)
        return normalised


class Classifier(TaskModel):
    """One label per image, or several."""

    kind: ClassVar[str] = "classifier"
    tasks: ClassVar[tuple[str, ...]] = ("single_label", "multi_label")

    def __init__(self, config: ModelConfig, head_config: HeadConfig) -> None:
        """Fresh weights; the last layer starts near zero."""
        super().__init__(config, head_config)
        self.pool = SpectralPool(head_config.spectral_pool, len(config.groups))
        self.dropout = nn.Dropout(head_config.dropout)
        self.standardize: nn.Module = nn.Identity()
        features = self.pool.channels(config.embed_dim)
        if head_config.standardize:
            self.standardize = Standardize(features, eps=1e-6, affine=False)
        self.head: nn.Module = nn.Linear(features, head_config.num_classes)
        last = self.head
        if head_config.head == "mlp":
            hidden = head_config.width or config.embed_dim
            last = nn.Linear(hidden, head_config.num_classes)
            self.head = nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Dropout(head_config.dropout), last)
        nn.init.trunc_normal_(last.weight, std=0.02)
        nn.init.zeros_(last.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Scores of the classes.

        Args:
            image: (B, C, H, W), normalised, in the model's band order.

        Returns:
            (B, num_classes) logits: of a softmax for one label per image, of a sigmoid each for several.

        Raises:
            UserError: wrong band count, or a size that the patch does not divide: padding would change the average.
        """
        logits: Tensor = self.head(self.dropout(self.standardize(self.embed(image))))
        return logits

    def embed(self, image: Tensor) -> Tensor:
        """What the last layers see: (B, C, H, W) -> (B, D), or (B, S*D) with spectral_pool "concat"."""
        (tokens,) = self.encoder.intermediate(image, norm=False)
        if self.head_config.pool_skip_first:
            pooled = tokens[:, 1:].mean(1)
        elif self.pool.how == "mean":
            pooled = tokens.mean(1)
        elif self.pool.how == "learned":
            pooled = self.pool(by_group(tokens, self.pool.groups).mean(2))
        else:  # each group is normalised on its own
            return torch.flatten(self.encoder.norm(by_group(tokens, self.pool.groups).mean(2)), 1)
        embedding: Tensor = self.encoder.norm(pooled)
        return embedding


def create_classifier(name: str, num_classes: int, **config: Any) -> Classifier:  # noqa: ANN401 - fields of two configs
    """A classifier with fresh weights: image (B, C, H, W) -> logits (B, num_classes).

    Args:
        name: tiny, small, base, large or huge.
        num_classes: of the output.
        **config: fields of `ModelConfig` and `HeadConfig`, such as `image_size`, `bands`, `drop_path`, `classes`,
            `task="multi_label"`, `head="mlp"` or `pool_skip_first=True` (the published classifier).

    Raises:
        UserError: an unknown field or a value that does not fit.

    Example:
        >>> create_classifier("tiny", 10, image_size=64)(torch.zeros(2, 12, 64, 64)).shape
        torch.Size([2, 10])
    """
    return Classifier(*task_configs(name, "single_label", num_classes, config))
