"""One batching service: its listeners, its queue, its end."""

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ..addresses import Address, TCPAddress
from ..config import Config
from ..forks import close_after_fork
from ..http.request import Request
from ..http.server import HttpServer, Limits
from .choose import make_policy
from .dispatcher import Dispatcher, Link
from .front import Front, Status
from .links import Links, WorkerLink, log_change
from .listeners import BACKLOG, UnixDoor, clients_that_fit, listen_tcp
from .queue import Queue
from .tally import FrontMetrics

log = logging.getLogger(__name__)

# After the last deadline has passed, for clients to read their answers.
_DRAIN_GRACE: Final = 5.0


@dataclass(frozen=True)
class ServiceOptions:
    """What is not a setting.

    Attributes:
        name: The service, for the metrics.
        workers_at: Where workers connect.
        retry: Whether the jobs of a worker that died are tried again.
        prefixes: Where the routes of the service are.
        fallback: Answers all other routes.
        on_change: Told when a worker becomes ready or is gone.
        kill: Ends a worker process that holds a batch for too long.
        why_no_worker: Returns why no worker is ready, "" if all that is known is that none is.
        limits: How long clients may take; how much they may is in the settings.
    """

    name: str
    workers_at: Sequence[Address]
    retry: bool = True
    prefixes: Sequence[str] = ("",)
    fallback: Callable[[Request], None] | None = None
    on_change: Callable[[WorkerLink], None] = log_change
    kill: Callable[[int], None] = lambda pid: None
    why_no_worker: Callable[[], str] = lambda: ""
    limits: Limits = Limits()


class BatchingService:
    """Takes HTTP, forms batches, hands them to workers. Only for the thread of its loop.

    Args:
        config: The settings.
        options: The rest.
        make_status: Returns what health, readiness and metrics say.

    Attributes:
        links: The workers, a group for each place where they connect.
        dispatcher: The queue and who waits for it.
        metrics: What was counted.
        url: Where clients connect, once it listens.
        port: The port of that.
    """

    def __init__(
        self,
        config: Config,
        options: ServiceOptions,
        make_status: Callable[["BatchingService"], Status],
    ) -> None:
        self.config = config
        self.options = options
        self.url, self.port = "", 0
        queue = _make_queue(config, options)
        self.metrics = FrontMetrics(
            options.name, waiting=lambda: queue.waiting, workers=self._workers_by_protocol
        )
        self.dispatcher = Dispatcher(queue, self.metrics, asyncio.get_running_loop())
        self.links = [self._make_links(address) for address in options.workers_at]
        front = self._make_front(make_status(self))
        limits = _limits(config, options)
        self._http = HttpServer(front.handle, limits=limits, check=front.check, refuse=front.refuse)
        self._http_servers: list[asyncio.Server] = []
        self._worker_servers: list[asyncio.Server] = []
        self._unix_doors: list[UnixDoor] = []
        close_after_fork(self)

    def filenos(self) -> Iterator[int]:
        """Yield the file descriptors of all sockets: children forked by a route must not have them.

        If this process is killed, its clients would wait for ever, and its port would stay taken.
        """
        for server in [*self._http_servers, *self._worker_servers]:
            for door in server.sockets:
                yield door.fileno()
        for connection in self._http.connections:
            yield connection.fileno()
        for links in self.links:
            for link in links.open:
                yield link.fileno()

    @property
    def ready_workers(self) -> int:
        """How many workers are connected and have asked for a batch."""
        return sum(links.ready for links in self.links)

    async def start(self) -> None:
        """Listen, for workers first.

        Raises:
            CannotListen: An address is taken; nothing listens.
        """
        config = self.config
        with contextlib.ExitStack() as stack:
            http_doors = listen_tcp(config.host, config.port)
            for door in http_doors:
                stack.callback(door.close)
            worker_doors = [self._open_door(links, stack) for links in self.links]
            stack.pop_all()
        for links, doors in zip(self.links, worker_doors, strict=True):
            for door in doors:
                self._worker_servers.append(await _serve(links, door))
        for door in http_doors:
            self._http_servers.append(await _serve(self._http, door))
        self.port = http_doors[0].getsockname()[1]
        self.url = f"http://{TCPAddress(config.host, self.port).authority}"

    async def stop(self) -> None:
        """Take no new connections, answer what was accepted, and let the workers go.

        Until then workers may come, too: what was accepted may need a second try.
        """
        for server in self._http_servers:
            server.close()
        patience = self.config.timeout + _DRAIN_GRACE
        try:
            await asyncio.wait_for(self._http.drain(), patience)
        except asyncio.TimeoutError:
            self._warn_of_unfinished(patience)
            self._http.abort()
        for unix_door in self._unix_doors:
            unix_door.remove()
        for server in self._worker_servers:
            server.close()
        for links in self.links:
            links.close()
        self.dispatcher.close()

    def _warn_of_unfinished(self, patience: float) -> None:
        connections = self._http.connections
        unanswered = sum(connection.is_unanswered for connection in connections)
        log.warning(
            "after %g s of stopping %d request(s) have no answer yet, and %d client(s) have not"
            " read theirs; their connections are closed",
            *(patience, unanswered, len(connections) - unanswered),
        )

    def abort(self) -> None:
        """Drop all clients, so that ``stop`` has nobody to wait for."""
        self._http.abort()

    def _open_door(self, links: Links, stack: contextlib.ExitStack) -> list[socket.socket]:
        """Listen for workers; the stack ends it."""
        if isinstance(links.address, TCPAddress):
            doors = listen_tcp(links.address.host, links.address.port)
        else:
            unix_door = UnixDoor(links.address.path)
            stack.callback(unix_door.remove)
            self._unix_doors.append(unix_door)
            doors = [unix_door.sock]
        for door in doors:
            stack.callback(door.close)
        if isinstance(links.address, TCPAddress) and not links.address.port:
            links.address = TCPAddress(links.address.host, doors[0].getsockname()[1])
        return doors

    def _make_links(self, address: Address) -> Links:
        config, options = self.config, self.options
        secret = config.worker_secret
        return Links(
            self.dispatcher,
            address=address,
            max_message=int(config.max_message),
            secret=secret.get_secret_value() if secret else None,
            on_change=options.on_change,
            kill=options.kill,
        )

    def _make_front(self, status: Status) -> Front:
        return Front(
            self.dispatcher,
            self.metrics,
            self.config,
            status=status,
            clock=self.dispatcher.clock,
            prefixes=self.options.prefixes,
            fallback=self.options.fallback,
            home=_home(self.options.name),
        )

    def _workers_by_protocol(self) -> dict[str, int]:
        count: Counter[str] = Counter()
        for links in self.links:
            count[links.address.protocol] += links.ready
        return dict(count)


def _make_queue(config: Config, options: ServiceOptions) -> Queue[Link]:
    return Queue(
        make_policy(config),
        max_batch_size=config.max_batch_size,
        capacity=config.capacity,
        max_message=int(config.max_message),
        batch_timeout=config.batch_timeout or config.timeout,
        retry=options.retry,
    )


def _limits(config: Config, options: ServiceOptions) -> Limits:
    return replace(
        options.limits,
        max_body=int(config.max_body),
        max_held=int(config.max_held),
        max_connections=clients_that_fit(config.max_connections),
    )


def _home(name: str) -> dict[str, Any]:
    paths = ["/inference", "/health", "/livez", "/readyz", "/metrics"]
    return {
        "name": name,
        "endpoints": [
            {"method": "POST" if path == "/inference" else "GET", "path": path} for path in paths
        ],
    }


async def _serve(connect: Callable[[], asyncio.Protocol], door: socket.socket) -> asyncio.Server:
    """Let connections in by a door that listens.

    Without uvloop, the backlog is also how many are let in before anybody else's turn, and how
    often one that finds no free file is told, each time with a retry of its own.
    """
    server = await asyncio.get_running_loop().create_server(connect, sock=door, backlog=1)
    door.listen(BACKLOG)
    return server


@contextlib.asynccontextmanager
async def running(service: BatchingService) -> AsyncIterator[None]:
    """Start a service and, whatever happens, stop it.

    Raises:
        CannotListen: An address is taken.
    """
    await service.start()
    try:
        yield
    finally:
        await service.stop()
