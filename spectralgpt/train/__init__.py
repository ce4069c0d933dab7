# SPDX-License-Identifier: Apache-2.0
"""Training: recipe, loop, checkpoints, validation. `loop.py` is the place to start reading."""
