# SPDX-License-Identifier: Apache-2.0
"""`spectralgpt embed` and `spectralgpt reconstruct`: what a pretrained model makes of a scene, without labels."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import spectralgpt
from spectralgpt.data.scene import Scene
from spectralgpt.errors import UserError
from spectralgpt.models.autoencoder import Autoencoder
from spectralgpt.models.base import SpectralModel
from spectralgpt.models.encoder import Encoder
from spectralgpt.predict.device import choose_device
from spectralgpt.predict.embed import embed_scene, write_components, write_tiles
from spectralgpt.predict.inputs import (
    InputOptions,
    card_of,
    fingerprint,
    model_folder,
    normalize,
    open_scene,
    scenes_at,
)
from spectralgpt.predict.reconstruct import reconstruct_scene

_EMBED = ("pool", "layer", "keep_places", "overlap", "batch_size", "overwrite", "restart")


def run_embed(arguments: Mapping[str, Any]) -> int:
    """Writes embeddings of a scene, their principal components and, if wanted, those of tiles.

    Args:
        arguments: those of `embed_scene`, `scene`, `model`, `tile` (pixels; 0 for none), `device`, and the fields of
            `InputOptions`.

    Returns:
        The exit code.

    Raises:
        UserError: the scene, the model or the disk do not serve.
    """
    options, inputs = _split(arguments)
    out, tile = Path(options["out"]), options["tile"]
    model, scene = _opened(options, inputs)
    encoder = model if isinstance(model, Encoder) else model.encoder
    assert isinstance(encoder, Encoder)  # every model has one
    cell = encoder.config.patch_size[1]
    if out.suffix.lower() not in (".tif", ".tiff"):
        raise UserError(f"--out: expected a name that ends in .tif, got {out}")
    if tile % cell:
        raise UserError(f"--tile: expected a multiple of the patch's {cell} pixels, got {tile}")
    began = time.monotonic()
    is_new = embed_scene(
        encoder,
        scene,
        partial(normalize, model=model, options=inputs),
        out,
        identity={
            "model": fingerprint(model_folder(options["model"])),
            "normalization": [inputs.normalization, inputs.scale, inputs.offset],
        },
        **{key: options[key] for key in _EMBED},
    )
    what = f"one vector for {cell} x {cell} pixels, in {time.monotonic() - began:.1f} s"
    print(f"{out}: {what if is_new else 'is there already, made by the same settings'}")
    for path in write_components(out, f"{out.stem}-components"):
        print(f"{path}: first three principal components")
    if tile:
        path = out.with_name(f"{out.stem}-tiles.parquet")
        print(f"{path}: {write_tiles(out, scene, cell, tile // cell, path)} tiles of {tile} x {tile} pixels")
    return 0


def run_reconstruct(arguments: Mapping[str, Any]) -> int:
    """Hides tokens of a scene, rebuilds them, and prints the errors.

    Args:
        arguments: those of `reconstruct_scene`, `scene`, `model`, `device`, and the fields of `InputOptions`.

    Returns:
        The exit code.

    Raises:
        UserError: the scene, the model or the disk do not serve.
    """
    options, inputs = _split(arguments)
    model, scene = _opened(options, inputs)
    if not isinstance(model, Autoencoder):
        raise UserError(
            f"{options['model']}: expected an autoencoder, which pretraining makes, got a model of kind {model.kind}, "
            "which has no decoder"
        )
    out, names = Path(options["out"]), ("mask_ratio", "seed", "batch_size", "overwrite")
    chosen = {key: options[key] for key in names}
    result = reconstruct_scene(model, scene, normalize(scene, model, inputs), out, **chosen)
    print(
        f"hidden values: PSNR {result.psnr:.2f} dB (nearest visible token {result.psnr_nearest:.2f}, mean "
        f"{result.psnr_mean:.2f}), SSIM {result.ssim:.3f}, spectral angle {result.sam:.2f} degrees, ERGAS "
        f"{result.ergas:.1f} %"
    )
    if model.config.normalize_targets:
        print("level and contrast of each token are taken from the truth, since the model rebuilds normalised tokens")
    print(f"{out}: rebuilt.tif error.tif metrics.json overview.png windows.png")
    return 0


def _split(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], InputOptions]:
    """What concerns the work, and what concerns reading the scene."""
    names = {field.name for field in dataclasses.fields(InputOptions)}
    inputs = InputOptions(**{key: value for key, value in arguments.items() if key in names})
    return {key: value for key, value in arguments.items() if key not in names}, inputs


def _opened(options: Mapping[str, Any], inputs: InputOptions) -> tuple[SpectralModel, Scene]:
    """The model, on its device and ready, and the scene."""
    model = spectralgpt.from_pretrained(model_folder(options["model"])).eval().to(choose_device(options["device"]))
    card = card_of(model, inputs)
    paths = scenes_at(options["scene"], card)
    if len(paths) != 1:
        raise UserError(f"{options['scene']}: expected one scene, found {len(paths)}; name one of them")
    scene = open_scene(paths[0], card, inputs, "demo" if options["scene"] == "demo" else None)
    if scene.crs is None or scene.transform is None:
        print(f"warning: {scene.name}: has no coordinates, and so will what is made of it", file=sys.stderr)
    return model, scene
