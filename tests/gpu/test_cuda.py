# SPDX-License-Identifier: Apache-2.0
"""Every op on a CUDA device: the CPU's values, other streams and devices, captured graphs, traps. `pytest -m cuda`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spectralgpt import ops
from spectralgpt.ops import _registry
from tests.ops.calls import CALLS, NAMES, Call, results

CSRC = Path(__file__).resolve().parents[2] / "csrc"
EVERY_CALL = pytest.mark.parametrize("call", CALLS, ids=NAMES)


def on_cuda(call: Call, seed: int = 1, batch: int = 4, device: str = "cuda:0") -> tuple[Tensor, ...]:
    return tuple(tensor.to(device) for tensor in call.arguments(seed, batch))


def assert_same(ours: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.cuda
@EVERY_CALL
def test_native_kernel_serves(call: Call) -> None:
    assert _registry._OPS[call.op].implementations["cuda"] == "native"


@pytest.mark.cuda
@EVERY_CALL
def test_equals_the_cpu(call: Call) -> None:
    """Bit for bit for permutations and masks, within rounding else."""
    for ours, theirs in zip(results(call, on_cuda(call)), results(call, call.arguments(1, 4)), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        if call.exact:
            assert torch.equal(ours.cpu(), theirs)
        else:
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.cuda
@EVERY_CALL
def test_same_bits_over_50_runs(call: Call) -> None:
    arguments = on_cuda(call, batch=16)
    first = results(call, arguments)
    for _ in range(50):
        assert_same(results(call, arguments), first)


@pytest.mark.cuda
@EVERY_CALL
def test_side_stream_does_not_wait_for_the_default_stream(call: Call) -> None:
    """Launched on the current stream: right while the default stream sleeps, and done before it wakes."""
    arguments, expected = on_cuda(call), results(call, on_cuda(call))
    side, asleep = torch.cuda.Stream(), torch.cuda.Event()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):  # fills the stream's cache of memory: cudaMalloc itself waits for the device
        results(call, arguments)
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second of the default stream
    asleep.record()
    with torch.cuda.stream(side):
        outputs = results(call, arguments)
    side.synchronize()
    assert not asleep.query(), "the op waited for the default stream, or for the device"
    assert_same(outputs, expected)
    torch.cuda.synchronize()


@pytest.mark.cuda
@EVERY_CALL
def test_inputs_of_a_pending_kernel_are_waited_for(call: Call) -> None:
    """On one stream, an input written behind a long kernel is seen as written."""
    arguments, expected = on_cuda(call), results(call, on_cuda(call))
    late = tuple(torch.zeros_like(tensor) for tensor in arguments)
    torch.cuda._sleep(200_000_000)
    for target, source in zip(late, arguments, strict=True):
        target.copy_(source)
    assert_same(results(call, late), expected)


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs; the device guard is checked in the source")
@EVERY_CALL
def test_second_device(call: Call) -> None:
    with torch.cuda.device(0):
        outputs = results(call, on_cuda(call, device="cuda:1"))
        assert all(output.device.index == 1 for output in outputs) and torch.cuda.current_device() == 0
    assert_same([output.cpu() for output in outputs], [output.cpu() for output in results(call, on_cuda(call))])


@pytest.mark.cuda
@EVERY_CALL
def test_captured_graph_replays_with_other_values(call: Call) -> None:
    """Forward and backward in one graph; seeds, steps, weights, ids and boxes are read anew at each replay."""
    static = on_cuda(call)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # torch wants a first run outside the capture
        results(call, static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(call, static)
    for seed in (5, 6):
        for target, source in zip(static, call.arguments(seed, 4), strict=True):
            target.copy_(source)
        graph.replay()
        torch.cuda.synchronize()
        assert_same(captured, results(call, on_cuda(call, seed)))


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_captured_graph_refuses_a_frozen_seed() -> None:
    ids = torch.arange(4, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with (
        pytest.raises(ValueError, match="random_cube_mask: expected seed as a 0-d int64 tensor"),
        torch.cuda.graph(graph),
    ):
        ops.random_cube_mask(ids, 144, 0.75, seed=1)


TRAPS = {
    "gather_patchify3d": "ops.gather_patchify3d(zeros(1, 12, 16, 16), tensor([[16]]))",
    "assemble_tokens": "ops.assemble_tokens(zeros(1, 2, 8), zeros(8), zeros(4, 8), tensor([[0, 0, 2, 3]]))",
    "crop_resize": "ops.crop_resize(zeros(64), tensor([[0, 8, 8]]), tensor([[0, 0, 9, 8]]).int(), zeros(1, 2).bool(),"
    " 4, bands=1, offset=zeros(1, 1), scale=zeros(1, 1))",
    "reconstruction_loss": "ops.reconstruction_loss(zeros(1, 16, 192), zeros(1, 12, 16, 16), zeros(1, 16).bool())",
}


@pytest.mark.cuda
@pytest.mark.parametrize("op", TRAPS)
def test_values_that_only_the_device_sees_trap(op: str) -> None:
    """In a process of its own: a trap ends the context."""
    program = [
        "import functools, torch",
        "from spectralgpt import ops",
        "zeros, tensor = (functools.partial(make, device='cuda') for make in (torch.zeros, torch.tensor))",
        TRAPS[op],
        "torch.cuda.synchronize()",
        "print('went on')",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(program)], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "went on" not in done.stdout
    assert re.search(f"{op}|CUDA error", done.stdout + done.stderr)


@pytest.mark.cuda
def test_more_than_2_to_the_31_elements() -> None:
    image = torch.zeros(1, 3, 8, (2**31 // 24 // 8 + 2) * 8, dtype=torch.bfloat16, device="cuda")
    image[..., -8:], image[..., :8] = 2.0, 1.0
    length = image.shape[3] // 8
    tokens = ops.gather_patchify3d(image, torch.tensor([[0, length - 1, 1]], device="cuda"))
    assert tokens.float().mean(2).tolist() == [[1.0, 2.0, 0.0]]
    assert torch.equal(ops.unpatchify3d(ops.patchify3d(image), image.shape[1:]), image)


# ------------------------------------------------------------------------------------- what can be seen without a GPU


def test_every_launcher_guards_its_device_and_takes_a_stream() -> None:
    for path in sorted((CSRC / "cuda").glob("*.cu")):
        text = path.read_text()
        launchers = re.findall(r"^void \w+_cuda\((?:[^)]*)\) \{.*?^\}", text, re.MULTILINE | re.DOTALL)
        assert launchers, f"{path.name} has no launcher"
        for launcher in launchers:
            name = launcher.split("(")[0].removeprefix("void ")
            assert re.search(r"\bint device, void\* stream\)", launcher), f"{name} lacks device or stream"
            assert "DeviceGuard" in launcher, f"{name} does not guard the device"


def test_no_launcher_waits_for_the_device() -> None:
    for path in sorted(CSRC.rglob("*.cu*")):
        assert not re.search(r"cuda\w*Synchronize|cudaMalloc|cudaMemcpy\(|cudaStreamDefault", path.read_text()), (
            path.name
        )


def test_the_sanitizers_program_runs_on_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.gpu.program import main

    main("cpu")
    assert capsys.readouterr().out == "ops done\n"
