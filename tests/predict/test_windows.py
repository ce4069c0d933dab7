# SPDX-License-Identifier: Apache-2.0
"""Windows cover an image once and for all; blending is exact where windows agree and smooth where they do not."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralgpt.errors import UserError
from spectralgpt.predict.windows import Blend, Windows, ramp, window_starts

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))
SIZES = st.integers(1, 16).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))


def blended(windows: Windows, give, first: int = 0) -> np.ndarray:
    """Rows from those of the row of windows `first` on, `give(row, column)` being the result of a window."""
    blend, parts = Blend(windows, first), []
    for row in windows.rows[first:]:
        for column in windows.columns:
            blend.add(column, give(row, column))
        start, values = blend.finish()
        assert start == row
        parts.append(values.copy())
    return np.concatenate(parts, axis=1)


@given(st.integers(1, 300), SIZES)
def test_windows_cover_an_axis_and_end_at_its_border(length, sizes):
    size, overlap = sizes
    starts = window_starts(length, size, overlap)
    assert starts[0] == 0 and starts == sorted(set(starts))
    assert starts[-1] == max(length - size, 0)
    assert all(later - former <= size - overlap for former, later in pairwise(starts))
    if len(starts) > 2:  # no window more than needed
        assert starts[-2] + size < length


@given(SHAPES, SIZES, st.integers(0, 2**32 - 1))
@settings(max_examples=200)
def test_what_windows_agree_on_is_kept_to_the_last_bit(shape, sizes, seed):
    windows = Windows(shape, *sizes)
    image = np.random.default_rng(seed).normal(0, 1e4, (2, *shape)).astype(np.float32)
    beyond = np.pad(image, [(0, 0), (0, sizes[0]), (0, sizes[0])])
    whole = blended(windows, lambda row, column: beyond[:, row : row + sizes[0], column : column + sizes[0]])
    assert whole.tobytes() == image.tobytes()


@given(SHAPES, SIZES, st.integers(0, 2**32 - 1), st.floats(0, 1))
@settings(max_examples=100)
def test_a_later_start_changes_nothing(shape, sizes, seed, where):
    windows = Windows(shape, *sizes)
    results = {
        place: np.random.default_rng([seed, *place]).normal(size=(1, sizes[0], sizes[0])).astype(np.float32)
        for place in windows
    }
    whole = blended(windows, lambda *place: results[place])
    index = int(where * (len(windows.rows) - 1))
    part = blended(windows, lambda *place: results[place], windows.first_needed(index))
    rows = shape[0] - windows.rows[index]
    assert part[:, part.shape[1] - rows :].tobytes() == whole[:, shape[0] - rows :].tobytes()


def test_weights_follow_a_cosine_and_sum_to_one():
    weights = ramp(8).astype(float)
    assert np.allclose(weights, np.sin(np.pi * (np.arange(8) + 0.5) / 16) ** 2)
    assert np.allclose(weights + weights[::-1], 1)
    windows = Windows((4, 12), 8, 4)  # two windows side by side, 4 columns shared
    whole = blended(windows, lambda row, column: np.full((1, 1, 1), float(column > 0), np.float32))
    assert np.array_equal(whole[0, 2], np.r_[np.zeros(4), ramp(4), np.ones(4)].astype(np.float32))


def test_one_value_stands_for_a_whole_window():
    windows = Windows((20, 11), 8, 4)
    one = blended(windows, lambda row, column: np.float32([[[row]], [[column]]]))
    full = blended(windows, lambda row, column: np.broadcast_to(np.float32([[[row]], [[column]]]), (2, 8, 8)))
    assert one.tobytes() == full.tobytes()


def test_windows_that_nobody_looks_at():
    windows = Windows((24, 24), 8, 0)
    known = np.full((3, 1, 1), 7, np.float32)
    whole = blended(Windows((8, 24), 8, 0), lambda row, column: known if column == 8 else None)
    assert whole[:, :, 8:16].min() == 7 and not whole[:, :, :8].any() and not whole[:, :, 16:].any()
    blend = Blend(windows)
    for column in windows.columns:
        blend.add(column, None)
    assert blend.finish()[1].shape == (0, 8, 24)


def test_batches_have_one_length_and_stay_in_a_row():
    windows = Windows((50, 29), 1, 0)
    assert [len(batch) for batch in windows.batches(16)] == [15, 14]
    assert [column for batch in windows.batches(16) for column in batch] == windows.columns
    assert windows.batches(100) == [windows.columns]
    assert len(windows) == len(list(windows)) == 50 * 29


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Windows((8, 8), 4, 4), "overlap: expected 0 to 3 pixels for windows of 4, got 4"),
        (lambda: Windows((8, 0), 4, 0), "window: expected pixels, got windows of 4 over 0"),
        (lambda: Windows((8, 8), 4, 0).batches(0), "batch size: expected at least one window, got 0"),
    ],
)
def test_what_cannot_be_is_told(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_a_row_of_windows_must_be_whole():
    blend = Blend(Windows((8, 8), 4, 0))
    blend.add(0, np.zeros((1, 4, 4), np.float32))
    with pytest.raises(ValueError, match="expected windows up to column 8, got them up to 4"):
        blend.finish()
