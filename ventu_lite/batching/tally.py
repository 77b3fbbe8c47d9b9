"""The series of the batching service, counted in plain numbers.

prometheus_client's own metrics take a lock and, when several processes share a directory, a
write into a file for each observation; here is one thread that observes 100,000 times a second
and is read every 15 s.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from ..buckets import SECONDS, SIZES
from ..problems import INVALID

_REASONS: Final = dict.fromkeys(INVALID, "invalid") | {429: "full"}


class Tally:
    """One histogram.

    Args:
        bounds: The upper ends of its buckets, in order.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = list(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def observe_all(self, values: Sequence[float]) -> None:
        """Count values, many of which are equal."""
        bounds, counts = self._bounds, self._counts
        last, bucket = None, 0
        for value in values:
            if value != last:
                last, bucket = value, bisect_left(bounds, value)
            counts[bucket] += 1
        self._sum += sum(values)

    def add_to(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        """Put the buckets and the sum into a family."""
        bounds = [*map(str, map(float, self._bounds)), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        family.add_metric(labels, buckets, self._sum)


class FrontMetrics:
    """All series of one batching service; only its own thread may count.

    Args:
        service: The name for the label.
        waiting: Tells how many jobs wait.
        workers: Tells how many workers are connected, by protocol.
    """

    def __init__(
        self, service: str, *, waiting: Callable[[], int], workers: Callable[[], dict[str, int]]
    ) -> None:
        self._service = service
        self._waiting = waiting
        self._workers = workers
        self._requests: dict[int, Tally] = {}
        self.batch_size = Tally(SIZES)
        self.queue_seconds = Tally(SECONDS)
        self.released: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()

    def request(self, status: int, seconds: float) -> None:
        """Count an answered request."""
        tally = self._requests.get(status)
        if tally is None:
            tally = self._requests[status] = Tally(SECONDS)
        tally.observe(seconds)

    def refused(self, status: int) -> None:
        """Count what is not even queued."""
        if status in _REASONS:
            self.rejected[_REASONS[status]] += 1

    def collect(self) -> Iterable[Metric]:
        """Return the families, as prometheus_client wants it of a collector."""
        service = self._service
        requests = HistogramMetricFamily(
            "ventu_request_seconds",
            "Time from the arrival of a request to its answer.",
            labels=["service", "status"],
        )
        for status, tally in self._requests.items():
            tally.add_to(requests, [service, str(status)])
        yield requests
        yield self._histogram(
            "ventu_batch_size", "Jobs in one batch for a worker.", self.batch_size
        )
        yield self._histogram(
            "ventu_queue_seconds", "Time that a job waited for its turn.", self.queue_seconds
        )
        yield _counter("ventu_released", "Batches given to a worker.", service, self.released)
        yield _counter(
            "ventu_rejected", "Jobs that were not answered with a result.", service, self.rejected
        )
        jobs = GaugeMetricFamily("ventu_queue_jobs", "Jobs that wait.", labels=["service"])
        jobs.add_metric([service], self._waiting())
        yield jobs
        workers = GaugeMetricFamily(
            "ventu_workers",
            "Processes that are ready to run the stages.",
            labels=["service", "protocol"],
        )
        for protocol, count in self._workers().items():
            workers.add_metric([service, protocol], count)
        yield workers

    def _histogram(self, name: str, help: str, tally: Tally) -> Metric:
        family = HistogramMetricFamily(name, help, labels=["service"])
        tally.add_to(family, [self._service])
        return family


def _counter(name: str, help: str, service: str, counts: Counter[str]) -> Metric:
    family = CounterMetricFamily(name, help, labels=["service", "reason"])
    for reason, count in counts.items():
        family.add_metric([service, reason], count)
    return family
