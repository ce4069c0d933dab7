# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint and a recipe belong together: what must be the same, what may change when asked, what always.

A changed recipe is shown key by key and needs `--allow-config-change`, so that nobody goes on with a rate from the
wrong file; model, bands and random numbers stay in any case. A checkpoint from elsewhere may hold anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from spectralgpt.errors import UserError
from spectralgpt.train.checkpoint import Checkpoint
from spectralgpt.train.config import RunConfig
from spectralgpt.train.device import is_out_of_memory
from spectralgpt.train.recipe import to_yaml

_LONGEST = 1000
# Where the run lies, and how its arithmetic is brought to the machine: the numbers stay the same.
_ALWAYS = re.compile(
    r"(name|output|device|keep_checkpoints|speed\..*|(stages\.\d+\.)?(data\.num_workers|micro_batch)) "
)


def check_recipe(saved: Checkpoint, config: RunConfig, *, allow_change: bool) -> None:
    """Compares the recipe that a checkpoint was made with and the one to go on with.

    Raises:
        UserError: they differ in the model, or elsewhere without `allow_change`; names keys and values.
    """
    state, now = saved.state, yaml.safe_load(to_yaml(config))
    stage = int(state["progress"]["stage"])
    changed = [key for key in differing_keys(state["config"], now) if not _ALWAYS.match(key)]
    data = (
        f"{prefix}data.{key}"
        for prefix in ("", f"stages.{stage}.")
        for key in ("dataset", "sensor", "bands", "val_fraction")
    )
    pinned = (
        "task",
        "model.",
        "head.",
        "finetune.train",
        "finetune.lora_rank",
        "seed",
        f"stages.{stage}.image_size",
        f"stages.{stage}.data (",
        *data,
    )
    fixed = [key for key in changed if key.startswith(pinned)]
    if stage >= len(now["stages"]):
        fixed.append(f"stages ({len(now['stages'])} now, but stage {stage} is reached)")
    if fixed:
        raise UserError(
            f"--resume: expected the model the run began with, got other values of {_listed(fixed)}; "
            "start anew with a --name"
        )
    if changed and not allow_change:
        raise UserError(
            f"--resume: expected the recipe the run began with, got other values of {_listed(changed)}; "
            "go on with them by --allow-config-change"
        )


@contextmanager
def fitting(saved: Checkpoint | None) -> Iterator[None]:
    """Turns what a strange checkpoint stumbles over inside the block into one line.

    Raises:
        UserError: the checkpoint does not fit the run.
    """
    try:
        yield
    except UserError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        if saved is None or (isinstance(error, RuntimeError) and is_out_of_memory(error)):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"--resume: expected a checkpoint of this run at step {saved.step}, got {reason}") from error


def differing_keys(saved: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two recipes' trees, with both; stages by their place."""
    keys: list[str] = []
    for key in {**saved, **now}:
        old, new = (_by_place(tree.get(key)) if key == "stages" else tree.get(key) for tree in (saved, now))
        if isinstance(old, dict) and isinstance(new, dict):
            keys += differing_keys(old, new, f"{prefix}{key}.")
        elif old != new:
            keys.append(f"{prefix}{key} ({old} before, {new} now)")
    return keys


def _by_place(items: Any) -> Any:  # noqa: ANN401 - whatever a strange checkpoint holds
    return {str(place): item for place, item in enumerate(items)} if isinstance(items, list) else items


def _listed(keys: list[str]) -> str:
    text = "; ".join(keys)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
