# SPDX-License-Identifier: Apache-2.0
"""`spectralgpt predict`: from scenes and a model's folder to maps."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import spectralgpt
from spectralgpt.data.bands import SensorCard
from spectralgpt.data.mask import Mask
from spectralgpt.data.scene import Scene
from spectralgpt.data.stack import Stack
from spectralgpt.errors import UserError
from spectralgpt.heads.base import TaskModel
from spectralgpt.predict.device import choose_device
from spectralgpt.predict.inputs import (
    InputOptions,
    card_of,
    fingerprint,
    model_folder,
    normalize,
    open_scene,
    scenes_at,
    window_side,
)
from spectralgpt.predict.layers import NODATA, Layer, class_layer, label_layer, probability_layer
from spectralgpt.predict.ranks import Ranks, processes
from spectralgpt.predict.scene import predict_scene

PROBABILITIES = "-probabilities"


@dataclass(frozen=True)
class PredictOptions:
    """What `spectralgpt predict` is asked for.

    Attributes:
        scenes: files or folders; "demo" is the demo scene. Two dates for change, else each scene by itself.
        model: a run, or a model's folder.
        out: the map, ending in .tif; or a folder, which gets `<scene>.tif` of each, as several scenes need.
        probabilities: also write `<out>-probabilities.tif`.
        window: rows and columns of a window; None for those the model is made for.
        overlap: share of a window's side that it has in common with each neighbour at least; None is 0.25, and 0.5 for
            a classifier.
        batch_size: windows at a time.
        masks: rasters that are not 0 where pixels are left out.
        nodata: of the map.
        device: "auto", "cpu" or "cuda".
        precision: of matrix products, "fp32" or "bf16"; "auto" is bf16 on a GPU.
        overwrite: replace maps made otherwise.
        restart: give up what an interrupted run has done.
    """

    scenes: Sequence[str]
    model: str
    out: Path
    probabilities: bool = False
    window: int | None = None
    overlap: float | None = None
    batch_size: int = 16
    masks: Sequence[str] = ()
    nodata: int = NODATA
    device: str = "auto"
    precision: str = "auto"
    overwrite: bool = False
    restart: bool = False


def run_predict(arguments: Mapping[str, Any]) -> int:
    """Predicts every scene; of several, those that do not serve are told and passed over.

    Args:
        arguments: the fields of `PredictOptions` and of `InputOptions`.

    Returns:
        The exit code.

    Raises:
        UserError: the model or the only scene does not serve; or how many of several scenes did not.
    """
    of_inputs = {field.name for field in dataclasses.fields(InputOptions)}
    inputs = InputOptions(**{key: value for key, value in arguments.items() if key in of_inputs})
    options = PredictOptions(**{key: value for key, value in arguments.items() if key not in of_inputs})
    model = load_task_model(options.model)
    with processes() as ranks:
        device = choose_device(options.device, ranks.local_rank)
        model = model.to(device)
        jobs = _jobs(options, model, card_of(model, inputs))
        failed = 0
        for paths, out in jobs:
            try:
                _predict(model, paths, out, options, inputs, device, ranks)
            except UserError as error:
                if len(jobs) == 1 or ranks.world_size > 1:
                    raise
                failed += 1
                print(f"error: {error}", file=sys.stderr)
        if failed:
            raise UserError(f"{failed} of {len(jobs)} scenes could not be predicted")
    return 0


def load_task_model(path: str | Path) -> TaskModel:
    """The model of a folder or a run, ready to predict.

    Raises:
        UserError: no folder of a model, or one without a head for a task.
    """
    model = spectralgpt.from_pretrained(model_folder(path))
    if not isinstance(model, TaskModel):
        raise UserError(
            f"{path}: expected a classifier, a segmenter or a change detector, got an {model.kind}, which has no "
            "classes; fine-tune it first, or see `spectralgpt embed` and `spectralgpt reconstruct`"
        )
    return model.eval()


def probabilities_of(model: TaskModel, device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    """The function of windows that `predict_scene` takes: class probabilities, one set per pixel or per window."""

    def function(*batches: Tensor) -> Tensor:
        moved = [batch.to(device, non_blocking=True) for batch in batches]
        try:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                values = model.probabilities(*moved)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{device}: out of memory with {len(moved[0])} windows at a time; lower --batch-size"
            ) from error
        return values if values.dim() == 4 else values[:, :, None, None]

    return function


def _predict(
    model: TaskModel,
    paths: Sequence[Path],
    out: Path,
    options: PredictOptions,
    inputs: InputOptions,
    device: torch.device,
    ranks: Ranks,
) -> None:
    began, card = time.monotonic(), card_of(model, inputs)
    demo = {"demo": "demo"} if list(options.scenes) == ["demo"] else {}
    scenes = Stack([open_scene(path, card, inputs, demo.get("demo")) for path in paths]).scenes
    first, precision = scenes[0], options.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    size = options.window or window_side(model.config)
    model.config.grid_of(size, size)  # refuses sizes that the patch does not divide
    overlap = options.overlap
    if overlap is None:  # where a window has one class, a quarter would leave its square to be seen
        overlap = 0.25 if model.head_config.dense else 0.5
    if ranks.rank == 0:
        _say_what_is_unusual(scenes)
    is_new = predict_scene(
        probabilities_of(model, device, torch.bfloat16 if precision == "bf16" else torch.float32),
        scenes,
        _layers(model, first, out, options),
        partial(normalize, model=model, options=inputs),
        size=size,
        overlap=overlap,
        batch_size=options.batch_size,
        masks=[Mask(path, first) for path in options.masks],
        identity={
            "model": fingerprint(model_folder(options.model)),
            "device and precision": [device.type, precision],
            "normalization": [inputs.normalization, inputs.scale, inputs.offset],
        },
        ranks=ranks,
        overwrite=options.overwrite,
        restart=options.restart,
    )
    if ranks.rank == 0:
        what = f"{first.shape[0]} x {first.shape[1]} pixels in {time.monotonic() - began:.1f} s"
        print(f"{out}: {what if is_new else 'is there already, made by the same settings'}", flush=True)


def _jobs(options: PredictOptions, model: TaskModel, card: SensorCard) -> list[tuple[tuple[Path, ...], Path]]:
    """The scenes of each map, and where it goes."""
    paths = [path for text in options.scenes for path in scenes_at(text, card)]
    names = ["demo"] if list(options.scenes) == ["demo"] else [_name(path) for path in paths]
    if model.task == "change":
        if len(paths) != 2:
            raise UserError(f"scenes: expected two dates for a change detector, before and after, got {len(paths)}")
        return [(tuple(paths), _map_path(options.out, names[1]))]
    if len(paths) == 1:
        return [((paths[0],), _map_path(options.out, names[0]))]
    twice = {name for name in names if names.count(name) > 1}
    if twice or options.out.suffix.lower() in (".tif", ".tiff"):
        got = f"two scenes called {min(twice)}" if twice else str(options.out)
        raise UserError(f"--out: expected a folder for {len(paths)} scenes of different names, got {got}")
    return [((path,), options.out / f"{name}.tif") for path, name in zip(paths, names, strict=True)]


def _name(scene: Path) -> str:
    return scene.stem if scene.is_file() else scene.name


def _map_path(out: Path, name: str) -> Path:
    """Where the only map goes: a file, or into a folder like those of several."""
    if out.suffix.lower() in (".tif", ".tiff"):
        return out
    if out.suffix and not out.is_dir():
        raise UserError(f"--out: expected a map that ends in .tif, or a folder, got {out}")
    return out / f"{name}.tif"


def _layers(model: TaskModel, scene: Scene, out: Path, options: PredictOptions) -> list[Layer]:
    """Probabilities if wanted, then the map."""
    head = model.head_config
    if model.task == "multi_label":
        layers = [label_layer(out, scene, head.classes, options.nodata)]
    else:
        layers = [class_layer(out, scene, head.classes, head.colours, options.nodata)]
    if options.probabilities:
        layers.insert(0, probability_layer(out.with_stem(out.stem + PROBABILITIES), scene, head.classes))
    return layers


def _say_what_is_unusual(scenes: Sequence[Scene]) -> None:
    for scene in scenes:
        if scene.crs is None or scene.transform is None:
            what = "coordinate system" if scene.crs is None else "geotransform"
            print(f"warning: {scene.name}: has no {what}, and so will its map", file=sys.stderr)
        if "stand_ins" in scene.metadata:
            print(f"warning: {scene.name}: bands replaced, {scene.metadata['stand_ins']}", file=sys.stderr)
