# SPDX-License-Identifier: Apache-2.0
"""What runs can train, by name; `base.py` says what a task is."""

from __future__ import annotations

from spectralgpt.train.tasks.base import Task
from spectralgpt.train.tasks.finetune import Finetune
from spectralgpt.train.tasks.pretrain import Pretrain

TASKS: dict[str, type[Task]] = {
    "pretrain": Pretrain,
    "single_label": Finetune,
    "multi_label": Finetune,
    "segmentation": Finetune,
    "change": Finetune,
}
"""Tasks by the name a recipe gives them."""
