"""Do something slow once per process: in the background, for many waiting threads, after a fork."""

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final, Protocol

from .errors import NotReady

log = logging.getLogger(__name__)

# Long enough not to load a model from a slow disk in a loop, short enough to heal by itself.
RETRY_AFTER: Final = 10.0

_RUNNING: Final = "set-up and warm-up are still running"
_FAILED: Final = "set-up or warm-up failed; the log says why"


class Startup:
    """Something slow that must have succeeded once in this process before anything else.

    Safe for threads and for ``os.fork``: a child of a process that was in the middle of it
    starts anew, a child of a process that was done is done.

    Args:
        load: The slow thing; it raises if it fails.
        clock: Monotonic seconds.
        retry_after: Seconds from a failure to the next try.
    """

    def __init__(
        self,
        load: Callable[[], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        retry_after: float = RETRY_AFTER,
    ) -> None:
        self.is_ready = False
        self._load = load
        self._clock = clock
        self._retry_after = retry_after
        self._failed_at: float | None = None
        self.reset_locks()
        reset_after_fork(self)

    def reset_locks(self) -> None:
        """Forget, in a child process, the threads and locks that stayed with its parent."""
        self._changed = threading.Condition()
        self._is_running = False

    def begin(self) -> None:
        """Start in the background, unless it runs, is done, or failed a moment ago."""
        with self._changed:
            if self._is_running or self.is_ready or self._seconds_to_retry() > 0:
                return
            self._is_running = True
        threading.Thread(target=self._try, name="ventu_lite set-up", daemon=True).start()

    def run(self) -> None:
        """Do it in this thread, or wait for the thread that does it already.

        Raises:
            Exception: What it failed with.
        """
        with self._changed:
            while self._is_running:
                self._changed.wait()
            if self.is_ready:
                return
            self._is_running = True
        self._finish(self._load)

    def wait(self, timeout: float) -> None:
        """Start it if need be, and wait until it is done.

        Raises:
            NotReady: It failed, or is not done after ``timeout`` seconds.
        """
        if self.is_ready:
            return
        self.begin()
        with self._changed:
            self._changed.wait_for(lambda: not self._is_running, timeout)
            if why := self.why_not():
                raise NotReady(why, retry_after=self._seconds_to_retry() or 1.0)

    def why_not(self) -> str:
        """Return why it is not ready, "" if it is."""
        if self.is_ready:
            return ""
        return _FAILED if self._failed_at is not None and not self._is_running else _RUNNING

    def _seconds_to_retry(self) -> float:
        if self._failed_at is None:
            return 0.0
        return max(0.0, self._failed_at + self._retry_after - self._clock())

    def _try(self) -> None:
        try:
            self._finish(self._load)
        except BaseException:
            log.exception("set-up failed; it is tried again after %.0f s", self._retry_after)

    def _finish(self, load: Callable[[], None]) -> None:
        failed = True
        try:
            load()
            failed = False
        finally:
            with self._changed:
                self._failed_at = self._clock() if failed else None
                self.is_ready = not failed
                self._is_running = False
                self._changed.notify_all()


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


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
