"""``service.ask`` in routes of the user's own: in one process, and where workers run the stages."""

import asyncio
import json
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, abort
from processes import TIMEOUT, serve
from prometheus_client import REGISTRY
from pydantic import BaseModel, Field
from waiting import turn_until

from ventu_lite import InferenceFailed, Service
from ventu_lite.asking import Asking
from ventu_lite.batching.dispatcher import Dispatcher
from ventu_lite.batching.jobs import Job
from ventu_lite.batching.policy import FixedWait
from ventu_lite.batching.queue import Queue
from ventu_lite.batching.tally import FrontMetrics
from ventu_lite.errors import JobExpired, PayloadTooLarge, QueueFull
from ventu_lite.outcomes import Rejected
from ventu_lite.serving.asker import Asker


class Upper(BaseModel):
    """Bytes, and a name of its own outside: what JSON or a lazy copy would spoil."""

    text: bytes = Field(alias="theText")


def upper_service(name: str, **settings: Any) -> tuple[Service, list[list[bytes]]]:
    waits: dict[str, Any] = {"max_wait": 0.05, "max_wait_policy": "fixed"}
    service = Service(name, **waits | settings)
    batches: list[list[bytes]] = []

    @service.infer(batch=True)
    def upper(batch: list[Upper]) -> list[Upper]:
        batches.append([item.text for item in batch])
        if b"bad" in batches[-1]:
            raise RuntimeError("a secret")
        return [Upper(theText=item.text.upper()) for item in batch]

    return service, batches


def failure(service: Service, data: Any, **options: Any) -> InferenceFailed:
    with pytest.raises(InferenceFailed) as caught:
        service.ask(data, **options)
    return caught.value


class TestInOneProcess:
    def test_the_log_has_the_id_of_a_route_that_failed(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        service, _ = upper_service("ask in vain")
        app = service.app

        @app.get("/shout")
        def shout() -> str:
            return str(service.ask({"theText": b"bad"}))

        response = app.test_client().get("/shout")
        assert response.status_code == 500
        request_id = response.headers["X-Request-ID"]
        why = "its service.ask did, for the reason above"
        assert f"request {request_id} failed: {why}" in caplog.messages
        assert "a secret" in caplog.text

    def test_one(self) -> None:
        service, _ = upper_service("ask one")
        assert service.ask({"theText": b"\xffa"}) == Upper(theText=b"\xffA")
        assert service.ask(Upper(theText=b"a")) == Upper(theText=b"A")

    def test_many_share_a_batch(self) -> None:
        service, batches = upper_service("ask many")
        answers = service.ask_all([{"theText": b"a"}, {"theText": b"b"}, {"theText": b"c"}])
        assert answers == [Upper(theText=b"A"), Upper(theText=b"B"), Upper(theText=b"C")]
        assert batches == [[b"a", b"b", b"c"]]

    def test_threads_share_a_batch(self) -> None:
        waits = {"max_wait": TIMEOUT, "timeout": 2 * TIMEOUT}
        service, batches = upper_service("ask threads", max_batch_size=8, **waits)
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(service.ask, {"theText": b"%d" % n}) for n in range(8)]
            assert [each.result(TIMEOUT).text for each in asked] == [b"%d" % n for n in range(8)]
        assert [sorted(batch) for batch in batches] == [[b"%d" % n for n in range(8)]]

    def test_a_failed_stage_is_in_the_log(self, caplog: pytest.LogCaptureFixture) -> None:
        """Flask says nothing of an HTTPException that a route lets pass."""
        service, _ = upper_service("ask log")
        assert failure(service, {"theText": b"bad"}).code == 500
        assert "a request of service.ask failed" in caplog.text and "a secret" in caplog.text

    def test_those_that_fail_together_share_one_traceback(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        service = Service("ask together", request=str, response=str)

        @service.infer(batch=True, isolate=False)
        def fail(batch: list[str]) -> list[str]:
            raise OSError("the device is gone")

        assert [each.code for each in service.ask_all(["a", "b", "c"])] == [500] * 3
        records = [one for one in caplog.records if "service.ask failed" in one.message]
        assert [bool(one.exc_info) for one in records] == [True, False, False]

    def test_the_bad_ones_fail_alone(self) -> None:
        service, _ = upper_service("ask bad")
        good, bad, odd, again = service.ask_all(
            [{"theText": b"a"}, {"theText": b"bad"}, {"text_": 1}, {"theText": b"b"}]
        )
        assert (good, again) == (Upper(theText=b"A"), Upper(theText=b"B"))
        assert (bad.code, odd.code) == (500, 422)
        assert "secret" not in bad.description
        assert isinstance(bad.__cause__, RuntimeError)
        assert odd.extra["error_count"] == 1

    def test_nothing(self) -> None:
        service, batches = upper_service("ask nothing")
        assert service.ask_all([]) == []
        assert batches == []

    def test_of_more_than_the_capacity_none_is_taken(self) -> None:
        """To try again would not help, so nobody is told to."""
        service, batches = upper_service("ask full", capacity=2)
        with pytest.raises(InferenceFailed) as caught:
            service.ask_all([{"theText": b"a"}] * 3)
        assert caught.value.code == 413
        assert caught.value.description == "3 requests at once, at most 2 fit: ask in parts"
        assert "Retry-After" not in caught.value.get_response().headers
        assert service.ask({"theText": b"b"}).text == b"B"
        assert batches == [[b"b"]]
        counted = {"service": "ask full", "reason": "invalid"}
        assert REGISTRY.get_sample_value("ventu_rejected_total", counted) == 1

    def test_a_deadline(self) -> None:
        service = Service("ask late", request=str, response=str, timeout=30)
        go = threading.Event()

        @service.infer(batch=True)
        def slow(batch: list[str]) -> list[str]:
            assert go.wait(TIMEOUT)
            return batch

        try:
            assert failure(service, "a", timeout=0.05).code == 504
        finally:
            go.set()

    def test_sys_exit_in_a_stage_harms_no_other(self) -> None:
        service = Service("ask exit", request=str, response=str)

        @service.preprocess
        def leave(text: str) -> str:
            return sys.exit(text) if text == "go" else text

        service.add_stage("infer", str.upper)
        good, gone = service.ask_all(["a", "go"])
        assert (good, gone.code) == ("A", 500)
        assert isinstance(gone.__cause__, SystemExit)

    @pytest.mark.parametrize(
        "way",
        [
            pytest.param(lambda service: service.ask_all, id="for many"),
            pytest.param(lambda service: lambda batch: [service.ask(batch[0])], id="for one"),
        ],
    )
    def test_a_model_that_asks_itself_is_told(self, way: Callable[[Service], Any]) -> None:
        service = Service("ask itself", request=str, response=str)

        @service.infer(batch=True)
        def ask(batch: list[str]) -> Any:
            return way(service)(batch)

        failed = failure(service, "a")
        assert failed.code == 500
        assert "must not ask its own service" in str(failed.__cause__)
        (told,) = service.predict_batch(["a"])  # not in the inference thread, which waits for it
        assert "must not ask its own service" in str(told)

    @pytest.mark.parametrize("options", [{}, {"batch": True, "max_batch_size": 1}])
    def test_without_batches(self, options: dict[str, Any]) -> None:
        service = Service("ask alone", request=str, response=str)
        service.add_stage("infer", lambda given: given, **options)
        assert service.ask_all(["a", "b"]) == ["a", "b"]

    def test_a_set_up_that_fails(self) -> None:
        service, _ = upper_service("ask before")

        @service.setup
        def load() -> None:
            raise OSError("no weights")

        failed = failure(service, {"theText": b"a"})
        assert (failed.code, "weights" in (failed.description or "")) == (503, False)

    def test_an_item_for_which_a_stage_aborts(self) -> None:
        service = Service("ask abort", request=str, response=str)

        @service.preprocess
        def look_up(text: str) -> str:
            abort(404, "no such text")

        service.add_stage("infer", str.upper)
        failed = failure(service, "a")
        assert (failed.code, failed.description) == (404, "no such text")


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [
        pytest.param(None, 5.0, id="none"),
        pytest.param(2, 2.0, id="less"),
        pytest.param(Fraction(1, 2), 0.5, id="fraction"),
        pytest.param(9.0, 5.0, id="more"),
        pytest.param(math.inf, 5.0, id="for ever"),
        pytest.param(10**400, 5.0, id="more than a float can be"),
    ],
)
def test_nobody_waits_longer_than_the_setting(timeout: Any, seconds: float) -> None:
    waited: list[float] = []

    def answer(values: Sequence[Any], seconds: float) -> list[Any]:
        waited.append(seconds)
        return list(values)

    assert Asking(answer, 5.0, count_nothing).ask_all([1, 2], timeout) == [1, 2]
    assert waited == [seconds]


@pytest.mark.parametrize(
    ("timeout", "error", "said"),
    [
        pytest.param(math.nan, ValueError, "more than 0 seconds, not nan", id="NaN"),
        pytest.param(-math.inf, ValueError, "more than 0 seconds, not -inf", id="-infinity"),
        pytest.param(-1, ValueError, "more than 0 seconds, not -1", id="negative"),
        pytest.param(0.0, ValueError, r"more than 0 seconds, not 0\.0", id="zero"),
        pytest.param("5", TypeError, "a number of seconds or None, not str", id="string"),
        pytest.param(True, TypeError, "a number of seconds or None, not bool", id="bool"),
        pytest.param(1j, TypeError, "a number of seconds or None, not complex", id="complex"),
    ],
)
def test_what_is_no_timeout_never_becomes_a_deadline(
    timeout: Any, error: type[Exception], said: str
) -> None:
    """A front would wake up for NaN again and again, and it never passes."""

    def answer(values: Sequence[Any], seconds: float) -> list[Any]:
        raise AssertionError(f"{values} are asked for {seconds} s")

    with pytest.raises(error, match=f"^timeout must be {said}$"):
        Asking(answer, 5.0, count_nothing).ask_all([1], timeout)


def test_what_failed_before_a_deadline_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    late = JobExpired("too late")
    late.__cause__ = ZeroDivisionError("by 0")
    counted: list[str] = []
    asking = Asking(lambda *_: [Rejected.of(late)], 5.0, counted.append)
    (failed,) = asking.ask_all([1], None)
    assert (failed.code, failed.__cause__) == (504, late)
    assert caplog.messages == ["a request of service.ask failed: ZeroDivisionError: by 0"]
    assert counted == ["expired"]


def test_what_fails_for_all_says_when_to_try_again() -> None:
    def answer(values: Sequence[Any], seconds: float) -> list[Any]:
        raise QueueFull("no place", retry_after=3.0)

    with pytest.raises(InferenceFailed, match="no place") as caught:
        Asking(answer, 5.0, count_nothing).ask_all([1], None)
    assert (caught.value.code, caught.value.retry_after) == (429, 3.0)


def count_nothing(reason: str) -> None:
    raise AssertionError(f"nothing is rejected here, yet {reason} is counted")


def test_a_route_may_let_a_failure_pass() -> None:
    service, _ = upper_service("ask route")
    app = Flask(__name__)

    @app.get("/own/<text>")
    def own(text: str) -> str:
        return str(service.ask({"theText": text.encode() if text != "odd" else 1}).text)

    client = app.test_client()
    assert client.get("/own/a").text == "b'A'"
    answer = client.get("/own/odd")
    assert (answer.status_code, answer.content_type) == (422, "application/problem+json")
    assert answer.get_json()["error_count"] == 1


APP = """
import os, time
from ventu_lite import Service

service = Service("own", request=str, response=str, capacity=4)

@service.infer(batch=True)
def act(batch):
    while "slow" in batch and os.path.exists("wait"):
        time.sleep(0.01)
    return [1 if text == "odd" else f"{text.upper()} {os.getpid()} {len(batch)}" for text in batch]

app = service.app

@app.get("/own/<texts>")
def own(texts):
    answers = service.ask_all(texts.split(","))
    return [getattr(answer, "code", answer) for answer in answers]

@app.get("/slow")
def slow():
    return service.ask("slow")

@app.get("/odd")
def odd():
    return service.ask(1)

@app.get("/front")
def front():
    return str(os.getpid())
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder: Path = tmp_path_factory.mktemp("own")
    (folder / "app.py").write_text(APP)
    with serve("app.py", "--workers=1", cwd=folder) as it:
        it.process.wait_for("ready on")
        yield it


def refused_as_invalid(server: Any) -> float:
    """Return how often a server that other tests ask, too, has counted that."""
    series = r'ventu_rejected_total\{reason="invalid",service="own"\}'
    found = re.search(rf"^{series} (\S+)$", server.get("/metrics").body.decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


class TestUnderServe:
    def test_a_worker_answers_in_one_batch(self, server: Any) -> None:
        a, b, odd = json.loads(server.get("/own/a,b,odd").body)
        assert (a.split()[::2], b.split()[::2], odd) == (["A", "3"], ["B", "3"], 500)
        assert a.split()[1].encode() != server.get("/front").body
        series = 'ventu_rejected_total{reason="failed",service="own"} '
        assert f"\n{series}1.0\n" in server.get("/metrics").body.decode()

    def test_what_never_gets_to_a_worker_is_counted_with_the_rest(self, server: Any) -> None:
        before = refused_as_invalid(server)
        assert server.infer(b"1").status == 422
        assert server.get("/odd").status == 422
        assert refused_as_invalid(server) == before + 2

    def test_more_than_there_is_place_for(self, server: Any) -> None:
        answer = server.get("/own/a,b,c,d,e")
        assert (answer.status, answer.headers.get("Retry-After")) == (413, None), answer.body
        assert "5 requests at once, at most 4 fit: ask in parts" in answer.body.decode()
        assert server.get("/own/a").status == 200


def test_the_timeout_is_that_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "wait").touch()
    with serve("app.py", "--timeout=0.2", "--batch-timeout=60", cwd=tmp_path) as server:
        server.process.wait_for("ready on")
        assert server.get("/slow").status == 504
        (tmp_path / "wait").unlink()


ANY_TYPES_APP = """
import dataclasses
from flask import request
from pydantic import BaseModel, SecretStr
from ventu_lite import Service

class Login(BaseModel):
    token: SecretStr

@dataclasses.dataclass
class Request:
    login: Login
    parts: list[bytes]

service = Service("types", request=Request, response=dict[int, bytes])

@service.infer
def act(item):
    return dict(enumerate([item.login.token.get_secret_value().encode(), *item.parts]))

app = service.app

@app.get("/own")
def own():
    return repr(service.ask(Request(Login(token="hush"), [bytes([255])])))

@app.get("/never")
def never():
    return repr(service.ask({}, timeout=float("nan")))
"""


def test_a_worker_gets_and_gives_the_values_of_one_process(tmp_path: Path) -> None:
    """A secret in stars, bytes that are no text, and keys that are no strings would spoil it."""
    (tmp_path / "app.py").write_text(ANY_TYPES_APP)
    names: dict[str, Any] = {}
    exec(ANY_TYPES_APP, names)
    here = names["app"].test_client().get("/own").text
    assert here == r"{0: b'hush', 1: b'\xff'}"
    with serve("app.py", "--workers=1", cwd=tmp_path) as server:
        server.process.wait_for("ready on")
        assert server.get("/own").body.decode() == here
        assert server.get("/never").status == 500
        server.process.wait_for("timeout must be more than 0 seconds, not nan")


class BrokenPolicy(FixedWait):
    """One that fails on every job."""

    def job_arrived(self, now: float) -> None:
        raise ZeroDivisionError


def refused_by_front(
    expected: type[Exception], asked: int, waiting: int = 0, policy: type[FixedWait] = FixedWait
) -> tuple[Exception, dict[str, int]]:
    """Ask a front with places for two; return the refusal and what was counted."""

    async def main() -> tuple[Exception, dict[str, int]]:
        queue: Queue[Any] = Queue(policy(0), max_batch_size=8, capacity=2, max_message=1 << 20)
        for n in range(waiting):
            queue.add(Job(f"{n}", b"?", 1, time.monotonic(), math.inf))
        metrics = FrontMetrics("x", waiting=lambda: 0, workers=dict)
        asker = Asker(Dispatcher(queue, metrics, asyncio.get_running_loop()))
        caught: list[Exception] = []

        def ask() -> None:
            with pytest.raises(expected) as refusal:
                asker([b"?"] * asked, 5.0)
            caught.append(refusal.value)

        threading.Thread(target=ask, daemon=True).start()  # which may hang where a test fails
        await turn_until(lambda: caught)
        assert queue.waiting == waiting
        return caught[0], metrics.rejected

    return asyncio.run(main())


def test_the_front_takes_all_or_none() -> None:
    """Of one call that finds no place nothing may be left in the queue."""
    refusal, counted = refused_by_front(QueueFull, asked=2, waiting=1)
    assert isinstance(refusal, QueueFull) and refusal.retry_after == 1.0
    assert counted == {"full": 1}


def test_the_front_says_when_no_try_will_ever_succeed() -> None:
    refusal, counted = refused_by_front(PayloadTooLarge, asked=3)
    assert str(refusal) == "3 requests at once, at most 2 fit: ask in parts"
    assert counted == {"invalid": 1}


def test_what_goes_wrong_in_the_front_is_told_to_the_thread_that_waits() -> None:
    _, counted = refused_by_front(ZeroDivisionError, asked=2, policy=BrokenPolicy)
    assert not counted
