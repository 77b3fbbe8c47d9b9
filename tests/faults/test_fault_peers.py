"""Bad peers on the worker socket, at either end: they harm nobody, and the log names them once."""

import contextlib
import http.client
import math
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from crowds import make_room_for
from deployments import BATCHING, SERVE, TCP, UNIX, Deployment, deployed, until
from lines import READY, Line, addition, connect, frame, message, packed
from processes import (
    TIMEOUT,
    Answer,
    Process,
    Server,
    gunicorn,
    nothing_left,
    short_directory,
    worker,
)

ECHO = """
from ventu_lite import Service

service = Service("echo", request=str, response=str)

@service.infer(batch=True)
def shout(texts):
    return [text.upper() for text in texts]

app = service.app
"""
# Long enough for an honest worker on a busy machine, short enough to be waited for.
BATCH_TIMEOUT = 3.0
TLS_HELLO = bytes.fromhex("1603010200010001fc0303") + bytes(500)


def deep(levels: int) -> bytes:
    """Return a map in a map in a map, and so on."""
    return b"\x81\xa1a" * levels + b"\xa0"


# ------------------------------------------------------------------- at a batching service


@dataclass(frozen=True)
class Site:
    """A batching service with one honest worker, and clients."""

    deployment: Deployment
    pool: ThreadPoolExecutor

    @property
    def server(self) -> Server:
        return self.deployment.server

    def door(self) -> Line:
        return connect(self.deployment)

    def infer(self, text: str) -> "Future[Answer]":
        """Ask in a thread."""
        return self.pool.submit(self.server.infer, packed(text), "application/msgpack")

    def is_honest(self, text: str = "honest") -> bool:
        """Whether a client gets its own right answer."""
        return is_right(self.infer(text), text)

    @contextlib.contextmanager
    def chosen(self) -> Iterator[tuple[Line, dict[str, bytes], str, "Future[Answer]"]]:
        """A rogue that has a batch of one job: its line, the batch, the text, the client."""
        with self.door() as line:
            line.say(READY)
            batch, text, asked = self.choose(line)
            yield line, batch, text, asked

    def choose(self, line: Line) -> tuple[dict[str, bytes], str, "Future[Answer]"]:
        """Ask until this worker, which is ready, gets a job; it is idle longest at some time."""
        heard = self.pool.submit(line.hear)
        for number in range(100):
            text = f"job {number} of {id(line)}"
            asked = self.infer(text)
            until(lambda: asked.done() or heard.done())  # noqa: B023  # waits within the loop
            if heard.done() and packed(text) in heard.result().values():
                return heard.result(), text, asked
            assert is_right(asked, text)
        raise AssertionError("this worker never got a job")

    @contextlib.contextmanager
    def blamed(self, count: int) -> Iterator[list[str]]:
        """What happens here must cost so many lines of the log, to be read afterwards."""
        before = len(self.complaints())
        said: list[str] = []
        yield said
        assert self.is_honest()
        until(lambda: len(self.complaints()) >= before + count)
        said += self.complaints()[before:]
        assert len(said) == count and all(len(line) < 500 for line in said)

    def complaints(self) -> list[str]:
        """Return what the log says of workers that are cut off."""
        lines = self.server.process.lines
        return [line for line in lines if "broke the protocol" in line or "is cut off" in line]


def is_right(asked: "Future[Answer]", text: str) -> bool:
    answer = asked.result(TIMEOUT)
    return (answer.status, answer.body) == (200, packed(text.upper()))


@pytest.fixture(scope="module", params=BATCHING)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """One for all tests here: that it still serves after all of them is part of the test."""
    options = ["--timeout", "20", "--batch-timeout", str(BATCH_TIMEOUT), "--max-batch-size", "1"]
    options += ["--log-level", "debug"]  # a cause that comes again is a line at that level only
    if request.param == SERVE:
        options += ["--unix", "s"]
    with short_directory() as directory, ThreadPoolExecutor(32) as pool:
        with deployed(request.param, ECHO, directory, *options) as deployment:
            site = Site(deployment, pool)
            yield site
            assert site.is_honest()
            assert "Traceback" not in site.server.process.output


Offence = Callable[[str], bytes]

STRANGER = "f" * 36
OFFENCES: dict[str, tuple[Offence, str]] = {
    "garbage": (lambda id: frame(b"\xc1garbage"), "is not a msgpack map"),
    "ready once more": (lambda id: READY, "ready"),
    "a negative length": (lambda id: b"\xff\xff\xff\xff" + packed({id: b"x"}), "-1 bytes"),
    "a huge length": (lambda id: b"\x7f\xff\xff\xff" + b"x" * 100, "expected at most"),
    "a length that is too short": (lambda id: b"\0\0\0\3" + packed({id: b"x"}), "expected"),
    "an array": (lambda id: message([id, b"x"]), "is not a msgpack map"),
    "nothing but nil": (lambda id: message(None), "is not a msgpack map"),
    "a number for a result": (lambda id: message({id: 1}), "is not a msgpack map"),
    "nil for a result": (lambda id: message({id: None}), "is not a msgpack map"),
    "a number for an id": (lambda id: message({1: b"x"}), "is not a msgpack map"),
    "an unknown id": (lambda id: message({STRANGER: b"x"}), "not in the batch"),
    "an unknown id beside its own": (
        lambda id: message({id: b"x", STRANGER: b"x"}),
        "not in the batch",
    ),
    "an id as long as a book": (lambda id: message({"x" * 1_000_000: b"x"}), "not in the batch"),
    "its id twice": (
        lambda id: frame(b"\x82" + (packed(id) + packed(b"x")) * 2),
        "1 of them repeated",
    ),
    "error_ids of strangers": (
        lambda id: message({id: b"x", "error_ids": STRANGER}),
        "error_ids of a job",
    ),
    "error_ids that are cut": (
        lambda id: message({id: b"x", "error_ids": id[:-1]}),
        "error_ids of 35 bytes",
    ),
    "a million entries": (
        lambda id: frame(b"\xdf" + struct.pack(">I", 1_000_000) + b"\xa1a\xa0" * 1_000_000),
        "map of 1000000 entries",
    ),
    "a claim of four billion entries": (
        lambda id: frame(b"\xdf\xff\xff\xff\xff"),
        "map of 4294967295 entries",
    ),
    "maps in maps": (lambda id: frame(deep(100_000)), "is not a msgpack map"),
    "maps in maps in the additions": (
        lambda id: message({id: b"x", "ventu_lite": deep(2000)}),
        "ventu_lite entry",
    ),
    "enormous additions": (
        lambda id: message({id: b"x", "ventu_lite": packed({"a": b"x" * 1_000_000})}),
        "ventu_lite entry of 10000",
    ),
    "additions that are a list": (
        lambda id: message({id: b"x", "ventu_lite": packed([1])}),
        "ventu_lite entry",
    ),
    "a bye that is a word": (lambda id: message({id: b"x"} | addition(bye="yes")), "bye of type"),
    "HTTP": (lambda id: b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", "speaks HTTP"),
    "TLS": (lambda id: TLS_HELLO, "speaks TLS"),
}
for bad_status in (200, 99, 399, 600, 2**63, -1, "500", 422.0, None):
    OFFENCES[f"status {bad_status!r}"] = (
        lambda id, bad=bad_status: message(  # type: ignore[misc]  # mypy knows no defaults here
            {id: b"x", "error_ids": id} | addition(status={id: bad})
        ),
        "status is not a map of integers from 400 to 599",
    )
for bad_infer in (math.nan, math.inf, -1.0, "1", True, [1]):
    OFFENCES[f"infer {bad_infer!r}"] = (
        lambda id, bad=bad_infer: message({id: b"x"} | addition(infer=bad)),  # type: ignore[misc]
        "infer is not a number of seconds",
    )


@pytest.mark.parametrize("offence", OFFENCES)
def test_a_worker_that_answers_nonsense_is_cut_off(site: Site, offence: str) -> None:
    """Its job goes to an honest one, whose answer the client gets."""
    make, complaint = OFFENCES[offence]
    with site.blamed(1) as said, site.chosen() as (line, batch, text, asked):
        (job,) = batch
        line.say(make(job))
        assert line.is_closed()
        assert is_right(asked, text)
    assert complaint in said[0]


FIRST_WORDS = {
    "results before ready": message({STRANGER: b"x"}),
    "results when nothing was asked": READY + message({STRANGER: b"x"}),
    "an empty map when nothing was asked": READY + message({}),
    "ready twice": READY + READY,
    "ready a million times": READY * 1_000_000,
    "a negative length": b"\x80\0\0\0",
    "a length for which it is too early": b"\0\1\0\0" + b"x" * 1000,
    "a length for which nothing was asked": READY + b"\0\1\0\0" + b"x" * 1000,
    "HTTP": b"POST /inference HTTP/1.1\r\nHost: h\r\n\r\n",
    "TLS": TLS_HELLO,
}


@pytest.mark.parametrize("first", FIRST_WORDS)
def test_a_stranger_who_speaks_out_of_turn_is_cut_off(site: Site, first: str) -> None:
    with site.blamed(1), site.door() as line:
        line.say(FIRST_WORDS[first])
        assert line.is_closed()


def test_a_result_that_is_left_out_is_asked_of_another_worker(site: Site) -> None:
    """That is no fault of the protocol: the forgetful worker is asked again later."""
    with site.blamed(0), site.chosen() as (line, _, text, asked):
        line.say(message({}))
        assert is_right(asked, text)
        batch, text, asked = site.choose(line)
        line.say(message({job: packed("late, but there") for job in batch}))
        assert asked.result(TIMEOUT).body == packed("late, but there")


def test_results_that_come_twice_are_taken_once(site: Site) -> None:
    with site.blamed(1), site.chosen() as (line, batch, _, asked):
        (job,) = batch
        line.say(message({job: packed("first")}))
        assert asked.result(TIMEOUT).body == packed("first")
        line.say(message({job: packed("second")}))
        assert line.is_closed()


def test_who_sends_results_twice_in_one_go_is_not_believed_at_all(site: Site) -> None:
    with site.blamed(1), site.chosen() as (line, batch, text, asked):
        line.say(2 * message({job: packed("no") for job in batch}))
        assert line.is_closed()
        assert is_right(asked, text)


def test_nobody_can_answer_the_job_of_another_worker(site: Site) -> None:
    with site.blamed(1) as said, site.chosen() as (victim, batch, _, asked):
        (job,) = batch
        with site.chosen() as (thief, own, text, other):
            thief.say(message({job: packed("stolen")} | {mine: packed("x") for mine in own}))
            assert thief.is_closed()
            assert is_right(other, text)
        victim.say(message({job: packed("mine")}))
        assert asked.result(TIMEOUT).body == packed("mine")
    assert "not in the batch" in said[0]


def test_a_worker_cannot_claim_any_time(site: Site) -> None:
    with site.chosen() as (line, batch, _, asked):
        (job,) = batch
        line.say(message({job: packed("x")} | addition(infer=1e308)))
        timing = asked.result(TIMEOUT).headers["Server-Timing"]
    assert len(timing) < 120 and "inf;" not in timing


def test_the_job_of_a_worker_that_leaves_goes_to_another(site: Site) -> None:
    for last_words in (b"", b"\0\0", b"\0\0\0\x64half"):
        with site.blamed(1 if last_words else 0), site.chosen() as (line, _, text, asked):
            line.say(last_words)
            line.sock.close()
            assert is_right(asked, text)


def test_the_jobs_of_workers_that_fall_silent_go_to_others(site: Site) -> None:
    """Whatever they have said so far, and if they go on a byte at a time."""
    with site.blamed(4) as said_of_them, contextlib.ExitStack() as stack:
        rogues = [stack.enter_context(site.chosen()) for _ in range(4)]
        half = frame(b"\x81" + bytes(100))
        for (line, *_), said in zip(rogues, (b"", half[:2], half[:50], b""), strict=True):
            line.say(said)
        dripping = rogues[3][0]
        stop = threading.Event()
        stack.callback(stop.set)

        def drip() -> None:
            for byte in half:
                dripping.say(bytes([byte]))
                if stop.wait(0.1):
                    break

        dripper = site.pool.submit(drip)
        for line, _, text, asked in rogues:
            assert line.is_closed()
            assert is_right(asked, text)
        stop.set()
        dripper.result(TIMEOUT)
    assert all("held a batch for too long" in said for said in said_of_them)


def test_a_worker_that_reads_nothing_is_cut_off(site: Site) -> None:
    with site.blamed(1) as said, site.door() as line:
        line.say(READY)
        before = len(site.complaints())
        while len(site.complaints()) == before:
            assert site.is_honest("x" * 3_000_000)
    assert "held a batch for too long" in said[0]


def test_strangers_cannot_fill_the_memory(site: Site) -> None:
    """Each announces a message that a worker with a batch might send, and then sends it."""
    before = resident(site.server.process.pid)
    with site.blamed(40), contextlib.ExitStack() as stack:
        for number in range(40):
            line = stack.enter_context(site.door())
            line.say((READY if number % 2 else b"") + struct.pack(">i", 100_000_000))
            line.say(b"x" * 4_000_000)
            assert line.is_closed()
        assert resident(site.server.process.pid) - before < 64 * 1024**2


def resident(pid: int) -> int:
    """Return the bytes of memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


def test_a_browser_at_the_port_of_workers_gets_no_answer_and_the_log_says_why(
    site: Site,
) -> None:
    option, place = site.deployment.address
    if option == "--unix":
        return  # no browser gets there
    connection = http.client.HTTPConnection(place, timeout=TIMEOUT)
    with site.blamed(1) as said, contextlib.closing(connection):
        with pytest.raises((OSError, http.client.HTTPException)):
            connection.request("GET", "/", headers={"User-Agent": "Mozilla/5.0"})
            connection.getresponse()
    assert said[0].endswith("the peer speaks HTTP, is this the right port?")


def test_a_worker_at_the_port_of_clients_is_told_and_does_not_spin(site: Site) -> None:
    options = ("--tcp", f"127.0.0.1:{site.server.port}", "--log-level", "debug")
    with worker("app.py", *options, cwd=site.deployment.directory) as lost:
        said = "the peer speaks HTTP, is this the right port?; trying again in "
        for delay in ("0.1 s", "0.2 s", "0.4 s", "0.8 s"):
            lost.wait_for(re.escape(said + delay))
        assert lost.stop() == 0
        assert lost.output.count("WARNING") == 1
    assert site.is_honest()


# ------------------------------------------------------------------------ in great number

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (600, 600))
from ventu_lite.__main__ import main
main()
"""
SILENT = 3000


@pytest.mark.parametrize("how", [UNIX, TCP])
@pytest.mark.parametrize("secret", ["", "hush"], ids=["open", "secret"])
def test_thousands_who_say_nothing_keep_nobody_out(directory: Path, how: str, secret: str) -> None:
    """Of a process that may have 600 open files: clients and workers still come in."""
    make_room_for(SILENT)
    (directory / "app.py").write_text(ECHO)
    (directory / "limited.py").write_text(LIMITED)
    door = ("--unix", "s") if how == UNIX else ("--tcp", "127.0.0.1:0")
    with nothing_left(files=True) as env, contextlib.ExitStack() as stack:
        if secret:
            env["VENTU_WORKER_SECRET"] = secret
        arguments = ("limited.py", "batching", "--port", "0", *door)
        process = stack.enter_context(Process(*arguments, cwd=directory, env=env))
        match = process.wait_for(r"ready on http://localhost:(\d+) for clients, at (\S+)")
        server = Server(process, int(match[1]))
        port = int(match[2].rpartition(":")[2]) if how == TCP else 0
        for _ in range(SILENT // 100):
            for _ in range(100):
                sock = socket.socket(socket.AF_UNIX if how == UNIX else socket.AF_INET)
                stack.enter_context(sock)
                sock.settimeout(TIMEOUT)
                with contextlib.suppress(ConnectionError):
                    sock.connect(str(directory / "s") if how == UNIX else ("127.0.0.1", port))
            assert server.get("/livez").status == 200
        address = door if how == UNIX else ("--tcp", f"127.0.0.1:{port}")
        stack.enter_context(worker("app.py", *address, cwd=directory, env=env))
        until(lambda: server.get("/readyz").status == 200)
        assert server.infer(b'"x"').body == b'"X"'
        assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) < 400
        process.wait_for("have not asked for a batch")
        assert process.output.count("have not asked for a batch") == 1
        assert "Traceback" not in process.output and "Too many open files" not in process.output


# ------------------------------------------------------------------------------ at a worker

IMPATIENT = ECHO + "\nimport ventu_lite.session\nventu_lite.session.SILENCE_TIMEOUT = 1.0\n"


class Door:
    """A batching service, as far as a worker can see: the test says what it says."""

    def __init__(self, how: str, directory: Path) -> None:
        if how == TCP:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.address = ("--tcp", f"127.0.0.1:{self._listener.getsockname()[1]}")
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(directory / "door"))
            self._listener.listen()
            self.address = ("--unix", "door")
        self._listener.settimeout(TIMEOUT)

    def __enter__(self) -> "Door":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def accept(self) -> Line:
        """Return the next connection of a worker, which has said ready."""
        line = Line(self._listener.accept()[0])
        assert line.read(4) == READY
        return line

    def serve(self) -> None:
        """Be honest for one batch, then close."""
        with self.accept() as line:
            jobs = {character * 36: packed(character) for character in "ab"}
            line.say(message(jobs))
            results = line.hear()
            results.pop("ventu_lite", None)
            assert results == {id: packed(id[0].upper()) for id in jobs}


@dataclass(frozen=True)
class Lonely:
    """A worker, and the batching service that the test plays."""

    process: Process
    door: Door

    @contextlib.contextmanager
    def blaming(self, count: int) -> Iterator[list[str]]:
        """What happens here must cost so many complaints about the peer, to be read afterwards."""
        before = len(self.complaints())
        said: list[str] = []
        yield said
        self.door.serve()
        until(lambda: len(self.complaints()) >= before + count)
        said += self.complaints()[before:]
        assert len(said) == count and all(len(line) < 500 for line in said)

    def complaints(self) -> list[str]:
        """Return what its log says of connections that were lost, but not of those just closed."""
        lost = [line for line in self.process.lines if ": lost " in line]
        return [line for line in lost if not re.search("closed by the batching|Errno", line)]


@pytest.fixture(scope="module", params=[UNIX, TCP])
def lonely(request: pytest.FixtureRequest) -> Iterator[Lonely]:
    with short_directory() as directory, nothing_left(files=True) as env:
        (directory / "app.py").write_text(IMPATIENT)
        with Door(request.param, directory) as door:
            with worker("app.py", *door.address, cwd=directory, env=env) as process:
                door.serve()
                yield Lonely(process, door)
                assert process.is_alive
                assert "Traceback" not in process.output


JOB = "j" * 36
BAD_BATCHES: dict[str, tuple[bytes, str]] = {
    "garbage": (frame(b"\xc1garbage"), "not a msgpack map"),
    "a negative length": (b"\xff\xff\xff\xff" + b"x" * 100, "frame of -1 bytes"),
    "a huge length": (b"\x7f\xff\xff\xff" + b"x" * 100, "frame of 2147483647 bytes"),
    "a length that is too short": (b"\0\0\0\3" + packed({JOB: b"1"}), "expected at most"),
    "an empty frame": (READY, "not a msgpack map"),
    "a batch of nothing": (message({}), "batch of 0 jobs"),
    "a short id": (message({"j": b"1"}), "job id that is not 36"),
    "a long id": (message({"j" * 1_000_000: b"1"}), "job id that is not 36"),
    "an id that is not ASCII": (message({"ä" * 36: b"1"}), "job id that is not 36"),
    "an id that would forge a line of the log": (
        message({("\n2030-01-01 CRITICAL forged " + "\x1b" * 36)[:36]: b"1"}),
        "job id that is not 36",
    ),
    "an id twice": (frame(b"\x82" + (packed(JOB) + packed(b"1")) * 2), "1 of them repeated"),
    "a number for a payload": (message({JOB: 1}), "not a msgpack map"),
    "a list": (message([JOB, b"1"]), "not a msgpack map"),
    "a million jobs": (
        frame(b"\xdf" + struct.pack(">I", 1_000_000) + b"\xa1a\xa0" * 1_000_000),
        "map of 1000000 entries",
    ),
    "maps in maps": (frame(deep(100_000)), "not a msgpack map"),
    "two batches at once": (message({JOB: b"1"}) * 2, "got a batch in state 'busy'"),
    "a challenge without a secret": (
        message(addition(challenge=bytes(32))),
        "asks for a secret, set VENTU_WORKER_SECRET",
    ),
    "additions that are no map": (message({"ventu_lite": b"\xc1"}), "secret"),
    "HTTP": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "speaks HTTP, is this the right port?"),
    "TLS": (b"\x15\x03\x03\0\2\2\x32", "speaks TLS, is this the right port?"),
}


@pytest.mark.parametrize("offence", BAD_BATCHES)
def test_a_worker_leaves_a_batching_service_that_speaks_nonsense(
    lonely: Lonely, offence: str
) -> None:
    """It says why, once, and comes back: the next one may be better."""
    data, complaint = BAD_BATCHES[offence]
    with lonely.blaming(1) as said, lonely.door.accept() as line:
        line.say(data)
        assert line.is_closed()
    assert complaint in said[0]
    assert not any(line.startswith("2030") for line in lonely.process.lines)


@pytest.mark.parametrize("said", [b"\0\0", b"\0\0\0\x64half"], ids=["header", "body"])
def test_a_worker_does_not_wait_for_ever_for_half_a_message(lonely: Lonely, said: bytes) -> None:
    with lonely.blaming(1) as blamed, lonely.door.accept() as line:
        line.say(said)
        assert line.is_closed()
    assert "half a message, then nothing" in blamed[0]


def test_a_worker_lives_with_a_batching_service_that_ends_within_a_message(
    lonely: Lonely,
) -> None:
    with lonely.blaming(2) as blamed:
        for said in (b"", b"\0\0", b"\0\0\0\x64half", message({JOB: packed("x")})):
            with lonely.door.accept() as line:
                line.say(said)
    assert all("inside a frame" in one for one in blamed)


def test_a_worker_waits_in_silence_and_can_still_be_stopped(directory: Path) -> None:
    (directory / "app.py").write_text(IMPATIENT)
    with Door(UNIX, directory) as door:
        with worker("app.py", *door.address, cwd=directory) as process, door.accept() as line:
            line.sock.settimeout(2.0)  # longer than it waits for the rest of a message
            with pytest.raises(TimeoutError):
                line.sock.recv(1)
            line.sock.settimeout(TIMEOUT)
            line.say(message({JOB: packed("x")}))
            assert line.hear()[JOB] == packed("X")
            assert process.stop() == 0
        assert "lost" not in process.output


def test_a_worker_does_not_spin_where_every_connection_ends_at_once(directory: Path) -> None:
    (directory / "app.py").write_text(ECHO)
    with Door(TCP, directory) as door:
        options = (*door.address, "--log-level", "debug")
        with worker("app.py", *options, cwd=directory) as process:
            for delay in ("0.1", "0.2", "0.4", "0.8"):
                door.accept().sock.close()
                process.wait_for(f"closed by the batching service; trying again in {delay} s")
            assert process.output.count("WARNING") == 1


def test_a_worker_at_the_port_of_a_wsgi_server_serves_nobody(directory: Path) -> None:
    """Such a server waits for the rest of a request, or says what it is."""
    (directory / "app.py").write_text(ECHO)
    with nothing_left(files=True) as env:
        env["GUNICORN_CMD_ARGS"] = "--threads=2"
        with gunicorn("app:app", cwd=directory, env=env) as server:
            place = f"127.0.0.1:{server.port}"
            with worker("app.py", "--tcp", place, cwd=directory, env=env) as process:
                process.wait_for("connected to tcp:")
                until(lambda: server.get("/readyz").status == 200)
                assert server.infer(b'"x"').body == b'"X"'
                assert process.output.count("connected to") <= 4
                assert process.stop() == 0
