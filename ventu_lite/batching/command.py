"""The command ``batching``: the batching service alone, for workers of any kind."""

import logging
import sys
from typing import Any

import click

from ..addresses import Address, TCPAddress
from ..config import Config
from ..options import (
    batching_options,
    exits,
    listening_address,
    log_options,
    worker_address_options,
)
from ..signals import StopSignals, ended_by_signals
from ..variables import warn_of_unknown_variables

log = logging.getLogger(__name__)


@click.command("batching", short_help="Take HTTP, form batches, hand them to workers.")
@worker_address_options
@batching_options
@log_options
@exits
def batching(unix: str | None, tcp: str | None, no_retry: bool, **flags: Any) -> None:
    """Take HTTP requests, form batches, and hand them to the workers that connect.

    Any worker that speaks the protocol of kemingy/batching may join, also later. SIGTERM answers
    what was accepted, then ends.

    \b
    Examples:
      python -m ventu_lite batching --port 8000 --unix batching.socket
      python -m ventu_lite batching --tcp 127.0.0.1:8765 --max-wait 0
    """  # noqa: D301  # \b is click's mark for lines that it must not wrap
    with ended_by_signals():
        from ..logs import configure
        from .http import run

        config = Config().override(**flags)
        configure(config.log_level, config.log_format)
        warn_of_unknown_variables()
        address = listening_address(unix, tcp, config.socket)
        warn_if_open(address, config)
        sys.exit(run(_serve(config, address, retry=not no_retry)))


async def _serve(config: Config, address: Address, *, retry: bool) -> int:
    """Serve until a signal; return the exit code."""
    from .server import BatchingService, Options, running
    from .status import PlainStatus

    options = Options(config.name, [address], retry=retry)
    service = BatchingService(config, options, PlainStatus)
    with StopSignals() as signals:
        signals.on_second(service.abort)
        async with running(service):
            workers_at = service.links[0].address
            log.info("ready on %s for clients, at %s for workers", service.url, workers_at)
            await signals.wait()
            log.info("stopping: answering what was accepted")
    log.info("stopped")
    return signals.exit_code


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
