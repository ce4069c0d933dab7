# SPDX-License-Identifier: Apache-2.0
"""What an evaluation leaves: `results.json` for programs, `report.html` for people, and the pictures of the latter."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectralgpt.data.datasets.base import PatchDataset, label_text, picture_of
from spectralgpt.errors import UserError
from spectralgpt.evaluate.bootstrap import LEVEL, Intervals
from spectralgpt.evaluate.outcomes import Outcomes
from spectralgpt.viz.evaluation import confusion_figure
from spectralgpt.viz.gallery import contact_sheet
from spectralgpt.viz.page import Block, Facts, Heading, Picture, Table, Text, png, write_page

RESULTS, PAGE, CONFUSION, WORST = "results.json", "report.html", "confusion.png", "worst.png"
FORMAT = "spectralgpt-evaluation"

_THUMBNAIL = 256


@dataclass(frozen=True)
class Evaluation:
    """Everything that is told.

    Attributes:
        facts: what was evaluated on what, by name.
        found: the outcomes.
        intervals: of the scores.
        dataset: the split.
        worst: places of the worst images, the worst first.
    """

    facts: Mapping[str, Any]
    found: Outcomes
    intervals: Intervals
    dataset: PatchDataset
    worst: Sequence[int]


def worst_of(found: Outcomes, count: int) -> list[int]:
    """Places of the images with the largest errors; of equals the earlier one first."""
    known = np.flatnonzero(~np.isnan(found.errors))
    order = known[np.argsort(-found.errors[known], kind="stable")]
    return [int(place) for place in order[:count] if found.errors[place] > 0]


def write_report(folder: Path, evaluation: Evaluation, map_at: Callable[[int], NDArray[Any]] | None) -> dict[str, Any]:
    """Writes all files and returns what `results.json` holds.

    Args:
        folder: made if missing; former results in it are replaced.
        evaluation: what to tell.
        map_at: gives the model's map of an image by its place, to draw it; None where labels are those of images.

    Raises:
        UserError: the folder cannot be written.
    """
    results = _results(evaluation)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        blocks = _blocks(evaluation, results)
        if evaluation.found.scores.task != "multi_label":
            unit = "images" if evaluation.found.scores.task == "single_label" else "pixels"
            matrix = evaluation.found.scores.confusion.numpy()
            picture = png(confusion_figure(matrix, evaluation.found.scores.classes, unit))
            (folder / CONFUSION).write_bytes(picture)
            caption = "Confusion matrix: of each true class, percent predicted as each class."
            blocks += [Heading("Confusion"), Picture(picture, caption)]
        if evaluation.worst:
            _draw_worst(folder / WORST, evaluation, map_at)
            rows = [
                [f"{rank}. {row['image']}", *list(row.values())[1:]] for rank, row in enumerate(results["worst"], 1)
            ]
            table = Table(["image", "error", "what"], rows, _ERROR)
            blocks += [Heading("Worst images"), Picture((folder / WORST).read_bytes(), "Worst first."), table]
        text = json.dumps(results, indent=1, allow_nan=False) + "\n"
        temporary = folder / f".{RESULTS}"
        temporary.write_text(text, encoding="utf-8")
        write_page(folder / PAGE, f"Evaluation: {evaluation.facts['data set']}, {evaluation.facts['split']}", blocks)
        os.replace(temporary, folder / RESULTS)
    except OSError as error:
        raise UserError(f"{folder}: expected a folder to write results to, got: {error}") from error
    return results


_ERROR = (
    "The error of an image is the loss of its label (natural logarithm, mean over the classes where an image has "
    "several labels), or the share of its labelled pixels that are wrong."
)


def _results(evaluation: Evaluation) -> dict[str, Any]:
    found, intervals = evaluation.found, evaluation.intervals
    scores = found.scores.compute()
    worst = [
        {"image": found.names[place], "error": float(found.errors[place]), "what": _what(evaluation, place)}
        for place in evaluation.worst
    ]
    return {
        "format": FORMAT,
        "version": 1,
        **evaluation.facts,
        "images": len(found.names),
        "classes": list(found.scores.classes),
        "primary": found.scores.primary,
        "scores": scores,
        "intervals": {name: list(bounds) for name, bounds in intervals.bounds.items()},
        "interval level": LEVEL,
        "resamples": intervals.resamples,
        "interval note": intervals.note,
        "confusion": None if found.scores.task == "multi_label" else found.scores.confusion.tolist(),
        "notes": evaluation.dataset.notes,
        "worst": worst,
    }


def _blocks(evaluation: Evaluation, results: Mapping[str, Any]) -> list[Block]:
    scores, bounds = results["scores"], results["intervals"]
    facts = {**evaluation.facts, "images": results["images"], "scored": scores["count"]}
    rows = [
        [
            f"{name} (selects models)" if name == results["primary"] else name,
            scores[name],
            *bounds.get(name, [None] * 2),
        ]
        for name in scores
        if name not in ("per_class", "absent", "count")
    ]
    caption = f"{100 * LEVEL:g} % intervals: percentile bootstrap over images, {results['resamples']} resamples"
    if results["interval note"]:
        caption = f"No intervals: {results['interval note']}"
    columns = list(scores["per_class"])
    classes = zip(results["classes"], *(scores["per_class"][name] for name in columns), strict=True)
    blocks: list[Block] = [
        Facts(facts),
        Heading("Scores"),
        Table(["score", "value", "from", "to"], rows, caption + "."),
    ]
    if scores["absent"]:
        blocks.append(Text(f"Without a single target, so in no mean over classes: {', '.join(scores['absent'])}."))
    blocks += [Text(note) for note in results["notes"]]
    return [*blocks, Heading("Classes"), Table(["class", *columns], [list(row) for row in classes])]


def _what(evaluation: Evaluation, place: int) -> str:
    """Of a labelled image what it is and what it was taken for."""
    scores, classes = evaluation.found.scores, evaluation.found.scores.classes
    if scores.task == "single_label":
        target, guess = divmod(int(evaluation.found.cell[place]), len(classes))
        return classes[target] if target == guess else f"{classes[target]}, taken for {classes[guess]}"
    if scores.task == "multi_label":
        probabilities, targets = (values[place].numpy() for values in scores.ranking())
        truth, taken = (label_text(classes, flags) or "nothing" for flags in (targets, probabilities > 0.5))
        return f"{truth}; taken for {taken}"
    return f"{100 * evaluation.found.errors[place]:.1f} % of the pixels wrong"


def _draw_worst(path: Path, evaluation: Evaluation, map_at: Callable[[int], NDArray[Any]] | None) -> None:
    dataset, pictures = evaluation.dataset, []
    for rank, place in enumerate(evaluation.worst, start=1):
        sample = dataset[place]
        shown = picture_of(dataset, sample, _THUMBNAIL)
        pictures.append(replace(shown, caption=f"{rank}. {_what(evaluation, place)}"))
        if map_at is not None:
            step = max(1, max(sample["image"].shape[-2:]) // _THUMBNAIL)
            pictures.append(replace(shown, caption="the model's map", mask=map_at(place)[::step, ::step]))
    contact_sheet(path, pictures, evaluation.found.scores.classes, dataset.colours, title="worst images")
