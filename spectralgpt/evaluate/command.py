# SPDX-License-Identifier: Apache-2.0
"""`spectralgpt evaluate`: from a model's folder and a split to scores, a page and pictures.

Selection belongs to validation while training; nothing here chooses anything, so a test split may be opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import spectralgpt
from spectralgpt.data.datasets.base import PatchDataset
from spectralgpt.data.normalize import Normalizer
from spectralgpt.data.scene_set import DataConfig
from spectralgpt.data.source import open_split
from spectralgpt.errors import UserError
from spectralgpt.evaluate.bootstrap import intervals
from spectralgpt.evaluate.inputs import (
    EvaluateOptions,
    bands_of,
    check_classes,
    data_config,
    load_task_model,
    normalizer_of,
)
from spectralgpt.evaluate.outcomes import Outcomes, Run, outcomes
from spectralgpt.evaluate.probe import image_features, probe
from spectralgpt.evaluate.report import PAGE, RESULTS, Evaluation, worst_of, write_report
from spectralgpt.heads import TaskModel
from spectralgpt.models.base import SpectralModel
from spectralgpt.models.encoder import Encoder
from spectralgpt.predict.device import choose_device
from spectralgpt.predict.inputs import model_folder


def run_evaluation(arguments: Mapping[str, Any], data: Mapping[str, str]) -> int:
    """Evaluates and writes the results; prints the scores.

    Args:
        arguments: the fields of `EvaluateOptions`.
        data: the `--data.*` options, without the dashes.

    Returns:
        The exit code.

    Raises:
        UserError: model and data do not fit, or an image cannot be read.
    """
    options = EvaluateOptions(**arguments)
    folder = model_folder(options.model)
    config = data_config(folder, data)
    device = choose_device(options.device)
    model = spectralgpt.from_pretrained(folder) if options.probe else load_task_model(folder)
    model.to(device).eval()
    bands = bands_of(model, config, "data.bands" in data)
    normalizer = normalizer_of(model, config, "data.normalization" in data)
    dataset = open_split(config, options.split, bands)
    map_at = None
    if isinstance(model, TaskModel) and not options.probe:
        check_classes(model, dataset)
        run = Run(model, dataset, normalizer, config, options.batch_size, options.overlap)
        found = outcomes(run)
        map_at = run.map_at if model.head_config.dense else None
    else:
        found = _probed(model, dataset, normalizer, options, config)
    found.scores.compute()  # what cannot be scored is told before the bootstrap's wait
    evaluation = Evaluation(
        facts=_facts(folder, model, dataset, normalizer, options),
        found=found,
        intervals=intervals(found, options.bootstrap, options.seed),
        dataset=dataset,
        worst=worst_of(found, options.worst),
    )
    out = options.out or _default_out(folder, options)
    _print(write_report(out, evaluation, map_at), out)
    return 0


def encoder_of(model: SpectralModel) -> Encoder:
    """The encoder of any model."""
    encoder = model if isinstance(model, Encoder) else getattr(model, "encoder", None)
    if not isinstance(encoder, Encoder):
        raise UserError(f"model: expected one with an encoder, got {model.kind}")
    return encoder


def _probed(
    model: SpectralModel, dataset: PatchDataset, normalizer: Normalizer, options: EvaluateOptions, config: DataConfig
) -> Outcomes:
    encoder = encoder_of(model)
    train = open_split(config, config.train_split, dataset.bands)
    names = tuple(dataset.name(index) for index in range(len(dataset)))
    seen = {train.name(index) for index in range(len(train))} & set(names)
    if seen:
        raise UserError(
            f"split: expected images that the probe does not learn from, got {len(seen)} of data.train_split "
            f"{config.train_split} in {options.split}; choose other splits"
        )
    features = [image_features(encoder, part, normalizer, config, options.batch_size) for part in (train, dataset)]
    assert options.probe is not None
    return probe(options.probe, features[0], features[1], dataset.classes, names, options.neighbours)


def _facts(
    folder: Path, model: SpectralModel, dataset: PatchDataset, normalizer: Normalizer, options: EvaluateOptions
) -> dict[str, Any]:
    facts = {
        "model": str(folder),
        "kind": f"{model.kind} on {model.config.name}",
        "task": dataset.task,
        "data set": dataset.title,
        "root": str(dataset.root),
        "split": dataset.split,
        "bands": " ".join(dataset.bands),
        "normalisation": normalizer.method,
        "library": f"spectralgpt {spectralgpt.__version__}",
    }
    if options.probe:
        facts["probe"] = f"{options.neighbours} nearest neighbours" if options.probe == "knn" else "linear"
    elif isinstance(model, TaskModel) and model.head_config.dense:
        facts["windows"] = f"{model.config.height_width[0]} pixels, overlap {options.overlap:g}"
    return facts


def _default_out(folder: Path, options: EvaluateOptions) -> Path:
    is_run = folder.name == "model" and (folder.parent / "config.yaml").is_file()
    name = options.split if options.probe is None else f"{options.split}-{options.probe}"
    return (folder.parent if is_run else Path()) / "evaluation" / name


def _print(results: Mapping[str, Any], out: Path) -> None:
    scores = results["scores"]
    for name, value in scores.items():
        if name in ("per_class", "absent", "count"):
            continue
        bounds = results["intervals"].get(name)
        between = f"   {bounds[0]:.4f} to {bounds[1]:.4f}" if bounds else ""
        print(f"{name:18} {'-' if value is None else f'{value:.4f}'}{between}")
    if results["interval note"]:
        print(f"intervals          none: {results['interval note']}")
    if scores["absent"]:
        print(f"without targets    {', '.join(scores['absent'])}")
    print(f"results            {out / RESULTS}, {out / PAGE}")
