# SPDX-License-Identifier: Apache-2.0
"""What changed between two images of a place: one encoder for both dates, their maps compared, one decoder."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from spectralgpt.errors import UserError
from spectralgpt.heads.base import task_configs
from spectralgpt.heads.maps import DenseModel, compare


class ChangeDetector(DenseModel):
    """Change of every pixel at full resolution."""

    kind: ClassVar[str] = "change_detector"
    tasks: ClassVar[tuple[str, ...]] = ("change",)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Log-probabilities of every pixel.

        Args:
            before: (B, C, H, W), normalised, in the model's band order, of any size (`Segmenter.forward`).
            after: the same place later, of the same shape.

        Returns:
            (B, 2, H, W): log-probabilities of unchanged and changed.

        Raises:
            UserError: images of different shapes, or a wrong band count.
        """
        if before.shape != after.shape:
            raise UserError(
                f"after: expected the shape {tuple(before.shape)} of the image before, got {tuple(after.shape)}"
            )
        both = self._pad(torch.cat([before, after]))
        maps = [compare(level, self.head_config.compare) for level in self.head.extract(self.encoder, both)]
        logits = self.head.decode(maps, *both.shape[-2:])[..., : before.shape[-2], : before.shape[-1]]
        return F.log_softmax(logits.float(), dim=1)


def create_change_detector(name: str, **config: Any) -> ChangeDetector:  # noqa: ANN401 - fields of two configs
    """A change detector with fresh weights: (before, after) -> log-probabilities (B, 2, H, W).

    Args:
        name: tiny, small, base, large or huge.
        **config: fields of `ModelConfig` and `HeadConfig`, such as `image_size`, `bands`, `head="published"` or
            `compare="concat"`.

    Raises:
        UserError: an unknown field or a value that does not fit.

    Example:
        >>> image = torch.zeros(2, 12, 64, 64)
        >>> create_change_detector("tiny", image_size=64)(image, image).shape
        torch.Size([2, 2, 64, 64])
    """
    return ChangeDetector(*task_configs(name, "change", 2, config))
