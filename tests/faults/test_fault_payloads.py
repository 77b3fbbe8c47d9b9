"""Bodies that are wrong, or built to cost more than they weigh."""

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import pytest
from deployments import TCP, UNIX, Deployment, deployed, everywhere, until
from lazily import Lazily
from processes import TIMEOUT, Answer, Server, worker

MODEL = """
from typing import Any

from pydantic import BaseModel

from ventu_lite import Service


class Part(BaseModel):
    a: int
    b: int
    c: int
    d: int


class Request(BaseModel):
    text: str
    number: int = 0
    numbers: list[float] = []
    parts: list[Part] = []
    anything: Any = None


class Response(BaseModel):
    text: str
    anything: Any


service = Service("payloads", request=Request, response=Response)


def answer(item):
    back = item.anything if item.text == "echo" else type(item.anything).__name__
    return Response(text=item.text.upper(), anything=back)


@service.infer(batch=True)
def infer(batch: list[Request]) -> list[Response]:
    return list(map(answer, batch))


app = service.app
"""
LIMIT = 1 << 19
ENV = {
    "VENTU_MAX_BODY": str(LIMIT),
    "VENTU_TIMEOUT": str(TIMEOUT),
    # Else what is measured is how much each thread of gunicorn keeps of what it has freed.
    "MALLOC_ARENA_MAX": "1",
}
JSON, MSGPACK = "application/json", "application/msgpack"
GOOD = b'{"text": "good"}'


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, Deployment]]:
    """Deployments by the way they run."""
    with contextlib.ExitStack() as stack:
        yield Lazily(stack, MODEL, ENV)


def decoded(answer: Answer) -> Any:
    """Return the body of an answer in the codec that its header tells."""
    if answer.headers["Content-Type"] == MSGPACK:
        return msgpack.unpackb(answer.body)
    return json.loads(answer.body)


def encoded(value: Any, media_type: str) -> bytes:
    """Return a body of that type."""
    body: bytes = msgpack.packb(value) if media_type == MSGPACK else json.dumps(value).encode()
    return body


def assert_refused(answer: Answer, status: int, media_type: str) -> None:
    problem = decoded(answer)
    assert (answer.status, problem["status"]) == (status, status)
    expected = "application/problem+json" if media_type != MSGPACK else MSGPACK
    assert answer.headers["Content-Type"] == expected
    assert len(answer.body) < 10_000


def assert_well(server: Server) -> None:
    """Whoever comes next is answered."""
    answer = server.infer(GOOD)
    assert (answer.status, json.loads(answer.body)["text"]) == (200, "GOOD")


def packed(**fields: Any) -> bytes:
    """Return a request in msgpack."""
    data: bytes = msgpack.packb({"text": "echo"} | fields)
    return data


def with_part(part: bytes, field: str = "anything") -> bytes:
    """Return a request in msgpack with a part that no packer makes."""
    return b"\x82" + msgpack.packb("text") + msgpack.packb("echo") + msgpack.packb(field) + part


def text_with(part: bytes, field: str = "anything") -> bytes:
    """Return a request in JSON with a part that no writer makes."""
    return b'{"text": "echo", "%b": %b}' % (field.encode(), part)


def utf(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


# -------------------------------------------------------------------------------- bad bodies

OBJECT = '{"text": "good"}'
DIGITS = b"9" * 100_000
REFUSED = [
    pytest.param(JSON, b"", 400, id="empty JSON"),
    pytest.param(MSGPACK, b"", 400, id="empty msgpack"),
    pytest.param("", b"", 400, id="empty anything"),
    pytest.param(JSON, b" \n\t ", 400, id="white space"),
    pytest.param(JSON, b"\0", 400, id="a NUL"),
    # ---- the wrong label
    pytest.param(MSGPACK, GOOD, 400, id="JSON as msgpack"),
    pytest.param(MSGPACK, b"[1]", 400, id="a JSON list as msgpack"),
    pytest.param(MSGPACK, b" " + GOOD, 400, id="JSON with a space as msgpack"),
    pytest.param(JSON, packed(), 400, id="msgpack as JSON"),
    pytest.param(JSON, b"\x93\1\2\3", 400, id="a msgpack list as JSON"),
    pytest.param(JSON, b"\x05", 400, id="a msgpack number as JSON"),
    # ---- encodings
    pytest.param(JSON, utf(OBJECT, "utf-8-sig"), 400, id="UTF-8 with BOM"),
    pytest.param(JSON, utf(OBJECT, "utf-16"), 400, id="UTF-16 with BOM"),
    pytest.param(JSON, utf(OBJECT, "utf-16-le"), 400, id="UTF-16 LE"),
    pytest.param(JSON, utf(OBJECT, "utf-16-be"), 400, id="UTF-16 BE"),
    pytest.param(JSON, utf(OBJECT, "utf-32"), 400, id="UTF-32"),
    pytest.param(JSON, b'{"text": "\xff\xfe"}', 400, id="no UTF-8 in JSON"),
    pytest.param(JSON, b'{"text": "\xed\xa0\x80"}', 400, id="a surrogate as UTF-8 in JSON"),
    pytest.param(JSON, rb'{"text": "\ud800"}', 400, id="a lone surrogate, escaped"),
    pytest.param(JSON, rb'{"text": "\udc00\ud800"}', 400, id="surrogates in the wrong order"),
    pytest.param(JSON, rb'{"\ud800": 1, "text": "a"}', 400, id="a lone surrogate in a key"),
    pytest.param(MSGPACK, with_part(b"\xa2\xff\xfe"), 400, id="no UTF-8 in msgpack"),
    pytest.param(MSGPACK, with_part(b"\xa3\xed\xa0\x80"), 400, id="a surrogate in msgpack"),
    # ---- what follows
    pytest.param(JSON, GOOD + b"x", 400, id="JSON and garbage"),
    pytest.param(JSON, GOOD + GOOD, 400, id="JSON twice"),
    pytest.param(JSON, GOOD + b"\0", 400, id="JSON and a NUL"),
    pytest.param(MSGPACK, packed() + b"\xc0", 400, id="msgpack and garbage"),
    pytest.param(MSGPACK, packed() + packed(), 400, id="msgpack twice"),
    # ---- numbers
    pytest.param(JSON, DIGITS, 400, id="digits alone"),
    pytest.param(JSON, text_with(DIGITS), 400, id="digits in anything"),
    pytest.param(JSON, text_with(DIGITS, "number"), 400, id="digits in an integer"),
    pytest.param(JSON, text_with(b'"' + DIGITS + b'"', "number"), 422, id="digits in a string"),
    pytest.param(JSON, text_with(b"[" + DIGITS + b"]", "numbers"), 400, id="digits in a float"),
    pytest.param(JSON, text_with(b"-" + DIGITS, "text"), 400, id="digits in a text"),
    pytest.param(JSON, text_with(b"NaN", "number"), 422, id="NaN as an integer"),
    pytest.param(JSON, text_with(b"1e999999999", "number"), 422, id="infinity as an integer"),
    pytest.param(MSGPACK, packed(number=float("inf")), 422, id="msgpack infinity as an integer"),
    # ---- lengths that are not there
    *(
        pytest.param(MSGPACK, head + size + rest, 400, id=f"{name} of {size.hex()} {where}")
        for name, head in [
            ("array32", b"\xdd"),
            ("map32", b"\xdf"),
            ("str32", b"\xdb"),
            ("bin32", b"\xc6"),
            ("ext32", b"\xc9"),
        ]
        for size in (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x10\x00\x00")
        for where, rest in [("alone", b""), ("begun", b"\xa1a" * 1000)]
    ),
    pytest.param(MSGPACK, with_part(b"\xdd\xff\xff\xff\xff"), 400, id="a long array inside"),
    pytest.param(MSGPACK, with_part(b"\xdf\xff\xff\xff\xff"), 400, id="a long map inside"),
    pytest.param(MSGPACK, (b"\xdd\x00\x00\x03\xe8" * 300), 400, id="arrays that want to be long"),
    # ---- depth
    *(
        pytest.param(JSON, text_with(b"[" * depth + b"]" * depth), 400, id=f"{depth} lists in JSON")
        for depth in (201, 5000, 250_000)
    ),
    pytest.param(JSON, b"[" * LIMIT, 400, id="nothing but brackets"),
    pytest.param(JSON, b'{"":' * (LIMIT // 4), 400, id="nothing but braces"),
    pytest.param(JSON, text_with(b'{"a":' * 300 + b"1" + b"}" * 300), 400, id="300 maps in JSON"),
    *(
        pytest.param(
            MSGPACK, with_part(kind * depth + b"\xc0"), 400, id=f"{depth} {name} in msgpack"
        )
        for depth in (1024, 5000, 250_000)
        for name, kind in [("lists", b"\x91"), ("maps", b"\x81\xa0")]
    ),
    pytest.param(MSGPACK, b"\x91" * LIMIT, 400, id="nothing but lists"),
    pytest.param(MSGPACK, b"\xdc\xff\xff" * (LIMIT // 3), 400, id="nothing but heads of lists"),
    # ---- msgpack's own types
    pytest.param(MSGPACK, b"\xc1", 400, id="the byte that means nothing"),
    pytest.param(MSGPACK, with_part(b"\xc1"), 400, id="the byte that means nothing, inside"),
    pytest.param(MSGPACK, packed(text=msgpack.ExtType(5, b"x")), 422, id="an ext as text"),
    pytest.param(MSGPACK, with_part(b"\xd4\xff\x01"), 400, id="a timestamp of one byte"),
    pytest.param(
        MSGPACK,
        with_part(b"\xc7\x0c\xff" + b"\xff" * 4 + bytes(8)),
        400,
        id="a timestamp of 4 billion nanoseconds",
    ),
    pytest.param(
        MSGPACK, with_part(b"\xc7\x0c\xff" + bytes(4) + b"\x7f" + b"\xff" * 7), 400, id="year 3e11"
    ),
    pytest.param(
        MSGPACK, with_part(b"\xc7\x0c\xff" + bytes(4) + b"\x80" + bytes(7)), 400, id="year -3e11"
    ),
    pytest.param(MSGPACK, b"\x81\x01\x02", 400, id="an integer as a key"),
    pytest.param(MSGPACK, b"\x81\x90\x02", 400, id="a list as a key"),
    pytest.param(MSGPACK, b"\x81\xcb" + bytes(8) + b"\x02", 400, id="a float as a key"),
    pytest.param(MSGPACK, b"\x81\xd6\xff\0\0\0\1\x02", 400, id="a timestamp as a key"),
]


@everywhere
@pytest.mark.parametrize(("media_type", "payload", "status"), REFUSED)
def test_a_bad_body_is_refused(
    running: dict[str, Deployment], how: str, media_type: str, payload: bytes, status: int
) -> None:
    server = running[how].server
    assert_refused(server.infer(payload, media_type), status, media_type)
    assert_well(server)


@everywhere
@pytest.mark.parametrize("media_type", [JSON, MSGPACK])
def test_a_body_that_ends_at_any_byte(
    running: dict[str, Deployment], how: str, media_type: str
) -> None:
    value = {"text": "é", "number": -70000, "numbers": [1.5, 2], "anything": {"a": [None, True]}}
    whole = encoded(value, media_type)
    with running[how].server.client() as client:
        for end in range(len(whole)):
            assert_refused(client.infer(whole[:end], media_type), 400, media_type)
        answer = client.infer(whole, media_type)
        assert (answer.status, decoded(answer)["text"]) == (200, "É")


@everywhere
@pytest.mark.parametrize("media_type", [JSON, MSGPACK, ""])
def test_a_body_at_the_limit(running: dict[str, Deployment], how: str, media_type: str) -> None:
    text = "x" * (LIMIT - 100)
    text += "x" * (LIMIT - len(encoded({"text": text}, media_type)))
    server = running[how].server
    answer = server.infer(encoded({"text": text}, media_type), media_type)
    assert (answer.status, decoded(answer)["text"]) == (200, text.upper())
    assert server.infer(encoded({"text": text + "x"}, media_type), media_type).status == 413
    assert_well(server)


@pytest.mark.parametrize("how", [UNIX, TCP])
@pytest.mark.parametrize("smaller", ["batching", "worker"])
def test_the_smaller_limit_of_two_programs_counts(directory: Path, how: str, smaller: str) -> None:
    """Whoever has it, the client is told, the worker stays, and so does the rest of the batch."""
    limits = {"batching": "1MiB", "worker": "1MiB"} | {smaller: "1000"}
    patient = {"VENTU_MAX_WAIT_POLICY": "fixed", "VENTU_MAX_WAIT": "0.1"}
    env = patient | {"VENTU_MAX_BODY": limits["batching"]}
    with deployed(how, MODEL, directory, workers=0, is_ready=False, env=env) as deployment:
        env = {"VENTU_MAX_BODY": limits["worker"]}
        with worker("app.py", *deployment.address, cwd=directory, env=env) as process:
            server = deployment.server
            until(lambda: server.get("/readyz").status == 200)
            for media_type in (JSON, MSGPACK):
                body = encoded({"text": "x" * 1000}, media_type)
                with ThreadPoolExecutor(4) as pool:
                    large = pool.submit(server.infer, body, media_type)
                    small = [pool.submit(server.infer, GOOD) for _ in range(3)]
                    assert_refused(large.result(TIMEOUT), 413, media_type)
                    detail = decoded(large.result())["detail"]
                    assert detail == "body of more than 1000 bytes (max_body)"
                    assert [one.result(TIMEOUT).status for one in small] == [200] * 3
            assert process.is_alive and process.output.count("connected to") == 1


# ------------------------------------------------------------------------- odd, but no mistake

LEGAL = [
    pytest.param(JSON, b" \r\n\t" + text_with(b"1") + b" \r\n\t", 1, id="white space around"),
    pytest.param(JSON, b'{"text": "no", "text": "echo", "anything": 2}', 2, id="a key twice"),
    pytest.param(JSON, text_with(b'{"a": 1, "a": 2}'), {"a": 2}, id="a key twice, inside"),
    pytest.param(JSON, text_with(rb'"\ud83d\ude00"'), "😀", id="a pair of surrogates"),
    pytest.param(JSON, text_with(rb'"\u0000"'), "\0", id="a NUL, escaped"),
    pytest.param(JSON, text_with(b"NaN"), None, id="NaN"),
    pytest.param(JSON, text_with(b"[Infinity, -Infinity]"), [None, None], id="infinities"),
    pytest.param(JSON, text_with(b"1e400"), None, id="a float that is too large"),
    pytest.param(JSON, text_with(b"0." + b"1" * 100_000), 1 / 9, id="a long fraction"),
    pytest.param(JSON, text_with(b"9" * 4000), 10**4000 - 1, id="4000 digits"),
    pytest.param(JSON, text_with(b"-" + b"18446744073709551616"), -(2**64), id="65 bits"),
    pytest.param(JSON, text_with(b'"' + b"\\u0061" * 50_000 + b'"'), "a" * 50_000, id="escapes"),
    pytest.param(JSON, text_with(b"[" * 190 + b"]" * 190), None, id="190 lists"),
    pytest.param(MSGPACK, with_part(b"\x91" * 500 + b"\xc0"), None, id="500 lists in msgpack"),
    pytest.param(MSGPACK, packed(anything=2**64 - 1), 2**64 - 1, id="the largest integer"),
    pytest.param(MSGPACK, packed(anything=-(2**63)), -(2**63), id="the smallest integer"),
    pytest.param(MSGPACK, packed(number=2**64 - 1, anything=1), 1, id="64 bits in an integer"),
    pytest.param(MSGPACK, packed(anything=float("inf")), float("inf"), id="msgpack infinity"),
    pytest.param(MSGPACK, packed(anything=b"\xff\0"), b"\xff\0", id="bytes"),
    pytest.param(
        MSGPACK,
        packed(anything=msgpack.Timestamp(2**32, 5000)),
        "2106-02-07T06:28:16.000005Z",
        id="a timestamp",
    ),
    pytest.param(MSGPACK, packed(anything=msgpack.ExtType(5, b"x")), [5, b"x"], id="an ext"),
    pytest.param(
        MSGPACK, with_part(b"\x82\xa1a\x01\xa1a\x02"), {"a": 2}, id="a key twice, msgpack"
    ),
    pytest.param(MSGPACK, with_part(b"\xdb\0\0\0\1a"), "a", id="a long head of a short text"),
    pytest.param("", GOOD[:-1] + b', "a": [1]}', "NoneType", id="JSON without a label"),
    pytest.param("", packed(anything=1), 1, id="msgpack without a label"),
]


@everywhere
@pytest.mark.parametrize(("media_type", "payload", "back"), LEGAL)
def test_an_odd_body_is_answered(
    running: dict[str, Deployment], how: str, media_type: str, payload: bytes, back: Any
) -> None:
    answer = running[how].server.infer(payload, media_type)
    assert answer.status == 200
    if b"[" * 50 in payload or b"\x91" * 50 in payload:
        assert answer.body.count(b"[") + answer.body.count(b"\x91") in (190, 500)
        return
    read = decoded(answer)["anything"] if b"9" * 4000 not in payload else int_of(answer)
    assert read == (pytest.approx(back) if isinstance(back, float) else back)


def int_of(answer: Answer) -> int:
    """Return a number that is almost too long for Python to read."""
    digits = re.search(rb"9+", answer.body)
    assert digits
    return int(digits[0])


# ------------------------------------------------------------------------------------- bombs


def filled(element: bytes) -> bytes:
    """Return a msgpack list with as many elements as there is room for."""
    count = (LIMIT - 64) // len(element)
    return b"\xdd" + count.to_bytes(4, "big") + element * count


def joined(element: bytes) -> bytes:
    """Return a JSON list with as many elements as there is room for."""
    return b"[" + b",".join([element] * ((LIMIT - 64) // (len(element) + 1))) + b"]"


def bombs(media_type: str) -> Iterator[bytes]:
    """Yield bodies just below the limit, each of as many small values as possible.

    In msgpack they hold more lists and maps than JSON has room for below the limit, but for the
    last one.
    """
    if media_type == JSON:
        yield joined(b"{}")
        yield text_with(joined(b"[]"))
        yield text_with(joined(b'{"":1}'))
        yield text_with(joined(b"[" * 180 + b"]" * 180))
        yield text_with(joined(b"[]"), "numbers")
        yield text_with(joined(b'""'), "numbers")
        yield text_with(joined(b"{}"), "parts")
        yield text_with(joined(b"[[]]"), "text")
        yield b"{" + b",".join(b'"%x":1' % number for number in range(LIMIT // 10)) + b"}"
    else:
        yield filled(b"\x80")
        yield with_part(filled(b"\x90"))
        yield with_part(filled(b"\x81\xa0\xc0"))
        yield with_part(filled(b"\x91" * 500 + b"\x90"))
        yield with_part(filled(b"\x80"), "numbers")
        yield with_part(filled(b"\xa0"), "numbers")


# What a body may take for a moment, in times the limit of a body. An empty list, three bytes in
# JSON, takes 72 in Python with its place in a list, goes through a tree of the parser's own, and
# here it is written once more, into an answer. Whoever has only the bytes has them as they came,
# in one piece, and in a message.
WORKER_FACTOR = 130
FRONT_FACTOR = 10


def peak(pid: int) -> int:
    """Return the most memory that a process had at any time, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


@everywhere
@pytest.mark.parametrize("media_type", [JSON, MSGPACK])
def test_a_bomb_takes_a_bounded_multiple_of_the_limit(
    directory: Path, how: str, media_type: str
) -> None:
    """Each is answered, nobody dies of it, and those beside it are answered rightly."""
    with deployed(how, MODEL, directory, env=ENV) as deployment:
        server, workers = deployment.server, deployment.worker_pids()
        limits = {server.process.pid: FRONT_FACTOR} | dict.fromkeys(workers, WORKER_FACTOR)
        before = {pid: peak(pid) for pid in limits}
        statuses: list[int] = []
        with honest_clients(server):
            for payload in bombs(media_type):
                assert len(payload) <= LIMIT
                statuses.append(server.infer(payload, media_type).status)
        if media_type == MSGPACK:
            assert statuses == [413] * 5 + [422]
        else:
            assert set(statuses) == {200, 422}
        assert deployment.worker_pids() == workers
        grown = {pid: (peak(pid) - before[pid]) / LIMIT for pid in limits}
        assert all(grown[pid] < limits[pid] for pid in limits), grown


@everywhere
@pytest.mark.parametrize("wrong", [b'{"number": "x"', b'{"anything": 1'], ids=["type", "missing"])
def test_a_refused_body_is_not_kept(directory: Path, how: str, wrong: bytes) -> None:
    """Not even until the garbage collector comes: that takes some thirty of them."""
    payload = wrong + b', "a": "' + b"x" * (LIMIT - 64) + b'"}'
    with deployed(how, MODEL, directory, env=ENV) as deployment:
        (worker,) = deployment.worker_pids()
        for _ in range(3):
            assert deployment.server.infer(payload).status == 422
        before = peak(worker)
        for _ in range(60):
            assert deployment.server.infer(payload).status == 422
        grown = (peak(worker) - before) / LIMIT
        assert grown < FRONT_FACTOR


@contextlib.contextmanager
def honest_clients(server: Server) -> Iterator[None]:
    """Two clients that ask all the time; each answer must be right."""
    is_over = threading.Event()
    said: list[tuple[int, str]] = []

    def ask() -> None:
        while not is_over.is_set():
            answer = server.infer(GOOD)
            said.append((answer.status, json.loads(answer.body).get("text")))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join(TIMEOUT)
    assert set(said) == {(200, "GOOD")}
