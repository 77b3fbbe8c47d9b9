"""Listening sockets: bound carefully, with errors that say what to do."""

import contextlib
import errno
import logging
import os
import socket
import stat
import time
from collections.abc import Iterator
from typing import Any, Final

from ..errors import CannotListen

log = logging.getLogger(__name__)

# As many as Linux lets through by default (somaxconn); a burst beyond that is told to come again.
BACKLOG: Final = 4096

# Files that clients do not get: for workers, for starting another one, for ourselves.
_OUR_FILES: Final = 64

# To look at a socket file, which takes a second at most, and to make one.
_PATIENCE: Final = 5.0

# How often the system is asked for a port that is free on all addresses of a host.
_TRIES: Final = 10

_ADVICE: Final = {
    errno.EADDRINUSE: "stop the program that listens there, or choose another port",
    errno.EACCES: "choose a port from 1024 on",
    errno.EADDRNOTAVAIL: "choose an address of this machine, such as localhost or 0.0.0.0",
}


class UnixDoor:
    """A listening Unix socket and its file, which only this user may connect to.

    A file that nobody listens to any more is replaced. Of several services that find one, the first
    gets its place: each has the directory for itself from the look to the new file.

    Args:
        path: Where.

    Raises:
        CannotListen: Another program listens there, or the file is something else.

    Attributes:
        sock: The socket.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            with _locked(os.path.dirname(path) or "."), contextlib.ExitStack() as stack:
                _clear(path)
                self.sock = socket.socket(socket.AF_UNIX)
                stack.callback(self.sock.close)
                with _umask(0o177):
                    self.sock.bind(path)
                self.sock.listen(BACKLOG)
                self._file = _identity(path)
                stack.pop_all()
        except OSError as exc:
            raise CannotListen(
                f"cannot listen at unix:{os.path.abspath(path)}: {exc.strerror or exc};"
                " choose another --unix, in a directory that this user may write to"
            ) from exc
        self.sock.setblocking(False)

    def remove(self) -> None:
        """Remove the file, unless somebody has put another one in its place.

        To be called before the socket is closed: until then no other file can have its number.
        """
        with contextlib.suppress(FileNotFoundError):
            if _identity(self._path) == self._file:
                os.unlink(self._path)


def listen_tcp(host: str, port: int) -> list[socket.socket]:
    """Return sockets for all addresses of a host, on one port.

    Args:
        host: A name, or an address.
        port: 0 to let the system choose.

    Raises:
        CannotListen: The port is taken, or the host is none of this machine's.
    """
    tries = 1 if port else _TRIES
    while True:
        tries -= 1
        try:
            return _bound(_addresses(host, port), port)
        except (OSError, UnicodeError) as exc:
            # Chosen for the first address, a port may be taken at the second.
            if not tries or getattr(exc, "errno", None) != errno.EADDRINUSE:
                raise CannotListen(_complaint(host, port, exc)) from exc


def _bound(addresses: list[tuple[int, Any]], port: int) -> list[socket.socket]:
    with contextlib.ExitStack() as stack:
        socks = []
        for family, address in addresses:
            sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], port, *address[2:]))
            sock.listen(BACKLOG)
            sock.setblocking(False)
            port = sock.getsockname()[1]  # the same for every address
            socks.append(sock)
        stack.pop_all()
    return socks


def clients_that_fit(wanted: int) -> int:
    """Return how many clients there may be if each is an open file; this process gets what it may.

    Without a limit of ours clients could take the last file, and no worker that has died could be
    replaced.

    Args:
        wanted: How many the operator wants to allow.
    """
    files = allow_many_files()
    most = wanted if files is None else files - min(_OUR_FILES, files // 2)
    if most >= wanted:
        return wanted
    log.warning(
        "at most %d clients can connect, not %d: this process may open only %d files;"
        " raise that limit (ulimit -n), or lower --max-connections",
        most, wanted, files,
    )  # fmt: skip
    return most


def allow_many_files() -> int | None:
    """Raise the soft limit of open files to the hard one; return it, ``None`` if there is none."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS reports more than it allows
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Keep other services from looking for sockets in a directory, where it can be locked.

    Raises:
        OSError: It is none.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(PermissionError):  # it may be written to, but not read
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, fd)
            _lock(fd, directory)
        yield


def _lock(fd: int, directory: str) -> None:
    import fcntl  # Windows has no such module, nor Unix sockets

    give_up_at = time.monotonic() + _PATIENCE
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up_at:  # anybody may lock what he may read, such as /tmp
                log.warning("another program keeps the directory %s locked; going on", directory)
                return
        except OSError:  # some file systems know no locks
            return
        time.sleep(0.01)


def _clear(path: str) -> None:
    """Remove a socket that nobody listens to any more.

    Raises:
        CannotListen: Somebody does, or it is no socket.
        OSError: The directory cannot be looked into.
    """
    place = os.path.abspath(path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise CannotListen(f"{place} is no socket; remove it or choose another --unix")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        except OSError:  # a full backlog or a missing permission: it is alive
            pass
    raise CannotListen(f"another program listens at unix:{place}; stop it or choose another --unix")


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


def _addresses(host: str, port: int) -> list[tuple[int, Any]]:
    """Return each address of a host once, with its family."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses: list[tuple[int, Any]] = [(family, address) for family, *_, address in found]
    addresses = list(dict.fromkeys(addresses))
    usable = [one for one in addresses if one[0] != socket.AF_INET6 or _has_ipv6()]
    return usable or addresses


def _has_ipv6() -> bool:
    """Whether this machine has any IPv6 address: names resolve to ::1 on those without, too."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def _complaint(host: str, port: int, exc: Exception) -> str:
    said = getattr(exc, "strerror", None) or exc
    is_name = isinstance(exc, (socket.gaierror, UnicodeError))
    advice = _ADVICE[errno.EADDRNOTAVAIL] if is_name else _ADVICE.get(getattr(exc, "errno", 0) or 0)
    name, _, number = host.partition(":")
    if is_name and number.isdigit():
        advice = f"say --host {name} --port {number}"
    return f"cannot listen on {host}, port {port}: {said}" + (f"; {advice}" if advice else "")
