# SPDX-License-Identifier: Apache-2.0
"""The GPU lane as far as it can be checked without a GPU: choice of parts, reports, a stand-in sanitizer, no device."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
ABOUT = {
    "device": "NVIDIA H100",
    "driver": "580",
    "torch": "2.11",
    "cuda": "13.0",
    "python": "3.12",
    "date": "2026-11-23",
}
RECORDED = {
    "tests": {
        "part": "tests",
        **ABOUT,
        "passed": True,
        "rows": [{"passed": 90, "skipped": 11}],
        "note": "",
        "seconds": 41,
    },
    "bench": {
        "part": "bench",
        **ABOUT,
        "passed": False,
        "rows": [{"op": "patchify3d", "ours_us": 12.34567}, {"op": "loss|raw", "copy": 0.85}],
        "note": "slow",
        "seconds": 300,
    },
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.delitem(sys.modules, "gpu", raising=False)
    import gpu

    return gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_and_exit_2(gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--part", "tests", "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("gpu: expected a CUDA device, got none") and captured.err.count("\n") == 1
    assert captured.out == "" and not (tmp_path / "out").exists()


def test_parts_are_chosen_by_name(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert [gpu.parse(["--part", part]).part for part in (*gpu.PARTS, "all")] == [*gpu.PARTS, "all"]
    with pytest.raises(SystemExit):
        gpu.parse(["--part", "everything"])
    assert "sanitizer" in capsys.readouterr().err


def test_make_calls_the_script() -> None:
    command = ["make", "-n", "--no-print-directory", "gpu", "PART=sanitizer", "OUT=/tmp/there"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "python benchmarks/gpu.py --part sanitizer --out /tmp/there"


def test_summary_of_recorded_numbers(gpu: ModuleType, tmp_path: Path) -> None:
    for report in (RECORDED["bench"], RECORDED["tests"]):  # parts of different days meet in one summary
        gpu.write(tmp_path, report)
    assert json.loads((tmp_path / "bench.json").read_text()) == RECORDED["bench"]
    assert (tmp_path / "summary.md").read_text() == (
        "# GPU lane\n\n"
        "| part | result | seconds | device | torch | date | note |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        "| tests | passed | 41 | NVIDIA H100 | 2.11 | 2026-11-23 |  |\n"
        "| bench | FAILED | 300 | NVIDIA H100 | 2.11 | 2026-11-23 | slow |\n"
        "\n## tests\n\n| passed | skipped |\n| --- | --- |\n| 90 | 11 |\n"
        "\n## bench\n\n| op | ours_us | copy |\n| --- | --- | --- |\n"
        "| patchify3d | 12.35 |  |\n| loss/raw |  | 0.85 |\n"
    )


def test_runs_all_parts_past_a_failing_one(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "about", lambda: ABOUT)
    parts = {part: lambda out, good=part != "tests": {"passed": good, "rows": [], "note": "n"} for part in gpu.PARTS}
    monkeypatch.setattr(gpu, "PARTS", parts)
    assert gpu.main(["--out", str(tmp_path)]) == 1
    assert gpu.main(["--part", "bench", "--out", str(tmp_path)]) == 0
    assert {file.name for file in tmp_path.iterdir()} == {*(f"{part}.json" for part in gpu.PARTS), "summary.md"}
    assert "tests: FAILED" in capsys.readouterr().out


def fake_sanitizer(folder: Path, errors: int) -> None:
    """Answers as compute-sanitizer does: the program's output between its own lines."""
    script = folder / "compute-sanitizer"
    summary = (
        f'[ "$2" = racecheck ] && echo "RACECHECK SUMMARY: {errors} hazards" || echo "ERROR SUMMARY: {errors} errors"'
    )
    script.write_text(f"#!/bin/sh\necho ops done\n{summary}\n[ {errors} = 0 ] || exit 9\n")
    script.chmod(0o755)


@pytest.mark.parametrize("errors", [0, 3])
def test_sanitizer_report(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: int) -> None:
    fake_sanitizer(tmp_path, errors)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    report = gpu.sanitizer(tmp_path)
    assert report["passed"] is (errors == 0)
    code = 9 if errors else 0
    assert report["rows"] == [
        {"tool": tool, "errors": errors, "exit_code": code, "finished": True} for tool in gpu.SANITIZER_TOOLS
    ]


def test_missing_sanitizer_is_said(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    report = gpu.sanitizer(tmp_path)
    assert not report["passed"] and "neither on PATH nor in the CUDA toolkit" in report["note"]
    (tmp_path / "bin").mkdir()
    fake_sanitizer(tmp_path / "bin", 0)
    assert gpu.find_sanitizer() == str(tmp_path / "bin" / "compute-sanitizer")


def test_a_command_has_a_log_and_a_limit(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    assert gpu.execute(["sh", "-c", "echo $WORD; exit 3"], log, WORD="hello") == (3, "hello\n")
    monkeypatch.setattr(gpu, "LIMIT_SECONDS", 3)  # in which a busy machine, too, gets a shell to its first word
    assert gpu.execute(["sh", "-c", "echo begun; exec sleep 600"], log) == (124, "begun\n")
    assert log.read_text().count("$ sh -c") == 2 and "hello" in log.read_text()


def test_counts_of_the_tests_are_read(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "execute", lambda *arguments, **options: (0, "..s\n90 passed, 11 skipped in 40.1s\n"))
    assert gpu.tests(tmp_path) == {
        "passed": True,
        "rows": [{"passed": 90, "skipped": 11}],
        "note": "90 passed, 11 skipped in 40.1s",
    }
    monkeypatch.setattr(gpu, "execute", lambda *arguments, **options: (5, "6 deselected in 1s\n"))
    assert not gpu.tests(tmp_path)["passed"]  # nothing ran is no success


def test_lines_of_the_kernels_program_are_read(gpu: ModuleType) -> None:
    line = "loss float32 normalised           470.25 us    2890 GB/s  0.959 of copy"
    assert gpu.kernel_row(line) == {
        "kernel": "loss float32 normalised",
        "us": 470.25,
        "GB_per_s": 2890.0,
        "share_of_copy": 0.959,
    }


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
def test_the_kernels_program_compiles(tmp_path: Path) -> None:
    options = ["-std=c++17", "-O0", "--expt-relaxed-constexpr", "-arch=sm_90", f"-I{ROOT / 'csrc'}"]
    source = ROOT / "benchmarks" / "kernels.cu"
    subprocess.run(["nvcc", *options, "-c", str(source), "-o", str(tmp_path / "kernels.o")], check=True, timeout=600)


def test_attention_rows_or_the_reason_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.delitem(sys.modules, "attention", raising=False)
    import attention

    assert set(attention.CASES) == {(57, 64), (102, 80), (576, 32), (1024, 32)}
    row = attention.measure("sdpa math", (2, 9, 2, 8), torch.bfloat16, torch.device("cpu"), 25)
    assert row["error"] < 0.05 and row["forward_us"] > 0 and row["both_us"] > row["forward_us"] / 10

    def refusing(*tensors: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("no operator found\nfor these inputs")

    monkeypatch.setitem(attention.KERNELS, "xformers", refusing)
    row = attention.measure("xformers", (2, 9, 2, 8), torch.float16, torch.device("cpu"), 2)
    assert row == {
        "tokens": 9,
        "head_dim": 8,
        "dtype": "float16",
        "backend": "xformers",
        "refused": "no operator found",
    }
