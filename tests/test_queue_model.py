"""Any order of events, against a model that knows the rules and nothing of how they are kept."""

import math
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ventu_lite.batching.policy import FixedWait
from ventu_lite.batching.queue import (
    EXPIRED,
    EXPIRED_IN_QUEUE,
    UNSERVED,
    WORKER_DIED,
    Batch,
    Job,
    Queue,
)
from ventu_lite.errors import ProtocolError, QueueFull, Unavailable

WORKERS = st.sampled_from(["ann", "bob", "cyd", "dan"])
TIMEOUTS = [1.0, 1.0, 1.0, 0.3, 0.05, 0.01]  # mostly in order

#: One rule with these weights: of many rules, Hypothesis leaves out most in each run.
EVENTS = [
    *["add", "connect", "answer", "sleep"] * 3,
    *["take", "pass_time"] * 2,
    *["die", "answer_in_part", "answer_for_another", "ready_twice", "retire"],
    *["abandon", "expire", "drain", "add_first"],
]


class QueueMachine(RuleBasedStateMachine):
    """A shell without sockets: it does what the queue's docstring asks for, at random moments."""

    @initialize(
        max_batch_size=st.sampled_from([8, 8, 5, 4, 3, 1]),
        capacity=st.sampled_from([20, 20, 9, 5, 1]),
        max_message=st.sampled_from([10_000, 10_000, 300, 100]),
        max_wait=st.sampled_from([0.01, 0.05, 0.05, 0.0]),
        batch_timeout=st.sampled_from([None, 0.3, 0.03]),
        retry=st.sampled_from([True, True, False]),
        keys=st.sampled_from([1, 1, 2, 3]),
    )
    def start(
        self,
        max_batch_size: int,
        capacity: int,
        max_message: int,
        max_wait: float,
        batch_timeout: float | None,
        retry: bool,
        keys: int,
    ) -> None:
        self.queue: Queue[str] = Queue(
            FixedWait(max_wait),
            max_batch_size=max_batch_size,
            capacity=capacity,
            max_message=max_message,
            batch_timeout=batch_timeout,
            retry=retry,
        )
        self.max_batch_size, self.capacity, self.max_message = max_batch_size, capacity, max_message
        self.max_wait, self.batch_timeout, self.retry = max_wait, batch_timeout, retry
        self.keys = keys
        self.now = 100.0
        self.draining = False
        self.payloads: dict[str, bytes] = {}
        self.open: dict[str, Job] = {}  # not done, by age
        self.closed: list[Job] = []
        self.idle: set[str] = set()
        self.retired: set[str] = set()
        self.out: dict[str, Batch[str]] = {}
        self.families: dict[str, tuple[int, int]] = {}  # a retried job's death and batch size
        self.deaths = 0
        self.deaths_alone: dict[str, int] = {}
        self.doomed: set[str] = set()  # must be told "worker died" at once
        self.both_since: dict[int, float] = {}  # a worker is idle and a job waits, by key
        self.passed_over: dict[int, float] = {}  # the same, then another key got that worker
        self.fresh_before: set[str] = set()

    # What is true of the model

    def held(self) -> set[str]:
        return {id for batch in self.out.values() for id in batch.jobs}

    def waiting(self) -> list[str]:
        held = self.held()
        return [id for id in self.open if id not in held]

    def fresh(self, key: int | None = None) -> list[str]:
        fresh = [id for id in self.waiting() if id not in self.families]
        return [id for id in fresh if key is None or self.key_of(id) == key]

    def key_of(self, id: str) -> int:
        return int(id) % self.keys

    def note(self) -> None:
        """Collect what is finished, then note since when a worker is idle while a job waits."""
        for job, outcome in self.queue.finished():
            self.note_outcome(job, outcome)
        assert not self.doomed
        for key in range(self.keys):
            self.note_time(key, set(self.fresh(key)))
        self.fresh_before = set(self.fresh())

    def note_time(self, key: int, fresh: set[str]) -> None:
        if not fresh & self.fresh_before:
            self.both_since.pop(key, None)
            self.passed_over.pop(key, None)
        if fresh and self.idle:
            self.both_since.setdefault(key, self.now)
        else:
            self.both_since.pop(key, None)

    def waits_since(self, key: int) -> float:
        return self.passed_over.get(key, self.both_since[key])

    def note_outcome(self, job: Job, outcome: object) -> None:
        assert self.open.pop(job.id) is job, "finished twice, or after it was abandoned"
        self.closed.append(job)
        if outcome in (EXPIRED, EXPIRED_IN_QUEUE, UNSERVED):
            assert job.deadline <= self.now
            assert outcome is EXPIRED or job.id not in self.held()
            self.doomed.discard(job.id)
        elif outcome is WORKER_DIED:
            self.doomed.remove(job.id)
        else:
            assert outcome == ("result of", job.id)

    def note_death(self, batch: Batch[str], ids: set[str]) -> None:
        """Note that these jobs of a batch have met the death of their worker."""
        self.deaths += 1
        for id in ids & self.open.keys():
            if batch.size == 1:
                self.deaths_alone[id] = self.deaths_alone.get(id, 0) + 1
            if not self.retry or self.deaths_alone.get(id) == 2:
                self.doomed.add(id)
            self.families[id] = (self.deaths, batch.size)

    # Events

    @rule(event=st.sampled_from(EVENTS), data=st.data())
    def happen(self, event: str, data: st.DataObject) -> None:
        getattr(self, event)(data)

    def add(self, data: st.DataObject) -> None:
        for size in data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=6)):
            self.add_one(size, data.draw(st.sampled_from(TIMEOUTS)))

    def make_job(self, size: int, timeout: float) -> Job:
        payload = bytes(size)
        id = f"{len(self.payloads):036d}"
        self.payloads[id] = payload
        return Job(id, payload, size, self.now, self.now + timeout, key=self.key_of(id))

    def add_first(self, data: st.DataObject) -> None:
        """No capacity counts, and it goes before all that wait."""
        job = self.make_job(data.draw(st.integers(0, 30)), data.draw(st.sampled_from(TIMEOUTS)))
        if self.draining:
            with pytest.raises(Unavailable, match="shutting down"):
                self.queue.add_first(job)
        else:
            self.queue.add_first(job)
            self.open = {job.id: job, **self.open}
        self.note()

    def add_one(self, size: int, timeout: float) -> None:
        job = self.make_job(size, timeout)
        alive = [id for id in self.fresh() if self.open[id].deadline > self.now]
        if self.draining:
            with pytest.raises(Unavailable, match="shutting down"):
                self.queue.add(job)
        elif len(alive) >= self.capacity:
            with pytest.raises(QueueFull) as caught:
                self.queue.add(job)
            assert 1 <= (caught.value.retry_after or 0) <= 60
        else:
            self.queue.add(job)
            self.open[job.id] = job
        self.note()

    def connect(self, data: st.DataObject) -> None:
        worker = data.draw(WORKERS)
        if worker not in self.out:
            self.ready(worker)

    def ready(self, worker: str) -> None:
        self.queue.ready(worker, self.now)
        self.idle.add(worker)
        self.note()

    def ready_twice(self, data: st.DataObject) -> None:
        for worker in self.draw_busy(data):
            with pytest.raises(ProtocolError, match="ready while a batch is out"):
                self.queue.ready(worker, self.now)
            self.lose(worker)

    def answer(self, data: st.DataObject) -> None:
        for worker in self.draw_busy(data):
            self.accept(worker, set(self.out[worker].jobs))

    def answer_in_part(self, data: st.DataObject) -> None:
        for worker in self.draw_busy(data):
            ids = sorted(self.out[worker].jobs)
            self.accept(worker, data.draw(st.sets(st.sampled_from(ids))))

    def draw_busy(self, data: st.DataObject) -> list[str]:
        """Return a worker with a batch, if there is one."""
        return [data.draw(st.sampled_from(sorted(self.out)))] if self.out else []

    def accept(self, worker: str, ids: set[str]) -> None:
        batch = self.out.pop(worker)
        assert self.queue.accept(worker, {id: ("result of", id) for id in ids}, self.now) is batch
        self.note_death(batch, set(batch.jobs) - ids)
        if worker in self.retired:
            self.retired.remove(worker)
        else:
            self.idle.add(worker)
        self.note()

    def answer_for_another(self, data: st.DataObject) -> None:
        """Neither an id that was never there nor one of another worker is accepted."""
        worker = data.draw(WORKERS)
        own = sorted(self.out[worker].jobs) if worker in self.out else []
        foreign = sorted(set(self.payloads) - set(own)) + ["unknown"]
        results = dict.fromkeys([*own, data.draw(st.sampled_from(foreign))], "wrong")
        with pytest.raises(ProtocolError):
            self.queue.accept(worker, results, self.now)
        self.lose(worker)

    def die(self, data: st.DataObject) -> None:
        self.lose(data.draw(WORKERS))

    def lose(self, worker: str) -> None:
        batch = self.out.pop(worker, None)
        self.idle.discard(worker)
        self.retired.discard(worker)
        self.queue.lose(worker, self.now)
        if batch is not None:
            self.note_death(batch, set(batch.jobs))
        self.note()

    def retire(self, data: st.DataObject) -> None:
        worker = data.draw(WORKERS)
        self.queue.retire(worker)
        self.idle.discard(worker)
        if worker in self.out:
            self.retired.add(worker)
        self.note()

    def abandon(self, data: st.DataObject) -> None:
        jobs = [*self.open.values(), *self.closed]
        if not jobs:
            return
        job = data.draw(st.sampled_from(jobs))
        assert self.queue.abandon(job) is (job.id in self.open)
        if self.open.pop(job.id, None):
            self.closed.append(job)
        self.note()

    def pass_time(self, data: st.DataObject) -> None:
        self.now += data.draw(st.sampled_from([0.001, 0.02, 0.2]))

    def sleep(self, data: st.DataObject) -> None:
        """Sleep until the queue wants to be woken, then do what a timer does."""
        wake_at = self.queue.wake_at(self.now)
        if wake_at is None:
            return
        self.now = max(self.now, wake_at)
        for worker in self.queue.overdue(self.now):
            assert self.batch_timeout is not None
            assert self.out[worker].released_at + self.batch_timeout <= self.now
            self.lose(worker)
        self.queue.expire(self.now)
        self.note()
        self.take(data)
        wake_at = self.queue.wake_at(self.now)
        assert wake_at is None or wake_at > self.now, "the timer would spin"

    def expire(self, data: st.DataObject) -> None:
        self.queue.expire(self.now)
        self.note()
        assert all(job.deadline > self.now for job in self.open.values())

    def drain(self, data: st.DataObject) -> None:
        if len(self.payloads) > 50:
            self.queue.drain()
            self.draining = True

    def take(self, data: st.DataObject | None = None) -> None:
        while batch := self.queue.take(self.now):
            self.check_batch(batch)
            if not any(id in self.families for id in batch.jobs):
                self.pass_over(self.key_of(next(iter(batch.jobs))))
            self.out[batch.worker] = batch
            self.idle.remove(batch.worker)
            self.note()
        self.note()
        if self.idle and self.waiting():
            due_at = self.queue.due_at(self.now)
            assert due_at is not None
            assert self.now < due_at == min(map(self.waits_since, self.both_since)) + self.max_wait
        else:
            assert self.queue.due_at(self.now) is None

    def pass_over(self, taken: int) -> None:
        """The time of all other keys goes on, even while no worker is idle."""
        for key in self.both_since:
            self.passed_over.setdefault(key, self.both_since[key])
        self.passed_over.pop(taken)

    # What is true of a batch

    def check_batch(self, batch: Batch[str]) -> None:
        ids = list(batch.jobs)
        self.queue_finished_before_batch()
        assert batch.worker in self.idle
        assert set(ids) <= set(self.waiting()), "sent twice, or after its end"
        assert all(job.deadline > self.now for job in batch.jobs.values())
        assert 1 <= len(ids) == batch.size <= self.max_batch_size
        assert self.message_size(ids) <= self.max_message
        retried = [id for id in self.waiting() if id in self.families]
        if retried:
            self.check_part(ids)
        else:
            self.check_fresh(batch, ids)

    def queue_finished_before_batch(self) -> None:
        """Learn which jobs expired while the queue formed the batch."""
        for job, outcome in self.queue.finished():
            assert outcome in (EXPIRED, EXPIRED_IN_QUEUE)
            self.note_outcome(job, outcome)

    def check_part(self, ids: list[str]) -> None:
        """Jobs of one dead worker, nobody else, at most half as many."""
        ((_, size),) = {self.families.get(id, (0, 0)) for id in ids}
        assert len(ids) <= math.ceil(size / 2)

    def check_fresh(self, batch: Batch[str], ids: list[str]) -> None:
        """The oldest jobs of the most urgent key, as many as fit; and the reason is true."""
        key = self.key_of(ids[0])
        waiting = self.fresh(key)
        assert ids == waiting[: len(ids)]
        is_cut = len(ids) == min(self.max_batch_size, self.capacity)
        if len(ids) < len(waiting):
            is_cut = is_cut or self.counted_size(waiting[: len(ids) + 1]) > self.max_message
            assert is_cut
        assert (batch.reason == "full") == self.is_full(key)
        if batch.reason == "wait":
            assert self.max_wait and self.now >= self.waits_since(key) + self.max_wait
        elif batch.reason == "idle":
            assert self.draining or not self.max_wait
        due = [other for other in range(self.keys) if self.is_due(other)]
        assert key in due
        assert self.open[ids[0]].deadline == min(self.open[self.fresh(k)[0]].deadline for k in due)

    def is_full(self, key: int) -> bool:
        waiting = self.fresh(key)
        most = min(self.max_batch_size, self.capacity)
        return len(waiting) >= most or self.counted_size(waiting) + 43 > self.max_message

    def is_due(self, key: int) -> bool:
        if not self.fresh(key):
            return False
        is_over = self.now >= self.waits_since(key) + self.max_wait
        return is_over or self.draining or self.is_full(key)

    def message_size(self, ids: list[str]) -> int:
        return len(msgpack.packb({id: self.payloads[id] for id in ids}))

    def counted_size(self, ids: list[str]) -> int:
        return 5 + sum(43 + len(self.payloads[id]) for id in ids)

    # What is always true

    @invariant()
    def counts_agree(self) -> None:
        assert self.queue.waiting == len(self.waiting())
        assert self.queue.is_empty == (not self.open)
        deadlines = [job.deadline for job in self.open.values()]
        assert self.queue.next_deadline() == min(deadlines, default=None)

    def teardown(self) -> None:
        """No job is lost: whatever happened, honest workers bring the queue to its end."""
        self.queue.drain()
        self.draining = True
        for _ in range(4 * len(self.open) + 8):
            for worker in sorted(self.out):
                self.accept(worker, set(self.out[worker].jobs))
            if "eve" not in self.out:
                self.ready("eve")
            self.take()
        assert self.queue.is_empty


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)


@given(data=st.data(), size=st.integers(1, 70), leave_out=st.booleans())
def test_poison_stands_alone(data: st.DataObject, size: int, leave_out: bool) -> None:
    """A job that kills every worker fails alone, after few deaths; its companions are answered."""
    poison = f"{data.draw(st.integers(0, size - 1)):036d}"
    queue: Queue[int] = Queue(FixedWait(0), max_batch_size=size, capacity=size, max_message=2**20)
    for n in range(size):
        queue.add(Job(f"{n:036d}", b"", 0, 0.0, 1.0))
    outcomes: dict[str, Any] = {}
    worker = deaths = 0
    queue.ready(worker, 0.0)
    while batch := queue.take(0.0):
        if poison not in batch.jobs:
            queue.accept(worker, {id: "answered" for id in batch.jobs}, 0.0)
        elif leave_out:
            deaths += 1
            queue.accept(worker, {id: "answered" for id in batch.jobs if id != poison}, 0.0)
        else:
            deaths += 1
            queue.lose(worker, 0.0)
            worker += 1
            queue.ready(worker, 0.0)
        outcomes.update((job.id, outcome) for job, outcome in queue.finished())

    assert deaths <= math.log2(size) + 3
    assert outcomes.pop(poison) is WORKER_DIED
    assert list(outcomes.values()) == ["answered"] * (size - 1)
    assert queue.is_empty
