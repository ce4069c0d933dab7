# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from spectralgpt import ops
from spectralgpt.nn import PatchEmbed, cut_cubes


def test_equals_a_strided_convolution():
    torch.manual_seed(0)
    embed = PatchEmbed((3, 4, 4), 10).double()
    image = torch.randn(2, 6, 8, 12, dtype=torch.float64)
    kernel = embed.proj.weight.reshape(10, 1, 3, 4, 4)
    convolved = F.conv3d(image[:, None], kernel, embed.proj.bias, stride=(3, 4, 4))  # (B, D, S, h, w)
    torch.testing.assert_close(embed(image), convolved.flatten(2).transpose(1, 2))


def test_visible_cubes_are_a_selection_of_all():
    embed = PatchEmbed((3, 8, 8), 16)
    image = torch.randn(2, 12, 16, 24)
    ids = torch.tensor([[3, 0, 23], [7, 8, 1]])
    expected = embed(image).gather(1, ids[:, :, None].expand(-1, -1, 16))
    torch.testing.assert_close(embed(image, ids), expected)


def test_aten_cutting_is_patchify3d():
    image = torch.randn(2, 6, 16, 24).transpose(2, 3)
    assert torch.equal(cut_cubes(image, (2, 8, 4)), ops.patchify3d(image, (2, 8, 4)))


def test_initialised_as_published():
    torch.manual_seed(0)
    proj = PatchEmbed((3, 8, 8), 64).proj
    assert proj.weight.abs().max() <= math.sqrt(6 / (192 + 64))
    assert 0.9 / math.sqrt(192) < proj.bias.abs().max() <= 1 / math.sqrt(192)
