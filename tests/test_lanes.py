"""Waiting jobs by key: what comes out of one lane, and how many lanes get along."""

import pytest

from ventu_lite.batching.jobs import GARBAGE, Job
from ventu_lite.batching.lanes import Lane, Lanes
from ventu_lite.batching.policy import FixedWait, Policy
from ventu_lite.messages import JOB_OVERHEAD


def job(number: int, *, size: int = 0, deadline: float = 9.0, key: object = None) -> Job:
    return Job(f"{number:036d}", b"", size, 0.0, deadline, key=key, state="waiting")


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
        lane = Lane(FixedWait(0), 3, 100 + 2 * JOB_OVERHEAD)
        for n, size in enumerate(sizes):
            # The allowance is for two jobs: make a lone one as large as two are.
            lane.append(job(n, size=size + JOB_OVERHEAD if size == 100 else size))

        assert [numbers(lane.take()) for _ in batches] == batches
        assert lane.count == 0

    def test_the_last_job_can_be_brought_to_the_front(self) -> None:
        lane = Lane(FixedWait(0), 2, 1000)
        for n in range(3):
            lane.append(job(n))
        lane.bring_last_to_front()

        assert [numbers(lane.take()), numbers(lane.take())] == [[2, 0], [1]]

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
        lane = Lane(FixedWait(0), 3, 57 + 3 * JOB_OVERHEAD)
        for n, size in enumerate(sizes):
            lane.append(job(n, size=size))

        assert lane.is_full == is_full
        assert lane.room == 3 - len(sizes)

    def test_since_starts_again_when_nobody_waited(self) -> None:
        lane = Lane(FixedWait(0), 3, 1000)
        for queued_at in (1.0, 2.0):
            lane.append(Job("", b"", 0, queued_at, 9.0, state="waiting"))
        assert lane.since == 1.0
        lane.take()
        lane.append(Job("", b"", 0, 3.0, 9.0, state="waiting"))

        assert lane.since == 3.0

    def test_jobs_that_left_take_no_place(self) -> None:
        lane = Lane(FixedWait(0), 2, 200)
        jobs = [job(n, size=50) for n in range(5)]
        for each in jobs:
            lane.append(each)
        for gone in (jobs[0], jobs[2]):
            end(gone)
            lane.leave(gone)

        assert lane.count == 3
        assert numbers(lane.take()) == [1, 3]
        assert not lane.is_full

    def test_jobs_that_left_take_no_memory(self) -> None:
        """One that waits for long at the front must not keep all that came and went behind it."""
        lane = Lane(FixedWait(0), 2, 200)
        lane.append(job(0))
        for n in range(1, 1000):
            gone = job(n)
            lane.append(gone)
            end(gone)
            lane.leave(gone)

        assert len(lane._places) <= 2 * lane.count + GARBAGE
        assert numbers(lane.take()) == [0]

    def test_a_job_that_did_not_fit_counts_for_the_next_batch(self) -> None:
        lane = Lane(FixedWait(0), 3, 100 + 2 * JOB_OVERHEAD)
        lane.append(job(0, size=50))
        lane.append(job(1, size=100 + JOB_OVERHEAD))

        assert numbers(lane.take()) == [0]
        assert lane.is_full
        assert numbers(lane.take()) == [1]
        assert not lane.is_full

    def test_the_deadline_is_that_of_the_oldest_job_that_waits(self) -> None:
        lane = Lane(FixedWait(0), 3, 1000)
        jobs = [job(n, deadline=5.0 + n) for n in range(3)]
        for each in jobs:
            lane.append(each)
        end(jobs[0])
        lane.leave(jobs[0])

        assert lane.deadline == 6.0


class TestLanes:
    def test_keys_do_not_mix(self) -> None:
        lanes = Lanes(lambda: Lane(FixedWait(0), 3, 1000))
        for n, key in enumerate(["a", "b", "a", "b", "a"]):
            lanes.append(job(n, key=key))

        assert lanes.count == 5
        assert numbers(lanes.take(lanes.of("a"), 0.0)) == [0, 2, 4]
        assert numbers(lanes.take(lanes.of("b"), 0.0)) == [1, 3]
        assert lanes.count == 0

    def test_those_that_are_passed_over_keep_their_time(self) -> None:
        """The one that gets the worker starts again."""
        lanes = Lanes(lambda: Lane(FixedWait(0), 1, 1000))
        a, b = (lanes.append(job(n, key=key)) for n, key in enumerate("ab"))
        lanes.append(job(2, key="a"))
        lanes.take(a, 3.0)

        assert (a.idle_since(4.0), b.idle_since(4.0)) == (4.0, 3.0)

    def test_those_that_are_passed_over_are_told(self) -> None:
        told: list[Policy] = []

        class Listening(FixedWait):
            def passed_over(self) -> None:
                told.append(self)

        lanes = Lanes(lambda: Lane(Listening(0), 1, 1000))
        a, b = (lanes.append(job(n, key=key)) for n, key in enumerate("ab"))
        lanes.take(a, 3.0)

        assert [policy is b.policy for policy in told] == [True]

    def test_only_lanes_without_jobs_are_forgotten(self) -> None:
        """A stranger who chooses the keys must not fill the memory with lanes."""
        lanes = Lanes(lambda: Lane(FixedWait(0), 3, 1000))
        kept = lanes.append(job(0, key="kept"))
        emptied = []
        for n in range(1000):
            emptied.append(lanes.append(job(n, key=n)))
            lanes.take(emptied[n], 0.0)

        assert lanes.of("kept") is kept
        assert len(lanes.with_jobs()) == 1
        assert lanes.of(999) is emptied[999]
        assert lanes.of(0) is not emptied[0]
        assert len(lanes._by_key) <= lanes._MOST
