# SPDX-License-Identifier: Apache-2.0
"""One optimizer step: however its windows are cut, in whatever precision and with whatever recomputed, it is the same
step."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from spectralgpt import ops
from spectralgpt.data.synthetic import synthetic_scene
from spectralgpt.errors import UserError
from spectralgpt.models.encoder import Encoder
from spectralgpt.train import recipe
from spectralgpt.train.checkpoint import Checkpoint
from spectralgpt.train.command import run_training
from spectralgpt.train.graph import Captured
from spectralgpt.train.run import Run, prepare
from spectralgpt.train.step import OptimizerStep
from tests.train import small_run

WINDOWS = 8


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "scene.tif"
    synthetic_scene(path, 64, 128, seed=1)
    return path


@pytest.fixture
def build(scene: Path, tmp_path: Path) -> Callable[..., Run]:
    def build(saved: Checkpoint | None = None, drop_path: float = 0.0, **changes: Any) -> Run:
        stage = {"image_size": 16, "batch_size": WINDOWS, "lr": 1e-3, "mask_ratio": 0.75, **changes.pop("stage", {})}
        tree = recipe.read(small_run.write_recipe(tmp_path, scene, stages=[stage], **changes))
        tree["model"]["drop_path"] = drop_path
        return prepare(recipe.build(tree), saved)

    return build


def batches(size: int, nodata: bool = False) -> Iterator[dict[str, Tensor]]:
    """The same windows for ever, `size` at a time; with nodata each has other tokens to score, one none at all."""
    generator = torch.Generator().manual_seed(0)
    whole = {
        "image": torch.rand(WINDOWS, 12, 16, 16, generator=generator),
        "valid": torch.rand(WINDOWS, 16, generator=generator) > 0.3 if nodata else torch.ones(WINDOWS, 16).bool(),
        "sample_id": torch.arange(WINDOWS),
    }
    if nodata:
        whole["valid"][3], whole["valid"][5] = False, True
    while True:
        for start in range(0, WINDOWS, size):
            yield {key: value[start : start + size] for key, value in whole.items()}


def steps(run: Run, count: int = 2, nodata: bool = False) -> Tensor:
    """What was measured in some steps, (count, 4)."""
    step, stream, measured = OptimizerStep(run), batches(run.stage.batch_size, nodata), []
    for _ in range(count):
        measured.append(step(stream, 1e-3))
        run.progress.advance(WINDOWS)
    return torch.stack(measured)


def gradients(run: Run, nodata: bool = False) -> list[Tensor]:
    """Of one step, before the update, and what it measured."""
    step = OptimizerStep(run)
    step._place.fill_(1)
    sums = step._attempt([], batches(run.stage.batch_size, nodata), exchange=True)
    found = [parameter.grad.clone() for parameter in run.model.parameters()]
    return [*found, step._update(sums, 1e-3)]


@pytest.mark.parametrize("nodata", [False, True])
@pytest.mark.parametrize(
    "cut",
    [
        {"micro_batch": 1},
        {"micro_batch": 3},
        {"batch_size": 4, "accumulate": 2, "micro_batch": 3},
    ],
)
def test_however_a_steps_windows_are_cut_the_gradient_is_the_same(
    build: Callable[..., Run], cut: dict[str, int], nodata: bool
) -> None:
    for whole, pieces in zip(gradients(build(), nodata), gradients(build(stage=cut), nodata), strict=True):
        torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-6)


def test_without_nodata_the_gradient_is_that_of_the_published_loss(build: Callable[..., Run]) -> None:
    run = build(model={**SMALL, "token_weight": 2.0, "spectral_weight": 0.5})
    weights = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    *got, measured = gradients(run)
    run.model.load_state_dict(weights)
    batch = next(batches(WINDOWS))
    mask = ops.random_cube_mask(batch["sample_id"], 16, 0.75, seed=run.config.seed, step=1)
    output = run.model(batch["image"], mask)
    output.loss.backward()
    for gradient, parameter in zip(got, run.model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(measured[:3], torch.stack([output.loss.detach(), *output[1:3]]))


SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "decoder_embed_dim": 32, "decoder_depth": 1}


class _Reads(TorchDispatchMode):
    """Counts what would make a host wait for its device."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_no_value_is_read_on_the_host_in_any_pass(build: Callable[..., Run]) -> None:
    run = build(stage={"micro_batch": 2})
    step = OptimizerStep(run)
    with _Reads() as reads:
        step._attempt([], batches(WINDOWS), exchange=True)
        bool(torch.ones(()))
    assert reads.count == 1, "only the one that shows that they are seen"


def test_the_backward_pass_begins_with_a_factor_of_one(
    build: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any other makes the loss's backward pass rescale its whole gradient."""
    seen, real = [], torch.autograd.backward
    monkeypatch.setattr(
        torch.autograd, "backward", lambda loss, *rest, **named: (seen.append((loss, rest)), real(loss, *rest, **named))
    )
    gradients(build(stage={"micro_batch": 2}))
    assert len(seen) == 4
    assert all("reconstruction_loss" in type(loss.grad_fn).__name__ and rest[0] is None for loss, rest in seen)


def _limited(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Forward passes of more than `most` windows run out of memory after they have begun; gives all sizes tried."""
    tried, real, kinds = [], Encoder.forward, itertools.cycle((True, False))

    def forward(self: Any, image: Tensor, *rest: Any) -> Tensor:
        tried.append(len(image))
        out = real(self, image, *rest)
        if len(image) > most:
            raise _no_memory(next(kinds))
        return out

    monkeypatch.setattr(Encoder, "forward", forward)
    return tried


def _no_memory(on_device: bool) -> RuntimeError:
    """As on a GPU, or as it really is on a CPU, where the type is no other than that of any mistake."""
    if on_device:
        return torch.OutOfMemoryError("no memory, says the test")
    with pytest.raises(RuntimeError) as told:
        torch.empty(2**62, dtype=torch.uint8)
    return told.value


@pytest.mark.parametrize(
    ("most", "sizes"), [(4, [8, 4, 4, 4, 4]), (3, [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]), (1, [8, 4, 2, *[1] * 16])]
)
def test_where_memory_runs_out_passes_get_smaller_and_the_step_stays(
    build: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, most: int, sizes: list[int]
) -> None:
    expected = steps(build())
    tried = _limited(monkeypatch, most)
    run = build()
    with pytest.warns(UserWarning, match=r"out of memory; \d windows per forward pass from now on"):
        got = steps(run)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert tried == sizes
    assert run.checkpoint().state["progress"]["micro_batch"] == sizes[-1], "a resumed run does not try again"


def test_drop_path_draws_as_if_memory_had_never_run_out(
    build: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = steps(build(drop_path=0.5, stage={"micro_batch": 2}))
    _limited(monkeypatch, 2)
    with pytest.warns(UserWarning, match="out of memory"):
        got = steps(build(drop_path=0.5))
    assert torch.equal(got, expected)


def test_no_memory_for_a_single_window_is_told_with_ways_out(
    build: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    _limited(monkeypatch, 0)
    with pytest.raises(UserError, match=r"stages\.0: expected memory for one window .* --speed\.recompute blocks"):
        steps(build(stage={"micro_batch": 1}))


@pytest.mark.parametrize("on_device", [True, False])
def test_no_memory_for_the_model_is_one_line(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_device: bool
) -> None:
    def place(*_: Any) -> None:
        raise _no_memory(on_device)

    monkeypatch.setattr("spectralgpt.train.run.place", place)
    with pytest.raises(
        UserError, match=r"expected memory for the model and its optimizer, got: .*parallel fsdp"
    ) as told:
        run_training({"config": str(small_run.write_recipe(tmp_path, scene))})
    assert "\n" not in str(told.value) and not (tmp_path / "runs").exists()


def test_a_recorded_step_is_the_same_step(build: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """The recording itself needs CUDA; what surrounds it, buffers and shapes and clearing, is this."""
    expected = steps(build(stage={"micro_batch": 3}), 3)
    recorded: list[int] = []

    def record(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        recorded.append(1)
        function()  # a warm-up adds to gradients, of which nothing may remain
        return function

    monkeypatch.setattr("spectralgpt.train.graph.on_device", record)
    run = build(stage={"micro_batch": 3})
    run.config = dataclasses.replace(run.config, speed=dataclasses.replace(run.config.speed, cuda_graph=True))
    torch.testing.assert_close(steps(run, 3), expected, rtol=1e-6, atol=1e-6)
    assert len(recorded) == 2, "windows come in threes and a last pair"
    buffer = next(run.model.parameters()).grad.untyped_storage()
    assert all(p.grad.untyped_storage()._cdata == buffer._cdata for p in run.model.parameters())


def test_a_replay_reads_its_own_buffers() -> None:
    total = torch.zeros(2)
    add = Captured(lambda x: total.add_(x), {"x": torch.ones(2)}, [total], record=lambda function: function)
    assert torch.equal(add({"x": torch.tensor([1.0, 2.0])}), torch.tensor([1.0, 2.0]))
    assert torch.equal(add({"x": torch.tensor([1.0, 2.0])}), torch.tensor([2.0, 4.0]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"speed": {"cuda_graph": True}}, "speed.cuda_graph: expected a CUDA device, got cpu"),
        ({"speed": {"cuda_graph": True, "parallel": "fsdp"}}, "speed.cuda_graph: expected speed.parallel ddp"),
        ({"device": "cuda"}, "device: expected a CUDA device"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")
def test_what_cannot_be_is_told(build: Callable[..., Run], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(**changes)


@pytest.mark.parametrize("recompute", ["light", "blocks"])
def test_recomputation_keeps_less_and_changes_no_bit(build: Callable[..., Run], recompute: str) -> None:
    def kept(run: Run) -> int:
        """Bytes kept for the backward pass."""
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        mask = ops.random_cube_mask(torch.arange(WINDOWS), 16, 0.75, seed=0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run.model(next(batches(WINDOWS))["image"], mask).loss.backward()
        run.optimizer.zero_grad()
        return sum(sizes.values())

    plain, other = build(drop_path=0.5), build(drop_path=0.5, speed={"recompute": recompute})
    assert kept(other) < kept(plain)
    torch.manual_seed(3)
    expected = steps(plain)
    torch.manual_seed(3)
    assert torch.equal(steps(other), expected)
    for a, b in zip(plain.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_keeps_weights_and_moments_in_float32_and_resumes_to_the_bit(
    build: Callable[..., Run], precision: str
) -> None:
    run = build(precision=precision)
    if precision == "fp16":
        run.scaler.load_state_dict({**run.scaler.state_dict(), "scale": 2.0**10})  # so that no step is skipped
    first = steps(run)
    torch.testing.assert_close(first[:, :3], steps(build())[:, :3], rtol=0.05, atol=0.0)
    saved = run.checkpoint()
    assert {tensor.dtype for tensor in saved.weights.values()} == {torch.float32}
    moments = saved.state["optimizer"]
    assert {tensor.dtype for key in moments for tensor in moments[key].values()} == {torch.float32}
    if precision == "fp16":
        assert saved.state["scaler"]["scale"] == 2.0**10 and saved.state["scaler"]["_growth_tracker"] == 2
    whole = Checkpoint(saved.step, {n: t.clone() for n, t in saved.weights.items()}, _clone(saved.state))
    expected = steps(run)
    again = build(whole, precision=precision)
    assert torch.equal(steps(again), expected)
    assert again.checkpoint().state["scaler"] == run.checkpoint().state["scaler"]


def test_a_gradient_beyond_fp16_lowers_the_scale_and_changes_nothing_else(build: Callable[..., Run]) -> None:
    run = build(precision="fp16")
    run.scaler.load_state_dict({**run.scaler.state_dict(), "scale": 2.0**60})
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    measured = steps(run, 1)
    assert not measured[0, 3].isfinite()
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())
    assert run.scaler.get_scale() == 2.0**59


@pytest.mark.acceptance
def test_a_compiled_step_is_the_same_step(build: Callable[..., Run]) -> None:
    torch.testing.assert_close(steps(build(speed={"compile": True})), steps(build()), rtol=1e-4, atol=1e-5)


def _clone(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.clone()
    if isinstance(tree, dict):
        return {key: _clone(value) for key, value in tree.items()}
    return [_clone(value) for value in tree] if isinstance(tree, list) else tree
