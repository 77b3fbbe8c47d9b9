"""``serve``: the batching service in front, supervised worker processes behind it."""

import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from flask import Flask
from prometheus_client import multiprocess

from .addresses import Address, TCPAddress, UnixAddress
from .batching.dispatcher import Dispatcher
from .batching.hooks import skipped_by_serve
from .batching.http import run
from .batching.jobs import Failure, Job
from .batching.links import WorkerLink
from .batching.server import BatchingService, Options
from .batching.status import PlainStatus, health_body
from .batching.wsgi import WSGIRoutes
from .blueprint import Mounted, services_of
from .config import Config
from .errors import RegistrationError, VentuError
from .examples import Probe
from .families import is_shared
from .runtime import HEALTH_CACHE, NO_EXAMPLE
from .supervisor import Supervisor

if TYPE_CHECKING:
    from .service import Service

log = logging.getLogger(__name__)

# Tells a worker who started it, so that it does not outlive him.
PARENT_VARIABLE: Final = "VENTU_PARENT_PROCESS"


@dataclass(frozen=True)
class Plan:
    """What to serve, and how.

    Attributes:
        app: The user's app.
        mounted: The service in it.
        app_path: What ``--app`` was, for the workers; ``None`` if it was left out.
        workers: How many processes.
        devices: One for each worker, round robin.
        workers_at: Where they meet; ``None`` for a private socket.
        no_retry: Whether jobs of a dead worker fail at once, whatever the service says.
        environment: Settings of the command line, for the workers.
    """

    app: Flask
    mounted: Mounted
    app_path: str | None
    workers: int
    devices: Sequence[str] = ()
    workers_at: Address | None = None
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


def serve(plan: Plan, config: Config) -> None:
    """Run everything until SIGTERM or SIGINT; in the main thread.

    Raises:
        CannotListen: An address is taken.
    """
    for mounted in services_of(plan.app).values():
        mounted.service.runtime.startup.forbid(_why_not_here(plan.service.name))
    with _meeting_place(plan.workers_at) as workers_at:
        run(_Front(plan, config, workers_at).run())


class _Front:
    """The front process."""

    def __init__(self, plan: Plan, config: Config, workers_at: Address) -> None:
        self._plan = plan
        self._config = config
        self._workers_at = workers_at

    async def run(self) -> None:
        """Start the batching service and the workers, and stop both in that order."""
        plan, config = self._plan, self._config
        supervisor = Supervisor(
            _worker_command(plan, self._workers_at),
            plan.workers,
            devices=plan.devices,
            environment={**plan.environment, PARENT_VARIABLE: str(os.getpid())},
            on_end=_forget_metrics,
        )
        routes = WSGIRoutes(plan.app.wsgi_app, (config.host, config.port))
        is_announced = False

        def on_change(link: WorkerLink) -> None:
            nonlocal is_announced
            if link.is_ready and link.pid is not None:
                supervisor.worker_is_ready(link.pid)
            if link.is_ready and not is_announced:
                is_announced = True
                log.info("ready on %s", url)

        options = Options(
            plan.service.name,
            self._workers_at,
            retry=not plan.no_retry and plan.service.may_retry,
            prefix=plan.mounted.prefix,
            fallback=routes,
            on_change=on_change,
            kill=supervisor.kill,
        )
        batching = BatchingService(config, options, lambda it: ServedStatus(it, plan.service))
        url = await batching.start()
        log.info("listening on %s; starting %d worker(s)", url, plan.workers)
        supervisor.start()
        try:
            await batching.until_signal()
            log.info("stopping: answering what was accepted")
        finally:
            await batching.stop()
            await supervisor.stop()
            routes.close()
        log.info("stopped")


class ServedStatus(PlainStatus):
    """The status of a service whose examples are known: health really runs them.

    Args:
        batching: The batching service.
        service: Whose examples.
    """

    def __init__(self, batching: BatchingService, service: "Service") -> None:
        super().__init__(batching)
        self._batching = batching
        self._probes = service.compose().probes
        self._known: tuple[float, bool, dict[str, str]] | None = None
        self._asking: list[Callable[[bool, dict[str, str]], None]] = []

    def health(self, answer: Callable[[bool, dict[str, str]], None]) -> None:
        """Run the examples, at most once in a few seconds; who asks meanwhile shares the result."""
        if why := self.why_not_ready:
            answer(False, health_body("Error", why))
        elif not self._probes:
            answer(True, health_body("Unknown", NO_EXAMPLE))
        elif self._known is not None and self._now() - self._known[0] <= HEALTH_CACHE:
            answer(*self._known[1:])
        else:
            self._asking.append(answer)
            if len(self._asking) == 1:
                self._ask()

    def _ask(self) -> None:
        loop_time = self._now()
        deadline = loop_time + self._batching.config.timeout
        round_ = _Round(self._batching.dispatcher, self._probes, self._tell)
        round_.begin(loop_time, deadline)

    def _tell(self, complaint: str) -> None:
        body = health_body("Error", complaint) if complaint else health_body("OK")
        self._known = (self._now(), not complaint, body)
        asking, self._asking = self._asking, []
        for answer in asking:
            answer(not complaint, body)

    def _now(self) -> float:
        return self._batching.dispatcher.clock()


class _Round:
    """One run of all examples through the queue."""

    def __init__(
        self, dispatcher: Dispatcher, probes: Sequence[Probe], tell: Callable[[str], None]
    ) -> None:
        self._dispatcher = dispatcher
        self._probes = probes
        self._tell = tell
        self._open = len(probes)
        self._complaint = ""

    def begin(self, now: float, deadline: float) -> None:
        """Queue the examples, as any other job."""
        for number, probe in enumerate(self._probes):
            job = _ProbeJob(self, number, probe, now, deadline)
            try:
                self._dispatcher.add(job)
            except VentuError as exc:  # full or draining: that is what health is about
                self.end(number, str(exc))

    def end(self, number: int, complaint: str) -> None:
        """Take note of one answer; "" if it was as it should be."""
        if complaint and not self._complaint:
            self._complaint = f"example {number}: {complaint}"
        self._open -= 1
        if not self._open:
            self._tell(self._complaint)


class _ProbeJob(Job):
    """An example on its way through the queue."""

    __slots__ = ("_number", "_probe", "_round")

    def __init__(
        self, round_: _Round, number: int, probe: Probe, now: float, deadline: float
    ) -> None:
        super().__init__(str(uuid4()), probe.payload, len(probe.payload), now, deadline)
        self._round = round_
        self._number = number
        self._probe = probe

    def answered(self, status: int, body: bytes, timing: bytes) -> None:
        if status != 200:
            complaint = f"status {status}"
        else:
            differs = self._probe.differs(body)
            complaint = "the answer differs from the expected one" if differs else ""
        self._round.end(self._number, complaint)

    def failed(self, failure: Failure) -> None:
        self._round.end(self._number, f"status {failure.status}: {failure.detail}")


def _why_not_here(name: str) -> str:
    return f"this process only forwards requests of the service {name!r}; it runs no stage itself"


@contextlib.contextmanager
def _meeting_place(chosen: Address | None) -> Iterator[Address]:
    if chosen is not None:
        yield chosen
        return
    folder = tempfile.mkdtemp(prefix="ventu-")
    try:
        yield UnixAddress(str(Path(folder, "workers.socket")))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _worker_command(plan: Plan, at: Address) -> list[str]:
    command = [sys.executable, "-m", "ventu_lite"]
    if plan.app_path:
        command += ["--app", plan.app_path]
    where = ["--unix", at.path] if isinstance(at, UnixAddress) else ["--tcp", _dialled(at)]
    return [*command, "worker", *where, "--service", plan.service.name]


def _dialled(at: TCPAddress) -> str:
    """Return an address as a worker on this machine has to call it."""
    return str(at).partition(":")[2]


def _forget_metrics(pid: int) -> None:
    """Take the gauges of a process that has ended out of the shared directory."""
    if is_shared():
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]  # it is not typed
