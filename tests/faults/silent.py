"""A TCP connection whose other end is gone without a word, as with a machine that lost its power.

Neither rights nor network namespaces are needed: a filter on the sockets in the middle drops every
packet that comes before the system confirms it, so each side sees what it would see of a machine
that is gone: no confirmation, no FIN, no reset.
"""

import contextlib
import ctypes
import socket
import struct
import threading
from types import TracebackType

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27  # of Linux; the module socket has no names for them
# One instruction of the packet filter: keep 0 bytes, which drops the packet.
_DROP = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
_PROGRAM = struct.pack("HP", 1, ctypes.addressof(_DROP))


class Line:
    """Forwards TCP connections, until it falls silent.

    Args:
        target: Where to; a port of this machine.

    Attributes:
        port: Where from.
        taken: How many connections it has forwarded.
    """

    def __init__(self, target: int) -> None:
        self.taken = 0
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._take, name="takes connections")]

    def __enter__(self) -> "Line":
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # which wakes the thread that accepts
        self._threads[0].join()
        for sock in self._ends:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        for sock in [self._listener, *self._ends]:
            sock.close()

    @property
    def address(self) -> tuple[str, str]:
        """The options of a worker that connects through it."""
        return "--tcp", f"127.0.0.1:{self.port}"

    def fall_silent(self) -> None:
        """Drop whatever comes from now on, new connections as well."""
        for sock in [self._listener, *self._ends]:
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _PROGRAM)

    def take_again(self) -> None:
        """Take new connections; those that fell silent remain so, as those to a lost machine."""
        self._hear([self._listener])

    def come_back(self) -> None:
        """Forward all that is sent, and sent again, as after a cable was pulled and put back."""
        self._hear([self._listener, *self._ends])

    def _hear(self, socks: list[socket.socket]) -> None:
        for sock in socks:
            with contextlib.suppress(FileNotFoundError):  # it has no filter
                sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)

    def _take(self) -> None:
        with contextlib.suppress(OSError):  # the end
            while True:
                near, _ = self._listener.accept()
                self._ends.append(near)
                far = socket.create_connection(("127.0.0.1", self._target))
                self._ends.append(far)
                self.taken += 1
                for ends in ((near, far), (far, near)):
                    thread = threading.Thread(target=_forward, args=ends, name="forwards")
                    self._threads.append(thread)
                    thread.start()


def _forward(source: socket.socket, sink: socket.socket) -> None:
    """Forward to the end of the source, and that as well."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
