# SPDX-License-Identifier: Apache-2.0
"""The model card, README.md beside the weights: what a stranger must know before pixels go in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spectralgpt.models.config import ModelConfig

_PIPELINES = {
    "single_label": "image-classification",
    "multi_label": "image-classification",
    "segmentation": "image-segmentation",
    "change": "image-segmentation",
}
_RULES = {
    "minmax": "each band of a source image from its minimum and maximum to 0 and 1",
    "percentile": "each band of a whole scene from its 1st and 99th percentile to 0 and 1; values beyond are kept",
    "fixed": "(value - offset) * scale, with the numbers in config.json",
    "none": "none: pixels as they are stored",
}


def model_card(
    kind: str, config: ModelConfig, normalization: Mapping[str, Any] | None, head: Mapping[str, Any] | None
) -> str:
    """The card of a model, from what `config.json` holds."""
    task = None if head is None else str(head["task"])
    rule = None if normalization is None else str(normalization.get("method"))
    height, width = config.height_width
    t, p, q = config.patch_size
    parts = [
        "---",
        "library_name: spectralgpt",
        "license: other  # yours to choose: weights and data set decide",
        f"pipeline_tag: {_PIPELINES.get(task or '', 'image-feature-extraction')}",
        "tags: [remote-sensing, satellite, multispectral, masked-autoencoder]",
        "---",
        "",
        f"# {kind.replace('_', ' ').capitalize()}: SpectralGPT {config.name}",
        "",
        f"{config.embed_dim} channels, {config.depth} blocks, tokens of {t} bands x {p} x {q} pixels, positions for "
        f"{height} x {width} pixels.",
        "",
        "## Bands",
        "",
        *_band_table(config),
        "",
        f"Normalisation: {_RULES.get(rule or '', 'not recorded')}.",
        *([] if head is None else ["", "## Classes", "", ", ".join(map(_cell, head.get("classes", ())))]),
        "",
        "## Use",
        "",
        "```python",
        "import torch, spectralgpt",
        "",
        'model = spectralgpt.from_pretrained("FOLDER_OR_ORG/NAME").eval()',
        f"image = torch.rand(1, {config.bands}, {height}, {width})  # normalised, bands in the order above",
        *_example(kind, task),
        "```",
        "",
        "## Training data and evaluation",
        "",
        "To be filled in: data set, split, licence of the images, scores.",
        "",
        "## Credit",
        "",
        "Method: D. Hong et al., *SpectralGPT: Spectral Remote Sensing Foundation Model*, TPAMI 2024 "
        "([arXiv 2311.07113](https://arxiv.org/abs/2311.07113)). Software: `spectralgpt`, an independent "
        "implementation, Apache-2.0.",
        "",
    ]
    return "\n".join(parts)


def _band_table(config: ModelConfig) -> list[str]:
    group_of = {index: str(number) for number, group in enumerate(config.groups, start=1) for index in group}
    rows = ["| channel | band | centre wavelength, um | spectral group |", "|---|---|---|---|"]
    for index in range(config.bands):
        name = _cell(config.band_names[index]) if config.band_names else "not recorded"
        wavelength = f"{config.wavelengths[index]:g}" if config.wavelengths else "not recorded"
        rows.append(f"| {index} | {name} | {wavelength} | {group_of.get(index, 'none')} |")
    return rows


def _example(kind: str, task: str | None) -> list[str]:
    if task == "change":
        return ["probabilities = model.probabilities(image, image)  # before, after -> (1, 2, H, W)"]
    if task is not None:
        return ["probabilities = model.probabilities(image)"]
    encoder = "model" if kind == "encoder" else "model.encoder"
    return [f"tokens = {encoder}(image)  # (1, tokens, channels)"]


def _cell(text: object) -> str:
    """Names come from files: nothing in them may become markup."""
    return "".join(f"&#{ord(char)};" if char in "|<>&[]`*_!\n" else char for char in str(text))
