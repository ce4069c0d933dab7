# SPDX-License-Identifier: Apache-2.0
"""The operator benchmark runs: its processes answer, the minima are compared, the JSON says what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_candidate_of_a_small_contest_is_timed(tmp_path: Path) -> None:
    out = tmp_path / "ops.json"
    options = ["--batch", "1", "--size", "16", "--rounds", "2", "--no-compile", "--only", "gather", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "benchmarks/ops.py", *options], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert (report["batch"], report["rounds"], report["dtype"]) == (1, 2, "float32")
    with_matrix, alone = report["results"]
    assert (with_matrix["op"], alone["op"]) == ("gather_patchify3d + GEMM", "gather_patchify3d")
    assert with_matrix["vs_eager"] == with_matrix["eager_ms"] / with_matrix["ours_ms"] and "copy_ms" not in with_matrix
    assert alone["share_of_copy"] == alone["copy_ms"] / alone["ours_ms"] and "eager_ms" not in alone
    assert 0 < alone["ours_ms"] < 1000 and "| gather_patchify3d |" in done.stdout
