# SPDX-License-Identifier: Apache-2.0
import itertools
import os

import pytest
import torch

from spectralgpt.data.datasets.scene import DataConfig, open_windows
from spectralgpt.data.loader import EpochSampler, loader
from tests.data.rasters import noise, write


def test_every_epoch_holds_every_sample_once_in_an_order_of_its_own():
    sampler = EpochSampler(50, seed=0)
    epochs = [sampler.keys(50 * epoch, 50) for epoch in range(3)]
    for epoch, keys in enumerate(epochs):
        assert {key[0] for key in keys} == {epoch}
        assert sorted(index for _, index in keys) == list(range(50))
    orders = [tuple(index for _, index in keys) for keys in epochs]
    assert len(set(orders)) == 3 and tuple(range(50)) not in orders
    assert EpochSampler(50, seed=1).keys(0, 50) != epochs[0]


def test_the_order_can_be_entered_anywhere():
    sampler = EpochSampler(7, seed=3)
    whole = sampler.keys(0, 40)
    for start, count in ((0, 0), (5, 4), (13, 20), (39, 1)):
        assert EpochSampler(7, seed=3).keys(start, count) == whole[start : start + count]


def test_without_shuffling_the_order_is_that_of_the_indices():
    assert EpochSampler(3, seed=0, shuffle=False).keys(2, 3) == [(0, 2), (1, 0), (1, 1)]


def test_there_must_be_a_sample():
    with pytest.raises(ValueError, match="expected at least one sample, got 0"):
        EpochSampler(0, seed=0)


class Keys(torch.utils.data.Dataset):
    def __getitem__(self, key):
        return {"key": torch.tensor(key)}


def batches(count, **options):
    stream = loader(Keys(), EpochSampler(10, seed=0), batch_size=4, **options)
    return torch.stack([batch["key"] for batch in itertools.islice(stream, count)]).flatten(0, 1).tolist()


def test_batches_run_on_over_the_end_of_an_epoch():
    keys = [list(key) for key in EpochSampler(10, seed=0).keys(0, 40)]
    assert batches(10) == keys
    assert batches(5, start=17) == keys[17:37]


def test_loading_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    batches(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_change_nothing_but_the_time(tmp_path):
    pixels = noise(3, 64, 200)
    pixels[:, :20, :50] = 0
    write(tmp_path / "a.tif", pixels, ("B02", "B03", "B04"))
    config = DataConfig(root=str(tmp_path), bands=("B02", "B03", "B04"))
    data = open_windows(config, 32, (3, 8, 8), "train", 0)
    several = min(2, len(os.sched_getaffinity(0)))  # more than there are cores draws a warning
    streams = [loader(data, EpochSampler(len(data), 0), 3, start=2, num_workers=workers) for workers in (0, several)]
    for alone, helped in itertools.islice(zip(*streams, strict=True), 6):
        assert alone["image"].shape == (3, 3, 32, 32) and alone["sample_id"].shape == (3,)
        for name, value in alone.items():
            assert torch.equal(value, helped[name])
