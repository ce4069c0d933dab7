# SPDX-License-Identifier: Apache-2.0
"""How well a task is solved: every score is that of the whole data set, never a mean over batches.

A batch only adds counts (or, for average precision, its outputs), so any batch size gives the same numbers. Rules:

- A class without a single target counts in no mean over classes: its recall and average precision do not exist. It is
  listed in `absent`, and its entries per class are None. Predicting it still costs the classes it was taken for.
- A class that is there but never predicted has precision 0, and with it F1 0.
- Of equal outputs the class with the lower index wins; average precision is the step function's area (no
  interpolation), equal outputs being one step.
- In segmentation and change, pixels with `ignore_index` as target count nowhere. Any other value outside the classes
  is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision

from spectralgpt.errors import UserError

PRIMARY = {"single_label": "accuracy", "multi_label": "macro_map", "segmentation": "miou", "change": "f1"}


class Scores:
    """Takes in a model's outputs batch by batch.

    Attributes:
        task: "single_label", "multi_label", "segmentation" or "change".
        classes: their names.
        primary: name of the score by which a checkpoint is chosen; more is better.
        confusion: counts (num_classes, num_classes) int64, target by row, prediction by column; zeros for multi_label.
    """

    def __init__(self, task: str, num_classes: int, classes: Sequence[str] = (), ignore_index: int = 255) -> None:
        """Starts with nothing seen; without names classes are called "class_0" and so on.

        Raises:
            UserError: an unknown task, or classes that cannot be scored.
        """
        if task not in PRIMARY:
            raise UserError(f"task: expected one of {', '.join(PRIMARY)}, got {task!r}")
        least = 1 if task == "multi_label" else 2
        if num_classes < least or (task == "change" and num_classes != 2):
            wanted = "2" if task == "change" else f"at least {least}"
            raise UserError(f"classes: expected {wanted} for {task}, got {num_classes}; there is nothing to tell apart")
        if classes and len(classes) != num_classes:
            raise UserError(f"classes: expected {num_classes} names, got {len(classes)}")
        if task in ("segmentation", "change") and 0 <= ignore_index < num_classes:
            raise UserError(f"ignore_index: expected a number that is no class, got {ignore_index} of {num_classes}")
        self.task = task
        self.classes = tuple(classes) or tuple(f"class_{index}" for index in range(num_classes))
        self.primary = PRIMARY[task]
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self._ignore_index = ignore_index if task in ("segmentation", "change") else None
        self._probabilities: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(self, output: Tensor, target: Tensor) -> None:
        """Adds a batch.

        Args:
            output: as the model's forward gives it, any floating dtype: (B, N) logits, or (B, N, H, W) logits or
                log-probabilities; N classes.
            target: int64: (B,) indices, (B, N) of 0 and 1, or (B, H, W) indices, on any device.

        Raises:
            UserError: shapes that do not fit, targets that are no class, or outputs that are no number.
        """
        output, target = output.detach().cpu(), target.detach().cpu()
        count = len(self.classes)
        wanted = (len(target), count, *target.shape[1:]) if self.task != "multi_label" else (len(target), count)
        if output.shape != wanted or (self.task == "multi_label" and target.shape != wanted):
            raise UserError(
                f"scores of {self.task}: expected outputs {tuple(wanted)} for targets {tuple(target.shape)} and "
                f"{count} classes, got {tuple(output.shape)}; do the model's classes fit the data set's?"
            )
        if output.isnan().any():
            raise UserError("scores: expected numbers from the model, got NaN; did its training diverge?")
        if self.task == "multi_label":
            _refuse_beyond(target, 2)
            self._probabilities.append(output.double().sigmoid())
            self._targets.append(target.long())
        else:
            self.confusion += confusion(output.argmax(1), target, count, self._ignore_index)

    def compute(self) -> dict[str, Any]:
        """Scores of everything seen: floats, `per_class` lists in the classes' order, `absent` names, `count`.

        Where a score does not exist, None stands in its place (Cohen's kappa where only one class occurs).

        Raises:
            UserError: nothing was scored, or there is no positive to find.
        """
        if self.task != "multi_label":
            return from_confusion(self.task, self.confusion, self.classes)
        if not self._targets:
            raise UserError("scores of multi_label: expected at least one image, got none")
        return from_ranking(*self.ranking(), self.classes)

    def ranking(self) -> tuple[Tensor, Tensor]:
        """Multi-label only: every probability, float64, and target, int64, both (images, num_classes)."""
        self._probabilities, self._targets = [torch.cat(self._probabilities)], [torch.cat(self._targets)]
        return self._probabilities[0], self._targets[0]


def confusion(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None = None) -> Tensor:
    """Counts of (target, prediction), (num_classes, num_classes) int64, of int64 tensors of one shape.

    Raises:
        UserError: a target is neither a class nor `ignore_index`.
    """
    if ignore_index is not None:
        kept = target != ignore_index
        prediction, target = prediction[kept], target[kept]
    _refuse_beyond(target, num_classes, "" if ignore_index is None else f" or {ignore_index} (pixel without label)")
    pairs = (target * num_classes + prediction).flatten()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def from_confusion(task: str, matrix: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Scores of a matrix of counts, target by row (`Scores.compute` without multi_label).

    single_label: accuracy, balanced_accuracy (mean recall; a class's recall is its accuracy), kappa (Cohen), macro_f1.
    segmentation: miou, macro_f1, accuracy. change: precision, recall, f1 and iou of class 1, accuracy.
    """
    matrix = matrix.double()
    hits, targets, guesses, count = matrix.diag(), matrix.sum(1), matrix.sum(0), matrix.sum()
    if not count:
        raise UserError(f"scores of {task}: expected labelled {_things(task)}, got none")
    if task == "change" and not targets[1]:
        raise UserError("scores of change: expected changed pixels in the split, found none; precision and recall "
                        "do not exist there, choose another split")  # fmt: skip
    present = targets > 0
    table = {
        "precision": hits / guesses.clamp(min=1),
        "recall": hits / targets,
        "f1": 2 * hits / (targets + guesses),
        "iou": hits / (targets + guesses - hits),
    }
    mean = {name: values[present].mean().item() for name, values in table.items()}
    accuracy = (hits.sum() / count).item()
    if task == "single_label":
        del table["iou"]
        chance = ((targets * guesses).sum() / count**2).item()
        kappa = (accuracy - chance) / (1 - chance) if chance < 1 else None
        result = {"accuracy": accuracy, "balanced_accuracy": mean["recall"], "kappa": kappa, "macro_f1": mean["f1"]}
    elif task == "segmentation":
        result = {"miou": mean["iou"], "macro_f1": mean["f1"], "accuracy": accuracy}
    else:
        result = {**{name: values[1].item() for name, values in table.items()}, "accuracy": accuracy}
    return {**result, **_per_class(table, targets, classes), "count": int(count)}


def from_ranking(probabilities: Tensor, targets: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Scores of multi-label outputs: macro_map, micro_map, macro_f1, micro_f1; F1 at probability above 0.5.

    Args:
        probabilities: (images, num_classes) float64 within 0 to 1.
        targets: (images, num_classes) int64 of 0 and 1.
        classes: names.
    """
    positives = targets.sum(0)
    present = positives > 0
    if not present.any():
        raise UserError("scores of multi_label: expected at least one positive label in the split, found none")
    precision = torch.zeros(len(present), dtype=torch.float64)
    for index in present.nonzero()[:, 0].tolist():
        precision[index] = binary_average_precision(probabilities[:, index], targets[:, index])
    guessed = probabilities > 0.5
    hits, guesses = (guessed & (targets == 1)).sum(0), guessed.sum(0)
    f1 = 2 * hits.double() / (positives + guesses).clamp(min=1)
    result = {
        "macro_map": precision[present].mean().item(),
        "micro_map": binary_average_precision(probabilities.flatten(), targets.flatten()).item(),
        "macro_f1": f1[present].mean().item(),
        "micro_f1": (2 * hits.sum() / (positives.sum() + guesses.sum())).item(),
    }
    table = {"average_precision": precision, "f1": f1}
    return {**result, **_per_class(table, positives, classes), "count": len(targets)}


def _refuse_beyond(target: Tensor, count: int, others: str = "") -> None:
    strange = target[(target < 0) | (target >= count)]
    if strange.numel():
        raise UserError(f"targets: expected 0 to {count - 1}{others}, got {int(strange[0])}")


def _per_class(table: dict[str, Tensor], targets: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    there = (targets > 0).tolist()
    lists: dict[str, list[float | None]] = {
        name: [value if known else None for value, known in zip(values.tolist(), there, strict=True)]
        for name, values in table.items()
    }
    absent = [name for name, known in zip(classes, there, strict=True) if not known]
    return {"per_class": {**lists, "support": [int(number) for number in targets.tolist()]}, "absent": absent}


def _things(task: str) -> str:
    return "images" if task == "single_label" else "pixels"
