# SPDX-License-Identifier: Apache-2.0
"""The command lines in README.md and docs/, and the few that no test can run here.

A command stands in an indented block, or in a fence marked bash, sh or console. Words in capitals and plain paths are
what `world.py` makes, so a command runs as it is printed; `shortened` only makes training end soon.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

NOT_RUN = {
    r"^pip install": "changes the environment; CI's script installs the package in a fresh one",
    r"^git clone": "needs the place where the repository is published",
    r"^make ": "the targets are what CI runs, this test among them",
    r"^python -m pytest": "runs this test",
    r"^python benchmarks/": "takes hours on whole data sets; tests/benchmarks runs them on small ones",
    r"^torchrun --nnodes": "needs several machines; tests/train/test_distributed.py runs the same with two processes",
    r"^srun ": "needs SLURM",
    r"^spectralgpt app ": "answers until Ctrl-C; tests/app/test_server.py runs it",
}
"""Commands that are not run, and why."""

_PROGRAMS = (
    "spectralgpt", "python", "torchrun", "pip", "git", "make", "srun", "tensorboard", "mkdocs", "docker", "hf", "curl",
)  # fmt: skip
TESTED_ALONE = {"docs/scenes.md": "tests/docs/test_scenes_page.py"}
"""Pages whose own test runs all their commands."""


class Command(NamedTuple):
    """One command of a page."""

    page: str
    line: int
    text: str

    @property
    def why_not_run(self) -> str | None:
        """The reason where no test runs it."""
        return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, self.text)), None)

    @property
    def arguments(self) -> list[str]:
        """Its words."""
        return shlex.split(self.text)


def commands(pages: list[Path] | None = None) -> list[Command]:
    """All commands in the order a reader meets them."""
    return [command for page in pages or PAGES for command in _commands_of(page)]


def _commands_of(page: Path) -> Iterator[Command]:
    name, pending, start = str(page.relative_to(ROOT)), "", 0
    for number, line in _code_lines(page.read_text(encoding="utf-8")):
        text = re.sub(r"\s{2,}#.*| # .*", "", line).strip().removeprefix("$ ")
        start = start if pending else number
        pending = f"{pending} {text}".strip()
        if pending.endswith("\\"):
            pending = pending[:-1].strip()
            continue
        for part in pending.split(" && "):
            words = part.split()
            if words and words[0] in _PROGRAMS and not re.match(r"\S+ +(=|<-)", part):
                yield Command(name, start, part)
        pending = ""


def _code_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines of indented blocks and of shell fences, with their numbers."""
    fence: str | None = None
    before = ""
    is_block = False
    for number, line in enumerate(text.splitlines(), start=1):
        if mark := re.match(r"\s*(```|~~~)\s*(\w*)", line):
            fence = mark[2].lower() if fence is None else None
        elif fence is not None:
            if fence in ("bash", "sh", "shell", "console"):
                yield number, line
        elif line.startswith("    "):
            is_block = is_block or not before.strip() or before.startswith("#")
            if is_block:
                yield number, line
        elif line.strip():
            is_block = False
        before = line


def shortened(arguments: list[str]) -> list[str]:
    """Of EuroSAT a hundredth, of training a few small steps of `tiny`; every other command as it is."""
    words = list(arguments)
    is_eurosat = any("eurosat" in word.lower() for word in words)
    if is_eurosat and words[:2] == ["spectralgpt", "prepare"]:
        words += ["--option", "fraction=0.01"]
    if "evaluate" in words[:2] and "EuroSAT" in words:
        words += ["--data.options", "[fraction=0.01]"]
    if not _is_training(words) or {"--help", "--print_config", "--resume"} & set(words):
        return words
    config = words[words.index("--config") + 1] if "--config" in words else "configs/quickstart.yaml"
    recipe = yaml.safe_load((ROOT / config).read_text()) if (ROOT / config).is_file() else {"stages": [{}]}
    words += "--model.name tiny --threads 1 --device cpu --validate_every 0 --data.num_workers 0".split()
    if recipe.get("head", {}).get("head") in ("published", "pyramid"):
        words += ["--head.width", "16"]
    for i in range(len(recipe.get("stages", [{}]))):
        small = {"steps": 1, "epochs": 0, "warmup_steps": 0, "warmup_epochs": 0, "batch_size": 2, "accumulate": 1}
        for key, value in {**small, "image_size": 16 + 8 * i}.items():
            words += [f"--stages.{i}.{key}", str(value)]
        words += [f"--stages.{i}.micro_batch", "null"]
    if is_eurosat and not {"shards", "--data.options"} & set(words):
        words += ["--data.options", "[fraction=0.01]"]
    if "--data.root" not in words and recipe.get("data", {}).get("root", "demo") == "demo":
        words += ["--data.root", "SCENE"]
    return words


def _is_training(words: list[str]) -> bool:
    """Whether `train` is the command or the program."""
    return "train" in {Path(word).stem for word in words[:8] if not word.startswith("-")}
