"""``serve``: the batching service in front, supervised worker processes behind it."""

import asyncio
import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from flask import Flask

from .addresses import MAX_PATH, Address, UnixAddress
from .asking import Asking
from .batching.links import WorkerLink, log_change
from .batching.refusals import unreadable
from .batching.server import BatchingService, ServiceOptions, running
from .composition import largest_batch
from .config import Config
from .dead_routes import warn_of_dead_routes
from .errors import RegistrationError
from .failures import FAILURES_VARIABLE, take_note
from .families import forget_process
from .forwarding import Forwarder
from .http.server import run
from .messages import MAX_JOBS
from .mounting import Mounted, services_of
from .parent import PARENT_VARIABLE
from .serving.asker import Asker
from .serving.hooks import paths_of, prefixes_of, skipped_by_serve
from .serving.probing import ProbingStatus
from .serving.wsgi import WSGIRoutes
from .signals import StopSignals
from .supervisor import Supervisor

if TYPE_CHECKING:
    from .service import Service

log = logging.getLogger(__name__)

_IN_VAIN: Final = "the workers fail before they are ready; the log says why"


@dataclass(frozen=True)
class Plan:
    """What to serve, and how.

    Attributes:
        app: The user's app.
        mounted: The service in it.
        app_path: What ``--app`` was, for the workers; ``None`` if it was left out.
        directory: Where that was said; the user's file may have left it.
        workers: How many processes.
        devices: One for each worker, round robin.
        guests_at: Where workers that others have started may connect, too.
        no_retry: Whether jobs of a dead worker fail at once, whatever the service says.
        environment: Settings of the command line, for the workers.
    """

    app: Flask
    mounted: Mounted
    app_path: str | None
    directory: str
    workers: int
    devices: Sequence[str] = ()
    guests_at: Address | None = None
    no_retry: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def service(self) -> "Service":
        """The service."""
        return self.mounted.service


def refuse_skipped_hooks(app: Flask, mounted: Mounted) -> None:
    """Check that the batching service may answer in place of Flask.

    Raises:
        RegistrationError: Something of the user stands around its routes.
    """
    if skipped := skipped_by_serve(app, mounted):
        raise RegistrationError(
            "`serve` answers the inference, health, readiness and metrics routes without Flask,"
            f" so these would be skipped: {'; '.join(skipped)}. Say --bypass-hooks if that is"
            " wanted, or run the app with gunicorn."
        )


def serve(plan: Plan, config: Config) -> int:
    """Run everything until SIGTERM or SIGINT; in the main thread.

    Returns:
        The exit code.

    Raises:
        CannotListen: An address is taken.
        RegistrationError: The service is at a place that cannot be served.
    """
    for mounted in services_of(plan.app).values():
        mounted.service.runtime.startup.forbid(_why_not_here(mounted.service, plan.service))
    prefixes = prefixes_of(plan.app, plan.mounted)
    warn_of_dead_routes(plan.app, paths_of(plan.app, plan.mounted))
    with _meeting_place() as workers_at:
        return run(_FrontProcess(plan, _config_of_front(plan, config), workers_at, prefixes).run())


class _FrontProcess:
    """What runs in the front process; ``run`` is its main coroutine."""

    def __init__(
        self, plan: Plan, config: Config, workers_at: UnixAddress, prefixes: Sequence[str]
    ) -> None:
        self._plan = plan
        self._config = config
        self._workers_at = workers_at
        self._prefixes = prefixes
        self._is_announced = False

    async def run(self) -> int:
        """Start the batching service and the workers, and stop both in that order."""
        self._loop = asyncio.get_running_loop()
        self._supervisor = supervisor = self._make_supervisor()
        routes = WSGIRoutes(self._plan.app.wsgi_app, self._config.host, unreadable)
        self._batching = batching = self._make_batching(routes)
        self._plan.service.runtime.asking = self._make_asking()
        with StopSignals() as signals:
            signals.on_second(batching.abort)
            signals.on_second(supervisor.kill_all)
            try:
                async with running(batching):
                    routes.port = batching.port
                    self._announce()
                    supervisor.start()
                    await signals.wait()
                    log.info("stopping: answering what was accepted")
            finally:
                await supervisor.stop()
                routes.close()
        log.info("stopped")
        return signals.exit_code

    def _announce(self) -> None:
        batching, count = self._batching, self._plan.workers
        name = self._plan.service.name
        log.info(
            "listening on %s; starting %d worker(s) of %r, requests wait for one, at most %g s",
            *(batching.url, count, name, self._config.timeout),
        )
        for links in batching.links[1:]:
            log.info("taking other workers at %s", links.address)

    def _make_asking(self) -> Asking:
        """Return what answers ``service.ask`` in routes of the user's own: the workers do."""
        ask = Asker(self._batching.dispatcher)
        forwarder = Forwarder(ask, self._plan.service.compose())
        return Asking(forwarder, self._config.timeout, self._count_rejected)

    def _count_rejected(self, reason: str) -> None:
        """Count, from a thread of a route, what the batching service does not get to see."""
        rejected = self._batching.metrics.rejected
        self._loop.call_soon_threadsafe(rejected.update, [reason])

    def _make_supervisor(self) -> Supervisor:
        plan, folder = self._plan, os.path.dirname(self._workers_at.path)
        return Supervisor(
            _worker_command(plan, self._workers_at),
            plan.workers,
            devices=plan.devices,
            directory=plan.directory,
            environment={
                **plan.environment,
                PARENT_VARIABLE: str(os.getpid()),
                FAILURES_VARIABLE: folder,
            },
            on_end=forget_process,
            on_failure=self._judge,
            last_words=partial(take_note, folder),
        )

    def _make_batching(self, routes: WSGIRoutes) -> BatchingService:
        plan, service = self._plan, self._plan.service
        guests_at = [plan.guests_at] if plan.guests_at else []
        options = ServiceOptions(
            service.name,
            [self._workers_at, *guests_at],
            retry=not plan.no_retry and service.compose().worker_stage.options.retry,
            prefixes=self._prefixes,
            fallback=routes,
            on_change=self._worker_changed,
            kill=self._supervisor.kill,
            why_no_worker=self._why_no_worker,
        )
        probes = service.compose().probes
        return BatchingService(self._config, options, lambda it: ProbingStatus(it, probes))

    def _worker_changed(self, link: WorkerLink) -> None:
        if not link.is_ready:  # the supervisor says what became of one of ours
            log.debug("%r has left", link)
            self._judge()
            return
        if not self._supervisor.worker_is_ready(link.pid):
            log_change(link)
        self._judge()
        if not self._is_announced:
            self._is_announced = True
            log.info("ready on %s", self._batching.url)

    def _why_no_worker(self) -> str:
        loading = ", ".join(f"worker {number}" for number in self._supervisor.loading)
        return f"no worker is ready yet, still loading: {loading}" if loading else ""

    def _judge(self) -> None:
        """Refuse new requests while there is no worker and every one has failed at its last starts.

        What was accepted before waits on.
        """
        is_vain = self._supervisor.is_failing and not self._batching.ready_workers
        self._batching.dispatcher.refuse(_IN_VAIN if is_vain else "")


def _config_of_front(plan: Plan, config: Config) -> Config:
    """Return the settings with batches as large as a worker takes them: larger ones it splits."""
    size = largest_batch(plan.service.compose().stages, config)
    return config.override(max_batch_size=min(size, MAX_JOBS))


def _why_not_here(service: "Service", served: "Service") -> str:
    if service is not served:
        return (
            f"this command serves {served.name!r}, not {service.name!r}: start another one with"
            f" --service {service.name}"
        )
    return (
        f"this process only forwards requests of the service {served.name!r}; it runs no stage"
        " itself. In a route of your own, call service.ask instead of service.predict"
    )


@contextlib.contextmanager
def _meeting_place() -> Iterator[UnixAddress]:
    """Give front and workers a socket in a directory of this user alone."""
    name = "workers.socket"
    folder = tempfile.mkdtemp(prefix="ventu-")
    if len(os.fsencode(folder)) + 1 + len(name) > MAX_PATH:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="ventu-", dir="/tmp")
    try:
        yield UnixAddress(os.path.join(folder, name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _worker_command(plan: Plan, at: UnixAddress) -> list[str]:
    # As multiprocessing does: -O, -W and -X are for all processes. There is no public way to them.
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    command = [sys.executable, *flags, "-m", "ventu_lite"]
    if plan.app_path:
        command += ["--app", plan.app_path]
    return [*command, "worker", "--unix", at.path, f"--service={plan.service.name}"]
