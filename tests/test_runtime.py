"""One service in one process: turns, deadlines, set-up, warm-up, health."""

import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from programs import run_file
from prometheus_client import REGISTRY
from waiting import until

from ventu_lite import Example, InvalidPayload, JobExpired, NotReady, Service, VentuError
from ventu_lite.batching.local_jobs import Inferred
from ventu_lite.health import HEALTH_CACHE, Health
from ventu_lite.outcomes import Rejected
from ventu_lite.runtime import Runtime
from ventu_lite.stages import Kind

PATIENCE = 10.0

_numbers = count()


class Seen:
    """A stage that returns what it gets and keeps it, as long as nobody clears it."""

    def __init__(self) -> None:
        self.all: list[Any] = []

    def __call__(self, item: Any) -> Any:
        self.all.append(item)
        return item


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_service(fn: Any = None, **options: Any) -> Service:
    """Return a service of its own name that doubles an integer."""
    infer = options.pop("infer", {})
    service = Service(
        f"runtime {next(_numbers)}", request=int, response=int, **{"examples": [3]} | options
    )
    service.add_stage("infer", fn or (lambda number: 2 * number), **infer)
    return service


def make_batch_service(fn: Any = None, **options: Any) -> Service:
    return make_service(fn or doubled, infer={"batch": True}, **options)


def doubled(numbers: list[int]) -> list[int]:
    return [2 * number for number in numbers]


def answer(runtime: Runtime, payload: bytes = b"21", seconds: float = PATIENCE) -> Inferred:
    return runtime.answer(payload, "json", "json", runtime.clock() + seconds)


def rejected(reply: Inferred) -> Rejected:
    assert isinstance(reply.result, Rejected)
    return reply.result


def sample(series: str, service: Service, **labels: str) -> float:
    return REGISTRY.get_sample_value(series, {"service": service.name} | labels) or 0.0


# ---------------------------------------------------------------------------- answers


def test_a_payload_is_answered() -> None:
    reply = answer(make_service().runtime)
    assert reply.result == b"42"
    assert reply.batch_size == 1
    assert reply.infer >= 0


def test_the_runtime_of_a_service_is_one() -> None:
    service = make_service()
    assert service.runtime is service.runtime


def test_single_functions_run_in_many_threads_at_once() -> None:
    together = threading.Barrier(4)

    def infer(number: int) -> int:
        return number if number == 3 else together.wait(PATIENCE) * 0 + 1

    runtime = make_service(infer).runtime
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: answer(runtime), range(4)))
    assert [reply.result for reply in replies] == [b"1"] * 4


def test_predict_does_not_hold_up_single_functions() -> None:
    together = threading.Barrier(2)

    def infer(number: int) -> int:
        return number if number == 3 else together.wait(PATIENCE) * 0 + 1

    service = make_service(infer)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(service.predict, [1, 2])) == [1, 1]


def test_a_batch_function_is_never_in_two_threads() -> None:
    inside, most = 0, 0
    guard = threading.Lock()

    def infer(numbers: list[int]) -> list[int]:
        nonlocal inside, most
        with guard:
            inside += 1
            most = max(most, inside)
        pause.wait(0.002)  # long enough for the others to come, if they could
        with guard:
            inside -= 1
        return numbers

    pause = threading.Event()
    service = make_batch_service(infer)
    runtime = service.runtime
    runner = runtime.act_as_worker()
    calls: list[Callable[[], Any]] = [
        lambda: answer(runtime),
        lambda: service.predict(1),
        lambda: service.predict_batch([1, 2]),
        lambda: runner.run([b"1", b"2"]),
        lambda: service.health_check(batch=True),
    ]
    runtime.startup.run()
    with ThreadPoolExecutor(10) as pool:
        for future in [pool.submit(call) for call in calls * 4]:
            future.result(PATIENCE)
    assert most == 1


class Busy:
    """A batch function that is held by a thread of its own until it is let go."""

    def __init__(self, **options: Any) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.calls = 0
        self.service = make_batch_service(self, **options)
        self.runtime = self.service.runtime
        self.runtime.startup.run()
        self.pool = ThreadPoolExecutor(1)

    def __call__(self, numbers: list[int]) -> list[int]:
        if 99 in numbers:
            self.begun.set()
            assert self.go.wait(PATIENCE)
        self.calls += 1
        return numbers

    def __enter__(self) -> "Busy":
        self.holder: Future[Inferred] = self.pool.submit(answer, self.runtime, b"99")
        assert self.begun.wait(PATIENCE)
        return self

    def __exit__(self, *exc: object) -> None:
        self.go.set()
        self.pool.shutdown()


def test_a_deadline_may_pass_while_waiting_for_the_batch_function() -> None:
    with Busy() as busy:
        calls = busy.calls
        reply = answer(busy.runtime, seconds=0.02)
        assert rejected(reply).status == 504
        assert isinstance(rejected(reply).exc, JobExpired)
        assert reply.queue > 0
        assert reply.batch_size == 0
        assert busy.calls == calls
    assert busy.holder.result(PATIENCE).result == b"99"
    assert sample("ventu_rejected_total", busy.service, reason="expired") == 1


def test_a_very_long_timeout_is_no_overflow() -> None:
    service = make_batch_service(timeout=1e300)
    assert answer(service.runtime, seconds=1e300).result == b"42"
    assert service.health_check().is_ok
    assert service.runtime.health().is_ok


# ---------------------------------------------------------------------------- metrics


def test_neither_probes_nor_warm_up_are_counted_as_requests() -> None:
    service = make_batch_service()
    service.health_check(batch=True)
    for stage in ("preprocess", "infer", "postprocess"):
        assert sample("ventu_stage_seconds_count", service, stage=stage, mode="batch") == 0


def test_values_that_are_rejected_are_counted_once() -> None:
    service = make_service(lambda number: 6 // number, examples=None)
    service.ask_all([1, 0, "x"])
    for reason in ("failed", "invalid"):
        assert sample("ventu_rejected_total", service, reason=reason) == 1


def test_a_process_that_answers_http_is_a_worker_once_it_is_ready() -> None:
    service = make_service()
    service.runtime.count_as_http_worker()
    assert sample("ventu_workers", service, protocol="http") == 0
    service.runtime.startup.run()
    assert sample("ventu_workers", service, protocol="http") == 1


def test_a_process_that_was_ready_before_counts_too() -> None:
    service = make_service()
    service.predict(1)
    assert sample("ventu_workers", service, protocol="http") == 0
    assert service.app
    assert sample("ventu_workers", service, protocol="http") == 1


def test_a_worker_behind_a_batching_service_answers_no_http() -> None:
    service = make_service()
    assert service.app
    service.runtime.act_as_worker()
    service.runtime.startup.run()
    assert sample("ventu_workers", service, protocol="http") == 0


# ------------------------------------------------------------------------------ values


def test_predict_sets_up_and_goes_all_the_way() -> None:
    loaded = []
    service = make_service()
    service.setup(lambda: loaded.append(1))
    assert service.predict(4) == 8
    assert service.predict_batch([1, 2]) == [2, 4]
    assert loaded == [1]


def test_predict_raises_what_a_client_would_be_told() -> None:
    service = make_service(lambda number: 6 // number)
    with pytest.raises(InvalidPayload):
        service.predict("x")
    with pytest.raises(ZeroDivisionError):
        service.predict(0)


def test_predict_batch_keeps_exceptions_in_their_places() -> None:
    service = make_batch_service(lambda numbers: [6 // number for number in numbers])
    good, bad, guilty, last = service.predict_batch([1, "x", 0, 2])
    assert (good, last) == (6, 3)
    assert isinstance(bad, InvalidPayload)
    assert isinstance(guilty, ZeroDivisionError)
    assert service.predict_batch([]) == []


def test_predict_raises_what_set_up_raises() -> None:
    service = make_service()
    service.setup(lambda: [][0])
    with pytest.raises(IndexError):
        service.predict(1)


@pytest.mark.parametrize("ask", [Service.predict, Service.ask], ids=["predict", "ask"])
@pytest.mark.parametrize("kind", ["setup", "preprocess"])
def test_who_needs_the_set_up_in_the_set_up_is_told_instead_of_waiting_for_himself(
    kind: Kind, ask: Callable[[Service, int], Any]
) -> None:
    service = make_service(examples=[1])
    service.add_stage(kind, lambda *_: ask(service, 1))
    with pytest.raises(VentuError, match=r"neither setup\(\) nor a stage in the warm-up may call"):
        service.predict(1)


# --------------------------------------------------------------------- set-up, warm-up


def test_set_up_and_warm_up_come_before_everything() -> None:
    seen = Seen()
    service = make_batch_service(seen, warmup_batch_size=4, examples=[7, 8])
    service.setup(lambda: seen("set up"))
    answer(service.runtime, b"1")
    assert seen.all == ["set up", [7], [7] * 4, [8], [8] * 4, [1]]


def test_a_warm_up_batch_of_one_is_run_once() -> None:
    seen = Seen()
    make_batch_service(seen, warmup_batch_size=1).runtime.startup.run()
    assert seen.all == [[3]]


def test_flask_warms_the_single_function_up_and_a_worker_the_other() -> None:
    seen = Seen()
    service = make_service(seen)
    service.add_stage("infer", seen, batch=True, max_batch_size=2)
    Runtime(service).startup.run()
    assert seen.all == [3]
    seen.all.clear()
    worker = Runtime(service)
    worker.act_as_worker()
    worker.startup.run()
    assert seen.all == [[3], [3, 3]]


@pytest.mark.parametrize(
    ("alone", "fix"),
    [
        pytest.param(1.0, "raise VENTU_TIMEOUT, or lower VENTU_MAX_BATCH_SIZE", id="a batch is"),
        pytest.param(2.5, "raise VENTU_TIMEOUT", id="one item is"),
    ],
)
def test_what_is_too_slow_decides_what_helps(
    alone: float, fix: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()

    def slow(numbers: list[int]) -> list[int]:
        clock.now += alone if len(numbers) == 1 else 3.0
        return numbers

    service = make_batch_service(slow, timeout=2.0, warmup_batch_size=4)
    Runtime(service, clock=clock).startup.run()
    (said,) = (one.getMessage() for one in caplog.records if "VENTU_TIMEOUT" in one.getMessage())
    assert said.endswith(f"timeout, 2 s: {fix}")


@pytest.mark.parametrize(("seconds", "count"), [(2.0, 0), (2.1, 1)])
def test_a_warm_up_longer_than_a_request_waits_is_told(
    seconds: float, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()

    def slow(numbers: list[int]) -> list[int]:
        clock.now += 9 if len(numbers) == 1 else seconds  # the first call is often slow
        return numbers

    service = make_batch_service(slow, timeout=2.0, warmup_batch_size=4)
    Runtime(service, clock=clock).startup.run()
    said = [one.getMessage() for one in caplog.records if "VENTU_TIMEOUT" in one.getMessage()]
    assert len(said) == count
    assert all(one.startswith("in the warm-up the model took 2.1 s for 4 item(s)") for one in said)


def test_a_failing_warm_up_is_a_failed_start(caplog: pytest.LogCaptureFixture) -> None:
    service = make_service(lambda number: 1 // 0)
    with pytest.raises(NotReady) as caught:
        answer(service.runtime)
    assert 5 < (caught.value.retry_after or 0) <= 10
    assert "warm-up with example 1 failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_a_failing_warm_up_is_told_once_and_its_traceback_shown_below(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def infer(number: int) -> int:
        raise ValueError("two\n\nlines")

    runtime = make_service(infer).runtime
    runtime.startup.begin()
    until(lambda: caplog.records)
    (record,) = caplog.records
    said = r"set-up failed: warm-up with example 1 failed: ValueError: two lines \(\S+:\d+\)"
    assert re.match(said, record.getMessage())
    assert record.exc_info and record.exc_info[0] is ValueError


def test_what_was_set_up_is_not_set_up_again_for_a_failed_warm_up() -> None:
    clock, seen = Clock(), []

    def infer(number: int) -> int:
        seen.append("infer")
        return number // (seen.count("infer") - 1)

    service = make_service(infer)
    service.setup(lambda: seen.append("set-up"))
    runtime = Runtime(service, clock=clock)
    with pytest.raises(NotReady):
        answer(runtime)
    with pytest.raises(NotReady):
        answer(runtime)
    clock.now += 10
    assert answer(runtime, b"8").result == b"4"
    assert seen == ["set-up", "infer", "infer", "infer"]


def test_an_inference_waits_for_set_up_until_its_deadline() -> None:
    go = threading.Event()
    service = make_service()
    service.setup(lambda: go.wait(PATIENCE))
    with pytest.raises(NotReady, match="still running"):
        answer(service.runtime, seconds=0.01)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(answer, service.runtime)
        go.set()
        assert waiting.result(PATIENCE).result == b"42"


# ------------------------------------------------------------------------------- health


def test_health_is_ok_when_the_example_is_answered() -> None:
    health = make_service(examples=[(3, 6)]).health_check()
    assert health.as_dict() == {"service": "OK", "inference": "OK"}
    assert health.is_ok


def test_health_without_an_example_says_what_it_knows() -> None:
    health = make_service(examples=None).health_check()
    assert health.inference == "Unknown"
    assert health.is_ok
    assert "no example" in health.as_dict()["detail"]


def test_another_answer_than_the_expected_one_is_an_error_but_no_obstacle() -> None:
    service = make_service(examples=[Example(1, 2), Example(3, 7)])
    health = service.health_check()
    assert not health.is_ok
    assert health.detail == "example 2: the answer differs from the expected one"
    assert answer(service.runtime).result == b"42"


def test_an_example_that_fails_later_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    broken = threading.Event()
    service = make_service(lambda number: number // (not broken.is_set()))
    assert service.health_check().is_ok
    broken.set()
    health = service.health_check()
    assert health.inference == "Error"
    assert "status 500" in health.detail
    assert "ZeroDivisionError" in caplog.text
    assert "Zero" not in health.detail


def test_health_check_says_when_set_up_fails(caplog: pytest.LogCaptureFixture) -> None:
    service = make_service()
    service.setup(lambda: [][0])
    health = service.health_check()
    assert not health.is_ok
    assert "set-up or warm-up failed" in health.detail
    assert "IndexError" in caplog.text


def test_the_batch_check_calls_the_batch_function() -> None:
    seen = Seen()
    service = make_service(seen, warmup_batch_size=3)
    service.add_stage("infer", seen, batch=True)
    service.runtime.startup.run()
    seen.all.clear()
    assert service.health_check(batch=True).is_ok
    assert seen.all == [3, [3, 3, 3]]
    seen.all.clear()
    assert service.health_check().is_ok
    assert seen.all == [3]


def test_health_is_cached_for_some_seconds() -> None:
    clock, seen = Clock(), Seen()
    runtime = Runtime(make_service(seen), clock=clock)
    runtime.startup.run()
    seen.all.clear()
    assert runtime.health() is runtime.health()
    assert len(seen.all) == 1
    clock.now += HEALTH_CACHE
    runtime.health()
    assert len(seen.all) == 1
    clock.now += 0.001
    runtime.health()
    assert len(seen.all) == 2


def test_health_starts_set_up_and_does_not_wait_for_it() -> None:
    begun, go = threading.Event(), threading.Event()

    def load() -> None:
        begun.set()
        go.wait(PATIENCE)

    service = make_service()
    service.setup(load)
    health = service.runtime.health()
    assert begun.wait(PATIENCE)
    assert not health.is_ok
    assert "running" in health.detail
    go.set()
    service.runtime.startup.run()
    assert service.runtime.health().is_ok


def test_those_who_ask_together_share_one_run() -> None:
    begun, go, calls = threading.Event(), threading.Event(), []

    def infer(number: int) -> int:
        calls.append(number)
        begun.set()
        assert go.wait(PATIENCE)
        return number

    service = make_service(infer)
    go.set()
    service.runtime.startup.run()
    go.clear()
    begun.clear()
    calls.clear()
    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(service.runtime.health) for _ in range(8)]
        assert begun.wait(PATIENCE)
        go.set()
        assert len({id(one.result(PATIENCE)) for one in asking}) == 1
    assert len(calls) == 1


def test_a_model_that_hangs_hangs_one_probe_only() -> None:
    begun, go = threading.Event(), threading.Event()

    def infer(number: int) -> int:
        begun.set()
        assert go.wait(PATIENCE)
        return number

    service = make_service(infer, timeout=0.02)
    go.set()
    service.runtime.startup.run()
    go.clear()
    begun.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(service.runtime.health)
        assert begun.wait(PATIENCE)
        health = service.runtime.health()
        assert health.detail == "the example was not answered in 0.02 s"
        go.set()
        assert first.result(PATIENCE).is_ok


def test_health_says_that_the_model_is_busy() -> None:
    with Busy(timeout=0.02) as busy:
        health = busy.service.health_check()
        assert health.detail == "example 1: the model was busy for 0.02 s"


def stuck(service: Service, clock: Clock, seconds: float) -> tuple[Runtime, str, Health]:
    """Return what is said while the batch function has been called for so many seconds."""
    runtime = Runtime(service, clock=clock)
    runtime.startup.run()
    with runtime._turns:
        clock.now += seconds
        return runtime, runtime.why_not_ready(), runtime.health()


def test_who_waits_behind_a_call_longer_than_a_request_lasts_is_not_ready(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = make_batch_service(timeout=30.0)
    runtime, why_not, health = stuck(service, Clock(), 41.0)
    assert why_not == health.detail
    assert why_not == "the batch function has been in use for 41.0 s without a pause"
    assert not health.is_ok
    assert [record.getMessage() for record in caplog.records] == [
        f"not ready: {why_not}; should a call of it hang, restart this process"
    ]
    assert runtime.why_not_ready() == ""
    assert runtime.health().is_ok


def test_each_call_that_hangs_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    runtime = Runtime(make_batch_service(timeout=0.5), clock=clock)
    runtime.startup.run()
    for _ in range(2):
        with runtime._turns:
            clock.now += 1.0
            assert runtime.why_not_ready() and runtime.why_not_ready()
        assert not runtime.why_not_ready()
    assert len(caplog.records) == 2


def test_a_call_whose_requests_may_still_be_answered_blocks_no_readiness() -> None:
    clock = Clock()
    runtime = Runtime(make_batch_service(timeout=30.0), clock=clock)
    runtime.startup.run()
    with runtime._turns:
        clock.now += 30
        assert runtime.why_not_ready() == ""


def test_who_calls_a_function_of_one_item_waits_for_no_batch_function() -> None:
    """A route of the user's own may call ``predict_batch`` with all the time in the world."""
    service = make_service(timeout=30.0)
    service.add_stage("infer", doubled, batch=True)
    _, why_not, health = stuck(service, Clock(), 41.0)
    assert why_not == ""
    assert health.is_ok


# ---------------------------------------------------------------------------- processes

FILE = """
import os, sys, threading
from ventu_lite import Service

service = Service("forked", request=int, response=int, examples=[1])

@service.setup
def load():
    print("set-up", flush=True)
    if "slow" in sys.argv and os.getpid() == PARENT:
        begun.set()
        go.wait(10)

@service.infer
def infer(number):
    return number

@service.teardown
def unload():
    print("teardown", flush=True)

PARENT = os.getpid()
begun, go = threading.Event(), threading.Event()
"""


def run(tmp_path: Path, code: str, *args: str) -> list[str]:
    return run_file(tmp_path, FILE, code, *args)


def test_importing_and_composing_run_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, "app = service.app; service.blueprint") == []


def test_teardown_runs_at_exit_once(tmp_path: Path) -> None:
    printed = run(tmp_path, "service.predict(1); service.predict(2); print('end')")
    assert printed == ["set-up", "end", "teardown"]


def test_a_child_of_a_ready_process_is_ready_and_owns_nothing(tmp_path: Path) -> None:
    code = """
    service.predict(1)
    pid = os.fork()
    if pid == 0:
        print(service.predict(5), flush=True)
        sys.exit()
    os.waitpid(pid, 0)
    print(service.predict(6), flush=True)
    """
    assert run(tmp_path, code) == ["set-up", "5", "6", "teardown"]


def test_a_child_of_a_process_in_set_up_does_its_own(tmp_path: Path) -> None:
    code = """
    service.runtime.startup.begin()
    begun.wait(10)
    pid = os.fork()
    if pid == 0:
        service.predict(5)
        sys.exit()
    os.waitpid(pid, 0)
    print("parent", flush=True)
    go.set()
    service.predict(1)
    """
    printed = run(tmp_path, code, "slow")
    assert printed == ["set-up", "set-up", "teardown", "parent", "teardown"]


def test_locks_that_threads_of_the_parent_hold_are_free_in_a_child() -> None:
    with Busy() as busy:
        pid = os.fork()
        if pid == 0:
            answered = answer(busy.runtime, b"5").result == b"5"
            os._exit(0 if answered else 1)
        assert os.waitpid(pid, 0)[1] == 0
