# SPDX-License-Identifier: Apache-2.0
"""What every test shares: fixed seeds, no clock over hypothesis, and `--hide-native` for the run without the compiled
module."""

from __future__ import annotations

import contextlib
import os
import sys

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported, here and in child processes: one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if "--hide-native" in sys.argv:
    os.environ["SPECTRALGPT_TEST_HIDE_NATIVE"] = "1"  # the processes of pytest-xdist have another command line
if "SPECTRALGPT_TEST_HIDE_NATIVE" in os.environ:  # now: other conftest files, read before any hook runs, import it
    sys.modules["spectralgpt._C"] = None  # type: ignore[assignment]  # importing it raises ImportError

os.environ["no_proxy"] = "127.0.0.1"  # servers of tests are asked directly, whatever proxy the machine has

with contextlib.suppress(ImportError):  # the GPU lane does without it
    from hypothesis import HealthCheck, settings

    # The same examples on every run; and a busy machine, which is slow over one of them, is no defect.
    settings.register_profile("tests", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--hide-native", action="store_true", help="run as if spectralgpt._C had not been built")


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    import torch

    torch.manual_seed(0)
