# SPDX-License-Identifier: Apache-2.0
"""The kernels on NumPy arrays alone, and proof that the emulation and the sanitizers catch what they are there for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native.build import CSRC, SANITIZE, Plant, build

EXERCISE = Path(__file__).with_name("exercise.py")


@pytest.fixture(scope="session")
def cache(request: pytest.FixtureRequest) -> Path:
    return Path(request.config.cache.mkdir("native"))


def exercise(module: Path, rounds: int, sanitized: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs exercise.py in a process of its own."""
    environment = dict(os.environ)
    if sanitized:  # both libraries: without libstdc++ every C++ exception ends the process inside the sanitizer
        names = ("libasan.so", "libstdc++.so")
        found = [
            subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
            for name in names
        ]
        environment |= {"LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": "detect_leaks=0,detect_stack_use_after_return=0"}
    command = [sys.executable, str(EXERCISE), str(module), str(rounds)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)


def test_kernels_on_numpy_arrays(cache: Path) -> None:
    result = exercise(build(cache), 60)
    assert "60 rounds passed" in result.stdout, result.stderr


def test_emulation_catches_a_missing_barrier(cache: Path) -> None:
    barrier = Plant(
        "masking.cu",
        "        block_sync();\n        if (warp_index() == 0) find_bin",
        "        if (warp_index() == 0) find_bin",
    )
    result = exercise(build(cache, plant=barrier), 60)
    # Wrong tokens, or so wrong that their places lie outside of the arrays and malloc finds its heap spoilt.
    assert "AssertionError" in result.stderr or -result.returncode in (signal.SIGABRT, signal.SIGSEGV)


def test_emulation_catches_a_barrier_that_not_all_threads_reach(cache: Path) -> None:
    early = Plant(
        "patchify.cu",
        "    block_sync();\n    for (int64_t other",
        "    if (lane_index() > 0) block_sync();\n    for (int64_t other",
    )
    result = exercise(build(cache, plant=early), 60)
    assert result.returncode != 0 and ("AssertionError" in result.stderr or "not reached by all" in result.stderr)


@pytest.mark.parametrize(
    "plant",
    [
        Plant("masking.cu", "while (shared.candidates > kWarp)", "while (shared.candidates > 1)"),
        Plant("masking.cu", "if (4 * index >= tokens_) return {};", "if (index >= 0) return {};"),
    ],
    ids=["alone-in-its-bin", "equal-words"],
)
def test_masks_whose_search_goes_on_to_further_bytes(cache: Path, plant: Plant) -> None:
    """One sequence in 2^32 and more would need it: words that begin alike, or are all the same."""
    result = exercise(build(cache, plant=plant), 60)
    assert "60 rounds passed" in result.stdout, result.stderr


def test_division_by_multiplication(tmp_path: Path) -> None:
    """`Divisor` against the machine's own division, at the borders of quotients and of the range."""
    source = Path(__file__).with_name("divisor.cpp")
    subprocess.run(["g++", "-std=c++17", "-O2", f"-I{CSRC}", str(source), "-o", str(tmp_path / "divisor")], check=True)
    result = subprocess.run([str(tmp_path / "divisor")], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "200000 divisors agree\n")


@pytest.mark.acceptance
def test_sanitizers_find_nothing(cache: Path) -> None:
    result = exercise(build(cache, "_sanitized", SANITIZE), 200, sanitized=True)
    assert "200 rounds passed" in result.stdout, result.stderr


@pytest.mark.acceptance
@pytest.mark.parametrize(
    ("plant", "report"),
    [
        (
            Plant("masking.cpp", "copy_n(order, params.num_keep,", "copy_n(order, params.num_keep + 1,"),
            "heap-buffer-overflow",
        ),
        (
            Plant("loss.cu", "number < count; number += stride", "number <= count; number += stride"),
            "heap-buffer-overflow",
        ),
        (
            Plant("masking.cpp", "++histogram[words[token] >> 24];", "histogram[0] += 1 << (words[token] >> 24);"),
            "shift exponent",
        ),
    ],
    ids=["overflow-on-the-cpu", "overflow-on-the-device", "undefined-shift"],
)
def test_sanitizers_catch_a_planted_bug(cache: Path, plant: Plant, report: str) -> None:
    result = exercise(build(cache, "_sanitized", SANITIZE, plant), 200, sanitized=True)
    assert result.returncode != 0 and report in result.stderr
