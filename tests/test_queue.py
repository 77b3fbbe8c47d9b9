"""The rules of the queue, one by one. ``test_queue_model.py`` tries all of them in any order."""

from collections.abc import Collection
from typing import Any

import pytest

from ventu_lite.batching.policy import FixedWait, Running
from ventu_lite.batching.queue import (
    EXPIRED,
    EXPIRED_IN_QUEUE,
    UNSERVED,
    WORKER_DIED,
    Batch,
    Job,
    JobTooLarge,
    Queue,
)
from ventu_lite.errors import ProtocolError, QueueFull, Unavailable


def make_queue(*, max_wait: float = 0.0, **changes: Any) -> Queue[str]:
    options = {"max_batch_size": 4, "capacity": 8, "max_message": 2**20, "batch_timeout": 5.0}
    return Queue(FixedWait(max_wait), **{**options, **changes})


def add(queue: Queue[str], names: str, now: float = 0.0, *, timeout: float = 1.0) -> list[Job]:
    """Add one job for each letter."""
    jobs = [Job(name * 36, name.encode(), 1, now, now + timeout) for name in names]
    for job in jobs:
        queue.add(job)
    return jobs


def names_of(batch: Batch[str] | None) -> str:
    return "".join(id[0] for id in batch.jobs) if batch else ""


def give(queue: Queue[str], worker: str = "ann", now: float = 0.0) -> str:
    """Make a worker ready and return the names of the jobs that go out at once."""
    queue.ready(worker, now)
    return names_of(queue.take(now))


def answer(queue: Queue[str], names: str, worker: str = "ann", now: float = 0.0) -> None:
    queue.accept(worker, {name * 36: f"answer to {name}" for name in names}, now)


def outcomes(queue: Queue[str]) -> dict[str, object]:
    return {job.id[0]: outcome for job, outcome in queue.finished()}


class TestRelease:
    @pytest.mark.parametrize(
        ("arrivals", "ready_at", "now", "taken", "reason"),
        [
            pytest.param([0.0], 0.0, 0.009, "", None, id="waits-for-company"),
            pytest.param([0.0], 0.0, 0.010, "a", "wait", id="goes-alone-when-the-wait-is-over"),
            pytest.param([0.0, 0.004], 0.0, 0.010, "ab", "wait", id="late-company-comes-along"),
            pytest.param([0.0] * 4, 0.0, 0.0, "abcd", "full", id="goes-at-once-when-full"),
            pytest.param([0.0] * 5, 0.0, 0.0, "abcd", "full", id="leaves-the-rest"),
            pytest.param([0.0], 0.5, 0.509, "", None, id="the-clock-waits-for-a-worker"),
            pytest.param([0.0], 0.5, 0.510, "a", "wait", id="and-starts-when-one-is-ready"),
            pytest.param([0.5], 0.0, 0.509, "", None, id="the-clock-waits-for-a-job"),
            pytest.param([], 0.0, 9.0, "", None, id="nobody-waits"),
        ],
    )
    def test_take(
        self, arrivals: list[float], ready_at: float, now: float, taken: str, reason: str | None
    ) -> None:
        queue = make_queue(max_wait=0.010)
        if ready_at == 0.0:
            queue.ready("ann", 0.0)
        for name, arrival in zip("abcde", arrivals, strict=False):
            add(queue, name, arrival)
        if ready_at:
            queue.ready("ann", ready_at)

        batch = queue.take(now)

        assert names_of(batch) == taken
        assert (batch and batch.reason) == reason

    def test_without_a_wait_a_lone_job_goes_at_once(self) -> None:
        queue = make_queue(max_wait=0.0)
        queue.ready("ann", 0.0)
        add(queue, "a")

        batch = queue.take(0.0)

        assert batch is not None
        assert (batch.worker, batch.reason, batch.size) == ("ann", "idle", 1)

    def test_without_a_worker_nothing_goes(self) -> None:
        queue = make_queue()
        add(queue, "abcd")

        assert queue.take(0.5) is None
        assert queue.due_at(0.5) is None

    def test_an_idle_worker_does_not_start_the_wait_of_another_again(self) -> None:
        """What a full batch leaves behind goes when a worker has been idle for max_wait."""
        queue = make_queue(max_wait=0.010)
        queue.ready("ann", 0.0)
        queue.ready("bob", 0.0)
        add(queue, "a", 0.0)
        add(queue, "bcde", 0.008)
        assert names_of(queue.take(0.008)) == "abcd"

        assert queue.due_at(0.008) == pytest.approx(0.010)

    def test_another_worker_does_not_start_the_wait_again(self) -> None:
        queue = make_queue(max_wait=0.010)
        queue.ready("ann", 0.0)
        add(queue, "a", 0.001)
        queue.ready("bob", 0.008)

        assert queue.due_at(0.008) == pytest.approx(0.011)

    def test_the_longest_idle_worker_is_next(self) -> None:
        queue = make_queue(max_batch_size=1)
        for worker in ("ann", "bob", "cyd", "ann"):
            queue.ready(worker, 0.0)
        add(queue, "abc")

        batches = [queue.take(0.0) for _ in range(3)]

        assert [batch and batch.worker for batch in batches] == ["ann", "bob", "cyd"]

    def test_a_batch_is_full_when_capacity_is(self) -> None:
        """Nobody else can come, so nobody is waited for."""
        queue = make_queue(max_wait=10.0, max_batch_size=4, capacity=2)
        add(queue, "ab")

        assert give(queue) == "ab"

    @pytest.mark.parametrize(("spare", "taken"), [(0, "ab"), (-1, "a")])
    def test_a_batch_is_full_when_the_message_is(self, spare: int, taken: str) -> None:
        """Each job costs 43 bytes beside its payload, the message 5."""
        queue = make_queue(max_wait=10.0, max_message=5 + 2 * 44 + spare)
        add(queue, "abc")

        assert give(queue) == taken

    def test_a_batch_tells_its_jobs_about_itself(self) -> None:
        """What the headers of the answer say."""
        queue = make_queue()
        job, _ = add(queue, "ab", 0.25)

        give(queue, now=0.5)

        assert (job.released_at, job.batch_size, job.attempts) == (0.5, 2, 1)

    def test_draining_waits_for_nobody(self) -> None:
        queue = make_queue(max_wait=10.0)
        add(queue, "a")
        queue.drain()

        assert give(queue) == "a"

    def test_the_policy_learns_and_decides(self) -> None:
        """But it cannot keep an idle worker waiting longer than its max_wait."""
        policy = Recorder(max_wait=0.010, due_at=0.004)
        queue: Queue[str] = Queue(policy, max_batch_size=4, capacity=8, max_message=2**20)
        for worker in ("ann", "bob", "cyd"):
            queue.ready(worker, 0.0)
        add(queue, "abcd", 0.001)
        queue.take(0.001)
        add(queue, "ef", 0.002)

        assert queue.due_at(0.003) == 0.004
        assert policy.asked == {"since": 0.002, "waiting": 2, "room": 2, "idle": 2, "busy": [4]}
        policy.answer = 9.9
        assert queue.due_at(0.003) == pytest.approx(0.012)
        policy.answer = 0.004
        batch = queue.take(0.004)
        assert batch is not None and batch.reason == "idle"
        answer(queue, "abcd", now=0.021)
        assert policy.told == [
            *[("arrived", 0.001)] * 4,
            ("released", 4, 0.001),
            *[("arrived", 0.002)] * 2,
            ("released", 2, 0.004),
            ("finished", 4, pytest.approx(0.020), 0.021),
        ]


class Recorder:
    """A policy that remembers what it was told and answers what it should."""

    def __init__(self, max_wait: float, due_at: float) -> None:
        self.max_wait = max_wait
        self.answer = due_at
        self.told: list[tuple[object, ...]] = []
        self.asked: dict[str, object] = {}

    def job_arrived(self, now: float) -> None:
        self.told.append(("arrived", now))

    def passed_over(self) -> None: ...

    def batch_released(self, size: int, now: float) -> None:
        self.told.append(("released", size, now))

    def batch_finished(self, size: int, seconds: float, now: float) -> None:
        self.told.append(("finished", size, seconds, now))

    def due_at(self, now: float, *, busy: Collection[Running], **facts: float) -> float:
        self.asked = {**facts, "busy": [batch.size for batch in busy]}
        return self.answer

    def explain(self) -> str:
        return ""


class TestAdd:
    def test_beyond_capacity(self) -> None:
        queue = make_queue(capacity=2)
        add(queue, "ab")

        with pytest.raises(QueueFull, match="2 jobs wait already") as caught:
            add(queue, "c")
        assert caught.value.retry_after == 1.0
        assert queue.waiting == 2

    @pytest.mark.parametrize(
        ("others", "retry_after"),
        [
            pytest.param([], 12.0, id="one-worker"),
            pytest.param(["bob"], 6.0, id="two-workers"),
            pytest.param(["bob", "cyd"], 4.0, id="three-workers"),
        ],
    )
    def test_retry_after_comes_from_what_workers_did(
        self, others: list[str], retry_after: float
    ) -> None:
        queue = make_queue(capacity=6, max_batch_size=2)
        add(queue, "ab")
        give(queue)
        answer(queue, "ab", now=4.0)
        for worker in others:
            queue.ready(worker, 4.0)
        add(queue, "cdefgh", 4.0)

        with pytest.raises(QueueFull) as caught:
            add(queue, "i", 4.0)
        assert caught.value.retry_after == pytest.approx(retry_after)

    def test_retry_after_hopes_for_a_worker_when_all_have_gone(self) -> None:
        queue = make_queue(capacity=2, max_batch_size=1)
        add(queue, "a")
        give(queue)
        answer(queue, "a", now=4.0)
        queue.lose("ann", 4.0)
        add(queue, "bc", 4.0)

        with pytest.raises(QueueFull) as caught:
            add(queue, "d", 4.0)
        assert caught.value.retry_after == pytest.approx(8.0)

    def test_a_dead_worker_answers_nobody(self) -> None:
        queue = make_queue(capacity=1, retry=False)
        add(queue, "a")
        give(queue)
        queue.lose("ann", 0.9)
        add(queue, "b", 0.9)

        with pytest.raises(QueueFull) as caught:
            add(queue, "c", 0.9)
        assert caught.value.retry_after == 60.0

    def test_jobs_at_workers_and_retried_jobs_do_not_count(self) -> None:
        queue = make_queue(capacity=2)
        add(queue, "ab")
        give(queue)
        add(queue, "c")
        queue.lose("ann", 0.0)

        add(queue, "d")
        assert queue.waiting == 4
        with pytest.raises(QueueFull):
            add(queue, "e")

    def test_a_job_that_goes_first_needs_no_place(self) -> None:
        queue = make_queue(capacity=2)
        add(queue, "ab")
        queue.add_first(Job("c" * 36, b"", 0, 0.0, 1.0))

        assert queue.waiting == 3
        with pytest.raises(QueueFull):
            add(queue, "d")
        assert give(queue) == "ca"

    def test_a_job_that_goes_first_is_refused_where_no_job_is_taken(self) -> None:
        queue = make_queue(max_message=100)
        with pytest.raises(JobTooLarge):
            queue.add_first(Job("a" * 36, b"", 53, 0.0, 1.0))
        queue.refuse("no worker starts")
        with pytest.raises(Unavailable, match="no worker starts"):
            queue.add_first(Job("b" * 36, b"", 0, 0.0, 1.0))
        assert queue.is_empty

    def test_expired_jobs_give_way(self) -> None:
        """Even if the timer is late."""
        queue = make_queue(capacity=2)
        add(queue, "ab", 0.0)

        add(queue, "c", 1.0)

        assert outcomes(queue) == {"a": UNSERVED, "b": UNSERVED}
        assert queue.waiting == 1

    def test_a_job_larger_than_a_message(self) -> None:
        queue = make_queue(max_message=100)
        queue.add(Job("a" * 36, b"", 52, 0.0, 1.0))

        with pytest.raises(JobTooLarge, match="payload of 53 bytes, expected at most 52") as caught:
            queue.add(Job("b" * 36, b"", 53, 0.0, 1.0))
        assert caught.value.status == 413
        assert give(queue) == "a"

    def test_draining(self) -> None:
        queue = make_queue()
        queue.drain()

        with pytest.raises(Unavailable, match="the service is shutting down") as caught:
            add(queue, "a")
        assert (caught.value.status, caught.value.retry_after) == (503, 1.0)

    def test_a_reason_to_refuse_new_jobs_leaves_those_that_wait(self) -> None:
        queue = make_queue()
        add(queue, "a")
        queue.refuse("no worker starts")

        with pytest.raises(Unavailable, match="no worker starts") as caught:
            add(queue, "b")
        assert (caught.value.status, caught.value.retry_after) == (503, 1.0)
        assert give(queue) == "a"
        queue.refuse("")
        add(queue, "c")

    def test_draining_is_the_last_reason(self) -> None:
        queue = make_queue()
        queue.drain()
        queue.refuse("")

        with pytest.raises(Unavailable, match="the service is shutting down"):
            add(queue, "a")

    def test_a_refused_job_is_not_in_the_queue(self) -> None:
        """A shell may abandon what it could not add; no count must suffer."""
        queue = make_queue(capacity=1)
        add(queue, "a")
        refused = Job("b" * 36, b"", 0, 0.0, 1.0)
        with pytest.raises(QueueFull):
            queue.add(refused)

        assert not queue.abandon(refused)
        assert queue.waiting == 1

    def test_a_job_comes_once(self) -> None:
        queue = make_queue()
        (job,) = add(queue, "a")

        with pytest.raises(AssertionError, match="was added before"):
            queue.add(job)


class TestResults:
    def test_each_job_gets_its_own(self) -> None:
        queue = make_queue()
        jobs = add(queue, "abc")
        give(queue)

        answer(queue, "cab")

        assert outcomes(queue) == {name: f"answer to {name}" for name in "abc"}
        assert outcomes(queue) == {}
        assert [job.payload for job in jobs] == [None] * 3
        assert queue.is_empty

    def test_they_ask_for_the_next_batch(self) -> None:
        queue = make_queue()
        add(queue, "abcdef")
        give(queue)

        answer(queue, "abcd")

        assert names_of(queue.take(0.0)) == "ef"

    def test_the_batch_comes_back(self) -> None:
        """The shell measures round trip and size with it."""
        queue = make_queue()
        add(queue, "ab")
        queue.ready("ann", 0.0)
        batch = queue.take(0.0)

        assert queue.accept("ann", {"a" * 36: 1, "b" * 36: 2}, 1.0) is batch

    @pytest.mark.parametrize(
        ("worker", "names", "message"),
        [
            pytest.param("ann", "abx", "result for 'x+', which is not in the batch", id="unknown"),
            pytest.param("ann", "c", "result for 'c+', which is not", id="of-another-worker"),
            pytest.param("cyd", "a", "results while no batch is out", id="unasked"),
        ],
    )
    def test_wrong_results_change_nothing(self, worker: str, names: str, message: str) -> None:
        queue = make_queue(max_batch_size=2)
        add(queue, "abc")
        give(queue, "ann")
        give(queue, "bob")

        with pytest.raises(ProtocolError, match=message):
            answer(queue, names, worker)

        assert outcomes(queue) == {}
        answer(queue, "ab", "ann")
        answer(queue, "c", "bob")
        assert queue.is_empty

    def test_a_second_ready(self) -> None:
        queue = make_queue()
        add(queue, "a")
        give(queue)

        with pytest.raises(ProtocolError, match="ready while a batch is out"):
            queue.ready("ann", 0.0)

    def test_a_left_out_job_counts_as_if_the_worker_had_died(self) -> None:
        """It is tried alone, once more, and then fails; the worker lives on."""
        queue = make_queue()
        add(queue, "abc")
        give(queue)

        answer(queue, "ac")
        assert outcomes(queue) == {"a": "answer to a", "c": "answer to c"}
        for _ in range(2):
            assert names_of(queue.take(0.0)) == "b"
            answer(queue, "")
        assert outcomes(queue) == {"b": WORKER_DIED}
        assert queue.is_empty

    def test_a_left_out_job_prefers_another_worker(self) -> None:
        queue = make_queue()
        add(queue, "a")
        give(queue, "ann")
        queue.ready("bob", 0.0)

        answer(queue, "", "ann")

        batch = queue.take(0.0)
        assert batch is not None and batch.worker == "bob"

    def test_a_retired_worker_gets_no_batch(self) -> None:
        queue = make_queue()
        queue.ready("ann", 0.0)
        queue.retire("ann")
        add(queue, "a")

        assert queue.take(0.0) is None

    def test_a_retired_worker_still_answers(self) -> None:
        """Its farewell may cross with a batch."""
        queue = make_queue(max_batch_size=1)
        add(queue, "ab")
        give(queue)
        queue.retire("ann")

        answer(queue, "a")

        assert outcomes(queue) == {"a": "answer to a"}
        assert queue.take(0.0) is None


class TestDeaths:
    @pytest.mark.parametrize(
        ("jobs", "parts"),
        [
            pytest.param("ab", ["a", "b"], id="2"),
            pytest.param("abc", ["ab", "c"], id="3"),
            pytest.param("abcd", ["ab", "cd"], id="4"),
        ],
    )
    def test_halves_travel_alone_and_first(self, jobs: str, parts: list[str]) -> None:
        queue = make_queue()
        add(queue, jobs)
        give(queue)
        queue.lose("ann", 0.0)

        assert [give(queue, worker) for worker in ("bob", "cyd")] == parts

    def test_new_jobs_come_after_the_parts(self) -> None:
        queue = make_queue()
        add(queue, "ab")
        give(queue)
        add(queue, "cd")
        queue.lose("ann", 0.0)

        assert [give(queue, worker) for worker in ("bob", "cyd", "dan")] == ["a", "b", "cd"]

    def test_a_part_is_released_as_full(self) -> None:
        """Nobody may join it, so it does not wait."""
        queue = make_queue(max_wait=10.0)
        add(queue, "abcd")
        give(queue)
        queue.lose("ann", 0.0)
        queue.ready("bob", 0.0)

        assert queue.due_at(0.0) == 0.0
        batch = queue.take(0.0)
        assert batch is not None and batch.reason == "full"

    def test_a_job_alone_is_tried_once_more(self) -> None:
        queue = make_queue()
        (job,) = add(queue, "a")
        give(queue)
        queue.lose("ann", 0.0)
        assert outcomes(queue) == {}
        assert give(queue) == "a"
        assert job.attempts == 2

        queue.lose("ann", 0.0)

        assert outcomes(queue) == {"a": WORKER_DIED}
        assert (WORKER_DIED.status, WORKER_DIED.reason) == (500, "worker_died")

    @pytest.mark.parametrize("alone", [True, False])
    def test_without_retry_all_fail_at_once(self, alone: bool) -> None:
        queue = make_queue(retry=False)
        add(queue, "a" if alone else "abc")
        give(queue)

        queue.lose("ann", 0.0)

        assert set(outcomes(queue).values()) == {WORKER_DIED}
        assert queue.is_empty
        assert queue.waiting == 0
        assert give(queue, "bob") == ""

    def test_tries_end_at_the_deadline(self) -> None:
        queue = make_queue()
        add(queue, "ab", timeout=1.0)
        give(queue)

        add(queue, "c", timeout=1.0)
        queue.lose("ann", 1.0)

        assert outcomes(queue) == {"a": EXPIRED, "b": EXPIRED, "c": UNSERVED}
        assert (
            UNSERVED.detail == "no answer within the timeout of this request; no worker was ready"
        )
        assert queue.waiting == 0

    def test_a_retried_job_expires_like_any_other(self) -> None:
        queue = make_queue()
        add(queue, "a", timeout=0.5)
        add(queue, "bc", timeout=1.0)
        give(queue)
        queue.lose("ann", 0.1)

        assert give(queue, "bob", 0.6) == "b"
        assert outcomes(queue) == {"a": EXPIRED_IN_QUEUE}

    @pytest.mark.parametrize("is_known", [True, False])
    def test_an_idle_worker_leaves_nothing_behind(self, is_known: bool) -> None:
        queue = make_queue()
        if is_known:
            queue.ready("ann", 0.0)

        queue.lose("ann", 0.0)

        add(queue, "a")
        assert queue.take(0.0) is None

    def test_a_worker_that_holds_a_batch_too_long_is_reported(self) -> None:
        queue = make_queue(batch_timeout=2.0, max_batch_size=1)
        add(queue, "ab", timeout=9.0)
        give(queue, "ann", 0.0)
        give(queue, "bob", 1.0)

        assert queue.next_cutoff() == 2.0
        assert [queue.overdue(now) for now in (1.9, 2.0, 3.0)] == [[], ["ann"], ["ann", "bob"]]
        queue.lose("ann", 2.0)
        assert queue.next_cutoff() == 3.0

    def test_without_batch_timeout_nobody_is_reported(self) -> None:
        queue = make_queue(batch_timeout=None)
        add(queue, "a", timeout=99.0)
        give(queue)

        assert queue.next_cutoff() is None
        assert queue.overdue(98.0) == []


class TestEnds:
    def test_expired_jobs_take_no_place_in_a_batch(self) -> None:
        queue = make_queue(max_batch_size=2)
        add(queue, "a", timeout=0.5)
        add(queue, "bc")

        assert give(queue, now=0.5) == "bc"
        assert outcomes(queue) == {"a": EXPIRED_IN_QUEUE}
        assert (EXPIRED_IN_QUEUE.status, EXPIRED_IN_QUEUE.reason) == (504, "expired")

    def test_expired_jobs_do_not_fill_a_batch(self) -> None:
        queue = make_queue(max_batch_size=2, max_wait=0.010)
        add(queue, "a", timeout=0.5)
        add(queue, "b")

        assert give(queue, now=0.5) == ""

    def test_a_job_expires_at_its_worker_and_the_answer_is_dropped(self) -> None:
        queue = make_queue()
        add(queue, "a", timeout=0.5)
        add(queue, "b")
        give(queue)

        queue.expire(0.5)
        assert outcomes(queue) == {"a": EXPIRED}
        answer(queue, "ab", now=0.6)
        assert outcomes(queue) == {"b": "answer to b"}

    def test_a_late_answer_beats_a_late_timer(self) -> None:
        """Nobody is told that it is too late for an answer that is there."""
        queue = make_queue()
        add(queue, "a", timeout=0.5)
        give(queue)

        answer(queue, "a", now=0.6)

        assert outcomes(queue) == {"a": "answer to a"}

    def test_an_abandoned_job_takes_no_place(self) -> None:
        queue = make_queue(max_batch_size=2, capacity=3)
        jobs = add(queue, "abc")

        assert queue.abandon(jobs[1])
        assert not queue.abandon(jobs[1])
        assert jobs[1].payload is None

        add(queue, "d")
        assert give(queue) == "ac"
        assert outcomes(queue) == {}

    @pytest.mark.parametrize("dies", [True, False])
    def test_a_job_that_is_abandoned_at_its_worker(self, dies: bool) -> None:
        """Its answer is dropped, and it is not tried again."""
        queue = make_queue()
        (job,) = add(queue, "a")
        give(queue)

        assert queue.abandon(job)
        if dies:
            queue.lose("ann", 0.0)
        else:
            answer(queue, "a")

        assert outcomes(queue) == {}
        assert queue.waiting == 0
        assert queue.is_empty

    def test_a_job_that_is_abandoned_between_two_tries_takes_no_place(self) -> None:
        queue = make_queue()
        jobs = add(queue, "ab")
        give(queue)
        queue.lose("ann", 0.0)
        assert queue.waiting == 2

        assert queue.abandon(jobs[0])
        assert queue.waiting == 1
        assert give(queue, "bob") == "b"
        assert queue.waiting == 0

    def test_an_answered_job_cannot_be_abandoned(self) -> None:
        queue = make_queue()
        (job,) = add(queue, "a")
        give(queue)
        answer(queue, "a")

        assert not queue.abandon(job)

    def test_ten_thousand_waiting_jobs(self) -> None:
        """Whoever leaves in the middle, order and counts hold."""
        queue = make_queue(capacity=10_000, max_batch_size=5_000)
        jobs = [Job(f"{n:036d}", b"", 0, 0.0, 100.0 + n * 7919 % 10_000) for n in range(10_000)]
        for job in jobs:
            queue.add(job)
        for job in jobs[::2]:
            queue.abandon(job)
        queue.ready("ann", 0.0)

        batch = queue.take(0.0)

        assert batch is not None
        assert [int(id) for id in batch.jobs] == list(range(1, 10_000, 2))


class TestTime:
    def test_the_earliest_of_all_times(self) -> None:
        queue = make_queue(max_wait=0.25, batch_timeout=3.0, max_batch_size=2)
        assert queue.wake_at(0.0) is None

        add(queue, "a", timeout=9.0)
        assert queue.wake_at(0.0) == queue.next_deadline() == 9.0
        add(queue, "b", timeout=9.0)
        give(queue, "ann", 0.0)
        assert queue.wake_at(0.0) == queue.next_cutoff() == 3.0
        add(queue, "c", 1.0, timeout=9.0)
        queue.ready("bob", 1.0)
        assert queue.wake_at(1.0) == queue.due_at(1.0) == 1.25

    def test_a_short_deadline_overtakes(self) -> None:
        queue = make_queue()
        add(queue, "a", timeout=5.0)
        (short,) = add(queue, "b", timeout=0.5)
        add(queue, "c", timeout=2.0)

        assert queue.next_deadline() == 0.5
        queue.abandon(short)
        assert queue.next_deadline() == 2.0


class TestKeys:
    def keyed(self, queue: Queue[str], names: str, now: float = 0.0, timeout: float = 1.0) -> None:
        """Add one job for each letter; capital letters have another key than small ones."""
        for name in names:
            key = name.isupper()
            queue.add(Job(name * 36, name.encode(), 1, now, now + timeout, key=key))

    def test_keys_never_share_a_batch_and_each_fills_its_own(self) -> None:
        queue = make_queue(max_wait=0.010)
        self.keyed(queue, "aAbBc")
        assert give(queue) == ""
        self.keyed(queue, "d")

        assert names_of(queue.take(0.0)) == "abcd"

    def test_the_oldest_deadline_goes_first(self) -> None:
        queue = make_queue()
        self.keyed(queue, "ab", timeout=3.0)
        self.keyed(queue, "AB", timeout=2.0)

        assert give(queue) == "AB"
        assert give(queue, "bob") == "ab"

    def test_the_wait_of_one_key_is_not_that_of_another(self) -> None:
        queue = make_queue(max_wait=0.010)
        self.keyed(queue, "a", now=0.0)
        queue.ready("ann", 0.0)
        self.keyed(queue, "A", now=0.004)
        queue.ready("bob", 0.004)

        assert queue.due_at(0.005) == 0.010
        assert names_of(queue.take(0.010)) == "a"
        assert queue.due_at(0.010) == 0.014

    def test_a_busy_key_does_not_keep_another_waiting_for_ever(self) -> None:
        """Each time that the worker comes free, a full batch is there already."""
        queue = make_queue(max_wait=0.010)
        self.keyed(queue, "a")
        queue.ready("ann", 0.0)
        for now in (0.0, 0.004, 0.008):
            self.keyed(queue, "BCDE", now)
            assert names_of(queue.take(now)) == "BCDE"
            answer(queue, "BCDE", now=now + 0.004)
        self.keyed(queue, "BCDE", 0.012)

        assert names_of(queue.take(0.012)) == "a"

    def test_the_capacity_is_that_of_all_keys(self) -> None:
        queue = make_queue()
        self.keyed(queue, "abcABCDE")

        with pytest.raises(QueueFull):
            self.keyed(queue, "d")

    def test_each_key_has_a_policy_of_its_own(self) -> None:
        policies = [FixedWait(0.0), FixedWait(0.5)]
        queue = make_queue(make_policy=lambda: policies[1])
        queue.ready("ann", 0.0)
        self.keyed(queue, "a")
        batch = queue.take(0.0)
        assert batch is not None and names_of(batch) == "a"
        self.keyed(queue, "A")
        queue.ready("bob", 0.0)

        assert queue.due_at(0.0) == 0.5
        assert queue.describe(batch).endswith(", 1 still wait; the wait is 0 ms")
