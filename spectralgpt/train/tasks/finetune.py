# SPDX-License-Identifier: Apache-2.0
"""A head on the encoder, trained from labels: the four downstream tasks.

The data set says what the classes are; the weights to start from say how large the encoder is and how pixels are
normalised. What is chosen by validation is the exported model; no test split is ever opened here.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from spectralgpt.data.datasets.base import PatchDataset
from spectralgpt.data.source import ImageViews, open_source
from spectralgpt.errors import UserError
from spectralgpt.heads import ChangeDetector, Classifier, HeadConfig, Segmenter, TaskModel
from spectralgpt.heads.weights import load_encoder
from spectralgpt.models.config import ModelConfig, make_config
from spectralgpt.train.config import RunConfig, StageConfig
from spectralgpt.train.flops import forward_flops
from spectralgpt.train.tasks.base import Objective, Task
from spectralgpt.train.tasks.class_shares import check_labels, class_weights, count_classes
from spectralgpt.train.tasks.scoring import Scoring
from spectralgpt.train.tasks.start import Start, read_start, told
from spectralgpt.train.tasks.supervised import Labels, Pixels

if TYPE_CHECKING:
    from spectralgpt.data.source import Source
    from spectralgpt.train.run import Run

_MODELS: dict[str, type[TaskModel]] = {
    "single_label": Classifier,
    "multi_label": Classifier,
    "segmentation": Segmenter,
    "change": ChangeDetector,
}


class Finetune(Task):
    """One of the four; `config.task` says which."""

    measured: ClassVar[tuple[str, ...]] = ("loss",)
    figure: ClassVar[str] = "examples"
    selects: ClassVar[bool] = True
    labelled: ClassVar[bool] = True

    def __init__(self, config: RunConfig, state: dict[str, Any] | None = None) -> None:
        """Looks at the weights to start from, or goes on as a checkpoint's `state` says."""
        super().__init__(config)
        self._start = Start(**state["start"]) if state else read_start(config.model.weights)
        self._weights: dict[int, list[float] | None] = dict(state["class_weights"]) if state else {}
        self._classes: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        self._fields = self._start.model_fields(config.model)
        if config.finetune.train == "head":
            self._fields["drop_path"] = 0.0  # a frozen encoder has nothing to regularise

    @property
    def state(self) -> dict[str, Any]:
        """What a resumed run does not find out again."""
        return {"start": self._start.to_dict(), "class_weights": self._weights}

    def open(self, index: int, split: Literal["train", "val"]) -> ImageViews:
        """Views of a data set's images, with labels that fit the task."""
        config, stage = self.config, self.config.stages[index]
        data = stage.data or config.data
        if data.dataset is None:
            raise UserError(
                f"data.dataset: expected a data set with labels for {config.task}, got none; folder reads own"
            )
        normalizer = self._start.normalizer(data, config.finetune.other_normalization)
        patch = tuple(self._fields["patch_size"])
        source = open_source(data, stage.image_size, patch, split, config.seed, normalizer, labelled=True)
        assert isinstance(source, ImageViews)
        self._check(source.dataset, index, split)
        return source

    def _check(self, dataset: PatchDataset, index: int, split: Literal["train", "val"]) -> None:
        """The labels are the task's, the classes everywhere the same, and there is something to learn and to score."""
        task, chosen = self.config.task, self.config.finetune.class_weights
        if dataset.task != task:
            raise UserError(f"data: expected {task} labels, got {dataset.task} from {dataset.title} in {dataset.root}")
        known = self._classes or (dataset.classes, dataset.colours)
        if dataset.classes != known[0]:
            raise UserError(
                f"data: expected the classes {', '.join(known[0])} in every split and stage, got "
                f"{', '.join(dataset.classes)} in {dataset.split} of {dataset.root}; name them in data.options"
            )
        self._classes = known
        if split == "train" and index in self._weights:
            return  # a resumed run
        counted = split == "train" and chosen != "none"
        counts = count_classes(dataset, None if counted else 2)
        check_labels(dataset, split, counts)
        if split == "train":
            self._weights[index] = class_weights(chosen, counts, task)

    def model_config(self, source: Source, stage: StageConfig) -> ModelConfig:
        """The encoder of a stage."""
        return make_config(**{**self._fields, "bands": source.card, "image_size": stage.image_size})

    @property
    def head_config(self) -> HeadConfig:
        """The head, once the data set is known."""
        assert self._classes is not None
        classes, colours = self._classes
        chosen = {key: value for key, value in asdict(self.config.head).items() if value is not None}
        return HeadConfig(task=self.config.task, num_classes=len(classes), classes=classes, colours=colours, **chosen)

    def build(self, config: ModelConfig) -> TaskModel:
        """The model, frozen as far as the recipe says."""
        return self._frozen(self._plain(config))

    def fresh(self, config: ModelConfig, seed: int) -> TaskModel:
        """Encoder and head drawn anew."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build(config)

    def first(self, config: ModelConfig, seed: int) -> TaskModel:
        """A fresh head on the encoder that the recipe names."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._frozen(self._taken_over(self._plain(config)))

    def _plain(self, config: ModelConfig) -> TaskModel:
        return _MODELS[self.config.task](config, self.head_config)

    def _frozen(self, model: TaskModel) -> TaskModel:
        """All weights, the head's, or low-rank additions and the head's are left to train."""
        chosen = self.config.finetune
        if chosen.train == "head":
            model.encoder.requires_grad_(False)
        elif chosen.train == "lora":
            from spectralgpt.heads.lora import add_lora

            add_lora(model, rank=chosen.lora_rank, alpha=2.0 * chosen.lora_rank)
        return model

    def _taken_over(self, model: TaskModel) -> TaskModel:
        """With the encoder that the recipe names."""
        weights, config = self.config.model.weights, model.config
        if weights is not None:
            self.notes.append(told(weights, load_encoder(model, weights)))
            if self._start.bands and config.band_names != self._start.bands:
                here, there = (" ".join(names or ()) for names in (config.band_names, self._start.bands))
                self.notes.append(f"bands       {here}: moved by wavelength from {there}")
        return model

    def objective(self, run: Run, place: Tensor) -> Objective:
        """The loss of the stage that `run` is in."""
        kind = Pixels if self.head_config.dense else Labels
        return kind(run, place, self._weights[run.progress.stage])

    def validation(self, run: Run) -> Scoring:
        """Scores of the held-out images."""
        source = cast("ImageViews", run.windows[run.progress.stage][1])
        return Scoring(source, run, self.head_config, self._weights[run.progress.stage])

    def flops(self, config: ModelConfig, stage: StageConfig) -> float:
        """Of the encoder over all tokens, once per date; the head is small beside it."""
        forward = forward_flops(config, 0.0)
        dates = 2 if self.config.task == "change" else 1
        if self.config.finetune.train == "head":
            return dates * (forward.encoder + forward.patches)
        return dates * (3 * forward.encoder + 2 * forward.patches)
