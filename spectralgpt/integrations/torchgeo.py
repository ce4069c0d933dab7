# SPDX-License-Identifier: Apache-2.0
"""Data sets and weights for TorchGeo's data modules and trainers.

`SpectralDataset` is any of our data sets as a `NonGeoDataset`; `SpectralDataModule` feeds it to TorchGeo's tasks, with
pixels already normalised by the rule of our models (per source image), so that TorchGeo divides by nothing. `weights`
makes a saved model one of TorchGeo's weights. Importing this module registers the timm models, which TorchGeo's tasks
find by name:

    ClassificationTask("spectralgpt_base_patch8_96", weights=weights("runs/NAME/model"), in_channels=12, num_classes=10)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import spectralgpt
from spectralgpt.data.datasets import detect, open_dataset
from spectralgpt.data.normalize import Normalizer
from spectralgpt.errors import UserError
from spectralgpt.models.encoder import Encoder

try:
    from torchgeo.datamodules import NonGeoDataModule
    from torchgeo.datasets import NonGeoDataset
    from torchvision.models._api import Weights, WeightsEnum

    import spectralgpt.integrations.timm
except ImportError as error:
    raise UserError(
        f"torchgeo: expected the library to be installed ({error}); pip install 'spectralgpt[torchgeo]'"
    ) from error

Sample = dict[str, Any]


class SpectralDataset(NonGeoDataset):
    """One of our data sets behind TorchGeo's base class.

    Attributes:
        dataset: ours, with all it knows.
        bands: names, in the order of the channels.
        classes: names; a label is an index into them.
    """

    def __init__(
        self,
        root: str | Path = "data",
        split: str = "train",
        bands: Sequence[str] | None = None,
        transforms: Callable[[Sample], Sample] | None = None,
        *,
        dataset: str | None = None,
        normalization: str = "none",
        **options: Any,  # noqa: ANN401 - each data set has its own
    ) -> None:
        """Opens a split.

        Args:
            root: the archive; nothing is ever downloaded.
            split: which part.
            bands: names, in this order.
            transforms: applied to every sample.
            dataset: eurosat, bigearthnet, fmow_sentinel, oscd, segmunich or folder; told from the folder by default.
            normalization: "none" for raw units, "minmax" or "percentile" of each source image, or a file of statistics.
            **options: of the data set.

        Raises:
            UserError: as `spectralgpt.data.datasets.open_dataset`.
        """
        self.dataset = open_dataset(dataset or detect(root), root, split, bands, **options)
        is_file = normalization.endswith(".json")
        rule = Normalizer.from_file(normalization) if is_file else Normalizer(normalization)
        self._rule = rule.select(self.dataset.bands)
        self.root, self.split, self.transforms = self.dataset.root, split, transforms
        self.bands = self.all_bands = self.dataset.bands
        self.classes, self.wavelengths = self.dataset.classes, self.dataset.card.wavelengths

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        """The sample under TorchGeo's keys.

        `image` is float32 (C, H, W) with `label` or `mask` (H, W) int64; for change it is (T, C, H, W), with `mask`
        (1, H, W). `valid`, bool as `image`, is there where not all of it is.
        """
        record = self.dataset.read(index)
        offset, scale = (torch.from_numpy(values.copy())[..., None, None] for values in self._rule.of_record(record))
        sample: Sample = {"image": (torch.from_numpy(record.pixels.astype("float32")) - offset) * scale}
        if record.valid is not None:
            sample["valid"] = torch.from_numpy(record.valid)
            sample["image"] = torch.where(sample["valid"], sample["image"], 0.0)
        if record.label is not None:
            sample["label"] = torch.as_tensor(record.label, dtype=torch.int64)
        if record.mask is not None:
            mask = torch.from_numpy(record.mask.astype("int64"))
            sample["mask"] = mask[None] if self.dataset.task == "change" else mask
        return sample if self.transforms is None else self.transforms(sample)

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Any:  # noqa: ANN401 - Figure
        """A sample in true colour with its label or mask."""
        flat = {key: value[0] if key == "mask" and value.ndim == 3 else value for key, value in sample.items()}
        return self.dataset.plot(flat, show_titles=show_titles, suptitle=suptitle)


class SpectralDataModule(NonGeoDataModule):
    """Splits of one of our data sets for TorchGeo's trainers."""

    mean, std = torch.tensor(0), torch.tensor(1)

    def __init__(
        self,
        root: str | Path,
        dataset: str | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        normalization: str = "minmax",
        **options: Any,  # noqa: ANN401 - those of SpectralDataset
    ) -> None:
        """Arguments as `SpectralDataset`; images of a batch must have one size."""
        chosen = {"root": root, "dataset": dataset, "normalization": normalization, **options}
        super().__init__(SpectralDataset, batch_size, num_workers, **chosen)
        self.aug = _as_it_is


def weights(folder: str | Path, image_size: int = 96) -> WeightsEnum:
    """A saved model as one of TorchGeo's weights.

    Args:
        folder: what `save_pretrained` wrote, of any kind.
        image_size: 96 or 128, that of the timm model's name; positions are resampled to it.

    Returns:
        A member of an enumeration of its own: `meta` has `model`, `in_chans`, `bands`, `wavelengths` and
        `normalization`; `get_state_dict` gives what the timm model loads. `transforms` changes nothing, since pixels
        come normalised.

    Raises:
        UserError: no saved model, or another image size.
    """
    if image_size not in (96, 128):
        raise UserError(f"image_size: expected 96 or 128, as the timm models have, got {image_size}")
    saved = spectralgpt.from_pretrained(folder, image_size=image_size)
    encoder = cast("Encoder", getattr(saved, "encoder", saved))
    config = encoder.config
    meta = {
        "model": f"spectralgpt_{config.name}_patch8_{image_size}",
        "in_chans": config.bands,
        "bands": list(config.band_names or ()),
        "wavelengths": list(config.wavelengths or ()),
        "normalization": saved.normalization,
        "publication": "https://arxiv.org/abs/2311.07113",
        "ssl_method": "mae",
    }

    class SpectralGPT_Weights(WeightsEnum):
        SAVED = Weights(url=str(folder), transforms=nn.Identity(), meta=meta)

        def get_state_dict(self, *_: object, **__: object) -> dict[str, Tensor]:
            return {f"encoder.{name}": value.clone() for name, value in encoder.state_dict().items()}

    return SpectralGPT_Weights.SAVED


def _as_it_is(batch: Sample) -> Sample:
    return batch
