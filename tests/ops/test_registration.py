# SPDX-License-Identifier: Apache-2.0
"""That the native kernels serve, that the reference is the fallback, and that the package needs torch only."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys

import pytest
import torch

from spectralgpt import ops
from spectralgpt.ops import _native, _registry

NATIVE_OPS = {
    "patchify3d",
    "unpatchify3d",
    "gather_patchify3d",
    "gather_patchify3d_backward",
    "random_cube_mask",
    "cube_mask_from_noise",
    "reconstruction_loss",
    "reconstruction_loss_scale",
    "assemble_tokens",
    "assemble_tokens_backward",
    "crop_resize",
}


def call_every_op() -> None:
    image = torch.rand(2, 12, 16, 16)
    mask = ops.random_cube_mask(torch.arange(2), 16, 0.5, seed=0)
    ops.cube_mask_from_noise(torch.rand(2, 16), 0.5)
    ops.gather_patchify3d(image.clone().requires_grad_(), mask.ids_keep).sum().backward()
    prediction = ops.patchify3d(image).requires_grad_()
    ops.unpatchify3d(prediction, (12, 16, 16))
    ops.reconstruction_loss(prediction, image, mask.mask).total.backward()
    positions = torch.rand(16, 4, requires_grad=True)
    ops.assemble_tokens(torch.rand(2, 8, 4), torch.rand(4), positions, mask.ids_restore).sum().backward()
    layout, boxes = torch.tensor([[0, 8, 8]]), torch.tensor([[0, 0, 8, 8]], dtype=torch.int32)
    plain = {"bands": 1, "offset": torch.zeros(1, 1), "scale": torch.ones(1, 1)}
    ops.crop_resize(torch.rand(64), layout, boxes, torch.zeros(1, 2, dtype=torch.bool), 4, **plain)


def test_native_kernels_serve(launched: list[str]) -> None:
    call_every_op()
    assert set(launched) == (NATIVE_OPS if _native.devices() else set())


def test_table_tells_the_truth(request: pytest.FixtureRequest) -> None:
    table = _registry.table()
    hidden = request.config.getoption("--hide-native")
    for name in NATIVE_OPS:
        assert _registry._OPS[name].implementations["cpu"] == ("reference" if hidden else "native")
        assert name in table


def test_native_may_be_required(tmp_path: os.PathLike[str]) -> None:
    program = (
        "import sys; sys.modules['spectralgpt._C'] = None\n"
        "import torch; from spectralgpt import ops\n"
        "try: ops.patchify3d(torch.zeros(1, 12, 8, 8))\n"
        "except RuntimeError as error: print(error)\n"
    )
    environment = {**os.environ, "SPECTRALGPT_REQUIRE_NATIVE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert "patchify3d: no native kernel (spectralgpt._C cannot be imported" in result.stdout


def test_importing_ops_needs_torch_only() -> None:
    program = (
        "import sys, spectralgpt.ops\n"
        "heavy = {'rasterio', 'xformers', 'matplotlib', 'yaml', 'jsonargparse', 'safetensors', 'tensorboard'}\n"
        "ours = [m for m in sys.modules if m.startswith('spectralgpt.') and not m.startswith('spectralgpt.ops')]\n"
        "print(sorted(heavy & set(sys.modules)), sorted(ours))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() in ("[] []", "[] ['spectralgpt._C']")


def test_command_line_report(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_module("spectralgpt.ops", run_name="__main__")
    printed = capsys.readouterr().out
    assert "reconstruction_loss" in printed and "cpu" in printed
