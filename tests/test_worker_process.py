"""From a batch of the wire to the stages of a service and back, in this process."""

import contextlib
import json
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import msgpack
import pytest
from flask import abort
from peers import BatchingPeer
from prometheus_client import REGISTRY
from pydantic import BaseModel, Field

from ventu_lite import InferenceFailed, Service, VentuError
from ventu_lite.addresses import Address, TCPAddress, UnixAddress
from ventu_lite.batch_runner import BatchRunner
from ventu_lite.protocol import Batch
from ventu_lite.worker_process import answer, run_worker, run_worker_unless_imported


class Request(BaseModel):
    text: str = Field(examples=["hello"])


class Response(BaseModel):
    shout: str
    share: float = Field(le=1)


ODD: dict[str, Callable[[], Any]] = {
    "raise": lambda: 1 / 0,
    "abort": lambda: abort(418, "short and stout"),
    "abort with a surrogate": lambda: abort(418, "\ud800"),
    "abort with an object": lambda: abort(418, object()),
    "abort with 204": lambda: abort(204),
    "exit": lambda: sys.exit(0),
    "recurse": lambda: recurse(),
    "no memory": lambda: bytes(1 << 60),
    "generator exit": lambda: throw(GeneratorExit()),
    "exception without text": lambda: throw(Speechless()),
    "refuse with what": lambda: throw(InferenceFailed(418, "no", {"at": date(2026, 1, 2)})),
    "refuse without words": lambda: throw(InferenceFailed(418, "no", {"at": Speechless()})),
    "refuse with a text that comes too late": lambda: abort(500, Speechless()),
}


class Speechless(Exception):
    def __str__(self) -> str:
        raise ValueError("nothing to say")


def recurse() -> None:
    recurse()


def throw(exc: BaseException) -> None:
    raise exc


def odd_service(**options: Any) -> Service:
    """Return a service whose stages do what the text says, in the stage that it names."""
    service = Service("odd", **options)

    @service.preprocess
    def prepare(request: Request) -> str:
        act("preprocess", request.text)
        return request.text

    @service.infer(batch=True)
    def shout(texts: list[str]) -> list[str]:
        for text in texts:
            act("infer", text)
        return [text.upper() for text in texts]

    @service.postprocess
    def finish(text: str) -> Response:
        act("postprocess", text.lower())
        return Response(shout=text, share=1) if text != "BAD" else {"shout": 5}  # type: ignore[return-value]  # that is it

    return service


def act(stage: str, text: str) -> None:
    wanted, _, what = text.partition(": ")
    if wanted == stage:
        ODD[what]()


def ids(count: int) -> list[str]:
    return [f"{number:036}" for number in range(count)]


def runner_of(service: Service) -> BatchRunner:
    runner = service.runtime.act_as_worker()
    service.runtime.startup.run()
    return runner


def answered(service: Service, payloads: list[bytes]) -> list[tuple[int, Any]]:
    """Return status and decoded body of each job of one batch."""
    batch = Batch(dict(zip(ids(len(payloads)), payloads, strict=True)))
    results = answer(runner_of(service), batch)
    assert list(results.payloads) == list(batch.payloads)
    return [(results.rejected.get(id, 200), decoded(body)) for id, body in results.payloads.items()]


def decoded(body: bytes) -> Any:
    return json.loads(body) if body[:1] == b"{" else msgpack.unpackb(body)


def as_json(text: str) -> bytes:
    return json.dumps({"text": text}).encode()


def as_msgpack(text: str) -> bytes:
    packed: bytes = msgpack.packb({"text": text})
    return packed


@pytest.mark.parametrize(
    ("pack", "not_a_text"),
    [
        pytest.param(as_json, b'{"text": "\xff"}', id="json"),
        pytest.param(as_msgpack, b"\x81\xa4text\xa1\xff", id="msgpack"),
    ],
)
def test_eight_jobs_of_one_batch_get_each_its_own_answer(
    pack: Callable[[str], bytes], not_a_text: bytes
) -> None:
    payloads = [
        pack("x")[:-1],
        not_a_text,
        pack("x").replace(b"text", b"test"),
        pack("preprocess: raise"),
        pack("postprocess: raise"),
        pack("bad"),
        pack("preprocess: abort"),
        pack("good"),
    ]
    answers = answered(odd_service(), payloads)
    assert [status for status, _ in answers] == [400, 400, 422, 500, 500, 500, 418, 200]
    assert answers[-1][1] == {"shout": "GOOD", "share": 1.0}
    assert answers[6][1]["detail"] == "short and stout"
    assert answers[2][1]["errors"][0]["loc"] == ["text"]
    for id, (status, body) in zip(ids(8), answers[:-1], strict=False):
        assert (body["status"], body["instance"]) == (status, f"#{id}")
        assert not {"good", "GOOD", "raise", "ZeroDivisionError", "Traceback"} & words(body)


def words(body: dict[str, Any]) -> set[str]:
    return set(str(body).replace("'", " ").replace(":", " ").split())


@pytest.mark.parametrize("stage", ["preprocess", "infer", "postprocess"])
@pytest.mark.parametrize("what", list(ODD))
@pytest.mark.parametrize("pack", [as_json, as_msgpack])
def test_whatever_a_stage_does_costs_its_own_job_alone(
    stage: str, what: str, pack: Callable[[str], bytes]
) -> None:
    payloads = [pack("before"), pack(f"{stage}: {what}"), pack("after")]
    (first, _), (status, body), (last, _) = answered(odd_service(), payloads)
    is_own = what.startswith(("abort", "refuse")) and what != "abort with 204"
    expected = 418 if is_own and not what.endswith(("without words", "too late")) else 500
    assert (first, status, last) == (200, expected, 200)
    assert body["status"] == status


def test_not_even_a_keyboard_interrupt_of_a_stage_ends_the_worker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Signals have handlers of their own while a worker runs, so that it was raised on purpose."""
    service = Service("interrupts")

    @service.infer(batch=True)
    def infer(batch: list[int]) -> list[int]:
        raise KeyboardInterrupt

    assert [status for status, _ in answered(service, [b"1", b"2"])] == [500, 500]
    (message,) = caplog.messages[-1:]
    assert message.startswith(f"job {', '.join(ids(2))} failed: KeyboardInterrupt ({__file__}:")


@pytest.mark.parametrize("error", [SystemExit, KeyError])
def test_a_key_that_cannot_be_told_does_not_end_the_worker(error: type[BaseException]) -> None:
    service = Service("keys")

    def key(item: int) -> int:
        raise error(item)

    @service.infer(batch=True, key=key)
    def infer(batch: list[int]) -> list[int]:
        return batch

    assert [status for status, _ in answered(service, [b"1"])] == [500]


def test_a_large_response_is_answered() -> None:
    ((status, body),) = answered(odd_service(), [as_json("x" * 10_000_000)])
    assert (status, len(body["shout"])) == (200, 10_000_000)


def test_the_codec_of_the_service_is_that_of_its_errors() -> None:
    service = odd_service(codec="msgpack")
    (id,) = ids(1)
    results = answer(runner_of(service), Batch({id: b"{"}))
    assert msgpack.unpackb(results.payloads[id])["status"] == 422  # "{" is the number 123


def test_results_say_how_long_the_batch_took() -> None:
    results = answer(runner_of(odd_service()), Batch({ids(1)[0]: as_json("x")}))
    assert results.infer is not None and 0 < results.infer < 10


def test_each_batch_is_told_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "ventu_lite"):
        answered(odd_service(), [as_json("x"), as_json("y")])
    assert any(re.fullmatch(r"2 job\(s\) in \S+ s, 0 rejected", line) for line in caplog.messages)


def test_the_log_names_the_jobs_of_each_exception_and_shows_no_payload(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = odd_service()
    payloads = [
        as_json("secret preprocess"),
        as_json("preprocess: raise"),
        as_json("infer: abort"),
        b"no json, but secret",
    ]
    with caplog.at_level(logging.DEBUG, "ventu_lite"):
        answered(service, payloads)
    (error,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    said = f"job {ids(2)[1]} failed: ZeroDivisionError: division by zero ({__file__}:"
    assert error.getMessage().startswith(said)
    assert error.__dict__["job_id"] == [ids(2)[1]]
    assert error.exc_info is not None and error.exc_info[0] is ZeroDivisionError
    assert "secret" not in caplog.text


def test_jobs_that_fall_together_share_one_traceback(caplog: pytest.LogCaptureFixture) -> None:
    service = Service("together")

    @service.infer(batch=True, isolate=False)
    def infer(batch: list[int]) -> list[int]:
        raise OSError("the device is gone")

    answers = answered(service, [b"1", b"2", b"3"])
    assert [status for status, _ in answers] == [500, 500, 500]
    (error,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert error.getMessage().startswith(f"job {', '.join(ids(3))} failed: ")
    assert "raised OSError for one or more of 3 item(s)" in error.getMessage()
    assert "OSError: the device is gone" in caplog.text


# ------------------------------------------------------------------- run_worker, in this thread


def workers(service: Service, protocol: str) -> float | None:
    labels = {"service": service.name, "protocol": protocol}
    return REGISTRY.get_sample_value("ventu_workers", labels)


@contextlib.contextmanager
def meanwhile(do: Callable[[], None]) -> Iterator[None]:
    """Run ``do`` in a thread while the block runs; what it raises is raised at the end."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            do()
        except BaseException as exc:
            failures.append(exc)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=run, name="meanwhile")
    old = signal.signal(signal.SIGTERM, lambda *_: None)  # one that comes too late harms nobody
    thread.start()
    try:
        yield
    finally:
        thread.join(30)
        signal.signal(signal.SIGTERM, old)
    if failures:
        raise failures[0]


def address_of(peer: BatchingPeer) -> Address:
    if peer.unix is not None:
        return UnixAddress(peer.unix)
    assert peer.port is not None
    return TCPAddress("127.0.0.1", peer.port)


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_a_worker_serves_until_it_is_told_to_stop(tcp: bool) -> None:
    service = odd_service()
    seen: list[float | None] = []
    protocol = "tcp" if tcp else "unix"

    with BatchingPeer(tcp=tcp) as peer:

        def use() -> None:
            peer.wait_for_workers(1)
            ((status, body),) = peer.submit([as_json("hello")])
            seen.append(workers(service, protocol))
            assert (status, json.loads(body)) == (200, {"shout": "HELLO", "share": 1.0})

        with meanwhile(use):
            run_worker(service, address_of(peer))
        assert not peer.faults
    assert (seen, workers(service, protocol)) == ([1.0], 0.0)


def test_a_worker_calls_the_batch_function_of_a_service_that_has_both() -> None:
    service = Service("both")

    @service.infer
    def one(item: int) -> str:
        return "one"

    @service.infer(batch=True)
    def many(items: list[int]) -> list[str]:
        return ["many"] * len(items)

    with BatchingPeer() as peer:
        with meanwhile(lambda: check(peer.submit([b"1"]) == [(200, b'"many"')])):
            run_worker(service, address_of(peer))


def check(claim: bool) -> None:
    assert claim


def test_settings_of_the_worker_are_heeded() -> None:
    service = Service("settings", max_message=4096, worker_secret="hush")

    @service.infer
    def repeat(count: int) -> str:
        return "x" * count

    with BatchingPeer(secret="hush") as peer:

        def use() -> None:
            answers = peer.submit([b"5000", b"2"])
            check([status for status, _ in answers] == [500, 200])

        with meanwhile(use):
            run_worker(service, address_of(peer))
        assert peer.connections == 1


@pytest.mark.parametrize(
    ("set_up", "examples", "error"),
    [
        pytest.param(lambda: throw(OSError("no weights")), ["x"], OSError, id="set-up"),
        pytest.param(lambda: sys.exit(0), ["x"], SystemExit, id="set-up that exits"),
        pytest.param(lambda: None, ["infer: raise"], VentuError, id="warm-up"),
    ],
)
def test_a_worker_that_cannot_start_connects_to_nobody(
    set_up: Callable[[], None], examples: list[str], error: type[BaseException]
) -> None:
    service = odd_service(examples=[{"text": text} for text in examples])
    service.setup(set_up)
    with BatchingPeer() as peer:
        with pytest.raises(error):
            run_worker(service, address_of(peer))
        assert peer.connections == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_long_set_up_at_once(signum: int) -> None:
    service = odd_service()
    is_torn_down = threading.Event()
    service.teardown(is_torn_down.set)

    @service.setup
    def load() -> None:
        os.kill(os.getpid(), signum)
        threading.Event().wait(30)
        raise AssertionError("set-up went on")

    old = signal.getsignal(signum)
    with BatchingPeer() as peer:
        run_worker(service, address_of(peer))
        assert peer.connections == 0
    assert signal.getsignal(signum) is old
    assert not service.runtime.startup.is_ready


@pytest.mark.parametrize("stage", ["preprocess", "infer", "batch infer", "postprocess"])
def test_a_signal_ends_a_long_warm_up_at_once(stage: str) -> None:
    """It must not be taken for an exception of the stage that it interrupts."""
    service = Service("warms up", request=int, response=int, examples=[1])
    begun: list[str] = []

    def hang(item: Any) -> Any:
        begun.append(stage)
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(30)

    if stage != "batch infer":
        service.infer(hang if stage == "infer" else lambda item: item)
        service.add_stage("preprocess", hang if stage == "preprocess" else lambda item: item)
        service.add_stage("postprocess", hang if stage == "postprocess" else lambda item: item)
    else:
        service.infer(batch=True)(hang)
    with BatchingPeer() as peer:
        run_worker(service, address_of(peer))
        assert peer.connections == 0
    assert begun == [stage]


@pytest.mark.parametrize(
    ("variable", "count"), [("VENTU_OTHER", 1), ("VENTU_API_KEY", 0), ("VENTU_API_KEY_FILE", 0)]
)
def test_a_worker_whose_file_has_a_key_says_that_it_does_not_count(
    variable: str, count: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service("shut", request=int, response=int, api_key="s3cret")
    service.add_stage("infer", abs)
    service.setup(lambda: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setenv(variable, "x")
    run_worker(service, UnixAddress("nobody.socket"))
    assert caplog.text.count("lets everybody ask unless VENTU_API_KEY is set there, too") == count


@pytest.mark.parametrize("batch", [False, True])
def test_a_worker_whose_function_must_not_run_twice_says_what_that_takes(
    batch: bool, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service("once", request=int, response=int)

    @service.infer(batch=batch, retry=False)
    def charge(item: Any) -> int:
        return 1

    service.setup(lambda: os.kill(os.getpid(), signal.SIGTERM))
    run_worker(service, UnixAddress("nobody.socket"))
    assert "charge" in caplog.text
    assert "says retry=False: start the batching service with --no-retry" in caplog.text


def test_a_call_that_runs_a_worker_does_nothing_while_a_command_loads_the_file(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FLASK_RUN_FROM_CLI", "true")
    service = odd_service()
    run_worker_unless_imported(service, UnixAddress("nobody.socket"))
    service.run_unix("nobody.socket")
    service.run_tcp("127.0.0.1", 1)
    assert caplog.messages == 3 * [
        "ignoring a call that runs a worker: a command is loading this file"
    ]
    assert not service.runtime.startup.is_ready


def test_a_script_may_run_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLASK_RUN_FROM_CLI", raising=False)
    with BatchingPeer(tcp=True) as peer:
        assert peer.port is not None
        with meanwhile(lambda: check(peer.submit([as_json("x")])[0][0] == 200)):
            odd_service().run_tcp("127.0.0.1", peer.port)


@pytest.mark.parametrize("parent", [None, os.getppid(), 1_999_999_999])
def test_a_worker_stops_when_the_process_that_started_it_is_gone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, parent: int | None
) -> None:
    """It would wait for ever for a batching service that nobody else knows."""
    monkeypatch.setattr("ventu_lite.worker_process.end_with_parent", lambda: None)
    if parent is not None:
        monkeypatch.setenv("VENTU_PARENT_PROCESS", str(parent))
    is_orphan = parent == 1_999_999_999
    with BatchingPeer() as peer:

        def use() -> None:
            check(peer.submit([as_json("hello")])[0][0] == 200)

        with meanwhile(use) if not is_orphan else contextlib.nullcontext():
            run_worker(odd_service(), address_of(peer))
        assert peer.connections == (0 if is_orphan else 1)
    said = "the process that has started this worker is gone"
    assert (said in caplog.messages) == is_orphan
