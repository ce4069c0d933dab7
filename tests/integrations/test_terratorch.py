# SPDX-License-Identifier: Apache-2.0
"""The backbone in TerraTorch's own registry, factory, tasks and command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import spectralgpt
from spectralgpt.data.bands import SENTINEL2, SENTINEL2_12
from spectralgpt.errors import UserError
from tests.data.rasters import noise, write

pytestmark = [
    pytest.mark.acceptance,  # importing it takes longer than all tests here
    pytest.mark.filterwarnings("ignore"),  # of the libraries below it
]
pytest.importorskip("terratorch", reason="needs terratorch")

BANDS = ["BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2"]
ROOT = Path(__file__).resolve().parents[2]
IMAGE = torch.rand(2, 6, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def registry():
    """TerraTorch's registry of backbones of all sources."""
    from terratorch.registry import BACKBONE_REGISTRY

    import spectralgpt.integrations.terratorch  # noqa: F401 - registers

    return BACKBONE_REGISTRY


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a pretrained model of twelve bands."""
    source = spectralgpt.create_autoencoder("tiny", image_size=64, bands=SENTINEL2.select(SENTINEL2_12))
    source.save_pretrained(tmp_path / "run" / "model")
    return tmp_path / "run"


def test_maps_channels_and_bands(registry) -> None:
    model = registry.build("spectralgpt_tiny", model_bands=BANDS, out_indices=[1, 3]).eval()
    assert model.config.band_names == ("B02", "B03", "B04", "B8A", "B11", "B12")
    assert model.out_channels == [128, 128] and model.patch_size == 8
    maps = model(IMAGE)
    assert [level.shape for level in maps] == [(2, 128, 8, 8)] * 2
    torch.testing.assert_close(maps[1][:, :, 0, 0], model.encoder(IMAGE).reshape(2, 2, 64, 128)[:, :, 0].mean(1))
    wide = registry.build("terratorch_spectralgpt_tiny", spectral_pool="concat", out_indices=(-1,))
    assert wide.out_channels == [512] and wide(torch.rand(1, 12, 32, 48))[0].shape == (1, 512, 4, 6)
    assert all(f"spectralgpt_{size}" in registry for size in ("tiny", "small", "base", "large", "huge"))


def test_enums_and_mistakes(registry) -> None:
    from terratorch.datasets import HLSBands

    from spectralgpt.integrations.terratorch import backbone

    names = backbone("tiny", [HLSBands.NIR_BROAD, HLSBands.COASTAL_AEROSOL, HLSBands.WATER_VAPOR]).config.band_names
    assert names == ("B08", "B01", "B09")
    every = [band for band in HLSBands if not band.value.startswith("THERMAL")]
    assert sorted(backbone("tiny", every).config.band_names or ()) == sorted(SENTINEL2.names)
    with pytest.raises(UserError, match="band 'VV': expected a band of sentinel2"):
        backbone("tiny", ["VV", "VH"])
    with pytest.raises(UserError, match="out_indices: expected block indices below 4, got \\(7,\\)"):
        backbone("tiny", BANDS, out_indices=[7])
    with pytest.raises(UserError, match="ckpt_data: expected a run"):
        backbone("tiny", BANDS, pretrained=True)


def test_pretrained_weights_move_to_other_bands(registry, run: Path) -> None:
    model = registry.build("spectralgpt_tiny", model_bands=BANDS, pretrained=True, ckpt_data=str(run), img_size=64)
    source = spectralgpt.from_pretrained(
        run / "model", bands=SENTINEL2.select(("B02", "B03", "B04", "B8A", "B11", "B12"))
    )
    torch.testing.assert_close(model.eval().encoder(IMAGE), source.eval().encoder(IMAGE))


@pytest.mark.parametrize(
    ("decoder", "necks"),
    [
        ("FCNDecoder", []),
        ("UperNetDecoder", [{"name": "LearnedInterpolateToPyramidal"}]),
        ("UNetDecoder", [{"name": "LearnedInterpolateToPyramidal"}]),
    ],
)
def test_segmentation_task_trains(registry, run: Path, decoder: str, necks: list[dict[str, str]]) -> None:
    from terratorch.tasks import SemanticSegmentationTask

    channels = {"decoder_channels": [64, 32, 16, 8]} if decoder == "UNetDecoder" else {"decoder_channels": 32}
    arguments = {
        "backbone": "spectralgpt_tiny",
        "backbone_model_bands": BANDS,
        "backbone_pretrained": True,
        "backbone_ckpt_data": str(run),
        "decoder": decoder,
        **channels,
        "necks": necks,
        "num_classes": 3,
    }
    task = SemanticSegmentationTask(arguments, "EncoderDecoderFactory", loss="ce", freeze_backbone=False)
    out = task(IMAGE).output
    assert out.shape == (2, 3, 64, 64)
    out.square().mean().backward()
    assert task.model.encoder.encoder.patch_embed.proj.weight.grad.abs().sum() > 0
    assert task.eval()(torch.rand(1, 6, 50, 70)).output.shape[-2:] == (50, 70)  # padded to whole patches by TerraTorch


def test_classification_and_lora(registry, run: Path) -> None:
    pytest.importorskip("peft", reason="needs peft")
    from terratorch.models import EncoderDecoderFactory

    model = EncoderDecoderFactory().build_model(
        "classification",
        "spectralgpt_tiny",
        "IdentityDecoder",
        backbone_kwargs={"model_bands": BANDS, "pretrained": True, "ckpt_data": str(run)},
        num_classes=4,
        peft_config={
            "method": "LORA",
            "replace_qkv": "qkv",
            "peft_config_kwargs": {"target_modules": ["qkv.q_linear", "qkv.v_linear"], "lora_alpha": 8, "r": 4},
        },
    )
    assert model(IMAGE).output.shape == (2, 4)
    trained = [name for name, parameter in model.encoder.named_parameters() if parameter.requires_grad]
    assert trained and all("lora" in name for name in trained)


def test_the_command_line_trains_a_recipe(run: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        for number in range(2):
            write(tmp_path / f"data/{part}/{number}.tif", noise(6, 64, 64, seed=number).astype(np.float32))
            write(tmp_path / f"data/{part}-labels/{number}.tif", noise(1, 64, 64, low=0, high=2).astype(np.int16))
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "__init__.py").write_text("import spectralgpt.integrations.terratorch\n")
    folders = {
        f"{part}_{kind}_root": str(tmp_path / "data" / ("val" if part != "train" else "train")) + ending
        for part in ("train", "val", "test")
        for kind, ending in (("data", ""), ("label", "-labels"))
    }
    folders = {key.replace("label_root", "label_data_root"): value for key, value in folders.items()}
    recipe = {
        "custom_modules_path": str(tmp_path / "plugins"),
        "trainer": {"accelerator": "cpu", "fast_dev_run": True, "default_root_dir": str(tmp_path)},
        "data": {
            "class_path": "terratorch.datamodules.GenericNonGeoSegmentationDataModule",
            "init_args": {
                "batch_size": 2,
                "num_workers": 0,
                "img_grep": "*.tif",
                "label_grep": "*.tif",
                "num_classes": 2,
                "means": [2000.0] * 6,
                "stds": [1000.0] * 6,
                "dataset_bands": BANDS,
                "output_bands": BANDS,
                **folders,
            },
        },
        "model": {
            "class_path": "terratorch.tasks.SemanticSegmentationTask",
            "init_args": {
                "model_factory": "EncoderDecoderFactory",
                "loss": "ce",
                "ignore_index": -1,
                "model_args": {
                    "backbone": "spectralgpt_tiny",
                    # jsonargparse 4.53 refuses the enums that TerraTorch's parser makes of its own names.
                    "backbone_model_bands": ["B02", "B03", "B04", "B8A", "B11", "B12"],
                    "backbone_pretrained": True,
                    "backbone_ckpt_data": str(run),
                    "decoder": "FCNDecoder",
                    "decoder_channels": 16,
                    "num_classes": 2,
                },
            },
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    program = [sys.executable, "-c", "from terratorch.cli_tools import build_lightning_cli as run; run()"]
    done = subprocess.run(
        [*program, "fit", "--config", str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "`Trainer.fit` stopped: `max_steps=1` reached" in done.stdout + done.stderr
