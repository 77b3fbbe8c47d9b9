"""A forked child inherits no lock that a thread of its parent holds."""

import gc
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ventu_lite.forks import Making, making, reset_after_fork

PATIENCE = 10.0


class Holder:
    """Something with a lock, which a fork may find held."""

    def __init__(self) -> None:
        self.reset_locks()
        reset_after_fork(self)

    def reset_locks(self) -> None:
        self.lock = threading.Lock()


def is_so_in_a_child(claim: Callable[[], bool]) -> bool:
    pid = os.fork()
    if pid == 0:
        os._exit(0 if claim() else 1)
    return os.waitpid(pid, 0)[1] == 0


def test_a_lock_that_is_held_is_free_in_a_child_and_held_in_its_parent() -> None:
    holder = Holder()
    with holder.lock:
        assert is_so_in_a_child(lambda: holder.lock.acquire(blocking=False))
        assert holder.lock.locked()


def test_a_holder_may_end_before_its_process() -> None:
    holder = weakref.ref(Holder())
    gc.collect()
    assert holder() is None
    assert is_so_in_a_child(lambda: True)


def test_one_thread_at_a_time_makes_something() -> None:
    lock = Making()
    made: list[int] = []

    def make() -> None:
        with lock, lock:  # an app needs a runtime
            if not made:
                threading.Event().wait(0.01)
                made.append(1)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(make) for _ in range(8)]:
            future.result(PATIENCE)
    assert made == [1]


def test_a_child_makes_what_a_thread_of_its_parent_was_making() -> None:
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with making:
            held.set()
            assert go.wait(PATIENCE)

    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(hold)
        assert held.wait(PATIENCE)
        pid = os.fork()
        if pid == 0:
            with making:
                os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        go.set()
        holding.result(PATIENCE)
