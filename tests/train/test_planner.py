# SPDX-License-Identifier: Apache-2.0
"""A plan's bytes are those that the real model keeps, its FLOPs those of the method; its table says what it rests on.

The bytes are held against two counts that know nothing of the formulas (`counting.py`): the tensors that autograd
saves, and a tracker of everything alive in a whole step.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from spectralgpt import cli
from spectralgpt.errors import UserError
from spectralgpt.models.config import SIZES, ModelConfig, make_config
from spectralgpt.train.flops import forward_flops, gemm_rate
from spectralgpt.train.memory import RECOMPUTE, Training, activations, states
from spectralgpt.train.planner import DEVICES, make_plan, measured_device, parse_bytes, usable
from tests.train import counting

ROOT = Path(__file__).resolve().parents[2]
BF16, FP32 = Training("bf16"), Training("fp32")
OTHERS = {  # sizes and settings no table of the paper holds
    "odd": make_config("tiny", image_size=(48, 64), bands=7, patch_size=(2, 8, 8), mlp_ratio=3.0, drop_path=0.1),
    "hyperspectral": make_config("tiny", image_size=32, bands=48, position_embedding="flat"),
}


@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("training", [BF16, FP32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("name", ["tiny", *OTHERS])
def test_saved_bytes_are_those_of_the_real_model(name, training, recompute):
    config = OTHERS.get(name) or make_config(name)
    counted = counting.saved_bytes(config, training, recompute)
    assert activations(config, training, recompute).saved == pytest.approx(counted, rel=0.01)


def test_saved_bytes_of_base():
    config = make_config("base")
    assert activations(config, BF16).saved == pytest.approx(counting.saved_bytes(config, BF16, "none"), rel=0.01)


def test_another_mask_ratio_is_another_plan():
    config, half = make_config("tiny"), Training("bf16", mask_ratio=0.5)
    assert activations(config, half).saved == pytest.approx(counting.saved_bytes(config, half, "none"), rel=0.01)
    assert activations(config, half).encoder > 4 * activations(config, BF16).encoder


def test_the_comparison_finds_attention_that_keeps_its_matrices():
    config = make_config("tiny")
    with counting.whole_attention_matrices():
        counted = counting.saved_bytes(config, BF16, "none")
    assert counted > 1.1 * activations(config, BF16).saved


@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_a_step_peaks_where_the_plan_says(recompute):
    config = make_config("tiny")
    planned = states(config, BF16).total + 64 * activations(config, BF16, recompute).total
    assert planned == pytest.approx(counting.peak_bytes(config, BF16, recompute, 64), rel=0.1)


@pytest.mark.acceptance
@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("training", [BF16, FP32, Training("fp16")], ids=["bf16", "fp32", "fp16"])
@pytest.mark.parametrize("image_size", [96, 128])
@pytest.mark.parametrize("name", SIZES)
def test_saved_bytes_of_every_size(name, image_size, training, recompute):
    config = make_config(name, image_size=image_size)
    counted = counting.saved_bytes(config, training, recompute)
    assert activations(config, training, recompute).saved == pytest.approx(counted, rel=0.01)


@pytest.mark.acceptance
@pytest.mark.parametrize("recompute", RECOMPUTE)
@pytest.mark.parametrize("training", [BF16, FP32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("name", ["base", "huge"])
def test_peaks_of_large_models(name, training, recompute):
    config = make_config(name)
    planned = states(config, training).total + 64 * activations(config, training, recompute).total
    assert planned == pytest.approx(counting.peak_bytes(config, training, recompute, 64), rel=0.1)


@pytest.mark.parametrize(
    ("name", "image_size", "giga"),
    [("base", 96, 81.6), ("base", 128, 157.1), ("large", 96, 156.4), ("huge", 96, 269.0), ("huge", 128, 494.3)],
)
def test_flops_of_a_step(name, image_size, giga):
    assert forward_flops(make_config(name, image_size=image_size), 0.9).step / 1e9 == pytest.approx(giga, rel=1e-3)


def test_flops_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    config = make_config("tiny", image_size=64)
    counter = FlopCounterMode(display=False)
    with counting.FakeTensorMode():
        step = counting.FakeStep(config, FP32, "none", 2)
        with counter:
            step.loss()
    counted = forward_flops(config, 0.9)
    forward = counted.encoder + counted.decoder + counted.edges + counted.patches
    attention = 4 * (config.depth * 25**2 * 128 + config.decoder_depth * 256**2 * 96)  # torch has no count of the CPU's
    assert counter.get_total_flops() / 2 == forward - attention


def test_states_are_eighteen_bytes_a_weight():
    held = states(make_config("huge"), BF16)
    assert held.total == pytest.approx(18 * 643.6e6, rel=2e-3)
    assert held.parameters == held.gradients == held.moments / 2
    assert held.working_copy == pytest.approx(held.parameters / 2, rel=2e-3)
    assert states(make_config("huge"), FP32).working_copy == 0
    assert states(make_config("huge"), Training(ema=True)).total - held.total == held.parameters


def test_sharding_divides_weights_and_moments():
    one, eight = (states(make_config("large"), Training(gpus=gpus, sharding="fsdp")) for gpus in (1, 8))
    assert (eight.parameters, eight.moments) == (one.parameters / 8, one.moments / 8)
    assert eight.gradients == one.gradients
    assert eight.gathered > 0 == one.gathered
    assert states(make_config("large"), Training(gpus=8)).total == one.total


def test_huge_in_24_gigabytes():
    for image_size, least in ((96, 80), (128, 44)):
        plan = make_plan(make_config("huge", image_size=image_size), BF16, 24e9, DEVICES["rtx4090"])
        sizes = {choice.recompute: choice.micro_batch for choice in plan.choices}
        assert least <= sizes["none"] < sizes["light"] < sizes["blocks"]
        for choice in plan.choices:
            taken = plan.states.total + choice.micro_batch * choice.bytes.total
            assert taken <= usable(24e9) < taken + choice.bytes.total, "the largest that fits"


def test_the_planner_chooses_the_fastest_way_that_holds_the_batch():
    plan = make_plan(make_config("huge"), BF16, 24e9, DEVICES["rtx4090"])
    assert [plan.choose(batch).recompute for batch in (64, 100, 300, 10_000)] == ["none", "light", "blocks", "blocks"]
    speeds = [choice.samples_per_second for choice in plan.choices]
    assert speeds == sorted(speeds, reverse=True)


def test_what_does_not_fit_is_told(capsys):
    assert cli.main(["plan", "--model", "huge", "--memory", "8GB", "--gpu", "rtx4090"]) == 0
    assert capsys.readouterr().out.count("does not fit") == 3


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24e9), ("24 GiB", 24 * 2**30), ("24564MiB", 24564 * 2**20), ("1.5tb", 1.5e12), ("7", 7)]
)
def test_sizes_in_words(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "24GX", "1.2.3GB", "-3GB", "0GB", "."])
def test_sizes_that_are_none(text):
    with pytest.raises(UserError, match="expected a size like 24GB"):
        parse_bytes(text)


def test_the_command_prints_what_it_rests_on(capsys):
    assert cli.main(["plan", "--model", "huge", "--memory", "24GB", "--gpu", "h100", "--gpus", "8"]) == 0
    shown = capsys.readouterr().out
    rows = {line.split("  ")[0]: line.split() for line in shown.splitlines()}
    assert {"nothing", "GELU, LayerNorm", "whole blocks"} <= set(rows)
    assert "each of 8 GPUs, ddp" in shown
    assert "H100 at 790 TFLOP/s" in shown
    assert "(assumed)" in shown
    assert "200 epochs of 712,874 images" in shown
    samples_per_second, days = (float(word.replace(",", "")) for word in rows["nothing"][-2:])
    assert days == pytest.approx(200 * 712_874 / samples_per_second / 86400, abs=0.06)


def test_a_recipe_is_planned_stage_by_stage(tmp_path, capsys):
    stages = [
        {"name": "small", "image_size": 32, "steps": 10, "batch_size": 4, "accumulate": 2},
        {"name": "wide", "image_size": 64, "epochs": 3, "mask_ratio": 0.5},
    ]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"model": {"depth": 2}, "precision": "fp32", "ema": 0.99, "stages": stages}))
    assert cli.main(["plan", "--config", str(path), "--memory", "8GB", "--gpu", "rtx4090", "--images", "1000"]) == 0
    first, second = capsys.readouterr().out.split("-" * 118)
    assert "32 x 32 pixels, 12 bands: 64 tokens" in first
    assert "stage 'small', 10 steps" in first
    assert "fp32" in first
    assert "EMA" in first
    assert "128 visible" in second
    assert "stage 'wide', 3 epochs of 1,000" in second


def test_images_nobody_told_are_those_of_the_data_set(capsys):
    assert (
        cli.main(["plan", "--config", str(ROOT / "configs/pretrain_base.yaml"), "--memory", "24GB", "--gpu", "rtx4090"])
        == 0
    )
    shown = capsys.readouterr().out
    assert "200 epochs of 712,874 images (assumed; --images tells)" in shown
    assert "100 epochs of 237,871 images (assumed; --images tells)" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "lots"], "expected a size like 24GB, 24GiB or 24564MiB, got 'lots'"),
        (["--memory", "24GB", "--model", "giant"], "expected one of tiny, small, base, large, huge, got 'giant'"),
        (["--memory", "24GB", "--image-size", "100"], "divisible by the patch's 8, got 100"),
        (["--memory", "24GB", "--mask-ratio", "1.5"], "--mask-ratio: expected a share between 0 and 1, got 1.5"),
        (["--memory", "24GB", "--gpus", "0"], "--gpus: expected at least 1, got 0"),
        (["--memory", "24GB", "--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["--memory", "24GB", "--config", "x.yaml", "--model", "huge"], "--config: expected it without --model"),
        (["--memory", "24GB", "--config", "nothing.yaml"], "cannot read nothing.yaml"),
    ],
)
def test_mistakes(arguments, message, capsys):
    assert cli.main(["plan", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_without_a_gpu_the_memory_must_be_told(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["plan"]) == 2
    assert "--memory: expected the memory of a GPU, as there is none here to ask" in capsys.readouterr().err


def test_speed_measured_on_the_device_at_hand():
    config = ModelConfig("tiny", image_size=32)
    gemm_rate.cache_clear()  # a test before may have measured it while the machine was busier than it is now
    device = measured_device(config, FP32, 2, "cpu", rounds=1)
    assert 0 < device.encoder == device.decoder < 1
    assert device.rate == gemm_rate("cpu", torch.float32) > 1e8
    assert "measured" in device.source
    plan = make_plan(config, FP32, 8e9, device)
    step = forward_flops(config, 0.9).step
    assert plan.choices[0].samples_per_second == pytest.approx(device.rate * device.encoder / step)
