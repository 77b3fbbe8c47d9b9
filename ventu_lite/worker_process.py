"""One worker process: set-up and warm-up, then batches from the wire into the pipeline."""

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

from .addresses import Address, UnixAddress
from .codecs import sniff
from .config import Codec, Config
from .outcomes import Rejected
from .pipeline import Outcome
from .problems import encode_problem, problem
from .protocol import Batch, Results
from .runtime import Runtime
from .worker import Worker, connect_tcp, connect_unix, stop_on_signals

if TYPE_CHECKING:
    from .service import Service

log = logging.getLogger(__name__)


def run_worker(service: "Service", address: Address, config: Config | None = None) -> None:
    """Set the service up, then serve batches until SIGTERM or SIGINT. In the main thread only.

    Args:
        service: What to run.
        address: Where the batching service listens, now or later.
        config: Settings, if others than the service's own.

    Raises:
        Exception: Set-up or warm-up failed; nothing was connected.
    """
    config = config or service.config
    runtime = service.runtime
    runtime.use_batch_function()
    _warn_of_retries(service)
    worker = Worker(
        partial(answer, runtime),
        connector(address),
        address=str(address),
        max_message=int(config.max_message),
        secret=config.worker_secret.get_secret_value() if config.worker_secret else None,
        on_connected=lambda is_ready: runtime.metrics.worker(address.protocol, is_ready=is_ready),
    )
    with contextlib.suppress(_Stopped), _ended_by_signals():
        runtime.startup.run()
        with stop_on_signals(worker):
            worker.run()


class _Stopped(KeyboardInterrupt):  # the one exception that is never taken for a stage's fault
    """A signal came while there was no batch to finish."""


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Ctrl-C or SIGTERM: unwind at once. The same signal again kills.

    The default would do for a process like others, but the first one of a container is deaf to
    signals that it does not handle, and set-up may last minutes.
    """

    def leave(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_DFL)
        raise _Stopped

    signums = (signal.SIGINT, signal.SIGTERM)
    old = {signum: signal.signal(signum, leave) for signum in signums}
    try:
        yield
    finally:
        for signum, handler in old.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)


def run_worker_unless_imported(service: "Service", address: Address) -> None:
    """Run a worker, unless a command imports the file that asks for it, as ``app.run`` does."""
    if os.environ.get("FLASK_RUN_FROM_CLI") == "true":
        log.warning("ignoring a call that runs a worker: a command is loading this file")
        return
    run_worker(service, address)


def connector(address: Address) -> Callable[[], socket.socket]:
    """Return a function that makes a new connection to an address."""
    if isinstance(address, UnixAddress):
        return partial(connect_unix, address.path)
    return partial(connect_tcp, address.host, address.port)


def answer(runtime: Runtime, batch: Batch) -> Results:
    """Return the results of a batch; a job that fails gets a problem document in its own codec."""
    try:
        return _answer(runtime, batch)
    except BaseException as exc:  # a batch that ends its worker would end the next one, too
        return _results(runtime, batch, [Rejected.of(exc)] * len(batch.payloads), infer=0.0)


def _answer(runtime: Runtime, batch: Batch) -> Results:
    run = runtime.run(list(batch.payloads.values()))
    seconds = run.preprocess + run.infer + run.postprocess
    return _results(runtime, batch, run.outcomes, infer=seconds)


def _results(
    runtime: Runtime, batch: Batch, outcomes: Sequence[Outcome], *, infer: float
) -> Results:
    payloads: dict[str, bytes] = {}
    rejected: dict[str, Rejected] = {}
    for job, outcome in zip(batch.payloads, outcomes, strict=True):
        if isinstance(outcome, Rejected):
            rejected[job] = outcome
            payloads[job] = _error_body(runtime, job, batch.payloads[job], outcome)
        else:
            payloads[job] = outcome
    log.debug("%d job(s) in %.4f s, %d rejected", len(payloads), infer, len(rejected))
    if rejected:
        _log_faults(rejected)
    return Results(payloads, {job: one.status for job, one in rejected.items()}, infer=infer)


def _error_body(runtime: Runtime, job: str, payload: bytes, rejected: Rejected) -> bytes:
    setting = runtime.service.config.codec
    codec: Codec = sniff(payload) if setting == "auto" else setting
    document = problem(rejected.status, rejected.detail, f"#{job}", **(rejected.extra or {}))
    return encode_problem(document, codec)


def _log_faults(rejected: dict[str, Rejected]) -> None:
    """Log each exception once, with the ids of all the jobs that it cost."""
    faults = [(job, one.exc) for job, one in rejected.items() if one.is_fault]
    for exc in {id(exc): exc for _, exc in faults}.values():
        jobs = [job for job, other in faults if other is exc]
        log.error("job %s failed", ", ".join(jobs), exc_info=exc, extra={"job_id": jobs})


def _warn_of_retries(service: "Service") -> None:
    stage = service.stage("batch infer") or service.stage("infer")
    if stage and not stage.options.retry:
        log.warning(
            "%s says retry=False: start the batching service with --no-retry,"
            " or the jobs of a worker that dies are run again",
            stage.where,
        )
