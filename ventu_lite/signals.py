"""Signals that end a process: what they mean while it starts, and while an event loop runs."""

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Final

log = logging.getLogger(__name__)


def stop_signals() -> list[signal.Signals]:
    """Return the signals that ask this process to end.

    Those are SIGTERM, Ctrl-C, and the end of its terminal, unless it was started with ``nohup``.
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    known = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows lacks one
    return [
        signum
        for signum in known
        if signum.name != "SIGHUP" or signal.getsignal(signum) is not signal.SIG_IGN
    ]


# Those of our handlers that stand now.
_handlers: Final[list[Any]] = []


@contextlib.contextmanager
def on_stop_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have a signal to stop call a function within the block; only in the main thread.

    The old handlers are back afterwards. A forked child does not have it, as what it would stop is
    its parent's.
    """
    old = {signum: signal.signal(signum, handler) for signum in stop_signals()}
    _handlers.append(handler)
    try:
        yield
    finally:
        _handlers.remove(handler)
        for signum, before in old.items():
            signal.signal(signum, signal.SIG_DFL if before is None else before)


class _Fork(threading.local):
    """A fork in this thread: its child ends as processes do, without our handlers.

    A signal to the child waits until they are gone.
    """

    mask: set[int] | None = None

    def begin(self) -> None:
        """Hold the signals back, in the parent."""
        if _handlers:
            self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals())

    def end(self) -> None:
        """Let them come again."""
        if self.mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)
            self.mask = None

    def end_in_child(self) -> None:
        """Take our handlers away, then let the signals come."""
        if self.mask is not None:
            signal.set_wakeup_fd(-1)  # else it would wake the event loop of its parent
            for signum in stop_signals():
                if signal.getsignal(signum) in _handlers:
                    signal.signal(signum, signal.SIG_DFL)
        self.end()


_fork: Final = _Fork()
os.register_at_fork(
    before=_fork.begin, after_in_parent=_fork.end, after_in_child=_fork.end_in_child
)


class Stopped(KeyboardInterrupt):  # the one exception that is never taken for a stage's fault
    """A signal came while there was nothing to finish.

    Args:
        signum: Which.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signal.Signals(signum)


@contextlib.contextmanager
def left_by_signals() -> Iterator[None]:
    """A signal to stop: leave the block at once. The same signal again kills.

    The default would do for a process like others, but the first one of a container is deaf to
    signals that it does not handle, and to load a model may last minutes.

    Raises:
        Stopped: There was one.
    """

    def leave(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_DFL)
        raise Stopped(signum)

    with on_stop_signals(leave):
        yield


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """A signal to stop: leave the block as with ``left_by_signals``, but without an error.

    For what is to run until it is told to stop.
    """
    try:
        with left_by_signals():
            yield
    except Stopped:
        log.info("stopped before it was ready")


class StopSignals:
    """Within the block the first signal asks for an orderly end, the second for one at once.

    A third one of its kind has its usual effect. To be entered in the main thread, in the event
    loop.
    """

    def __init__(self) -> None:
        self._first = asyncio.Event()
        self._hurry: list[Callable[[], None]] = []
        self._second = 0

    def __enter__(self) -> "StopSignals":
        self._loop = asyncio.get_running_loop()
        self._signals = stop_signals()
        for signum in self._signals:
            self._loop.add_signal_handler(signum, self._receive, signum)
        self._standing = [signal.getsignal(signum) for signum in self._signals]
        _handlers.extend(self._standing)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for signum in self._signals:
            self._loop.remove_signal_handler(signum)
        for handler in self._standing:
            _handlers.remove(handler)

    def on_second(self, hurry: Callable[[], None]) -> None:
        """Call something when the second signal comes: it ends what the first one waits for."""
        self._hurry.append(hurry)

    async def wait(self) -> None:
        """Wait for the first signal."""
        await self._first.wait()

    @property
    def exit_code(self) -> int:
        """0 after an orderly end, else what shells show for a process that was killed."""
        return 128 + self._second if self._second else 0

    def _receive(self, signum: int) -> None:
        if not self._first.is_set():
            self._first.set()
            return
        self._loop.remove_signal_handler(signum)
        self._second = signum
        for hurry in self._hurry:
            hurry()
