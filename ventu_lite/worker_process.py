"""One worker process: set-up and warm-up, then batches from the wire into the pipeline."""

import logging
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from .addresses import Address, UnixAddress
from .batch_runner import BatchRunner
from .codecs import sniff
from .config import Codec, Config
from .failures import shared_failures
from .health import Readiness
from .last_words import enable_last_words
from .outcomes import Rejected
from .parent import end_with_parent, has_parent, is_orphan
from .pipeline import Outcome
from .problems import encode_problem, problem
from .protocol import Batch, Results
from .signals import ended_by_signals
from .tracebacks import in_one_line, traceback_for
from .variables import is_imported_by_command
from .worker import Worker, connect_tcp, connect_unix, stop_on_signals

if TYPE_CHECKING:
    from .service import Service

log = logging.getLogger(__name__)


def run_worker(
    service: "Service",
    address: Address,
    config: Config | None = None,
    readiness: Readiness | None = None,
) -> None:
    """Set the service up, then serve batches until SIGTERM or SIGINT. In the main thread only.

    Args:
        service: What to run.
        address: Where the batching service listens, now or later.
        config: Settings, if others than the service's own.
        readiness: What to tell how far it has come.

    Raises:
        Exception: Set-up or warm-up failed; nothing was connected.
    """
    config = config or service.config
    readiness = readiness or Readiness(str(address))
    runtime = service.runtime
    runner = runtime.act_as_worker()
    _warn_of_retries(service)
    _warn_of_key(service)
    connect = connector(address)

    def connect_unless_orphan() -> socket.socket:
        if is_orphan():
            log.warning("the process that has started this worker is gone")
            worker.stop()
            raise ConnectionError("nobody is there any more")
        return connect()

    def note_connection(is_connected: bool) -> None:
        runtime.metrics.worker(address.protocol, is_ready=is_connected)
        readiness.is_connected = is_connected

    worker = Worker(
        partial(answer, runner),
        connect_unless_orphan,
        address=str(address),
        hint="" if has_parent() else _how_to_meet(address),
        max_message=int(config.max_message),
        secret=config.worker_secret.get_secret_value() if config.worker_secret else None,
        on_connected=note_connection,
    )
    end_with_parent()
    enable_last_words(shared_failures().open_note())
    with ended_by_signals():
        if not has_parent():  # else that tells how far its workers are
            log.info("setting up service %r, which then joins %s", service.name, address)
        runtime.startup.run()
        readiness.is_set_up = True
        with stop_on_signals(worker):
            worker.run()


def run_worker_unless_imported(service: "Service", address: Address) -> None:
    """Run a worker, unless a command imports the file that asks for it, as ``app.run`` does."""
    if is_imported_by_command():
        log.warning("ignoring a call that runs a worker: a command is loading this file")
        return
    run_worker(service, address)


def connector(address: Address) -> Callable[[], socket.socket]:
    """Return a function that makes a new connection to an address."""
    if isinstance(address, UnixAddress):
        return partial(connect_unix, address.path)
    return partial(connect_tcp, address.host, address.port)


def _how_to_meet(address: Address) -> str:
    return f" (is `python -m ventu_lite batching {address.option}` running?)"


def answer(runner: BatchRunner, batch: Batch) -> Results:
    """Return the results of a batch; a job that fails gets a problem document in its own codec."""
    try:
        return _answer(runner, batch)
    except BaseException as exc:  # a batch that ends its worker would end the next one, too
        return _results(runner.codec, batch, [Rejected.of(exc)] * len(batch.payloads), infer=0.0)


def _answer(runner: BatchRunner, batch: Batch) -> Results:
    run = runner.run(list(batch.payloads.values()))
    seconds = run.preprocess + run.infer + run.postprocess
    return _results(runner.codec, batch, run.outcomes, infer=seconds)


def _results(
    codec: Codec | None, batch: Batch, outcomes: Sequence[Outcome], *, infer: float
) -> Results:
    payloads: dict[str, bytes] = {}
    rejected: dict[str, Rejected] = {}
    for job, outcome in zip(batch.payloads, outcomes, strict=True):
        if isinstance(outcome, Rejected):
            rejected[job], payloads[job] = _error(job, outcome, codec or sniff(batch.payloads[job]))
        else:
            payloads[job] = outcome
    log.debug("%d job(s) in %.4f s, %d rejected", len(payloads), infer, len(rejected))
    _log_faults(rejected)
    for one in rejected.values():
        one.forget_frames()
    return Results(payloads, {job: one.status for job, one in rejected.items()}, infer=infer)


def _error(job: str, rejected: Rejected, codec: Codec) -> tuple[Rejected, bytes]:
    """Return what is logged and sent of a job that failed; what it says may fail to be said."""
    try:
        return rejected, _error_body(job, rejected, codec)
    except Exception as exc:
        exc.__cause__ = rejected.exc
        unsaid = Rejected.unexpected(exc)
        return unsaid, _error_body(job, unsaid, codec)


def _error_body(job: str, rejected: Rejected, codec: Codec) -> bytes:
    document = problem(rejected.status, rejected.detail, f"#{job}", rejected.extra)
    return encode_problem(document, codec)


def _log_faults(rejected: dict[str, Rejected]) -> None:
    """Log each exception once, with the ids of all the jobs that it cost."""
    faults = [(job, one.exc) for job, one in rejected.items() if one.is_fault]
    for exc in {id(exc): exc for _, exc in faults}.values():
        jobs = [job for job, other in faults if other is exc]
        log.error(
            "job %s failed: %s",
            ", ".join(jobs),
            in_one_line(exc),
            exc_info=traceback_for(exc, log),
            extra={"job_id": jobs},
        )


def _warn_of_key(service: "Service") -> None:
    """Warn where a key stands in the file, which a batching service does not read."""
    is_outside = any(f"VENTU_API_KEY{end}" in os.environ for end in ("", "_FILE"))
    if service.config.api_key is not None and not (is_outside or has_parent()):
        log.warning(
            "service %r has an api_key in its file, but `batching` lets everybody ask unless"
            " VENTU_API_KEY is set there, too",
            service.name,
        )


def _warn_of_retries(service: "Service") -> None:
    """Warn of what only the batching service can keep; ``serve`` tells its own."""
    stage = service.compose().worker_stage
    if not (stage.options.retry or has_parent()):
        log.warning(
            "%s says retry=False: start the batching service with --no-retry,"
            " or the jobs of a worker that dies are run again",
            stage.where,
        )
