"""One batching service: its listeners, its queue, its end."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ..addresses import Address, TCPAddress, UnixAddress
from ..config import Config
from .dispatcher import Dispatcher, Link
from .front import Front, Status
from .http import HttpServer, Limits
from .http_request import Request
from .links import Links, WorkerLink
from .listeners import allow_many_files, listen_tcp, listen_unix, remove_unix
from .policy import FixedWait
from .queue import Queue
from .tally import FrontMetrics

log = logging.getLogger(__name__)

# After the last deadline has passed, for clients to read their answers.
_DRAIN_GRACE: Final = 5.0


@dataclass(frozen=True)
class Options:
    """What is not a setting.

    Attributes:
        name: The service, for the metrics.
        workers_at: Where workers connect.
        retry: Whether the jobs of a worker that died are tried again.
        prefix: Where the routes of the service are.
        fallback: Answers all other routes.
        on_change: Told when a worker becomes ready or is gone.
        kill: Ends a worker process that holds a batch for too long.
    """

    name: str
    workers_at: Address
    retry: bool = True
    prefix: str = ""
    fallback: Callable[[Request], None] | None = None
    on_change: Callable[[WorkerLink], None] = lambda link: None
    kill: Callable[[int], None] = lambda pid: None


class BatchingService:
    """Takes HTTP, forms batches, hands them to workers. Only for the thread of its loop.

    Args:
        config: The settings.
        options: The rest.
        make_status: Returns what health, readiness and metrics say.

    Attributes:
        links: The workers.
        dispatcher: The queue and who waits for it.
        metrics: What was counted.
    """

    def __init__(
        self,
        config: Config,
        options: Options,
        make_status: Callable[["BatchingService"], Status],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.config = config
        self.options = options
        queue: Queue[Link] = Queue(
            FixedWait(config.max_wait),
            max_batch_size=config.max_batch_size,
            capacity=config.capacity,
            max_message=int(config.max_message),
            batch_timeout=config.batch_timeout or config.timeout,
            retry=options.retry,
        )
        self.metrics = FrontMetrics(
            options.name,
            waiting=lambda: queue.waiting,
            workers=lambda: {options.workers_at.protocol: self.links.ready},
        )
        self.dispatcher = Dispatcher(queue, self.metrics, loop)
        self.links = self._make_links()
        self.front = Front(
            self.dispatcher,
            self.metrics,
            config,
            status=make_status(self),
            clock=self.dispatcher.clock,
            prefix=options.prefix,
            fallback=options.fallback,
            home=_home(options.name),
        )
        self._http: HttpServer | None = None
        self._servers: list[asyncio.Server] = []
        self._socket_inode = 0
        self._stop = asyncio.Event()

    def _make_links(self) -> Links:
        config, options = self.config, self.options
        secret = config.worker_secret
        return Links(
            self.dispatcher,
            protocol=options.workers_at.protocol,
            max_message=int(config.max_message),
            secret=secret.get_secret_value() if secret else None,
            on_change=options.on_change,
            kill=options.kill,
        )

    async def start(self) -> str:
        """Listen, for workers first, and return the URL for clients.

        Raises:
            CannotListen: An address is taken.
        """
        allow_many_files()
        config, loop = self.config, asyncio.get_running_loop()
        doors = listen_tcp(config.host, config.port)
        try:
            worker_doors = self._listen_for_workers()
        except BaseException:
            for door in doors:
                door.close()
            raise
        self._http = HttpServer(self.front.handle, limits=_limits(config), check=self.front.check)
        for door in worker_doors:
            self._servers.append(await loop.create_server(self.links, sock=door))
        for door in doors:
            self._servers.append(await loop.create_server(self._http, sock=door))
        return f"http://{_host(config.host)}:{doors[0].getsockname()[1]}"

    def _listen_for_workers(self) -> list[socket.socket]:
        at = self.options.workers_at
        if isinstance(at, TCPAddress):
            return listen_tcp(at.host, at.port)
        door = listen_unix(at.path)
        self._socket_inode = os.stat(at.path).st_ino
        return [door]

    async def stop(self) -> None:
        """Take no new connections, answer what was accepted, and let the workers go."""
        assert self._http is not None
        for server in self._servers:
            server.close()
        patience = self.config.timeout + _DRAIN_GRACE
        try:
            await asyncio.wait_for(self._http.drain(), patience)
        except asyncio.TimeoutError:
            log.warning("%d client(s) did not read their answers", len(self._http.connections))
            self._http.abort()
        self.links.close()
        self.dispatcher.close()
        if isinstance(self.options.workers_at, UnixAddress):
            remove_unix(self.options.workers_at.path, self._socket_inode)

    async def until_signal(self) -> None:
        """Wait for SIGTERM or SIGINT; a second one has its usual effect, at once."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)

        def first() -> None:
            for signum in signals:
                loop.remove_signal_handler(signum)
                signal.signal(signum, signal.SIG_DFL)
            self._stop.set()

        for signum in signals:
            loop.add_signal_handler(signum, first)
        await self._stop.wait()

    def request_stop(self) -> None:
        """End ``until_signal``, as a signal would."""
        self._stop.set()


def _limits(config: Config) -> Limits:
    return Limits(
        max_body=int(config.max_body),
        max_held=int(config.max_held),
        max_connections=config.max_connections,
    )


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _home(name: str) -> dict[str, Any]:
    paths = ["/inference", "/health", "/livez", "/readyz", "/metrics"]
    return {
        "name": name,
        "endpoints": [
            {"method": "POST" if path == "/inference" else "GET", "path": path} for path in paths
        ],
    }


@contextlib.asynccontextmanager
async def running(service: BatchingService) -> Any:
    """Start a service and, whatever happens, stop it."""
    url = await service.start()
    try:
        yield url
    finally:
        await service.stop()
