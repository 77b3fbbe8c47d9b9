"""One worker connection: the wire protocol between a socket and the dispatcher."""

import asyncio
import contextlib
import logging
import os
import re
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Final, cast

from ..addresses import Address
from ..errors import ProtocolError
from ..forks import fileno_of
from ..protocol import (
    Batch,
    BatchingConnection,
    Closed,
    Event,
    Hello,
    Ready,
    Results,
    State,
)
from ..retries import Reminders
from ..silence import notice_silence
from .dispatcher import Dispatcher

log = logging.getLogger(__name__)

# A worker that knows the secret answers in a millisecond; who does not may hold a connection.
PROOF_TIMEOUT: Final = 5.0

# A worker asks as soon as it is connected. This is for one that loads its model in between.
READY_TIMEOUT: Final = 30.0

# Connections that have not asked for a batch; beyond that the oldest are closed. Each is an open
# file, of which clients need some. More workers than that do not start in the same moment.
MAX_STRANGERS: Final = 256

# <sys/un.h> of macOS; Python has no names for them.
_SOL_LOCAL: Final = 0
_LOCAL_PEERPID: Final = 2

# Where a worker stands that wants no further batch, in whatever way it has said so.
_LEAVING: Final = (State.LEFT, State.BUSY_LEAVING)


def log_change(link: "WorkerLink") -> None:
    """Say that a worker has come or gone."""
    log.info("%r %s", link, "is ready" if link.is_ready else "has left")


class Links:
    """All workers that are connected at one address.

    Args:
        dispatcher: Whom to tell.
        address: Where they connect.
        max_message: Bytes of the largest message to read or write.
        secret: What a worker must prove to know; ``None`` for nothing.
        on_change: Called with a link when its worker becomes ready for the first time, and when
            it is gone.
        kill: Ends a process of ours that holds a batch for too long.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        address: Address,
        max_message: int,
        secret: str | None = None,
        on_change: Callable[["WorkerLink"], None] = log_change,
        kill: Callable[[int], None] = lambda pid: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.dispatcher = dispatcher
        self.address = address
        self.max_message = max_message
        self.secret = secret
        self.on_change = on_change
        self.kill = kill
        self.open: set[WorkerLink] = set()
        self._strangers: dict[WorkerLink, None] = {}
        self._is_crowded = False
        self.reminders = Reminders(clock)

    def __call__(self) -> "WorkerLink":
        """Return the protocol of a new connection."""
        return WorkerLink(self)

    @property
    def ready(self) -> int:
        """How many workers are connected and have asked for a batch."""
        return sum(link.is_ready for link in self.open)

    def add(self, link: "WorkerLink") -> None:
        """Take up a new connection, perhaps in place of an older one that has asked for nothing."""
        self.open.add(link)
        self._strangers[link] = None
        if len(self._strangers) > MAX_STRANGERS:
            self._warn_of_crowd()
            next(iter(self._strangers)).close()

    def recognise(self, link: "WorkerLink") -> None:
        """Take note that a connection is that of a worker."""
        self._strangers.pop(link, None)
        self._is_crowded = self._is_crowded and bool(self._strangers)

    def discard(self, link: "WorkerLink") -> None:
        """Forget a connection."""
        self.open.discard(link)
        self.recognise(link)

    def warn(self, link: "WorkerLink", complaint: str) -> None:
        """Say why a connection is closed; of strangers, who try again and again, only seldom.

        A complaint with another number, such as the bytes of a frame, is none of its own.
        """
        is_due = link.is_ready or self.reminders.is_due(re.sub(r"\d+", "0", complaint))
        log.log(logging.WARNING if is_due else logging.DEBUG, "%r %s", link, complaint)

    def _warn_of_crowd(self) -> None:
        """Say once that there are too many, and no more until they are gone."""
        if not self._is_crowded:
            log.warning(
                "more than %d connections at %s have not asked for a batch; the oldest are closed",
                MAX_STRANGERS,
                self.address,
            )
        self._is_crowded = True

    def close(self) -> None:
        """Close every connection; their workers are told nothing but that."""
        for link in list(self.open):
            link.close()


class WorkerLink(asyncio.Protocol):
    """One worker.

    Attributes:
        address: How logs call it.
        pid: Its process, where the system tells, else ``None``.
        is_ready: Whether it has asked for a batch and not left since.
    """

    def __init__(self, links: Links) -> None:
        self.address: str = links.address.protocol
        self.pid: int | None = None
        self.is_ready = False
        self._links = links
        self._dispatcher = links.dispatcher
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        challenge = os.urandom(32) if links.secret else None
        self._connection = BatchingConnection(
            max_message=links.max_message, secret=links.secret, challenge=challenge
        )

    def __repr__(self) -> str:
        return f"<worker at {self.address}>"

    # ------------------------------------------------------------------ from asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Learn who it is."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's looks like one
        # uvloop 0.21 would keep a batch until the end of the turn, behind the answers of the last.
        self._transport.set_write_buffer_limits(high=0)
        sock = transport.get_extra_info("socket")
        peer = transport.get_extra_info("peername")
        if self._links.address.protocol == "unix":
            self.pid = _peer_pid(sock)
            self.address = f"unix, process {self.pid}" if self.pid else "unix"
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            notice_silence(sock)
            self.address = f"tcp, {peer[0]}:{peer[1]}" if peer else "tcp"
        patience = PROOF_TIMEOUT if self._links.secret else READY_TIMEOUT
        self._timer = asyncio.get_running_loop().call_later(patience, self._is_late, patience)
        self._links.add(self)

    def data_received(self, data: bytes) -> None:
        """Act upon every message that is complete now."""
        try:
            events = self._connection.receive_data(data)
            if self._connection.state in _LEAVING:  # before its results make it idle
                self._dispatcher.retire(self)
            for event in events:
                self._handle(event)
        except ProtocolError as exc:
            self._fault(str(exc))

    def eof_received(self) -> None:
        """Close; a worker that sends no more cannot answer."""
        if self._connection.state is State.CHALLENGED:
            self._links.warn(self, "left when asked for a proof; is VENTU_WORKER_SECRET set there?")
            self.close()
        else:
            self.data_received(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        """Give its jobs to others."""
        if self._transport is not None:
            self.close()

    def fileno(self) -> int:
        """Return the file descriptor of the connection, -1 once it is closed or about to be."""
        return fileno_of(self._transport)

    # -------------------------------------------------------------- for the dispatcher

    def send(self, payloads: dict[str, bytes]) -> None:
        """Write a batch in one call, as old workers want it."""
        assert self._transport is not None
        self._transport.write(self._connection.send_batch(Batch(payloads)))

    def cut_off(self, reason: str) -> None:
        """Close the connection and end the process if it is ours; the caller requeues its jobs."""
        if self._transport is None:
            return
        log.warning("%r is cut off: %s", self, reason)
        self._forget()
        if self.pid is not None:
            self._links.kill(self.pid)

    def close(self) -> None:
        """Close the connection; its jobs are tried again."""
        if self._transport is not None:
            self._forget()
            self._dispatcher.lost(self)

    # ----------------------------------------------------------------------- inside

    def _handle(self, event: Event) -> None:
        if self._transport is None:  # cut off by an event before
            return
        if isinstance(event, Results):
            self._dispatcher.results(self, event)
        elif isinstance(event, Ready):
            self._become_ready()
        elif isinstance(event, Hello):
            self._transport.write(self._connection.send_challenge())
        if isinstance(event, Closed) or self._connection.state is State.LEFT:
            self.close()

    def _become_ready(self) -> None:
        self._forget_timer()
        self._links.recognise(self)
        self._links.reminders.forget()  # perhaps somebody has mended it
        self.is_ready = True
        self._dispatcher.ready(self)
        self._links.on_change(self)

    def _is_late(self, patience: float) -> None:
        if self._links.secret:
            self._fault(f"no proof of the worker secret within {patience:g} s")
        else:
            self._fault(f"it did not ask for a batch within {patience:g} s")

    def _fault(self, complaint: str) -> None:
        if self._transport is None:
            return
        self._links.warn(self, f"broke the protocol, its connection is closed: {complaint}")
        self.close()

    def _forget_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _forget(self) -> None:
        """Close the transport, once."""
        transport, self._transport = self._transport, None
        self._forget_timer()
        self._links.discard(self)
        was_ready, self.is_ready = self.is_ready, False
        if transport is not None:
            transport.abort()
        if was_ready:
            self._links.on_change(self)


def _peer_pid(sock: socket.socket) -> int | None:
    """Return the process at the other end of a Unix socket, where the system tells."""
    if sys.platform == "darwin":
        with contextlib.suppress(OSError):  # it has left already
            return sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID) or None
        return None
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    size = struct.calcsize("3i")
    pid: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]
    return pid or None  # 0 is somebody in another namespace
