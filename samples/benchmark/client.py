"""One process of the load generator: its connections, when they send, what comes back.

How bytes become answers is decided in ``benchmark.http``, what is to be done in ``benchmark.plan``.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, cast

from benchmark.http import Answer, AnswerReader, Unreadable, batch_size, queue_seconds
from benchmark.plan import Plan, Progress, Tally, arrival_times

# How often it looks for answers that are overdue, and tells how far it is.
_TICK = 0.05
_PROGRESS = 0.25
# After a connection that failed; without it a closed loop would only make connections.
_PAUSE = 0.05


class _Pacer(threading.Thread):
    """Hands over requests when they are due: event loops only know whole milliseconds."""

    def __init__(self, times: Iterator[float], due: Callable[[list[float] | None], object]) -> None:
        super().__init__(name="pacer", daemon=True)
        self.stopping = threading.Event()
        self._times = times
        self._due = due

    def run(self) -> None:
        """Call ``due`` with all times that have come, again and again; with None at the end."""
        ready: list[float] = []
        for at in self._times:
            if at > time.monotonic():
                if ready:
                    self._due(ready)
                    ready = []
                if self.stopping.wait(max(0.0, at - time.monotonic())):
                    break
            ready.append(at)
        self._due(ready)
        self._due(None)


class _Connection(asyncio.Protocol):
    """One connection; at most one request is out on it."""

    transport: asyncio.Transport

    def __init__(self, load: "Load") -> None:
        self.due_at: float | None = None
        self._load = load
        self._reader = AnswerReader()

    def send(self, due_at: float) -> None:
        self.due_at = due_at
        self.transport.write(self._load.plan.request)

    def fail(self, kind: str) -> None:
        """Give the request up, and the connection with it."""
        self.transport.abort()
        if self.due_at is not None:
            due_at, self.due_at = self.due_at, None
            self._load.failed(due_at, kind)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods, but not the base class.
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.due_at is None:
            self.transport.abort()  # what it says after an answer is nobody's answer
            return
        try:
            answer = self._reader.feed(data)
        except Unreadable as exc:
            self.fail(f"unreadable answer: {exc}")
            return
        if answer is not None:
            self._finish(answer)

    def eof_received(self) -> bool:
        if self.due_at is None:
            return False
        try:
            answer = self._reader.feed_eof()
        except Unreadable:
            self.fail("closed within an answer")
            return False
        if answer is not None:
            self._finish(answer)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self.due_at is not None:
            where = "before" if self._reader.is_empty else "within"
            self.fail(f"closed {where} an answer")
        self._load.lost(self)

    def _finish(self, answer: Answer) -> None:
        assert self.due_at is not None
        due_at, self.due_at = self.due_at, None
        self._load.answered(due_at, answer)
        if answer.closes:
            self.transport.abort()
        else:
            self._load.free(self)


class Load:
    """All connections of one process, and what they have measured."""

    def __init__(self, plan: Plan, index: int, start: float, pipe: Pipe) -> None:
        self.plan = plan
        self.tally = Tally()
        self._index = index
        self._pipe = pipe
        self._start = start
        self._from = start + plan.warm_up
        self._until = self._from + plan.seconds
        self._good = self._bad = 0
        self._connections: set[_Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._idle: list[_Connection] = []
        self._waiting: deque[float] = deque()
        self._pacer: _Pacer | None = None
        self._is_pacing = plan.rate is not None
        self._usage = (0.0, 0.0)
        self._broken: BaseException | None = None

    async def run(self) -> Tally:
        """Send, wait for what is out, return the tally.

        Raises:
            RuntimeError: This tool has a defect, so that its numbers cannot be trusted.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._break)
        loop.add_reader(self._pipe.fileno(), self._stop_early)
        delay = self._from - time.monotonic()
        loop.call_later(max(0.0, delay), self._begin)
        while (delay := self._start - time.monotonic()) > 0:
            await asyncio.sleep(delay)  # uvloop may wake up to a millisecond early
        if self.plan.rate is None:
            for _ in range(self.plan.clients):
                self._connect()
        else:
            times = arrival_times(self.plan, self._start, self._index)
            self._pacer = _Pacer(times, lambda ready: loop.call_soon_threadsafe(self._due, ready))
            self._pacer.start()
        await self._watch()
        if self._broken is not None:
            raise RuntimeError("the load generator is broken") from self._broken
        loop.remove_reader(self._pipe.fileno())
        return self.tally

    def free(self, connection: _Connection) -> None:
        """Use a connection that has no request out."""
        now = time.monotonic()
        if self.plan.rate is None:
            if now < self._until:
                connection.send(now)
        elif self._waiting:
            connection.send(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def lost(self, connection: _Connection) -> None:
        """Replace a connection that has ended."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._replace()

    def answered(self, due_at: float, answer: Answer) -> None:
        """Count an answer."""
        if not 200 <= answer.status < 300:
            self.failed(due_at, f"status {answer.status}")
            return
        if self.plan.expected is not None and answer.body != self.plan.expected:
            self.failed(due_at, "another answer than expected")
            return
        now = time.monotonic()
        self._good += 1
        self.tally.in_window += self._from <= now < self._until
        if not self._from <= due_at < self._until:
            return
        self.tally.latencies.append(now - due_at)
        if answer.timing:
            self._add_timing(answer.timing)

    def failed(self, due_at: float, kind: str) -> None:
        """Count a request that has no good answer."""
        self._bad += 1
        if self._from <= due_at < self._until:
            self.tally.errors[kind] += 1

    def _add_timing(self, timing: bytes) -> None:
        if (seconds := queue_seconds(timing)) is not None:
            self.tally.queued.append(seconds)
        if (size := batch_size(timing)) is not None:
            self.tally.batches[size] += 1

    def _due(self, times: list[float] | None) -> None:
        if times is None:
            self._is_pacing = False
            return
        now = time.monotonic()
        for due_at in times:
            if self._from <= due_at < self._until:
                self.tally.late.append(now - due_at)
            if self._idle:
                self._idle.pop().send(due_at)
            else:
                self._waiting.append(due_at)
                self._replace()

    def _replace(self) -> None:
        """Make another connection, if there is use for one."""
        room = self.plan.clients - len(self._connections) - len(self._connecting)
        if self.plan.rate is None:
            is_wanted = time.monotonic() < self._until
        else:
            is_wanted = len(self._waiting) > len(self._connecting)
        if room > 0 and is_wanted:
            self._connect()

    def _connect(self) -> None:
        task = asyncio.ensure_future(self._make_connection(time.monotonic()))
        self._connecting.add(task)
        task.add_done_callback(self._connected)

    def _connected(self, task: "asyncio.Task[None]") -> None:
        self._connecting.discard(task)
        if not task.cancelled():
            task.result()  # what it does not expect is a defect, for _break
            self._replace()

    def _break(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._broken = self._broken or context.get("exception") or RuntimeError(context["message"])

    async def _make_connection(self, due_at: float) -> None:
        """Connect and send, or count one failed request."""
        loop = asyncio.get_running_loop()
        address = self.plan.address
        try:
            _, connection = await asyncio.wait_for(
                loop.create_connection(lambda: _Connection(self), address.host, address.port),
                self.plan.timeout,
            )
        except OSError as exc:
            self._refused(due_at, f"no connection: {exc.strerror or 'timeout'}")
            await asyncio.sleep(_PAUSE)
            return
        except asyncio.TimeoutError:  # not an OSError before Python 3.11
            self._refused(due_at, "no connection: timeout")
            return
        self._connections.add(connection)
        if connection.transport.is_closing():
            self._refused(due_at, "closed before an answer")
            self.lost(connection)
        elif self.plan.rate is None and time.monotonic() < self._until:
            connection.send(due_at)  # making the connection is part of what the client waits for
        else:
            self.free(connection)

    def _refused(self, due_at: float, kind: str) -> None:
        if self.plan.rate is None:
            self.failed(due_at, kind)
        elif self._waiting:
            self.failed(self._waiting.popleft(), kind)

    async def _watch(self) -> None:
        """Return when the plan is over and nothing is out; tell the parent now and then."""
        told_at = 0.0
        while self._broken is None and ((now := time.monotonic()) < self._until or self._is_busy()):
            if now - told_at >= _PROGRESS:
                told_at = now
                self._pipe.send(Progress(self._good, self._bad))
            if now >= self._until:
                self._end()
            self._give_up(now - self.plan.timeout)
            await asyncio.sleep(min(_TICK, max(0.0, self._until - now)) or _TICK / 10)
        self._end()
        for task in self._connecting:
            task.cancel()
        for connection in self._connections:
            connection.transport.abort()

    def _is_busy(self) -> bool:
        out = any(connection.due_at is not None for connection in self._connections)
        return out or bool(self._waiting) or self._is_pacing

    def _give_up(self, before: float) -> None:
        while self._waiting and self._waiting[0] < before:
            self.failed(self._waiting.popleft(), "timeout")
        for connection in list(self._connections):
            if connection.due_at is not None and connection.due_at < before:
                connection.fail("timeout")

    def _begin(self) -> None:
        self._usage = _usage()

    def _end(self) -> None:
        """Note what the window has cost, once."""
        if not self.tally.busy:
            busy, starved = (now - then for now, then in zip(_usage(), self._usage, strict=True))
            self.tally.seconds = self._until - self._from
            length = max(time.monotonic() - self._from, 1e-9)
            self.tally.busy.append(busy / length)
            self.tally.starved.append(starved / length)

    def _stop_early(self) -> None:
        """Do what the parent wants, or what its end means: measure no longer."""
        asyncio.get_running_loop().remove_reader(self._pipe.fileno())
        self._until = max(self._from, min(self._until, time.monotonic()))
        if self._pacer is not None:
            self._pacer.stopping.set()


def _usage() -> tuple[float, float]:
    """Return the seconds this process has used a core, and those it has waited for one."""
    try:
        waited = int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        waited = 0.0  # not Linux
    return time.process_time(), waited
