# SPDX-License-Identifier: Apache-2.0
"""Writes the committed lists anew: `python -m spectralgpt.data.splits`. A test holds that nothing changes."""

from pathlib import Path

from spectralgpt.data.splits import eurosat_text

Path(__file__).with_name("eurosat.txt").write_text(eurosat_text(), "ascii")
