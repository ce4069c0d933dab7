# SPDX-License-Identifier: Apache-2.0
"""A run as one HTML page, `report.html` in its folder: recipe, curves, scores, pictures, evaluations and maps.

Made of what the folder holds and of nothing else, so it can be made anew at any time, also of a run under way.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from spectralgpt.data.raster_write import class_names, read_class_map
from spectralgpt.errors import UserError
from spectralgpt.viz.curves import Panel, curves_figure, map_figure
from spectralgpt.viz.page import Block, Facts, Heading, Picture, Table, Text, png, write_page

PAGE = "report.html"

_MAP_SIZE = 1200
_STEP_PANELS = (("loss", "loss", True), ("gradient_norm", "gradient norm", True), ("lr", "learning rate", False))
_PLACE = ("step", "stage", "samples")
_POINTS = 4000
_UNITS = (
    "Of hidden tokens in held-out images. psnr: dB, beside those of two guesses without training, the nearest visible "
    "token and the mean of all; sam: spectral angle, degrees; rmse: in the images' own units; relative: rmse in % of "
    "the mean."
)
Row = dict[str, Any]


def write_report(folder: Path, maps: Sequence[Path] = ()) -> Path:
    """Writes the page of a run.

    Args:
        folder: of the run.
        maps: class maps made by `spectralgpt predict`, besides those in the folder's `maps/`; other rasters there
            are passed over.

    Returns:
        The page.

    Raises:
        UserError: no folder of a run, a map that is none, or the disk refuses.
    """
    config, metrics = folder / "config.yaml", folder / "metrics.jsonl"
    if not config.is_file():
        raise UserError(f"{folder}: expected a folder of a run, with config.yaml in it, got none")
    recipe = yaml.safe_load(config.read_text(encoding="utf-8"))
    steps, validations = _rows(metrics)
    blocks: list[Block] = [Facts(_facts(recipe, steps))]
    blocks += _validation(validations, folder / "figures")
    blocks += _curves(steps, validations)
    for results in sorted(folder.glob("evaluation/*/results.json")):
        blocks += _evaluation(results)
    kept = [path for path in sorted((folder / "maps").glob("*.tif")) if class_names(path)]  # not their probabilities
    for path in [*kept, *maps]:
        blocks += _map(path)
    blocks += [Heading("Recipe"), Facts({key: _text(value) for key, value in _flat(recipe)})]
    temporary = folder / f".{PAGE}"
    try:
        write_page(temporary, f"Run: {folder.resolve().name}", blocks)
        os.replace(temporary, folder / PAGE)
    except OSError as error:
        raise UserError(f"{folder / PAGE}: cannot be written: {error.strerror}") from error
    return folder / PAGE


def _rows(path: Path) -> tuple[list[Row], list[Row]]:
    """Rows of steps and of validations; a torn last line is passed over."""
    steps, validations = [], []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if "lr" in row:
            steps.append(row)
        elif "rolled_back_from" not in row:
            validations.append(row)
    return steps, validations


def _facts(recipe: Mapping[str, Any], steps: Sequence[Row]) -> dict[str, Any]:
    model, data = recipe.get("model") or {}, recipe.get("data") or {}
    facts = {
        "task": recipe.get("task", "pretrain"),
        "model": model.get("name") or model.get("weights") or "tiny",
        "data": f"{data.get('dataset') or 'scenes'}: {data.get('root')}",
        "stages": ", ".join(str(stage.get("name")) for stage in recipe.get("stages") or ()),
        "seed": recipe.get("seed"),
    }
    last = steps[-1] if steps else {}
    return facts | {"steps": last.get("step", 0), "samples": last.get("samples", 0)}


def _validation(validations: Sequence[Row], figures: Path) -> list[Block]:
    """The last validation's numbers, and its figure."""
    if not validations:
        return [Text("No validation yet.")]
    last = validations[-1]
    numbers = {key: value for key, value in last.items() if key not in _PLACE and isinstance(value, int | float)}
    blocks: list[Block] = [Heading(f"Validation after step {last['step']}"), Facts(numbers)]
    for name, rows in last.items():
        if isinstance(rows, dict) and rows and all(isinstance(row, dict) for row in rows.values()):
            columns = list(next(iter(rows.values())))
            table = [[key, *(row.get(column) for column in columns)] for key, row in rows.items()]
            blocks.append(Table([name.rstrip("s"), *columns], table, _UNITS if "rmse" in columns else ""))
    drawn = sorted(figures.glob("step-*.png"), key=lambda path: path.stat().st_mtime_ns)
    if drawn:
        blocks.append(Picture(drawn[-1].read_bytes(), drawn[-1].stem))
    return blocks


def _curves(steps: Sequence[Row], validations: Sequence[Row]) -> list[Block]:
    thin = steps[:: max(1, len(steps) // _POINTS)]
    panels = []
    for part, title, is_log in _STEP_PANELS:
        names = [name for name in (thin[0] if thin else ()) if name == part or (part == "loss" and "loss" in name)]
        curves = {name: _curve(thin, name) for name in names}
        panels.append(Panel(title, {name: curve for name, curve in curves.items() if curve[0]}, is_log))
    together: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for name in dict.fromkeys(key for row in validations for key, value in row.items() if isinstance(value, float)):
        if len((curve := _curve(validations, name))[0]) > 1:  # psnr, psnr_nearest ... stand in one panel
            together.setdefault(name if "loss" in name else name.partition("_")[0], {})[name] = curve
    panels += [Panel(f"validation: {name.removeprefix('validation_')}", curves) for name, curves in together.items()]
    panels = [panel for panel in panels if panel.curves]
    if not panels:
        return []
    stages: dict[str, float] = {}
    for row in steps:
        stages.setdefault(str(row.get("stage")), row["step"])
    picture = png(curves_figure(panels, stages))
    return [Heading("Curves"), Picture(picture, "By optimizer step; a dotted line begins a stage.")]


def _curve(rows: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
    points = [point for point in points if math.isfinite(point[1])]
    return [step for step, _ in points], [value for _, value in points]


def _evaluation(path: Path) -> list[Block]:
    """What `spectralgpt evaluate` found on a split."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        scores, intervals = results["scores"], results["intervals"]
        rows = [
            [name, value, *intervals.get(name, (None, None))]
            for name, value in scores.items()
            if isinstance(value, int | float) or value is None
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: expected results of spectralgpt evaluate, got {type(error).__name__}") from error
    blocks: list[Block] = [Heading(f"Evaluation: {path.parent.name}"), Table(["score", "value", "from", "to"], rows)]
    for name, caption in (("confusion.png", "Confusion matrix."), ("worst.png", "Worst images first.")):
        if (path.parent / name).is_file():
            blocks.append(Picture((path.parent / name).read_bytes(), caption))
    return blocks


def _map(path: Path) -> list[Block]:
    values, classes = read_class_map(path, _MAP_SIZE)
    return [Heading(f"Map: {path.name}"), Picture(png(map_figure(values, classes)), path.name)]


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - what YAML holds
    """Leaves of a recipe by their dotted keys."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}{key}.")
    elif isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        for number, item in enumerate(tree):
            yield from _flat(item, f"{prefix}{number}.")
    else:
        yield prefix.rstrip("."), tree


def _text(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "null" if value is None else str(value)
