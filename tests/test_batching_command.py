"""The command ``batching``, in this process."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from processes import Client, short_directory

from ventu_lite import __main__
from ventu_lite.addresses import Address, TCPAddress, UnixAddress
from ventu_lite.batching.command import batching, warn_if_open
from ventu_lite.config import Config
from ventu_lite.options import CANNOT_LISTEN, WRONG_USAGE


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory."""
    with short_directory() as path:
        monkeypatch.chdir(path)
        yield path


def invoke(*args: str) -> Result:
    return CliRunner().invoke(batching, args)


def test_it_serves_until_a_signal(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    seen: list[int] = []

    def use() -> None:
        try:
            while not (said := [m for m in caplog.messages if m.startswith("ready on")]):
                threading.Event().wait(0.01)
            with Client(int(said[0].split(":")[2].split()[0])) as client:
                seen.append(client.get("/livez").status)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=use)
    thread.start()
    result = invoke("--port", "0")
    thread.join(30)
    assert (result.exit_code, seen) == (0, [200])
    assert "at unix:batching.socket for workers" in caplog.messages[0]
    assert caplog.messages[-2:] == ["stopping: answering what was accepted", "stopped"]
    assert not os.listdir(directory)


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--unix", "nowhere/s"], CANNOT_LISTEN, "cannot listen at unix:nowhere/s: No such file"),
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
    assert said in result.output.splitlines()[-1]
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


def test_it_starts_without_flask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["ventu_lite", "batching", "--help"])
    with pytest.raises(SystemExit) as caught:
        __main__.main()
    assert caught.value.code == 0
