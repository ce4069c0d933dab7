# SPDX-License-Identifier: Apache-2.0
"""The rival of the step benchmark computes what it is compared for."""

from __future__ import annotations

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
    gradients = spectralgpt.reference_state_dict(ours, grads=True)
    for key, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-3, atol=1e-5)
