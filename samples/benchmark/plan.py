"""What a load generator is to do, and what it has measured. Values only: no socket, no clock."""

import itertools
import random
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from benchmark.http import Address


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send, and how.

    Attributes:
        address: Where to.
        request: The bytes of every request.
        expected: The body that every answer must have; None takes any.
        clients: Connections; in an open loop, how many there may be.
        rate: Requests per second of an open loop; None is a closed loop.
        arrivals: ``poisson`` or ``even``, of an open loop.
        seconds: How long to measure, after ``warm_up`` seconds.
        timeout: Seconds after which a request counts as failed.
        processes: Of this tool.
        seed: Of the random arrivals.
    """

    address: Address
    request: bytes
    expected: bytes | None = None
    clients: int = 64
    rate: float | None = None
    arrivals: str = "poisson"
    seconds: float = 10.0
    warm_up: float = 1.0
    timeout: float = 30.0
    processes: int = 1
    seed: int = 1

    def share(self, index: int) -> "Plan":
        """Return what one process has to do; the connections are divided as evenly as they can."""
        clients = self.clients // self.processes + (index < self.clients % self.processes)
        return replace(self, clients=clients)


@dataclass
class Tally:
    """What has been measured; only requests that were due within the window are in it.

    Attributes:
        seconds: Length of the window.
        latencies: Seconds from when a request was due to its good answer.
        in_window: Good answers that came within the window, whenever their requests were due.
        errors: Requests that failed, by what went wrong.
        batches: Good answers by the size of their batch.
        queued: Seconds that jobs waited in the queue of the service.
        late: Seconds by which this tool itself missed the times of an open loop.
        busy: CPU time of each process by the length of the window.
        starved: The time each was ready to run and had no core, likewise.
        was_stopped: Whether somebody pressed Ctrl-C.
    """

    seconds: float = 0.0
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    in_window: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    batches: Counter[int] = field(default_factory=Counter)
    queued: "array[float]" = field(default_factory=lambda: array("d"))
    late: "array[float]" = field(default_factory=lambda: array("d"))
    busy: list[float] = field(default_factory=list)
    starved: list[float] = field(default_factory=list)
    was_stopped: bool = False

    def add(self, other: "Tally") -> None:
        """Add what another process has measured in the same window."""
        self.seconds = max(self.seconds, other.seconds)
        self.in_window += other.in_window
        self.errors += other.errors
        self.batches += other.batches
        for name in ("latencies", "queued", "late", "busy", "starved"):
            getattr(self, name).extend(getattr(other, name))


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one process is, warm-up included."""

    good: int
    failed: int


def arrival_times(plan: Plan, start: float, index: int) -> Iterator[float]:
    """Return when the requests of one process are due in an open loop, until the plan ends.

    Independent Poisson processes add up to one; even arrivals are dealt out in turn.
    """
    assert plan.rate is not None
    length = plan.warm_up + plan.seconds
    offsets: Iterator[float]
    if plan.arrivals == "even":
        numbers = itertools.count(index, plan.processes)
        offsets = (number / plan.rate for number in numbers)  # no sum, which would drift
    else:
        chance, rate = random.Random(f"{plan.seed} {index}"), plan.rate / plan.processes
        gaps = (chance.expovariate(rate) for _ in itertools.count())
        offsets = itertools.accumulate(gaps)
    return (start + offset for offset in itertools.takewhile(length.__gt__, offsets))
