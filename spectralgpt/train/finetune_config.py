# SPDX-License-Identifier: Apache-2.0
"""The sections of a recipe that only tasks with labels read: the head, and how head and encoder learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spectralgpt.data.mixing import MixConfig
from spectralgpt.errors import UserError


@dataclass(frozen=True)
class HeadSection:
    """The head on the encoder; the data set says how many classes and what they are called.

    Attributes:
        head: linear, mlp or published for labels; pyramid, linear or published for maps; null is the task's first.
        spectral_pool: how the band groups of a position become one vector; null is the head's own choice.
        pool_skip_first: leave the first token out of the average, as the published classifier does.
        dropout: before the last layer; null is the head's own choice.
        width: channels of the decoder or of the MLP; 0 follows the encoder's.
        compare: how two dates meet; null is the head's own choice.
        standardize: bring each feature to mean 0 and deviation 1 over the training images, for linear probes of a
            frozen encoder; for labels of whole images.
    """

    head: Literal["linear", "mlp", "pyramid", "published"] | None = None
    spectral_pool: Literal["mean", "concat", "learned"] | None = None
    pool_skip_first: bool = False
    dropout: float | None = None
    width: int = 0
    compare: Literal["absolute", "difference", "concat"] | None = None
    standardize: bool = False


@dataclass(frozen=True)
class FinetuneConfig:
    """How head and encoder learn from labels.

    Attributes:
        train: all weights; the head alone on a frozen encoder, without drop path; or the head and low-rank additions to
            the encoder (LoRA, needs the extra `lora`).
        lora_rank: of these additions.
        label_smoothing: share of a label spread over all classes; not with several labels per image.
        mixup: parameter of the Beta distribution of MixUp's shares; 0 turns it off. For labels of whole images.
        cutmix: likewise of CutMix; where both are on each gets half of the batches.
        erasing: share of the training images in which a random box, 2 to 33 % of the area, is filled with the mean.
        class_weights: none; balanced, by the inverse of each class's share in the training set; published, for change:
            20 p for unchanged and 2 (1 - p) for changed pixels with p the changed share; or a list. Weights are scaled
            so that their mean over the training set is 1.
        other_normalization: allow a `data.normalization` that is not the one of the weights to start from.
    """

    train: Literal["all", "head", "lora"] = "all"
    lora_rank: int = 8
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    erasing: float = 0.0
    class_weights: Literal["none", "balanced", "published"] | tuple[float, ...] = "none"
    other_normalization: bool = False

    def __post_init__(self) -> None:
        """Checks what types alone cannot say."""
        MixConfig(self.mixup, self.cutmix)
        for key in ("label_smoothing", "erasing"):
            if not 0 <= getattr(self, key) <= 1:
                raise UserError(f"finetune.{key}: expected a share from 0 to 1, got {getattr(self, key)}")
        if self.lora_rank < 1:
            raise UserError(f"finetune.lora_rank: expected at least 1, got {self.lora_rank}")
        if not isinstance(self.class_weights, str):
            object.__setattr__(self, "class_weights", tuple(self.class_weights))
            if min(self.class_weights, default=0) <= 0:
                raise UserError(f"finetune.class_weights: expected numbers above 0, got {list(self.class_weights)}")
