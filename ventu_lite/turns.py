"""Taking turns: a lock that goes to those who want it in the order in which they came."""

import threading
from collections import deque
from contextlib import AbstractContextManager, nullcontext

from .errors import VentuError
from .pipeline import Mode
from .startup import reset_after_fork


class Turns:
    """Lets one thread at a time do something, the one that has waited longest first.

    A plain lock goes to whoever is quickest, which mostly is the thread that has just let it go:
    a busy inference thread would never let a health check in. Usable in a ``with`` statement.
    """

    def __init__(self) -> None:
        self.reset_locks()
        reset_after_fork(self)

    def reset_locks(self) -> None:
        """Forget, in a child process, the threads that stayed with its parent."""
        self._guard = threading.Lock()
        self._owner: int | None = None
        self._waiting: deque[tuple[threading.Lock, int]] = deque()

    def acquire(self, timeout: float = -1) -> bool:
        """Wait for a turn, for ever or for ``timeout`` seconds; return whether it came.

        Raises:
            VentuError: It is this thread's turn already.
        """
        me = threading.get_ident()
        with self._guard:
            if self._owner is None:
                self._owner = me
                return True
            if self._owner == me:
                raise VentuError("a batch function must not ask its own service: it waits for it")
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
                bell.release()

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
