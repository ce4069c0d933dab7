# SPDX-License-Identifier: Apache-2.0
"""Reading tensors from files that strangers may have made: no code runs, no more memory goes than the file holds.

PyTorch's own `weights_only=True` keeps code out but not bombs: a few bytes may ask for a huge bytearray, a record may
be compressed a thousandfold, and a storage may claim more bytes than its record has, which reads foreign memory. So
the archive and the names in its pickle are looked at first, and what comes out is measured before anyone computes
with it.
"""

from __future__ import annotations

import argparse
import os
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from spectralgpt.errors import UserError

_MAX_PICKLE = 4 * 2**20
_MAX_OPERATIONS = 400_000  # of a pickle: 10,000 tensors
_MAX_HEADER = 8 * 2**20
_BUILDERS = re.compile(
    r"torch\._utils _rebuild_(tensor_v2|parameter)|torch (\w+Storage|Size|device|float\d+|bfloat16|u?int\d+|bool)"
    r"|torch\.nn\.parameter Parameter|torch\.storage (Untyped|Typed)Storage|collections OrderedDict"
    r"|argparse Namespace|_codecs encode"
)


class UnsafeFile(Exception):
    """What in a file has no place in one of tensors."""


def load_tensors(path: Path, what: str) -> Any:  # noqa: ANN401 - a tree of tensors and plain values
    """The content of a .pt or .pth file; `what` names in errors what was expected of it.

    Raises:
        UserError: the file is missing, damaged, or anything but tensors, plain values and an argparse.Namespace.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected {what}, got no such file")
    try:
        with open(path, "rb") as file:
            size = inspect_archive(file)
            file.seek(0)
            with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
                warnings.simplefilter("ignore")
                content = torch.load(file, map_location="cpu", weights_only=True)
        _measure(content, size)
    except Exception as error:  # whatever a damaged or hostile file makes the readers stumble over
        raise UserError(f"{path}: expected {what}, got: {_reason(error)}; not loaded") from error
    return content


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(8)
        header = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if header > _MAX_HEADER:
            raise UnsafeFile(f"a header of {header} bytes")
        return load_file(path)
    except (OSError, SafetensorError, UnsafeFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: expected a whole safetensors file, got: {reason}") from error


def inspect_archive(file: IO[bytes]) -> int:
    """Looks through what `torch.save` may have written, without building any of it; returns its size in bytes.

    Raises:
        UnsafeFile: the archive is no plain one of tensors; zipfile's and pickletools' errors where it is damaged.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if not zipfile.is_zipfile(file):
        raise UnsafeFile("no archive as PyTorch writes since 1.6")
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise UnsafeFile("compressed records")
        if sum(entry.file_size for entry in entries) > size:
            raise UnsafeFile("records that overlap or reach beyond the file")
        if any("/code/" in f"/{entry.filename}" for entry in entries):
            raise UnsafeFile("a TorchScript program")
        pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
        if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE:
            raise UnsafeFile(f"{len(pickles)} pickles, expected one of at most {_MAX_PICKLE} bytes")
        for place, (operation, argument, _) in enumerate(pickletools.genops(archive.read(pickles[0]))):
            if place == _MAX_OPERATIONS:
                raise UnsafeFile(f"more than {_MAX_OPERATIONS} operations")
            if operation.name == "GLOBAL" and not _BUILDERS.fullmatch(str(argument)):
                raise UnsafeFile(f"unsupported object {str(argument)[:80].replace(' ', '.')}")
            if operation.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
                raise UnsafeFile(f"unsupported operation {operation.name}")
    return size


def _measure(content: object, size: int) -> None:
    """Refuses tensors larger than what backs them: one value seen as a million, or storages beyond the file."""
    storages: dict[int, int] = {}
    for tensor in tensors_in(content):
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise UnsafeFile(f"a tensor of layout {tensor.layout} on {tensor.device}")
        storage = tensor.untyped_storage()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise UnsafeFile(f"a tensor of shape {tuple(tensor.shape)} over {storage.nbytes()} bytes")
        storages[storage._cdata] = storage.nbytes()
    if sum(storages.values()) > size:
        raise UnsafeFile(f"tensors of {sum(storages.values())} bytes in a file of {size}")


def tensors_in(content: object) -> Iterator[Tensor]:
    """Every tensor in a tree of dictionaries and sequences, each container once, however deep."""
    rest, seen = [content], set()
    while rest:
        item = rest.pop()
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, Mapping | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            rest.extend(item.values() if isinstance(item, Mapping) else item)


def _reason(error: Exception) -> str:
    """One line; torch's advice around its objection would mislead here."""
    text = str(error)
    objection = re.search(r"[Uu]nsupported .*", text)
    return (objection[0] if objection else text.split(". ")[0].split("\n")[0])[:200] or type(error).__name__
