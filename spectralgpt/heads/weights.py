# SPDX-License-Identifier: Apache-2.0
"""A pretrained encoder into a task model, with every tensor accounted for.

Whatever the source, an encoder of the source's own bands is made first, moved to the model's bands and image size,
and then copied by published names; so there is one way of reporting, and no tensor is left out in silence. In
particular positions: separable ones stay separable, or become flat by summing space and spectrum.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectralgpt.errors import UserError
from spectralgpt.heads.base import TaskModel
from spectralgpt.models.checkpoint import CONFIG_FILE, read_pretrained
from spectralgpt.models.config import ModelConfig
from spectralgpt.models.encoder import Encoder
from spectralgpt.models.reference_checkpoint import (
    LoadReport,
    load_reference_checkpoint,
    reference_state_dict,
    split_fused,
    unwrap,
)

PUBLISHED_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
PUBLISHED_WAVELENGTHS = (
    *(0.4427, 0.4924, 0.5598, 0.6646, 0.7041, 0.7405, 0.7828, 0.8328, 0.8647, 0.9451),
    *(1.6137, 2.2024),
)
"""What the published pretraining saw, in micrometres: Sentinel-2 without its cirrus band, three bands to a token."""

_ALIKE = ("embed_dim", "depth", "num_heads", "mlp_ratio", "patch_size")
_HEAD = re.compile(r"(fc|cls_seg|conv\d|decoder|head|mask_token$|decoder_\w+)(\.|_|$)")
_BAND_FIELDS = ("bands", "band_names", "wavelengths", "groups")


def load_encoder(
    model: TaskModel | Encoder, source: str | Path | Mapping[str, Any], *, strict: bool = True
) -> LoadReport:
    """Copies the encoder of a trained model into another model; a head stays as it is.

    Spatial positions are resampled to the model's image size, spectral ones move by wavelength where the bands are
    others, separable positions become flat where the model's are; the report names them under `resized`. The source's
    decoder and head are reported under `unused`. From a folder the model also takes over the normalisation, where
    it has none and the bands are the same.

    Args:
        model: a task model, or a bare encoder, of the same patch and widths as the source.
        source: a run folder (with `model/`), a folder that `save_pretrained` wrote, or a published checkpoint: a .pth
            file or its state dict. Published pretraining is taken to have seen `PUBLISHED_BANDS`; a fine-tuned
            checkpoint the model's own bands, as nothing in it tells them.
        strict: raise unless every weight of the encoder is found and every tensor of the source has its place; the
            model is then untouched.

    Returns:
        What became of every tensor, by published name; a head's from a folder, by ours.

    Raises:
        UserError: the source is missing or damaged, its encoder is of other sizes, its bands cannot be moved to the
            model's, or `strict` and something is left over.
    """
    path = None if isinstance(source, Mapping) else Path(source)
    if path is not None and path.is_dir():
        return _from_folder(model, path / "model" if (path / "model" / CONFIG_FILE).is_file() else path, strict)
    if path is not None and not path.exists():
        raise UserError(f"{path}: expected a run folder, a saved model's folder or a .pth file, got no such file")
    return _from_published(model, source, strict)


def _encoder_of(model: TaskModel | Encoder) -> Encoder:
    return model if isinstance(model, Encoder) else model.encoder


def _from_folder(model: TaskModel | Encoder, folder: Path, strict: bool) -> LoadReport:
    saved = read_pretrained(folder)
    for field in _ALIKE:
        theirs, ours = getattr(saved.config, field), getattr(model.config, field)
        if theirs != ours:
            raise UserError(
                f"{folder}: expected an encoder with {field} {ours}, as the model's, got {theirs}; "
                "create the model with the source's sizes"
            )
    prefix = "" if saved.kind == Encoder.kind else "encoder."
    own = {key.removeprefix(prefix): tensor for key, tensor in saved.tensors.items() if key.startswith(prefix)}
    with torch.device("meta"):
        encoder = Encoder(saved.config)
    try:
        encoder.load_state_dict(own, assign=True)
    except RuntimeError as error:
        what = " ".join(str(error).split())[:300]
        raise UserError(f"{folder}: expected the weights of its {CONFIG_FILE}, got {what}") from error
    changed = _move(encoder, model.config)
    report = load_reference_checkpoint(_encoder_of(model), reference_state_dict(encoder), strict=strict)
    if model.normalization is None and "spectral" not in changed:
        model.normalization = saved.normalization
    unused = tuple(key for key in saved.tensors if not key.startswith(prefix))
    return dataclasses.replace(_mark(report, changed), unused=unused)


def _from_published(model: TaskModel | Encoder, source: str | Path | Mapping[str, Any], strict: bool) -> LoadReport:
    tensors = split_fused(unwrap(source))
    unused = tuple(key for key in tensors if _HEAD.match(key))
    own = {key: tensor for key, tensor in tensors.items() if key not in unused}
    tuned = any(not key.startswith(("decoder_", "mask_token")) for key in unused)
    with torch.device("meta"):
        encoder = Encoder(_published_config(model.config, own, tuned))
    encoder.to_empty(device="cpu")  # whatever does not come from the checkpoint is left behind below
    first = load_reference_checkpoint(encoder, own, strict=strict)
    changed = _move(encoder, model.config)
    lost = {re.sub(r" \(.*", "", key) for key in (*first.missing, *first.mismatched)}
    found = {key: tensor for key, tensor in reference_state_dict(encoder).items() if key not in lost}
    load_reference_checkpoint(_encoder_of(model), found, strict=strict)
    return dataclasses.replace(_mark(first, changed), unused=unused)


def _published_config(config: ModelConfig, tensors: dict[str, Tensor], tuned: bool) -> ModelConfig:
    """The model's configuration, but with the published bands where pretraining on them is at hand."""
    spectral = tensors.get("pos_embed_temporal")
    if tuned or config.patch_size[0] != 3 or spectral is None or spectral.dim() != 3 or spectral.shape[1] != 4:
        return config
    if config.band_names is None and config.wavelengths is None and len(config.groups) == 4:
        return config  # nothing known to compare with
    fields: dict[str, Any] = {"bands": 12, "band_names": PUBLISHED_BANDS, "wavelengths": PUBLISHED_WAVELENGTHS}
    return dataclasses.replace(config, **fields, groups=())


def _move(encoder: Encoder, config: ModelConfig) -> set[str]:
    """Moves an encoder to another model's bands and image size; returns which positions changed."""
    changed = set()
    theirs, ours = encoder.config, config
    if theirs.height_width != ours.height_width:
        encoder.resize(ours.height_width)
        changed.add("spatial")
    if theirs.group_wavelengths is not None and ours.group_wavelengths is not None:
        if theirs.group_wavelengths != ours.group_wavelengths:
            encoder.take_bands(**{key: getattr(ours, key) for key in _BAND_FIELDS})
            changed.add("spectral")
        return changed
    known = theirs.band_names is not None and ours.band_names is not None
    if len(theirs.groups) != len(ours.groups) or (known and _names(theirs) != _names(ours)):
        raise UserError(
            f"bands: expected those of the source ({_words(theirs)}) or wavelengths of both, got {_words(ours)}; "
            "give the model a sensor card"
        )
    return changed


def _names(config: ModelConfig) -> list[str]:
    names = config.band_names or ()
    return [names[index] for index in config.band_order]


def _words(config: ModelConfig) -> str:
    return ", ".join(config.band_names) if config.band_names else f"{config.bands} bands without names"


def _mark(report: LoadReport, changed: set[str]) -> LoadReport:
    """Reports positions that moved before they were copied as resized."""
    endings = {"spatial": ("pos_embed", "pos_embed_spatial"), "spectral": ("pos_embed", "pos_embed_temporal")}
    names = {name for part in changed for name in endings[part]}
    moved = tuple(key for key in report.loaded if key in names)
    loaded = tuple(key for key in report.loaded if key not in moved)
    return dataclasses.replace(report, loaded=loaded, resized=tuple(dict.fromkeys((*report.resized, *moved))))
