# SPDX-License-Identifier: Apache-2.0
from collections import Counter
from importlib.resources import files

import pytest

from spectralgpt.data import splits
from spectralgpt.errors import UserError

NAMES = [f"patch_{number}" for number in range(1000)]


def test_the_committed_eurosat_list_is_the_computed_one():
    assert (files(splits) / "eurosat.txt").read_text("ascii") == splits.eurosat_text()


def test_eurosat_has_the_published_sizes_and_the_same_shares_of_every_class():
    sides = splits.eurosat()
    assert len(sides) == 27_000
    assert Counter(sides.values()) == {"train": 16_200, "val": 5_400, "test": 5_400}
    for split, tenths in (("train", 6), ("val", 2), ("test", 2)):
        classes = Counter(name.split("/")[0] for name, side in sides.items() if side == split)
        assert classes == {name: count * tenths // 10 for name, count in splits.EUROSAT_COUNTS.items()}
    assert "AnnualCrop/AnnualCrop_3000.tif" in sides and "AnnualCrop/AnnualCrop_0.tif" not in sides


def test_numbers_of_names_are_pinned():
    """Another hash would move images between splits unseen."""
    assert splits.unit("a") == 0.6170009362330673
    assert splits.unit("a", seed=1) != splits.unit("a")


def test_part_keeps_every_name_where_it_is_when_others_come():
    sides = {name: splits.part(name) for name in NAMES}
    assert [Counter(sides.values())[split] for split in ("train", "val", "test")] == pytest.approx(
        [600, 200, 200], abs=45
    )
    assert {name: splits.part(name) for name in NAMES[::7]} == {name: sides[name] for name in NAMES[::7]}
    assert {splits.part(name, {"train": 1.0, "val": 0.0}) for name in NAMES} == {"train"}
    assert sides != {name: splits.part(name, seed=1) for name in NAMES}


def test_subset_is_exact_nested_and_independent_of_the_order():
    small, large = splits.subset(NAMES, 0.01), splits.subset(NAMES, 0.1)
    assert (len(small), len(large)) == (10, 100)
    assert set(small) < set(large) and large == sorted(large)
    backwards = splits.subset(NAMES[::-1], 0.1)
    assert {NAMES[::-1][index] for index in backwards} == {NAMES[index] for index in large}
    assert splits.subset(NAMES, 0.1, seed=1) != large
    assert splits.subset(NAMES, 1) == list(range(1000))


def test_subset_takes_the_same_share_of_every_label_and_at_least_one():
    labels = [0] * 700 + [1] * 297 + [2] * 3
    chosen = splits.subset(NAMES, 0.1, labels=labels)
    assert Counter(labels[index] for index in chosen) == {0: 70, 1: 30, 2: 1}


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5])
def test_wrong_fractions_are_refused(fraction):
    with pytest.raises(UserError, match="fraction: expected a number above 0 and at most 1"):
        splits.subset(NAMES, fraction)
