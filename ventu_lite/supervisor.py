"""Worker processes: start them, watch them, start them again."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

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


@dataclass
class _Running:
    """A worker process that has not ended yet."""

    process: asyncio.subprocess.Process
    number: int
    started_at: float
    is_ready: bool = False

    def signal(self, signum: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signum)


class Supervisor:
    """Keeps a number of worker processes alive until it is told to stop.

    Only for the thread of its event loop.

    Args:
        command: What a worker is.
        count: How many.
        devices: One for each worker as ``CUDA_VISIBLE_DEVICES``, round robin; none to leave it.
        environment: Further variables for the workers.
        on_end: Called, in a thread, for each worker that has ended, with its process id and whether
            it was ready; another one is started after that.
        on_failure: Called when a worker has ended before it was ready, or could not be started.
        last_words: Returns why a worker with this process id has ended, "" if it did not say.
        clock: Seconds.
        patience: Seconds from SIGTERM to SIGKILL.
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        *,
        devices: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        on_end: Callable[[int, bool], None] = lambda pid, was_ready: None,
        on_failure: Callable[[], None] = lambda: None,
        last_words: Callable[[int], str] = lambda pid: "",
        clock: Callable[[], float] = time.monotonic,
        patience: float = PATIENCE,
    ) -> None:
        self._command = command
        self._count = count
        self._devices = devices
        self._environment = dict(os.environ) | dict(environment or {})
        self._on_end = on_end
        self._on_failure = on_failure
        self._last_words = last_words
        self._clock = clock
        self._patience = patience
        self._stopping = asyncio.Event()
        self._slots: list[asyncio.Task[None]] = []
        self._running: dict[int, _Running] = {}
        self._failures: Counter[int] = Counter()  # of each worker, since it was last ready

    @property
    def is_failing(self) -> bool:
        """Whether every worker has failed at its last starts: at one of them anything may fail."""
        return all(self._failures[n] >= _MOST_FAILURES for n in range(1, self._count + 1))

    def start(self) -> None:
        """Start all workers."""
        self._slots = [asyncio.ensure_future(self._slot(n)) for n in range(1, self._count + 1)]

    def worker_is_ready(self, pid: int | None) -> bool:
        """Take note that a worker has asked for its first batch; False if it is none of ours."""
        running = self._running.get(pid or 0)
        if running is None:
            return False
        running.is_ready = True
        del self._failures[running.number]
        seconds = self._clock() - running.started_at
        log.info("worker %d, process %d, is ready after %.2f s", running.number, pid, seconds)
        return True

    def kill(self, pid: int) -> None:
        """End a worker at once, if it is one of ours; another one will take its place."""
        if pid in self._running:
            self._running[pid].signal(signal.SIGKILL)

    def kill_all(self) -> None:
        """End all workers at once, and start no others."""
        self._stopping.set()
        self._signal_all(signal.SIGKILL)

    async def stop(self) -> None:
        """Let the workers end, and see to it that they do."""
        self._stopping.set()
        self._signal_all(signal.SIGTERM)
        if not self._slots:
            return
        _, late = await asyncio.wait(self._slots, timeout=self._patience)
        if late:
            log.warning("%d worker(s) did not end in time and are killed", len(late))
            self.kill_all()
            await asyncio.wait(late)

    def _signal_all(self, signum: signal.Signals) -> None:
        for running in self._running.values():
            running.signal(signum)

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
            running = await self._start(number)
        except OSError as exc:  # no memory, too many processes or files
            return False, f"cannot be started: {exc.strerror or exc}"
        pid = running.process.pid
        self._running[pid] = running
        if self._stopping.is_set():
            running.signal(signal.SIGTERM)
        code = await running.process.wait()
        del self._running[pid]
        seconds = self._clock() - running.started_at
        before = "" if running.is_ready else " before it was ready"
        how = f"(process {pid}) {_how(code)} after {seconds:.1f} s{before}"
        why = await self._clear_away(running)
        return running.is_ready, f"{how}: {why.rstrip('.')}" if why else how

    async def _start(self, number: int) -> _Running:
        environment = dict(self._environment)
        if self._devices:
            device = self._devices[(number - 1) % len(self._devices)]
            environment["CUDA_VISIBLE_DEVICES"] = device
        started_at = self._clock()
        # A session of its own: Ctrl-C in a terminal is for us, workers are told when it is time.
        process = await asyncio.create_subprocess_exec(
            *self._command, env=environment, start_new_session=True
        )
        return _Running(process, number, started_at)

    async def _clear_away(self, running: _Running) -> str:
        """Clear away what a worker has left; return why it has ended, "" if it did not say."""
        pid, why = running.process.pid, ""
        try:
            why = self._last_words(pid)
            await asyncio.to_thread(self._on_end, pid, running.is_ready)
        except Exception:  # another worker has to be started all the same
            log.exception("what worker %d has left cannot be cleared away", running.number)
        return why


def _when(delay: float) -> str:
    return f"in {delay:g} s" if delay else "at once"


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
