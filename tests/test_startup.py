"""Something slow is done once, in the background, and again only when that makes sense."""

import logging
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ventu_lite import NotReady, VentuError
from ventu_lite.startup import RETRY_AFTER, Startup

PATIENCE = 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Gate:
    """A slow thing that lasts until it is let go, and counts how often it began."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        self.begun.set()
        assert self.go.wait(PATIENCE)


class Flaky:
    """A slow thing that fails until it is mended."""

    def __init__(self) -> None:
        self.calls = 0
        self.is_mended = False

    def __call__(self) -> None:
        self.calls += 1
        if not self.is_mended:
            raise OSError("no such model")


def test_it_happens_once_for_many_threads() -> None:
    gate = Gate()
    startup = Startup(gate)
    with ThreadPoolExecutor(16) as pool:
        waiting = [pool.submit(startup.wait, PATIENCE) for _ in range(8)]
        waiting += [pool.submit(startup.run) for _ in range(8)]
        assert gate.begun.wait(PATIENCE)
        assert startup.why_not()
        gate.go.set()
        for one in waiting:
            one.result(PATIENCE)
    assert startup.why_not() == ""
    assert gate.calls == 1


def test_what_it_made_goes_to_all_who_want_it() -> None:
    made: list[object] = []

    def load() -> object:
        made.append(object())
        return made[0]

    startup = Startup(load)
    first = startup.wait(PATIENCE)
    assert first is startup.wait(0) is startup.run() is made[0]
    assert len(made) == 1
    assert Startup(lambda: 5).run() == 5


def test_begin_returns_at_once() -> None:
    gate = Gate()
    startup = Startup(gate)
    startup.begin()
    startup.begin()
    assert gate.begun.wait(PATIENCE)
    assert "running" in startup.why_not()
    gate.go.set()
    startup.run()
    startup.begin()
    assert gate.calls == 1


def test_who_waits_too_briefly_is_told_that_it_runs() -> None:
    gate = Gate()
    startup = Startup(gate)
    with pytest.raises(NotReady, match="still running") as caught:
        startup.wait(0.0)
    assert caught.value.retry_after == 1.0
    gate.go.set()
    startup.run()


@pytest.mark.parametrize("timeout", [-1.0, 1e300], ids=["the past", "longer than a lock can"])
def test_any_timeout_will_do(timeout: float) -> None:
    startup = Startup(lambda: None)
    startup.run()
    startup.wait(timeout)
    fresh = Startup(lambda: None)
    if timeout > 0:
        fresh.wait(timeout)
    else:
        with pytest.raises(NotReady):
            Startup(_fail).wait(timeout)


def _fail() -> None:
    raise OSError("no such model")


def test_a_failure_is_tried_again_after_a_while(caplog: pytest.LogCaptureFixture) -> None:
    clock, load = Clock(), Flaky()
    startup = Startup(load, clock=clock)
    with pytest.raises(NotReady, match="failed") as caught:
        startup.wait(PATIENCE)
    assert caught.value.retry_after == RETRY_AFTER == 10.0
    assert "no such model" in caplog.text
    clock.now += 4
    assert startup.retry_after() == 6.0
    with pytest.raises(NotReady, match="failed"):
        startup.wait(PATIENCE)
    assert load.calls == 1
    clock.now += 6
    load.is_mended = True
    startup.wait(PATIENCE)
    assert load.calls == 2
    assert startup.is_ready


@pytest.mark.parametrize(("level", "tracebacks"), [(logging.INFO, 1), (logging.DEBUG, 3)])
def test_a_failure_that_comes_again_is_logged_in_one_line(
    caplog: pytest.LogCaptureFixture, level: int, tracebacks: int
) -> None:
    clock = Clock()
    startup = Startup(_fail, clock=clock)
    with caplog.at_level(level):
        for _ in range(3):
            with pytest.raises(NotReady, match="failed"):
                startup.wait(PATIENCE)
            clock.now += RETRY_AFTER
    assert caplog.text.count("Traceback (most recent call last)") == tracebacks
    first, *others = caplog.messages
    why = r"OSError: no such model \(\S+test_startup.py:\d+\); it is tried again after 10 s"
    assert re.fullmatch(f"set-up failed: {why}", first)
    for other in others:
        assert re.fullmatch(f"set-up failed again: {why}", other)
    assert len(others) == 2


def test_a_second_try_says_running_not_failed() -> None:
    clock, gate = Clock(), Gate()
    loads: list[Callable[[], None]] = [_fail, gate]
    startup = Startup(lambda: loads.pop(0)(), clock=clock)
    with pytest.raises(NotReady):
        startup.wait(PATIENCE)
    clock.now += RETRY_AFTER
    startup.begin()
    assert gate.begun.wait(PATIENCE)
    assert "running" in startup.why_not()
    assert startup.retry_after() == 1.0
    gate.go.set()
    startup.run()


def test_run_fails_with_what_it_failed_with_and_tries_at_once() -> None:
    load = Flaky()
    startup = Startup(load)
    with pytest.raises(OSError, match="no such model"):
        startup.run()
    load.is_mended = True
    startup.run()
    assert load.calls == 2


def test_even_an_exit_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    def leave() -> None:
        raise SystemExit(3)

    startup = Startup(leave)
    with pytest.raises(NotReady, match="failed"):
        startup.wait(PATIENCE)
    assert "SystemExit" in caplog.text


def test_who_would_wait_for_himself_is_told() -> None:
    failures: list[VentuError] = []

    def load() -> None:
        for wait in (startup.run, lambda: startup.wait(PATIENCE)):
            with pytest.raises(VentuError, match="may call ask, predict or health_check") as caught:
                wait()
            failures.append(caught.value)

    startup = Startup(load)
    startup.run()
    assert len(failures) == 2
    assert startup.is_ready


def test_no_thread_is_no_reason_to_wait_for_ever(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    clock = Clock()
    startup = Startup(lambda: None, clock=clock)
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(NotReady, match="failed"):
            startup.wait(PATIENCE)
    assert "can't start new thread" in caplog.text
    clock.now += RETRY_AFTER
    startup.wait(PATIENCE)


def test_what_is_forbidden_does_not_start() -> None:
    gate = Gate()
    startup = Startup(gate)
    startup.forbid("not here")
    startup.begin()
    assert startup.why_not() == "not here"
    with pytest.raises(NotReady, match="not here"):
        startup.wait(PATIENCE)
    with pytest.raises(NotReady, match="not here"):
        startup.run()
    assert gate.calls == 0


def test_a_copy_of_a_process_in_the_middle_starts_anew() -> None:
    gate = Gate()
    startup = Startup(gate)
    startup.begin()
    assert gate.begun.wait(PATIENCE)
    startup.reset_locks()  # what happens in a forked child, where the thread is not
    gate.go.set()
    startup.run()
    assert startup.is_ready
    assert gate.calls == 2


def test_locks_are_reset_by_a_real_fork() -> None:
    gate = Gate()
    startup = Startup(gate)
    startup.begin()
    assert gate.begun.wait(PATIENCE)
    gate.go.set()
    startup.run()
    lock = startup._changed
    pid = os.fork()
    if pid == 0:
        os._exit(0 if startup.is_ready and startup._changed is not lock else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert startup._changed is lock
