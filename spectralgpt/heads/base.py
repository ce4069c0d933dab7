# SPDX-License-Identifier: Apache-2.0
"""What every task model shares: an encoder, a head, and the record that makes its outputs readable.

A task model knows the names and colours of its classes, and saves them with its weights: a map or a label made from
the folder alone needs nothing else.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from spectralgpt.errors import UserError
from spectralgpt.heads.features import POOLS
from spectralgpt.heads.lora import merged_state
from spectralgpt.models.base import SpectralModel
from spectralgpt.models.config import ModelConfig, band_fields, count, make_config, one_of, refuse_unknown
from spectralgpt.models.encoder import Encoder

HEADS = {
    "single_label": ("linear", "mlp", "published"),
    "multi_label": ("linear", "mlp", "published"),
    "segmentation": ("pyramid", "linear", "published"),
    "change": ("pyramid", "linear", "published"),
}
"""Heads of each task, the default first."""
COMPARISONS = ("absolute", "difference", "concat")


@dataclass(frozen=True)
class HeadConfig:
    """What a task model is asked for, beside the encoder's `ModelConfig`.

    Attributes:
        task: "single_label", "multi_label", "segmentation" or "change".
        num_classes: of the output; 2 for change.
        classes: their names; class_0, class_1, ... (unchanged, changed for change) where none are given.
        colours: "#rrggbb" of each class, or none at all.
        ignore_index: the value of pixels without a label; no class may have it.
        head: "linear", "mlp" or "published" for labels; "pyramid", "linear" or "published" for maps.
        spectral_pool: how the spectral groups of a position become one vector: "mean", "concat" or "learned". By
            default the mean; the published heads for maps learn it.
        pool_skip_first: leave the first token out of the average, as the published classifier does; head "published"
            for labels is "linear" with this switched on.
        dropout: before the last layer; of published heads for maps in the places they have it. 0, or their 0.5.
        width: channels of the decoder, or of the MLP's hidden layer; by default it follows the encoder's width.
        compare: how two dates meet: "absolute" difference (either order of dates gives the same), signed
            "difference" (before - after, as published), or "concat" (both dates and their difference).
        standardize: bring each feature to mean 0 and deviation 1 over the training images before the last layers (batch
            normalisation without weights, as He et al. 2022 probe masked autoencoders); for labels.
    """

    task: str
    num_classes: int
    classes: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    ignore_index: int = 255
    head: str = ""
    spectral_pool: str = ""
    pool_skip_first: bool = False
    dropout: float = -1.0
    width: int = 0
    compare: str = ""
    standardize: bool = False

    def __post_init__(self) -> None:
        """Completes what was left open, brings lists to tuples, and checks every value."""
        one_of("task", self.task, HEADS)
        count("num_classes", self.num_classes, least=1 if self.task == "multi_label" else 2, most=65536)
        if self.task == "change" and self.num_classes != 2:
            raise UserError(f"num_classes: expected 2 for change, got {self.num_classes}")
        self._set("head", self.head or HEADS[self.task][0])
        one_of("head", self.head, HEADS[self.task])
        self._complete()
        one_of("spectral_pool", self.spectral_pool, POOLS)
        one_of("compare", self.compare, COMPARISONS)
        count("width", self.width, least=0)
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout: expected a rate in [0, 1), got {self.dropout}")
        if self.pool_skip_first and (self.dense or self.spectral_pool != "mean"):
            raise UserError(
                "pool_skip_first: expected a classifier with spectral_pool mean, got "
                f"task {self.task} with {self.spectral_pool}"
            )
        if self.standardize and self.dense:
            raise UserError(f"standardize: expected a classifier, got task {self.task}")
        if not isinstance(self.ignore_index, int) or 0 <= self.ignore_index < self.num_classes:
            raise UserError(
                f"ignore_index: expected a number that is no class of {self.num_classes}, got {self.ignore_index!r}"
            )
        self._check_names()

    def _complete(self) -> None:
        """Defaults that depend on the task and the head."""
        published_map = self.dense and self.head == "published"
        if self.head == "published" and not self.dense:
            self._set("head", "linear")
            self._set("pool_skip_first", True)
        self._set("spectral_pool", self.spectral_pool or ("learned" if published_map else "mean"))
        self._set("compare", self.compare or ("difference" if published_map else "absolute"))
        if self.dropout == -1.0:
            self._set("dropout", 0.5 if published_map else 0.0)
        named = ("unchanged", "changed") if self.task == "change" else None
        unnamed = named or tuple(f"class_{index}" for index in range(self.num_classes))
        self._set("classes", tuple(self.classes) or unnamed)
        self._set("colours", tuple(self.colours))

    def _check_names(self) -> None:
        for key, values in (("classes", self.classes), ("colours", self.colours)):
            if values and len(values) != self.num_classes:
                raise UserError(f"{key}: expected one for each of {self.num_classes} classes, got {len(values)}")
            if not all(isinstance(value, str) for value in values):
                raise UserError(f"{key}: expected text, got {values!r}")
        if len(set(self.classes)) != len(self.classes):
            raise UserError(f"classes: expected different names, got {', '.join(self.classes)}")
        for colour in self.colours:
            if not re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
                raise UserError(f"colours: expected #rrggbb, got {colour!r}")

    def _set(self, key: str, value: object) -> None:
        object.__setattr__(self, key, value)  # only while the frozen dataclass completes itself

    @property
    def dense(self) -> bool:
        """Whether the output is a map."""
        return self.task in ("segmentation", "change")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> HeadConfig:
        """The inverse of `to_dict`.

        Raises:
            UserError: an unknown, missing or wrong entry.
        """
        refuse_unknown("head", record, _HEAD_FIELDS)
        if lacking := {"task", "num_classes"} - set(record):
            raise UserError(f"head: expected {' and '.join(sorted(lacking))}, got none")
        try:
            return cls(**record)
        except TypeError as error:
            raise UserError(f"head: expected the fields of a head, got {error}") from error


_HEAD_FIELDS = tuple(field.name for field in dataclasses.fields(HeadConfig))


class TaskModel(SpectralModel):
    """An encoder with a head for one task; sub-classes add the head and `forward`.

    Attributes:
        encoder: the part that pretraining gives.
        config: of the encoder.
        head_config: of the head, with the classes.
        normalization: of the pixels, as the data layer writes it.
    """

    tasks: ClassVar[tuple[str, ...]]
    """What the class serves."""

    def __init__(self, config: ModelConfig, head_config: HeadConfig) -> None:
        """Fresh weights.

        Raises:
            UserError: a head of another task.
        """
        super().__init__(config)
        one_of("task", head_config.task, self.tasks)
        self.head_config = head_config
        self.encoder = Encoder(config)

    @property
    def task(self) -> str:
        """One of the data layer's tasks."""
        return self.head_config.task

    @classmethod
    def build(cls, config: ModelConfig, head: Mapping[str, Any] | None = None) -> TaskModel:
        """A model with fresh weights from what `config.json` holds."""
        if head is None:
            raise UserError(f"head: expected the record of a {cls.kind}'s head, got none")
        return cls(config, HeadConfig.from_dict(head))

    def head_record(self) -> dict[str, Any]:
        """The head's configuration as plain values."""
        return self.head_config.to_dict()

    def plain_state_dict(self, tensors: Mapping[str, Tensor] | None = None) -> Mapping[str, Tensor]:
        """As `SpectralModel.plain_state_dict`; low-rank factors are added to the weights they adapt."""
        return merged_state(self, super().plain_state_dict(tensors))

    @torch.no_grad()
    def probabilities(self, *images: Tensor) -> Tensor:
        """Class probabilities, without gradient.

        Args:
            *images: what `forward` takes.

        Returns:
            float32 of `forward`'s shape; they sum to 1 over the classes, except with several labels per image, where
            each class has its own.
        """
        output: Tensor = self(*images).float()
        if self.task == "multi_label":
            return output.sigmoid()
        return output.exp() if self.task == "change" else output.softmax(1)

    def adapt_bands(self, bands: Any) -> None:  # noqa: ANN401 - the forms that create_model takes
        """As `SpectralModel.adapt_bands`, for heads that do not depend on the bands.

        Raises:
            UserError: the head has weights for each band or spectral group.
        """
        fields = band_fields(bands, self.config.patch_size[0])
        groups = len(dataclasses.replace(self.config, **fields).groups)
        pool = self.head_config.spectral_pool
        if self.head_config.head == "pyramid" or (pool != "mean" and groups != len(self.config.groups)):
            why = "sees the bands themselves" if self.head_config.head == "pyramid" else f"has spectral_pool {pool}"
            raise UserError(
                f"bands: expected those that the head was trained for, as it {why}, got others; "
                "make a model for the new bands, take over the encoder with load_encoder and train its head"
            )
        super().adapt_bands(bands)


def task_configs(name: str, task: str, num_classes: int, config: dict[str, Any]) -> tuple[ModelConfig, HeadConfig]:
    """The two configurations behind `create_classifier` and its kin.

    Args:
        name: of the encoder's size.
        task: of the head; an entry "task" of `config` wins.
        num_classes: of the output.
        config: fields of `ModelConfig` and `HeadConfig` mixed; no name belongs to both.

    Raises:
        UserError: an unknown field or a value that does not fit.
    """
    known = [field.name for field in dataclasses.fields(ModelConfig)]
    refuse_unknown("model config", config, [*known, *_HEAD_FIELDS])
    head = {key: config.pop(key) for key in _HEAD_FIELDS if key in config}
    return make_config(name, **config), HeadConfig.from_dict({"task": task, "num_classes": num_classes, **head})
