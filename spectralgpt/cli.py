# SPDX-License-Identifier: Apache-2.0
"""The command `spectralgpt`: a subcommand per tool; here a user's mistake becomes one line and an exit code.

Exit codes: 0 done, 2 a mistake of the user (one line on stderr, no traceback), 128 + n stopped by signal n with
the state saved. Each command imports what it needs when it runs, so `--help` does not wait for PyTorch.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from spectralgpt.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(
        prog="spectralgpt",
        description="Masked autoencoders for multi- and hyperspectral satellite images.",
        epilog="commands:\n" + "\n".join(f"  {name:9} {run.__doc__}" for name, run in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below; COMMAND --help tells more"
    )
    try:
        return COMMANDS[parser.parse_args(arguments[:1]).command](arguments[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def train(arguments: Sequence[str]) -> int:
    """Pretrain a masked autoencoder; without arguments a quickstart of minutes."""
    # Read when PyTorch is first imported. GNU OpenMP's idle threads spin for milliseconds, and where another program
    # shares the cores they starve the working ones: measured 20 to 40 times slower steps. A shorter spin costs nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
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
    """Fetch the demo scene ahead of the first training."""
    parser = _Parser(prog="spectralgpt prepare", description=prepare.__doc__)
    parser.add_argument("what", choices=("demo",), help="the demo scene: Sentinel-2 L1C, 1947 x 1933 pixels, CC0")
    parser.add_argument("--cache", type=Path, help="where it is kept (default: the user's cache folder)")
    options = parser.parse_args(arguments)
    from spectralgpt.data.demo import demo_scene

    scene = demo_scene(options.cache)
    print(scene.note)
    print(scene.path)
    return 0


def info(arguments: Sequence[str]) -> int:
    """Show versions, devices, native operators and the attention backend."""
    _Parser(prog="spectralgpt info", description=info.__doc__).parse_args(arguments)
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


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"train": train, "prepare": prepare, "info": info}


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line like every other mistake."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` tells more")


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
