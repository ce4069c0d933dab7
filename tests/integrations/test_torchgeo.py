# SPDX-License-Identifier: Apache-2.0
"""Data sets, weights and models in TorchGeo's data modules and trainers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import spectralgpt
from spectralgpt.data.bands import SENTINEL2, SENTINEL2_12
from spectralgpt.errors import UserError
from tests.data.datasets import archives
from tests.data.rasters import at, noise, write

pytestmark = [
    pytest.mark.acceptance,  # importing it takes longer than all tests here
    pytest.mark.filterwarnings("ignore"),  # of the libraries below it
]
pytest.importorskip("torchgeo", reason="needs torchgeo")

CARD = SENTINEL2.select(SENTINEL2_12)


@pytest.fixture(scope="module")
def adapter():
    """Imported when asked for, since it takes its time."""
    import spectralgpt.integrations.torchgeo

    return spectralgpt.integrations.torchgeo


@pytest.fixture
def eurosat(tmp_path: Path) -> Path:
    """Some images of three classes, in all splits."""
    return archives.eurosat(tmp_path / "EuroSAT", range(1, 25), ("AnnualCrop", "Forest", "River"), size=32)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A pretrained model."""
    model = spectralgpt.create_autoencoder("tiny", image_size=64, bands=CARD)
    model.normalization = {"method": "minmax"}
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def trainer(folder: Path):
    """One batch of everything."""
    from lightning.pytorch import Trainer

    return Trainer(
        accelerator="cpu", fast_dev_run=True, default_root_dir=folder, enable_progress_bar=False, logger=False
    )


def test_a_data_set_is_one_of_torchgeos(adapter, eurosat: Path) -> None:
    from torchgeo.datasets import NonGeoDataset

    raw = adapter.SpectralDataset(eurosat, "train", ["B04", "B8A"], partial=True)
    assert isinstance(raw, NonGeoDataset) and raw.bands == ("B04", "B8A") and len(raw.classes) == 10
    assert f"size: {len(raw)}" in str(raw)
    sample = raw[0]
    assert sample["image"].shape == (2, 32, 32) and sample["image"].dtype == torch.float32
    assert sample["label"].dtype == torch.int64 and raw.classes[sample["label"]] == "AnnualCrop"
    np.testing.assert_allclose(sample["image"].mean((1, 2)), [400, 900], atol=5)  # by name: B8A lies last in the file
    scaled = adapter.SpectralDataset(eurosat, "train", ["B04", "B8A"], normalization="minmax", partial=True)[0]["image"]
    assert scaled.amin((1, 2)).tolist() == [0, 0]
    torch.testing.assert_close(scaled.amax((1, 2)), torch.ones(2))
    assert raw.plot(sample, suptitle="x") is not None
    with pytest.raises(UserError, match="option 'nothing' of eurosat"):
        adapter.SpectralDataset(eurosat, nothing=1)


def test_a_classifier_trains_from_saved_weights(adapter, eurosat: Path, saved: Path, tmp_path: Path) -> None:
    from torchgeo.trainers import ClassificationTask

    weight = adapter.weights(saved)
    assert weight.meta["model"] == "spectralgpt_tiny_patch8_96" and weight.meta["bands"] == list(SENTINEL2_12)
    task = ClassificationTask(weight.meta["model"], weights=weight, in_channels=12, num_classes=10)
    source = spectralgpt.from_pretrained(saved, image_size=96)
    for name, value in source.encoder.state_dict().items():
        torch.testing.assert_close(task.model.encoder.state_dict()[name], value)
    data = adapter.SpectralDataModule(eurosat, batch_size=4, partial=True)
    run = trainer(tmp_path)
    run.fit(task, datamodule=data)
    (result,) = run.test(task, datamodule=data)
    assert np.isfinite(result["test_loss"])
    frozen = ClassificationTask(weight.meta["model"], in_channels=12, num_classes=10, freeze_backbone=True)
    assert {name for name, p in frozen.model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    with pytest.raises(UserError, match="image_size: expected 96 or 128"):
        adapter.weights(saved, 64)


def test_segmentation_with_a_decoder_of_theirs(adapter, tmp_path: Path) -> None:
    from torchgeo.trainers import SemanticSegmentationTask

    for number in range(24):
        grid = at(10, 500_000 + 640 * number)  # a place of its own, which decides the split
        write(tmp_path / f"data/{number}.tif", noise(13, 64, 64, seed=number), SENTINEL2.names, transform=grid)
        codes = noise(1, 64, 64, low=0, high=3, seed=number).astype(np.uint8)
        write(tmp_path / f"data/{number}_label.tif", codes, transform=grid)
    data = adapter.SpectralDataModule(tmp_path / "data", "folder", 2, images="*.tif", masks="*_label.tif")
    task = SemanticSegmentationTask(
        "dpt", "tu-spectralgpt_tiny_patch8_96", in_channels=12, task="multiclass", num_classes=3, ignore_index=255
    )
    run = trainer(tmp_path)
    run.fit(task, datamodule=data)
    (result,) = run.validate(task, datamodule=data)
    assert np.isfinite(result["val_loss"])


def test_pairs_of_dates_have_torchgeos_shape(adapter, tmp_path: Path) -> None:
    from torchgeo.trainers import ChangeDetectionTask

    from spectralgpt.data.datasets.oscd import TRAIN

    for name in TRAIN:
        archives.oscd_city(tmp_path / "images", name, ((64, 64), (64, 64)))
        codes = np.full((64, 64), 1)
        codes[:9] = 2
        archives.label_tif(tmp_path / "train_labels" / name / "cm" / f"{name}-cm.tif", codes)
    data = adapter.SpectralDataset(tmp_path, normalization="minmax")
    assert data[0]["image"].shape == (2, 12, 64, 64) and data[0]["mask"].shape == (1, 64, 64)
    assert data.plot(data[0]) is not None
    batch = torch.utils.data.default_collate([data[0], data[1]])
    task = ChangeDetectionTask("fcsiamdiff", "resnet18", in_channels=12)
    assert torch.isfinite(task.training_step(batch, 0))
