# SPDX-License-Identifier: Apache-2.0
"""Class weights and the labels that nothing can be learnt from."""

from __future__ import annotations

import numpy as np
import pytest

from spectralgpt.data.record import IGNORE
from spectralgpt.errors import UserError
from spectralgpt.train.tasks.class_shares import check_labels, class_weights, count_classes
from tests.data.records import Made


def test_counts_are_of_every_labelled_pixel_or_until_enough_classes_were_seen() -> None:
    data = Made("segmentation", 5)
    masks = [data.read(index).mask for index in range(5)]
    expected = sum(np.bincount(mask[mask != IGNORE], minlength=5) for mask in masks)
    np.testing.assert_array_equal(count_classes(data), expected)
    assert count_classes(data, enough=2).sum() < expected.sum()


def test_weights_have_mean_one_over_the_training_set() -> None:
    counts = np.array([900.0, 100.0])
    for chosen in ("balanced", "published", (1.0, 5.0)):
        weights = class_weights(chosen, counts, "change")
        assert weights is not None and np.dot(weights, counts / 1000) == pytest.approx(1)
    balanced, published = (class_weights(chosen, counts, "change") for chosen in ("balanced", "published"))
    assert balanced[1] / balanced[0] == pytest.approx(9)
    assert published[1] / published[0] == pytest.approx((2 * 0.9) / (10 * 2 * 0.1))
    assert class_weights("none", counts, "change") is None
    with_absent = class_weights("balanced", np.array([50.0, 0.0, 50.0]), "segmentation")
    assert with_absent is not None and with_absent[0] == pytest.approx(1) and np.isfinite(with_absent).all()


@pytest.mark.parametrize(
    ("chosen", "task", "words"),
    [
        ((1.0,), "segmentation", "expected one for each of 2 classes, got 1"),
        ("published", "segmentation", "expected balanced or a list for segmentation, got published"),
    ],
)
def test_weights_that_do_not_fit(chosen: str | tuple[float, ...], task: str, words: str) -> None:
    with pytest.raises(UserError, match=rf"finetune\.class_weights: {words}"):
        class_weights(chosen, np.array([1.0, 1.0]), task)


@pytest.mark.parametrize(
    ("task", "split", "counts", "words"),
    [
        ("change", "val", [9, 0, 0, 0, 0], "expected changed pixels to score by, found none"),
        ("single_label", "train", [0, 9, 0, 0, 0], "expected at least two classes to tell apart, got only 'class 1'"),
        ("segmentation", "train", [9, 0, 0, 0, 0], "expected at least two classes to tell apart, got only 'class 0'"),
        ("segmentation", "val", [0, 0, 0, 0, 0], "expected labels, found none"),
        ("multi_label", "val", [0, 0, 0, 0, 0], "expected images with labels, found none"),
    ],
)
def test_labels_without_use_are_told(task: str, split: str, counts: list[int], words: str) -> None:
    with pytest.raises(UserError, match=rf"data\.{split}_split train of /made: {words}"):
        check_labels(Made(task), split, np.array(counts, np.float64))  # type: ignore[arg-type]


def test_useful_labels_pass() -> None:
    check_labels(Made("multi_label"), "train", np.array([3.0, 0, 0, 0, 0]))
    check_labels(Made("single_label"), "val", np.array([3.0, 0, 0, 0, 0]))
    check_labels(Made("change"), "val", np.array([3.0, 1, 0, 0, 0]))
