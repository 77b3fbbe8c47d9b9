"""The queue in an event loop: who is told what, in which order, and when the timer is set."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from ventu_lite.batching.dispatcher import BatchTiming, Dispatcher
from ventu_lite.batching.jobs import Failure, Job
from ventu_lite.batching.policy import FixedWait
from ventu_lite.batching.queue import EXPIRED, EXPIRED_IN_QUEUE, UNSERVED, WORKER_DIED, Queue
from ventu_lite.batching.tally import FrontMetrics
from ventu_lite.errors import ProtocolError, QueueFull, Unavailable
from ventu_lite.protocol import Results


@dataclass
class Timer:
    delay: float
    call: Callable[[], None]
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class Loop:
    """What a dispatcher needs of an event loop; a turn is run by hand."""

    soon: list[Callable[[], None]] = field(default_factory=list)
    timers: list[Timer] = field(default_factory=list)

    def call_soon(self, call: Callable[[], None]) -> None:
        self.soon.append(call)

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(delay, call))
        return self.timers[-1]

    def turn(self) -> int:
        """Run what is due; return how much that was."""
        due, self.soon = self.soon, []
        for call in due:
            call()
        return len(due)

    def ring(self) -> None:
        """Let the last timer come."""
        self.timers[-1].call()


@dataclass(eq=False)
class Link:
    log: list[Any]
    cut: list[str] = field(default_factory=list)

    def send(self, payloads: dict[str, bytes]) -> None:
        self.log.append(("send", list(payloads)))

    def cut_off(self, reason: str) -> None:
        self.cut.append(reason)


class LoggedJob(Job):
    """A job that writes down how it ended."""

    __slots__ = ("log",)

    log: list[Any]

    def answered(self, status: int, body: bytes, timing: BatchTiming) -> None:
        self.log.append((self.id, status, body, timing))

    def failed(self, failure: Failure) -> None:
        self.log.append((self.id, failure))


class Bench:
    """A dispatcher with a clock, a loop and a log of all that leaves it."""

    def __init__(self, *, max_batch_size: int = 2, max_wait: float = 0.0, **options: Any) -> None:
        self.now = 100.0
        self.log: list[Any] = []
        self.loop = Loop()
        options = {"capacity": 8, "max_message": 1 << 20, "batch_timeout": 3.0} | options
        self.queue: Queue[Any] = Queue(
            FixedWait(max_wait), max_batch_size=max_batch_size, **options
        )
        self.metrics = FrontMetrics("x", waiting=lambda: 0, workers=dict)
        loop = cast(asyncio.AbstractEventLoop, self.loop)
        self.dispatcher = Dispatcher(self.queue, self.metrics, loop, lambda: self.now)

    def add(self, *ids: str, timeout: float = 5.0) -> list[LoggedJob]:
        now = self.dispatcher.moment()
        jobs = [LoggedJob(id, b"?", 1, now, now + timeout) for id in ids]
        for job in jobs:
            job.log = self.log
            self.dispatcher.add(job)
        return jobs

    def link(self) -> Link:
        link = Link(self.log)
        self.dispatcher.ready(link)
        return link

    def told(self) -> list[Any]:
        """Return what has left since the last call."""
        told, self.log[:] = list(self.log), []
        return told

    def values(self) -> dict[str, float]:
        """Return all samples that are not 0, by name and the value of the last label."""
        samples = [sample for family in self.metrics.collect() for sample in family.samples]
        return {
            "".join([sample.name.removeprefix("ventu_"), *list(sample.labels.values())[1:]]): (
                sample.value
            )
            for sample in samples
            if sample.value and not sample.name.endswith("_bucket")
        }


def test_what_comes_in_one_turn_of_the_loop_travels_together() -> None:
    bench = Bench(max_batch_size=8)
    bench.link()
    bench.add("a", "b")
    bench.add("c")
    assert bench.told() == []

    assert bench.loop.turn() == 1
    assert bench.told() == [("send", ["a", "b", "c"])]


def test_each_batch_is_told_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "ventu_lite"):
        bench = Bench()
        bench.add("a", "b", "c")
        bench.now += 0.004
        bench.link()
        bench.loop.turn()

    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("released 2 job(s) to ")
    assert line.endswith("(full): the oldest waited 4.000 ms, 1 still wait; the wait is 0 ms")


def test_who_asked_for_no_time_gets_a_turn_all_the_same() -> None:
    bench = Bench()
    job = LoggedJob("a", b"?", 1, bench.now, bench.now + 5)
    bench.link()
    bench.loop.turn()
    bench.dispatcher.add(job)
    bench.loop.turn()
    assert bench.told() == [("send", ["a"])]


def test_the_next_batch_is_sent_before_the_last_one_is_answered() -> None:
    """The worker is the narrow place: it must not wait while answers are written."""
    bench = Bench()
    link = bench.link()
    bench.add("a", "b", "c", "d")
    bench.loop.turn()
    bench.told()

    bench.now += 0.3
    bench.dispatcher.results(link, Results({"a": b"1", "b": b"2"}, infer=0.25))
    timing = (0.25, 2)
    assert bench.told() == [
        ("send", ["c", "d"]),
        ("a", 200, b"1", timing),
        ("b", 200, b"2", timing),
    ]


def test_a_worker_cannot_claim_to_have_worked_for_longer_than_it_had_the_batch() -> None:
    bench = Bench()
    link = bench.link()
    bench.add("a")
    bench.loop.turn()
    bench.now += 0.5
    bench.dispatcher.results(link, Results({"a": b"1"}, infer=1e308))
    assert bench.told()[-1] == ("a", 200, b"1", (0.5, 1))


def test_jobs_that_come_with_results_are_sent_before_the_answers_are_written() -> None:
    """Answers are written at the end of a turn of the loop; the worker is idle until then."""
    bench = Bench()
    link = bench.link()
    (a,) = bench.add("a")
    bench.loop.turn()
    bench.told()

    class Writer(list[Any]):
        def append(self, answer: Any) -> None:
            bench.loop.call_soon(lambda: bench.log.append("written"))

    a.log = Writer()
    bench.dispatcher.results(link, Results({"a": b"1"}))
    bench.add("b")
    bench.loop.turn()
    assert bench.told() == [("send", ["b"]), "written"]


def test_a_worker_that_does_not_say_how_long_it_took_is_measured() -> None:
    bench = Bench()
    link = bench.link()
    bench.add("a")
    bench.loop.turn()
    bench.told()
    bench.now += 0.5
    bench.dispatcher.results(link, Results({"a": b"1"}))
    assert bench.told() == [("a", 200, b"1", (0.5, 1))]


def test_a_rejected_job_is_answered_with_its_status() -> None:
    bench = Bench()
    link = bench.link()
    bench.add("a", "b")
    bench.loop.turn()
    bench.told()
    bench.dispatcher.results(link, Results({"a": b"1", "b": b"no"}, {"b": 422}, infer=0.0))
    assert [told[:3] for told in bench.told()] == [("a", 200, b"1"), ("b", 422, b"no")]


def test_all_of_one_turn_has_one_time() -> None:
    bench = Bench()
    first = bench.dispatcher.moment()
    bench.now += 1
    assert bench.dispatcher.moment() == first
    bench.loop.turn()
    assert bench.dispatcher.moment() == bench.now


def test_the_time_of_a_turn_that_a_worker_began_is_not_old() -> None:
    bench = Bench()
    bench.dispatcher.moment()
    bench.loop.turn()
    bench.now += 60
    bench.link()
    assert bench.dispatcher.moment() == bench.now


def test_time_does_not_go_back_after_results() -> None:
    """A policy that learns from both must not see a job come before the worker was free."""
    bench = Bench()
    link = bench.link()
    bench.add("a")
    bench.loop.turn()
    bench.add("b")
    bench.now += 1
    bench.dispatcher.results(link, Results({"a": b"1"}))
    assert bench.dispatcher.moment() == bench.now


class Broken(Link):
    """A link to which nothing can be sent, and which cannot even be closed."""

    def send(self, payloads: dict[str, bytes]) -> None:
        raise ValueError("no way")

    def cut_off(self, reason: str) -> None:
        super().cut_off(reason)
        raise OSError("no socket")


def test_a_worker_that_cannot_be_sent_a_batch_is_cut_off_and_its_jobs_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The others get theirs, what has expired is told, and the timer is set."""
    bench = Bench(max_batch_size=1)
    broken = Broken(bench.log)
    bench.dispatcher.ready(broken)
    bench.link()
    bench.add("a", "b")
    bench.loop.turn()
    assert broken.cut == ["it could not be sent a batch"]
    assert bench.told() == [("send", ["a"])]
    assert bench.queue.waiting == 1 and len(bench.loop.timers) == 1
    assert "no way" in caplog.text and "no socket" in caplog.text


def test_a_broken_worker_does_not_cost_the_one_that_has_answered_its_connection() -> None:
    bench = Bench(max_batch_size=1)
    link = bench.link()
    bench.add("a")
    bench.loop.turn()
    bench.told()
    bench.dispatcher.retire(link)
    bench.dispatcher.ready(Broken(bench.log))
    bench.add("b")
    bench.dispatcher.results(link, Results({"a": b"1"}))
    assert [told[0] for told in bench.told()] == ["a"]


def test_a_worker_that_cannot_be_cut_off_keeps_no_deadline_from_being_kept() -> None:
    bench = Bench(batch_timeout=1.0, retry=False)

    class Stuck(Broken):
        def send(self, payloads: dict[str, bytes]) -> None:
            pass

    bench.dispatcher.ready(Stuck(bench.log))
    bench.add("a", timeout=5.0)
    bench.loop.turn()
    bench.add("b", timeout=1.0)
    bench.loop.turn()
    bench.now += 1.0
    bench.loop.ring()
    assert sorted(bench.told(), key=lambda told: str(told[0])) == [
        ("a", WORKER_DIED),
        ("b", UNSERVED),
    ]


def test_a_job_that_is_left_out_goes_to_another_worker() -> None:
    bench = Bench()
    link = bench.link()
    bench.add("a", "b")
    bench.loop.turn()
    bench.link()
    bench.told()
    bench.dispatcher.results(link, Results({"a": b"1"}, infer=0.0))
    assert bench.told() == [
        ("send", ["b"]),
        ("a", 200, b"1", (0.0, 2)),
    ]


def test_the_jobs_of_a_lost_worker_are_tried_again_and_then_failed() -> None:
    bench = Bench()
    link = bench.link()
    bench.add("a")
    bench.loop.turn()
    for _ in range(2):
        assert bench.told() == [("send", ["a"])]
        bench.dispatcher.lost(link)
        link = bench.link()
        bench.loop.turn()
    assert bench.told() == [("a", WORKER_DIED)]
    assert bench.values()["rejected_totalworker_died"] == 1


@pytest.mark.parametrize(("retry", "fate"), [(True, "are tried again"), (False, "get 500")])
def test_the_log_says_what_becomes_of_the_jobs_of_a_worker_that_left(
    caplog: pytest.LogCaptureFixture, retry: bool, fate: str
) -> None:
    bench = Bench(max_batch_size=3, retry=retry)
    link = bench.link()
    (a, *_) = bench.add("a", "b", "c")
    bench.loop.turn()
    bench.dispatcher.abandon(a)
    bench.dispatcher.lost(link)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.messages == [f"{link!r} has not answered 2 of its 3 job(s); they {fate}"]


def test_the_log_says_what_becomes_of_the_jobs_of_a_worker_that_was_cut_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(batch_timeout=1.0)
    link = bench.link()
    bench.add("a")
    bench.loop.turn()
    bench.now += 1.0
    bench.loop.ring()
    assert caplog.messages == [f"{link!r} has not answered 1 of its 1 job(s); they are tried again"]


def test_the_log_says_that_a_worker_left_jobs_out(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    link = bench.link()
    bench.add("a", "b")
    bench.loop.turn()
    bench.dispatcher.results(link, Results({"a": b"1"}))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.messages[0].endswith("has not answered 1 of its 2 job(s); they are tried again")


def test_a_worker_without_jobs_leaves_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    (a,) = bench.add("a")
    link = bench.link()
    bench.loop.turn()
    bench.dispatcher.abandon(a)
    bench.dispatcher.lost(link)
    bench.dispatcher.lost(bench.link())
    assert not caplog.messages


def test_who_cannot_take_an_answer_keeps_nobody_from_his(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(max_batch_size=4, batch_timeout=None)

    class Full(list[Any]):
        def append(self, answer: Any) -> None:
            raise ValueError("no room")

    link = bench.link()
    (a, _, c, _) = bench.add("a", "b", "c", "d", timeout=2.0)
    a.log = c.log = Full()
    bench.loop.turn()
    bench.told()
    bench.dispatcher.retire(link)
    bench.dispatcher.results(link, Results({"a": b"1", "b": b"2"}))
    assert [told[0] for told in bench.told()] == ["b"]

    bench.now += 2.0
    bench.loop.ring()
    assert bench.told() == [("d", UNSERVED)]
    lost = [said for said in caplog.messages if "is lost" in said]
    assert lost == ["the answer to job a is lost", "the answer to job c is lost"]
    assert "no room" in caplog.text


def test_a_worker_that_says_bye_gets_no_further_batch() -> None:
    bench = Bench()
    link = bench.link()
    bench.add("a", "b", "c")
    bench.loop.turn()
    bench.told()
    bench.dispatcher.retire(link)
    bench.dispatcher.results(link, Results({"a": b"1", "b": b"2"}))
    bench.loop.turn()
    assert [told[0] for told in bench.told()] == ["a", "b"]

    other = bench.link()
    bench.dispatcher.retire(other)
    bench.loop.turn()
    assert bench.told() == []


def test_a_faulty_worker_changes_nothing() -> None:
    bench = Bench()
    link = bench.link()
    bench.add("a")
    bench.loop.turn()
    bench.told()
    with pytest.raises(ProtocolError, match="not in the batch"):
        bench.dispatcher.results(link, Results({"z": b"1"}))
    with pytest.raises(ProtocolError, match="ready while a batch is out"):
        bench.dispatcher.ready(link)
    assert bench.told() == []


def test_an_abandoned_job_is_not_sent() -> None:
    bench = Bench()
    (a, b) = bench.add("a", "b")
    bench.loop.turn()
    bench.dispatcher.abandon(a)
    assert bench.values()["rejected_totalgone"] == 1
    assert bench.loop.turn() == 1  # what the queue says now may be another
    bench.dispatcher.abandon(a)
    assert bench.values()["rejected_totalgone"] == 1
    assert bench.loop.turn() == 0
    bench.link()
    bench.loop.turn()
    assert bench.told() == [("send", ["b"])]


def test_a_worker_that_comes_later_gets_what_waits() -> None:
    bench = Bench()
    bench.add("a")
    bench.loop.turn()
    assert bench.told() == []
    bench.link()
    bench.loop.turn()
    assert bench.told() == [("send", ["a"])]


def test_the_jobs_of_a_lost_worker_go_to_one_that_is_idle() -> None:
    bench = Bench()
    lost, _ = bench.link(), bench.link()
    bench.add("a")
    bench.loop.turn()
    bench.told()
    bench.dispatcher.lost(lost)
    bench.loop.turn()
    assert bench.told() == [("send", ["a"])]


def test_no_job_is_taken_for_a_reason_as_long_as_there_is_one() -> None:
    bench = Bench()
    bench.dispatcher.refuse("no model")
    with pytest.raises(Unavailable, match="^no model$"):
        bench.add("a")
    bench.dispatcher.refuse("")
    bench.add("a")
    assert bench.queue.waiting == 1


def test_a_full_queue_says_so_at_once() -> None:
    bench = Bench(capacity=1)
    bench.add("a")
    with pytest.raises(QueueFull):
        bench.add("b")


# ---- the timer


def test_a_deadline_ends_a_job_wherever_it_is() -> None:
    bench = Bench(max_batch_size=1, batch_timeout=None)
    link = bench.link()
    bench.add("out", "waiting", timeout=2.0)
    bench.loop.turn()
    bench.told()
    assert [timer.delay for timer in bench.loop.timers] == [2.0]

    bench.now += 2.0
    bench.loop.ring()
    assert bench.told() == [("out", EXPIRED), ("waiting", EXPIRED_IN_QUEUE)]
    assert bench.values()["rejected_totalexpired"] == 2

    bench.dispatcher.results(link, Results({"out": b"late"}))
    bench.loop.turn()
    assert bench.told() == []


def test_the_end_of_the_wait_releases_a_batch() -> None:
    bench = Bench(max_wait=0.01)
    bench.link()
    bench.add("a")
    bench.loop.turn()
    assert bench.told() == []
    assert bench.loop.timers[-1].delay == pytest.approx(0.01)
    bench.now += 0.02
    bench.loop.ring()
    assert bench.told() == [("send", ["a"])]
    assert bench.values()["released_totalwait"] == 1


def test_a_worker_that_holds_a_batch_too_long_is_cut_off_and_its_jobs_tried_again() -> None:
    bench = Bench(batch_timeout=1.0)
    link = bench.link()
    bench.add("a")
    bench.loop.turn()
    bench.link()
    bench.loop.turn()
    bench.told()
    bench.now += 1.0
    bench.loop.ring()
    assert [why.partition(" (")[0] for why in link.cut] == ["it held a batch for too long"]
    assert bench.told() == [("send", ["a"])]


def test_a_timer_that_comes_early_enough_is_kept() -> None:
    """To set one each turn would cost more than the turn."""
    bench = Bench(batch_timeout=None)
    link = bench.link()
    for _ in range(100):
        bench.add("a")
        bench.loop.turn()
        bench.now += 0.01
        bench.dispatcher.results(link, Results({"a": b"1"}))
        bench.loop.turn()
    assert len(bench.loop.timers) == 1


def test_a_timer_that_came_for_nothing_is_set_anew() -> None:
    bench = Bench()
    bench.add("a", timeout=1.0)
    (b,) = bench.add("b", timeout=5.0)
    bench.loop.turn()
    bench.now += 1.0
    bench.loop.ring()
    assert [timer.delay for timer in bench.loop.timers] == [1.0, 4.0]

    bench.dispatcher.abandon(b)
    bench.loop.turn()
    bench.now += 4.0
    bench.loop.ring()
    assert len(bench.loop.timers) == 2
    assert bench.told() == [("a", UNSERVED)]


def test_a_timer_that_would_come_too_late_is_replaced() -> None:
    bench = Bench()
    bench.add("a", timeout=5.0)
    bench.loop.turn()
    bench.add("b", timeout=1.0)
    bench.loop.turn()
    first, second = bench.loop.timers
    assert first.is_cancelled
    assert second.delay == pytest.approx(1.0)

    bench.dispatcher.close()
    assert second.is_cancelled


def test_a_dispatcher_without_a_timer_can_be_closed() -> None:
    bench = Bench()
    bench.dispatcher.close()
    assert bench.loop.timers == []


def test_at_the_end_nobody_is_left_waiting() -> None:
    """A thread that waits for a job would else keep the process from its end."""
    bench = Bench(max_batch_size=1)
    bench.link()
    bench.add("out", "waiting")
    bench.loop.turn()
    bench.told()
    bench.dispatcher.close()
    assert bench.told() == [("out", EXPIRED), ("waiting", EXPIRED_IN_QUEUE)]
    with pytest.raises(Unavailable, match="shutting down"):
        bench.add("late")


def test_every_batch_and_every_wait_is_counted() -> None:
    bench = Bench()
    bench.link()
    bench.link()
    bench.add("a", "b", "c")
    bench.now += 0.25
    bench.loop.turn()
    assert bench.values() == {
        "batch_size_count": 2,
        "batch_size_sum": 3,
        "queue_seconds_count": 3,
        "queue_seconds_sum": 0.75,
        "released_totalfull": 1,
        "released_totalidle": 1,
    }
