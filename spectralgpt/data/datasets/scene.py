# SPDX-License-Identifier: Apache-2.0
"""Windows over scenes, as a PyTorch data set.

A training sample is a pure function of (seed, epoch, index): position and flips come from Philox words drawn
for a whole epoch at once, so that neither workers nor a restart change them. Validation windows lie on a
fixed grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from spectralgpt import ops
from spectralgpt.data.bands import SensorCard
from spectralgpt.data.batch import Batch, Key, pack
from spectralgpt.data.normalize import Normalization
from spectralgpt.data.raster import Bools, Pixels
from spectralgpt.data.scene_set import (
    DataConfig,
    Origin,
    SceneSet,
    Split,
    num_windows,
    open_scenes,
    valid_share,
)
from spectralgpt.data.views import ViewConfig
from spectralgpt.errors import UserError

__all__ = ["DataConfig", "SceneWindows", "open_windows"]

_CANDIDATES = 8

Sample = dict[str, Tensor]


def open_windows(
    config: DataConfig, window: int, patch_size: tuple[int, int, int], split: Split, seed: int
) -> SceneWindows:
    """The windows of one side of the split over the images of a configuration.

    Args:
        config: which images.
        window: rows and columns of a window.
        patch_size: bands, rows and columns of a token.
        split: "train" or "val".
        seed: of positions and flips in training.

    Raises:
        UserError: the images, the window or the patch do not fit together.
    """
    _, rows, columns = patch_size
    if window < 1 or window % rows or window % columns:
        raise UserError(f"window: expected a multiple of the patch's {rows} x {columns} pixels, got {window}")
    return SceneWindows(open_scenes(config), window, patch_size, split, seed)


class SceneWindows(Dataset[Sample]):
    """Windows of `window` x `window` pixels; a key is (epoch, index), `len` counts the windows of an epoch.

    A training epoch holds as many windows as fit side by side on the train sides. Each lies at the first of
    up to 8 random positions of which half the values are valid, or else at the one of the 8 with most valid
    values.

    A sample has "image", normalised float32 `(C, h, w)` with invalid pixels 0; "valid", bool `(L,)`, true for
    tokens all of whose pixels are valid; "sample_id", int64.
    """

    def __init__(
        self, scenes: SceneSet, window: int, patch_size: tuple[int, int, int], split: Split, seed: int
    ) -> None:
        """See `open_windows`."""
        self._scenes, self._window, self._patch_size, self._seed = scenes, window, patch_size, seed
        self.split = split
        self._origins = scenes.val_origins(window) if split == "val" else []
        self._sides = scenes.train_sides(window) if split == "train" else []
        self._ends = np.cumsum([num_windows(scenes.scenes[side.scene], side, window) for side in self._sides])
        self._affine = [[values[:, 0, 0] for values in normal.arrays()] for normal in scenes.normalizations]
        groups = scenes.card.group_names(patch_size[0])
        self._channels = [[scenes.card.names.index(name) for name in group] for group in groups]

    @property
    def card(self) -> SensorCard:
        """The sensor, cut to the bands in use; its groups are the model's."""
        return self._scenes.card

    @property
    def band_names(self) -> tuple[str, ...]:
        """Canonical band names, in the order of the channels."""
        return self._scenes.card.names

    @property
    def wavelengths(self) -> tuple[float, ...]:
        """Centre wavelengths in micrometres."""
        return self._scenes.card.wavelengths

    @property
    def normalizations(self) -> dict[str, Normalization]:
        """The normalisation of each scene, by its name."""
        names = [scene.name for scene in self._scenes.scenes]
        return dict(zip(names, self._scenes.normalizations, strict=True))

    @property
    def normalization(self) -> dict[str, Any]:
        """What travels with the model: the numbers where all scenes share them, else the method alone."""
        first, *others = (normal.to_dict() for normal in self.normalizations.values())
        return (
            first
            if all(other == first for other in others)
            else {"method": first["method"], "band_names": first["band_names"]}
        )

    def normalization_at(self, index: int) -> Normalization:
        """Offset and scale of a window of the first epoch."""
        known = self.normalizations
        return known[next(iter(known)) if len(known) == 1 else self.origin(index)[0]]

    def describe(self) -> str:
        """What was read, in one line for the console; the same for both splits."""
        return self._scenes.describe(self._window)

    def origin(self, index: int, epoch: int = 0) -> tuple[str, int, int]:
        """Scene name, first row and first column of a window."""
        origin, _, _ = self._read(epoch, index)
        return self._scenes.scenes[origin.scene].name, origin.row, origin.column

    def __len__(self) -> int:
        """Windows per epoch."""
        if self.split == "val":
            return len(self._origins)
        return int(self._ends[-1])

    def __getitem__(self, key: Key) -> Sample:
        """The sample of (epoch, index)."""
        return {name: value[0] for name, value in self.__getitems__([key]).images().items()}

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """The batch of these keys, still raw."""
        read = [self._read(epoch, index) for epoch, index in keys]
        affine = [self._affine[origin.scene] for origin, _, _ in read]
        flips = [self._flips(epoch, index) for epoch, index in keys]
        windows = [
            # only floats hold exactly what normalises to 0
            (pixels if valid is None else pixels.astype(np.float32), valid)
            for _, pixels, valid in read
        ]
        pixels, layout = pack(windows, [offset for offset, _ in affine])
        tokens = [
            self._token_validity(valid).flip([axis for axis, flip in zip((-2, -1), flipped, strict=True) if flip])
            for (_, _, valid), flipped in zip(read, flips, strict=True)
        ]
        return Batch(
            pixels=pixels,
            layout=layout,
            boxes=torch.tensor([(0, 0, self._window, self._window)] * len(keys), dtype=torch.int32),
            flips=torch.tensor(flips),
            offset=torch.from_numpy(np.stack([offset for offset, _ in affine])),
            scale=torch.from_numpy(np.stack([scale for _, scale in affine])),
            valid=torch.stack(tokens).flatten(1),
            sample_id=torch.tensor([index for _, index in keys]),
            label=None,
            mask=None,
            names=tuple(self._scenes.scenes[origin.scene].name for origin, _, _ in read),
            skipped=(),
            num_bands=len(self.band_names),
            num_dates=0,
            view=ViewConfig(self._window).evaluation("whole"),
        )

    def _flips(self, epoch: int, index: int) -> tuple[bool, bool]:
        """Whether a window is flipped vertically and horizontally."""
        if self.split == "val":
            return False, False
        vertical, horizontal = (_draws(self._seed, len(self), epoch)[1][index] & 1).tolist()
        return bool(vertical), bool(horizontal)

    def _read(self, epoch: int, index: int) -> tuple[Origin, Pixels, Bools | None]:
        if not 0 <= index < len(self):
            raise IndexError(f"expected a window from 0 to {len(self) - 1}, got {index}")
        if self.split == "val":
            return self._read_at(self._origins[index])
        tried: list[tuple[float, tuple[Origin, Pixels, Bools | None]]] = []
        for origin in self._candidates(epoch, index):
            read = self._read_at(origin)
            share = valid_share(read[2])
            if share >= 0.5:
                return read
            tried.append((share, read))
        return max(tried, key=lambda pair: pair[0])[1]

    def _read_at(self, origin: Origin) -> tuple[Origin, Pixels, Bools | None]:
        scene = self._scenes.scenes[origin.scene]
        pixels, valid = scene.read_raw(origin.row, origin.column, self._window, self._window)
        return origin, pixels, None if valid is None or valid.all() else valid

    def _candidates(self, epoch: int, index: int) -> Iterator[Origin]:
        """Positions to try for a training window; random words scale to positions by their high bits."""
        side = self._sides[int(np.searchsorted(self._ends, index, side="right"))]
        rows = self._scenes.scenes[side.scene].shape[0] - self._window + 1
        columns = side.right - side.left - self._window + 1
        words = _draws(self._seed, len(self), epoch)[0][index].tolist()
        for down, right in zip(words[::2], words[1::2], strict=True):
            yield Origin(side.scene, down * rows >> 32, side.left + (right * columns >> 32))

    def _token_validity(self, valid: Bools | None) -> Tensor:
        _, rows, columns = self._patch_size
        height, width = self._window // rows, self._window // columns
        if valid is None:
            return torch.ones(len(self._channels), height, width, dtype=torch.bool)
        cubes: Bools = np.all(valid.reshape(len(valid), height, rows, width, columns), axis=(2, 4))
        return torch.from_numpy(np.stack([cubes[channels].all(axis=0) for channels in self._channels]))


@lru_cache(maxsize=2)
def _draws(seed: int, count: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Words of an epoch for every window: of its candidate positions, and of its two flips."""
    ids = torch.arange(count)
    crop = ops.philox(seed, ids, epoch, ops.Purpose.CROP, 2 * _CANDIDATES)
    flip = ops.philox(seed, ids, epoch, ops.Purpose.FLIP, 2)
    return crop.numpy(), flip.numpy()
