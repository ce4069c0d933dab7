# SPDX-License-Identifier: Apache-2.0
"""What is evaluated on what: a model's folder and one split, and whether the two belong together.

The model decides bands, band order and normalisation; the data set must have these bands and the model's classes. What
does not fit is refused: a score of other classes or other bands would be a number without meaning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import spectralgpt
from spectralgpt.data.datasets import detect
from spectralgpt.data.datasets.base import PatchDataset
from spectralgpt.data.normalize import Normalizer
from spectralgpt.data.scene_set import DataConfig
from spectralgpt.errors import UserError
from spectralgpt.heads import TaskModel
from spectralgpt.models.base import SpectralModel
from spectralgpt.train import recipe

_UNNAMED = {"unchanged", "changed"}


@dataclass(frozen=True)
class EvaluateOptions:
    """What `spectralgpt evaluate` is asked for.

    Attributes:
        model: a run's folder, or a model's.
        split: of the data set.
        out: folder for the results; None is `evaluation/<split>` in the run, or here.
        batch_size: images, or windows, at a time.
        overlap: of windows on images with maps, share of a side that neighbours have in common.
        bootstrap: resamples of the images for the intervals; 0 for none.
        seed: of these.
        worst: how many of the worst images are shown.
        device: "auto", "cpu" or "cuda".
        probe: None, or how a bare encoder is judged: "knn" or "linear".
        neighbours: of the nearest-neighbour probe.
    """

    model: str
    split: str = "test"
    out: Path | None = None
    batch_size: int = 16
    overlap: float = 0.25
    bootstrap: int = 1000
    seed: int = 0
    worst: int = 12
    device: str = "auto"
    probe: str | None = None
    neighbours: int = 5

    def __post_init__(self) -> None:
        """Checks the counts."""
        for name, least in (("batch_size", 1), ("bootstrap", 0), ("seed", 0), ("worst", 0), ("neighbours", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if not 0 <= self.overlap <= 0.9:
            raise UserError(f"overlap: expected a share of the window from 0 to 0.9, got {self.overlap:g}")


def data_config(model: Path, options: Mapping[str, str]) -> DataConfig:
    """The `data` section of the run that made a model, if it lies in one, under the options of the command line.

    Args:
        model: its folder.
        options: `{"data.root": ...}`, as for training.

    Raises:
        UserError: an option that is none of `data`, or nowhere a word of the images.
    """
    others = [key for key in options if not key.startswith("data.")]
    if others:
        raise UserError(f"--{others[0]}: unknown option; `spectralgpt evaluate --help` tells more")
    stored = model.parent / "config.yaml"
    tree = {"data": _stored_data(stored) if stored.is_file() else {}}
    if "data.root" in options and "data.dataset" not in options:
        tree["data"].pop("dataset", None)
    recipe.override(tree, options)
    config = recipe.build(tree).data
    if "root" not in tree["data"]:
        raise UserError("--data.root: expected the folder of a data set, got none")
    if config.dataset is None:
        config = dataclasses.replace(config, dataset=detect(config.root))
    return config


def _stored_data(path: Path) -> dict[str, Any]:
    """The data of a run's last stage, but whole images where training cut them into windows."""
    tree = recipe.read(path)
    stages = tree.get("stages") or [{}]
    data: dict[str, Any] = {**(tree.get("data") or {}), **(stages[-1].get("data") or {})}
    cuts = ("window=", "stride=")
    data["options"] = [text for text in data.get("options") or [] if not str(text).startswith(cuts)]
    return data


def bands_of(model: SpectralModel, config: DataConfig, given: bool) -> tuple[str, ...]:
    """Names of the model's bands; a model that knows none takes those of `data.bands`.

    Args:
        model: any.
        config: of the data.
        given: the command line names bands.

    Raises:
        UserError: bands that are not the model's.
    """
    names = model.config.band_names
    if names is None:
        if len(config.bands) != model.config.bands:
            raise UserError(
                f"data.bands: expected the {model.config.bands} bands of the model, which does not name them, got "
                f"{len(config.bands)}"
            )
        return config.bands
    if given and config.bands != names:
        raise UserError(
            f"data.bands: expected the model's, {' '.join(names)}, got {' '.join(config.bands)}; leave the option out"
        )
    return names


def normalizer_of(model: SpectralModel, config: DataConfig, given: bool) -> Normalizer:
    """The model's own rule for pixels; a model without one takes `data.normalization`.

    Args:
        model: any.
        config: of the data.
        given: the command line names a rule.

    Raises:
        UserError: a rule beside the model's own.
    """
    own = model.normalization
    if own is None:
        return config.normalizer((1, 1))
    if given and config.normalization != "auto":
        raise UserError(
            f"data.normalization: expected auto, as the model keeps its own ({own['method']}), got "
            f"{config.normalization}; leave the option out"
        )
    if own["method"] == "fixed":
        return Normalizer("fixed", *(tuple(own[key]) for key in ("band_names", "offset", "scale")))
    return Normalizer(own["method"])


def load_task_model(folder: Path) -> TaskModel:
    """A model with a head.

    Raises:
        UserError: it has none.
    """
    model = spectralgpt.from_pretrained(folder)
    if not isinstance(model, TaskModel):
        raise UserError(
            f"{folder}: expected a model fine-tuned for a task, got an {model.kind}; fine-tune it, or judge its "
            "features with --probe knn or --probe linear"
        )
    return model


def check_classes(model: TaskModel, dataset: PatchDataset) -> None:
    """Refuses labels that are not what the model was trained to tell.

    Raises:
        UserError: another task, another number of classes, or others by name or order.
    """
    head, where = model.head_config, f"{dataset.title} in {dataset.root}"
    if dataset.task != head.task:
        raise UserError(f"{where}: expected {head.task} labels as the model gives, got {dataset.task}")
    if len(dataset.classes) != head.num_classes:
        raise UserError(f"{where}: expected the model's {head.num_classes} classes, got {len(dataset.classes)}")
    unnamed = {f"class_{index}" for index in range(head.num_classes)} | _UNNAMED
    if set(head.classes) <= unnamed:
        return
    for index, (known, found) in enumerate(zip(head.classes, dataset.classes, strict=True)):
        if known != found:
            raise UserError(
                f"{where}: expected class {index} to be {known!r} as the model was trained, got {found!r}; "
                "name the classes in the model's order (data.options)"
            )
