"""A service that writes down what it was asked, and a client that sends bytes as they are."""

import re
import socket
from dataclasses import dataclass
from pathlib import Path

from deployments import whole_lines
from processes import TIMEOUT

#: Everything that runs leaves a line in the file ``log``.
APP = """
import os
from ventu_lite import Service

service = Service("wire", request=str, response=str)
log = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@service.infer(batch=True, max_batch_size=16)
def shout(batch):
    os.write(log, "".join(f"{item}\\n" for item in batch).encode())
    return [item.upper() for item in batch]

app = service.app

@app.route("/smuggled/<marker>")
def smuggled(marker):
    os.write(log, f"{marker}\\n".encode())
    return marker
"""


def ran(directory: Path) -> list[str]:
    """Return what ran so far in ``directory``: items and markers."""
    return whole_lines(directory / "log")


def connect(port: int, patience: float = TIMEOUT) -> socket.socket:
    """Return a connection to a server on this machine."""
    return socket.create_connection(("127.0.0.1", port), patience)


def receive(sock: socket.socket) -> bytes:
    """Return all that comes until the server ends the connection."""
    pieces = []
    while piece := sock.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def talk(port: int, data: bytes) -> bytes:
    """Send ``data``, and return all that comes until the server ends the connection."""
    with connect(port) as sock:
        sock.sendall(data)
        return receive(sock)


@dataclass(frozen=True)
class Answer:
    """One answer, as it was on the wire."""

    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def is_last(self) -> bool:
        """Whether it says that the connection ends."""
        return self.fields.get("connection") == "close"


def answers(stream: bytes, *, bodiless: bool = False) -> list[Answer]:
    """Take a stream of answers apart; it must hold nothing else.

    Args:
        stream: All that a server has sent.
        bodiless: Whether the first answer is one to HEAD.
    """
    found: list[Answer] = []
    while stream:
        raw, end, stream = stream.partition(b"\r\n\r\n")
        assert end, f"half an answer: {raw!r}"
        line, *rows = raw.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.1 (\d{3}) [\w '-]+", line)
        assert match, f"not a status line: {line!r}"
        fields = {name.lower(): value for name, value in (row.split(": ", 1) for row in rows)}
        assert len(fields) == len(rows), f"a field comes twice: {rows!r}"
        status = int(match[1])
        has_body = status >= 200 and not (bodiless and not found)
        size = int(fields["content-length"]) if has_body else 0
        assert len(stream) >= size, f"half a body: {stream!r}"
        found.append(Answer(status, fields, stream[:size]))
        stream = stream[size:]
    return found


def is_head(data: bytes) -> bool:
    """Return whether the first request in ``data`` wants no body in its answer."""
    return data.lstrip().startswith(b"HEAD ")
