# SPDX-License-Identifier: Apache-2.0
"""The command `spectralgpt`: a subcommand per tool; here a user's mistake becomes one line and an exit code.

Exit codes: 0 done, 2 a mistake of the user (one line on stderr, no traceback), 3 training diverged, 128 + n stopped
by signal n; training saves its state first. Each command imports what it needs when it runs, so `--help` does not
wait for PyTorch.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from spectralgpt.errors import UserError

_FIRST_SPEAKS = 10.0  # seconds: what all processes of torchrun stumble over, the first tells, and it ends the others


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(
        prog="spectralgpt",
        description="Masked autoencoders for multi- and hyperspectral satellite images.",
        epilog="commands:\n" + "\n".join(f"  {name:11} {run.__doc__}" for name, run in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below; COMMAND --help tells more"
    )
    try:
        return COMMANDS[parser.parse_args(arguments[:1]).command](arguments[1:])
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(_FIRST_SPEAKS)
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stop:
        print(": ".join(("\nstopped", *stop.args)), file=sys.stderr)
        return 128 + signal.SIGINT


def train(arguments: Sequence[str]) -> int:
    """Pretrain, or fine-tune for a task; without arguments a quickstart of minutes."""
    _spin_shortly()
    from spectralgpt.train import recipe

    if {"-h", "--help"} & set(arguments):
        print(recipe.help_text())
        return 0
    options = recipe.parse_options(arguments)
    from spectralgpt.train.command import run_training

    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        return run_training(options)


def prepare(arguments: Sequence[str]) -> int:
    """Fetch the demo scene, make statistics and shards of a data set, verify shards."""
    parser = _Parser(prog="spectralgpt prepare", description=prepare.__doc__)
    kinds = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    demo = kinds.add_parser("demo", help="the demo scene: Sentinel-2 L1C, 1947 x 1933 pixels, CC0")
    demo.add_argument("--cache", type=Path, help="where it is kept (default: the user's cache folder)")
    stats = kinds.add_parser("stats", help="mean, deviation, extremes and percentiles of each band, as JSON")
    stats.add_argument("root", help="folder of the data set")
    stats.add_argument("-o", "--out", type=Path, required=True, help="the file; normalization: FILE uses it")
    shards = kinds.add_parser("shards", help="fast memory-mapped copies; the same command goes on after any stop")
    shards.add_argument("root", help="folder of the data set")
    shards.add_argument("out", help="folder for the shards, with one folder per split")
    shards.add_argument("--shard-size", type=int, default=1024, metavar="MIB", help="of a shard, about (%(default)s)")
    for command in (stats, shards):
        command.add_argument("--dataset", help="its name, or shards (default: what the folder looks like)")
        command.add_argument("--split", default="train", help="which part (%(default)s)")
        command.add_argument("--bands", **_NAMES, help="in this order (default: the data set's own)")
        command.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the data set")
        command.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (all cores)")
        command.add_argument("--max-bad", type=float, default=0.01, metavar="SHARE", help="of the images (%(default)s)")
    verify = kinds.add_parser("verify", help="compare everything in shards with its hash")
    verify.add_argument("root", help="folder of the shards")
    options = vars(parser.parse_args(arguments))
    from spectralgpt.data import prepare as data_prepare

    print(getattr(data_prepare, options.pop("what"))(**options))
    return 0


def plan(arguments: Sequence[str]) -> int:
    """Tell memory, largest micro-batch, samples per second and days before a run."""
    parser = _Parser(prog="spectralgpt plan", description=plan.__doc__)
    parser.add_argument("--config", metavar="RECIPE", help="plan every stage of a recipe instead of the options below")
    parser.add_argument("--model", help="tiny, small, base, large or huge (base)")
    parser.add_argument("--image-size", type=int, help="pixels of a side (96)")
    parser.add_argument("--bands", type=int, help="bands of an image (12, or the recipe's)")
    parser.add_argument("--mask-ratio", type=float, help="share of hidden tokens (0.9)")
    parser.add_argument("--epochs", type=int, help="length of the schedule (200)")
    parser.add_argument("--images", type=int, help="images of an epoch (712874 as fMoW-Sentinel, BigEarthNet 237871)")
    parser.add_argument("--memory", help="of one GPU: 24GB, 24GiB, 24564MiB (that of the GPU at hand)")
    parser.add_argument("--gpus", type=int, default=1, help="how many (%(default)s)")
    parser.add_argument("--sharding", choices=["ddp", "fsdp"], default="ddp", help="of several GPUs (%(default)s)")
    parser.add_argument("--precision", choices=["bf16", "fp16", "fp32"], help="of matrix products (bf16)")
    parser.add_argument("--optimizer-state", choices=["fp32", "bf16", "8bit"], default="fp32", help="(%(default)s)")
    parser.add_argument("--ema", action="store_true", help="keep a running average of the weights")
    parser.add_argument("--gpu", choices=["h100", "rtx4090"], help="whose speed to assume (the GPU at hand, measured)")
    parser.add_argument("--measure", action="store_true", help="measure the speed here, even on the CPU")
    options = vars(parser.parse_args(arguments))
    from spectralgpt.train.plan_command import run_plan

    return run_plan(options)


def evaluate(arguments: Sequence[str]) -> int:
    """Score a model on a split of a data set: JSON, a page, pictures; or probe a bare encoder."""
    parser = _Parser(
        prog="spectralgpt evaluate",
        description=evaluate.__doc__,
        epilog="and any --data.KEY VALUE of a recipe; by default those of the run that made the model",
    )
    parser.add_argument("--model", required=True, metavar="RUN", help="a run, or a model's folder")
    parser.add_argument("--split", default="test", help="of the data set (%(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the results (RUN/evaluation/SPLIT)")
    parser.add_argument("--batch-size", type=int, default=16, help="images or windows at a time (%(default)s)")
    parser.add_argument("--overlap", type=float, default=0.25, help="of windows on maps, share of a side (%(default)s)")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples for the intervals (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples (%(default)s)")
    parser.add_argument("--worst", type=int, default=12, help="how many of the worst images to show (%(default)s)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="(%(default)s)")
    parser.add_argument("--probe", choices=["knn", "linear"], help="judge the encoder's features, without its head")
    parser.add_argument("--neighbours", type=int, default=5, help="of --probe knn (%(default)s)")
    options, data = parser.parse_known_args(arguments)
    _spin_shortly()
    from spectralgpt.evaluate.command import run_evaluation
    from spectralgpt.train import recipe

    return run_evaluation(vars(options), recipe.parse_options(data))


def predict(arguments: Sequence[str]) -> int:
    """Apply a model to whole scenes: maps with the scene's coordinates, of any size."""
    parser = _Parser(prog="spectralgpt predict", description=predict.__doc__)
    parser.add_argument("scenes", nargs="+", metavar="SCENE", help="file or folder, demo; two dates for change")
    parser.add_argument("--model", required=True, metavar="RUN", help="a run, or a model's folder")
    parser.add_argument("--out", type=Path, required=True, help="the map (.tif), or a folder for maps")
    parser.add_argument("--probabilities", action="store_true", help="also write OUT-probabilities.tif")
    parser.add_argument("--window", type=int, metavar="PIXELS", help="side of a window (the model's image size)")
    parser.add_argument("--overlap", type=float, help="share of the side that neighbours share (0.25; classifiers 0.5)")
    parser.add_argument(
        "--mask", dest="masks", action="append", default=[], metavar="FILE", help="not 0: leave out; repeatable"
    )
    parser.add_argument("--nodata", type=int, default=255, help="of the map (%(default)s)")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of matrix products")
    _add_scene_arguments(parser)
    parser.add_argument("--restart", action="store_true", help="give up what an interrupted run has done")
    options = vars(parser.parse_args(arguments))
    _spin_shortly()
    from spectralgpt.predict.command import run_predict

    return run_predict(options)


def embed(arguments: Sequence[str]) -> int:
    """Write what the encoder makes of each patch of a scene: a raster, its components in colour, a table of tiles."""
    parser = _Parser(prog="spectralgpt embed", description=embed.__doc__)
    parser.add_argument("scene", metavar="SCENE", help="file or folder, or demo")
    parser.add_argument("--model", required=True, metavar="RUN", help="a run, or a model's folder")
    parser.add_argument("--out", type=Path, required=True, help="the raster; components and tiles go beside it")
    parser.add_argument(
        "--tile", type=int, default=0, metavar="PIXELS", help="also OUT-tiles.parquet, of tiles so wide"
    )
    parser.add_argument("--pool", choices=["mean", "concat"], default="mean", help="over the band groups (%(default)s)")
    parser.add_argument("--layer", type=int, default=-1, help="which block's tokens; -1 is the last (%(default)s)")
    parser.add_argument("--keep-places", action="store_true", help="leave in what tokens say of places in windows")
    parser.add_argument("--overlap", type=float, default=0.5, help="of windows, share of a side (%(default)s)")
    parser.add_argument("--restart", action="store_true", help="give up what an interrupted run has done")
    _add_scene_arguments(parser)
    options = vars(parser.parse_args(arguments))
    _spin_shortly()
    from spectralgpt.predict.look_commands import run_embed

    return run_embed(options)


def reconstruct(arguments: Sequence[str]) -> int:
    """Hide most tokens of a scene, rebuild them, and tell how well: rasters, numbers, pictures."""
    parser = _Parser(prog="spectralgpt reconstruct", description=reconstruct.__doc__)
    parser.add_argument("scene", metavar="SCENE", help="file or folder, or demo")
    parser.add_argument("--model", required=True, metavar="RUN", help="a pretraining run, or a model's folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--mask-ratio", type=float, default=0.9, help="share of hidden tokens (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the masks (%(default)s)")
    _add_scene_arguments(parser)
    options = vars(parser.parse_args(arguments))
    _spin_shortly()
    from spectralgpt.predict.look_commands import run_reconstruct

    return run_reconstruct(options)


def export(arguments: Sequence[str]) -> int:
    """Write a model as ONNX or as a program of torch.export, compared with the model."""
    parser = _Parser(prog="spectralgpt export", description=export.__doc__)
    parser.add_argument("model", metavar="MODEL", help="a run, or a model's folder; of an autoencoder the encoder")
    parser.add_argument("--format", choices=["onnx", "pt2"], default="onnx", help="(%(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="to trace with (the model's)")
    options = vars(parser.parse_args(arguments))
    from spectralgpt.predict.export import run_export

    return run_export(options)


def info(arguments: Sequence[str]) -> int:
    """Show versions, devices and operators; or what a data set holds, with a contact sheet."""
    parser = _Parser(prog="spectralgpt info", description=info.__doc__)
    parser.add_argument("root", nargs="?", type=Path, help="folder of a data set; versions and devices without it")
    parser.add_argument("--dataset", help="its kind (default: told from the folder)")
    parser.add_argument("--split", help="only this split")
    parser.add_argument("--bands", **_NAMES, help="in this order (default: the data set's own)")
    parser.add_argument("--sample", type=int, default=200, help="how many images to read (default: 200)")
    parser.add_argument("--sheet", type=Path, help="the contact sheet (default: DATASET-SPLIT.png in this folder)")
    parser.add_argument("-o", "--option", action="append", default=[], help="KEY=VALUE of the data set, repeatable")
    options = parser.parse_args(arguments)
    if options.root is not None:
        from spectralgpt.data.report import dataset_report, parse_options

        chosen = (options.root, options.dataset, options.split, options.bands)
        settings = parse_options(options.option)
        for line in dataset_report(*chosen, settings, sample=options.sample, sheet=options.sheet):
            print(line, flush=True)
        return 0
    if options.bands:  # which take every word behind them
        parser.error("expected the folder before --bands, got none")
    import torch

    import spectralgpt
    from spectralgpt.nn.attention import allowed_backends
    from spectralgpt.ops import _native, _registry

    print(f"spectralgpt {spectralgpt.__version__}, torch {torch.__version__}, {torch.get_num_threads()} CPU threads")
    for index in range(torch.cuda.device_count()):
        print(f"cuda:{index}: {torch.cuda.get_device_name(index)}")
    print("operators: " + (", ".join(f"{k} {v}" for k, v in _native.build_info().items()) or _native.reason()))
    print(_registry.table())
    for device_type, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        print(f"attention on {device_type}, {dtype}: {' or else '.join(allowed_backends(device_type, dtype, 64))}")
    return 0


def app(arguments: Sequence[str]) -> int:
    """Look at scenes, reconstructions and spectra in the browser, on this machine only."""
    parser = _Parser(prog="spectralgpt app", description=app.__doc__)
    parser.add_argument("root", type=Path, help="folder with scenes and models; nothing outside it is opened")
    parser.add_argument("--port", type=int, default=7860, help="on 127.0.0.1 (%(default)s)")
    parser.add_argument("--sensor", help="whose names the models' bands have (found by the bands)")
    parser.add_argument("--band-order", **_NAMES, help="bands of files that do not name them")
    options = parser.parse_args(arguments)
    from spectralgpt.app.explorer import Explorer
    from spectralgpt.app.server import serve

    serve(Explorer(options.root, options.sensor, options.band_order), options.port)
    return 0


def report(arguments: Sequence[str]) -> int:
    """Write a run as one HTML page: recipe, curves, scores, pictures, evaluations and maps."""
    parser = _Parser(prog="spectralgpt report", description=report.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run; the page is RUN/report.html")
    parser.add_argument("--map", dest="maps", type=Path, action="append", default=[], help="also this map; repeatable")
    options = parser.parse_args(arguments)
    from spectralgpt.train.report import write_report

    print(write_report(options.run, options.maps))
    return 0


def _spin_shortly() -> None:
    """Sets how long idle threads wait; before PyTorch is first imported."""
    # Read when PyTorch is first imported. GNU OpenMP's idle threads spin for milliseconds, and where another program
    # shares the cores they starve the working ones: measured 20 to 40 times slower steps. A shorter spin costs nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")


def _add_scene_arguments(parser: argparse.ArgumentParser) -> None:
    """How a scene is read for a model, and how it computes."""
    parser.add_argument("--batch-size", type=int, default=16, help="windows at a time (%(default)s)")
    parser.add_argument("--sensor", help="whose names the model's bands have (found by its bands)")
    parser.add_argument("--bands", **_NAMES, help="the model's bands, if it does not know them")
    parser.add_argument("--band-order", **_NAMES, help="bands of a file that does not name them")
    parser.add_argument("--missing", choices=["error", "nearest"], default="error", help="band not there (%(default)s)")
    parser.add_argument("--normalization", help="percentile, minmax, none or statistics, in place of the model's")
    parser.add_argument("--scale", type=float, help="(value - offset) * scale are the model's units")
    parser.add_argument("--offset", type=float, help="likewise")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="(%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace what was made by other settings")


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "evaluate": evaluate,
    "plan": plan,
    "prepare": prepare,
    "predict": predict,
    "embed": embed,
    "reconstruct": reconstruct,
    "report": report,
    "export": export,
    "info": info,
    "app": app,
}


class _Names(argparse.Action):
    """Names apart or with commas between."""

    def __call__(self, _: object, found: argparse.Namespace, values: Any, option: str | None = None) -> None:  # noqa: ANN401
        setattr(found, self.dest, [name for text in values for name in text.split(",") if name])


_NAMES: dict[str, Any] = {"nargs": "+", "metavar": "NAME", "action": _Names}


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line like every other mistake."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` tells more")


def _show_warning(message: Warning | str, *_: object) -> None:
    from tqdm import tqdm

    tqdm.write(f"warning: {message}", file=sys.stderr)  # on a line of its own, above a progress bar


if __name__ == "__main__":
    sys.exit(main())
