"""Workers, and how fast they are; the rest of the workers' rules is tested through the queue."""

import pytest

from ventu_lite.batching.workers import DrainRate, Workers


@pytest.mark.parametrize(
    ("batches", "jobs", "workers", "seconds"),
    [
        pytest.param([], 1000, 1, 1.0, id="nothing-known"),
        pytest.param([(32, 0.5)], 640, 1, 10.0, id="one-worker"),
        pytest.param([(32, 0.5)], 640, 4, 2.5, id="four-workers"),
        pytest.param([(30, 0.5), (30, 0.1)] * 50, 1000, 1, 9.6, id="the-mean-of-the-latest"),
        pytest.param([(1, 9.0)] * 50 + [(32, 0.5)] * 50, 640, 1, 10.9, id="the-past-fades"),
        pytest.param([(32, 0.5)], 1, 1, 1.0, id="at-least-a-second"),
        pytest.param([(32, 0.0)], 1000, 1, 1.0, id="too-fast-for-the-clock"),
        pytest.param([(1, 5.0)], 1024, 1, 60.0, id="at-most-a-minute"),
        pytest.param([(0, 5.0)], 1, 1, 60.0, id="workers-only-die"),
        pytest.param([(1, 1.0)] + [(0, 1.0)] * 9999, 1, 1, 60.0, id="workers-die-for-ever"),
    ],
)
def test_drain_rate(
    batches: list[tuple[int, float]], jobs: int, workers: int, seconds: float
) -> None:
    rate = DrainRate()
    for answered, took in batches:
        rate.add(answered, took)

    assert rate.seconds_for(jobs, workers=workers) == pytest.approx(seconds, rel=0.03)


def test_the_number_of_workers() -> None:
    workers: Workers[str] = Workers()
    for worker in ("ann", "bob", "ann"):
        workers.ready(worker, 1.0)
    assert len(workers) == 2

    workers.give([], "idle", 1.0, is_last_try=False)
    assert len(workers) == 2

    workers.remove("ann")
    workers.retire("bob")
    assert len(workers) == 0
