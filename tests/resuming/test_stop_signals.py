"""Signals that ask a run to stop."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from bnlab.resuming.stopping import StopSignals


@pytest.fixture
def signals() -> Iterator[StopSignals]:
    before = {which: signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)}
    signals = StopSignals()
    signals.watch()
    yield signals
    signals.release()
    assert {which: signal.getsignal(which) for which in before} == before
    for which, handler in before.items():
        signal.signal(which, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_sigterm_is_noted_however_often_it_comes(signals: StopSignals) -> None:
    assert signals.received is None
    send(signal.SIGTERM)
    send(signal.SIGTERM)
    assert signals.received == signal.SIGTERM


def test_the_second_ctrl_c_interrupts(signals: StopSignals, capfd: pytest.CaptureFixture[str]) -> None:
    send(signal.SIGINT)
    assert signals.received == signal.SIGINT
    assert "Ctrl-C again stops at once" in capfd.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_a_new_run_starts_without_a_signal(signals: StopSignals) -> None:
    send(signal.SIGTERM)
    signals.release()
    signals.watch()
    assert signals.received is None


def test_other_threads_get_none_and_change_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    signals = StopSignals()
    thread = threading.Thread(target=signals.watch)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before
