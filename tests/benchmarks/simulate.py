"""Compare release policies in simulated time, with the queue and the policies of the product.

Run ``python tests/benchmarks/simulate.py`` (some minutes) or, for a first look, with ``--quick``;
``--tick 1`` gives the event loop timers of 1 ms, ``--late 3`` has them come another 3 ms late on
average, as on a machine that others keep busy; ``--plot FILE`` draws the cells with matplotlib.
For every load ("cell") the mean response time of each policy is divided by that of the best fixed
wait, chosen in hindsight for that very cell and those very seeds. So 1.00 is as good as a constant
can be made by somebody who knows the load; below 1.00 no constant is as good.
"""

import argparse
import importlib
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from itertools import count, product
from math import ceil, exp, inf
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any, Final, Literal, NamedTuple, cast

from ventu_lite.batching.adaptive import AdaptiveWait
from ventu_lite.batching.policy import FixedWait, Policy
from ventu_lite.batching.queue import Job, Queue

MS: Final = 1e-3

#: Makes a policy for one run.
Maker = Callable[[], Policy]

FIXED: Final[dict[str, Maker]] = {
    "at once" if wait == 0 else f"fixed {wait:g} ms": partial(FixedWait, wait * MS)
    for wait in (0, 0.5, 1, 2, 5, 10, 20)
}
ADAPTIVE: Final[dict[str, Maker]] = {"adaptive": partial(AdaptiveWait, 10 * MS)}
POLICIES: Final = FIXED | ADAPTIVE

Service = Literal["plain", "heavy tail", "warm-up"]


@dataclass(frozen=True)
class Closed:
    """Clients that send, wait for the answer, think, and send again."""

    clients: int
    think: float


@dataclass(frozen=True)
class Poisson:
    """Jobs that know nothing of each other, at a share of what the workers can do."""

    share: float


@dataclass(frozen=True)
class Jumps:
    """A Poisson stream whose rate jumps up and down every ``period`` seconds."""

    low: float
    high: float
    period: float


@dataclass(frozen=True)
class Bursts:
    """Bursts of a geometrically distributed size, at a share of what the workers can do."""

    share: float
    size: float
    gap: float = 0.1 * MS


Traffic = Closed | Poisson | Jumps | Bursts


@dataclass(frozen=True)
class Cell:
    """One load: a batch of n takes ``fixed + each * n``, give or take 5 %."""

    name: str
    workers: int
    traffic: tuple[Traffic, ...]
    fixed: float
    each: float
    limit: int = 32
    service: Service = "plain"

    @property
    def capacity(self) -> float:
        """Jobs per second of all workers with full batches."""
        return self.workers * self.limit / (self.fixed + self.each * self.limit)

    @property
    def clients(self) -> int:
        """Clients in closed loops."""
        return sum(part.clients for part in self.traffic if isinstance(part, Closed))

    def jobs(self, least: int) -> int:
        """Return how many jobs a run needs to be worth something, at least ``least``."""
        jumps = any(isinstance(part, Jumps) for part in self.traffic)
        is_tailed = self.service == "heavy tail"  # a few batches make most of the mean
        batches = 35 if jumps or is_tailed else 8
        least *= 8 if is_tailed else 1
        return max(least, 12 * self.clients, batches * self.workers * self.limit)

    def seconds(self, size: int, served: int, rng: random.Random) -> float:
        """Return how long a worker that served ``served`` batches takes for the next one."""
        seconds = (self.fixed + self.each * size) * max(0.1, rng.gauss(1.0, 0.05))
        if self.service == "heavy tail" and rng.random() < 0.05:
            seconds *= min(1.0 + rng.paretovariate(1.5), 20.0)
        if self.service == "warm-up":
            seconds *= 1.0 + 9.0 * exp(-served / 20)
        return seconds


def arrivals(part: Traffic, capacity: float, rng: random.Random) -> Iterator[float]:
    """Yield the times at which the jobs of an open stream come, for ever."""
    now = 0.0
    while isinstance(part, Poisson):
        now += rng.expovariate(part.share * capacity)
        yield now
    while isinstance(part, Bursts):
        now += rng.expovariate(part.share * capacity / part.size)
        at = now
        while True:
            yield at
            at += rng.expovariate(1 / part.gap)
            if rng.random() < 1 / part.size:
                break
        now = at
    while isinstance(part, Jumps):
        share = part.high if int(now / part.period) % 2 else part.low
        end = (int(now / part.period + 1e-9) + 1) * part.period
        gap = rng.expovariate(share * capacity)
        now = min(now + gap, end)
        if now < end:
            yield now


class Client:
    """One of a closed loop."""

    def __init__(self, think: float, seed: str) -> None:
        self._think = think
        self._rng = random.Random(seed)

    def next(self, now: float) -> float:
        """Return when the next job of this client comes."""
        return now + 0.1 * MS + self._rng.expovariate(1 / self._think)


@dataclass(slots=True, eq=False)
class SimulatedJob(Job):
    """A job that knows who waits for it, if anybody does."""

    client: Client | None = None


class Simulation:
    """One cell under one policy: an event loop in simulated time around one queue.

    The queue is asked as the product's event loop asks it: after every event and when the timer
    fires. A timer is set anew after every event, and runs for a whole number of ticks, rounded up,
    and an exponentially distributed time more.
    """

    def __init__(
        self, cell: Cell, policy: Policy, *, seed: int, tick: float, late: float = 0.0
    ) -> None:
        self._cell = cell
        self._tick = tick
        self._late = late
        self._delays = random.Random(f"{seed}/timers")
        self._queue: Queue[int] = Queue(
            policy, max_batch_size=cell.limit, capacity=10**9, max_message=10**9
        )
        self._events: list[tuple[float, int, Callable[..., None], Any]] = []
        self._serial = count()
        self._at(inf, self._ask, None)  # so that a timer always has something to come before
        self._rng = random.Random(f"{seed}/service")
        self._served = [0] * cell.workers
        self._timer_at = inf
        self._responses: list[float] = []
        for worker in range(cell.workers):
            self._queue.ready(worker, 0.0)
        for n, part in enumerate(cell.traffic):
            self._start(part, f"{seed}/{n}")

    def run(self, jobs: int, skip: float = 0.1) -> float:
        """Return the mean response time of that many jobs, without the first ``skip`` of them."""
        events, responses = self._events, self._responses
        while len(responses) < jobs:
            if self._timer_at < events[0][0]:
                self._turn(self._timer_at)
                continue
            now, _, happen, what = heappop(events)
            happen(now, what)
            self._turn(now)
        return fmean(responses[int(jobs * skip) : jobs])

    def _start(self, part: Traffic, seed: str) -> None:
        if isinstance(part, Closed):
            for n in range(part.clients):
                client = Client(part.think, f"{seed}/{n}")
                self._at(client.next(0.0), self._ask, client)
            return
        stream = arrivals(part, self._cell.capacity, random.Random(seed))
        self._at(next(stream), self._flow, stream)

    def _at(self, time: float, happen: Callable[..., None], what: Any) -> None:
        heappush(self._events, (time, next(self._serial), happen, what))

    def _ask(self, now: float, client: Client | None) -> None:
        self._queue.add(SimulatedJob(str(next(self._serial)), None, 0, now, inf, client=client))

    def _flow(self, now: float, stream: Iterator[float]) -> None:
        self._ask(now, None)
        self._at(next(stream), self._flow, stream)

    def _done(self, now: float, what: tuple[int, Iterable[str]]) -> None:
        worker, ids = what
        self._queue.accept(worker, dict.fromkeys(ids), now)

    def _turn(self, now: float) -> None:
        queue = self._queue
        while batch := queue.take(now):
            worker = batch.worker
            seconds = self._cell.seconds(batch.size, self._served[worker], self._rng)
            self._served[worker] += 1
            self._at(now + seconds, self._done, (worker, batch.jobs))
        for job, _ in queue.finished():
            self._responses.append(now - job.queued_at)
            client = cast(SimulatedJob, job).client
            if client is not None:
                self._at(client.next(now), self._ask, client)
        self._timer_at = self._timer(queue.due_at(now), now)

    def _timer(self, due_at: float | None, now: float) -> float:
        """Return when a timer that is set now fires: after whole ticks, at least one, and late."""
        if due_at is None:
            return inf
        late = self._delays.expovariate(1 / self._late) if self._late else 0.0
        return now + max(1, ceil((due_at - now) / self._tick - 1e-6)) * self._tick + late


def note_grid() -> list[Cell]:
    """Return the loads with which the policy was designed."""
    models = [(1 * MS, 0.05 * MS), (5 * MS, 0.2 * MS), (20 * MS, 1 * MS)]
    loops: list[tuple[Traffic, ...]] = [
        (Closed(clients, think * MS),)
        for clients, think in product((2, 4, 8, 16, 32, 64, 128, 256), (0.3, 2, 10))
    ]
    streams: list[tuple[Traffic, ...]] = [(Poisson(s),) for s in (0.05, 0.2, 0.5, 0.8, 0.95)]
    return [
        Cell("grid", workers, traffic, fixed, each)
        for workers, (fixed, each), traffic in product((1, 2, 4), models, loops + streams)
    ]


def hard_traffic(workers: int, limit: int, full: float) -> dict[str, tuple[Traffic, ...]]:
    """Return harder loads by name."""
    size = max(2, limit // 4)
    return {
        "jumps": (Jumps(0.08, 0.8, 20 * full),),
        "bursts": (Bursts(0.4, size),),
        "wide bursts": (Bursts(0.4, limit * 1.5, 0.5 * MS),),
        "two kinds": (Closed(size * workers, 0.3 * MS), Closed(2 * size * workers, 20 * MS)),
        "loop and stream": (Closed(size * workers, 1 * MS), Poisson(0.3)),
        "loop": (Closed(size * workers, 2 * MS),),
        "large loop": (Closed(2 * limit * workers, 2 * MS),),
        "stream": (Poisson(0.6),),
    }


def hard_grid() -> list[Cell]:
    """Return the harder loads: more workers, other limits, changing rates and service times."""
    models = [(2 * MS, 0.1 * MS), (20 * MS, 0.5 * MS)]
    cells: list[Cell] = []
    for workers, limit, (fixed, each) in product((1, 2, 4, 16, 64), (8, 32, 128), models):
        for name, traffic in hard_traffic(workers, limit, fixed + each * limit).items():
            cells.append(Cell(name, workers, traffic, fixed, each, limit))
        if limit == 32:
            services: tuple[Service, ...] = ("heavy tail", "warm-up")
            for service, name in product(services, ("loop", "stream")):
                traffic = hard_traffic(workers, limit, fixed + each * limit)[name]
                cells.append(Cell(f"{service}, {name}", workers, traffic, fixed, each, 32, service))
    return cells + one_by_one()


def one_by_one() -> list[Cell]:
    """Return loads of a model that takes its jobs one by one, as many on a CPU do."""
    fixed, each, limit = 0.1 * MS, 1 * MS, 32
    return [
        Cell(f"one by one, {name}", workers, traffic, fixed, each, limit)
        for workers in (1, 2, 4, 16)
        for name, traffic in hard_traffic(workers, limit, fixed + each * limit).items()
        if name in ("jumps", "bursts", "loop and stream", "loop", "stream")
    ]


class Timers(NamedTuple):
    """What timers are like: their resolution, and how late they come on average, in seconds."""

    tick: float
    late: float


@dataclass(frozen=True)
class Task:
    """One run."""

    cell: Cell
    policy: str
    seed: int
    least: int
    timers: Timers

    def mean_response(self) -> float:
        """Return the mean response time in seconds."""
        policy = POLICIES[self.policy]()
        tick, late = self.timers
        simulation = Simulation(self.cell, policy, seed=self.seed, tick=tick, late=late)
        return simulation.run(self.cell.jobs(self.least))


#: For each cell, for each policy: its response time by that of the best fixed wait.
Ratios = dict[Cell, dict[str, float]]


def compare(
    cells: Sequence[Cell], seeds: Sequence[int], *, least: int, timers: Timers, processes: int
) -> Ratios:
    """Run every policy in every cell."""
    tasks = [Task(c, p, s, least, timers) for c, p, s in product(cells, POLICIES, seeds)]
    if processes == 1:
        responses = {task: task.mean_response() for task in tasks}
    else:
        with ProcessPoolExecutor(processes) as pool:
            means = pool.map(Task.mean_response, tasks, chunksize=8)
            responses = dict(zip(tasks, means, strict=True))
    ratios = {}
    for cell in cells:
        mean = {
            policy: fmean(responses[Task(cell, policy, seed, least, timers)] for seed in seeds)
            for policy in POLICIES
        }
        best = min(mean[policy] for policy in FIXED)
        ratios[cell] = {policy: mean[policy] / best for policy in POLICIES}
    return ratios


def markdown(ratios: Ratios) -> str:
    """Return a table: geometric mean and worst cell, by policy and number of workers."""
    workers = sorted({cell.workers for cell in ratios})
    names = [f"{n} worker{'s' * (n > 1)}" for n in workers]
    lines = [["policy", *names, "all"], ["---"] * (len(names) + 2)]
    for policy in POLICIES:
        columns = [
            [by[policy] for cell, by in ratios.items() if cell.workers in among]
            for among in (*([n] for n in workers), workers)
        ]
        texts = [f"{geometric_mean(column):.3f} / {max(column):.2f}" for column in columns]
        lines.append([policy, *texts])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def worst(ratios: Ratios, policy: str, number: int) -> str:
    """Return the cells in which a policy does worst."""
    cells = sorted(ratios, key=lambda cell: -ratios[cell][policy])[:number]
    return "\n".join(f"- {ratios[cell][policy]:.3f} {cell}" for cell in cells)


def plot(grids: dict[str, Ratios], path: Path) -> None:
    """Draw for each grid the cells, sorted, one line per policy."""
    matplotlib = importlib.import_module("matplotlib.figure")  # nobody else needs it
    figure = matplotlib.Figure(figsize=(12, 5), layout="constrained")
    for axes, (name, ratios) in zip(
        figure.subplots(1, len(grids), squeeze=False)[0], grids.items(), strict=True
    ):
        for policy in POLICIES:
            values = sorted(by[policy] for by in ratios.values())
            axes.plot(values, label=policy, linewidth=3 if policy in ADAPTIVE else 1)
        axes.set(title=name, xlabel="cells, sorted", yscale="log")
        axes.set_ylabel("mean response time / that of the best fixed wait")
        axes.legend()
    figure.savefig(path)


def arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description="Compare release policies in simulated time.")
    parser.add_argument("--quick", action="store_true", help="fewer cells and jobs: below 20 s")
    parser.add_argument("--grid", choices=["note", "hard", "both"], default="both")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="means over all of them")
    parser.add_argument("--tick", type=float, default=0.05, help="ms; resolution of timers")
    parser.add_argument("--late", type=float, default=0.0, help="ms; how late they come")
    parser.add_argument("--jobs", type=int, default=3000, help="at least as many per run")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--plot", type=Path, metavar="FILE")
    return parser.parse_args()


def main() -> None:
    """Print a table and the worst cells per grid."""
    options = arguments()
    grids = {"note": note_grid(), "hard": hard_grid()}
    results = {}
    for name, cells in grids.items():
        if options.grid not in (name, "both"):
            continue
        if options.quick:
            cells = [cell for cell in cells[::7] if cell.workers <= 16]
        ratios = results[name] = compare(
            cells,
            options.seeds,
            least=1000 if options.quick else options.jobs,
            timers=Timers(options.tick * MS, options.late * MS),
            processes=options.processes,
        )
        print(f"\n## {name}: {len(cells)} cells, seeds {options.seeds}, tick {options.tick:g} ms\n")
        print(markdown(ratios))
        print(f"\nWorst for adaptive:\n{worst(ratios, 'adaptive', 5)}")
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
