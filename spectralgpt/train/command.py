# SPDX-License-Identifier: Apache-2.0
"""The steps of `spectralgpt train` around the loop: recipe, folder, data, model, and the few lines about them.

Order matters: the folder is locked and proven writable before any work, and it disappears again if the data or
the model does not fit.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from spectralgpt.errors import UserError
from spectralgpt.nn.attention import select_backend
from spectralgpt.ops import _native
from spectralgpt.train import distributed, recipe
from spectralgpt.train.checkpoint import Checkpoint, Checkpoints, shared
from spectralgpt.train.config import RunConfig
from spectralgpt.train.device import device_type, is_out_of_memory
from spectralgpt.train.folder import RunFolder
from spectralgpt.train.interrupt import Interrupted
from spectralgpt.train.loop import train
from spectralgpt.train.report import write_report
from spectralgpt.train.resume import check_recipe, fitting
from spectralgpt.train.run import Run, prepare

_LAUNCHER = ".launcher"


def run_training(options: Mapping[str, str]) -> int:
    """Trains as the options of the command line say; returns the exit code.

    Raises:
        UserError: anything the user can mend; a new run's folder is gone again unless training had begun.
    """
    overrides = dict(options)
    recipe_path, resume = overrides.pop("config", None), overrides.pop("resume", None)
    print_config = overrides.pop("print_config", None) is not None
    allow_change = overrides.pop("allow-config-change", None) is not None
    folder = RunFolder(Path(resume)) if resume else None
    stored = folder.stored_config() if folder is not None else None
    config = _configure(recipe_path or stored, overrides)
    if resume == "":
        folder = RunFolder.find(config.output, config.name)
        config = _configure(recipe_path or folder.stored_config(), overrides)
    if print_config:
        print(recipe.to_yaml(config), end="")
        return 0
    with _memory_told(), distributed.processes(device_type(config)), _own_folder(config, folder) as folder:
        checkpoints = Checkpoints(folder.checkpoints, config.keep_checkpoints)
        goes_on = distributed.rank() == 0 and (resume is not None or checkpoints.steps())
        saved = shared(checkpoints.load_latest() if goes_on else None)
        with fitting(saved):
            if saved is not None:
                check_recipe(saved, config, allow_change=allow_change)
            run = prepare(config, saved)
        if distributed.rank() == 0:
            checkpoints.require_space(run.checkpoint_bytes())
        folder.write_config(recipe.to_yaml(config))
        (folder.path / _LAUNCHER).write_text(distributed.launcher() or "")
        _announce(run, folder, config, saved)
        return _train(run, folder, checkpoints)


@contextlib.contextmanager
def _memory_told() -> Iterator[None]:
    """Memory that runs out beside the passes, which know how to halve: the model or its optimizer is too large."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"expected memory for the model and its optimizer, got: {str(error).splitlines()[0]}; try "
            "--precision bf16, a smaller model, or several GPUs with --speed.parallel fsdp; "
            "`spectralgpt plan` tells what they take"
        ) from error


@contextlib.contextmanager
def _own_folder(config: RunConfig, folder: RunFolder | None) -> Iterator[RunFolder]:
    """The run's folder for the first process, and one to throw away, without a voice, for each of the others."""
    with contextlib.ExitStack() as stack:
        if distributed.rank() > 0:
            folder = RunFolder(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            silence = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(silence))
        elif folder is None:
            folder = _former_attempt(config) or RunFolder.create(config.output, config.name)
        yield stack.enter_context(folder)


def _former_attempt(config: RunConfig) -> RunFolder | None:
    """The folder of this launch, where torchrun restarted it after a process died."""
    if not distributed.is_restarted():
        return None
    found = [path for path in Path(config.output).glob(f"*/{_LAUNCHER}") if path.read_text() == distributed.launcher()]
    newest = max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
    return RunFolder(newest.parent) if newest is not None else None


def _configure(path: str | Path | None, overrides: Mapping[str, str]) -> RunConfig:
    tree = recipe.read(path)
    recipe.override(tree, overrides)
    return recipe.build(tree)


def _train(run: Run, folder: RunFolder, checkpoints: Checkpoints) -> int:
    try:
        train(run, folder, checkpoints)
    except Interrupted as end:
        if distributed.rank() == 0:
            print(f"{end}; the state is saved: --resume {folder.path} goes on", file=sys.stderr)
        return end.exit_code
    except OSError as error:  # a full disk meets the log first
        raise UserError(
            f"{error.filename or folder.path}: {error.strerror}; make room, then --resume {folder.path}"
        ) from error
    print(f"model       {folder.model}   spectralgpt.from_pretrained({str(folder.model)!r})")
    if distributed.rank() == 0:
        _report(folder)
    print(f"figures     {folder.figures}")
    print(f"metrics     {folder.metrics}")
    print(f"curves      tensorboard --logdir {folder.tensorboard}")
    return 0


def _report(folder: RunFolder) -> None:
    """The page; the run is done with or without it."""
    try:
        print(f"report      {write_report(folder.path)}")
    except (UserError, OSError) as error:
        warnings.warn(f"{error}; the run is complete; `spectralgpt report {folder.path}` makes its page", stacklevel=2)


def _announce(run: Run, folder: RunFolder, config: RunConfig, saved: Checkpoint | None) -> None:
    model = run.model.config
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    head_dim = model.embed_dim // model.num_heads
    native = "native" if run.device.type in _native.devices() else "reference (PyTorch)"
    left = range(run.progress.stage, len(config.stages))
    images = {config.stages[index].data or config.data: index for index in reversed(left)}  # stages may share theirs
    for index in sorted(images.values()):
        print(f"data        {run.windows[index][0].describe()}")
    print(
        f"model       {model.name}, {parameters / 1e6:.1f} M parameters, {model.num_tokens} tokens of "
        f"{' x '.join(map(str, model.patch_size))} values"
    )
    print(
        f"device      {distributed.world_size()} x {run.device.type}, {torch.get_num_threads()} threads, "
        f"{str(run.dtype).removeprefix('torch.')}; operators {native}, "
        f"attention {select_backend(run.device.type, run.dtype, head_dim)}"
    )
    if run.passes.planned:
        again = {"none": "nothing", "light": "GELU and LayerNorm", "blocks": "whole blocks"}[run.passes.recompute]
        print(f"passes      of {run.passes.micro_batch} windows, {again} computed again: planned for this GPU's memory")
    for note in run.task.notes:
        print(note)
    print(f"run         {folder.path}" + (f", goes on after step {saved.step}" if saved else ""), flush=True)
    if saved is None and folder.path.name != config.name:
        print(f"            {config.name} is taken by a former run; --resume would continue the newest one")
