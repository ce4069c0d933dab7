# SPDX-License-Identifier: Apache-2.0
"""What happens after steps whose loss or gradient is not finite.

That such a step changes nothing is the device's work (`optim.guarded_step`); the host learns of it when it next
reads the losses. A single one is passed over and its samples are logged. Several in a row say that the weights
themselves went wrong: the run goes back to its last checkpoint and on with other samples. Where that does not help
it ends, with an exit code of its own. All processes see the same numbers, so they decide alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spectralgpt.train import distributed
from spectralgpt.train.checkpoint import Checkpoint, Checkpoints, NotFinite, shared
from spectralgpt.train.run import Run

_MAX_ROLL_BACKS = 2


class Diverging(Exception):
    """So many steps in a row were not finite that the weights are in doubt."""


class Guard:
    """Decides between going on, going back and giving up.

    Attributes:
        streak: rows of the last steps, as far as their numbers were read, that were left out one after another.
    """

    def __init__(self, max_skipped: int) -> None:
        """Goes back after `max_skipped` steps in a row."""
        self._max_skipped = max_skipped
        self._roll_backs = 0
        self.streak: list[dict[str, Any]] = []

    def look(self, streak: Sequence[dict[str, Any]]) -> None:
        """Takes in the rows of the newest steps that were left out.

        Raises:
            Diverging: it is time to go back.
        """
        self.streak = list(streak)
        if len(streak) >= self._max_skipped:
            raise Diverging

    def save(self, checkpoint: Checkpoint, checkpoints: Checkpoints, score: float | None, *, must: bool) -> None:
        """The first process saves, unless the weights are in doubt; `must` is for those that no other follows.

        Raises:
            SaveFailed: the disk refused one that must be, or the third in a row.
        """
        if not self.streak:
            self._roll_backs = 0  # beyond the last trouble
        if distributed.rank() > 0 or (self.streak and not must):
            return
        if must:
            checkpoints.save(checkpoint, score)
        else:
            checkpoints.attempt(checkpoint, score)

    def roll_back(self, run: Run, checkpoints: Checkpoints) -> str:
        """Takes the run back to its last checkpoint; the order of the data goes on where it is now.

        Returns:
            A line about it.

        Raises:
            NotFinite: there is no checkpoint, or going back has not helped twice.
        """
        bad = run.progress
        trouble = f"loss or gradient not finite in {len(self.streak)} steps in a row up to step {bad.step}"
        way_out = f"lower the learning rate (--stages.{bad.stage}.lr)"
        if not distributed.agree(len(checkpoints.steps())):
            raise NotFinite(f"{trouble}; no checkpoint was saved yet; {way_out}")
        if self._roll_backs == _MAX_ROLL_BACKS:
            raise NotFinite(f"{trouble}; going back to a checkpoint {_MAX_ROLL_BACKS} times did not help; {way_out}")
        saved = shared(checkpoints.load_latest() if distributed.rank() == 0 else None)
        assert saved is not None  # load_latest raises where there is none
        run.rewind(saved)
        run.progress.pass_over(bad, run.config.stages[bad.stage].windows_per_step)
        self._roll_backs += 1
        return f"{trouble}; going back to step {saved.step}, and on with the samples after them"
