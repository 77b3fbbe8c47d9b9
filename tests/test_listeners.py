"""Listening sockets: what is replaced, what is refused, and what the error says to do."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import TIMEOUT, short_directory

from ventu_lite.batching import listeners
from ventu_lite.batching.listeners import UnixDoor, allow_many_files, clients_that_fit, listen_tcp
from ventu_lite.errors import CannotListen


@pytest.fixture
def path() -> Iterator[str]:
    """A place for a socket."""
    with short_directory() as directory:
        yield str(directory / "s")


def test_only_this_user_may_connect(path: str) -> None:
    old = os.umask(0)
    try:
        door = UnixDoor(path)
    finally:
        os.umask(old)
    with door.sock:
        mode = os.stat(path).st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
        assert not door.sock.getblocking()


def test_a_stale_socket_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with UnixDoor(path).sock, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_of_two_services_that_find_a_stale_socket_one_gets_its_place(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the later one takes the file of the other one for the stale one that it has seen."""
    refusals: list[CannotListen] = []
    removed: list[str] = []
    remove = os.unlink

    def come_later() -> None:
        try:
            UnixDoor(path).sock.close()
        except CannotListen as exc:
            refusals.append(exc)

    later = threading.Thread(target=come_later)

    def unlink(file: str) -> None:
        if not removed:
            later.start()
            later.join(0.1)
        removed.append(file)
        remove(file)

    monkeypatch.setattr(os, "unlink", unlink)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    door = UnixDoor(path)
    with door.sock, socket.socket(socket.AF_UNIX) as client:
        later.join(TIMEOUT)
        assert removed == [path]
        assert "another program listens at unix:" in str(refusals[0])
        client.connect(path)
        door.remove()
    assert not os.listdir(os.path.dirname(path))


def test_a_directory_that_stays_locked_is_told(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Anybody may lock what he may read, such as /tmp: that must keep no service from starting."""
    monkeypatch.setattr(listeners, "_PATIENCE", 0.05)
    directory = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        UnixDoor(path).sock.close()
    finally:
        os.close(directory)
    assert "another program keeps the directory" in caplog.text


def test_a_directory_that_cannot_be_locked_will_do(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(directory: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with contextlib.closing(UnixDoor(path).sock) as door:
        assert door.getsockname() == path


def test_a_directory_that_may_not_be_read_will_do(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(directory: str, flags: int) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        UnixDoor(path).sock.close()


def test_a_socket_that_somebody_listens_to_is_left_alone(path: str) -> None:
    with UnixDoor(path).sock:
        with pytest.raises(CannotListen, match="another program listens at unix:.*; stop it or"):
            UnixDoor(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


def test_a_socket_whose_program_is_too_busy_is_left_alone(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(path)
        busy.listen(0)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        try:
            for client in clients:
                client.setblocking(False)
                client.connect_ex(path)
            with pytest.raises(CannotListen, match="another program listens"):
                UnixDoor(path)
        finally:
            for client in clients:
                client.close()


def test_what_is_no_socket_is_left_alone(path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(CannotListen, match="is no socket; remove it or choose another --unix"):
        UnixDoor(path)
    assert Path(path).read_text() == "precious"


@pytest.mark.parametrize("path", ["/proc/nowhere/s", "/etc/hostname/s"])
def test_a_directory_that_is_none_is_told(path: str) -> None:
    said = f"cannot listen at unix:{path}: (No such file or|Not a) directory; choose another --unix"
    with pytest.raises(CannotListen, match=said):
        UnixDoor(path)


def test_the_file_is_removed(path: str) -> None:
    door = UnixDoor(path)
    with door.sock:
        door.remove()
        assert not os.path.exists(path)
        door.remove()


def test_a_file_that_somebody_has_put_in_its_place_is_not_removed(path: str) -> None:
    door = UnixDoor(path)
    with door.sock:
        os.unlink(path)
        other = UnixDoor(path)
        with other.sock:
            door.remove()
            assert os.path.exists(path)


def ports(socks: list[socket.socket]) -> set[int]:
    return {sock.getsockname()[1] for sock in socks}


def close(socks: list[socket.socket]) -> None:
    for sock in socks:
        sock.close()


def test_all_addresses_of_a_host_get_one_port() -> None:
    socks = listen_tcp("localhost", 0)
    try:
        (port,) = ports(socks)
        assert port
        for sock in socks:
            with socket.create_connection(sock.getsockname()[:2], 5):
                pass
    finally:
        close(socks)


def test_a_port_that_is_taken_at_one_address_is_told() -> None:
    socks = listen_tcp("127.0.0.1", 0)
    try:
        (port,) = ports(socks)
        said = f"localhost, port {port}: Address already in use; stop the program that listens"
        with pytest.raises(CannotListen, match=f"cannot listen on {said}"):
            listen_tcp("localhost", port)
    finally:
        close(socks)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("192.0.2.1", "Cannot assign requested address; choose an address of this machine"),
        ("nowhere.invalid", "choose an address of this machine, such as localhost or 0.0.0.0"),
        ("a..b", "choose an address of this machine"),
        ("0.0.0.0:8000", "; say --host 0.0.0.0 --port 8000"),
    ],
)
def test_a_host_that_is_elsewhere_or_nowhere_is_told(host: str, said: str) -> None:
    with pytest.raises(CannotListen, match=f"cannot listen on {host}, port 0: .*{said}"):
        listen_tcp(host, 0)


def test_a_port_of_the_system_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(addresses: object, port: int) -> list[socket.socket]:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(listeners, "_bound", refuse)
    with pytest.raises(CannotListen, match="Permission denied; choose a port from 1024 on"):
        listen_tcp("localhost", 80)


def test_a_free_port_is_looked_for_again_if_another_address_has_it_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound, tries = listeners._bound, []

    def taken_at_first(addresses: list[tuple[int, object]], port: int) -> list[socket.socket]:
        tries.append(port)
        if len(tries) < 3:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        return bound(addresses, port)

    monkeypatch.setattr(listeners, "_bound", taken_at_first)
    close(listen_tcp("localhost", 0))
    assert tries == [0, 0, 0]


def test_no_socket_is_left_when_a_later_address_is_taken() -> None:
    """Warnings are errors: a socket that nobody closes fails the test."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen):
            listen_tcp("localhost", port)


def test_a_machine_without_ipv6_listens_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "_has_ipv6", lambda: False)
    socks = listen_tcp("localhost", 0)
    try:
        assert {sock.family for sock in socks} == {socket.AF_INET}
    finally:
        close(socks)


def test_ipv6_is_found_out_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoIPv6(socket.socket):
        def bind(self, address: object) -> None:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    assert listeners._has_ipv6() in (True, False)
    monkeypatch.setattr(socket, "socket", NoIPv6)
    assert not listeners._has_ipv6()


def test_as_many_files_as_the_system_allows_may_be_open() -> None:
    resource = pytest.importorskip("resource")
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(200, old[1]), old[1]))
        allow_many_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (old[1], old[1])
        allow_many_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)


def test_where_files_are_not_limited_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert allow_many_files() is None
    assert clients_that_fit(10**9) == 10**9


@pytest.mark.parametrize(
    ("files", "wanted", "fit"),
    [
        pytest.param(1024, 500, 500, id="enough"),
        pytest.param(1024, 960, 960, id="just-enough"),
        pytest.param(1024, 10_000, 960, id="some-are-ours"),
        pytest.param(64, 10_000, 32, id="half-is-ours"),
        pytest.param(-1, 10_000, 10_000, id="no-limit"),
    ],
)
def test_clients_do_not_get_the_last_file(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    files: int,
    wanted: int,
    fit: int,
) -> None:
    system = SimpleNamespace(
        RLIMIT_NOFILE=7, RLIM_INFINITY=-1, getrlimit=lambda limit: (files, files)
    )
    monkeypatch.setitem(sys.modules, "resource", system)
    assert clients_that_fit(wanted) == fit
    assert (f"at most {fit} clients can connect" in caplog.text) == (fit < wanted)
