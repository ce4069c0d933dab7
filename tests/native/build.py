# SPDX-License-Identifier: Apache-2.0
"""Builds csrc/ for tests: the CUDA kernels against the emulated execution model, plain or under sanitizers."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pybind11

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
EMULATION = Path(__file__).resolve().parent / "emulation"
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g")
HEADERS = [*sorted(CSRC.rglob("*.h")), *sorted(CSRC.rglob("*.cuh")), *sorted(EMULATION.glob("*.h"))]
UNITS = [CSRC / "bindings.cpp", *sorted(CSRC.glob("cpu/*.cpp")), *sorted(CSRC.glob("cuda/*.cu"))]


class Plant(NamedTuple):
    """A change in one source file, for tests that must see a bug caught."""

    file: str
    old: str
    new: str


def build(cache: Path, name: str = "_emulated", flags: Sequence[str] = (), plant: Plant | None = None) -> Path:
    """Compiles CPU and emulated CUDA kernels to one module; objects are kept under a hash of sources and flags."""
    with open(cache / ".lock", "w") as lock:  # of several test processes one compiles and the others wait for it
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build(cache, name, flags, plant)


def _build(cache: Path, name: str, flags: Sequence[str], plant: Plant | None) -> Path:
    headers = b"".join(path.read_bytes() for path in HEADERS)

    def compile_unit(unit: Path) -> Path:
        text = unit.read_text()
        if plant and unit.name == plant.file:
            assert text.count(plant.old) == 1, f"{plant.old!r} is not once in {unit}"
            text = text.replace(plant.old, plant.new)
        options = [*flags, f"-DSPECTRAL_MODULE={name}"] if unit.name == "bindings.cpp" else [*flags]
        key = hashlib.sha256(headers + text.encode() + repr(options).encode()).hexdigest()[:16]
        target = cache / f"{unit.parent.name}-{unit.stem}-{key}.o"
        if not target.exists():
            _compile(text, unit, options, target)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = [str(path) for path in pool.map(compile_unit, UNITS)]
    folder = cache / hashlib.sha256(repr(objects).encode()).hexdigest()[:16]
    module = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not module.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = module.with_suffix(".tmp")
        subprocess.run(["g++", "-shared", *flags, *objects, "-o", str(unfinished)], check=True)
        unfinished.rename(module)
    return module


def _compile(text: str, unit: Path, options: Sequence[str], target: Path) -> None:
    command = [
        *("g++", "-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"),
        *("-DSPECTRAL_EMULATE", "-DSPECTRAL_CUDA", '-DSPECTRAL_COMPILER="g++"', '-DSPECTRAL_BUILD_TYPE="emulated"'),
        *('-DSPECTRAL_CUDA_VERSION="emulated"', '-DSPECTRAL_CUDA_ARCHITECTURES="emulated"', *options),
        *(f"-I{CSRC}", f"-I{EMULATION}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"),
    ]
    unfinished = target.with_suffix(".tmp")
    origin = f'# 1 "{unit}"\n'  # reports name the real file
    subprocess.run(
        [*command, "-x", "c++", "-c", "-", "-o", str(unfinished)], input=origin + text, text=True, check=True
    )
    unfinished.rename(target)


def load(path: Path) -> ModuleType:
    """Imports a built module from its file."""
    spec = importlib.util.spec_from_file_location(path.name.split(".")[0], path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
