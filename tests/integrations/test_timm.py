# SPDX-License-Identifier: Apache-2.0
"""The timm models against timm itself: its factory, feature wrapper, layer-wise decay and checkpoints."""

from __future__ import annotations

import pytest
import torch

import spectralgpt
from spectralgpt.data.bands import SENTINEL2, SENTINEL2_12
from spectralgpt.errors import UserError

timm = pytest.importorskip("timm", reason="needs timm")
from spectralgpt.integrations import timm as adapter  # noqa: E402

NAME = "spectralgpt_tiny_patch8_96"
IMAGE = torch.rand(2, 12, 48, 64, generator=torch.Generator().manual_seed(0))


def test_every_size_is_registered() -> None:
    names = set(timm.list_models("spectralgpt_*"))
    sizes = ("tiny", "small", "base", "large", "huge")
    assert names == {f"spectralgpt_{size}_patch8_{pixels}" for size in sizes for pixels in (96, 128)}
    with torch.device("meta"):
        model = timm.create_model("spectralgpt_huge_patch8_128", num_classes=0)
    assert model.num_features == 1280 and model.config.height_width == (128, 128)


def test_classifier_is_the_encoder_its_mean_and_a_head() -> None:
    model = timm.create_model(NAME, num_classes=7, in_chans=12).eval()
    tokens = model.forward_features(IMAGE)
    assert tokens.shape == (2, 4 * 6 * 8, 128)
    torch.testing.assert_close(tokens, model.encoder(IMAGE))
    torch.testing.assert_close(model(IMAGE), model.head(tokens.mean(1)))
    assert model.forward_head(tokens, pre_logits=True).shape == (2, 128)
    assert model.get_classifier() is model.head
    model.reset_classifier(3)
    assert model(IMAGE).shape == (2, 3) and model.num_classes == 3
    model.reset_classifier(0, "")
    assert model(IMAGE).shape == tokens.shape
    assert timm.create_model(NAME, in_chans=10, img_size=64)(torch.rand(1, 10, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize(("pool", "channels"), [("mean", 128), ("concat", 512)])
def test_features_only(pool: str, channels: int) -> None:
    torch.manual_seed(0)
    model = timm.create_model(NAME, features_only=True, out_indices=(0, -1), spectral_pool=pool).eval()
    assert model.feature_info.channels() == [channels] * 2 and model.feature_info.reduction() == [8, 8]
    maps = model(IMAGE)
    assert [level.shape for level in maps] == [(2, channels, 6, 8)] * 2
    whole = timm.create_model(NAME, spectral_pool=pool).eval()
    whole.encoder.load_state_dict(model.model.encoder.state_dict(), strict=False)  # the wrapper dropped the last norm
    for ours, theirs in zip(whole.forward_intermediates(IMAGE, (0, 3), intermediates_only=True), maps, strict=True):
        torch.testing.assert_close(ours, theirs)
    place = whole.encoder.intermediate(IMAGE, (0,))[0].reshape(2, 4, 6, 8, 128)[:, :, 2, 5]
    torch.testing.assert_close(maps[0][:, :, 2, 5], place.mean(1) if pool == "mean" else place.flatten(1))
    first = timm.create_model(NAME, features_only=True, out_indices=[1])
    assert len(first.model.encoder.blocks) == 2 and isinstance(first.model.head, torch.nn.Identity)


def test_intermediates() -> None:
    model = timm.create_model(NAME).eval()
    final, levels = model.forward_intermediates(IMAGE, 2, norm=True, output_fmt="NLC")
    torch.testing.assert_close(final, model.forward_features(IMAGE))
    torch.testing.assert_close(levels[-1], final)
    assert len(levels) == 2
    (ours,) = model.feature_maps(IMAGE, (-1,))
    torch.testing.assert_close(ours, model.forward_intermediates(IMAGE, 1, norm=True, intermediates_only=True)[0])
    with pytest.raises(UserError, match=r"out_indices: expected block indices from -4 to 3, got \(4,\)"):
        model.forward_intermediates(IMAGE, (4,))
    with pytest.raises(UserError, match="output_fmt: expected one of NCHW, NLC"):
        model.forward_intermediates(IMAGE, output_fmt="NHWC")
    with pytest.raises(UserError, match="spectral_pool: expected one of mean, concat"):
        timm.create_model(NAME, spectral_pool="max")


def test_layer_wise_decay_groups_every_parameter() -> None:
    from timm.optim import param_groups_layer_decay

    model = timm.create_model(NAME, num_classes=5)
    groups = param_groups_layer_decay(
        model, weight_decay=0.1, layer_decay=0.5, no_weight_decay_list=model.no_weight_decay()
    )
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(scale) == len(list(model.parameters()))
    assert scale[id(model.encoder.patch_embed.proj.weight)] == 0.5**5
    assert [scale[id(block.attn.qkv.weight)] for block in model.encoder.blocks] == [0.5**4, 0.5**3, 0.5**2, 0.5]
    assert scale[id(model.head.weight)] == 1 and decay[id(model.encoder.positions.spatial)] == 0
    assert decay[id(model.head.weight)] == 0.1


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = timm.create_model(NAME, num_classes=2)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        assert {block.recompute for block in model.encoder.blocks} == {"blocks" if enable else "none"}
        model.zero_grad()
        model(IMAGE).sum().backward()
        gradients.append(model.encoder.patch_embed.proj.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_pretrained_weights_come_from_a_folder_at_another_size(tmp_path) -> None:
    card = SENTINEL2.select(SENTINEL2_12)
    source = spectralgpt.create_autoencoder("tiny", image_size=64, bands=card)
    source.normalization = {"kind": "minmax"}
    source.save_pretrained(tmp_path / "model")
    overlay = {"file": str(tmp_path)}  # a run folder
    model = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3, bands=card).eval()
    assert model.normalization == {"kind": "minmax"} and model.num_classes == 3
    for name, value in source.encoder.blocks.state_dict().items():
        torch.testing.assert_close(model.encoder.blocks.state_dict()[name], value)
    source.resize(96)
    torch.testing.assert_close(model.forward_features(IMAGE), source.eval().encoder(IMAGE))
    saved = tmp_path / "timm.safetensors"
    from safetensors.torch import save_model

    save_model(model, str(saved))
    again = timm.create_model(NAME, num_classes=3, bands=card, checkpoint_path=str(saved)).eval()
    torch.testing.assert_close(again(IMAGE), model(IMAGE))
    with pytest.raises(UserError, match="expected an encoder with embed_dim 384"):
        timm.create_model("spectralgpt_small_patch8_96", pretrained=True, pretrained_cfg_overlay=overlay)
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model(NAME, pretrained=True)


def test_the_model_trains_and_compiles_for_export() -> None:
    model = timm.create_model(NAME, num_classes=2, drop_rate=0.1, drop_path_rate=0.1)
    torch.nn.functional.cross_entropy(model(IMAGE), torch.tensor([0, 1])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert adapter.SpectralViT("tiny", num_classes=0).head_hidden_size == 128
