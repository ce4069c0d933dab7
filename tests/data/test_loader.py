# SPDX-License-Identifier: Apache-2.0
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from spectralgpt.data.batch import Batch, Views
from spectralgpt.data.convert import convert
from spectralgpt.data.datasets.scene import DataConfig, open_windows
from spectralgpt.data.loader import EpochSampler, Rejects, loader
from spectralgpt.data.normalize import Normalizer
from spectralgpt.data.raster import read_header, read_window
from spectralgpt.data.shards import Shards
from spectralgpt.data.views import ViewConfig
from spectralgpt.errors import UserError
from tests.data.rasters import noise, write
from tests.data.records import Made


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


class Keys:
    def __getitems__(self, keys):
        return {"key": torch.tensor(keys)}


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
        expected, found = alone.images(), helped.images()
        assert expected["image"].shape == (3, 3, 32, 32) and expected["sample_id"].shape == (3,)
        for name, value in expected.items():
            assert torch.equal(value, found[name])


def test_a_pass_may_end():
    keys = [list(key) for key in EpochSampler(10, seed=0).keys(0, 10)]
    found = [batch["key"].tolist() for batch in loader(Keys(), EpochSampler(10, seed=0), batch_size=4, stop=10)]
    assert [len(batch) for batch in found] == [4, 4, 2] and [*itertools.chain(*found)] == keys


@pytest.mark.parametrize("stop", [None, 27])
def test_the_global_order_is_that_of_one_process(stop):
    whole = EpochSampler(11, seed=2).keys(8, 27 - 8 if stop else 24)
    for world_size in (1, 2, 4):
        streams = [
            loader(Keys(), EpochSampler(11, seed=2), 8, start=8, stop=stop, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        ranks = [[batch["key"].tolist() for batch in itertools.islice(stream, 3)] for stream in streams]
        steps = itertools.chain(*itertools.zip_longest(*ranks, fillvalue=[]))
        assert [tuple(key) for key in itertools.chain(*steps)] == whole
        assert [len(part) for part in ranks[0][:2]] == [8 // world_size] * 2


def test_processes_that_cannot_share_a_batch_are_refused():
    with pytest.raises(UserError, match="batch size: expected a multiple of the 3 processes, got 8"):
        loader(Keys(), EpochSampler(10, seed=0), 8, world_size=3)


def views(dataset):
    return Views(dataset, Normalizer("minmax"), ViewConfig(size=16), (3, 8, 8), seed=1, replace_bad=True)


def test_raw_batches_come_through_workers_as_they_are(tmp_path):
    files = Made("segmentation", 12, bad=(5,))
    convert(Made("segmentation", 12), "made", tmp_path, num_workers=0)
    sampler = EpochSampler(12, seed=0)
    alone = list(loader(views(files), sampler, 4, start=4, stop=20))
    helped = list(loader(views(files), sampler, 4, start=4, stop=20, num_workers=1, pin_memory=True))
    shards = list(loader(views(Shards(tmp_path)), sampler, 4, start=4, stop=20, num_workers=1))
    assert len(alone) == len(helped) == len(shards) == 4
    for one, other, fast in zip(alone, helped, shards, strict=True):
        assert isinstance(other, Batch) and other.pixels.dtype == torch.uint16
        assert torch.equal(one.pixels, other.pixels) and torch.equal(one.valid, other.valid)
        assert one.skipped == other.skipped and one.names == other.names
        good = [place for place, name in enumerate(one.names) if one.sample_id[place] != 5]
        images, fast_images = one.images(), fast.images()
        for key in images:
            assert torch.equal(images[key][good], fast_images[key][good]), key
    skipped = [named for batch in helped for named in batch.skipped]
    assert skipped and {name for name, _ in skipped} == {"folder/5.tif"}


def test_too_many_bad_images_end_the_run(caplog):
    rejects = Rejects(200, 0.01)
    for _ in range(3):  # the same ones in every epoch
        rejects.add((("a.tif", "damaged"), ("b.tif", "no data")))
    assert rejects.reasons == {"a.tif": "damaged", "b.tif": "no data"}
    assert caplog.messages == [
        "image skipped, another one takes its place: a.tif: damaged",
        "image skipped, another one takes its place: b.tif: no data",
    ]
    with pytest.raises(
        UserError, match=r"at most 1\.00% bad images, got 3 of 200: a\.tif: damaged; b\.tif: .*; c\.tif: x"
    ):
        rejects.add([("c.tif", "x")])


class Faulty:
    def __init__(self, fault):
        self._fault = fault

    def __getitems__(self, keys):
        if 7 in [index for _, index in keys]:
            if self._fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self._fault == "hanging":
                time.sleep(600)
            raise UserError("a.tif: damaged")
        return {"key": torch.tensor(keys)}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raising", r"^a\.tif: damaged$"),
        ("killed", r"^a process that reads data died \(.*\), perhaps for lack of memory; set fewer"),
        ("hanging", r"^the processes that read data gave nothing for 60 s; the disk may hang"),
    ],
)
def test_a_fault_in_a_worker_is_told_in_one_line(fault, message, monkeypatch):
    seen, later = [], itertools.count(step=40)
    if fault == "hanging":  # no time passes until then, however long a worker takes to start; then 40 s at every look
        clock = SimpleNamespace(monotonic=lambda: next(later) if len(seen) == 3 else 0)
        monkeypatch.setattr("spectralgpt.data.loader.time", clock)
    before = multiprocessing.active_children()
    stream = loader(Faulty(fault), EpochSampler(10, 0, shuffle=False), 2, num_workers=1, timeout=60)
    with pytest.raises(UserError, match=message) as caught:
        for batch in stream:
            seen.append(batch["key"][:, 1].tolist())
    assert seen == [[0, 1], [2, 3], [4, 5]][: len(seen)] and (fault == "killed" or len(seen) == 3)
    assert "\n" not in str(caught.value)
    if fault != "raising":
        assert not [child for child in multiprocessing.active_children() if child not in before], "workers are ended"


def test_other_errors_of_a_program_stay_what_they_are():
    class Broken:
        def __getitems__(self, keys):
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match=r"^shapes differ$"):
        next(loader(Broken(), EpochSampler(3, 0), 2))


def _read_windows(path, seed, queue):
    truth, draw, wrong = noise(3, 256, 256), np.random.default_rng(seed), 0
    header = read_header(path)
    for _ in range(400):
        row, column = draw.integers(0, 192, 2)
        pixels, _ = read_window(header, [1, 2, 3], row, column, 64, 64)
        wrong += not np.array_equal(pixels, truth[:, row : row + 64, column : column + 64])
    queue.put(wrong)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_raster_handles_are_never_shared_between_processes(tmp_path, method):
    path = write(tmp_path / "a.tif", noise(3, 256, 256), tiled=True, blockxsize=64, blockysize=64)
    read_window(read_header(path), [1], 0, 0, 64, 64)  # a handle is open when the others start
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    workers = [context.Process(target=_read_windows, args=(path, seed, queue)) for seed in range(4)]
    for worker in workers:
        worker.start()
    assert [queue.get() for _ in workers] == [0, 0, 0, 0]
    for worker in workers:
        worker.join()


FORGOTTEN = """
from spectralgpt.data.loader import EpochSampler, loader
from tests.data.test_loader import Keys

if __name__ == "__main__":
    stream = loader(Keys(), EpochSampler(10, 0), 2, num_workers=1)
    next(stream)
    raise SystemExit(3)
"""


def test_a_program_ends_although_workers_ignore_termination(tmp_path):
    script = tmp_path / "forgotten.py"
    script.write_text(FORGOTTEN)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    assert subprocess.run([sys.executable, script], env=environment, timeout=600).returncode == 3
