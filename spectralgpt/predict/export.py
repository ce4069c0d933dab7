# SPDX-License-Identifier: Apache-2.0
"""Models as files that run without this package: ONNX, or a program of `torch.export`.

The batch is left open, and the image's size as well where the graph allows it (multiples of the patch). A file is
compared with the model before it gets its name: other batches and sizes than the one it was traced with must agree.
What a user of the file needs to know (bands, wavelengths, normalisation, classes) goes into its metadata.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

import spectralgpt
from spectralgpt.errors import UserError
from spectralgpt.heads.base import TaskModel
from spectralgpt.models.base import SpectralModel

FORMATS = ("onnx", "pt2")
TOLERANCE = 1e-4
"""Largest difference to the model, relative to its largest output or to 1."""

_RECORD = "spectralgpt.json"
_GRAPH_BYTES = 8 << 20  # of a file beside its weights, at most; measured 2 MB with `huge`
_OUTPUTS = {"change": "log_probabilities"}

Run = Callable[[Sequence[Tensor]], Tensor]


class ExportReport(NamedTuple):
    """What was written.

    Attributes:
        path: the file.
        files: all that belong together: it, and the weights beside it where ONNX demands that.
        kind: encoder, or the task model's kind.
        inputs: name and shape of each input; B, H and W are open.
        output: name of the output.
        differences: input shape -> largest absolute difference to the model.
        is_size_open: whether H and W may be other multiples of the patch.
    """

    path: Path
    files: tuple[Path, ...]
    kind: str
    inputs: dict[str, str]
    output: str
    differences: dict[tuple[int, ...], float]
    is_size_open: bool


def export_model(
    model: SpectralModel, path: str | Path, file_format: str, image_size: int | None = None
) -> ExportReport:
    """Writes a model to a file; of an autoencoder the encoder.

    Args:
        model: any; on the CPU.
        path: the file; weights beyond 2 GB go into a second one beside it, as ONNX demands.
        file_format: "onnx" or "pt2".
        image_size: that the graph is traced for; the model's own by default.

    Raises:
        UserError: an unknown format, a missing library, a place that cannot be written, or a file that does not agree
            with the model, which is then removed.
    """
    if file_format not in FORMATS:
        raise UserError(f"format: expected one of {', '.join(FORMATS)}, got {file_format!r}")
    if file_format == "onnx":
        _need_onnx()
    subject = model if isinstance(model, TaskModel) else getattr(model, "encoder", model)
    subject = subject.eval().requires_grad_(False)
    height, width = (image_size, image_size) if image_size else subject.config.height_width
    subject.config.grid_of(height, width)  # refuses a size that the patch does not divide
    program, is_size_open = _trace(subject, height, width)
    path = Path(path).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_space(subject, path)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            draft = Path(folder) / path.name
            write = _write_onnx if file_format == "onnx" else _write_pt2
            write(program, subject, draft, is_size_open)
            differences = _compare(subject, _open(draft, file_format), height, width, is_size_open)
            drafts = sorted(Path(folder).iterdir(), key=lambda file: file == draft)  # the file itself last
            for file in drafts:
                os.replace(file, path.parent / file.name)
            files = tuple(path.parent / file.name for file in reversed(drafts))
    except OSError as error:
        raise UserError(f"{path}: expected a place that can be written, got: {error.strerror or error}") from error
    names, output = _names(subject)
    size = "H, W" if is_size_open else f"{height}, {width}"
    inputs = {name: f"(B, {subject.config.bands}, {size})" for name in names}
    return ExportReport(path, files, subject.kind, inputs, output, differences, is_size_open)


def run_export(options: dict[str, Any]) -> int:
    """The command `spectralgpt export`."""
    from spectralgpt.predict.inputs import model_folder

    model = spectralgpt.from_pretrained(model_folder(options["model"]))
    report = export_model(model, options["out"], options["format"], options["image_size"])
    size = sum(file.stat().st_size for file in report.files)
    print(f"{report.path}: {report.kind}, {size / 1e6:.1f} MB")
    for file in report.files[1:]:
        print(f"  weights  {file}: keep it beside, under this name")
    print("  inputs   " + ", ".join(f"{name} {shape}" for name, shape in report.inputs.items()))
    print(f"  output   {report.output}")
    for shape, difference in report.differences.items():
        print(f"  {' x '.join(map(str, shape)):18} max |file - model| {difference:.2g}")
    if not report.is_size_open:
        print("  the image's size is fixed: this head does not leave it open")
    return 0


def _check_space(model: SpectralModel, path: Path) -> None:
    """Refuses a disk that cannot hold the weights: torch.export ends the process where it runs full."""
    needed = sum(values.nbytes for values in model.state_dict().values()) + _GRAPH_BYTES
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(f"{path}: expected {needed / 1e6:.4g} MB free for the file, got {free / 1e6:.4g} MB")


def _names(model: SpectralModel) -> tuple[list[str], str]:
    """Names of inputs and output."""
    task = model.task if isinstance(model, TaskModel) else None
    output = _OUTPUTS.get(task or "", "tokens" if task is None else "logits")
    return (["before", "after"] if task == "change" else ["image"]), output


def _images(model: SpectralModel, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(batch * height + width)
    size = (batch, model.config.bands, height, width)
    return tuple(torch.rand(size, generator=generator) for _ in _names(model)[0])


def _trace(model: SpectralModel, height: int, width: int) -> tuple[ExportedProgram, bool]:
    """The graph, with batch and, if possible, size open."""
    _, p, q = model.config.patch_size
    images = _images(model, 2, height, width)
    batch, rows, columns = Dim("B", min=1), Dim("rows", min=2), Dim("columns", min=2)
    closed = {0: batch}
    opened = {**closed, 2: p * rows, 3: q * columns}
    for shapes in (opened, closed):
        try:
            with _quiet():
                program = torch.export.export(model, images, dynamic_shapes=tuple(dict(shapes) for _ in images))
            return program, shapes is opened
        except Exception as error:  # what a graph cannot leave open is told in many ways
            if shapes is closed:
                what = " ".join(str(error).split())[:200]
                raise UserError(f"{model.kind}: expected a model that can be exported, got: {what}") from error
    raise AssertionError("the loop returns or raises")


def _record(model: SpectralModel, is_size_open: bool) -> dict[str, Any]:
    names, output = _names(model)
    return {
        "library": "spectralgpt",
        "version": spectralgpt.__version__,
        "kind": model.kind,
        "inputs": names,
        "output": output,
        "is_size_open": is_size_open,
        "model": model.config.to_dict(),
        "normalization": model.normalization,
        "head": model.head_record(),
    }


def _write_pt2(program: ExportedProgram, model: SpectralModel, path: Path, is_size_open: bool) -> None:
    with _quiet():
        torch.export.save(program, path, extra_files={_RECORD: json.dumps(_record(model, is_size_open))})


def _write_onnx(program: ExportedProgram, model: SpectralModel, path: Path, is_size_open: bool) -> None:
    names, output = _names(model)
    with _quiet():
        program = program.run_decompositions({torch.ops.aten.adaptive_max_pool2d.default: _region_maxima})
        written = torch.onnx.export(program, dynamo=True, input_names=names, output_names=[output], verbose=False)
    if written is None:
        raise UserError(f"{path.name}: expected torch to give an ONNX program, got none")
    record = _record(model, is_size_open)
    head = record["head"] or {}
    written.model.metadata_props.update(
        {
            "spectralgpt": json.dumps(record),
            "bands": " ".join(model.config.band_names or ()),
            "wavelengths_um": " ".join(f"{value:g}" for value in model.config.wavelengths or ()),
            "normalization": json.dumps(model.normalization),
            "classes": json.dumps(list(head.get("classes", ()))),
        }
    )
    with _quiet():
        written.save(str(path))


def _region_maxima(maps: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Adaptive max pooling, which ONNX lacks, as slices; the places of the maxima, which no model uses, are zeros."""
    height, width = maps.shape[-2:]
    rows, columns = size
    # Ceiling without negative numbers, as ONNX divides towards zero.
    regions = [
        maps[
            ...,
            y * height // rows : ((y + 1) * height + rows - 1) // rows,
            x * width // columns : ((x + 1) * width + columns - 1) // columns,
        ]
        for y in range(rows)
        for x in range(columns)
    ]
    values = torch.stack([region.amax((-2, -1)) for region in regions], dim=-1).unflatten(-1, (rows, columns))
    return values, torch.zeros_like(values, dtype=torch.int64)


def _open(path: Path, file_format: str) -> Run:
    """A function of images that runs the file."""
    if file_format == "pt2":
        module = torch.export.load(path).module()
        return lambda images: module(*images)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(images: Sequence[Tensor]) -> Tensor:
        values = {name: image.numpy() for name, image in zip(names, images, strict=True)}
        return torch.from_numpy(session.run(None, values)[0])

    return run


def _compare(
    model: SpectralModel, run: Run, height: int, width: int, is_size_open: bool
) -> dict[tuple[int, ...], float]:
    """Largest difference for other batches, and another size where it is open.

    Raises:
        UserError: it is too large.
    """
    _, p, q = model.config.patch_size
    sizes = [(1, height, width), (3, height, width)]
    if is_size_open:
        sizes.append((2, height + p, max(width - q, 2 * q)))
    differences = {}
    for batch, *size in sizes:
        images = _images(model, batch, *size)
        with torch.no_grad():
            expected = model(*images)
        difference = float((run(images) - expected).abs().max())
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        if not difference <= allowed:
            raise UserError(
                f"{model.kind}: expected the file to agree with the model within {allowed:.2g}, got {difference:.2g} "
                f"for images of {tuple(images[0].shape)}; nothing was written"
            )
        differences[tuple(images[0].shape)] = difference
    return differences


def _need_onnx() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"{name}: expected for ONNX, not installed; pip install 'spectralgpt[export]'") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters narrate and warn of their own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
