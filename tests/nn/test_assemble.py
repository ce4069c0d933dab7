# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from spectralgpt import ops
from spectralgpt.nn import assemble_tokens


def naive(visible, mask_token, positions, ids_restore):
    batch, num_keep, _ = visible.shape
    rows = [[visible[b, i] if i < num_keep else mask_token for i in ids_restore[b].tolist()] for b in range(batch)]
    return torch.stack([torch.stack(row) for row in rows]) + positions


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.9])
def test_equals_a_loop_with_gradients(ratio):
    torch.manual_seed(0)
    mask = ops.cube_mask_from_noise(torch.rand(3, 20), ratio)
    tensors = [torch.randn(3, mask.ids_keep.shape[1], 5), torch.randn(5), torch.randn(20, 5)]
    ours = [t.double().requires_grad_() for t in tensors]
    theirs = [t.double().requires_grad_() for t in tensors]
    out, expected = assemble_tokens(*ours, mask.ids_restore), naive(*theirs, mask.ids_restore)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        grad = torch.zeros_like(mine) if other.grad is None else other.grad  # ratio 0: no masked token
        torch.testing.assert_close(mine.grad, grad)


def test_half_precision_tokens_meet_float_positions():
    mask = ops.random_cube_mask(torch.arange(2), 20, 0.5, seed=0)
    visible = torch.randn(2, 10, 5, dtype=torch.bfloat16)
    out = assemble_tokens(visible, torch.randn(5), torch.randn(20, 5), mask.ids_restore)
    assert out.dtype == torch.float32
