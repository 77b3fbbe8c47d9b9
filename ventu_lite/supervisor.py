"""Worker processes: start them, watch them, start them again."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

log = logging.getLogger(__name__)

# A worker that cannot even start will hardly do better a moment later; one that worked before is
# worth a try at once, however often it dies: its jobs wait.
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0
# From SIGTERM to SIGKILL: the batch in hand was answered before, what is left is teardown.
_PATIENCE: Final = 5.0


def next_delay(delay: float, *, was_ready: bool) -> float:
    """Return the seconds to wait before a restart.

    Args:
        delay: What was waited before the start of the process that died; -1 if it was the first.
        was_ready: Whether it got as far as asking for a batch.
    """
    if was_ready or delay < 0:
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
        on_end: Called with the process id of each worker that has ended.
        clock: Seconds.
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        *,
        devices: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        on_end: Callable[[int], None] = lambda pid: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._command = command
        self._count = count
        self._devices = devices
        self._environment = dict(os.environ) | dict(environment or {})
        self._on_end = on_end
        self._clock = clock
        self._stopping = asyncio.Event()
        self._slots: list[asyncio.Task[None]] = []
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._started_at: dict[int, float] = {}
        self._ready: set[int] = set()

    def start(self) -> None:
        """Start all workers."""
        self._slots = [asyncio.ensure_future(self._slot(n)) for n in range(self._count)]

    def worker_is_ready(self, pid: int) -> None:
        """Take note that a worker has asked for its first batch."""
        if pid in self._processes and pid not in self._ready:
            self._ready.add(pid)
            seconds = self._clock() - self._started_at[pid]
            log.info("worker process %d is ready after %.2f s", pid, seconds)

    def kill(self, pid: int) -> None:
        """End a worker at once, if it is one of ours."""
        process = self._processes.get(pid)
        if process is not None:
            _signal(process, signal.SIGKILL)

    def kill_all(self) -> None:
        """End all workers at once."""
        for process in self._processes.values():
            _signal(process, signal.SIGKILL)

    async def stop(self) -> None:
        """Let the workers end, and see to it that they do."""
        self._stopping.set()
        for process in self._processes.values():
            _signal(process, signal.SIGTERM)
        if not self._slots:
            return
        _, late = await asyncio.wait(self._slots, timeout=_PATIENCE)
        if late:
            log.warning("%d worker(s) did not end in time and are killed", len(late))
            self.kill_all()
            await asyncio.wait(late)

    async def _slot(self, number: int) -> None:
        """Keep one worker alive."""
        delay = -1.0
        while not self._stopping.is_set():
            was_ready = await self._run(number)
            if self._stopping.is_set():
                return
            delay = next_delay(delay, was_ready=was_ready)
            when = f"in {delay:g} s" if delay else "at once"
            log.warning("worker %d is started again %s", number + 1, when)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)

    async def _run(self, number: int) -> bool:
        """Run a worker to its end; return whether it was ever ready."""
        environment = dict(self._environment)
        if self._devices:
            environment["CUDA_VISIBLE_DEVICES"] = self._devices[number % len(self._devices)]
        # A session of its own: Ctrl-C in a terminal is for us, workers are told when it is time.
        process = await asyncio.create_subprocess_exec(
            *self._command, env=environment, start_new_session=True
        )
        pid = process.pid
        self._processes[pid], self._started_at[pid] = process, self._clock()
        if self._stopping.is_set():
            _signal(process, signal.SIGTERM)
        try:
            code = await process.wait()
        finally:
            del self._processes[pid]
            seconds = self._clock() - self._started_at.pop(pid)
            was_ready = pid in self._ready
            self._ready.discard(pid)
            self._on_end(pid)
        if not self._stopping.is_set():
            how = _how(code)
            log.warning("worker %d, process %d, %s after %.1f s", number + 1, pid, how, seconds)
        return was_ready


def _signal(process: asyncio.subprocess.Process, signum: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signum)


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
