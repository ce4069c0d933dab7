# SPDX-License-Identifier: Apache-2.0
"""Low-rank adaptation: trains few weights, saves plain models."""

from __future__ import annotations

import sys

import pytest
import torch

import spectralgpt
from spectralgpt.errors import UserError
from spectralgpt.heads import add_lora, merge_lora
from tests.heads.small import change_detector, classifier, segmenter


@pytest.mark.parametrize("recompute", ["none", "light", "blocks"])
def test_trains_factors_and_head_alone_and_saves_plain(recompute, tmp_path):
    model, image = classifier(), torch.rand(4, 12, 32, 32)
    names, before = list(model.state_dict()), model(image)
    frozen = {key: tensor.clone() for key, tensor in model.encoder.state_dict().items()}
    assert add_lora(model, rank=4, alpha=8) is model
    torch.testing.assert_close(model(image), before)
    for block in model.encoder.blocks:
        block.recompute = recompute
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name or name.startswith("head.") for name in trainable)
    assert len(trainable) == 2 * 2 * 2 + 2  # blocks x layers x factors, and the head
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        torch.nn.functional.cross_entropy(model(image), torch.arange(4)).backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted = model.eval()(image)
    assert (adapted - before).abs().max() > 1e-3

    model.save_pretrained(tmp_path)
    loaded = spectralgpt.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(image), adapted)
    assert merge_lora(model) is model
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(image), adapted)
    for name in ("blocks.0.mlp.fc1.weight", "patch_embed.proj.weight"):
        assert torch.equal(model.encoder.state_dict()[name], frozen[name])
    assert not torch.equal(model.encoder.blocks[0].attn.qkv.weight, frozen["blocks.0.attn.qkv.weight"])
    add_lora(model)  # again, from where it stands


def test_averaged_factors_are_merged_as_they_are_given(tmp_path):
    model = add_lora(segmenter(), rank=2, targets=("fc1", "fc2"))
    given = {key: torch.full_like(tensor, 0.01) for key, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, given)
    weight = spectralgpt.from_pretrained(tmp_path).encoder.blocks[0].mlp.fc1.weight
    torch.testing.assert_close(weight, torch.full_like(weight, 0.01 + 8 * 2 * 0.01**2))  # alpha/rank = 8, rank 2


def test_every_target_of_a_change_detector():
    model = add_lora(change_detector(), targets=("qkv", "proj", "fc1", "fc2"), dropout=0.1)
    images = torch.rand(2, 12, 32, 32), torch.rand(2, 12, 32, 32)
    model(*images).sum().backward()
    factors = [p for name, p in model.named_parameters() if ".lora_" in name]
    assert len(factors) == 2 * 4 * 2 and all(p.grad is not None for p in factors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank: expected a whole number from 1"),
        ({"targets": ("query",)}, "targets: expected some of qkv, proj, fc1, fc2, got query"),
        ({"targets": ()}, "targets: expected some of .*, got none"),
        ({"dropout": 1.0}, r"dropout: expected a rate in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UserError, match=message):
        add_lora(classifier(), **options)


def test_twice():
    with pytest.raises(UserError, match=r"expected a model without low-rank factors, got one; merge_lora\(model\)"):
        add_lora(add_lora(classifier()))


def test_without_peft(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"peft: expected it for LoRA, .*; pip install 'spectralgpt\[lora\]'"):
        add_lora(classifier())
