# SPDX-License-Identifier: Apache-2.0
"""Operators for masked autoencoders over spectral image cubes. Usable on their own: nothing but torch is imported.

Sizes, here and in `csrc/`: B batch, C bands, H W pixels, (t, p, p) patch of bands, rows and columns, S = C/t spectral
groups, h = H/p, w = W/p, L = S*h*w tokens, K kept tokens, P = t*p*p values per token, D channels. Token order:
`(group*h + y)*w + x`; inside a token: band, row, column.
"""

from spectralgpt.ops.assemble import assemble_tokens
from spectralgpt.ops.crop_resize import crop_resize
from spectralgpt.ops.loss import ReconstructionLoss, reconstruction_loss
from spectralgpt.ops.masking import CubeMask, cube_mask_from_noise, num_visible, random_cube_mask
from spectralgpt.ops.patchify import gather_patchify3d, patchify3d, unpatchify3d
from spectralgpt.ops.random import Purpose, philox

__all__ = [
    "CubeMask",
    "Purpose",
    "ReconstructionLoss",
    "assemble_tokens",
    "crop_resize",
    "cube_mask_from_noise",
    "gather_patchify3d",
    "num_visible",
    "patchify3d",
    "philox",
    "random_cube_mask",
    "reconstruction_loss",
    "unpatchify3d",
]
