"""Worker connections: what they tell the dispatcher, and what they are cut off for."""

import asyncio
import hmac
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from msgpack import packb, unpackb
from waiting import turn_until

from ventu_lite.addresses import Address, TCPAddress, UnixAddress
from ventu_lite.batching import links as module
from ventu_lite.batching.dispatcher import Dispatcher
from ventu_lite.batching.links import Links, WorkerLink
from ventu_lite.errors import ProtocolError
from ventu_lite.http.server import run
from ventu_lite.protocol import Results

READY = bytes(4)
ID, OTHER = "a" * 36, "b" * 36
BYE = packb({"bye": True})


class Recorder:
    """A dispatcher that remembers what it was told; ``refuse`` makes it find fault."""

    def __init__(self) -> None:
        self.said: list[tuple[str, Any]] = []
        self.refuse = False

    def ready(self, link: WorkerLink) -> None:
        self.said.append(("ready", link.is_ready))

    def results(self, link: WorkerLink, results: Results) -> None:
        if self.refuse:
            raise ProtocolError("results while no batch is out")
        self.said.append(("results", results.payloads))

    def retire(self, link: WorkerLink) -> None:
        self.said.append(("retire", None))

    def lost(self, link: WorkerLink) -> None:
        self.said.append(("lost", link.is_ready))


class Stage:
    """One worker's socket, and what is on the other side of it."""

    def __init__(self, links: Links, dispatcher: Recorder, link: WorkerLink) -> None:
        self.links, self.dispatcher, self.link = links, dispatcher, link
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def says(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reads(self) -> dict[str, Any]:
        """Return the next message to the worker."""
        size = int.from_bytes(await self.reader.readexactly(4), "big")
        message = unpackb(await self.reader.readexactly(size))
        return cast(dict[str, Any], message)

    async def told(self, *names: str) -> None:
        """Wait until the dispatcher was told exactly these things."""
        await turn_until(lambda: len(self.dispatcher.said) >= len(names))
        assert [name for name, _ in self.dispatcher.said] == list(names)

    async def closed(self) -> None:
        try:
            assert await self.reader.read() == b""
        except ConnectionResetError:
            pass


def frame(entries: dict[str, Any]) -> bytes:
    body = packb(entries)
    return len(body).to_bytes(4, "big") + body


Test = Callable[[Stage], Awaitable[None]]


def play(test: Test, address: Address | None = None, **options: Any) -> Recorder:
    """Run ``test`` with one connected worker; return what the dispatcher was told."""
    dispatcher = Recorder()

    async def main() -> None:
        links = Links(
            cast(Dispatcher, dispatcher),
            address=address or UnixAddress("s"),
            max_message=10_000,
            **options,
        )
        theirs, ours = socket.socketpair()
        if isinstance(address, TCPAddress):
            theirs.close()
            ours.close()
            with socket.create_server((address.host, 0)) as door:
                theirs = socket.create_connection(door.getsockname())
                ours, _ = door.accept()
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        _, link = await loop.connect_accepted_socket(links, sock=ours)
        stage = Stage(links, dispatcher, link)
        stage.reader, stage.writer = await asyncio.open_connection(sock=theirs)
        try:
            await asyncio.wait_for(test(stage), 20)
        finally:
            links.close()
            stage.writer.close()
            try:
                await stage.writer.wait_closed()
            except ConnectionError:
                pass

    run(main())
    return dispatcher


def test_a_worker_gets_a_batch_and_answers_it() -> None:
    async def test(worker: Stage) -> None:
        assert (worker.links.ready, worker.link.is_ready) == (0, False)
        await worker.says(READY)
        await worker.told("ready")
        assert worker.links.ready == 1
        worker.link.send({ID: b"one", OTHER: b"two"})
        assert await worker.reads() == {ID: b"one", OTHER: b"two"}
        for byte in frame({ID: b"1", OTHER: "2"}):  # however it is cut
            await worker.says(bytes([byte]))
        await worker.told("ready", "results")
        assert worker.dispatcher.said[1][1] == {ID: b"1", OTHER: b"2"}
        assert repr(worker.link) == f"<worker at unix, process {os.getpid()}>"

    assert play(test).said[-1] == ("lost", False)


def test_changes_are_told_once_each(caplog: pytest.LogCaptureFixture) -> None:
    async def test(worker: Stage) -> None:
        await worker.says(READY)
        await worker.told("ready")
        worker.writer.close()
        await worker.told("ready", "lost")
        assert worker.links.ready == 0 and not worker.links.open
        worker.link.close()  # nothing more comes of it
        worker.link.cut_off("late")

    with caplog.at_level(logging.INFO):
        play(test)
    name = f"<worker at unix, process {os.getpid()}>"
    assert caplog.messages == [f"{name} is ready", f"{name} has left"]


def test_a_worker_that_leaves_before_it_was_ready_is_no_change(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(worker: Stage) -> None:
        worker.writer.close()
        await worker.told("lost")

    with caplog.at_level(logging.INFO):
        play(test)
    assert not caplog.messages


def test_a_worker_on_another_machine_is_called_by_its_address() -> None:
    async def test(worker: Stage) -> None:
        assert worker.link.pid is None
        host, port = worker.writer.get_extra_info("sockname")
        assert repr(worker.link) == f"<worker at tcp, {host}:{port}>"
        sock = worker.link._transport.get_extra_info("socket")  # type: ignore[union-attr]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        worker.link.cut_off("slow")

    play(test, TCPAddress("127.0.0.1", 0), kill=lambda pid: pytest.fail("whom?"))


def test_a_worker_that_says_bye_is_let_go() -> None:
    async def test(worker: Stage) -> None:
        await worker.says(READY + frame({"ventu_lite": BYE}))
        await worker.closed()
        assert [name for name, _ in worker.dispatcher.said] == ["retire", "ready", "lost"]

    play(test)


@pytest.mark.parametrize(
    "last",
    [
        pytest.param(frame({ID: b"1", "ventu_lite": BYE}), id="in one message"),
        pytest.param(frame({ID: b"1"}) + frame({"ventu_lite": BYE}), id="a moment after"),
    ],
)
def test_a_worker_whose_bye_comes_with_its_results_gets_no_further_batch(last: bytes) -> None:

    async def test(worker: Stage) -> None:
        await worker.says(READY)
        await worker.told("ready")
        worker.link.send({ID: b"x"})
        await worker.reads()
        await worker.says(last)
        await worker.closed()
        assert [name for name, _ in worker.dispatcher.said][1:] == ["retire", "results", "lost"]

    play(test)


def test_a_worker_answers_the_batch_that_crossed_with_its_bye() -> None:
    async def test(worker: Stage) -> None:
        await worker.says(READY)
        await worker.told("ready")
        worker.link.send({ID: b"x"})
        await worker.reads()
        await worker.says(frame({"ventu_lite": BYE}))
        await worker.told("ready", "retire")
        await worker.says(frame({ID: b"1"}))
        await worker.closed()
        assert [name for name, _ in worker.dispatcher.said][2:] == ["retire", "results", "lost"]

    play(test)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        pytest.param(READY + READY, "", id="ready twice"),
        pytest.param(READY + frame({ID: b"1"}), "", id="results without a batch"),
        pytest.param(frame({ID: b"1"}), "", id="results before ready"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", "speaks HTTP, is this the right port?", id="HTTP"),
        pytest.param(b"\0\0\4\1", "frame of 1025 bytes, expected at most 1024", id="too much"),
        pytest.param(READY + b"\0\0\4\1", "", id="too much while no batch is out"),
        pytest.param(b"\xff\xff\xff\xff", "", id="negative length"),
        pytest.param(b"\0\0\0\1\xc1", "", id="no msgpack"),
        pytest.param(b"\0\0\0\5hel", "inside a frame", id="ends in a message"),
    ],
)
def test_a_worker_that_breaks_the_protocol_is_cut_off_and_told_of_once(
    caplog: pytest.LogCaptureFixture, data: bytes, complaint: str
) -> None:
    async def test(worker: Stage) -> None:
        await worker.says(data)
        if complaint == "inside a frame":
            worker.writer.write_eof()
        await worker.closed()
        assert worker.dispatcher.said[-1] == ("lost", False)

    play(test)
    (said,) = caplog.messages
    assert "broke the protocol, its connection is closed: " in said
    assert complaint in said


def test_what_the_queue_does_not_accept_is_a_fault_too(caplog: pytest.LogCaptureFixture) -> None:
    async def test(worker: Stage) -> None:
        worker.dispatcher.refuse = True
        await worker.says(READY)
        await worker.told("ready")
        worker.link.send({ID: b"x"})
        await worker.says(frame({ID: b"1"}))
        await worker.told("ready", "lost")

    play(test, on_change=lambda link: None)
    (said,) = caplog.messages
    assert said.endswith("its connection is closed: results while no batch is out")


def test_events_behind_a_farewell_are_not_heard() -> None:
    async def test(worker: Stage) -> None:
        await worker.told()
        worker.link.cut_off("reasons")
        worker.link.data_received(READY)
        worker.link._is_late(1.0)

    assert play(test).said == []


def test_a_worker_that_is_cut_off_is_killed_if_it_is_of_this_machine(
    caplog: pytest.LogCaptureFixture,
) -> None:
    killed: list[int] = []

    async def test(worker: Stage) -> None:
        await worker.says(READY)
        await worker.told("ready")
        worker.link.cut_off("it held a batch for too long")
        await worker.closed()
        await worker.told("ready")  # who cuts it off knows that it is lost

    play(test, kill=killed.append)
    assert killed == [os.getpid()]
    assert "process" in caplog.text and "is cut off: it held a batch for too long" in caplog.text


# ------------------------------------------------------------------------------- the secret


def proof(secret: bytes, nonce: bytes) -> bytes:
    return frame({"ventu_lite": packb({"proof": hmac.digest(secret, nonce, "sha256")})})


async def challenge(worker: Stage) -> bytes:
    await worker.says(READY)
    (packed,) = (await worker.reads()).values()
    nonce = unpackb(packed)["challenge"]
    assert len(nonce) == 32
    return cast(bytes, nonce)


def test_a_worker_that_proves_the_secret_is_ready() -> None:
    async def test(worker: Stage) -> None:
        nonce = await challenge(worker)
        assert not worker.dispatcher.said
        await worker.says(proof(b"hush", nonce))
        await worker.told("ready")
        assert worker.link._timer is None

    play(test, secret="hush")


@pytest.mark.parametrize("answer", [b"", READY], ids=["a wrong proof", "ready again"])
def test_any_other_answer_ends_the_connection_without_a_word(answer: bytes) -> None:
    async def test(worker: Stage) -> None:
        nonce = await challenge(worker)
        await worker.says(answer or proof(b"loud", nonce))
        await worker.closed()
        assert [name for name, _ in worker.dispatcher.said] == ["lost"]

    play(test, secret="hush")


def complaints_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was warned of, without who it was."""
    warned = [one for one in caplog.records if one.levelno == logging.WARNING]
    return [one.getMessage().partition("> ")[2] for one in warned]


NO_SECRET = "left when asked for a proof; is VENTU_WORKER_SECRET set there?"
WRONG_SECRET = (
    "broke the protocol, its connection is closed: worker does not know the secret,"
    " check its VENTU_WORKER_SECRET"
)


def test_who_leaves_when_asked_for_a_proof_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """A worker without a secret does, or one that dies; who looks if there is anybody is silent."""

    async def test(worker: Stage) -> None:
        await challenge(worker)
        worker.writer.close()
        await worker.told("lost")

    async def look(worker: Stage) -> None:
        worker.writer.close()
        await worker.told("lost")

    play(test, secret="hush")
    play(look, secret="hush")
    assert complaints_of(caplog) == [NO_SECRET]


def test_what_keeps_workers_out_is_told_now_and_then_and_not_at_each_try(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Until one gets in: what comes after that is news."""
    now = 0.0

    async def test(worker: Stage) -> None:
        nonlocal now
        while now < 20.0:
            for answer in (b"", proof(b"loud", b"")):
                other = await another(worker)
                await challenge(other)
                other.writer.write(answer)
                other.writer.write_eof()
                await other.closed()
                other.writer.close()
            now += 5.0
        await worker.says(proof(b"hush", await challenge(worker)))
        await turn_until(lambda: worker.link.is_ready)
        other = await another(worker)
        await challenge(other)
        other.writer.close()
        await turn_until(lambda: len(worker.links.open) == 1)

    play(test, secret="hush", clock=lambda: now, on_change=lambda link: None)
    both = [NO_SECRET, WRONG_SECRET]
    assert complaints_of(caplog) == [*both, *both, NO_SECRET]


def test_a_worker_that_was_in_is_told_of_each_time(caplog: pytest.LogCaptureFixture) -> None:
    """It has had jobs."""

    async def test(worker: Stage) -> None:
        for _ in range(3):
            other = await another(worker)
            await other.says(READY)
            await turn_until(lambda: worker.links.ready)
            await other.says(READY)
            await other.closed()
            other.writer.close()

    play(test, clock=lambda: 0.0, on_change=lambda link: None)
    assert len(complaints_of(caplog)) == 3


def test_a_worker_that_is_in_is_told_of_although_another_one_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With the same fault, and nobody got in between the two."""

    async def test(worker: Stage) -> None:
        other = await another(worker)
        for one in (worker, other):
            await one.says(READY)
        await turn_until(lambda: worker.links.ready == 2)
        for one in (worker, other):
            await one.says(READY)
            await one.closed()
        other.writer.close()

    play(test, clock=lambda: 0.0, on_change=lambda link: None)
    one, other = complaints_of(caplog)
    assert one == other


def test_a_number_makes_no_new_complaint_of_an_old_one(caplog: pytest.LogCaptureFixture) -> None:
    """Who has as many as he likes does not fill the log."""

    async def test(worker: Stage) -> None:
        for size in (1025, 1026, 70_000):
            other = await another(worker)
            await other.says(size.to_bytes(4, "big"))
            await other.closed()
            other.writer.close()

    play(test, clock=lambda: 0.0)
    (said,) = complaints_of(caplog)
    assert said.endswith("frame of 1025 bytes, expected at most 1024")


async def another(worker: Stage) -> Stage:
    """Return one more worker of the same service."""
    theirs, ours = socket.socketpair()
    ours.setblocking(False)
    loop = asyncio.get_running_loop()
    _, link = await loop.connect_accepted_socket(worker.links, sock=ours)
    stage = Stage(worker.links, worker.dispatcher, link)
    stage.reader, stage.writer = await asyncio.open_connection(sock=theirs)
    return stage


@pytest.mark.parametrize("says", [b"", READY], ids=["nothing", "only ready"])
def test_no_answer_ends_the_connection_after_a_while(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, says: bytes
) -> None:
    monkeypatch.setattr(module, "PROOF_TIMEOUT", 0.05)

    async def test(worker: Stage) -> None:
        await worker.says(says)
        if says:
            await worker.reads()
        await worker.closed()

    play(test, secret="hush")
    (said,) = caplog.messages
    assert "no proof of the worker secret within 0.05 s" in said


def test_who_does_not_ask_for_a_batch_is_no_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "READY_TIMEOUT", 0.05)

    async def test(worker: Stage) -> None:
        await worker.says(b"\0\0\0")  # the last byte never comes
        await worker.closed()

    play(test)
    (said,) = caplog.messages
    assert "it did not ask for a batch within 0.05 s" in said


@pytest.mark.parametrize("secret", [None, "hush"])
def test_who_says_nothing_makes_room_for_who_comes_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, secret: str | None
) -> None:
    monkeypatch.setattr(module, "MAX_STRANGERS", 2)

    async def test(worker: Stage) -> None:
        loop, others = asyncio.get_running_loop(), []
        for _ in range(4):
            theirs, ours = socket.socketpair()
            ours.setblocking(False)
            await loop.connect_accepted_socket(worker.links, sock=ours)
            others.append(theirs)
        await worker.closed()
        assert len(worker.links.open) == 2
        for sock in others:
            sock.close()

    play(test, secret=secret)
    (said,) = caplog.messages
    assert said.startswith(f"more than 2 connections at unix:{os.getcwd()}/s have not")


def test_workers_are_no_strangers_however_many(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_STRANGERS", 1)

    async def test(worker: Stage) -> None:
        await worker.says(READY)
        await worker.told("ready")
        loop = asyncio.get_running_loop()
        theirs, ours = socket.socketpair()
        ours.setblocking(False)
        await loop.connect_accepted_socket(worker.links, sock=ours)
        assert len(worker.links.open) == 2
        theirs.close()

    play(test, on_change=lambda link: None)
    assert not caplog.messages


def test_a_worker_that_leaves_before_its_proof_leaves_no_timer() -> None:
    async def test(worker: Stage) -> None:
        timer = worker.link._timer
        assert timer is not None
        worker.writer.close()
        await worker.told("lost")
        assert timer.cancelled()

    play(test, secret="hush")


class MacSocket:
    """A Unix socket of macOS; without a pid, its peer has left."""

    def __init__(self, pid: int | None) -> None:
        self.pid = pid

    def getsockopt(self, level: int, option: int) -> int:
        assert (level, option) == (0, 2)  # SOL_LOCAL, LOCAL_PEERPID
        if self.pid is None:
            raise OSError("Socket is not connected")
        return self.pid


@pytest.mark.parametrize(("pid", "told"), [(4711, 4711), (0, None), (None, None)])
def test_macos_has_its_own_way_to_tell_who_connects(
    monkeypatch: pytest.MonkeyPatch, pid: int | None, told: int | None
) -> None:
    """A supervisor would else take its own workers for strangers."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        seen = module._peer_pid(cast(socket.socket, MacSocket(pid)))
    assert seen == told


def test_a_system_that_does_not_tell_who_connects_is_lived_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(socket, "SO_PEERCRED", raising=False)

    async def test(worker: Stage) -> None:
        assert worker.link.pid is None
        assert repr(worker.link) == "<worker at unix>"

    play(test)
