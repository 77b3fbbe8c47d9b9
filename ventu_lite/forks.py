"""What a forked child must not inherit: locks that a thread of its parent holds, and sockets.

Every process begins with one thread, whatever its parent was doing with others. A child that keeps
a socket keeps the connection: the other end does not hear of it when the parent closes it, or dies.
Such children are those of ``multiprocessing``; what ``subprocess`` starts inherits nothing.
"""

import os
import threading
import weakref
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from asyncio import BaseTransport


class HasLocks(Protocol):
    """What holds locks or threads that a forked child must not inherit."""

    def reset_locks(self) -> None:
        """Make the locks anew."""


class HasSockets(Protocol):
    """What holds sockets that a forked child must not inherit."""

    def filenos(self) -> Iterable[int]:
        """Return the file descriptors of those that are open; -1 for others does no harm."""


_with_locks: "weakref.WeakSet[HasLocks]" = weakref.WeakSet()
_with_sockets: "weakref.WeakSet[HasSockets]" = weakref.WeakSet()


def reset_after_fork(holder: HasLocks) -> None:
    """Call ``holder.reset_locks()`` in every child process, as long as it lives."""
    _with_locks.add(holder)


def close_after_fork(holder: HasSockets) -> None:
    """Close the sockets of ``holder`` in every child process, as long as it lives."""
    _with_sockets.add(holder)


def fileno_of(transport: "BaseTransport | None") -> int:
    """Return the file descriptor of a connection, -1 once it is closed or about to be."""
    if transport is None or transport.is_closing():
        return -1  # its number may be that of another file by now
    fileno: int = transport.get_extra_info("socket").fileno()
    return fileno


def _after_fork() -> None:
    for holder in list(_with_locks):
        holder.reset_locks()
    for owner in list(_with_sockets):
        for fileno in list(owner.filenos()):
            with suppress(OSError):
                os.close(fileno)


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
