"""Do something slow once per process: in the background, for many waiting threads, after a fork."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Generic, TypeVar

from .errors import NotReady, VentuError
from .failures import Failures
from .forks import reset_after_fork
from .tracebacks import in_one_line, traceback_for

log = logging.getLogger(__name__)

T = TypeVar("T")

# Long enough not to load a model from a slow disk in a loop, short enough to heal by itself.
RETRY_AFTER: Final = 10.0

RUNNING: Final = "set-up and warm-up are still running"
_FAILED: Final = "set-up or warm-up failed; the log says why"


class Startup(Generic[T]):
    """Something slow that must have succeeded once in this process before anything else.

    Safe for threads and for ``os.fork``: a child of a process that was in the middle of it
    starts anew, a child of a process that was done is done.

    Args:
        load: The slow thing; it returns what it has made, and raises if it fails.
        clock: Monotonic seconds.
        retry_after: Seconds from a failure to the next try.
    """

    def __init__(
        self,
        load: Callable[[], T],
        *,
        clock: Callable[[], float] = time.monotonic,
        retry_after: float = RETRY_AFTER,
    ) -> None:
        self.is_ready = False
        self._load = load
        self._loaded: T  # once it is ready
        self._clock = clock
        self._retry_after = retry_after
        self._failed_at: float | None = None
        self._forbidden = ""
        self._failures = Failures()
        self.reset_locks()
        reset_after_fork(self)

    def reset_locks(self) -> None:
        """Forget, in a child process, the threads and locks that stayed with its parent."""
        self._changed = threading.Condition()
        self._is_running = False
        self._runner: int | None = None

    def forbid(self, why: str) -> None:
        """Never start it in this process, and tell everybody why; before it is started."""
        self._forbidden = why

    def begin(self) -> None:
        """Start in the background, unless it runs, is done, or failed a moment ago."""
        with self._changed:
            if self._forbidden or self._is_running or self.is_ready:
                return
            if self._seconds_to_retry() > 0:
                return
            self._is_running = True
        thread = threading.Thread(target=self._try, name="ventu_lite set-up", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # there are too many threads; those who wait must not wait for ever
            self._end(failed=True)
            log.exception("set-up cannot start; it is tried again after %.0f s", self._retry_after)

    def run(self) -> T:
        """Do it in this thread, or wait for the thread that does it already; return what it made.

        Raises:
            Exception: What it failed with.
            VentuError: This thread is in the middle of it, or it is forbidden here.
        """
        if self._forbidden:
            raise NotReady(self._forbidden)
        self._refuse_runner()
        with self._changed:
            while self._is_running:
                self._changed.wait()
            if self.is_ready:
                return self._loaded
            self._is_running = True
        return self._finish(self._load)

    def wait(self, timeout: float) -> T:
        """Start it if need be, wait until it is done, and return what it made.

        Raises:
            NotReady: It failed, is forbidden, or is not done after ``timeout`` seconds.
            VentuError: This thread is in the middle of it.
        """
        if self.is_ready:
            return self._loaded
        self._refuse_runner()
        self.begin()
        with self._changed:
            self._changed.wait_for(
                lambda: not self._is_running, min(timeout, threading.TIMEOUT_MAX)
            )
            if why := self.why_not():
                raise NotReady(why, retry_after=self.retry_after())
        return self._loaded

    def _refuse_runner(self) -> None:
        """Refuse the thread that would wait for itself."""
        if self._is_running and self._runner == threading.get_ident():
            raise VentuError(
                "set-up needs the service to be set up: neither setup() nor a stage in the warm-up"
                " may call ask, predict or health_check of its own service; examples warm it up by"
                " themselves"
            )

    def why_not(self) -> str:
        """Return why it is not ready, "" if it is."""
        if self.is_ready or self._forbidden:
            return self._forbidden
        return _FAILED if self._failed_at is not None and not self._is_running else RUNNING

    def retry_after(self) -> float:
        """Return the seconds after which asking again makes sense."""
        return self._seconds_to_retry() or 1.0

    def _seconds_to_retry(self) -> float:
        if self._failed_at is None:
            return 0.0
        return max(0.0, self._failed_at + self._retry_after - self._clock())

    def _try(self) -> None:
        with suppress(BaseException):  # it is in the log
            self._finish(self._load_and_log)

    def _load_and_log(self) -> T:
        try:
            return self._load()
        except BaseException as exc:  # logged before those who wait hear that the log says why
            self._log(exc)
            raise

    def _log(self, exc: BaseException) -> None:
        """Log the traceback the first time, and what it is each time."""
        when = f"it is tried again after {self._retry_after:.0f} s"
        again = "" if self._failures.is_news(exc) else " again"
        said, shown = in_one_line(exc), None
        if not again or log.isEnabledFor(logging.DEBUG):
            shown = traceback_for(exc, log)
        log.error("set-up failed%s: %s; %s", again, said, when, exc_info=shown)

    def _finish(self, load: Callable[[], T]) -> T:
        failed = True
        self._runner = threading.get_ident()
        try:
            self._loaded = load()
            failed = False
            return self._loaded
        finally:
            self._end(failed=failed)

    def _end(self, *, failed: bool) -> None:
        with self._changed:
            self._failed_at = self._clock() if failed else None
            self.is_ready = not failed
            self._is_running = False
            self._runner = None
            self._changed.notify_all()
