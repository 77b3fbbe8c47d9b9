"""Signals that end a process: what they mean while it starts, and while an event loop runs."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType

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


class Stopped(KeyboardInterrupt):  # the one exception that is never taken for a stage's fault
    """A signal came while there was nothing to finish."""


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """A signal to stop: leave the block at once, without an error. The same signal again kills.

    The default would do for a process like others, but the first one of a container is deaf to
    signals that it does not handle, and to load a model may last minutes.
    """

    def leave(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_DFL)
        raise Stopped

    old = {signum: signal.signal(signum, leave) for signum in stop_signals()}
    try:
        yield
    except Stopped:
        log.info("stopped before it was ready")
    finally:
        for signum, handler in old.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)


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
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for signum in self._signals:
            self._loop.remove_signal_handler(signum)

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
