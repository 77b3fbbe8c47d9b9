"""The command ``batching``, in this process."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from processes import TIMEOUT, Client, short_directory
from waiting import until

from ventu_lite import __main__
from ventu_lite.addresses import Address, TCPAddress, UnixAddress
from ventu_lite.batching.command import batching, how_to_join, warn_if_open
from ventu_lite.config import Config
from ventu_lite.options import CANNOT_LISTEN, WRONG_USAGE
from ventu_lite.worker import connect_unix

READY = bytes(4)


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory."""
    with short_directory() as path:
        monkeypatch.chdir(path)
        yield path


def invoke(*args: str) -> Result:
    return CliRunner().invoke(batching, args)


def use(service: Callable[[int], None], caplog: pytest.LogCaptureFixture) -> None:
    """Run the command, and call ``service`` in a thread with the port of its clients."""
    caplog.set_level("INFO")

    def run() -> None:
        try:
            until(lambda: caplog.messages)
            service(int(caplog.messages[0].split(":")[2].split()[0]))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    with ThreadPoolExecutor(1) as pool:
        used = pool.submit(run)
        result = invoke("--port", "0")
        used.result(TIMEOUT)
    assert result.exit_code == 0
    assert "stopping: answering what was accepted" in caplog.messages
    assert caplog.messages[-1] == "stopped"


def test_it_serves_until_a_signal(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    def service(port: int) -> None:
        with Client(port) as client:
            assert client.get("/livez").status == 200

    use(service, caplog)
    at = f"at unix:{directory}/batching.socket for workers"
    assert re.fullmatch(rf"ready on http://localhost:\d+ for clients, {at}", caplog.messages[0])
    assert not os.listdir(directory)


HOW = "start one: python -m ventu_lite --app FILE.py worker --unix {}/batching.socket"


def test_it_says_how_to_start_a_worker_and_when_none_is_left(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The jobs of the last one wait again: they are counted."""
    how, at = HOW.format(directory), str(directory / "batching.socket")

    def service(port: int) -> None:
        with ThreadPoolExecutor(1) as pool, connect_unix(at) as first, connect_unix(at) as second:
            for sock in (first, second):
                sock.sendall(READY)
            until(lambda: said(caplog, "is ready") == 2)
            first.close()
            until(lambda: said(caplog, "has left") == 1)
            with Client(port) as client:
                asked = pool.submit(client.infer, b"1")
                assert second.recv(1)
                second.close()
                until(lambda: said(caplog, "no worker is connected any more") == 1)
                with connect_unix(at) as third:
                    third.sendall(READY)
                    third.sendall(third.recv(1000))  # a result looks like a job
                    assert asked.result(TIMEOUT).body == b"1"
                until(lambda: said(caplog, "has left") == 3)

    use(service, caplog)
    assert caplog.messages[1] == f"no worker is connected yet; {how}"
    warned = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert [one for one in warned if "any more" in one] == [
        f"no worker is connected any more; 1 job(s) wait for one, at most 5 s; {how}"
    ]  # the second time follows too soon to be told


def said(caplog: pytest.LogCaptureFixture, words: str) -> int:
    return sum(words in message for message in caplog.messages)


def test_that_the_workers_leave_at_the_end_is_no_warning(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def service(port: int) -> None:
        sock = stack.enter_context(connect_unix(str(directory / "batching.socket")))
        sock.sendall(READY)
        until(lambda: said(caplog, "is ready"))

    with ExitStack() as stack:
        use(service, caplog)
    assert said(caplog, "has left") == 1
    assert not [one for one in caplog.records if one.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("address", "secret", "options"),
    [
        (UnixAddress("/a b/s"), None, "--unix '/a b/s'"),
        (TCPAddress("127.0.0.1", 8765), None, "--tcp 127.0.0.1:8765"),
        (TCPAddress("0.0.0.0", 8765), None, "--tcp HOST:8765"),
        (TCPAddress("0", 8765), None, "--tcp HOST:8765"),
        (TCPAddress("::0", 8765), None, "--tcp HOST:8765"),
        (TCPAddress("::1", 8765), None, "--tcp '[::1]:8765'"),
        (TCPAddress("::", 8765), "x", "--tcp HOST:8765 (with the same VENTU_WORKER_SECRET)"),
    ],
)
def test_the_command_for_a_worker_can_be_copied(
    address: Address, secret: str | None, options: str
) -> None:
    said = how_to_join(address, Config(worker_secret=secret))
    assert said == f"python -m ventu_lite --app FILE.py worker {options}"


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--unix", "none/s"], CANNOT_LISTEN, "cannot listen at unix:{here}/none/s: No such file"),
        (["--host", "192.0.2.1"], CANNOT_LISTEN, "choose an address of this machine"),
        (["--unix", "a", "--tcp", "b:1"], WRONG_USAGE, "exclude each other"),
        (["--tcp", "nowhere"], WRONG_USAGE, "'nowhere' is no HOST:PORT"),
        (["--port", "65536"], WRONG_USAGE, "--port=65536: Input should be less than or equal"),
        (["--max-body", "lots"], WRONG_USAGE, "--max-body='lots': could not parse"),
        (["--timeout", "0"], WRONG_USAGE, "--timeout=0.0: Input should be greater than 0"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    directory: Path, args: list[str], code: int, said: str
) -> None:
    result = invoke(*(["--port", "0"] if "--port" not in args else []), *args)
    assert result.exit_code == code, result.output
    assert said.format(here=directory) in result.output.splitlines()[-1]
    assert not os.listdir(directory)


@pytest.mark.parametrize(
    ("address", "secret", "warns"),
    [
        (TCPAddress("0.0.0.0", 1), None, True),
        (TCPAddress("example.com", 1), None, True),
        (TCPAddress("0.0.0.0", 1), "hush", False),
        (TCPAddress("127.0.0.1", 1), None, False),
        (TCPAddress("::1", 1), None, False),
        (UnixAddress("s"), None, False),
    ],
)
def test_a_door_that_is_open_to_all_is_warned_of(
    caplog: pytest.LogCaptureFixture, address: Address, secret: str | None, warns: bool
) -> None:
    warn_if_open(address, Config(worker_secret=secret))
    assert ("set VENTU_WORKER_SECRET on both sides" in caplog.text) == warns


@pytest.mark.parametrize(("host", "warns"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_a_secret_does_not_hide_what_is_said(
    caplog: pytest.LogCaptureFixture, host: str, warns: bool
) -> None:
    warn_if_open(TCPAddress(host, 1), Config(worker_secret="hush"))
    assert ("unencrypted" in caplog.text) == warns


def test_help_is_there_in_short() -> None:
    assert invoke("-h").output == invoke("--help").output


def test_it_starts_without_flask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["ventu_lite", "batching", "--help"])
    with pytest.raises(SystemExit) as caught:
        __main__.run()
    assert caught.value.code == 0
