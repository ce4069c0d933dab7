# SPDX-License-Identifier: Apache-2.0
"""From the visible tokens back to the whole sequence that the decoder reads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def assemble_tokens(visible: Tensor, mask_token: Tensor, positions: Tensor, ids_restore: Tensor) -> Tensor:
    """Puts visible tokens at their places and the mask token everywhere else, and adds positions.

    Rows are looked up by index (each sample's visible rows, then one mask row), so nothing of size L is expanded
    to D channels but the result, and the gradient of the lookup is a sum over rows.

    Args:
        visible: (B, K, D).
        mask_token: (D,).
        positions: (L, D).
        ids_restore: (B, L) int64; entry l is l's place in the shuffled sequence, below K where token l is visible.

    Returns:
        (B, L, D), in the wider of the dtypes of `visible` and `positions`.
    """
    batch, num_keep, dim = visible.shape
    masked_row = mask_token.to(visible.dtype).expand(batch, 1, dim)
    table = torch.cat([visible, masked_row], dim=1).flatten(0, 1)
    first_row = torch.arange(batch, device=visible.device)[:, None] * (num_keep + 1)
    return F.embedding(first_row + ids_restore.clamp(max=num_keep), table) + positions
