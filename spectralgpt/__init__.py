# SPDX-License-Identifier: Apache-2.0
"""SpectralGPT: 3D masked autoencoders for multi- and hyperspectral satellite images.

Names are imported on first use (PEP 562), so `import spectralgpt.ops` stays as light as the operators are.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spectralgpt import ops
    from spectralgpt.heads import (
        create_change_detector,
        create_classifier,
        create_segmenter,
    )
    from spectralgpt.integrations.hub import from_pretrained
    from spectralgpt.models.reference_checkpoint import (
        LoadReport,
        load_reference_checkpoint,
        reference_state_dict,
    )
    from spectralgpt.models.registry import create_autoencoder, create_model
    from spectralgpt.ops import CubeMask

__version__ = "0.1.0"

__all__ = [
    "CubeMask",
    "LoadReport",
    "__version__",
    "create_autoencoder",
    "create_change_detector",
    "create_classifier",
    "create_model",
    "create_segmenter",
    "from_pretrained",
    "load_reference_checkpoint",
    "ops",
    "reference_state_dict",
]

_HOMES = {
    "CubeMask": "spectralgpt.ops",
    "LoadReport": "spectralgpt.models.reference_checkpoint",
    "create_autoencoder": "spectralgpt.models.registry",
    "create_change_detector": "spectralgpt.heads",
    "create_classifier": "spectralgpt.heads",
    "create_model": "spectralgpt.models.registry",
    "create_segmenter": "spectralgpt.heads",
    "from_pretrained": "spectralgpt.integrations.hub",
    "load_reference_checkpoint": "spectralgpt.models.reference_checkpoint",
    "reference_state_dict": "spectralgpt.models.reference_checkpoint",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name == "ops":
        return importlib.import_module("spectralgpt.ops")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'spectralgpt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
