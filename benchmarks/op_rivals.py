# SPDX-License-Identifier: Apache-2.0
"""The published code's way through each op, kernel for kernel, in eager PyTorch: what `ops.py` compares with.

Written from the list of kernels that the published step launches (copies, repeats and casts included), not from its
source. Where a plainer chain would be quicker, the published one is what users run today, so it is the one timed.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def patchify(image: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """(B, C, H, W) -> (B, L, P): one permuted copy."""
    t, p, q = patch
    batch, bands, height, width = image.shape
    grid = image.reshape(batch, 1, bands // t, t, height // p, p, width // q, q)
    return torch.einsum("nctuhpwq->nthwupqc", grid).reshape(batch, -1, t * p * q)


def random_mask(batch: int, length: int, num_keep: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Two argsorts of noise, and the mask gathered back into place."""
    noise = torch.rand(batch, length, device=device)
    ids_shuffle = torch.argsort(noise, dim=1)
    ids_restore = torch.argsort(ids_shuffle, dim=1)
    mask = torch.ones(batch, length, device=device)
    mask[:, :num_keep] = 0
    return ids_shuffle[:, :num_keep], ids_restore, torch.gather(mask, 1, ids_restore)


def embed(image: Tensor, weight: Tensor, bias: Tensor, ids_keep: Tensor) -> Tensor:
    """Conv3d over all cubes, then the visible ones: (B, K, D)."""
    tokens = F.conv3d(image[:, None], weight, bias, stride=weight.shape[2:]).flatten(2).transpose(1, 2)
    return torch.gather(tokens, 1, ids_keep[:, :, None].repeat(1, 1, weight.shape[0]))


def assemble(visible: Tensor, mask_token: Tensor, positions: Tensor, ids_restore: Tensor) -> Tensor:
    """Mask tokens appended, everything unshuffled by repeated ids, positions repeated and added: (B, L, D)."""
    batch, num_keep, channels = visible.shape
    length = ids_restore.shape[1]
    hidden = mask_token.repeat(batch, length - num_keep, 1)
    tokens = torch.cat([visible, hidden], dim=1)
    tokens = torch.gather(tokens, 1, ids_restore[:, :, None].repeat(1, 1, channels))
    return tokens + positions[None].repeat(batch, 1, 1)


def loss(prediction: Tensor, image: Tensor, mask: Tensor, patch: tuple[int, int, int], normalize: bool) -> Tensor:
    """Targets built by a band selection and a permuted copy, then both terms in turn."""
    bands = torch.linspace(0, image.shape[1] - 1, image.shape[1], dtype=torch.int64, device=image.device)
    target = patchify(torch.index_select(image, 1, bands), patch)
    groups = image.shape[1] // patch[0]
    by_group = (len(image), groups, target.shape[1] // groups, target.shape[2])
    spectrum, predicted = target.view(by_group).sum(dim=1), prediction.view(by_group).sum(dim=1)
    if normalize:
        mean, variance = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6) ** 0.5
    token = ((prediction - target) ** 2).mean(dim=-1)
    token = (token * mask).sum() / mask.sum()
    return token + ((predicted - spectrum) ** 2).mean(dim=-1).mean()


def augment(pixels: NDArray[np.uint16], size: int, generator: np.random.Generator) -> Tensor:
    """One sample's preparation: min-max per band, to tensor, random resized bicubic crop, flip."""
    image = pixels.transpose(1, 2, 0).astype(np.float32)
    low, high = image.min(axis=(0, 1), keepdims=True), image.max(axis=(0, 1), keepdims=True)
    image = (image - low) / (high - low + 1e-10)
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
    height, width = tensor.shape[1:]
    side = int(np.sqrt(generator.uniform(0.2, 1.0) * height * width))
    y, x = generator.integers(height - side + 1), generator.integers(width - side + 1)
    crop = tensor[:, y : y + side, x : x + side]
    view = F.interpolate(crop[None], (size, size), mode="bicubic", align_corners=False, antialias=True)[0]
    return view.flip(-1) if generator.random() < 0.5 else view
