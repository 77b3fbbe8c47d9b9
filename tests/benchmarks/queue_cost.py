"""Print the CPU time of the queue per job: add, take, results, finished, and the next timer.

Run ``python tests/benchmarks/queue_cost.py``; lower is better.
"""

import gc
import statistics
import time
from collections.abc import Callable
from functools import partial
from uuid import uuid4

from ventu_lite.batching.policy import FixedWait
from ventu_lite.batching.queue import Job, Queue

JOBS, ROUNDS = 32_000, 9
IDS = [str(uuid4()) for _ in range(JOBS)]
PAYLOAD = b'{"text": "my cat is very cute"}'
SIZE = len(PAYLOAD)

IN_ORDER = [5.0 + n * 1e-6 for n in range(JOBS)]
MIXED = [5.0 + n * 7919 % 1000 for n in range(JOBS)]


def make_queue(batch_size: int) -> Queue[str]:
    return Queue(
        FixedWait(0.0),
        max_batch_size=batch_size,
        capacity=100_000,
        max_message=2**28,
        batch_timeout=5.0,
    )


def seconds_per_job(batch_size: int, waiting: int, deadlines: list[float]) -> float:
    """Return the CPU seconds that one job costs while ``waiting`` others are before it."""
    queue = make_queue(batch_size)
    for _ in range(batch_size + waiting):
        queue.add(Job(str(uuid4()), PAYLOAD, SIZE, 0.0, 5.0))
    queue.ready("worker", 0.0)
    batch = queue.take(0.0)
    jobs = zip(IDS, deadlines, strict=True)
    start = time.process_time()
    for n in range(JOBS // batch_size):
        now = n * 1e-6
        for _ in range(batch_size):
            id, deadline = next(jobs)
            queue.add(Job(id, PAYLOAD, SIZE, now, deadline))
        assert batch is not None and batch.size == batch_size
        queue.accept("worker", dict.fromkeys(batch.jobs, PAYLOAD), now)
        batch = queue.take(now)
        assert len(queue.finished()) == batch_size
        queue.wake_at(now)
    return (time.process_time() - start) / JOBS


def seconds_to_abandon(waiting: int) -> float:
    """Return the CPU seconds per job when all that wait are abandoned, the youngest first."""
    queue = make_queue(32)
    jobs = [Job(id, PAYLOAD, SIZE, 0.0, 5.0) for id in IDS[:waiting]]
    for job in jobs:
        queue.add(job)
    start = time.process_time()
    for job in reversed(jobs):
        queue.abandon(job)
    return (time.process_time() - start) / waiting


def report(label: str, measure: Callable[[], float]) -> None:
    """Print the median and the least of several rounds."""
    gc.collect()
    rounds = [measure() * 1e6 for _ in range(ROUNDS)]
    print(f"{label:<44} median {statistics.median(rounds):5.2f}, least {min(rounds):5.2f} µs/job")


def main() -> None:
    """Print one line per load."""
    for waiting in (0, 64, 1_000, 10_000):
        report(f"batches of 32, {waiting} waiting", partial(seconds_per_job, 32, waiting, IN_ORDER))
    report("batches of 32, 64 waiting, mixed deadlines", partial(seconds_per_job, 32, 64, MIXED))
    report("batches of 1, nobody waiting", partial(seconds_per_job, 1, 0, IN_ORDER))
    report("10,000 waiting, all abandoned", partial(seconds_to_abandon, 10_000))


if __name__ == "__main__":
    main()
