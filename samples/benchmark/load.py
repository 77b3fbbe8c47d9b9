"""Carry a plan out in processes of their own, started together, and add up what they measured."""

import asyncio
import contextlib
import gc
import importlib
import importlib.util
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from types import FrameType

from benchmark.client import Load
from benchmark.http import Address, Answer, AnswerReader, Unreadable
from benchmark.plan import Plan, Progress, Tally

# From the moment that every process is there until the first request.
_HEAD_START = 0.05


def reachable(address: Address, timeout: float = 5.0) -> Address:
    """Return the address with the number that answers, so that no name is looked up under load.

    Raises:
        OSError: Nobody listens there.
    """
    with socket.create_connection((address.host, address.port), timeout) as sock:
        return replace(address, host=sock.getpeername()[0])


def ask(plan: Plan) -> Answer:
    """Send the request of a plan once, over a connection of its own.

    Raises:
        OSError: There is no connection, or no answer within ``plan.timeout``.
        Unreadable: What came is no answer.
    """
    address, reader = plan.address, AnswerReader()
    deadline = time.monotonic() + plan.timeout
    with socket.create_connection((address.host, address.port), plan.timeout) as sock:
        sock.sendall(plan.request)
        while True:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            data = sock.recv(65536)
            answer = reader.feed(data) if data else reader.feed_eof()
            if answer is not None:
                return answer
            if not data:
                raise Unreadable("the connection was closed")


def run(plan: Plan, tell: Callable[[float, int, int], None] | None = None) -> Tally:
    """Carry the plan out in processes of their own; the first Ctrl-C ends it early.

    Args:
        plan: What to do; ``address.host`` should be a number.
        tell: Called a few times a second with the seconds since the start, the good answers and
            the failed requests so far.

    Raises:
        RuntimeError: A process of this tool has died.
    """
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        pipes: list[Pipe] = []
        for index in range(plan.processes):
            pipe, theirs = context.Pipe()
            process = context.Process(target=_child, args=(theirs, plan, index), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(pipe.close)  # the first to be called: a process ends with its pipe
            pipes.append(pipe)
        try:
            return _gather(pipes, tell)
        except EOFError as exc:
            raise RuntimeError("a process of the load generator has died") from exc


def _gather(pipes: list[Pipe], tell: Callable[[float, int, int], None] | None) -> Tally:
    for pipe in pipes:
        pipe.recv()  # it has imported what it needs
    start = time.monotonic() + _HEAD_START
    for pipe in pipes:
        pipe.send(start)
    total = Tally()
    progress = {pipe: Progress(0, 0) for pipe in pipes}
    left = list(pipes)

    def end_early() -> None:
        total.was_stopped = True
        _end_early(pipes)

    with _first_ctrl_c(end_early):
        while left:
            for ready in wait(left):
                assert isinstance(ready, Pipe)
                message = ready.recv()
                if isinstance(message, Tally):
                    total.add(message)
                    left.remove(ready)
                else:
                    progress[ready] = message
            if tell is not None:
                good = sum(each.good for each in progress.values())
                failed = sum(each.failed for each in progress.values())
                tell(time.monotonic() - start, good, failed)
    return total


@contextlib.contextmanager
def _first_ctrl_c(call: Callable[[], None]) -> Iterator[None]:
    """Let the first Ctrl-C of the block do something else, and the second what it always does."""

    def handle(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        call()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end_early(pipes: list[Pipe]) -> None:
    for pipe in pipes:
        with contextlib.suppress(OSError):  # it has ended
            pipe.send(None)


def _child(pipe: Pipe, plan: Plan, index: int) -> None:
    """Be one process of the tool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells when to stop
    sys.setswitchinterval(0.0005)  # the pacer must not wait 5 ms for its turn
    pipe.send(None)
    try:
        start = pipe.recv()
    except EOFError:
        return  # the parent has gone
    gc.disable()  # its pauses would be in the latencies
    share = plan.share(index)
    with contextlib.suppress(ConnectionError):  # the parent has gone
        tally = _run_loop(share, index, start, pipe)
        os.set_blocking(pipe.fileno(), True)  # the event loop has changed that
        pipe.send(tally)


def _run_loop(plan: Plan, index: int, start: float, pipe: Pipe) -> Tally:
    if importlib.util.find_spec("uvloop") is None:
        loop = asyncio.new_event_loop()
    else:
        loop = importlib.import_module("uvloop").new_event_loop()
    try:
        return loop.run_until_complete(Load(plan, index, start, pipe).run())
    finally:
        loop.close()
