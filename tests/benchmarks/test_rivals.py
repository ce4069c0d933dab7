# SPDX-License-Identifier: Apache-2.0
"""The rivals of the step benchmark compute what they are compared for, and the benchmark runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import spectralgpt
from spectralgpt import ops

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("normalize", [False, True])
def test_the_plain_step_has_our_loss_and_gradients(normalize, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delitem(sys.modules, "rivals", raising=False)
    import rivals

    torch.manual_seed(0)
    ours = spectralgpt.create_autoencoder("tiny", image_size=32, normalize_targets=normalize)
    plain = rivals.PlainAutoencoder(ours.config)
    plain.load_state_dict(spectralgpt.reference_state_dict(ours))
    image, noise = torch.rand(2, 12, 32, 32), torch.rand(2, 64)
    loss, expected = ours(image, ops.cube_mask_from_noise(noise, 0.9)).loss, plain(image, 0.9, noise)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    modern = rivals.ModernAutoencoder(ours.config)
    modern.load_state_dict(spectralgpt.reference_state_dict(ours))
    torch.testing.assert_close(modern(image, 0.9, noise), expected)
    gradients = spectralgpt.reference_state_dict(ours, grads=True)
    for key, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-3, atol=1e-5)


def test_the_benchmark_of_a_step_runs(tmp_path):
    out = tmp_path / "step.json"
    sizes = ["--model", "tiny", "--image-size", "32", "--batch", "4", "--threads", "1", "--rounds", "2"]
    command = [sys.executable, BENCHMARKS / "step.py", *sizes, "--no-compile", "--batches", "2", "4", "--out", out]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=BENCHMARKS.parent, env={"PYTHONPATH": "."}
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert set(result["contestants"]) == {"published", "published, best batch", "modern", "ours"}
    ours = result["contestants"]["ours"]
    assert ours["samples_per_second"] == 4 / ours["min_s"]
    share = ours["samples_per_second"] * result["flops_per_sample"] / result["gemm_rate"]
    assert 0 < ours["share_of_gemm_rate"] == share
    assert result["contestants"]["published, best batch"]["batch"] in (2, 4)
    assert result["loss_difference"] < 1e-4
