"""One HTTP/1.1 request and its answer. No socket, no clock."""

from collections.abc import Callable
from typing import Final, Protocol

from .head import Head

Answer = tuple[int, bytes, bytes | None]  # status, header lines, body

#: What stands for an answer that is on its way: the bytes are the transport's alone.
SENT: Final[Answer] = (0, b"", None)

#: Statuses whose answers have no body.
BODILESS: Final = frozenset((204, 304))

_CLOSE: Final = b"Connection: close\r\n\r\n"
_ENDINGS: Final = (b"Connection: keep-alive\r\n\r\n", b"\r\n")  # of HTTP/1.0 and 1.1


class Refuse(Protocol):
    """Makes the answer to what gets none from a handler."""

    def __call__(self, status: int, detail: str, head: Head | None = None, /) -> Answer:
        """Return the answer, from its status, the reason, and the head if that was read."""


class Channel(Protocol):
    """What a request needs of its connection."""

    @property
    def peer(self) -> str:
        """The address of the client."""

    def answered(self, request: "Request") -> None:
        """Take note that a request has its answer."""


class Request:
    """A request, to be answered once, at any later time, in the thread of the event loop.

    Attributes:
        head: What its head says; ``method``, ``target``, ``minor``, ``fields``, ``length`` and
            ``headers`` are those of the head.
        body: The whole body, without transfer coding. Empty as soon as the answer is sent or the
            client has left: whoever keeps a request keeps nothing large, and what all bodies take
            is known to the server.
        keep_alive: Whether the connection goes on after the answer.
        answer: What ``respond`` was given; ``SENT`` when its turn has come.
        is_gone: Whether the client has left; an answer is dropped then. Another thread that takes
            the body must look here after that.
        on_disconnect: Called once if the client leaves before the answer is given. To be set in
            the handler; who gets hold of the request later must look at ``is_gone`` first.
        channel: The connection.
    """

    __slots__ = ("answer", "body", "channel", "head", "is_gone", "keep_alive", "on_disconnect")

    def __init__(self, channel: Channel, head: Head, body: bytes = b"") -> None:
        self.channel = channel
        self.head = head
        self.keep_alive = head.keep_alive
        self.body = body
        self.answer: Answer | None = None
        self.is_gone = False
        self.on_disconnect: Callable[[], None] | None = None

    @property
    def method(self) -> bytes:
        """As sent, such as ``b"POST"``."""
        return self.head.method

    @property
    def target(self) -> bytes:
        """Path and query as sent, or ``b"*"``."""
        return self.head.target

    @property
    def minor(self) -> int:
        """0 for HTTP/1.0, 1 for HTTP/1.1."""
        return self.head.minor

    @property
    def fields(self) -> dict[bytes, bytes]:
        """The header fields that most requests are about, by lower-case name."""
        return self.head.fields

    @property
    def length(self) -> int:
        """The declared size of the body, or ``CHUNKED``."""
        return self.head.length

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """All header fields as sent, names in lower case, in order."""
        return self.head.headers

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for 100 before it sends the body."""
        return self.minor == 1 and b"expect" in self.fields

    @property
    def peer(self) -> str:
        """The address of the client, "" if it has left."""
        return self.channel.peer

    def __repr__(self) -> str:
        return f"<Request {self.method!r} {self.target[:80]!r}>"

    def respond(self, status: int, headers: bytes = b"", body: bytes | None = b"") -> None:
        r"""Give the answer; it is sent when its turn on the connection comes.

        Args:
            status: The final HTTP status.
            headers: Whole lines, such as ``b"Content-Type: application/json\r\n"``, made by
                ``encode_headers`` where a value comes from outside. Date, length and connection
                are added.
            body: All of it; left out for HEAD and for statuses that have none. None for HEAD alone:
                then ``headers`` say how long it would be, if that is known.

        Raises:
            RuntimeError: The request has an answer already.
        """
        if self.is_gone:
            return
        if self.answer is not None:
            raise RuntimeError(f"{self!r} was answered twice")
        self.answer = status, headers, body
        self.on_disconnect = None
        self.channel.answered(self)


def encode_answer(preamble: bytes, head: Head, answer: Answer, is_last: bool) -> bytes:
    """Return the bytes of a response.

    Args:
        preamble: Status line and Date.
        head: That of the request.
        answer: What ``Request.respond`` was given.
        is_last: Whether the connection ends with it.
    """
    status, headers, body = answer
    if body is None or status in BODILESS:
        length = body = b""
    else:
        length = b"Content-Length: %d\r\n" % len(body)
        if head.method == b"HEAD":
            body = b""
    ending = _CLOSE if is_last else _ENDINGS[head.minor]
    return b"".join((preamble, headers, length, ending, body))


def encode_headers(fields: list[tuple[bytes, bytes]]) -> bytes:
    """Return header lines for ``Request.respond``.

    Raises:
        ValueError: A name or value would not stay within its line.
    """
    lines = b"".join([b"%b: %b\r\n" % field for field in fields])
    if lines.count(b"\n") != len(fields) or lines.count(b"\r") != len(fields) or b"\0" in lines:
        raise ValueError("line break or NUL in a header field")
    return lines
