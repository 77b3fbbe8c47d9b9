"""Threads of one process share the calls of a batch function."""

import logging
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, cycle
from pathlib import Path
from typing import Any

import flask
import pytest
from flask.testing import FlaskClient
from processes import gunicorn
from programs import run_file
from prometheus_client import REGISTRY
from waiting import until

from ventu_lite import JobExpired, PayloadTooLarge, QueueFull, Service, Unavailable
from ventu_lite.batching.direct import OneByOne
from ventu_lite.batching.local import LocalQueue
from ventu_lite.batching.local_jobs import Asked, Inferred
from ventu_lite.batching.policy import Running
from ventu_lite.metrics import ServiceMetrics, metrics_of
from ventu_lite.outcomes import Rejected
from ventu_lite.turns import Turns

PATIENCE = 10.0

_numbers = count()


class Policy:
    """Waits a fixed time, and lets a test see each job come."""

    def __init__(self, max_wait: float) -> None:
        self.max_wait = max_wait
        self.arrived = threading.Semaphore(0)

    def job_arrived(self, now: float) -> None:
        self.arrived.release()

    def passed_over(self) -> None: ...

    def batch_released(self, size: int, now: float) -> None: ...

    def batch_finished(self, size: int, seconds: float, now: float) -> None: ...

    def due_at(
        self,
        now: float,
        *,
        since: float,
        waiting: int,
        room: int,
        idle: int,
        busy: Collection[Running],
    ) -> float:
        return since + self.max_wait

    def explain(self) -> str:
        return "as a test wants it"


class Model:
    """A batch function that is held up by the item "hold" until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, items: Sequence[Any]) -> list[Any]:
        self.batches.append(list(items))
        if "hold" in items:
            self.begun.set()
            assert self.go.wait(PATIENCE)
        return [f"<{item}>" for item in items]


def asked(*items: Any) -> list[Asked]:
    """Return what threads ask with items that nobody changes."""
    return [Asked(item, cycle([item]).__next__) for item in items]


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Threads:
    """A queue with threads that ask it."""

    def __init__(
        self,
        model: Any = None,
        *,
        max_wait: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        self.model = model or Model()
        self.clock = clock
        self.policy = Policy(max_wait)
        self.turns = Turns()
        self.metrics: ServiceMetrics = metrics_of(f"local {next(_numbers)}")
        settings: dict[str, Any] = {"max_batch_size": 8, "capacity": 100, "timeout": PATIENCE}
        settings |= {"make_policy": lambda: self.policy} | options
        self.queue = LocalQueue(
            lambda items, again: self.model(items),
            **settings,
            turns=self.turns,
            metrics=self.metrics,
            clock=clock,
        )
        self.pool = ThreadPoolExecutor(64)

    def __enter__(self) -> "Threads":
        return self

    def __exit__(self, *exc: object) -> None:
        if isinstance(self.model, Model):
            self.model.go.set()
        self.pool.shutdown()
        self.queue.stop()

    def ask(self, item: Any = "a", seconds: float = PATIENCE) -> Inferred:
        return self.queue.ask(asked(item)[0], self.clock() + seconds)

    def start(self, *items: Any, seconds: float = PATIENCE) -> list[Future[Inferred]]:
        """Ask from as many other threads, one after the other, and return when all wait."""
        futures = []
        for item in items:
            futures.append(self.pool.submit(self.ask, item, seconds))
            assert self.policy.arrived.acquire(timeout=PATIENCE)
        return futures

    def hold(self) -> Future[Inferred]:
        """Keep the model busy until it is let go."""
        (holder,) = self.start("hold")
        assert self.model.begun.wait(PATIENCE)
        return holder

    def before_expiry(self, call: Callable[[], object]) -> None:
        """Call something each time that the deadline of a job has come, and expire it after that.

        With a clock that stands still nothing else lets a job expire.
        """
        queue: Any = self.queue._queue
        expire = queue.expire

        def call_and_expire(job: Any) -> None:
            call()
            expire(job)

        queue.expire = call_and_expire

    def sample(self, series: str, **labels: str) -> float:
        named = {"service": self.metrics.name} | labels
        return REGISTRY.get_sample_value(series, named) or 0.0


def results(futures: Sequence[Future[Inferred]]) -> list[Any]:
    return [future.result(PATIENCE).result for future in futures]


def rejected(answer: Inferred) -> Rejected:
    assert isinstance(answer.result, Rejected)
    return answer.result


def inference_threads(name: str) -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == f"ventu_lite inference {name}"]


# -------------------------------------------------------------------------------- batches


def test_jobs_that_wait_together_share_a_call() -> None:
    with Threads() as threads:
        holder = threads.hold()
        asked = threads.start("a", "b", "c")
        threads.model.go.set()
        assert results([holder, *asked]) == ["<hold>", "<a>", "<b>", "<c>"]
        assert threads.model.batches == [["hold"], ["a", "b", "c"]]


def test_who_waits_for_several_jobs_holds_nobody_up() -> None:
    """A thread wakes the next one when it goes on, and that one waits for another batch, too."""
    options: dict[str, Any] = {"max_batch_size": 3, "max_wait": PATIENCE, "key": lambda item: item}
    slow = asked("slow", "a")
    with Threads(**options) as threads:
        both = [threads.pool.submit(threads.queue.ask_all, slow, threads.clock() + 60)]
        both += [threads.pool.submit(threads.queue.ask_all, slow, threads.clock() + 60)]
        for _ in range(4):
            assert threads.policy.arrived.acquire(timeout=PATIENCE)
        assert results(threads.start("a")) == ["<a>"]  # a full batch of this key
        assert not any(future.done() for future in both)
        assert results(threads.start("slow")) == ["<slow>"]
        for future in both:
            assert [answer.result for answer in future.result(PATIENCE)] == ["<slow>", "<a>"]


def test_an_answer_tells_where_the_time_went() -> None:
    clock = Clock()
    with Threads(clock=clock) as threads:
        holder = threads.hold()
        clock.now += 0.25
        (asked,) = threads.start("a")
        threads.start("b")
        clock.now += 0.5
        threads.model.go.set()
        first, second = holder.result(PATIENCE), asked.result(PATIENCE)
        assert (first.queue, first.infer, first.batch_size) == (0.0, 0.75, 1)
        assert (second.queue, second.infer, second.batch_size) == (0.5, 0.0, 2)


def test_no_batch_is_larger_than_it_may_be() -> None:
    with Threads(max_batch_size=3) as threads:
        threads.hold()
        asked = threads.start(*"abcdefg")
        threads.model.go.set()
        results(asked)
        assert threads.model.batches[1:] == [["a", "b", "c"], ["d", "e", "f"], ["g"]]


def test_a_full_batch_wakes_the_thread_that_waits_for_company() -> None:
    with Threads(max_wait=PATIENCE, max_batch_size=3) as threads:
        asked = threads.start("a", "b", "c")
        assert results(asked) == ["<a>", "<b>", "<c>"]
        assert asked[0].result().queue < PATIENCE / 2


def test_a_job_waits_for_company_no_longer_than_it_should() -> None:
    with Threads(max_wait=0.03) as threads:
        answer = threads.ask()
        assert answer.result == "<a>"
        assert 0.03 <= answer.queue < PATIENCE / 2


def test_preparing_goes_on_while_the_model_is_busy() -> None:
    """Only the model has one thread."""
    with Threads() as threads:
        threads.hold()
        assert len(threads.start(*range(30))) == 30


# --------------------------------------------------------------------- capacity, deadlines


def test_a_job_beyond_the_capacity_is_told_when_to_come_back() -> None:
    with Threads(capacity=2) as threads:
        threads.hold()
        asked = threads.start("a", "b")
        with pytest.raises(QueueFull, match="2 jobs wait already") as caught:
            threads.ask()
        assert (caught.value.retry_after or 0) >= 1
        threads.model.go.set()
        assert results(asked) == ["<a>", "<b>"]
        assert threads.ask("c").result == "<c>"


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Let threads take turns as often as they can, so that a race is lost soon."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty_threads")
def test_of_jobs_that_find_no_place_together_none_is_computed() -> None:
    """The inference thread must not take the first of them while the last are refused."""
    long = 60 * PATIENCE
    with Threads(max_wait=long, max_batch_size=2, capacity=2) as threads:
        (first,) = threads.start("d", seconds=long)
        for _ in range(300):
            with pytest.raises(QueueFull, match="2 jobs wait already") as caught:
                threads.queue.ask_all(asked("a", "b"), time.monotonic() + PATIENCE)
            assert caught.value.retry_after
        assert threads.ask("e").result == "<e>"
        assert first.result(PATIENCE).result == "<d>"
        assert threads.model.batches == [["d", "e"]]


def test_more_jobs_than_may_ever_wait_are_not_told_to_come_back() -> None:
    with Threads(capacity=2) as threads:
        with pytest.raises(PayloadTooLarge, match="^3 requests at once, at most 2 fit: "):
            threads.queue.ask_all(asked("a", "b", "c"), time.monotonic() + PATIENCE)
        answers = threads.queue.ask_all(asked("a", "b"), time.monotonic() + PATIENCE)
        assert [answer.result for answer in answers] == ["<a>", "<b>"]


def test_a_job_that_expires_in_the_queue_is_not_computed() -> None:
    clock = Clock()

    def move_clock() -> None:
        clock.now += 0.25

    with Threads(capacity=1, clock=clock) as threads:
        threads.before_expiry(move_clock)
        threads.hold()
        (asked,) = threads.start("a", seconds=0.02)
        answer = asked.result(PATIENCE)
        assert rejected(answer).status == 504
        assert isinstance(rejected(answer).exc, JobExpired)
        assert (answer.queue, answer.infer, answer.batch_size) == (0.25, 0, 0)
        assert threads.sample("ventu_queue_jobs") == 0
        (asked,) = threads.start("b")  # its place is free
        threads.model.go.set()
        assert results([asked]) == ["<b>"]
        assert threads.model.batches == [["hold"], ["b"]]


def test_a_job_that_came_too_late_is_not_computed() -> None:
    with Threads() as threads:
        assert rejected(threads.ask(seconds=-1.0)).status == 504
        assert threads.ask("b").result == "<b>"
        assert threads.model.batches == [["b"]]


def test_a_job_that_expires_in_its_batch_is_answered_at_once() -> None:
    """It waits for its own deadline, not for the batch, and its result is dropped."""
    clock = Clock()

    def wait_and_move_clock() -> None:
        assert threads.model.begun.wait(PATIENCE)
        clock.now += 0.25

    with Threads(clock=clock) as threads:
        threads.before_expiry(wait_and_move_clock)
        (asked,) = threads.start("hold", seconds=0.02)
        answer = asked.result(PATIENCE)
        assert not threads.model.go.is_set()
        assert rejected(answer).status == 504
        assert (answer.queue, answer.infer, answer.batch_size) == (0, 0.25, 1)
        threads.model.go.set()
        assert threads.ask("b").result == "<b>"


def test_an_answer_that_comes_with_the_deadline_counts() -> None:
    """Between the end of the wait and the lock the batch may have been finished."""
    with Threads(clock=Clock()) as threads:
        finished = threading.Event()

        def finish() -> None:
            threads.model.go.set()
            assert threads.pool.submit(threads.ask, "b").result(PATIENCE).result == "<b>"
            finished.set()

        threads.before_expiry(finish)
        answer = threads.ask("hold", seconds=0.02)
        assert finished.is_set()
        assert answer.result == "<hold>"


def test_what_fails_after_its_deadline_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    model = Model()

    def infer(items: Sequence[Any]) -> list[Any]:
        model(items)
        return [Rejected.of(KeyError("lost"))] * len(items)

    with Threads(infer, max_wait=PATIENCE, max_batch_size=2, clock=Clock()) as threads:
        threads.before_expiry(lambda: model.begun.wait(PATIENCE))
        for late in threads.start("hold", "b", seconds=0.02):
            assert rejected(late.result(PATIENCE)).status == 504
        model.go.set()
        for one in threads.start("c", "d"):
            assert rejected(one.result(PATIENCE)).status == 500
    records = [one for one in caplog.records if "after the deadline" in one.getMessage()]
    assert len(records) == 1  # one exception of two jobs
    assert "KeyError: 'lost'" in caplog.text


def test_a_model_that_is_too_slow_for_the_timeout_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()

    def slow(items: Sequence[Any]) -> list[Any]:
        clock.now += 2.5 if "slow" in items else 2.0
        return list(items)

    with Threads(slow, clock=clock, timeout=2.0) as threads:
        for item in ("quick", "slow", "slow"):
            threads.ask(item)
    assert [one.getMessage() for one in caplog.records] == [
        "the model took 2.5 s for 1 item(s), but a request waits no longer than timeout, 2 s:"
        " raise VENTU_TIMEOUT"
    ]


def test_a_very_long_deadline_is_no_overflow() -> None:
    with Threads(timeout=1e300) as threads:
        assert threads.ask(seconds=1e300).result == "<a>"


def test_a_very_long_wait_is_no_overflow() -> None:
    with Threads(max_wait=1e300, max_batch_size=2) as threads:
        assert results(threads.start("a", "b")) == ["<a>", "<b>"]


# ---------------------------------------------------------------------------- the thread


def test_there_is_one_thread_and_only_when_it_is_needed() -> None:
    with Threads() as threads:
        name = threads.metrics.name
        assert inference_threads(name) == []
        for _ in range(3):
            threads.ask()
        (thread,) = inference_threads(name)
        assert thread.daemon
        threads.queue.stop()
        thread.join(PATIENCE)
        assert inference_threads(name) == []


def test_the_model_is_called_in_that_thread_only() -> None:
    seen = set()

    def infer(items: Sequence[Any]) -> list[Any]:
        seen.add(threading.current_thread())
        return list(items)

    with Threads(infer) as threads:
        results(threads.start(*range(50)))
        assert seen == set(inference_threads(threads.metrics.name))


@pytest.mark.parametrize("exc", [KeyboardInterrupt(), SystemExit(1), ValueError("x")])
def test_what_the_model_raises_fails_its_batch_only(exc: BaseException) -> None:
    def infer(items: Sequence[Any]) -> list[Any]:
        if "bad" in items:
            raise exc
        return list(items)

    with Threads(infer) as threads:
        answer = threads.ask("bad")
        assert rejected(answer).status == 500
        assert rejected(answer).exc is exc
        (thread,) = inference_threads(threads.metrics.name)
        assert threads.ask("good").result == "good"
        assert inference_threads(threads.metrics.name) == [thread]


class Fragile(Policy):
    """Fails in the inference thread as long as it is broken."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.is_broken = True

    def due_at(self, now: float, **state: Any) -> float:
        if self.is_broken and "inference" in threading.current_thread().name:
            raise SystemExit("broken")
        return now

    def batch_finished(self, size: int, seconds: float, now: float) -> None:
        if self.max_wait:
            raise MemoryError


def test_when_the_thread_dies_its_jobs_fail_and_the_next_one_starts_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = Fragile()
    with Threads(make_policy=lambda: policy) as threads:
        for _ in range(2):
            answer = threads.ask()
            assert rejected(answer).status == 500
            assert isinstance(rejected(answer).exc, SystemExit)
        policy.is_broken = False
        assert threads.ask("b").result == "<b>"
        assert len(inference_threads(threads.metrics.name)) == 1
        policy.max_wait = 1.0  # now it fails when the results are there
        assert threads.ask("c").result == "<c>"
    assert caplog.text.count("the inference thread died") == 3


def test_a_thread_that_dies_while_it_ends_leaves_nobody_waiting() -> None:
    with Threads() as threads:
        threads.hold()
        (asked,) = threads.start("a")
        policy = Fragile()
        queue = threads.queue._queue
        queue._queue._lanes.of(None).policy = policy
        queue._make_policy = lambda: policy
        stopping = threads.pool.submit(threads.queue.stop)
        until(lambda: queue._is_stopping)
        policy.max_wait = 1.0
        threads.model.go.set()
        assert rejected(asked.result(PATIENCE)).status == 500
        stopping.result(PATIENCE)
        with pytest.raises(Unavailable):
            threads.ask()


def test_no_thread_is_no_reason_to_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Threads() as threads:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(Unavailable, match="cannot be called now") as caught:
                threads.ask()
        assert caught.value.retry_after == 1.0
        assert "can't start new thread" in caplog.text
        assert threads.ask("b").result == "<b>"
        assert threads.model.batches == [["b"]]


def test_ctrl_c_in_a_waiting_thread_takes_its_job_out() -> None:
    with Threads() as threads:
        threads.hold()
        main = threading.main_thread().ident
        assert main is not None

        def interrupt() -> None:
            assert threads.policy.arrived.acquire(timeout=PATIENCE)
            until(lambda: sys._current_frames()[main].f_code is LocalQueue.ask.__code__)
            signal.pthread_kill(main, signal.SIGINT)

        interrupting = threads.pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            threads.ask("a")
        interrupting.result(PATIENCE)
        threads.model.go.set()
        assert threads.ask("b").result == "<b>"
        assert threads.model.batches == [["hold"], ["b"]]


def test_a_batch_that_all_have_left_is_not_computed() -> None:
    """While somebody else has the turn, jobs may come and go."""
    with Threads() as threads:
        with threads.turns:
            (asked,) = threads.start("a", seconds=0.02)
            assert rejected(asked.result(PATIENCE)).status == 504
        assert threads.ask("b").result == "<b>"
        assert threads.model.batches == [["b"]]


def test_who_comes_while_another_has_the_turn_joins_the_batch() -> None:
    with Threads() as threads:
        with threads.turns:
            asked = threads.start("a", "b", "c")
        results(asked)
        assert threads.model.batches == [["a", "b", "c"]]


# -------------------------------------------------------------------------------- the end


def test_stopping_answers_what_is_there_and_takes_nothing_new() -> None:
    with Threads(max_wait=PATIENCE) as threads:
        asked = threads.start("a", "b")
        threads.queue.stop()
        assert results(asked) == ["<a>", "<b>"]
        with pytest.raises(Unavailable, match="shutting down"):
            threads.ask()
        threads.queue.stop()


def test_stopping_waits_no_longer_than_somebody_else_does() -> None:
    with Threads(clock=Clock()) as threads:
        queue = threads.queue._queue
        threads.before_expiry(lambda: until(lambda: queue._is_stopping))
        (asked,) = threads.start("hold", seconds=0.02)
        assert threads.model.begun.wait(PATIENCE)
        threads.queue.stop()
        assert not threads.model.go.is_set()
        assert rejected(asked.result(PATIENCE)).status == 504


def test_what_was_never_used_stops_at_once() -> None:
    threads = Threads()
    threads.queue.stop()
    with pytest.raises(Unavailable):
        threads.ask()


def test_who_presses_ctrl_c_again_does_not_wait() -> None:
    with Threads() as threads:
        threads.hold()
        main = threading.main_thread().ident
        assert main is not None
        queue: Any = threads.queue._queue

        def interrupt() -> None:
            until(lambda: queue._emptied._waiters and not queue._changed._lock.locked())
            signal.pthread_kill(main, signal.SIGINT)

        interrupting = threads.pool.submit(interrupt)
        threads.queue.stop()
        assert not threads.model.go.is_set()
        interrupting.result(PATIENCE)


# -------------------------------------------------------------------------- what is seen


def test_batches_are_counted() -> None:
    with Threads(max_batch_size=3) as threads:
        threads.hold()
        asked = threads.start(*"abcd")
        assert threads.sample("ventu_queue_jobs") == 4
        threads.model.go.set()
        results(asked)
        sample = threads.sample
        assert sample("ventu_queue_jobs") == 0
        assert sample("ventu_queue_seconds_count") == 4 or sample("ventu_queue_seconds_count") == 5
        until(lambda: sample("ventu_batch_size_count") == 3)  # counted after the answers
        assert sample("ventu_batch_size_sum") == 5
        assert sample("ventu_batch_size_bucket", le="1.0") == 2
        assert sample("ventu_released_total", reason="full") == 1
        assert sample("ventu_released_total", reason="idle") == 2
        assert sample("ventu_stage_seconds_count", stage="infer", mode="batch") == 3


def test_a_wait_to_its_end_is_counted_as_one() -> None:
    with Threads(max_wait=0.01) as threads:
        threads.ask()
        threads.queue.stop()
        assert threads.sample("ventu_released_total", reason="wait") == 1


def test_each_batch_is_told_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "ventu_lite"), Threads(max_batch_size=2) as threads:
        threads.hold()
        asked = threads.start("a", "b", "c")
        threads.model.go.set()
        results(asked)
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("released")]
    assert len(lines) == 3
    assert lines[1].startswith("released 2 job(s) to the inference thread (full): the oldest")
    assert lines[1].endswith(" ms, 1 still wait; as a test wants it")


def test_each_key_fills_its_own_call() -> None:
    with Threads(key=len) as threads:
        holder = threads.hold()
        asked = threads.start("a", "bb", "c", "dd", "e")
        threads.model.go.set()
        assert results([*asked, holder]) == ["<a>", "<bb>", "<c>", "<dd>", "<e>", "<hold>"]

    assert threads.model.batches == [["hold"], ["a", "c", "e"], ["bb", "dd"]]


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(lambda item: {}[item], id="raises"),
        pytest.param(lambda item: sys.exit("enough"), id="exits"),
    ],
)
def test_an_item_without_a_key_fails_alone(key: Any) -> None:
    with Threads(key=lambda item: key(item) if item == "bad" else 1) as threads:
        assert rejected(threads.ask("bad")).status == 500
        assert threads.ask("good").result == "<good>"


# ------------------------------------------------------------------- one by one: no thread


class Alone:
    """A model that may get one item only, with threads that ask it."""

    def __init__(self, model: Any, capacity: int = 100) -> None:
        self.metrics = metrics_of(f"alone {next(_numbers)}")
        self.turns = Turns()
        self.model = OneByOne(
            lambda items, again: model(items),
            capacity=capacity,
            turns=self.turns,
            metrics=self.metrics,
            clock=time.monotonic,
        )

    def ask(self, item: Any = "a", seconds: float = PATIENCE) -> Inferred:
        return self.model.ask(asked(item)[0], time.monotonic() + seconds)


def test_one_by_one_needs_no_thread() -> None:
    seen = []

    def infer(items: Sequence[Any]) -> list[Any]:
        seen.append(threading.current_thread())
        return list(items)

    alone = Alone(infer)
    answer = alone.ask("x")
    assert (answer.result, answer.batch_size) == ("x", 1)
    assert seen == [threading.current_thread()]
    labels = {"service": alone.metrics.name}
    assert REGISTRY.get_sample_value("ventu_batch_size_sum", labels) == 1
    assert REGISTRY.get_sample_value("ventu_queue_seconds_count", labels) == 1
    assert REGISTRY.get_sample_value("ventu_released_total", labels | {"reason": "full"}) == 1


def test_one_by_one_has_deadlines_and_a_capacity_too() -> None:
    model = Model()
    alone = Alone(model, capacity=1)
    with ThreadPoolExecutor(2) as pool:
        holder = pool.submit(alone.ask, "hold")
        assert model.begun.wait(PATIENCE)
        deadline = time.monotonic() + 0.01
        answer = alone.model.ask(asked("late")[0], deadline)
        assert time.monotonic() >= deadline
        assert rejected(answer).status == 504
        assert answer.queue > 0
        waiting = pool.submit(alone.ask, "b")
        until(lambda: alone.turns._waiting)
        with pytest.raises(QueueFull) as caught:
            alone.ask("c")
        assert (caught.value.retry_after or 0) >= 1
        model.go.set()
        assert results([holder, waiting]) == ["<hold>", "<b>"]
    assert rejected(alone.ask(seconds=-1)).status == 504
    assert model.batches == [["hold"], ["b"]]


def test_one_by_one_a_call_for_many_finds_its_place_once() -> None:
    """Those that ran already would be lost if a later one were refused."""
    model = Model()
    alone = Alone(model, capacity=1)
    with ThreadPoolExecutor(3) as pool:

        def items() -> Iterator[str]:
            yield "a"
            others.append(pool.submit(alone.ask, "hold"))
            assert model.begun.wait(PATIENCE)
            others.append(pool.submit(alone.ask, "c"))
            until(lambda: len(alone.turns._waiting) == 1)
            with pytest.raises(QueueFull):
                alone.model.ask_all(asked("none", "of them"), time.monotonic() + PATIENCE)
            pool.submit(let_go)
            yield "b"

        def let_go() -> None:
            until(lambda: len(alone.turns._waiting) == 2)
            model.go.set()

        others: list[Future[Inferred]] = []
        many: Any = (asked(item)[0] for item in items())
        try:
            answers = alone.model.ask_all(many, time.monotonic() + PATIENCE)
        finally:
            model.go.set()
        assert [answer.result for answer in answers] == ["<a>", "<b>"]
        assert results(others) == ["<hold>", "<c>"]
    assert model.batches == [["a"], ["hold"], ["c"], ["b"]]


# -------------------------------------------------------------------------- whole services


def make_service(fn: Any, **options: Any) -> Service:
    """Return a service of its own name whose batch function gets integers."""
    infer = options.pop("infer", {})
    named: dict[str, Any] = {
        "request": int,
        "response": Any,
        "max_wait_policy": "fixed",
        "max_wait": 0.0,
    }
    service = Service(f"local {next(_numbers)}", **named | options)
    service.add_stage("infer", fn, batch=True, **infer)
    service.runtime.startup.run()
    return service


def post(client: FlaskClient, number: Any, **headers: str) -> Any:
    return client.post("/inference", json=number, headers=headers)


def waiting(service: Service) -> int:
    queue = service.runtime.startup.wait(0).model
    assert isinstance(queue, LocalQueue)
    return queue._queue._queue.waiting


class Gate:
    """A batch function that 0 holds up until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, numbers: list[int]) -> list[Any]:
        self.batches.append(numbers)
        if 0 in numbers:
            self.begun.set()
            assert self.go.wait(PATIENCE)
        return [f"{number}" for number in numbers]


def ask_together(service: Service, gate: Gate, *numbers: int) -> list[Any]:
    """Ask 0, which holds the model up, then the others; return all responses in this order."""
    client = service.app.test_client
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(post, client(), 0)
        assert gate.begun.wait(PATIENCE)
        others = [pool.submit(post, client(), number) for number in numbers]
        until(lambda: waiting(service) == len(numbers))
        gate.go.set()
        return [one.result(PATIENCE) for one in (first, *others)]


def test_requests_of_a_flask_app_share_a_batch() -> None:
    gate = Gate()
    service = make_service(gate)
    responses = ask_together(service, gate, 1, 2, 3)
    assert [response.get_json() for response in responses] == ["0", "1", "2", "3"]
    assert [sorted(batch) for batch in gate.batches] == [[0], [1, 2, 3]]
    for response in responses[1:]:
        assert 'batch;desc="3"' in response.headers["Server-Timing"]


def test_a_full_queue_is_429_and_a_deadline_504() -> None:
    gate = Gate()
    service = make_service(gate, capacity=1)
    client = service.app.test_client
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(post, client(), 0)
        assert gate.begun.wait(PATIENCE)
        expired = post(client(), 1, X_Request_Timeout="0.01")
        second = pool.submit(post, client(), 2)
        until(lambda: waiting(service) == 1)
        full = post(client(), 3)
        gate.go.set()
        assert [first.result(PATIENCE).status_code, second.result(PATIENCE).status_code] == [
            200,
            200,
        ]
    assert expired.status_code == 504
    assert expired.get_json()["detail"].endswith("; it still waited for its turn")
    assert full.status_code == 429
    assert int(full.headers["Retry-After"]) >= 1
    for reason in ("full", "expired"):
        labels = {"service": service.name, "reason": reason}
        assert REGISTRY.get_sample_value("ventu_rejected_total", labels) == 1


def test_items_of_different_keys_never_share_a_call() -> None:
    gate = Gate()
    service = make_service(gate, infer={"key": lambda number: number % 2})
    responses = ask_together(service, gate, 1, 2, 3, 4)
    assert [one.status_code for one in responses] == [200] * 5
    assert sorted(sorted(batch) for batch in gate.batches) == [[0], [1, 3], [2, 4]]


def test_an_item_whose_key_is_a_list_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    service = make_service(lambda numbers: numbers, infer={"key": lambda number: number or []})
    client = service.app.test_client()
    assert [post(client, number).status_code for number in (0, 1)] == [500, 200]
    (record,) = (one for one in caplog.records if one.levelname == "ERROR")
    assert re.search(
        r" failed: key of \S+ \(\S+:\d+\) returned list, expected something hashable, such as a"
        r" string or a tuple of numbers$",
        record.getMessage(),
    )
    assert not record.exc_info


def test_a_bad_item_harms_no_other() -> None:
    gate = Gate()

    def infer(numbers: list[int]) -> list[Any]:
        gate(numbers)
        return [12 // (number - 3) for number in numbers]

    service = make_service(infer)
    responses = ask_together(service, gate, 1, 2, 3, 4)
    statuses = [one.status_code for one in responses]
    assert statuses == [200, 200, 200, 500, 200]


def test_a_health_check_does_not_wait_behind_the_queue() -> None:
    """It comes after the call that runs, though more jobs wait than fit into the next one."""
    gate, order = Gate(), []

    def infer(numbers: list[int]) -> list[Any]:
        order.append(sorted(numbers))
        return gate(numbers)

    service = make_service(infer, examples=[100], max_batch_size=2)
    order.clear()
    client = service.app.test_client
    with ThreadPoolExecutor(16) as pool:
        first = pool.submit(post, client(), 0)
        assert gate.begun.wait(PATIENCE)
        others = [pool.submit(post, client(), number) for number in range(1, 9)]
        until(lambda: waiting(service) == 8)
        health = pool.submit(service.runtime.health)
        until(lambda: service.runtime._turns._waiting)
        gate.go.set()
        assert health.result(PATIENCE).is_ok
        assert all(one.result(PATIENCE).status_code == 200 for one in (first, *others))
    assert order.index([100]) == 1


@pytest.mark.parametrize(
    ("options", "threads"),
    [({}, 1), ({"max_batch_size": 1}, 0), ({"infer": {"max_batch_size": 1}}, 0)],
    ids=["batches", "setting", "ceiling"],
)
def test_a_thread_is_started_only_for_batches(options: dict[str, Any], threads: int) -> None:
    service = make_service(lambda numbers: numbers, **options)
    assert post(service.app.test_client(), 5).get_json() == 5
    assert len(inference_threads(service.name)) == threads


def test_a_batch_function_that_asks_its_own_service_is_told() -> None:
    service: Service

    def infer(numbers: list[int]) -> list[Any]:
        return [service.predict(number) for number in numbers]

    service = make_service(infer)
    assert post(service.app.test_client(), 5).status_code == 500


def test_every_answer_is_that_of_its_own_request() -> None:
    """32 threads, bad items, short deadlines, health checks, and a thread that dies at times."""

    def infer(numbers: list[int]) -> list[Any]:
        chance = random.Random(numbers[0])
        if chance.random() < 0.05:
            raise KeyboardInterrupt
        time.sleep(chance.random() * 0.004)  # a model that takes its time
        return [ValueError(number) if number % 11 == 0 else f"{number}" for number in numbers]

    service = make_service(
        infer, examples=[1], max_batch_size=8, max_wait_policy="adaptive", max_wait=0.002
    )
    runtime = service.runtime
    seen: dict[int, int] = {}

    def run(thread: int) -> None:
        chance = random.Random(thread)
        for turn in range(40):
            number = thread * 1000 + turn
            seconds = chance.choice([0.003, PATIENCE, PATIENCE])
            deadline = time.monotonic() + seconds
            reply = runtime.answer(f"{number}".encode(), "json", "json", deadline)
            if isinstance(reply.result, Rejected):
                seen[number] = reply.result.status
                assert seen[number] in ((500, 504) if seconds < 1 else (500,))
            else:
                seen[number] = 200
                assert reply.result == b'"%d"' % number
                assert number % 11
                assert 1 <= reply.batch_size <= 8
            if thread == 0 and turn % 10 == 0:
                runtime.check_health(batch=True)

    with ThreadPoolExecutor(32) as pool:
        for future in [pool.submit(run, thread) for thread in range(32)]:
            future.result(6 * PATIENCE)
    assert len(seen) == 32 * 40
    assert sum(status == 200 for status in seen.values()) > 400
    assert waiting(service) == 0


# ------------------------------------------------------------------------------- processes

FILE = """
import os, sys, threading, time
from ventu_lite import Service

service = Service("local", request=str, response=str)
may_go = threading.Event()
may_go.set()

@service.infer(batch=True)
def infer(texts):
    may_go.wait()
    time.sleep(0.05)  # a model that takes its time
    return [f"{text}{os.getpid() == PARENT}" for text in texts]

@service.teardown
def unload():
    print("teardown", flush=True)

PARENT = os.getpid()
app = service.app

def ask(text):
    print(app.test_client().post("/inference", json=text).get_json() + "\\n", end="", flush=True)
"""


def run(tmp_path: Path, code: str) -> list[str]:
    return run_file(tmp_path, FILE, code, ignored=["DeprecationWarning"])  # of fork with threads


def test_a_process_with_an_idle_thread_ends(tmp_path: Path) -> None:
    assert run(tmp_path, "ask('a')") == ["aTrue", "teardown"]


def test_jobs_in_flight_at_exit_are_answered(tmp_path: Path) -> None:
    """Threads that are daemons are joined by nobody, as those of ``flask run``."""
    code = """
    import atexit
    from ventu_lite.batching import local
    local._LAST_WORDS = 2.0  # on a busy machine they take longer
    ask("a")
    may_go.clear()
    atexit.register(may_go.set)
    for _ in range(4):
        threading.Thread(target=ask, args=("b",), daemon=True).start()
    queue = service.runtime.startup.wait(0).model._queue
    while queue._queue._deadlines.count < 4:
        time.sleep(0.001)
    """
    assert run(tmp_path, code) == ["aTrue", *["bTrue"] * 4, "teardown"]


def test_a_child_has_a_thread_and_jobs_of_its_own(tmp_path: Path) -> None:
    code = """
    ask("a")
    may_go.clear()
    threads = [threading.Thread(target=ask, args=("b",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    model = service.runtime.startup.wait(0).model
    while model._queue._queue.is_empty:
        time.sleep(0.001)
    pid = os.fork()
    if pid == 0:
        assert model._queue._queue.is_empty
        may_go.set()
        ask("c")
        sys.exit()
    os.waitpid(pid, 0)
    may_go.set()
    for thread in threads:
        thread.join()
    """
    printed = run(tmp_path, code)
    assert sorted(printed) == ["aTrue", *["bTrue"] * 3, "cFalse", "teardown"]


def test_locks_that_threads_of_the_parent_hold_are_free_in_a_child() -> None:
    with Threads() as threads:
        threads.hold()
        with threads.queue._queue._changed:
            pid = os.fork()
            if pid == 0:
                threads.policy = Policy(0.0)
                os._exit(0 if threads.ask("b", seconds=5).result == "<b>" else 1)
        assert os.waitpid(pid, 0)[1] == 0


def test_gunicorn_batches_in_threads_of_a_preloaded_app(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(FILE + "ask('preloaded')\n")
    options = ("--preload", "-w", "2", "--threads", "8")
    with gunicorn("model:app", *options, cwd=tmp_path) as server, ThreadPoolExecutor(16) as pool:
        server.process.wait_for("preloadedTrue")
        answers = list(pool.map(lambda _: server.infer(b'"a"'), range(32)))
        assert {answer.body for answer in answers} == {b'"aFalse"'}
        timings = {answer.headers["Server-Timing"] for answer in answers}
        assert any('batch;desc="1"' not in timing for timing in timings)
        assert server.process.stop() == 0
        assert "Traceback" not in server.process.output


def test_what_is_made_anew_sees_the_same_request_of_flask() -> None:
    """In the inference thread, which has none."""
    service = Service(f"local {next(_numbers)}", request=int, response=int)
    threads = set()

    @service.preprocess
    def scale(number: int) -> list[int]:
        threads.add(threading.current_thread().name)
        return [number * int(flask.request.headers["Scale"])]

    @service.infer(batch=True)
    def double(items: list[list[int]]) -> list[int]:
        for item in items:
            item[0] *= 2
        if any(item[0] < 0 for item in items):
            raise ValueError("below zero")
        return [item[0] for item in items]

    with service.app.test_request_context(headers={"Scale": "10"}):
        first, bad, last = service.ask_all([1, -1, 3])
    assert (first, bad.code, last) == (20, 500, 60)
    assert len(threads) == 2
