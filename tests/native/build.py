# SPDX-License-Identifier: Apache-2.0
"""Builds csrc/ for tests: the CUDA kernels against the emulated execution model, plain or under sanitizers."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).resolve().parents[2]
EMULATION = Path(__file__).resolve().parent / "emulation"
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1")


def build(cache: Path, name: str, flags: Sequence[str] = (), edit: tuple[str, str, str] | None = None) -> Path:
    """Compiles CPU and emulated CUDA kernels to one module; the result is kept under a hash of sources and flags.

    `edit` = (file, old, new) plants a change in one source, for tests that must see a bug caught.
    """
    sources = sorted((ROOT / "csrc").rglob("*.*")) + sorted(EMULATION.glob("*"))
    key = hashlib.sha256(
        repr((name, flags, edit)).encode() + b"".join(path.read_bytes() for path in sources)
    ).hexdigest()[:16]
    folder = cache / f"{name}-{key}"
    module = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not module.exists():
        _compile(folder, module, name, flags, edit)
    return module


def _compile(folder: Path, module: Path, name: str, flags: Sequence[str], edit: tuple[str, str, str] | None) -> None:
    csrc = folder / "csrc"
    for path in (ROOT / "csrc").rglob("*"):
        if path.is_file():
            copy = csrc / path.relative_to(ROOT / "csrc")
            copy.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text()
            if edit and path.name == edit[0]:
                assert text.count(edit[1]) == 1, f"{edit[1]!r} is not once in {path}"
                text = text.replace(edit[1], edit[2])
            copy.write_text(text)
    common = [
        *("g++", "-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", *flags, "-DSPECTRAL_EMULATE", "-DSPECTRAL_CUDA"),
        *(f"-DSPECTRAL_MODULE={name}", '-DSPECTRAL_COMPILER="g++"', '-DSPECTRAL_BUILD_TYPE="emulated"'),
        *('-DSPECTRAL_CUDA_VERSION="emulated"', '-DSPECTRAL_CUDA_ARCHITECTURES="emulated"'),
        *(f"-I{csrc}", f"-I{EMULATION}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"),
    ]
    units = [csrc / "bindings.cpp", *csrc.glob("cpu/*.cpp"), *csrc.glob("cuda/*.cu")]

    def compile_one(unit: Path) -> str:
        target = folder / f"{unit.parent.name}-{unit.stem}.o"
        subprocess.run([*common, "-x", "c++", "-c", str(unit), "-o", str(target)], check=True)
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, units))
    unfinished = module.with_suffix(".tmp")
    subprocess.run(["g++", "-shared", *flags, *objects, "-o", str(unfinished)], check=True)
    unfinished.rename(module)


def load(path: Path) -> ModuleType:
    """Imports a built module from its file."""
    spec = importlib.util.spec_from_file_location(path.name.split(".")[0], path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
