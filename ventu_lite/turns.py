"""Taking turns: a lock that goes to those who want it in the order in which they came."""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from .errors import VentuError
from .forks import reset_after_fork
from .pipeline import Mode


class Turns:
    """Lets one thread at a time do something, the one that has waited longest first.

    A plain lock goes to whoever is quickest, which mostly is the thread that has just let it go:
    a busy inference thread would never let a health check in. Usable in a ``with`` statement.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.reset_locks()
        reset_after_fork(self)

    def reset_locks(self) -> None:
        """Forget, in a child process, the threads that stayed with its parent."""
        self._guard = threading.Lock()
        self._owner: int | None = None
        self._began_at = 0.0
        self._waiting: deque[tuple[threading.Lock, int]] = deque()

    def acquire(self, timeout: float = -1) -> bool:
        """Wait for a turn, for ever or for ``timeout`` seconds; return whether it came.

        Raises:
            VentuError: It is this thread's turn already.
        """
        me = threading.get_ident()
        with self._guard:
            if self._owner is None:
                self._owner, self._began_at = me, self._clock()
                return True
            if self._owner == me:
                raise _asks_itself()
            if not timeout:
                return False
            mine = (threading.Lock(), me)
            mine[0].acquire()
            self._waiting.append(mine)
        try:
            if mine[0].acquire(timeout=min(timeout, threading.TIMEOUT_MAX)):
                return True
        except BaseException:  # Ctrl-C
            if not self._leave(mine):
                self.release()
            raise
        return not self._leave(mine)

    def release(self) -> None:
        """End the turn of this thread; the next one's begins."""
        with self._guard:
            self._owner = None
            if self._waiting:
                bell, self._owner = self._waiting.popleft()
                self._began_at = self._clock()
                bell.release()

    def seconds(self) -> float:
        """Return how long the turn of a thread has lasted, 0 if it is nobody's."""
        with self._guard:
            return 0.0 if self._owner is None else self._clock() - self._began_at

    def refuse_holder(self) -> None:
        """Let nobody whose turn it is ask for what waits for that turn.

        Raises:
            VentuError: It is this thread's turn.
        """
        if self._owner == threading.get_ident():
            raise _asks_itself()

    def turn_for(self, mode: Mode) -> AbstractContextManager[object]:
        """Return what to hold while a function is called: only batch functions take turns."""
        return self if mode == "batch" else nullcontext()

    def _leave(self, mine: tuple[threading.Lock, int]) -> bool:
        """Wait no longer; return False if the turn has come meanwhile."""
        with self._guard:
            if mine not in self._waiting:
                return False
            self._waiting.remove(mine)
            return True

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()


def _asks_itself() -> VentuError:
    return VentuError("a batch function must not ask its own service: it waits for it")
