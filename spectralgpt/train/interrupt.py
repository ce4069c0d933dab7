# SPDX-License-Identifier: Apache-2.0
"""Leaving in order when the scheduler or the user asks: finish the step, save, then exit with the signal's code."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from spectralgpt.train import distributed

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """The run was asked to stop and has saved its state.

    Attributes:
        exit_code: 128 + the signal's number, 143 for SIGTERM.
    """

    def __init__(self, number: int) -> None:
        """Names the signal."""
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextmanager
def signals_held() -> Iterator[None]:
    """Processes started inside the block never see the two signals; this one gets them at its end.

    A scheduler may signal the whole group. Data workers must outlive it, and so must the server that starts them:
    once it is gone, they count as dead, and the batches of the last step with them.
    """
    former = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


class StopSignals:
    """Remembers the first SIGTERM or Ctrl-C inside the `with` block; a second one acts at once, as ever.

    Not so under a launcher: a scheduler or a terminal signals it and its processes alike, and it passes the signal on,
    so the second one follows the first in no time. The launcher itself kills who does not end.
    """

    requested: int = 0
    """The signal's number; 0 as long as none came."""

    def __enter__(self) -> StopSignals:
        """Installs the handlers."""
        self._former: dict[int, Any] = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Puts the former handlers back; not where a launcher's signal is late for what another process told first."""
        if not (distributed.is_launched() and kind is Interrupted):
            self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.requested = self.requested or number
        if not distributed.is_launched():
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
