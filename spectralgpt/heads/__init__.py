# SPDX-License-Identifier: Apache-2.0
"""Task models: the encoder with a head for labels, maps or change. Heads know no data set and no training.

Importing this package teaches `from_pretrained` their kinds.
"""

from spectralgpt.heads.base import HeadConfig, TaskModel
from spectralgpt.heads.change import ChangeDetector, create_change_detector
from spectralgpt.heads.classification import Classifier, create_classifier
from spectralgpt.heads.features import SpectralPool, feature_maps, pooled_features
from spectralgpt.heads.lora import add_lora, merge_lora
from spectralgpt.heads.segmentation import Segmenter, create_segmenter
from spectralgpt.heads.weights import load_encoder
from spectralgpt.models.registry import from_pretrained

__all__ = [
    "ChangeDetector",
    "Classifier",
    "HeadConfig",
    "Segmenter",
    "SpectralPool",
    "TaskModel",
    "add_lora",
    "create_change_detector",
    "create_classifier",
    "create_segmenter",
    "feature_maps",
    "from_pretrained",
    "load_encoder",
    "merge_lora",
    "pooled_features",
]
