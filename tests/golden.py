# SPDX-License-Identifier: Apache-2.0
"""Numbers of the published models (tests/assets/golden): files, weights and inputs by the rules in their metadata."""

from __future__ import annotations

import functools
import json
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors import safe_open

FOLDER = Path(__file__).parent / "assets" / "golden"


def read(name):
    """A golden file: `metadata`, and its tensors by the part of the key before the first dot."""
    content = SimpleNamespace(weights={}, grad={}, input={}, output={})
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        content.metadata = file.metadata()
        for key in file.keys():
            part, _, rest = key.partition(".")
            getattr(content, part)[rest] = file.get_tensor(key)
    return content


def layout_of(reference):
    """Names and shapes of the checkpoint behind a file without weights."""
    return {key: tuple(shape) for key, shape in json.loads(reference.metadata["layout"])}


@functools.cache
def drawn_weight(key, shape):
    """A weight by the rule of the metadata. Kept, as models share most of them: `cache_clear` when done."""
    values = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    is_scale = len(shape) == 1 and key.endswith(".weight")
    return torch.from_numpy(1 + 0.1 * values if is_scale else 0.03 * values)


def drawn_input(rule):
    """Follows a rule such as `numpy.random.RandomState(5).rand(1,12,96,96) float32`."""
    call, dtype = rule.removeprefix("numpy.random.RandomState(").split()
    seed, _, shape = call.partition(").rand(")
    assert dtype == "float32"
    sizes = [int(size) for size in shape.rstrip(")").split(",")]
    return torch.from_numpy(np.random.RandomState(int(seed)).rand(*sizes).astype(np.float32))


def assert_published(actual, reference):
    """max |difference| <= 1e-4 * max(1, max |reference|)."""
    bound = 1e-4 * max(1.0, reference.abs().max().item())
    assert (actual - reference).abs().max().item() <= bound
