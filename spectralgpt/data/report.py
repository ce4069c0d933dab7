# SPDX-License-Identifier: Apache-2.0
"""What `spectralgpt info FOLDER` says of a data set: counts, bands, sizes, problems, and a contact sheet.

Counts come from the lists, everything else from a sample of images that is read whole, evenly spread over each
split. A problem is told once for every kind, with the first image that has it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from tqdm import tqdm

from spectralgpt.data.datasets import dataset_class, detect, open_dataset
from spectralgpt.data.datasets.base import PatchDataset, Sample, picture_of
from spectralgpt.data.record import Record
from spectralgpt.errors import UserError

if TYPE_CHECKING:
    from spectralgpt.viz.gallery import Picture

SAMPLE = 200
_PICTURES = 60
_PICTURE_SIZE = 256
_SHOWN = 10
_TASKS = {
    "none": "no labels",
    "single_label": "one class each",
    "multi_label": "several classes each",
    "segmentation": "a class for each pixel",
    "change": "pairs with changed pixels",
}


@dataclass
class Survey:
    """What a sample of images of one or several splits shows."""

    num_read: int = 0
    shapes: set[tuple[int, ...]] = field(default_factory=set)
    dtypes: set[str] = field(default_factory=set)
    systems: Counter[str] = field(default_factory=Counter)
    num_values: int = 0
    num_invalid: int = 0
    mask_counts: Counter[int] = field(default_factory=Counter)
    problems: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Counts an image in."""
        self.num_read += 1
        self.shapes.add(record.pixels.shape)
        self.dtypes.add(str(record.pixels.dtype))
        self.systems[record.crs or "none"] += 1
        self.num_values += record.pixels.size
        self.num_invalid += 0 if record.valid is None else int((~record.valid).sum())
        if record.mask is not None:
            values, counts = np.unique(record.mask, return_counts=True)
            self.mask_counts.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def add_problem(self, error: UserError) -> None:
        """Counts a problem in; its kind is its message without the place and the numbers."""
        kind = re.sub(r"[\d.]+", "#", str(error).partition(": ")[2])
        count, first = self.problems.get(kind, (0, str(error)))
        self.problems[kind] = (count + 1, first)


def dataset_report(
    root: str | Path,
    name: str | None = None,
    split: str | None = None,
    bands: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    sample: int = SAMPLE,
    sheet: str | Path | None = None,
) -> Iterator[str]:
    """The report, line by line, as it comes to be known; the contact sheet is written before the last one.

    Args:
        root: the archive.
        name: of the data set; told from the folder by default.
        split: only this one.
        bands: names; the data set's own by default.
        options: of its constructor.
        sample: how many images to read.
        sheet: where the contact sheet goes; `<name>-<split>.png` in the current folder by default.

    Raises:
        UserError: no split can be opened, or the sheet cannot be written.
    """
    name = detect(root) if name is None else name
    opened, failed = _open(name, root, split, bands, dict(options or {}))
    first = next(iter(opened.values()))
    yield f"{first.title} in {first.root}, {_TASKS[first.task]}"
    yield f"bands: {_some(first.bands, 16)}"
    for key, dataset in opened.items():
        yield f"{key}: {len(dataset)} images" + "".join(f"; {note}" for note in _some_notes(dataset.notes))
    for key, error in failed.items():
        yield f"{key}: {error}"
    yield from _class_lines(opened)
    survey = Survey()
    pictures: list[Picture] = []
    for key, dataset in opened.items():
        for index in tqdm(_spread(len(dataset), max(1, sample // len(opened))), key, delay=2, leave=False):
            try:
                record = dataset.read(index)
            except UserError as problem:
                survey.add_problem(problem)
                continue
            survey.add(record)
            pictures.append(picture_of(dataset, _as_sample(record), _PICTURE_SIZE))
            if len(pictures) > 2 * _PICTURES:
                del pictures[1::2]
    yield from _survey_lines(survey, first)
    if pictures:
        path = Path(sheet) if sheet is not None else Path(f"{name}-{split or '-'.join(opened)}.png")
        _write_sheet(
            path, pictures, first, f"{first.title}, {' and '.join(opened)}: {sum(map(len, opened.values()))} images"
        )
        yield f"contact sheet: {path.absolute()}"


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Options of a data set from "key=value" texts; values are YAML: numbers, true, [B02, B03].

    Raises:
        UserError: a text is none of that.
    """
    options: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"option {text!r}: expected KEY=VALUE with a YAML value ({error})") from error
        if not sign:
            raise UserError(f"option {text!r}: expected KEY=VALUE")
    return options


def _open(
    name: str, root: str | Path, split: str | None, bands: Sequence[str] | None, options: dict[str, Any]
) -> tuple[dict[str, PatchDataset], dict[str, UserError]]:
    """The splits that open, and why the others do not; "all" only where nothing else does."""
    kind = dataset_class(name)
    if "partial" in kind.__init__.__kwdefaults__:
        options = {"partial": True, **options}
    opened: dict[str, PatchDataset] = {}
    failed: dict[str, UserError] = {}
    for key in kind.splits if split is None else (split,):
        if key == "all" and split is None and opened:
            break
        try:
            opened[key] = open_dataset(name, root, key, bands, **options)
        except UserError as error:
            failed[key] = error
        except TypeError as error:  # an option of a wrong type
            failed[key] = UserError(f"options of {name}: {error}")
    if not opened:
        raise next(iter(failed.values()))
    return opened, failed


def _class_lines(opened: Mapping[str, PatchDataset]) -> Iterator[str]:
    """A table of images per class and split, where labels are known without reading."""
    first = next(iter(opened.values()))
    columns = []
    for dataset in opened.values():
        labels = dataset.labels()
        if labels is None:
            return
        single = labels.ndim == 1
        columns.append(np.bincount(labels, minlength=len(first.classes)) if single else labels.sum(axis=0, dtype=int))
    width = min(48, max(map(len, first.classes)))
    yield f"{'class':{width}}" + "".join(f"{key:>9}" for key in opened)
    for number, name in enumerate(first.classes):
        yield f"{name[:width]:{width}}" + "".join(f"{column[number]:9d}" for column in columns)


def _survey_lines(survey: Survey, dataset: PatchDataset) -> Iterator[str]:
    if survey.num_read:
        shapes = sorted(survey.shapes, key=lambda shape: shape[-2] * shape[-1])
        sizes = " to ".join(dict.fromkeys(f"{shape[-2]} x {shape[-1]}" for shape in (shapes[0], shapes[-1])))
        dates = "".join({f", {shape[0]} dates" for shape in shapes if len(shape) == 4})
        systems = [f"{system} {count}" for system, count in survey.systems.most_common()]
        yield (
            f"read {survey.num_read} images: {sizes} pixels{dates}, {' and '.join(sorted(survey.dtypes))}, "
            f"{100 * survey.num_invalid / survey.num_values:.3g} % no data"
        )
        yield f"coordinate systems: {_some(systems, 6)}"
    total = sum(survey.mask_counts.values())
    for value, count in sorted(survey.mask_counts.items()):
        name = dataset.classes[value] if value < len(dataset.classes) else "no label"
        yield f"{100 * count / total:7.3f} % of the pixels: {name}"
    for count, message in survey.problems.values():
        yield f"problem, {count} images: {message}" if count > 1 else f"problem: {message}"
    yield f"problems: {sum(count for count, _ in survey.problems.values()) or 'none'}"


def _write_sheet(path: Path, pictures: Sequence[Picture], dataset: PatchDataset, title: str) -> None:
    from spectralgpt.viz.gallery import contact_sheet

    if not path.absolute().parent.is_dir():
        raise UserError(f"{path}: expected a file in a folder that exists")
    shown = [pictures[index] for index in _spread(len(pictures), _PICTURES)]
    try:
        contact_sheet(path, shown, dataset.classes, dataset.colours, title=title)
    except (OSError, ValueError) as error:  # ValueError: a format matplotlib does not write
        raise UserError(f"{path}: expected a picture file that can be written ({error})") from error


def _as_sample(record: Record) -> Sample:
    parts = {"image": record.pixels, "label": record.label, "mask": record.mask, "valid": record.valid}
    return {key: value for key, value in parts.items() if value is not None}


def _spread(count: int, wanted: int) -> list[int]:
    """`wanted` indices out of `count`, evenly."""
    return sorted({index * count // min(count, wanted) for index in range(min(count, wanted))})


def _some(texts: Sequence[str], most: int) -> str:
    return " ".join(texts[:most]) + (f" ... ({len(texts)})" if len(texts) > most else "")


def _some_notes(notes: Sequence[str]) -> list[str]:
    return list(notes[:_SHOWN]) + ([f"and {len(notes) - _SHOWN} more"] if len(notes) > _SHOWN else [])
