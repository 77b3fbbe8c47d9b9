"""The orders in which jobs are kept: what comes out, and that what has left leaves no garbage."""

import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from ventu_lite.batching.jobs import Deadlines, Job, Parts
from ventu_lite.batching.lanes import Lane
from ventu_lite.batching.policy import FixedWait


def job(number: int, *, size: int = 0, deadline: float = 1.0, state: Any = "waiting") -> Job:
    return Job(f"{number:036d}", b"", size, 0.0, deadline, state=state)


def numbers(jobs: list[Job]) -> list[int]:
    return [int(job.id) for job in jobs]


def end(job: Job) -> None:
    job.state = "done"


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


class Watched(Job):
    """A job that a weak reference can watch."""


def fill_lane(jobs: list[Job]) -> tuple[Lane, Callable[[Job], None]]:
    lane = Lane(FixedWait(0), 1000, sys.maxsize)
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
    jobs: list[Job] = [
        Watched(f"{n:036d}", b"", 0, 0.0, deadline_of(n), state="waiting") for n in range(1000)
    ]
    kept = {id(each) for each in jobs[:5] + sorted(jobs, key=lambda job: job.deadline)[:5]}
    watchers = [weakref.ref(each) for each in jobs]
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
