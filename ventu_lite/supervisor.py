"""Worker processes: start them, watch them, start them again."""

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Final

from .child import Child
from .retries import FIRST_REMINDER

log = logging.getLogger(__name__)

# A worker that cannot even start will hardly do better a moment later; one that worked before is
# worth a try at once, however often it dies: its jobs wait.
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0
# Failed starts in a row: the first may be bad luck, so many are none.
_MOST_FAILURES: Final = 2
# From SIGTERM to SIGKILL: the batch in hand was answered before, what is left is teardown.
PATIENCE: Final = 5.0


def next_delay(delay: float | None, *, was_ready: bool) -> float:
    """Return the seconds to wait before a restart.

    Args:
        delay: What was waited before the start of the process that died; None if it was the first.
        was_ready: Whether it got as far as asking for a batch.
    """
    if was_ready or delay is None:
        return 0.0
    return min(max(_FIRST_DELAY, 2 * delay), _LONGEST_DELAY)


class Supervisor:
    """Keeps a number of worker processes alive until it is told to stop.

    Only for the thread of its event loop.

    Args:
        command: What a worker is.
        count: How many.
        devices: One for each worker as ``CUDA_VISIBLE_DEVICES``, round robin; none to leave it.
        environment: Further variables for the workers.
        directory: Where they run; ``None`` for where this process is.
        on_end: Called for each worker that has ended, each time in a new thread, with its process
            id and whether it was ready; the next one in its place is started after that. What it
            has not done when the process ends is not done.
        on_failure: Called when a worker has ended before it was ready, or could not be started.
        last_words: Returns why a worker with this process id has ended, "" if it did not say.
        patience: Seconds from SIGTERM to SIGKILL, and from that to the end of ``stop``.
        first_reminder: Seconds until it is told that a worker is not ready yet.
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        *,
        devices: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        directory: str | None = None,
        on_end: Callable[[int, bool], None] = lambda pid, was_ready: None,
        on_failure: Callable[[], None] = lambda: None,
        last_words: Callable[[int], str] = lambda pid: "",
        patience: float = PATIENCE,
        first_reminder: float = FIRST_REMINDER,
    ) -> None:
        self._command = command
        self._count = count
        self._devices = devices
        self._environment = dict(os.environ) | dict(environment or {})
        self._directory = directory
        self._on_end = on_end
        self._on_failure = on_failure
        self._last_words = last_words
        self._patience = patience
        self._first_reminder = first_reminder
        self._stopping = asyncio.Event()
        self._slots: list[asyncio.Task[None]] = []
        self._running: dict[int, Child] = {}
        self._failures: Counter[int] = Counter()  # of each worker, since it was last ready

    @property
    def is_failing(self) -> bool:
        """Whether every worker has failed at its last starts: at one of them anything may fail."""
        return all(self._failures[n] >= _MOST_FAILURES for n in range(1, self._count + 1))

    @property
    def loading(self) -> list[int]:
        """The numbers of the workers that have been started and are not ready yet."""
        return sorted(one.number for one in self._running.values() if not one.is_ready)

    def start(self) -> None:
        """Start all workers."""
        self._slots = [asyncio.ensure_future(self._slot(n)) for n in range(1, self._count + 1)]

    def worker_is_ready(self, pid: int | None) -> bool:
        """Take note that a worker has asked for its first batch; False if it is none of ours."""
        child = self._running.get(pid or 0)
        if child is None:
            return False
        child.note_ready()
        del self._failures[child.number]
        return True

    def kill(self, pid: int) -> None:
        """End a worker that holds a batch for too long, if it is one of ours.

        Another one will take its place.
        """
        if pid in self._running:
            self._running[pid].cut_off()

    def kill_all(self) -> None:
        """End all workers at once, and start no others."""
        self._stopping.set()
        self._signal_all(signal.SIGKILL)

    async def stop(self) -> None:
        """Let the workers end, and see to it that they do."""
        self._stopping.set()
        self._signal_all(signal.SIGTERM)
        if self._slots:
            await self._end_all()

    async def _end_all(self) -> None:
        _, late = await asyncio.wait(self._slots, timeout=self._patience)
        if not late:
            return
        log.warning("%d worker(s) did not end in time and are killed", len(late))
        self.kill_all()
        _, stuck = await asyncio.wait(late, timeout=self._patience)
        if stuck:  # in the kernel, or in what is to be cleared away
            log.error("%d worker(s) are not gone after SIGKILL; not waiting for them", len(stuck))

    def _signal_all(self, signum: signal.Signals) -> None:
        for child in self._running.values():
            child.signal(signum)

    async def _slot(self, number: int) -> None:
        """Keep one worker alive, whatever happens."""
        delay: float | None = None
        while not self._stopping.is_set():
            try:
                delay = await self._live(number, delay)
            except Exception:
                delay = next_delay(delay, was_ready=False)
                log.exception("worker %d is lost; it is started again %s", number, _when(delay))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)

    async def _live(self, number: int, delay: float | None) -> float:
        """Run a worker to its end; return the seconds to wait before the next one."""
        was_ready, end = await self._run(number)
        if self._stopping.is_set():
            return 0.0
        if not was_ready:
            self._failures[number] += 1
            self._on_failure()
        delay = next_delay(delay, was_ready=was_ready)
        log.warning("worker %d %s; it is started again %s", number, end, _when(delay))
        return delay

    async def _run(self, number: int) -> tuple[bool, str]:
        """Run a worker to its end; return whether it was ever ready, and how it ended."""
        try:
            child = await self._start(number)
        except OSError as exc:  # no memory, too many processes or files
            return False, f"cannot be started: {exc.strerror or exc}"
        self._running[child.pid] = child
        if self._stopping.is_set():
            child.signal(signal.SIGTERM)
        end = await child.wait(self._first_reminder)
        del self._running[child.pid]
        await child.end_helpers()
        why = await self._clear_away(child)
        return child.is_ready, f"{end}: {why.rstrip('.')}" if why else end

    async def _start(self, number: int) -> Child:
        environment = dict(self._environment)
        if self._devices:
            device = self._devices[(number - 1) % len(self._devices)]
            environment["CUDA_VISIBLE_DEVICES"] = device
        return await Child.start(self._command, number, environment, self._directory)

    async def _clear_away(self, child: Child) -> str:
        """Clear away what a worker has left; return why it has ended, "" if it did not say."""
        why = ""
        try:
            why = self._last_words(child.pid)
            await _in_thread(lambda: self._on_end(child.pid, child.is_ready))
        except Exception:  # another worker has to be started all the same
            log.exception("what worker %d has left cannot be cleared away", child.number)
        return why


async def _in_thread(call: Callable[[], None]) -> None:
    """Call in a thread that nobody else uses, and that does not hold up the end of the process.

    Those of the loop do both: they are busy while somebody reads the metrics there, and they are
    waited for at the end.
    """
    outcome: Future[None] = Future()
    outcome.set_running_or_notify_cancel()

    def run() -> None:
        try:
            call()
        except Exception as exc:
            outcome.set_exception(exc)
        else:
            outcome.set_result(None)

    threading.Thread(target=run, name="clears away", daemon=True).start()
    await asyncio.wrap_future(outcome)


def _when(delay: float) -> str:
    return f"in {delay:g} s" if delay else "at once"
