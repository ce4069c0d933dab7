# SPDX-License-Identifier: Apache-2.0
"""Every command of the documentation runs, page by page and top to bottom, on small data under the names it uses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spectralgpt import cli
from tests.docs.commands import NOT_RUN, ROOT, TESTED_ALONE, Command, commands, shortened
from tests.docs.world import World

ALL = commands()
RUNNABLE = [command for command in ALL if command.why_not_run is None and command.page not in TESTED_ALONE]
FAST = r"^spectralgpt (plan|info|train --help)\b"
"""What the everyday lane runs; the others take minutes together."""


def ids(command: Command) -> str:
    """Readable and unique."""
    return f"{command.page}:{command.line} {command.text[:40]}"


def run(command: Command, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs one command: of this package in this process, everything else as it is."""
    words = shortened(Command("", 0, world.prepared(command.text)).arguments)
    world.prepared(" ".join(words))
    if "--config" in words and (ROOT / (config := words[words.index("--config") + 1])).is_file():
        world.prepared((ROOT / config).read_text())
    where = f"{command.page}:{command.line}: {' '.join(words)}"
    if words[0] == "spectralgpt":
        code, output = _in_process(words[1:], capsys)
    elif words[0] == "python" and words[1].startswith("tools/"):
        assert (ROOT / words[1]).is_file(), f"{where}: no such file"
        code, output = _in_process([Path(words[1]).stem, *words[2:]], capsys)
    else:
        words = [re.sub(r"^(--nproc-per-node)=\d+$", r"\1=2", word) for word in words]
        program = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}[words[0]]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*program, *words[1:]], capture_output=True, text=True, env=environment, timeout=600, check=False
        )
        code, output = done.returncode, done.stdout + done.stderr
    assert code == 0, f"{where}: exit code {code}\n{output[-3000:]}"


def _in_process(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    try:
        code = cli.main(arguments)
    except SystemExit as end:  # --help
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.mark.parametrize("command", [c for c in RUNNABLE if re.search(FAST, c.text)], ids=ids)
def test_fast_command(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(command, World(tmp_path, Path(command.page).name), capsys)


@pytest.mark.acceptance
@pytest.mark.parametrize(
    "page", [ROOT / page for page in dict.fromkeys(c.page for c in RUNNABLE)], ids=lambda p: p.name
)
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = [command for command in RUNNABLE if command.page == str(page.relative_to(ROOT))]
    monkeypatch.chdir(tmp_path)
    world = World(tmp_path, page.name)
    for command in found:
        run(command, world, capsys)


def test_what_is_not_run_is_on_the_list_and_the_list_is_not_longer() -> None:
    for pattern in NOT_RUN:
        assert any(re.search(pattern, command.text) for command in ALL), f"{pattern}: no page has such a command"
    for page, test in TESTED_ALONE.items():
        assert Path(page).name in (ROOT / test).read_text(), f"{test}: expected the test of {page}"
    assert len(RUNNABLE) > len(ALL) / 2


def test_commands_are_found_in_blocks_and_shell_fences_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    text = (
        "Say\n\n    spectralgpt info A   # comment\n    spectralgpt plan \\\n        --model huge\n\n"
        "and\n    not code\n\n"
        "```bash\n$ spectralgpt info '# B' && python tools/train.py\n```\n```python\nspectralgpt info C\n```\n"
        "    spectralgpt = x\n"
    )
    from tests.docs import commands as module

    found = list(module._code_lines(text))
    assert [line for _, line in found][:3] == [
        "    spectralgpt info A   # comment",
        "    spectralgpt plan \\",
        "        --model huge",
    ]
    page.write_text(text)
    monkeypatch.setattr(module, "ROOT", tmp_path)  # pages are named from there
    assert commands([page]) == [
        Command("page.md", 3, "spectralgpt info A"),
        Command("page.md", 4, "spectralgpt plan --model huge"),
        Command("page.md", 11, "spectralgpt info '# B'"),
        Command("page.md", 11, "python tools/train.py"),
    ]
