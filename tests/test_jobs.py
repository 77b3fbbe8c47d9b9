"""The orders in which jobs are kept: what comes out, and that what has left leaves no garbage."""

import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from ventu_lite.batching.jobs import JOB_OVERHEAD, Deadlines, Job, Lane, Parts


def job(number: int, *, size: int = 0, deadline: float = 1.0, state: Any = "waiting") -> Job:
    return Job(f"{number:036d}", b"", size, 0.0, deadline, state=state)


def numbers(jobs: list[Job]) -> list[int]:
    return [int(job.id) for job in jobs]


def end(job: Job) -> None:
    job.state = "done"


class TestLane:
    @pytest.mark.parametrize(
        ("sizes", "batches"),
        [
            pytest.param([], [[]], id="empty"),
            pytest.param([0, 0], [[0, 1], []], id="all-that-wait"),
            pytest.param([0] * 5, [[0, 1, 2], [3, 4]], id="at-most-3"),
            pytest.param([50, 50, 1], [[0, 1], [2]], id="at-most-100-bytes"),
            pytest.param([50, 51, 1], [[0], [1, 2]], id="nobody-overtakes-a-large-job"),
            pytest.param([100, 100], [[0], [1]], id="as-large-as-may-be"),
        ],
    )
    def test_take(self, sizes: list[int], batches: list[list[int]]) -> None:
        """Payloads of 100 bytes fit into a batch with one job, of 57 less with each further one."""
        lane = Lane(3, 100 + 2 * JOB_OVERHEAD)
        for n, size in enumerate(sizes):
            # The allowance is for two jobs: make a lone one as large as two are.
            lane.append(job(n, size=size + JOB_OVERHEAD if size == 100 else size))

        assert [numbers(lane.take()) for _ in batches] == batches
        assert lane.count == 0

    @pytest.mark.parametrize(
        ("sizes", "is_full"),
        [
            pytest.param([], False, id="empty"),
            pytest.param([0, 0], False, id="room-for-one-more"),
            pytest.param([0, 0, 0], True, id="full-by-number"),
            pytest.param([50, 7], False, id="room-for-an-empty-payload"),
            pytest.param([50, 8], True, id="full-by-bytes"),
        ],
    )
    def test_is_full(self, sizes: list[int], is_full: bool) -> None:
        lane = Lane(3, 57 + 3 * JOB_OVERHEAD)
        for n, size in enumerate(sizes):
            lane.append(job(n, size=size))

        assert lane.is_full == is_full
        assert lane.room == 3 - len(sizes)

    def test_since_starts_again_when_nobody_waited(self) -> None:
        lane = Lane(3, 1000)
        for queued_at in (1.0, 2.0):
            lane.append(Job("", b"", 0, queued_at, 9.0, state="waiting"))
        assert lane.since == 1.0
        lane.take()
        lane.append(Job("", b"", 0, 3.0, 9.0, state="waiting"))

        assert lane.since == 3.0

    def test_jobs_that_left_take_no_place(self) -> None:
        lane = Lane(2, 200)
        jobs = [job(n, size=50) for n in range(5)]
        for each in jobs:
            lane.append(each)
        for gone in (jobs[0], jobs[2]):
            end(gone)
            lane.leave(gone)

        assert lane.count == 3
        assert numbers(lane.take()) == [1, 3]
        assert not lane.is_full


class TestParts:
    def test_two_halves_the_larger_first(self) -> None:
        parts = Parts()
        parts.put([job(n) for n in range(5)], is_last_try=False)

        assert parts.count == 5
        assert [numbers(parts.take()[0]) for _ in range(2)] == [[0, 1, 2], [3, 4]]
        assert parts.count == 0

    def test_the_latest_death_goes_first(self) -> None:
        parts = Parts()
        parts.put([job(0), job(1)], is_last_try=False)
        parts.put([job(2)], is_last_try=True)

        taken = [parts.take() for _ in range(3)]

        assert [numbers(jobs) for jobs, _ in taken] == [[2], [0], [1]]
        assert [is_last_try for _, is_last_try in taken] == [True, False, False]

    def test_parts_without_a_waiting_job_are_passed_over(self) -> None:
        parts = Parts()
        jobs = [job(n) for n in range(6)]
        parts.put(jobs, is_last_try=False)
        for gone in (*jobs[:3], jobs[4]):
            end(gone)
            parts.leave()

        assert numbers(parts.take()[0]) == [3, 5]
        assert parts.count == 0


class TestDeadlines:
    @pytest.mark.parametrize("deadlines", [[1, 2, 3, 4], [4, 3, 2, 1], [2, 4, 1, 3], [3, 1, 1, 4]])
    def test_any_order(self, deadlines: list[int]) -> None:
        watched = Deadlines()
        for n, deadline in enumerate(deadlines):
            watched.add(job(n, deadline=deadline))

        for now in (0, 1, 2, 3, 4):
            assert watched.next() == min((d for d in deadlines if d >= now), default=None)
            due = watched.due(now)
            assert sorted(numbers(due)) == [n for n, d in enumerate(deadlines) if d == now]
            for each in due:
                end(each)
            watched.leave(len(due))

        assert watched.next() is None
        assert watched.count == 0

    @pytest.mark.parametrize("deadlines", [[1, 2, 3], [3, 2, 1], [2, 3, 1]])
    def test_jobs_that_are_done_are_not_due(self, deadlines: list[int]) -> None:
        """The earliest is done: neither its time nor it itself is reported."""
        watched = Deadlines()
        jobs = [job(n, deadline=deadline) for n, deadline in enumerate(deadlines)]
        for each in jobs:
            watched.add(each)
        end(next(each for each in jobs if each.deadline == 1))
        watched.leave(1)

        assert watched.next() == 2
        assert [each.deadline for each in watched.due(2)] == [2]

    def test_a_done_job_behind_the_front_is_not_due(self) -> None:
        watched = Deadlines()
        jobs = [job(n, deadline=n) for n in range(3)]
        for each in jobs:
            watched.add(each)
        end(jobs[1])
        watched.leave(1)

        assert numbers(watched.due(5)) == [0, 2]


class Payload:
    """Something that a weak reference can watch."""


def fill_lane(jobs: list[Job]) -> tuple[Lane, Callable[[Job], None]]:
    lane = Lane(1000, sys.maxsize)
    for each in jobs:
        lane.append(each)
    return lane, lane.leave


def fill_deadlines(jobs: list[Job]) -> tuple[Deadlines, Callable[[Job], None]]:
    watched = Deadlines()
    for each in jobs:
        watched.add(each)
    return watched, lambda job: watched.leave(1)


@pytest.mark.parametrize("fill", [fill_lane, fill_deadlines])
@pytest.mark.parametrize(
    "deadline_of",
    [
        pytest.param(lambda n: n, id="in-order"),
        pytest.param(lambda n: -n, id="reversed"),
        pytest.param(lambda n: n * 7919 % 1000, id="mixed"),
    ],
)
def test_garbage_is_bounded(
    fill: Callable[[list[Job]], tuple[Lane | Deadlines, Callable[[Job], None]]],
    deadline_of: Callable[[int], float],
) -> None:
    """A few old jobs must not keep the thousand behind them alive, and must not get lost."""
    jobs = [job(n, deadline=deadline_of(n)) for n in range(1000)]
    kept = {id(each) for each in jobs[:5] + sorted(jobs, key=lambda job: job.deadline)[:5]}
    for each in jobs:
        each.context = Payload()
    watchers = [weakref.ref(each.context) for each in jobs]
    container, leave = fill(jobs)
    while jobs:
        each = jobs.pop()
        if id(each) not in kept:
            end(each)
            leave(each)
    del each
    gc.collect()

    assert container.count == len(kept)
    assert sum(watch() is not None for watch in watchers) <= 3 * len(kept) + 64


def test_clearing_garbage_keeps_the_others_in_order() -> None:
    """Jobs that are out at a worker have deadlines too."""
    watched = Deadlines()
    jobs = [job(n, deadline=n * 7919 % 1009, state="out") for n in range(1000)]
    for each in jobs:
        watched.add(each)
    for each in jobs:
        if int(each.id) % 7:
            end(each)
            watched.leave(1)

    deadlines = []
    while (deadline := watched.next()) is not None:
        for each in watched.due(deadline):
            deadlines.append(deadline)
            end(each)
            watched.leave(1)

    assert deadlines == sorted(n * 7919 % 1009 for n in range(0, 1000, 7))
