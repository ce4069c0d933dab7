# SPDX-License-Identifier: Apache-2.0
"""Checkpoints made to run code, to fill the memory or to read what is not theirs, through every entrance.

Each payload is offered as a published .pth, as a model folder's weights and configuration, and as every file of a
run to be resumed, its manifest signed anew. Nothing may run, every answer is one line, soon and in bounded memory.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import resource
import shutil
import struct
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import spectralgpt
from spectralgpt import cli
from spectralgpt.data.synthetic import synthetic_scene
from spectralgpt.errors import UserError
from spectralgpt.train import command, durable  # what it imports is not to be measured below
from spectralgpt.train.checkpoint import Checkpoints
from tests.train import small_run
from tests.train.saving import in_child

SECONDS, MEGABYTES = 2.0, 300
CANARY = f"/tmp/spectralgpt-canary-{os.getpid()}"  # of this process, which others on the machine do not touch
TOUCH = f"touch {CANARY}"


def program(name: str, *arguments: Any, protocol: int = 2) -> bytes:
    """A pickle that calls `module name` with plain arguments."""
    module, _, attribute = name.rpartition(".")
    head = b"\x80" + bytes([protocol])
    if protocol >= 4:
        found = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attribute)) + b"\x93"
    else:
        found = f"c{module}\n{attribute}\n".encode()
    inner = b"".join(pickle.dumps(argument, protocol=2)[2:-1] for argument in arguments)
    return head + found + b"(" + inner + b"tR."


def archive(data: bytes, records: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    """What `torch.save` writes around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in {"data.pkl": data, "byteorder": b"little", "version": b"3\n", **(records or {})}.items():
            file.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def tensor_pickle(
    numel: int, size: tuple[int, ...], stride: tuple[int, ...], rebuild: str = "_rebuild_tensor_v2"
) -> bytes:
    """The pickle of {"a": tensor}, with any numbers in it."""

    def plain(value: Any) -> bytes:
        return pickle.dumps(value, protocol=2)[2:-1]

    storage = b"(" + plain("storage") + b"ctorch\nFloatStorage\n" + plain("0") + plain("cpu") + plain(numel) + b"tQ"
    end = plain(False) + b"ccollections\nOrderedDict\n)R"
    call = (
        b"ctorch._utils\n" + rebuild.encode() + b"\n(" + storage + plain(0) + plain(size) + plain(stride) + end + b"tR"
    )
    return b"\x80\x02}" + plain("a") + call + b"s."


def safetensors(header: bytes, data: bytes = bytes(64), declared: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if declared is None else declared) + header + data


def entry(**changes: Any) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64], **changes}}).encode()


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def payloads() -> dict[str, bytes]:
    calls = {
        "os.system": program("os.system", TOUCH),
        "posix.system": program("posix.system", TOUCH),
        "nt.system": program("nt.system", TOUCH),
        "eval": program("builtins.eval", f"open({CANARY!r}, 'w')"),
        "eval of Python 2": program("__builtin__.eval", f"open({CANARY!r}, 'w')"),
        "exec": program("builtins.exec", f"open({CANARY!r}, 'w')"),
        "open": program("builtins.open", CANARY, "w"),
        "io.open": program("io.open", CANARY, "w"),
        "getattr": program("builtins.getattr", "a", "upper"),
        "import": program("importlib.import_module", "antigravity"),
        "subprocess": program("subprocess.call", ["touch", CANARY]),
        "runpy": program("runpy.run_path", CANARY),
        "mkdir": program("os.mkdir", CANARY),
        "pathlib": program("pathlib.Path", CANARY),
        "torch.load": program("torch.load", CANARY),
        "torch.hub": program("torch.hub.load", "x/y", "z"),
        "torch ops": program("torch.ops.load_library", CANARY),
        "codecs": program("_codecs.lookup", "utf-8"),
        "numpy": program("numpy.load", CANARY),
        "protocol 4": program("os.system", TOUCH, protocol=4),
        "instance": b"\x80\x02(" + pickle.dumps(TOUCH, protocol=2)[2:-1] + b"ios\nsystem\n.",
        "extension": b"\x80\x02\x82\x01.",
        "bytearray of 8 GB": program("builtins.bytearray", 1 << 33),
        "a million lists": b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b".",
        "five megabytes": b"\x80\x02" + b"N0" * 2_500_000 + b"N.",
        "numbers beyond the record": tensor_pickle(10**9, (10**9,), (1,)),
        "shape beyond the storage": tensor_pickle(4, (10**9,), (1,)),
        "one value a million million times": tensor_pickle(4, (10**6, 10**6), (0, 0)),
        "negative stride": tensor_pickle(4, (2, 2), (-1, -2)),
        "negative shape": tensor_pickle(4, (-2, 2), (1, 1)),
        "a size of 2^80": tensor_pickle(4, (1 << 80,), (1,)),
    }
    found = {name: archive(content, {"data/0": bytes(16)}) for name, content in calls.items()}
    nested = archive(program("os.system", TOUCH))
    zeros = archive(tensor_pickle(1 << 28, (1 << 28,), (1,)), {"data/0": bytes(1 << 30)}, zipfile.ZIP_DEFLATED)
    shared = archive(tensor_pickle(4, (4,), (1,)), {"data/0": bytes(16)})
    found |= {
        "bare pickle": program("os.system", TOUCH),
        "format of before 1.6": saved({"a": torch.ones(2)}, _use_new_zipfile_serialization=False),
        "archive in an archive": archive(
            b"\x80\x02}.", {"data.pkl/archive": nested, "more.pkl": program("os.system", TOUCH)}
        ),
        "a gigabyte of zeros, compressed": zeros,
        "TorchScript": archive(b"\x80\x02}.", {"code/__torch__.py": b"import os", "constants.pkl": b"\x80\x02)."}),
        "cut off": shared[: len(shared) // 2],
        "bytes before the archive": b"#!/bin/sh\n" + TOUCH.encode() + b"\n" + shared[:40],
        "a module": saved(torch.nn.Linear(2, 2)),
        "sparse": saved({"a": torch.eye(3).to_sparse()}),
        "meta": saved({"a": torch.empty(1 << 40, device="meta")}),
        "empty": b"",
        "a list": saved([torch.ones(2)]),
        "of itself": archive(b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."),
    }
    found |= {
        f"safetensors: {name}": content
        for name, content in {
            "header of 2^60": safetensors(b"{}", declared=1 << 60),
            "header of 90 MB": safetensors(b"{" + b" " * 90_000_000 + b"}"),
            "deep header": safetensors(b"[" * 100_000 + b"]" * 100_000),
            "offsets beyond": safetensors(entry(data_offsets=[0, 1 << 40])),
            "offsets backwards": safetensors(entry(data_offsets=[64, 0])),
            "shape of 2^62": safetensors(entry(shape=[1 << 62])),
            "shape that overflows": safetensors(entry(shape=[1 << 33, 1 << 33])),
            "negative shape": safetensors(entry(shape=[-4, -4])),
            "hole": safetensors(entry(data_offsets=[32, 96]), bytes(96)),
            "not text": safetensors(b"\xff\xfe{}"),
        }.items()
    }
    deep = '{"a":' * 50_000 + "1" + "}" * 50_000
    texts = {
        "deep JSON": deep,
        "huge sizes": json.dumps({"kind": "encoder", "normalization": None, "model": {"name": "huge", "depth": 1024}}),
        "a number of 5000 digits": "9" * 5000,
        "a model of another kind": json.dumps({"kind": "os", "normalization": None, "model": {"name": "tiny"}}),
        "YAML that calls": f"!!python/object/apply:os.system ['{TOUCH}']\n",
        "YAML that grows": "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    }
    return found | {name: text.encode() for name, text in texts.items()}


PAYLOADS = payloads()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, with its checkpoints and its model."""
    folder = tmp_path_factory.mktemp("finished")
    synthetic_scene(folder / "scene.tif", 64, 128, seed=1)
    stage = {"name": "only", "image_size": 16, "steps": 2, "batch_size": 2, "warmup_steps": 1}
    recipe = small_run.write_recipe(folder, folder / "scene.tif", stages=[stage], checkpoint_every=1, validate_every=0)
    assert small_run.run({"config": str(recipe)}).code == 0
    return folder / "runs" / "run"


def reference(path: Path, finished: Path) -> None:
    model = spectralgpt.create_autoencoder("tiny", image_size=16)
    spectralgpt.load_reference_checkpoint(model, path)


def into_model(name: str) -> Callable[[Path, Path], None]:
    def load(path: Path, finished: Path) -> None:
        folder = path.parent / "model"
        shutil.copytree(finished / "model", folder)
        shutil.copy(path, folder / name)
        spectralgpt.from_pretrained(folder)

    return load


def into_run(name: str) -> Callable[[Path, Path], None]:
    """All checkpoints of the run are spoilt, and their manifests say that this is how they should be."""

    def load(path: Path, finished: Path) -> None:
        run = path.parent / "run"
        shutil.copytree(finished, run)
        for folder in (run / "checkpoints").iterdir():
            if name in ("config.yaml", "best.json"):
                shutil.copy(path, run / name if name == "config.yaml" else run / "checkpoints" / name)
            elif folder.is_dir():
                shutil.copy(path, folder / name)
                if name != durable.MANIFEST:
                    (folder / durable.MANIFEST).unlink()
                    durable._seal(folder, {"step": int(folder.name[5:])})
        if name == "best.json":
            Checkpoints(run / "checkpoints", keep=2).best()
            raise UserError("nobody trusts it")
        code = cli.main(["train", "--resume", str(run)])
        if code == 2:
            raise UserError("one line")
        raise AssertionError(f"exit code {code}")

    return load


ENTRANCES: dict[str, Callable[[Path, Path], None]] = {
    "load_reference_checkpoint": reference,
    "from_pretrained, weights": into_model("model.safetensors"),
    "from_pretrained, configuration": into_model("config.json"),
    "--resume, state": into_run("state.pt"),
    "--resume, weights": into_run("model.safetensors"),
    "--resume, manifest": into_run("manifest.json"),
    "--resume, recipe": into_run("config.yaml"),
    "--resume, best": into_run("best.json"),
}


def offers() -> list[Any]:
    """All payloads at every entrance; the slow entrances of `--resume` take every sixth outside of acceptance."""
    whole = [
        pytest.param(name, 1, marks=[pytest.mark.acceptance] if name.startswith("--") else []) for name in ENTRANCES
    ]
    return whole + [pytest.param(name, 6) for name in ENTRANCES if name.startswith("--")]


@pytest.mark.parametrize(("entrance", "every"), offers())
def test_nothing_runs_and_every_answer_is_one_line(finished: Path, tmp_path: Path, entrance: str, every: int) -> None:
    def offer_all() -> None:
        failures = []
        warnings.simplefilter("ignore")  # a checkpoint that is passed over is told as a warning
        for number, (name, content) in enumerate(list(PAYLOADS.items())[::every]):
            folder = tmp_path / str(number)
            folder.mkdir()
            (folder / "payload").write_bytes(content)
            before, since = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
            try:
                ENTRANCES[entrance](folder / "payload", finished)
                failures.append(f"{name}: no objection")
            except UserError as error:
                if "\n" in str(error):
                    failures.append(f"{name}: several lines")
            except BaseException as error:
                failures.append(f"{name}: {type(error).__name__} {str(error)[:200]}")
            seconds = time.process_time() - since
            megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            if seconds > SECONDS or megabytes > MEGABYTES:
                failures.append(f"{name}: {seconds:.1f} s, {megabytes:.0f} MB")
            if Path(CANARY).exists():
                failures.append(f"{name}: it ran")
                os.unlink(CANARY)
            shutil.rmtree(folder)
        (tmp_path / "failures").write_text("\n".join(failures))

    assert command.run_training  # imported
    assert in_child(offer_all) == 0
    assert (tmp_path / "failures").read_text() == ""


def test_there_are_enough_of_them() -> None:
    assert len(PAYLOADS) >= 40


def test_the_payloads_are_live(tmp_path: Path) -> None:
    """Read without care, the first of them does run."""

    def careless() -> None:
        with zipfile.ZipFile(io.BytesIO(PAYLOADS["os.system"])) as file:
            pickle.loads(file.read("archive/data.pkl"))

    Path(CANARY).unlink(missing_ok=True)
    assert in_child(careless) == 0
    assert Path(CANARY).exists()
    Path(CANARY).unlink()


def test_what_the_published_files_hold_is_accepted(tmp_path: Path) -> None:
    """Tensors, plain values, a Namespace, views of shared storage."""
    base = torch.arange(12.0)
    content = {
        "model": {"a": base.view(3, 4), "b": base[2:5], "c": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))},
        "args": argparse.Namespace(lr=0.1, betas=(0.9, None), name="x"),
        "epoch": 3,
        "scaler": {},
    }
    torch.save(content, tmp_path / "good.pth")
    from spectralgpt.models.safe_load import load_tensors

    found = load_tensors(tmp_path / "good.pth", "tensors")
    assert found["args"] == content["args"]
    assert all(torch.equal(found["model"][key], tensor) for key, tensor in content["model"].items())
