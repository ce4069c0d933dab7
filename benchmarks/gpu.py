# SPDX-License-Identifier: Apache-2.0
"""Everything that needs a GPU, in parts of minutes: build, tests, attention backends, sanitizer, benchmarks.

    make gpu PART=tests OUT=runs/gpu        # build | tests | attention | sanitizer | bench | kernels | all

Each part is a process of its own with a limit of 8 minutes, writes OUT/<part>.json and OUT/<part>.log, and renews
OUT/summary.md from all parts in the folder, so parts may run on different days or machines. Exit codes: 0 all passed,
1 a part failed, 2 no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
LIMIT_SECONDS = 480
SANITIZER_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
BENCHMARKS = {
    "float32": ("--batch", "1024"),
    "bfloat16": ("--batch", "1024", "--dtype", "bfloat16", "--no-compile"),
    "batch-512": ("--batch", "512", "--only", "mask", "--no-compile"),
}
Report = dict[str, Any]


def execute(command: Sequence[str], log: Path, **environment: str) -> tuple[int, str]:
    """Exit code and output of a command, the output also appended to `log`; 124 where it outlasts the limit."""
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n")
    merged = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    try:
        done = subprocess.run(command, cwd=ROOT, env=merged, timeout=LIMIT_SECONDS, check=False, **pipes)
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as late:
        printed = late.stdout or ""
        code, output = 124, printed.decode(errors="replace") if isinstance(printed, bytes) else printed
    with log.open("a", encoding="utf-8") as file:
        file.write(output + "\n")
    return code, output


def build(out: Path) -> Report:
    """The native module for the GPU at hand, in place."""
    log = out / "build.log"
    command = [sys.executable, "-m", "pip", "install", "-e", ".", "--no-build-isolation", "--no-deps"]
    code, _ = execute(command, log, SPECTRALGPT_CUDA="on")
    if code:
        return {"passed": False, "note": f"pip ended with {code}"}
    code, report = execute([sys.executable, "-m", "spectralgpt.ops"], log)
    found = dict(line.split(": ", 1) for line in report.splitlines() if ": " in line)
    return {"passed": code == 0 and "reference" not in report, "rows": [found], "note": "python -m spectralgpt.ops"}


def tests(out: Path) -> Report:
    """`pytest -m cuda`."""
    code, output = execute([sys.executable, "-m", "pytest", "-m", "cuda", "-q", "tests/gpu"], out / "tests.log")
    counts = {what: int(number) for number, what in re.findall(r"(\d+) (passed|failed|skipped|error)", output)}
    return {"passed": code == 0 and counts.get("passed", 0) > 0, "rows": [counts], "note": last_line(output)}


def attention(out: Path) -> Report:
    """Attention backends against each other."""
    target = out / "attention-rows.json"
    code, output = execute([sys.executable, "benchmarks/attention.py", "--out", str(target)], out / "attention.log")
    rows = json.loads(target.read_text()) if target.exists() else []
    return {"passed": code == 0 and bool(rows), "rows": rows, "note": "" if code == 0 else last_line(output)}


def sanitizer(out: Path) -> Report:
    """The four tools of compute-sanitizer over one small call of every op."""
    tool = find_sanitizer()
    if tool is None:
        return {"passed": False, "rows": [], "note": "compute-sanitizer is neither on PATH nor in the CUDA toolkit"}
    rows = []
    for name in SANITIZER_TOOLS:
        command = [tool, "--tool", name, "--error-exitcode", "9", sys.executable, "-m", "tests.gpu.program"]
        # without torch's cache every tensor is an allocation of its own, so that a step past its end is seen
        code, output = execute(command, out / "sanitizer.log", PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        errors = re.findall(r"ERROR SUMMARY: (\d+)|RACECHECK SUMMARY: (\d+)", output)
        total = sum(int(number) for pair in errors for number in pair if number) if errors else None
        rows.append({"tool": name, "errors": total, "exit_code": code, "finished": "ops done" in output})
    passed = all(row["errors"] == 0 and row["exit_code"] == 0 and row["finished"] for row in rows)
    return {"passed": passed, "rows": rows, "note": tool}


def find_sanitizer() -> str | None:
    """On PATH, or beside nvcc, or under CUDA_HOME."""
    homes = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))]
    if nvcc := shutil.which("nvcc"):
        homes.append(Path(nvcc).resolve().parents[1])
    beside = [home / folder / "compute-sanitizer" for home in homes for folder in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer") or next((str(path) for path in beside if path.is_file()), None)


def bench(out: Path) -> Report:
    """The operator benchmarks with buffers beyond the L2."""
    if not (ROOT / "benchmarks" / "ops.py").exists():
        return {"passed": False, "rows": [], "note": "benchmarks/ops.py is not there"}
    rows, notes = [], []
    for name, options in BENCHMARKS.items():
        target = out / f"bench-{name}.json"
        command = [sys.executable, "benchmarks/ops.py", "--device", "cuda", "--rounds", "10", *options]
        code, output = execute([*command, "--out", str(target)], out / "bench.log")
        if code:
            notes.append(f"{name}: {last_line(output)}")
        else:
            rows += [{"run": name, **row} for row in json.loads(target.read_text())["results"]]
    return {"passed": not notes, "rows": rows, "note": "; ".join(notes)}


def kernels(out: Path) -> Report:
    """The kernels alone, built for this GPU: a check of their speed that needs a minute."""
    log, program = out / "kernels.log", str(out / "kernels")
    options = ["-O3", "-std=c++17", "--expt-relaxed-constexpr", "-arch=native", "-Icsrc"]
    units = [str(path) for path in (*sorted((ROOT / "csrc" / "cuda").glob("*.cu")), ROOT / "benchmarks" / "kernels.cu")]
    code, output = execute(["nvcc", *options, *units, "-o", program, "--threads", "0"], log)
    if code == 0:
        code, output = execute([program], log)
    rows = [kernel_row(line) for line in output.splitlines() if line.endswith("of copy")]
    return {"passed": code == 0 and bool(rows), "rows": rows, "note": "" if code == 0 else last_line(output)}


def kernel_row(line: str) -> Report:
    """A line that kernels.cu prints."""
    name, microseconds, rate, share = re.split(r" {2,}| us +| GB/s +| of copy", line)[:4]
    return {"kernel": name, "us": float(microseconds), "GB_per_s": float(rate), "share_of_copy": float(share)}


PARTS: dict[str, Callable[[Path], Report]] = {
    "build": build,
    "tests": tests,
    "attention": attention,
    "sanitizer": sanitizer,
    "bench": bench,
    "kernels": kernels,
}


def last_line(text: str) -> str:
    """What a log ends with."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no output")


def about() -> Report:
    """Device and versions, as every report carries them."""
    smi = shutil.which("nvidia-smi")
    query = [str(smi), "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() if smi else "unknown"
    return {
        "device": torch.cuda.get_device_name(),
        "driver": driver,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def summary(reports: Sequence[Report]) -> str:
    """All parts as Markdown: one line each, then their tables."""
    columns = ("part", "result", "seconds", "device", "torch", "date", "note")
    lines = [{**report, "result": "passed" if report["passed"] else "FAILED"} for report in reports]
    text = "# GPU lane\n\n" + table([{column: line[column] for column in columns} for line in lines])
    for report in reports:
        if report.get("rows"):
            text += f"\n## {report['part']}\n\n{table(report['rows'])}"
    return text


def table(rows: Sequence[Report]) -> str:
    """Rows of the same kind as a Markdown table; what one lacks stays empty."""
    columns = list(dict.fromkeys(key for one in rows for key in one))
    return row(columns) + row(["---"] * len(columns)) + "".join(row([one.get(c, "") for c in columns]) for one in rows)


def row(cells: Sequence[object]) -> str:
    """One line; four significant digits are what a timing is worth."""
    words = (f"{cell:.4g}" if isinstance(cell, float) else str(cell).replace("|", "/") for cell in cells)
    return f"| {' | '.join(words)} |\n"


def write(out: Path, report: Report) -> None:
    """The part's JSON, and the summary of all parts in the folder in their order."""
    (out / f"{report['part']}.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    files = (out / f"{part}.json" for part in PARTS)
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    (out / "summary.md").write_text(summary(reports), encoding="utf-8")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", default="all", choices=[*PARTS, "all"])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the chosen parts; a failing part does not keep the next from running."""
    args = parse(arguments)
    if not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU only"
        print(f"gpu: expected a CUDA device, got none (torch {torch.__version__} for {built})", file=sys.stderr)
        return 2
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    passed = True
    for part in PARTS if args.part == "all" else [args.part]:
        (out / f"{part}.log").unlink(missing_ok=True)
        start = time.monotonic()
        report = {"part": part, **about(), **PARTS[part](out), "seconds": round(time.monotonic() - start)}
        write(out, report)
        passed &= report["passed"]
        print(f"{part}: {'passed' if report['passed'] else 'FAILED'} in {report['seconds']} s; {report['note']}")
    print(f"report: {out / 'summary.md'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
