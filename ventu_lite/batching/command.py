"""The command ``batching``: the batching service alone, for workers of any kind."""

import asyncio
import logging
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from ..addresses import Address, TCPAddress
from ..config import Config
from ..options import (
    Command,
    batching_options,
    examples,
    exits,
    listening_address,
    log_options,
    worker_address_options,
)
from ..retries import Reminders
from ..signals import StopSignals, ended_by_signals
from ..variables import warn_of_unknown_variables

if TYPE_CHECKING:
    from .links import WorkerLink
    from .server import BatchingService

log = logging.getLogger(__name__)


@click.command(
    "batching",
    Command,
    short_help="Take HTTP, form batches, hand them to workers.",
    epilog=examples(
        "python -m ventu_lite batching --port 8000 --unix batching.socket",
        "python -m ventu_lite batching --tcp 127.0.0.1:8765 --max-wait 0",
    ),
    context_settings={"help_option_names": ["-h", "--help"]},  # without its group, too
)
@worker_address_options
@batching_options
@log_options
@exits
def batching(unix: str | None, tcp: str | None, no_retry: bool, **flags: Any) -> None:
    """Take HTTP requests, form batches, and hand them to the workers that connect.

    Any worker that speaks the protocol of kemingy/batching may join, also later. SIGTERM answers
    what was accepted, then ends.
    """
    with ended_by_signals():
        from ..http.server import run
        from ..logs import configure

        config = Config().override(**flags)
        configure(config.log_level, config.log_format)
        warn_of_unknown_variables()
        address = listening_address(unix, tcp, config.socket)
        warn_if_open(address, config)
        sys.exit(run(_serve(config, address, retry=not no_retry)))


async def _serve(config: Config, address: Address, *, retry: bool) -> int:
    """Serve until a signal; return the exit code."""
    from .server import BatchingService, ServiceOptions, running
    from .status import PlainStatus

    options = ServiceOptions(
        config.name, [address], retry=retry, on_change=lambda it: staff.changed(it)
    )
    service = BatchingService(config, options, PlainStatus)
    staff = _Staff(service)
    with StopSignals() as signals:
        signals.on_second(service.abort)
        async with running(service):
            workers_at = service.links[0].address
            log.info("ready on %s for clients, at %s for workers", service.url, workers_at)
            log.info("no worker is connected yet; start one: %s", how_to_join(workers_at, config))
            await signals.wait()
            log.info("stopping: answering what was accepted")
            staff.is_leaving = True
    log.info("stopped")
    return signals.exit_code


class _Staff:
    """Tells who of the workers comes and goes, and when nobody is left; if often, then seldom.

    Args:
        service: Whose workers.

    Attributes:
        is_leaving: Whether the service ends, so that it needs nobody any more.
    """

    def __init__(self, service: "BatchingService") -> None:
        self.is_leaving = False
        self._service = service
        self._is_alone = True
        self._reminders = Reminders(time.monotonic)

    def changed(self, link: "WorkerLink") -> None:
        """Take note that a worker has become ready or is gone."""
        from .links import log_change

        log_change(link)
        asyncio.get_running_loop().call_soon(self._look)  # then its jobs wait again

    def _look(self) -> None:
        was_alone, self._is_alone = self._is_alone, not self._service.ready_workers
        if not self._is_alone or was_alone or self.is_leaving:
            return
        service = self._service
        log.log(
            logging.WARNING if self._reminders.is_due("nobody is left") else logging.DEBUG,
            "no worker is connected any more; %d job(s) wait for one, at most %g s; start one: %s",
            service.dispatcher.queue.waiting,
            service.config.timeout,
            how_to_join(service.links[0].address, service.config),
        )


def how_to_join(address: Address, config: Config) -> str:
    """Return the command that starts a worker for a batching service."""
    secret = " (with the same VENTU_WORKER_SECRET)" if config.worker_secret else ""
    return f"python -m ventu_lite --app FILE.py worker {address.option}{secret}"


def warn_if_open(address: Address, config: Config) -> None:
    """Warn when workers may connect from other machines: by themselves, or listened to."""
    if not isinstance(address, TCPAddress) or address.is_loopback:
        return
    if config.worker_secret:
        log.warning(
            "requests and answers pass %s unencrypted: workers prove that they know the secret,"
            " but whoever is on the way reads and changes what they are sent; use a private"
            " network or a tunnel",
            address,
        )
        return
    log.warning(
        "anybody who reaches %s can join as a worker, and then reads requests and writes answers;"
        " set VENTU_WORKER_SECRET on both sides, or listen on 127.0.0.1",
        address,
    )
