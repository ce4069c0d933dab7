# SPDX-License-Identifier: Apache-2.0
import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from spectralgpt.cli import main
from spectralgpt.data.convert import convert, verify
from spectralgpt.data.shards import Shards
from spectralgpt.errors import UserError
from tests.data.records import Made, same

STUCK = """
import multiprocessing, resource, sys, time
from pathlib import Path
from spectralgpt.data.convert import convert
from spectralgpt.errors import UserError
from tests.data.records import Made

class Stuck(Made):
    def read(self, index):
        if index >= {stuck_at} and multiprocessing.parent_process():  # the plan, made by the parent, reads some too
            time.sleep(600)
        return super().read(index)

if __name__ == "__main__":
    if {limit}:
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    try:
        convert(Stuck("segmentation", 40), "made", sys.argv[1], num_workers={workers}, shard_size=150_000)
    except UserError as error:
        sys.exit(f"error: {{error}}")
"""


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    convert(Made("segmentation", 40), "made", root, num_workers=0, shard_size=150_000)
    return contents(root / "train")


def start(tmp_path, stuck_at=40, limit=0, workers=2):
    """A conversion whose workers never get beyond an image: it waits to be killed, however late that is."""
    script = tmp_path / "stuck.py"
    script.write_text(STUCK.format(stuck_at=stuck_at, limit=limit, workers=workers))
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    return subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "out")], env=environment, stderr=subprocess.PIPE, text=True
    )


def children(process):
    """Every process that has `process` as an ancestor."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    parents[int(entry)] = int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {process}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {process}


def is_running(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition):
    """What the condition gives, once it holds."""
    end = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def test_killed_and_run_again_gives_the_same_bytes(tmp_path, uninterrupted):
    folder = tmp_path / "out/train"
    process = start(tmp_path, stuck_at=20)
    wait_for(lambda: any(folder.glob("shard-*")) and len(list(folder.glob(".shard-*"))) == 2)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(workers) >= 3, "the forkserver and two workers"
    wait_for(lambda: not any(map(is_running, workers)))
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    assert 0 < len(kept) < len(uninterrupted) - 1 and not (folder / "index.json").exists()
    with pytest.raises(UserError, match="the conversion did not end"):
        Shards(tmp_path / "out")
    done = convert(Made("segmentation", 40), "made", tmp_path / "out", num_workers=0, shard_size=150_000)
    assert contents(folder) == uninterrupted
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept, "whole shards are not written again"
    assert 0 < done.num_made < 40


def test_workers_change_nothing_but_the_time(tmp_path, uninterrupted):
    convert(Made("segmentation", 40), "made", tmp_path, num_workers=2, shard_size=150_000)
    assert contents(tmp_path / "train") == uninterrupted


def test_a_full_disk_keeps_what_is_whole(tmp_path, uninterrupted):
    largest = max(len(content) for content in uninterrupted.values())
    process = start(tmp_path, limit=largest - 1, workers=0)
    message = process.communicate()[1]
    assert process.returncode == 1 and message.startswith("error: ") and message.count("\n") == 1
    assert "cannot be written (File too large" in message and "make room and run the same command again" in message
    folder = tmp_path / "out/train"
    assert not list(folder.glob(".*")) and all(
        uninterrupted[path.name] == path.read_bytes() for path in folder.glob("sh*")
    )
    convert(Made("segmentation", 40), "made", tmp_path / "out", num_workers=0, shard_size=150_000)
    assert contents(folder) == uninterrupted


def test_a_dead_worker_is_told(tmp_path):
    process = start(tmp_path, stuck_at=0)
    begun = wait_for(lambda: list((tmp_path / "out/train").glob(".shard-*")))
    # Only a worker has opened a shard to write.
    os.kill(int(begun[0].name.rpartition(".")[2]), signal.SIGKILL)
    message = process.communicate()[1]
    assert process.returncode == 1 and "a worker process died" in message and "run the same command again" in message


def test_bad_images_are_left_out_and_named(tmp_path):
    files = Made("single_label", 40, bad=(3, 39))
    done = convert(files, "made", tmp_path, num_workers=0, shard_size=150_000, max_bad=0.05)
    found = Shards(tmp_path)
    reasons = {f"folder/{i}.tif": f"/made/folder/{i}.tif: damaged raster (made so)" for i in (3, 39)}
    assert dict(done.bad) == dict(found.bad) == reasons and done.num_records == len(found) == 38
    good = [i for i in range(40) if i not in (3, 39)]
    assert all(same(found.read(place), files.read(i)) for place, i in enumerate(good))
    with pytest.raises(UserError, match=r"at most 4.00% bad images, got 2 of 40: folder/3\.tif: /made"):
        convert(files, "made", tmp_path / "other", num_workers=0, max_bad=0.04)
    assert not list((tmp_path / "other").glob("*/index.json"))


def test_a_folder_holds_one_conversion(tmp_path):
    convert(Made("none", 5), "made", tmp_path, num_workers=0)
    again = convert(Made("none", 5), "made", tmp_path, num_workers=0)
    assert again.num_made == 0 and again.num_records == 5
    for other in (Made("none", 6), Made("none", 5, bands=("B02",)), Made("single_label", 5)):
        with pytest.raises(UserError, match="expected the same conversion as the one it holds, got other"):
            convert(other, "made", tmp_path, num_workers=0)
    with pytest.raises(UserError, match="got none"):
        convert(Made("none", 0), "made", tmp_path, num_workers=0)


def test_two_do_not_write_at_once(tmp_path):
    (tmp_path / "train").mkdir()
    descriptor = os.open(tmp_path / "train", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another `spectralgpt prepare shards` is writing here"):
        convert(Made("none", 5), "made", tmp_path, num_workers=0)
    os.close(descriptor)


def test_verify_finds_the_damaged_record(tmp_path):
    convert(Made("none", 12), "made", tmp_path, num_workers=0)
    assert verify(tmp_path, "train") == 12
    path = tmp_path / "train/shard-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[5000] ^= 8
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"1 of 12 records damaged: .*shard-00000.safetensors: record 0 \(folder/0.tif\)"
    ):
        verify(tmp_path, "train")


def test_command_line(tmp_path, capsys):
    convert(Made("single_label", 12), "made", tmp_path / "a", num_workers=0)
    command = ["prepare", "shards", str(tmp_path / "a"), str(tmp_path / "b"), "--dataset", "shards", "--workers", "0"]
    assert main(command) == 0 and main(["prepare", "verify", str(tmp_path / "b")]) == 0
    assert "12 records in 1 shards" in (out := capsys.readouterr().out) and "whole; 12 records in train" in out
    first, second = Shards(tmp_path / "a"), Shards(tmp_path / "b")
    assert all(same(first.read(i), second.read(i)) for i in range(12))
    assert main(["prepare", "verify", str(tmp_path)]) == 2
    assert "expected shards, found no index.json" in capsys.readouterr().err
    assert main(["prepare", "shards", str(tmp_path), str(tmp_path / "c"), "--dataset", "folder", "--option", "x"]) == 2
    assert "option 'x': expected KEY=VALUE" in capsys.readouterr().err
