"""Listening sockets: bound carefully, with errors that say what to do."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from typing import Final

from ..errors import CannotListen

# As many as Linux lets through by default (somaxconn); a burst beyond that is told to come again.
BACKLOG: Final = 4096


def listen_unix(path: str) -> socket.socket:
    """Return a socket that only this user may connect to, in place of a stale one.

    Raises:
        CannotListen: Another program listens there, or the file is something else.
    """
    _clear(path)
    sock = socket.socket(socket.AF_UNIX)
    try:
        with _umask(0o177):
            sock.bind(path)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise CannotListen(f"cannot listen at unix:{path}: {exc.strerror or exc}") from exc
    sock.setblocking(False)
    return sock


def remove_unix(path: str, sock_inode: int) -> None:
    """Remove a socket file, unless somebody has put another one in its place."""
    with contextlib.suppress(FileNotFoundError):
        if os.stat(path).st_ino == sock_inode:
            os.unlink(path)


def listen_tcp(host: str, port: int) -> list[socket.socket]:
    """Return sockets for all addresses of a host, on one port.

    Args:
        host: A name, an address, or "" for all interfaces.
        port: 0 to let the system choose.

    Raises:
        CannotListen: The port is taken, or the host is none of this machine's.
    """
    socks: list[socket.socket] = []
    try:
        for family, *_, address in _addresses(host, port):
            sock = socket.socket(family, socket.SOCK_STREAM)
            socks.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], port, *address[2:]))
            sock.listen(BACKLOG)
            sock.setblocking(False)
            port = sock.getsockname()[1]  # the same for every address
    except OSError as exc:
        for sock in socks:
            sock.close()
        raise CannotListen(_advice(host, port, exc)) from exc
    return socks


def allow_many_files() -> None:
    """Raise the soft limit of open files to the hard one: each connection is a file."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS reports more than it allows
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _clear(path: str) -> None:
    """Remove a socket that nobody listens to any more.

    Raises:
        CannotListen: Somebody does, or it is no socket.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as exc:
        raise CannotListen(f"cannot listen at unix:{path}: {exc.strerror or exc}") from exc
    if not stat.S_ISSOCK(mode):
        raise CannotListen(f"{path} is a file, not a socket; remove it or choose another --unix")
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
    raise CannotListen(f"another program listens at unix:{path}; stop it or choose another --unix")


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


def _addresses(host: str, port: int) -> list[tuple[int, int, int, str, tuple[str, int]]]:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    usable = [one for one in found if one[0] != socket.AF_INET6 or _has_ipv6()]
    return list(dict.fromkeys(usable or found))  # type: ignore[arg-type]  # TCP addresses only


def _has_ipv6() -> bool:
    """Whether this machine has any IPv6 address: names resolve to ::1 on those without, too."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def _advice(host: str, port: int, exc: OSError) -> str:
    said = f"cannot listen on {host or 'all interfaces'}, port {port}: {exc.strerror or exc}"
    return f"{said}; stop the program that does, or choose another port"
