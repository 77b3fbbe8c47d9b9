"""The benchmark that anybody can repeat: what it sends, counts, and says."""

import json
import os
import pty
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from processes import ROOT, TIMEOUT, Process, Server, environment, nothing_left, serve
from waiting import until

sys.path.insert(0, str(ROOT / "samples"))

import bench  # noqa: E402
from benchmark.compare import Options, Report, Row, as_json, best, compare, markdown  # noqa: E402
from benchmark.http import (  # noqa: E402
    Address,
    Answer,
    AnswerReader,
    Unreadable,
    batch_size,
    queue_seconds,
    request_bytes,
)
from benchmark.load import run  # noqa: E402
from benchmark.peers import MAX_BATCH_SIZE, MODELS, PEERS, Peer  # noqa: E402
from benchmark.plan import Plan, Tally, arrival_times  # noqa: E402
from benchmark.report import percentile, summary  # noqa: E402
from benchmark.servers import NotMeasured, check, program, requirements, running  # noqa: E402
from benchmark.servers import environment as make_environment  # noqa: E402
from benchmark.servers import processes as processes_of  # noqa: E402

BENCH = ROOT / "samples" / "bench.py"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
APP = """
from ventu_lite import Service

service = Service("bench", request=str, response=int, examples=["ab"])

@service.infer(batch=True)
def infer(batch):
    return [len(text) for text in batch]

app = service.app
"""


# Bytes

ANSWERS = [
    pytest.param(OK, Answer(200, b"{}", b"", False), id="length"),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\nA\r\n0123456789\r\n"
        b"0\r\nX: y\r\n\r\n",
        Answer(200, b"abc0123456789", b"", False),
        id="chunks",
    ),
    pytest.param(
        b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
        Answer(204, b"", b"", True),
        id="no-body",
    ),
    pytest.param(
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK, Answer(200, b"{}", b"", False), id="continue"
    ),
    pytest.param(
        b"HTTP/1.0 503\r\ncontent-length: 1\r\nserver-timing: a\r\nServer-Timing: b\r\n\r\nx",
        Answer(503, b"x", b"a,b", True),
        id="old",
    ),
]


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(("stream", "answer"), ANSWERS)
def test_an_answer_is_read_however_it_was_cut(stream: bytes, answer: Answer, size: int) -> None:
    reader = AnswerReader()
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    assert [reader.feed(piece) for piece in pieces] == [None] * (len(pieces) - 1) + [answer]
    assert reader.is_empty


@pytest.mark.parametrize(("stream", "answer"), ANSWERS)
def test_a_stream_that_ends_early_is_no_answer(stream: bytes, answer: Answer) -> None:
    for end in range(1, len(stream)):
        reader = AnswerReader()
        assert reader.feed(stream[:end]) is None
        if not reader.is_empty:  # 100 Continue may be all that came
            with pytest.raises(Unreadable):
                reader.feed_eof()


def test_the_end_of_the_connection_may_be_the_end_of_the_answer() -> None:
    reader = AnswerReader()
    assert reader.feed(b"HTTP/1.1 200 OK\r\n\r\nhel") is None
    assert reader.feed(b"lo") is None
    assert reader.feed_eof() == Answer(200, b"hello", b"", True)


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"SSH-2.0-OpenSSH\r\n", id="another-protocol"),
        pytest.param(b"HTTP/2 200 OK\r\n\r\n", id="another-version"),
        pytest.param(b"HTTP/1.1 OK\r\n\r\n", id="no-status"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent Length: 2\r\n\r\n{}", id="field"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n{}", id="length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n", id="too-long"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", id="lengths"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
            id="both",
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", id="coding"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n", id="chunk"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", id="chunk-end"
        ),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", id="switch"),
        pytest.param(OK + OK, id="two-answers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, id="endless-head"),
    ],
)
def test_what_is_not_one_answer_is_refused(stream: bytes) -> None:
    with pytest.raises(Unreadable):
        AnswerReader().feed(stream)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:80/a?b=c", Address("127.0.0.1", 80, "/a?b=c", "127.0.0.1:80")),
        ("localhost:8000", Address("localhost", 8000, "/", "localhost:8000")),
        ("http://user:secret@[::1]:1/x#y", Address("::1", 1, "/x", "[::1]:1")),
    ],
)
def test_a_url_says_where_to(url: str, address: Address) -> None:
    assert Address.of(url) == address


@pytest.mark.parametrize("url", ["https://a/", "http:///x", "ftp://a", "http://a:99999/"])
def test_a_url_that_cannot_be_measured_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="http|host|[Pp]ort"):
        Address.of(url)


def test_a_request_is_written_as_it_should_be() -> None:
    address = Address.of("http://a:1/b")
    assert request_bytes("POST", address, {"X": "y"}, b"{}") == (
        b"POST /b HTTP/1.1\r\nHost: a:1\r\nX: y\r\nContent-Length: 2\r\n\r\n{}"
    )
    assert request_bytes("GET", address, {}, b"") == b"GET /b HTTP/1.1\r\nHost: a:1\r\n\r\n"
    with pytest.raises(ValueError, match="cannot stand in a request"):
        request_bytes("GET", address, {"X": "a\r\nY: b"}, b"")


@pytest.mark.parametrize(
    ("header", "seconds", "size"),
    [
        (b'queue;dur=1.2, infer;dur=5.4, total;dur=7.1, batch;desc="16"', 0.0012, 16),
        (b"batch;desc=3,queue;dur=0", 0.0, 3),
        (b'batch;dur=1;desc="2", queue;desc=x;dur=4', 0.004, 2),
        (b'db;dur=3, in-queue;dur=4, minibatch;desc="7"', None, None),
        (b'queue, batch;desc="many"', None, None),
        (b"", None, None),
    ],
)
def test_server_timing_tells_queue_and_batch(
    header: bytes, seconds: float | None, size: int | None
) -> None:
    assert queue_seconds(header) == seconds
    assert batch_size(header) == size


# Numbers


@pytest.mark.parametrize(
    ("count", "share", "value"),
    [
        (1, 0.5, 1),
        (2, 0.5, 1),
        (3, 0.5, 2),
        (100, 0.99, 99),
        (101, 0.99, 100),
        (1000, 0.9, 900),
        (1000, 0.999, 999),
        (1000, 1.0, 1000),
        (10, 0.999, 10),
    ],
)
def test_a_percentile_is_a_value_that_was_measured(count: int, share: float, value: int) -> None:
    assert percentile([float(n) for n in range(1, count + 1)], share) == value


def plan_to(port: int = 1, path: str = "/inference", **changes: object) -> Plan:
    """Return a short plan without warm-up."""
    address = Address.of(f"http://127.0.0.1:{port}{path}")
    request = request_bytes("POST", address, {"Content-Type": "application/json"}, b'"text"')
    plan = Plan(address, request, clients=4, seconds=0.5, warm_up=0.0, timeout=TIMEOUT)
    return replace(plan, **changes)  # type: ignore[arg-type]  # any field of it


def tally_of(**changes: object) -> Tally:
    """Return what a plan of half a second may have measured."""
    return replace(
        Tally(seconds=0.5, busy=[0.3], starved=[0.1]),
        **changes,  # type: ignore[arg-type]  # any field of it
    )


def test_a_summary_counts_batches_and_not_the_jobs_in_them() -> None:
    """Sixteen answers tell of one batch of sixteen."""
    result = summary(plan_to(), tally_of(batches=Counter({16: 32, 1: 2})))
    assert result.batches == {1: 2.0, 16: 2.0}
    assert result.batch_mean == 34 / 4


def test_a_summary_is_of_the_window() -> None:
    latencies = array("d", [0.004, 0.001, 0.003, 0.002])
    errors = Counter({"status 500": 1, "timeout": 2})
    result = summary(plan_to(), tally_of(latencies=latencies, in_window=3, errors=errors))
    assert result.rate == 6.0
    assert result.count == 4
    assert result.failed == 3
    assert list(result.errors) == ["timeout", "status 500"]
    assert result.latency == pytest.approx(
        {"p50": 2, "p90": 4, "p99": 4, "p99.9": 4, "max": 4, "mean": 2.5}
    )
    assert result.warnings == []
    assert json.loads(json.dumps(result.as_json()))["failed"] == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"busy": [0.2, 0.99], "starved": [0.0, 0.0]}, "this tool was the bottleneck: 99%"),
        ({"busy": [0.5], "starved": [0.48]}, "waited for a free core"),
        ({"late": array("d", [0.0] * 98 + [0.02] * 2)}, "sent late: 1 request of 100 by 20.0 ms"),
        ({"seconds": 0.2}, "ended early, after 0.2 s"),
    ],
)
def test_a_summary_says_when_the_tool_is_to_blame(changes: dict[str, object], words: str) -> None:
    (warning,) = summary(plan_to(), tally_of(**changes)).warnings
    assert words in warning


def test_even_arrivals_are_dealt_out_to_the_processes() -> None:
    plan = plan_to(rate=100.0, arrivals="even", processes=3, seconds=1.0)
    times = sorted(at for index in range(3) for at in arrival_times(plan, 7.0, index))
    assert times == pytest.approx([7 + n / 100 for n in range(100)])


def test_random_arrivals_have_the_rate_and_the_spread_that_was_asked_for() -> None:
    plan = plan_to(rate=1000.0, processes=2, seconds=20.0)
    times = sorted(at for index in range(2) for at in arrival_times(plan, 0.0, index))
    gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
    assert len(times) == pytest.approx(20_000, rel=0.03)
    assert sum(gap > 0.001 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)
    assert times == sorted(at for index in range(2) for at in arrival_times(plan, 0.0, index))


def test_the_connections_are_divided() -> None:
    plan = plan_to(clients=8, processes=3)
    assert [plan.share(index).clients for index in range(3)] == [3, 3, 2]


# Load


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("bench") / "app.py"
    path.write_text(APP)
    with serve(path, "--max-wait", "0") as server:
        yield server


def answered(service: Server) -> int:
    """Return how many requests the service has answered so far."""
    text = service.get("/metrics").body.decode()
    counts = re.findall(r"^ventu_request_seconds_count\{.*\} (\S+)$", text, re.MULTILINE)
    return int(sum(map(float, counts)))


def test_a_closed_loop_counts_every_request(service: Server) -> None:
    before = answered(service)
    plan = plan_to(service.port, expected=b"4")
    tally = run(plan)
    result = summary(plan, tally)
    assert result.errors == {}
    assert result.count == answered(service) - before
    # What was still out at the end was answered after the window.
    assert 0 <= result.count - tally.in_window <= plan.clients
    assert result.count > 0
    assert sum(size * count for size, count in result.batches.items()) == pytest.approx(
        result.count
    )
    assert 0 <= result.queue["p50"] <= result.latency["p50"]


def test_several_processes_add_up(service: Server) -> None:
    before = answered(service)
    tally = run(plan_to(service.port, processes=2))
    assert len(tally.busy) == 2
    assert len(tally.latencies) == answered(service) - before


def test_an_open_loop_sends_what_is_due_and_no_more(service: Server) -> None:
    before = answered(service)
    plan = plan_to(service.port, rate=100.0, arrivals="even", clients=100)
    tally = run(plan)
    assert len(tally.latencies) == len(tally.late) == 50
    assert answered(service) - before == 50


def test_warm_up_is_not_counted(service: Server) -> None:
    before = answered(service)
    tally = run(plan_to(service.port, rate=100.0, arrivals="even", clients=100, warm_up=0.3))
    assert len(tally.latencies) == 50
    assert answered(service) - before == 80


def test_a_status_that_is_no_success_is_an_error(service: Server) -> None:
    plan = plan_to(service.port, "/nowhere", rate=100.0, arrivals="even")
    tally = run(plan)
    assert tally.errors == {"status 404": 50}
    assert not tally.latencies and not tally.in_window


def test_a_wrong_answer_is_an_error(service: Server) -> None:
    plan = plan_to(service.port, rate=100.0, arrivals="even", expected=b"5")
    assert run(plan).errors == {"another answer than expected": 50}


@contextmanager
def scripted(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Yield the port of a server that lets ``answer`` deal with each connection, one at a time."""
    door = socket.create_server(("127.0.0.1", 0))
    stopping = threading.Event()

    def work() -> None:
        while True:
            sock, _ = door.accept()
            with sock, suppress(ConnectionError):
                if stopping.is_set():
                    return
                answer(sock)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield door.getsockname()[1]
    finally:
        stopping.set()
        socket.create_connection(door.getsockname()).close()
        thread.join(TIMEOUT)
        door.close()
        assert not thread.is_alive()


def says(data: bytes) -> Callable[[socket.socket], None]:
    """Answer every request of a connection, and close it."""

    def answer(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(data)

    return answer


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        pytest.param(b"garbage\r\n\r\n", "unreadable answer: not a status line", id="garbage"),
        pytest.param(b"", "closed before an answer", id="closes"),
        pytest.param(OK[:-1], "closed within an answer", id="half"),
        pytest.param(OK + b"more", "unreadable answer: 4 bytes after", id="too-much"),
    ],
)
def test_a_server_that_is_broken_gives_errors(data: bytes, kind: str) -> None:
    with scripted(says(data)) as port:
        tally = run(plan_to(port, rate=40.0, arrivals="even", clients=1))
    (found,) = tally.errors
    assert kind in found
    assert tally.errors[found] == 20
    assert not tally.latencies


def test_a_server_that_closes_after_each_answer_gives_none() -> None:
    data = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with scripted(says(data)) as port:
        tally = run(plan_to(port, rate=40.0, arrivals="even", clients=1))
    assert tally.errors == {}
    assert len(tally.latencies) == 20


def test_a_server_that_is_gone_gives_errors() -> None:
    with socket.socket() as nobody:  # it keeps the port from others, and does not listen
        nobody.bind(("127.0.0.1", 0))
        tally = run(plan_to(nobody.getsockname()[1]))
    (kind,) = tally.errors
    assert "no connection" in kind
    assert tally.errors[kind] >= 4


@pytest.mark.parametrize("rate", [None, 40.0])
def test_a_server_that_is_silent_gives_timeouts(rate: float | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
        tally = run(plan_to(port, rate=rate, arrivals="even", timeout=0.2, clients=2))
    assert set(tally.errors) == {"timeout"}
    if rate is not None:
        assert tally.errors["timeout"] == 20


def test_a_pause_of_the_server_is_in_the_latency_of_all_that_were_due() -> None:
    """A client that waits for the answer before it sends the next request would see one of them."""

    def answer(sock: socket.socket) -> None:
        time.sleep(0.4)  # the pause
        while sock.recv(65536):
            sock.sendall(OK)

    with scripted(answer) as port:
        tally = run(plan_to(port, rate=100.0, arrivals="even", clients=1))
    assert len(tally.latencies) == 50
    assert sum(latency > 0.2 for latency in tally.latencies) >= 20


# The command line


def bench_py(*args: str | Path, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *python, BENCH, *args],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT,
    )


class Said(NamedTuple):
    """What became of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def bench_here(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command that ends before it measures, in this process: to start one takes longer."""

    def run(*args: str) -> Said:
        try:
            code = bench.main(args)
        except SystemExit as exc:  # the parser's
            code = int(exc.code or 0)
        return Said(code, *capsys.readouterr())

    return run


def short(service: Server) -> tuple[str, ...]:
    url = f"http://localhost:{service.port}/inference"
    return ("load", url, "--body", '"text"', "--seconds", "0.3", "--warm-up", "0")


def test_load_prints_what_it_has_measured(service: Server, tmp_path: Path) -> None:
    """Without a word of progress: nobody looks at a pipe."""
    file = tmp_path / "load.json"
    done = bench_py(*short(service), "--json", file)
    assert done.returncode == 0
    assert done.stderr == ""
    for word in ("64 clients in a closed loop", "requests/s", "p99.9", "batch size", "queue ms"):
        assert word in done.stdout
    written = json.loads(file.read_text())
    assert written["count"] > 0
    assert written["machine"]["cores"] == os.cpu_count()
    assert "bench.py load http" in written["command"]


def test_load_needs_no_other_package(service: Server, tmp_path: Path) -> None:
    done = bench_py(*short(service), "--clients", "2", python=("-S",))
    assert done.returncode == 0, done.stderr
    assert "errors       none" in done.stdout
    picture = tmp_path / "load.png"
    done = bench_py(*short(service), "--plot", picture, python=("-S",))
    assert done.returncode == bench.WRONG_USAGE
    assert "pip install matplotlib" in done.stderr
    assert done.stdout == ""


def test_load_sends_msgpack(service: Server) -> None:
    done = bench_py(*short(service), "--type", "msgpack", "--rate", "50")
    assert "errors       none" in done.stdout


def test_load_shows_its_progress_on_a_terminal(service: Server) -> None:
    ours, theirs = pty.openpty()
    try:
        subprocess.run(
            [sys.executable, BENCH, *short(service)],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            check=True,
            timeout=2 * TIMEOUT,
        )
        assert "answers, 0 errors" in os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_no_answer_is_a_failure(service: Server) -> None:
    url = f"http://127.0.0.1:{service.port}/nowhere"
    args = ("--seconds", "0.2", "--warm-up", "0", "--rate", "50", "--errors")
    done = bench_py("load", url, *args)
    assert done.returncode == bench.NO_ANSWER
    assert "× status 404" in done.stdout


@pytest.mark.parametrize(
    ("path", "args", "said", "advice"),
    [
        pytest.param("/inference", [], '405: {"type": "about:blank"', "needs --body", id="no-body"),
        pytest.param("/nowhere", [], '404: {"type"', "needs --body", id="nowhere"),
        pytest.param("/inference", ["--body", "{}"], '422: {"type"', "are right", id="wrong-body"),
        pytest.param(
            "/inference",
            ["--body", '"text"', "--header", "X-Request-Timeout: 0.000001"],
            '504: {"type"',
            "are right",
            id="too-late",
        ),
    ],
)
def test_what_would_only_measure_errors_is_not_begun(
    service: Server,
    bench_here: Callable[..., Said],
    path: str,
    args: list[str],
    said: str,
    advice: str,
) -> None:
    """The first answer tells a wrong URL or a forgotten body from a service to be measured."""
    done = bench_here("load", f"http://127.0.0.1:{service.port}{path}", *args)
    assert (done.code, done.out) == (bench.WRONG_USAGE, "")
    assert f"the first answer has status {said}" in done.err
    assert "or say --errors to measure errors" in done.err
    assert advice in done.err


def test_any_body_can_be_shown() -> None:
    assert bench.start_of(b"<html>\n  <p>no \xff\x1b[31m") == "<html> <p>no ��[31m"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(b"garbage\r\n\r\n", "not a status line of HTTP/1.1", id="garbage"),
        pytest.param(b"", "the connection was closed", id="closes"),
        pytest.param(OK[:-1], "the answer ends after", id="half"),
        pytest.param(b"HTTP/1.1 500 \r\n\r\n" + b"x" * 600, "status 500: " + "x" * 500, id="long"),
    ],
)
def test_what_is_no_service_is_not_measured(
    bench_here: Callable[..., Said], data: bytes, said: str
) -> None:
    with scripted(says(data)) as port:
        done = bench_here("load", f"http://127.0.0.1:{port}/")
    assert done.code == bench.WRONG_USAGE
    assert f"{said}\n" in done.err or f"{said} " in done.err


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["load", "http://127.0.0.1:1/"], bench.CANNOT_CONNECT, "cannot connect to"),
        (["load", "https://127.0.0.1/"], bench.WRONG_USAGE, "is not http"),
        (["load", "a", "--seconds", "0"], bench.WRONG_USAGE, "is not above 0"),
        (["load", "a", "--processes", "65"], bench.WRONG_USAGE, "65 processes for 64 clients"),
        (["load", "a", "--header", "x"], bench.WRONG_USAGE, "is not 'Name: value'"),
        (["load", "a", "--type", "msgpack", "--body", "x"], bench.WRONG_USAGE, "packs JSON"),
        (["load", "a", "--body", "no.json"], bench.WRONG_USAGE, "no such file: no.json"),
        (["compare", "--only", "triton"], bench.WRONG_USAGE, "invalid choice"),
        (["compare", "--clients", "1,0"], bench.WRONG_USAGE, "is not above 0"),
    ],
)
def test_what_cannot_be_done_is_said(
    bench_here: Callable[..., Said], args: list[str], code: int, words: str
) -> None:
    done = bench_here(*args)
    assert (done.code, done.out) == (code, "")
    assert words in done.err


def test_the_exit_code_and_the_words_are_those_of_the_process() -> None:
    done = bench_py("load", "https://127.0.0.1/")
    assert (done.returncode, done.stdout) == (bench.WRONG_USAGE, "")
    assert re.fullmatch(r"bench\.py: .* is not http.*\n", done.stderr)


@pytest.mark.parametrize("body", ["no.msgpack", "cat.png", "a file.JSON", "bodies/one", "./{}"])
def test_a_name_of_no_file_is_not_sent_as_a_text(body: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"no such file: {body}")):
        bench.body_bytes(body, "json")


@pytest.mark.parametrize(
    "body",
    ['{"url": "http://a/b.json"}', '["a/b"]', '"a.json"', "1.5e30", "text", "Hi. Ho", "x" * 300],
)
def test_a_text_is_sent_as_it_is(body: str) -> None:
    """One of 300 letters is too long for the name of a file, which is no error."""
    assert bench.body_bytes(body, "json") == body.encode()


@pytest.mark.parametrize("command", [[], ["load"], ["compare"]])
def test_help_ends_with_commands_that_are_understood(
    bench_here: Callable[..., Said], command: list[str]
) -> None:
    text = bench_here(*command, "--help").out
    epilog = text.partition("examples")[2].replace("\\\n", " ")
    lines = re.findall(r"^ +python samples/bench.py (.*)$", epilog, re.MULTILINE)
    assert lines
    for line in lines:
        bench.parser().parse_args(shlex.split(line))


def test_ctrl_c_ends_a_measurement_early_and_shows_it(service: Server) -> None:
    with nothing_left() as mark:
        args = [*short(service)[:4], "--seconds", "600", "--warm-up", "0"]
        with Process(BENCH, *args, env=mark) as process:
            process.wait_for("closed loop")
            before = answered(service)
            until(lambda: answered(service) >= before + 10 or not process.is_alive, pause=0.01)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of it
            assert process.wait() == 0
    assert "WARNING: ended early" in process.output
    assert "errors       none" in process.output


def test_its_processes_end_when_it_is_killed(service: Server) -> None:
    with nothing_left() as mark:
        args = [*short(service)[:4], "--seconds", "600", "--processes", "2"]
        with Process(BENCH, *args, env=mark) as process:
            process.wait_for("closed loop")
            before = answered(service)
            until(lambda: answered(service) >= before + 10 or not process.is_alive, pause=0.01)
            process.signal(signal.SIGKILL)
            process.wait()


# Beside others


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("peer", PEERS.values(), ids=lambda peer: peer.name)
def test_a_peer_is_defined_wholly(peer: Peer, model: str) -> None:
    for values in peer.variants[model].values():
        filled = program(peer, model, {"port": "1", "folder": "/tmp/x", **values})
        assert "$" not in filled
        compile(filled, "app.py", "exec")
    pinned = [name for name in peer.requirements if name != "ventu_lite"]
    assert all("==" in name for name in pinned), "a benchmark of what is newest is not repeatable"
    assert peer.batching == "none" or str(MAX_BATCH_SIZE) in peer.program


@pytest.fixture
def own_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a server that a test starts have a port that the system gives to nobody else meanwhile.

    Whoever wants it by its number gets it, as servers reuse addresses, too.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        monkeypatch.setattr("benchmark.servers._free_port", lambda: holder.getsockname()[1])
        yield


def options(**changes: object) -> Options:
    base = Options("empty", [2], 0.3, 0.1, 1, 1, Path("/nonexistent"))
    return replace(base, **changes)  # type: ignore[arg-type]  # any field of it


def ready(cache: Path, peer: Peer) -> None:
    """Let the environment of a peer be that of the tests."""
    folder = cache / f"{peer.name}-{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "bin").mkdir(parents=True)
    script = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n'
    (folder / "bin" / "python").write_text(script)
    (folder / "bin" / "python").chmod(0o755)
    (folder / "installed.txt").write_text("\n".join(requirements(peer)))


@pytest.mark.usefixtures("own_port")
def test_ventu_lite_is_measured(tmp_path: Path) -> None:
    """The whole way, but for what is installed."""
    peers = [PEERS["ventu_lite"]]
    ready(tmp_path, peers[0])
    said: list[str] = []
    (report,) = compare(peers, options(cache=tmp_path), said.append)
    assert report.failures == []
    assert report.rows[2].result.errors == {}
    assert report.rows[2].result.count > 0
    assert len(said) == 1
    # The system counts in hundredths of a second: on a busy machine a few requests may take none.
    if sys.platform == "linux" and report.rows[2].result.count > 100:
        assert report.rows[2].cpu is not None and report.rows[2].cpu > 0


def test_ctrl_c_ends_a_comparison_early_and_shows_it(tmp_path: Path) -> None:
    ready(tmp_path, PEERS["ventu_lite"])
    times = ("--seconds", "0.2", "--warm-up", "0", "--rounds", "1000")
    args = ("compare", "--only", "ventu_lite", "--clients", "1", "--cache", tmp_path, *times)
    with nothing_left() as mark, Process(BENCH, *args, env=mark) as process:
        process.wait_for("ventu_lite serve, 1 clients: .* requests/s")
        process.signal(signal.SIGINT)
        assert process.wait() == 0
    assert re.search(r"^\| ventu_lite serve \| [0-9,]+ \|", process.output, re.MULTILINE)


@pytest.mark.usefixtures("own_port")
def test_ventu_lite_in_gunicorn_runs_and_ends() -> None:
    peer = PEERS["ventu_lite-flask"]
    with running(peer, "sleep", "8 threads", Path(sys.executable)) as server:
        check(server)
        assert server.ask("abc").rstrip() == b'{"length":3}'
    assert processes_of(server.mark) == []


WRONG = """
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"length": 19}')

HTTPServer(("127.0.0.1", $port), Handler).serve_forever()
"""


def plain(program: str) -> Peer:
    """Return a peer that is one file."""
    return replace(
        PEERS["ventu_lite"], program=program, command=("app.py",), requirements=("x==1",)
    )


@pytest.mark.parametrize(
    ("program", "words"),
    [
        pytest.param(WRONG, "wrong answer: {'length': 19} instead of", id="wrong"),
        pytest.param("raise SystemExit('no | such')", "ended with 1: no | such", id="ends"),
        pytest.param(
            "import atexit\natexit.register(print, 'bye')\nraise ValueError('odd')",
            "ended with 1: ValueError: odd",
            id="crashes",
        ),
    ],
)
@pytest.mark.usefixtures("own_port")
def test_a_peer_that_does_not_work_is_shown(tmp_path: Path, program: str, words: str) -> None:
    peer = plain(program)
    ready(tmp_path, peer)
    reports = compare([peer], options(cache=tmp_path), lambda line: None)
    assert words in reports[0].failures[0]
    document = markdown(reports, options(), "command", MACHINE)
    assert f"| not measured: {words}".replace("no | such", r"no \| such") in document


def test_a_peer_that_cannot_be_installed_is_shown(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotMeasured, match="does not install: ."):
        make_environment(tmp_path / "file", plain(""), lambda line: None)


def test_an_environment_is_made_once(tmp_path: Path) -> None:
    said: list[str] = []
    ready(tmp_path, plain(""))
    assert make_environment(tmp_path, plain(""), said.append).exists()
    assert said == []


MACHINE = {
    "cpu": "a processor",
    "cores": 2,
    "memory_gib": 4.0,
    "system": "Linux",
    "python": "CPython 3.10.0",
    "date": "2030-01-01T00:00:00+00:00",
    "load_average": 0.1,
}


def row(rate: int, **changes: object) -> Row:
    """Return a measurement of so many good answers per second."""
    tally = tally_of(latencies=array("d", [0.001]), in_window=rate // 2, **changes)
    return Row("", summary(plan_to(), tally), 12.0)


def test_the_best_variant_is_the_one_with_the_best_median() -> None:
    """A single good round of the other proves nothing."""
    found = best({"lucky": [row(100), row(102), row(900)], "good": [row(200), row(202), row(204)]})
    assert (found.variant, found.result.rate) == ("good", 202)


def test_the_tables_show_what_was_measured_and_what_was_not() -> None:
    fine = Report(PEERS["ventu_lite"], "1.0", {1: row(1000), 16: row(5000)})
    rude = Report(PEERS["mosec"], "2.0", {1: row(400, errors=Counter({"status 500": 3}))})
    rude.failures.append("wait 5 ms: ended with -9: a | b\nc")
    gone = Report(PEERS["ray"], failures=["does not install: no wheel"])
    slow = Report(PEERS["flask"], "3.0", {1: row(10, busy=[1.0]), 16: row(20)})
    wanted = options(clients=[1, 16])
    document = markdown([fine, rude, gone, slow], wanted, "python bench.py compare", MACHINE)
    assert "| ventu_lite serve | 1,000 | 1.00 | 1.00 |  | 12 | none |  |" in document
    assert "| 3 × status 500 |" in document
    assert r"| mosec | not measured: wait 5 ms: ended with -9: a \| b c |" in document
    assert document.count("| Ray Serve | not measured: does not install: no wheel |") == 2
    assert "| plain Flask | 10 (!) |" in document
    assert "- (!) plain Flask, 1 clients: this tool was the bottleneck" in document
    assert "    python bench.py compare" in document
    for table in re.findall(r"(?:^\|.*\n)+", document, re.MULTILINE):
        columns = {len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(columns) == 1, table
    written = json.dumps(as_json([fine, rude, gone], wanted, "command", MACHINE))
    assert json.loads(written)["servers"][0]["clients"]["16"]["rate"] == 5000
