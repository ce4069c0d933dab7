# SPDX-License-Identifier: Apache-2.0
"""A signal is remembered; what a second one does depends on who started the process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from spectralgpt.train.interrupt import Interrupted, StopSignals


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Python's own handler: what a shell starts in the background ignores Ctrl-C, and so do its children."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def test_a_second_signal_acts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_under_a_launcher_which_passes_signals_on_a_second_one_is_the_same_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == signal.SIGTERM, "the first one decides the exit code"
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_comes_after_the_save_does_not_change_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(Interrupted), StopSignals():
            raise Interrupted(signal.SIGTERM)  # as the other process said
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
