# SPDX-License-Identifier: Apache-2.0
"""A loss, gradient, pixel or target that is not finite changes no bit, is logged, and reaches no checkpoint."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from spectralgpt import ops
from spectralgpt.data.loader import EpochSampler
from spectralgpt.data.synthetic import synthetic_scene
from spectralgpt.models.safe_load import tensors_in
from spectralgpt.train import durable
from spectralgpt.train.checkpoint import read
from tests.train import small_run, worlds

VALUES = (math.nan, math.inf, -math.inf)
PLACES = ("loss", "gradient element", "input pixel", "target band")
INJECTIONS = list(itertools.product(PLACES, VALUES))
FIRST = 2
"""The step of the first injection; every second one after it has the next."""
WINDOWS = 24
STAGE = {"name": "only", "image_size": 16, "batch_size": 2, "warmup_steps": 2, "lr": 1e-3, "mask_ratio": 0.75}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "scene.tif"
    synthetic_scene(path, 64, 128, seed=1)
    return path


def state_of(run: Any) -> bytes:
    """Weights, moments, average and scaler, to the bit."""
    tensors = [*run.model.state_dict().values(), *tensors_in(list(run.optimizer.state.values()))]
    raw = [tensor.detach().clone().reshape(-1).view(torch.uint8) for tensor in tensors]
    return torch.cat(raw).numpy().tobytes() + str(run.scaler.state_dict()).encode()


def spoiled(batch: dict[str, Any], run: Any, place: str, value: float) -> dict[str, Any]:
    """One pixel of a visible token, or one band of a hidden one, in the batch's first image."""
    image, patch = batch["image"].clone(), run.model.config.patch_size
    stage, ids = run.stage, batch["sample_id"]
    mask = ops.random_cube_mask(
        ids, batch["valid"].shape[1], stage.mask_ratio, seed=run.config.seed, step=run.progress.step + 1
    )
    token = int(mask.ids_keep[0, 0]) if place == "input pixel" else int(mask.mask[0].nonzero()[0])
    _, rows, columns = run.model.config.grid
    band, y, x = token // (rows * columns) * patch[0], token // columns % rows * patch[1], token % columns * patch[2]
    size = (1, 1) if place == "input pixel" else patch[1:]
    image[0, band, y : y + size[0], x : x + size[1]] = value
    return {**batch, "image": image}


@contextlib.contextmanager
def injected(run: Any, batches: Iterator[Any], place: str, value: float) -> Iterator[Iterator[Any]]:
    """The last pass of a step goes wrong."""
    passes = iter(range(1, 100))
    last = run.stage.accumulate
    with contextlib.ExitStack() as stack:
        if place == "loss":
            hook = run.model.register_forward_hook(
                lambda *call: call[2]._replace(loss=call[2].loss * value) if next(passes) == last else call[2]
            )
            stack.callback(hook.remove)
        elif place == "gradient element":

            def poison(gradient: torch.Tensor) -> torch.Tensor:
                gradient = gradient.clone()
                gradient.view(-1)[7] = value
                return gradient if next(passes) == last else torch.zeros_like(gradient)

            stack.callback(next(run.model.parameters()).register_hook(poison).remove)
        else:
            batches = (spoiled(batch, run, place, value) if next(passes) == last else batch for batch in batches)
        yield batches


def inject_all(rank: int, size: int) -> None:
    """From step `FIRST` every second step has one of `INJECTIONS`, on the last process only."""
    from spectralgpt.train.step import OptimizerStep

    real = OptimizerStep.__call__

    def call(self: Any, batches: Iterator[Any], lr: float) -> torch.Tensor:
        run, number = self._run, self._run.progress.step + 1 - FIRST
        if number < 0 or number % 2 or number // 2 >= len(INJECTIONS):
            before = state_of(run)
            measured = real(self, batches, lr)
            assert measured.isfinite().all()
            assert state_of(run) != before
            return measured
        place, value = INJECTIONS[number // 2]
        before = state_of(run)
        with injected(run, batches, place, value) if rank == size - 1 else contextlib.nullcontext(batches) as spoilt:
            measured = real(self, spoilt, lr)
        assert not measured.isfinite().all(), (place, value)
        assert state_of(run) == before, f"{place} {value} changed a bit on process {rank}"
        assert all(parameter.grad is None for parameter in run.model.parameters())
        return measured

    OptimizerStep.__call__ = call


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("size", [1, 2])
def test_what_is_not_finite_changes_no_bit_and_reaches_no_checkpoint(
    image: Path, tmp_path: Path, size: int, accumulate: int
) -> None:
    steps = FIRST + 2 * len(INJECTIONS)
    stage = {**STAGE, "steps": steps, "accumulate": accumulate}
    changes = {"stages": [stage], "checkpoint_every": 1, "keep_checkpoints": 100, "validate_every": 0}
    changes["ema"] = 0.9
    recipe = small_run.write_recipe(tmp_path, image, **changes)
    for end in worlds.run(size, {"config": str(recipe)}, before=inject_all, arguments=(size,)):
        assert end.code == 0, end.stderr
    run = tmp_path / "runs" / "run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row for row in rows if "loss" in row]
    order, per_step = EpochSampler(WINDOWS, 5), 2 * accumulate
    bad = [FIRST + 2 * number for number in range(len(INJECTIONS))]
    assert [row["step"] for row in losses if row.get("skipped")] == bad
    for row in losses:
        keys = order.keys((row["step"] - 1) * per_step, per_step)
        assert row.get("sample_ids") == ([index for _, index in keys] if row["step"] in bad else None)
    saved = [path for path in (run / "checkpoints").glob("step-*") if durable.damage(path) is None]
    assert len(saved) == steps - len(INJECTIONS)
    for path in saved:
        found = read(path)
        assert all(tensor.isfinite().all() for tensor in tensors_in([found.weights, found.state]))


def test_an_unguarded_step_would_not_have_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One element of one gradient, clipped as usual, spoils every weight."""
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(2, 4)).sum().backward()
    assert model.weight.grad is not None
    model.weight.grad[1, 2] = math.nan
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert not any(parameter.isfinite().any() for parameter in model.parameters())


def break_once(steps: tuple[int, ...]) -> None:
    """Loss and gradients of these steps are NaN the first time they are made."""
    from spectralgpt.train.step import OptimizerStep

    real, rest = OptimizerStep.__call__, list(steps)

    def call(self: Any, batches: Iterator[Any], lr: float) -> torch.Tensor:
        run, step = self._run, self._run.progress.step + 1
        with injected(run, batches, "loss", math.nan) if step in rest else contextlib.nullcontext(batches) as spoilt:
            rest.remove(step) if step in rest else None
            return real(self, spoilt, lr)

    OptimizerStep.__call__ = call


def test_several_in_a_row_go_back_to_a_checkpoint_and_on_with_other_samples(image: Path, tmp_path: Path) -> None:
    """Bad are steps 5 and 6; the checkpoint before is that of step 3, since 4 is not due."""
    changes: dict[str, Any] = {"optim": {"max_skipped": 2}, "stages": [{**STAGE, "steps": 10}], "validate_every": 0}
    recipe = small_run.write_recipe(tmp_path, image, **changes)
    code, stderr = small_run.run({"config": str(recipe)}, before=break_once, arguments=((5, 6),))
    assert code == 0, stderr
    assert "not finite in 2 steps in a row up to step 6; going back to step 3" in stderr
    run = tmp_path / "runs" / "run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    order = EpochSampler(WINDOWS, 5)
    (note,) = (row for row in rows if "rolled_back_from" in row)
    assert (note["step"], note["rolled_back_from"]) == (4, 6)
    assert note["sample_ids"] == [index for _, index in order.keys(8, 4)]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 11))
    assert not any(row.get("skipped") for row in rows)
    assert read(run / "checkpoints" / "step-9").state["progress"]["passed_over"] == {0: 6}


def test_after_trouble_a_killed_run_still_ends_the_same(image: Path, tmp_path: Path) -> None:
    """What was passed over is in the checkpoint."""
    changes: dict[str, Any] = {"optim": {"max_skipped": 2}, "stages": [{**STAGE, "steps": 10}], "validate_every": 0}
    ends = []
    for name, kill in (("whole", None), ("killed", 8)):
        (tmp_path / name).mkdir()
        recipe = small_run.write_recipe(tmp_path / name, image, **changes)
        run = tmp_path / name / "runs" / "run"
        if kill is None:
            assert small_run.run({"config": str(recipe)}, before=break_once, arguments=((5, 6),)).code == 0
        else:
            assert small_run.run({"config": str(recipe)}, before=break_and_kill, arguments=((5, 6), kill)).code == -9
            assert small_run.run({"resume": str(run)}).code == 0
        ends.append([(run / name).read_bytes() for name in ("metrics.jsonl", "model/model.safetensors")])
    assert ends[0] == ends[1]


def break_and_kill(steps: tuple[int, ...], step: int) -> None:
    break_once(steps)
    small_run.kill_after_step(step)


def test_where_going_back_does_not_help_the_run_ends_with_a_code_of_its_own(image: Path, tmp_path: Path) -> None:
    recipe = small_run.write_recipe(tmp_path, image, optim={"max_skipped": 2})
    code, stderr = small_run.run({"config": str(recipe), "stages.0.lr": "1e30", "checkpoint_every": "1"})
    assert code == 3
    assert stderr.count("going back to step 1, and on") == 2
    assert "error: loss or gradient not finite in 2 steps" in stderr.splitlines()[-1]
    assert "going back to a checkpoint 2 times did not help; lower the learning rate (--stages.0.lr)" in stderr
    weights = safetensors.torch.load_file(tmp_path / "runs" / "run" / "checkpoints" / "step-1" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_without_a_checkpoint_there_is_nowhere_to_go_back_to(image: Path, tmp_path: Path) -> None:
    recipe = small_run.write_recipe(tmp_path, image, optim={"max_skipped": 2})
    code, stderr = small_run.run({"config": str(recipe)}, before=break_once, arguments=((1, 2),))
    assert code == 3
    assert "no checkpoint was saved yet" in stderr.splitlines()[-1]


def test_steps_that_fp16_loses_until_its_scale_fits_are_no_trouble(image: Path, tmp_path: Path) -> None:
    options = {"config": str(small_run.write_recipe(tmp_path, image, validate_every=0)), "precision": "fp16"}
    assert small_run.run({**options, "optim.max_skipped": "1"}).code == 0
    rows = [json.loads(line) for line in (tmp_path / "runs/run/metrics.jsonl").read_text().splitlines()]
    lost = ["skipped" in row for row in rows if "lr" in row]
    assert lost[0] and not lost[-1], "a scale that fits from the start shows nothing"
