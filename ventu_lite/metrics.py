"""The series that Prometheus sees, the same under Flask, in a worker and in the batching service.

They live in the default registry of prometheus_client, once per process, so that whatever
exposes that registry (our ``/metrics``, a user's own) shows them next to the user's own metrics.
With ``PROMETHEUS_MULTIPROC_DIR`` set before the start, several processes add up.
"""

import atexit
import os
from collections.abc import Sequence
from functools import cache, partial
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, multiprocess
from prometheus_client.registry import REGISTRY

from .buckets import SECONDS, SIZES
from .errors import ConfigError
from .outcomes import Reason as OutcomeReason
from .pipeline import Mode, Run
from .room import claim_if_owed, claim_room, is_written_to

#: Why a job was not answered with a result.
Reason = OutcomeReason | Literal["full"]


class Metrics:
    """All series of one process; ``of`` gives those of one service, with its label filled in.

    Args:
        registry: Where they are registered.

    Raises:
        ConfigError: ``PROMETHEUS_MULTIPROC_DIR`` names a directory that cannot be used.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        _check_variable()
        claim_room()
        histogram = partial(_histogram, registry)
        self.request_seconds = histogram(
            "request_seconds", "Time from the arrival of a request to its answer.", "status"
        )
        self.stage_seconds = histogram(
            "stage_seconds", "Time in one stage, for one request or for a whole batch.",
            "stage", "mode",
        )  # fmt: skip
        self.batch_size = histogram(
            "batch_size", "Items that reached one call of a batch function.", buckets=SIZES
        )
        self.queue_seconds = histogram("queue_seconds", "Time that a job waited for its turn.")
        counter = partial(Counter, labelnames=["service", "reason"], registry=registry)
        self.rejected = counter(
            "ventu_rejected_total", "Jobs that were not answered with a result."
        )
        self.released = counter("ventu_released_total", "Batches given to a worker.")
        gauge = partial(Gauge, registry=registry, multiprocess_mode="livesum")
        self.queue_jobs = gauge("ventu_queue_jobs", "Jobs that wait.", ["service"])
        self.workers = gauge(
            "ventu_workers", "Processes that are ready to run the stages.", ["service", "protocol"]
        )


def _histogram(
    registry: CollectorRegistry,
    name: str,
    documentation: str,
    *labels: str,
    buckets: Sequence[float] = SECONDS,
) -> Histogram:
    return Histogram(
        f"ventu_{name}", documentation, ["service", *labels], registry=registry, buckets=buckets
    )


class ServiceMetrics:
    """The series of one service, ready to be observed; any thread may.

    A copy of the process, such as a model makes of it, counts into files of its own. It claims room
    for them with the first thing it counts, whatever that is.

    Args:
        metrics: The series of the process.
        name: The service.

    Attributes:
        name: The service.
    """

    def __init__(self, metrics: Metrics, name: str) -> None:
        self.name = name
        self._metrics = metrics
        self._requests: dict[int, Histogram] = {}
        self._rejected: dict[Reason, Counter] = {}
        self._stages: dict[tuple[str, Mode], Histogram] = {}
        self._released: dict[str, Counter] = {}
        self._queue_jobs: Gauge | None = None
        self.batch_size = metrics.batch_size.labels(name)
        self.queue_seconds = metrics.queue_seconds.labels(name)

    def request(self, status: int, seconds: float) -> None:
        """Count an answered request."""
        claim_if_owed()
        child = self._requests.get(status)
        if child is None:
            child = self._metrics.request_seconds.labels(self.name, str(status))
            self._requests[status] = child
        child.observe(seconds)

    def rejected(self, reason: Reason) -> None:
        """Count a job that failed."""
        claim_if_owed()
        child = self._rejected.get(reason)
        if child is None:
            child = self._rejected[reason] = self._metrics.rejected.labels(self.name, reason)
        child.inc()

    def stage(self, stage: str, mode: Mode, seconds: float) -> None:
        """Count one run of a stage, for one item or for a batch."""
        claim_if_owed()
        child = self._stages.get((stage, mode))
        if child is None:
            child = self._metrics.stage_seconds.labels(self.name, stage, mode)
            self._stages[stage, mode] = child
        child.observe(seconds)

    def batch(self, size: int, reason: str, seconds: float) -> None:
        """Count a call of a batch function in this process.

        Args:
            size: Its items.
            reason: Why it was not put off: "full", "idle" or "wait".
            seconds: How long it took.
        """
        claim_if_owed()
        child = self._released.get(reason)
        if child is None:
            child = self._released[reason] = self._metrics.released.labels(self.name, reason)
        child.inc()
        self.batch_size.observe(size)
        self.stage("infer", "batch", seconds)

    def queue_jobs(self, count: int) -> None:
        """Say how many jobs wait in this process; who has no queue says nothing."""
        claim_if_owed()
        if self._queue_jobs is None:
            self._queue_jobs = self._metrics.queue_jobs.labels(self.name)
        self._queue_jobs.set(count)

    def run(self, run: Run, mode: Mode) -> None:
        """Count a batch that went all the way."""
        self.stage("preprocess", mode, run.preprocess)
        if run.batch_size:
            self.stage("infer", mode, run.infer)
            self.stage("postprocess", mode, run.postprocess)
            self.batch_size.observe(run.batch_size)

    def worker(self, protocol: str, *, is_ready: bool) -> None:
        """Say whether this process can run the stages now, for ``http``, ``unix`` or ``tcp``."""
        claim_if_owed()
        self._metrics.workers.labels(self.name, protocol).set(int(is_ready))


@cache
def _process_metrics() -> Metrics:
    metrics = Metrics(REGISTRY)
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        atexit.register(_leave)
    return metrics


def _leave() -> None:
    """Take this process, a forked one too, out of the gauges of those that live."""
    multiprocess.mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]  # it is not typed


@cache
def metrics_of(name: str) -> ServiceMetrics:
    """Return the series of a service, the same object each time."""
    return ServiceMetrics(_process_metrics(), name)


def _check_variable() -> None:
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR") and not is_written_to():
        raise ConfigError(
            "PROMETHEUS_MULTIPROC_DIR was set after prometheus_client was imported, so nothing is"
            " written there: set it in the environment, before Python starts"
        )
