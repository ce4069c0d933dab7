# SPDX-License-Identifier: Apache-2.0
"""A class for every pixel of an image."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from spectralgpt.heads.base import task_configs
from spectralgpt.heads.maps import DenseModel


class Segmenter(DenseModel):
    """Semantic segmentation at full resolution."""

    kind: ClassVar[str] = "segmenter"
    tasks: ClassVar[tuple[str, ...]] = ("segmentation",)

    def forward(self, image: Tensor) -> Tensor:
        """Scores of every pixel.

        Args:
            image: (B, C, H, W), normalised, in the model's band order, of any size: it is padded to whole patches
                by repeating its last row and column, and the result is cut back.

        Returns:
            (B, num_classes, H, W) logits of a softmax over the classes.

        Raises:
            UserError: wrong band count.
        """
        padded = self._pad(image)
        logits = self.head.decode(self.head.extract(self.encoder, padded), *padded.shape[-2:])
        return logits[..., : image.shape[-2], : image.shape[-1]]


def create_segmenter(name: str, num_classes: int, **config: Any) -> Segmenter:  # noqa: ANN401 - fields of two configs
    """A segmentation model with fresh weights: image (B, C, H, W) -> logits (B, num_classes, H, W).

    Args:
        name: tiny, small, base, large or huge.
        num_classes: of the output.
        **config: fields of `ModelConfig` and `HeadConfig`, such as `image_size`, `bands`, `drop_path`, `classes`,
            `colours`, `head="published"` or `spectral_pool="concat"`.

    Raises:
        UserError: an unknown field or a value that does not fit.

    Example:
        >>> create_segmenter("tiny", 13, image_size=64)(torch.zeros(2, 12, 50, 70)).shape
        torch.Size([2, 13, 50, 70])
    """
    return Segmenter(*task_configs(name, "segmentation", num_classes, config))
