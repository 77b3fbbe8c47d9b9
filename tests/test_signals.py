"""What SIGTERM and SIGINT do while a process starts, and while an event loop runs."""

import asyncio
import logging
import os
import signal

import pytest

from ventu_lite.http.server import run
from ventu_lite.signals import Stopped, StopSignals, ended_by_signals, stop_signals

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_leaves_the_block(signum: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    old = signal.getsignal(signum)
    went_on = []
    with ended_by_signals():
        os.kill(os.getpid(), signum)
        went_on.append(True)
    assert not went_on
    assert caplog.messages == ["stopped before it was ready"]
    assert signal.getsignal(signum) is old


def test_the_same_signal_again_kills() -> None:
    old = signal.getsignal(signal.SIGTERM)
    with ended_by_signals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Stopped:
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is old


def test_who_was_started_with_nohup_stays_deaf_to_the_end_of_the_terminal() -> None:
    assert signal.SIGHUP in stop_signals()
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert set(stop_signals()) == {signal.SIGTERM, signal.SIGINT}
        with ended_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, old)


def test_another_exception_is_let_through() -> None:
    with pytest.raises(KeyError), ended_by_signals():
        raise KeyError


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_first_signal_in_a_loop_asks(signum: int) -> None:
    async def main() -> int:
        with StopSignals() as signals:
            signals.on_second(lambda: pytest.fail("too early"))
            os.kill(os.getpid(), signum)
            await asyncio.wait_for(signals.wait(), 10)
            return signals.exit_code

    assert run(main()) == 0


def test_the_second_signal_in_a_loop_hurries() -> None:
    async def main() -> int:
        hurry = asyncio.Event()
        with StopSignals() as signals:
            signals.on_second(hurry.set)
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(signals.wait(), 10)
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(hurry.wait(), 10)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            return signals.exit_code

    assert run(main()) == 128 + signal.SIGTERM
