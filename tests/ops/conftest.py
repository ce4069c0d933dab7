# SPDX-License-Identifier: Apache-2.0
"""`kernels`: the same tests on the CPU kernels and on the CUDA kernels under emulation, in three thread orders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor

from spectralgpt.ops import _native
from tests.native.build import build, load


@pytest.fixture(scope="session")
def emulated(request: pytest.FixtureRequest) -> ModuleType:
    """The CUDA kernels, compiled for the host."""
    if shutil.which("g++") is None:
        pytest.skip("the emulation of the CUDA kernels needs g++")
    return load(build(request.config.cache.mkdir("native")))


def use_emulated(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    """Sends every native launch of CPU tensors to the emulated CUDA kernel of the same name."""

    def launch(name: str, anchor: Tensor, *arguments: object) -> None:
        getattr(module, f"{name}_cuda")(*arguments, 0, 0)

    monkeypatch.setattr(_native, "_launch", launch)


KERNELS = ["cpu", "cuda-ascending", "cuda-descending", "cuda-shuffled"] if _native.devices() else ["reference"]


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which kernels serve the test; without the native module only the reference."""
    if request.param.startswith("cuda"):
        module = request.getfixturevalue("emulated")
        module.set_schedule(["ascending", "descending", "shuffled"].index(request.param.removeprefix("cuda-")))
        use_emulated(monkeypatch, module)
    return str(request.param)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the native kernels launched during the test."""
    names: list[str] = []
    real: Callable[..., None] = _native._launch

    def launch(name: str, *arguments: Any) -> None:
        names.append(name)
        real(name, *arguments)

    monkeypatch.setattr(_native, "_launch", launch)
    return names
