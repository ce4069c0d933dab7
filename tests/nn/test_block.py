# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from spectralgpt.nn import Attention, Block, DropPath


def test_block_is_the_published_formula():
    torch.manual_seed(0)
    block = Block(24, 3).double()
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    y = F.layer_norm(x, (24,), block.norm1.weight, block.norm1.bias, eps=1e-6)
    q, k, v = (y @ w.T + b for w, b in zip(block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3), strict=True))
    q, k, v = (z.reshape(2, 7, 3, 8).transpose(1, 2) for z in (q, k, v))
    attended = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1) @ v
    x1 = x + attended.transpose(1, 2).reshape(2, 7, 24) @ block.attn.proj.weight.T + block.attn.proj.bias
    y = F.layer_norm(x1, (24,), block.norm2.weight, block.norm2.bias, eps=1e-6)
    hidden = y @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    expected = x1 + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    torch.testing.assert_close(block(x), expected)


def test_q_k_v_are_initialised_each_on_its_own():
    torch.manual_seed(0)
    layer = Attention(96, 4).qkv
    bound = math.sqrt(6 / (96 + 96))  # Xavier of one (96, 96) matrix; the stacked one would give sqrt(6 / 384)
    for part in layer.weight.chunk(3):
        assert 0.98 * bound < part.abs().max() <= bound
    assert not layer.bias.any()


def test_drop_path_scales_and_skips_whole_samples():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    branch = torch.ones(4000, 2, 3)
    out = drop(branch)
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert torch.equal(out.amin(dim=(1, 2)), out.amax(dim=(1, 2)))
    assert out.mean().item() == pytest.approx(1.0, abs=0.03)
    assert drop.eval()(branch) is branch
