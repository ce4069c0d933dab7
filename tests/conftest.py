# SPDX-License-Identifier: Apache-2.0
"""What every test shares: a fixed seed, and `--hide-native` for the run without the compiled module."""

from __future__ import annotations

import sys

import pytest

if "--hide-native" in sys.argv:  # now: other conftest files, read before any hook runs, import the package
    sys.modules["spectralgpt._C"] = None  # type: ignore[assignment]  # importing it raises ImportError


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--hide-native", action="store_true", help="run as if spectralgpt._C had not been built")


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    import torch

    torch.manual_seed(0)
