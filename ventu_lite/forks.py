"""What a forked child must not inherit: locks that a thread of its parent holds, and the threads.

Every process begins with one thread, whatever its parent was doing with others.
"""

import os
import threading
import weakref
from typing import Final, Protocol


class HasLocks(Protocol):
    """What holds locks or threads that a forked child must not inherit."""

    def reset_locks(self) -> None:
        """Make the locks anew."""


_with_locks: "weakref.WeakSet[HasLocks]" = weakref.WeakSet()


def reset_after_fork(holder: HasLocks) -> None:
    """Call ``holder.reset_locks()`` in every child process, as long as it lives."""
    _with_locks.add(holder)


def _after_fork() -> None:
    for holder in list(_with_locks):
        holder.reset_locks()


os.register_at_fork(after_in_child=_after_fork)


class Making:
    """A lock for what must be made only once in a process, whichever thread asks for it first.

    ``with making: ...`` may be entered again by the thread that holds it.
    """

    def __init__(self) -> None:
        self.reset_locks()
        reset_after_fork(self)

    def reset_locks(self) -> None:
        """Forget, in a child process, the lock that a thread of its parent may hold."""
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()


#: For the runtimes, apps and blueprints of all services, and for the series that they share.
making: Final = Making()
