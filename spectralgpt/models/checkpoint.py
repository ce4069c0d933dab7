# SPDX-License-Identifier: Apache-2.0
"""A model on disk: `model.safetensors` and `config.json` in one folder, the layout of the Hugging Face hub.

Each file appears whole or not at all (written beside its place, flushed, renamed), the configuration last.
Nothing read here can run code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

import spectralgpt
from spectralgpt.errors import UserError
from spectralgpt.files import replacing, write_text
from spectralgpt.models.card import model_card
from spectralgpt.models.config import ModelConfig, make_config
from spectralgpt.models.safe_load import load_weights

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
_MAX_CONFIG = 2**22


class SavedModel(NamedTuple):
    """The content of a folder.

    Attributes:
        kind: which model class, as in `SpectralModel.kind`.
        config: its configuration.
        normalization: of its pixels, as the data layer writes it.
        tensors: its state dict.
        head: the record of a task model's head, None for other kinds.
    """

    kind: str
    config: ModelConfig
    normalization: dict[str, Any] | None
    tensors: dict[str, Tensor]
    head: dict[str, Any] | None = None


def write_pretrained(
    folder: str | Path,
    kind: str,
    config: ModelConfig,
    normalization: dict[str, Any] | None,
    tensors: Mapping[str, Tensor],
    head: dict[str, Any] | None = None,
) -> None:
    """Writes both files of a model, and a model card where there is none: cards are there to be edited.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    record = {
        "library": "spectralgpt",
        "version": spectralgpt.__version__,
        "kind": kind,
        "model": config.to_dict(),
        "normalization": normalization,
    }
    if head is not None:
        record["head"] = head
    text = json.dumps(record, indent=2) + "\n"
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / WEIGHTS_FILE) as draft:
            write_weights(draft, whole)
        if not (folder / CARD_FILE).exists():
            write_text(folder / CARD_FILE, model_card(kind, config, normalization, head))
        write_text(folder / CONFIG_FILE, text)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: expected a folder that can be written, got: {error}") from error


def read_pretrained(folder: str | Path) -> SavedModel:
    """Reads both files of a model.

    Raises:
        UserError: names the file that is missing or damaged.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: expected a folder that save_pretrained wrote, got no such file")
    path = folder / CONFIG_FILE
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise ValueError(f"a file of {path.stat().st_size} bytes")
        record = json.loads(path.read_text(encoding="utf-8"))
        fields = {**record["model"]}
        config = make_config(fields.pop("name"), **fields)
        kind, normalization, head = str(record["kind"]), record["normalization"], record.get("head")
        if head is not None and not isinstance(head, dict):
            raise TypeError(f"a head that is {type(head).__name__}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: expected a model's configuration, got {type(error).__name__}: {error}") from error
    tensors = load_weights(folder / WEIGHTS_FILE)
    if config.depth + config.decoder_depth > len(tensors):  # before anyone builds a thousand blocks
        raise UserError(
            f"{folder / WEIGHTS_FILE}: expected the weights of its {CONFIG_FILE}, got {len(tensors)} tensors"
        )
    return SavedModel(kind, config, normalization, tensors, head)


def write_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes contiguous tensors to a new safetensors file.

    Raises:
        OSError, SafetensorError: the disk is full or refuses.
    """
    path.touch()
    mode = path.stat().st_mode  # as of any new file; safetensors would let the owner alone read
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)
