# SPDX-License-Identifier: Apache-2.0
"""Pretraining: recipe, loop, checkpoints, validation. `loop.py` is the place to start reading."""
