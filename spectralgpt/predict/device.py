# SPDX-License-Identifier: Apache-2.0
"""Where to compute."""

from __future__ import annotations

import torch

from spectralgpt.errors import UserError


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """A device for "auto", "cpu" or "cuda"; of several GPUs, that of this process of the machine.

    Raises:
        UserError: CUDA is asked for and not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device: expected a CUDA device, got none; leave it at auto")
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return torch.device("cpu")
