# SPDX-License-Identifier: Apache-2.0
"""Change detection and land cover, trained end to end on a handful of real scenes, beside simple rivals.

    python benchmarks/dense_transfer.py --weights RUN --oscd FOLDER --land FOLDER --out results.json

- OSCD (`--oscd`, cities in the archive's layout): every city is the test of a model trained on the others. For every
  method each band of each image has the same mean and deviation, which takes haze and season out of the difference.
  Rivals: change vector analysis (length of the difference of bands) and logistic regression on single pixels (both
  dates and their absolute difference). Every method's threshold is the one with the best F1 on the training cities;
  the model's own decision (the likelier class) is given too.
- Land cover (`--land`, `S2L1C/*.tif` of 13 bands with `LULC/*.tif`): of the 4 x 4 cells of each image every third is
  the test; it is never seen, but what borders on it is. Rival: logistic regression on single pixels, with classes drawn
  equally often and as they come.

All see the same pixels, `pretrained` from the weights given and `random` the same encoder with fresh ones. Training and
scoring are the commands `spectralgpt train` and `spectralgpt evaluate`; what is finished in `--runs` is not repeated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, jaccard_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from spectralgpt.data.bands import SENTINEL2_12
from spectralgpt.data.datasets import open_dataset
from spectralgpt.data.datasets.base import PatchDataset
from spectralgpt.data.raster import write_geotiff
from spectralgpt.data.record import IGNORE
from spectralgpt.data.scene_set import DataConfig
from spectralgpt.evaluate.inputs import load_task_model, normalizer_of
from spectralgpt.evaluate.outcomes import Run, map_of
from spectralgpt.models.checkpoint import read_pretrained

_CLI = [sys.executable, "-m", "spectralgpt.cli"]
_L1C = "B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B10 B11 B12".split()
_PIXELS = 10_000  # of a class, or in the mean of the classes, for logistic regression
_CELLS = 4
Floats = NDArray[np.float64]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="a pretraining's run")
    parser.add_argument("--oscd", type=Path, help="folder of OSCD, whole or in part")
    parser.add_argument("--land", type=Path, help="folder with S2L1C and LULC")
    parser.add_argument("--runs", type=Path, default=Path("runs/dense"), help="trainings are kept here")
    parser.add_argument("--steps", type=int, default=600, help="of a training (%(default)s)")
    parser.add_argument("--window", type=int, default=48, help="pixels of a training window (%(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate (%(default)s)")
    parser.add_argument("--land-weights", choices=["none", "balanced"], default="none", help="of classes (%(default)s)")
    parser.add_argument("--arms", nargs="+", default=["pretrained", "random"], choices=["pretrained", "random"])
    parser.add_argument("--out", type=Path, help="JSON; a Markdown table goes beside it")
    return parser.parse_args()


def trained(name: str, task: str, arm: str, data: dict[str, Any], finetune: dict[str, Any], args: Any) -> Path:  # noqa: ANN401
    """The run of a finished training."""
    start = read_pretrained(args.weights / "model")
    model: dict[str, Any] = {"drop_path": 0.1}
    model |= {"weights": str(args.weights)} if arm == "pretrained" else {"name": start.config.name}
    stage = {"image_size": args.window, "steps": args.steps, "batch_size": 16, "lr": args.lr, "warmup_steps": 50}
    tree = {
        "task": task,
        "name": f"{name}-{arm}",
        "output": str(args.runs),
        "threads": 1,
        "model": model if arm == "pretrained" else {**model, "position_init": "sincos"},
        "data": {**data, "crop": "window"},
        "finetune": finetune,
        "optim": {"clip_norm": 1.0, "layer_decay": 0.85},
        "stages": [stage],
        "validate_every": 0,
        "checkpoint_every": 0,
    }
    if arm == "random":
        tree["data"]["normalization"] = str(_statistics_file(args))
    run, file = args.runs / tree["name"], args.runs / f"{tree['name']}.yaml"
    if not (run / "model" / "config.json").exists():
        args.runs.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(tree))
        subprocess.run([*_CLI, "train", "--config", str(file)], check=True)
    elif yaml.safe_load(file.read_text()) != tree:
        raise SystemExit(f"{run}: made by another recipe; choose other --runs")
    return run


@cache
def statistics(weights: Path) -> tuple[tuple[str, ...], Floats, Floats]:
    """Bands, means and deviations of the pretraining's fixed normalisation."""
    rule = read_pretrained(weights / "model").normalization
    if rule is None or rule["method"] != "fixed":
        raise SystemExit("--weights: expected a pretraining with fixed statistics (data.normalization: FILE)")
    return tuple(rule["band_names"]), np.array(rule["offset"]), 1 / np.array(rule["scale"])


def _statistics_file(args: argparse.Namespace) -> Path:
    """The same as a file, so that both arms see the same numbers."""
    names, mean, std = statistics(args.weights)
    path: Path = args.runs / "normalization.json"
    record = {"format": "spectralgpt-statistics", "version": 1, "band_names": names}
    args.runs.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**record, "mean": mean.tolist(), "std": std.tolist()}))
    return path


def scores(run: Path, split: str, data: dict[str, str] | None = None) -> dict[str, Any]:
    """What `spectralgpt evaluate` says of a run, on other data than it was trained on where given."""
    out = run / "evaluation" / split
    command = [*_CLI, "evaluate", "--model", str(run), "--split", split, "--bootstrap", "0", "--out", str(out)]
    command += [text for key, value in (data or {}).items() for text in (f"--data.{key}", value)]
    subprocess.run(command, check=True)
    found: dict[str, Any] = json.loads((out / "results.json").read_text())["scores"]
    return found


def best_threshold(values: Floats, changed: NDArray[np.bool_]) -> float:
    """The threshold (value >= it: changed) of the best F1."""
    order = np.argsort(-values)
    hits = np.cumsum(changed[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + changed.sum())
    f1[:-1][np.diff(values[order]) == 0] = 0  # of equal values all are changed or none
    return float(values[order[f1.argmax()]])


def by_threshold(values: dict[str, Floats], changed: dict[str, NDArray[np.bool_]], test: str) -> float:
    """F1 on a city by the threshold that is best on the others."""
    train = [name for name in values if name != test]
    threshold = best_threshold(np.concatenate([values[n] for n in train]), np.concatenate([changed[n] for n in train]))
    return float(f1_score(changed[test], values[test] >= threshold))


def standardised(args: argparse.Namespace) -> PatchDataset:
    """The cities with each band of each image at the mean and deviation that the pretraining saw."""
    folder, (names, mean, std) = args.runs / "cities", statistics(args.weights)
    cities = open_dataset("oscd", args.oscd, "train", names, partial=True)
    for index in range(len(cities)):
        record, city = cities.read(index), Path("images", cities.name(index))
        for date, pixels in enumerate(record.pixels.astype(np.float64), 1):
            z = (pixels - pixels.mean((1, 2), keepdims=True)) / pixels.std((1, 2), keepdims=True)
            moved = z * std[:, None, None] + mean[:, None, None]
            place = folder / city / f"imgs_{date}_rect"
            place.mkdir(parents=True, exist_ok=True)
            for band, values in zip(names, moved.astype(np.float32), strict=True):
                write_geotiff(place / f"{band}.tif", values[None], (band,), crs=None, transform=(1, 0, 0, 0, 1, 0))
        shutil.copy(args.oscd / city / "dates.txt", folder / city)
    shutil.copytree(args.oscd / "train_labels", folder / "train_labels", dirs_exist_ok=True)
    return open_dataset("oscd", folder, "train", names, partial=True)


def change_fold(test: str, cities: PatchDataset, args: argparse.Namespace) -> dict[str, Any]:
    """F1 on one city of everything learnt from the others."""
    records = {cities.name(index): cities.read(index) for index in range(len(cities))}
    names = list(records)
    changed = {name: records[name].mask.ravel() == 1 for name in names}
    _, mean, std = statistics(args.weights)
    dates = {
        name: (record.pixels.reshape(2, len(mean), -1) - mean[:, None]) / std[:, None]
        for name, record in records.items()
    }
    lengths = {name: np.sqrt(((after - before) ** 2).sum(0)) for name, (before, after) in dates.items()}
    pixels = {name: np.concatenate([b, a, np.abs(a - b)]).T for name, (b, a) in dates.items()}
    train = [name for name in names if name != test]
    x, y = np.concatenate([pixels[name] for name in train]), np.concatenate([changed[name] for name in train])
    regression = LogisticRegression(class_weight="balanced", max_iter=300).fit(x, y)
    decisions = {name: regression.decision_function(pixels[name]) for name in names}
    found: dict[str, Any] = {
        "changed share": float(changed[test].mean()),
        "change vector analysis": by_threshold(lengths, changed, test),
        "logistic regression": by_threshold(decisions, changed, test),
    }
    print(f"{test}: {found}", flush=True)
    shards, split = args.runs / f"windows-{test}", f"cities={{train: [{', '.join(train)}], test: [{test}]}}"
    if not shards.exists():  # a window of the archive is 26 files to open, each time
        cut = [f"window={args.window * 3 // 2}", f"stride={args.window * 3 // 4}", split]
        options = [text for option in cut for text in ("--option", option)]
        command = ["prepare", "shards", str(cities.root), str(shards), "--dataset", "oscd", "--workers", "1", *options]
        subprocess.run([*_CLI, *command], check=True)
    data = {"dataset": "shards", "root": str(shards), "val_split": "train"}
    whole_cities = {"dataset": "oscd", "root": str(cities.root), "options": f"['{split}']"}
    for arm in args.arms:
        run = trained(f"oscd-{test}", "change", arm, data, {"train": "all", "class_weights": [1.0, 10.0]}, args)
        whole = {name: changes(run, record, cities) for name, record in records.items()}
        own = scores(run, "test", whole_cities)
        found[arm] = {"threshold of training cities": by_threshold(whole, changed, test), "own decision": own["f1"]}
        found[arm] |= {key: own[key] for key in ("precision", "recall", "iou")}
    return found


def changes(run: Path, record: Any, dataset: PatchDataset) -> Floats:  # noqa: ANN401
    """Probability of change of each pixel of a whole city, flat."""
    model = load_task_model(run / "model").eval()
    config = DataConfig()
    whole = Run(model, dataset, normalizer_of(model, config, False), config)
    values: Floats = map_of(whole, record)[0][1].double().numpy().ravel()
    return values


def land_split(args: argparse.Namespace) -> Path:
    """Each image in 4 x 4 cells, every third a test; with a table of the splits."""
    folder = args.runs / "land"
    data = open_dataset("folder", args.land, "all", _L1C, images="S2L1C/*.tif", masks="LULC/*.tif", band_order=_L1C)
    lines = ["path,mask,split"]
    for index in range(len(data)):
        record, name = data.read(index), Path(data.name(index)).stem
        height, width = (length // _CELLS for length in record.pixels.shape[-2:])
        boxes = []
        for cell, (row, column) in enumerate(np.ndindex(_CELLS, _CELLS)):
            top, left = row * height, column * width
            boxes.append(("train" if (cell + row) % 3 else "test", top, left, height, width))
        a, b, x, d, e, y = record.transform
        for side, row, column, rows, columns in boxes:
            file, cut = f"{name}-{side}-{row}-{column}.tif", np.s_[..., row : row + rows, column : column + columns]
            place = (a, b, x + a * column + b * row, d, e, y + d * column + e * row)
            for part, pixels, bands in (("image", record.pixels, _L1C), ("mask", record.mask[None], ("class",))):
                (folder / part).mkdir(parents=True, exist_ok=True)
                kept = np.ascontiguousarray(pixels[cut])
                write_geotiff(folder / part / file, kept, bands, crs=record.crs, transform=place)
            lines.append(f"image/{file},mask/{file},{side}")
    (folder / "split.csv").write_text("\n".join(lines) + "\n")
    (folder / "classes.json").write_text(json.dumps(list(data.classes)))
    return folder


def land(args: argparse.Namespace) -> dict[str, Any]:
    """Scores on the test cells of everything learnt from the others."""
    folder = land_split(args)
    classes = json.loads((folder / "classes.json").read_text())
    options = {"table": "split.csv", "classes": classes, "ignore": [IGNORE]}
    parts = [open_dataset("folder", folder, split, SENTINEL2_12, **options) for split in ("train", "test")]
    (x, y), (x_test, y_test) = (_single_pixels(part) for part in parts)
    there = np.unique(y_test)
    found: dict[str, Any] = {"classes in the test": len(there)}
    rng = np.random.default_rng(0)
    equal = np.concatenate([rng.permutation(np.flatnonzero(y == label))[:_PIXELS] for label in np.unique(y)])
    for name, kept in (("equal classes", equal), ("as they come", rng.permutation(len(y))[: len(classes) * _PIXELS])):
        regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x[kept], y[kept])
        guess = regression.predict(x_test)
        iou = jaccard_score(y_test, guess, average=None, labels=there, zero_division=0)
        scored = {"miou": float(iou.mean()), "accuracy": float((guess == y_test).mean())}
        found[f"logistic regression, {name}"] = scored
        print(f"land cover, logistic regression, {name}: {scored}", flush=True)
    texts = [f"{key}={json.dumps(value)}" for key, value in options.items()]
    data = {"dataset": "folder", "root": str(folder), "options": texts, "val_split": "train"}
    for arm in args.arms:
        run = trained("land", "segmentation", arm, data, {"train": "all", "class_weights": args.land_weights}, args)
        own = scores(run, "test")
        found[arm] = {key: own[key] for key in ("miou", "accuracy", "macro_f1")}
    return found


def _single_pixels(dataset: PatchDataset) -> tuple[Floats, NDArray[np.int64]]:
    records = [dataset.read(index) for index in range(len(dataset))]
    x = np.concatenate([record.pixels.reshape(len(record.pixels), -1).T for record in records]).astype(np.float64)
    y = np.concatenate([record.mask.ravel() for record in records]).astype(np.int64)
    return x[y != IGNORE], y[y != IGNORE]


def markdown(record: dict[str, Any]) -> str:
    """The record as tables."""
    rows = []
    if folds := record.get("oscd"):
        columns = ["change vector analysis", "logistic regression", *record["arms"]]
        rows += ["| F1 of change, test city | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for name, found in folds.items():
            values = [
                found[c] if not isinstance(found[c], dict) else found[c]["threshold of training cities"]
                for c in columns
            ]
            rows.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
        rows.append("")
    if found := record.get("land"):
        columns = [name for name, value in found.items() if isinstance(value, dict)]
        rows += ["| land cover | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for key in ("miou", "accuracy"):
            rows.append(f"| {key} | " + " | ".join(f"{found[column][key]:.3f}" for column in columns) + " |")
        rows.append("")
    return "\n".join(rows)


def main() -> None:
    """Trains, scores, writes."""
    args = arguments()
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        "benchmark": "dense transfer",
        "model": read_pretrained(args.weights / "model").config.name,
        "steps": args.steps,
        "window": args.window,
        "arms": args.arms,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    if args.land:
        record["land"] = land(args)
    if args.oscd:
        cities = standardised(args)
        names = [cities.name(index) for index in range(len(cities))]
        record["oscd"] = {name: change_fold(name, cities, args) for name in names}
    print(markdown(record))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(markdown(record))


if __name__ == "__main__":
    main()
