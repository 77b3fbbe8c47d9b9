"""Turns come in the order in which they were asked for, and to nobody who has gone."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from waiting import until

from ventu_lite import VentuError
from ventu_lite.turns import Turns

PATIENCE = 10.0


def wait_for(turns: Turns, count: int) -> None:
    """Wait until that many threads want a turn."""
    until(lambda: len(turns._waiting) >= count)


def test_turns_come_in_the_order_in_which_they_were_asked_for() -> None:
    """A plain lock would go to the quickest, and a probe might never get it."""
    turns, order = Turns(), []

    def take(number: int) -> None:
        with turns:
            order.append(number)

    with ThreadPoolExecutor(5) as pool:
        with turns:
            for number in range(5):
                pool.submit(take, number)
                wait_for(turns, number + 1)
    assert order == [0, 1, 2, 3, 4]


def test_who_waits_too_long_leaves_without_a_turn() -> None:
    turns = Turns()
    with ThreadPoolExecutor(1) as pool:
        with turns:
            assert not pool.submit(turns.acquire, 0.01).result(PATIENCE)
            assert not pool.submit(turns.acquire, 0).result(PATIENCE)
        assert pool.submit(turns.acquire, 0).result(PATIENCE)


def test_a_very_long_timeout_is_no_overflow() -> None:
    turns = Turns()
    with ThreadPoolExecutor(1) as pool:
        with turns:
            asked = pool.submit(turns.acquire, 1e300)
            wait_for(turns, 1)
        assert asked.result(PATIENCE)


def test_a_turn_that_comes_in_the_last_moment_counts() -> None:
    turns = Turns()
    bell = (threading.Lock(), 0)  # was handed over: it is not among those who wait
    assert not turns._leave(bell)


def test_who_would_wait_for_himself_is_told() -> None:
    turns = Turns()
    with turns, pytest.raises(VentuError, match="must not ask its own service"):
        turns.acquire()
    assert turns.acquire(0)


def test_who_asks_for_what_waits_for_his_turn_is_told() -> None:
    turns = Turns()
    turns.refuse_holder()
    with turns:
        with pytest.raises(VentuError, match="must not ask its own service"):
            turns.refuse_holder()
        with ThreadPoolExecutor(1) as pool:  # another thread may wait
            pool.submit(turns.refuse_holder).result(PATIENCE)


def test_a_turn_knows_how_long_it_has_lasted() -> None:
    """From the moment at which it came, not from that at which somebody began to wait for it."""
    now = 100.0
    turns = Turns(lambda: now)
    assert turns.seconds() == 0
    with ThreadPoolExecutor(1) as pool:
        with turns:
            now += 41
            assert turns.seconds() == 41
            waiting = pool.submit(turns.acquire)
            wait_for(turns, 1)
        assert waiting.result(PATIENCE)
        assert turns.seconds() == 0
        now += 3
        assert turns.seconds() == 3
        pool.submit(turns.release).result(PATIENCE)
    assert turns.seconds() == 0


def interrupt_main() -> None:
    ident = threading.main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, signal.SIGINT)


def test_an_interrupted_wait_leaves_no_trace() -> None:
    turns, go = Turns(), threading.Event()

    def hold() -> None:
        with turns:
            held.set()
            wait_for(turns, 1)
            interrupt_main()
            assert go.wait(PATIENCE)

    held = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(hold)
        assert held.wait(PATIENCE)
        with pytest.raises(KeyboardInterrupt):
            turns.acquire()
        go.set()
        holder.result(PATIENCE)
    assert turns.acquire(0)


class Interrupted:
    """A lock that a turn comes to in the moment of Ctrl-C."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.is_first = True

    def acquire(self, timeout: float = -1) -> bool:
        if self.is_first:
            self.is_first = False
            return True
        self.turns.release()
        raise KeyboardInterrupt

    def release(self) -> None: ...


def test_a_turn_that_comes_with_an_interrupt_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(turns.acquire).result(PATIENCE)
        monkeypatch.setattr(threading, "Lock", lambda: Interrupted(turns))
        with pytest.raises(KeyboardInterrupt):
            turns.acquire()
    assert turns.acquire(0)


def test_a_child_has_the_turn_that_a_thread_of_its_parent_holds() -> None:
    turns = Turns()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(turns.acquire).result(PATIENCE)
        pid = os.fork()
        if pid == 0:
            os._exit(0 if turns.acquire(0) else 1)
        assert os.waitpid(pid, 0)[1] == 0
