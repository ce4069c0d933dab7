# SPDX-License-Identifier: Apache-2.0
"""The layer rules of CONTRIBUTING.md: who may import whom, what lives in one place only, how long files get."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "spectralgpt"
MODULES = sorted(PACKAGE.rglob("*.py"))
NATIVE = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".cuh", ".cpp", ".cu"})

# layer -> layers of the package it may import, beside itself, errors and files
MAY_IMPORT = {
    "files": set(),
    "ops": set(),
    "nn": {"ops"},
    "models": {"ops", "nn"},
    "data": {"ops", "viz"},
    "viz": set(),
    "heads": {"ops", "nn", "models"},
    "train": {"ops", "nn", "models", "heads", "data", "viz"},
    "predict": {"ops", "nn", "models", "heads", "data", "viz"},
    "evaluate": {"ops", "nn", "models", "heads", "data", "viz", "train", "predict"},
    "app": {"ops", "models", "data", "viz", "predict"},
    "integrations": {"ops", "nn", "models", "heads", "data"},
    "cli": {"ops", "nn", "models", "heads", "data", "viz", "train", "predict", "evaluate", "app"},
}
# what only one file may touch
ONLY_IN = {
    r"\bimport _C\b|\b_C\b.*import|spectralgpt\._C import": "ops/_native.py",
    r"\.data_ptr\(": "ops/_native.py",
    r"^\s*(import|from) rasterio": "data/raster",
    r"^\s*(import|from) xformers|import_module\(\"xformers": "nn/attention.py",
    r"^\s*(import|from) matplotlib": "viz/",
}
FORBIDDEN = (
    r"\bimport pickle\b|\bpickle\.load|distributed\.checkpoint|yaml\.load\(|(?<![.\w])(eval|exec)\("
    r"|shell=True|allow_pickle=True|os\.system"
)


def layer_of(path: Path) -> str:
    """First part of the path below the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Layers of the package that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "spectralgpt"
                else [node.module]
            )
        found |= {name.split(".")[1] for name in names if name.startswith("spectralgpt.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_layers(path: Path) -> None:
    layer = layer_of(path)
    if layer in MAY_IMPORT:
        extra = imported(path) - MAY_IMPORT[layer] - {layer, "errors", "files", "_C", "__version__"}
        assert not extra, f"{layer} may not import {sorted(extra)}"


def test_every_layer_has_a_rule() -> None:
    layers = {layer_of(path) for path in MODULES} - {"__init__", "__main__", "errors"}
    assert layers <= set(MAY_IMPORT)


@pytest.mark.parametrize(("pattern", "home"), ONLY_IN.items(), ids=list(ONLY_IN.values()))
def test_one_place_only(pattern: str, home: str) -> None:
    hits = {str(path.relative_to(PACKAGE)) for path in MODULES if re.search(pattern, path.read_text(), re.MULTILINE)}
    assert all(hit.startswith(home) for hit in hits), sorted(hits)
    assert hits, "the rule no longer matches anything: mend its pattern"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes_and_forbidden_calls(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert not re.search(FORBIDDEN, text)
    assert not re.search(r"torch\.load\((?![^)]*weights_only=True)", text.replace("\n", " ")), (
        "torch.load needs weights_only=True"
    )
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno:
            doc = ast.get_docstring(node, clean=False)
            code = node.end_lineno - node.lineno + 1 - (len(doc.splitlines()) if doc else 0)
            assert code <= 60, f"{node.name} has {code} lines"


@pytest.mark.parametrize("path", NATIVE, ids=lambda path: str(path.relative_to(ROOT)))
def test_native_sources(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    assert not re.search(r"#include <(torch|ATen|c10)/", text)
    if path.name != "bindings.cpp":
        assert not re.search(r"#include <(pybind11|Python\.h)", text)
    if "cuda" not in path.parts and path.name != "device.cuh":
        assert "cuda_runtime" not in text
    if path.name != "device.cuh":  # kernels speak to the device through device.cuh alone
        assert not re.search(r"__syncthreads|__shfl|threadIdx|blockIdx|atomicAdd|<<<", text)
    assert not re.search(r"\bint(32_t)?\s+\w+\s*=[^;]*(numel|blockIdx|block_index)", text), "64-bit indices"


def test_spdx_everywhere() -> None:
    sources = [
        *MODULES,
        *NATIVE,
        *ROOT.glob("tests/**/*.py"),
        *ROOT.glob("tools/*.py"),
        *ROOT.glob("benchmarks/*.py"),
        *ROOT.glob("examples/*.py"),
        ROOT / "setup.py",
    ]
    assert [
        str(path)
        for path in sources
        if path.read_text() and "SPDX-License-Identifier: Apache-2.0" not in path.read_text()[:300]
    ] == []
