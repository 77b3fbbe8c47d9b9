"""The head of an HTTP/1.1 request, read strictly. No socket, no clock.

Every head is read twice: by a few lines here, which say what is asked for, and by llhttp (through
httptools), which knows the grammar better. Both must find the same end of the request, or it is
refused: what two readers understand differently is what request smuggling is made of.

A client that keeps its connection sends much the same head again and again, so heads that both
readers have approved are kept and found again by their bytes.
"""

import re
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from ..errors import ProtocolError
from ..headers import SANE_ID

HEAD_END = b"\r\n\r\n"
CHUNKED = -1  # stands where a length would

_TEXT = bytes([9, *range(32, 127), *range(128, 256)])  # all but control characters
_REQUEST_LINE = re.compile(
    rb"([A-Za-z][\w!#$%&'*+.^`|~-]*) ([!\"$-~]+) HTTP/1\.([01])"
)  # no fragment
_OTHER_VERSION = re.compile(rb"[A-Za-z][^ ]* [^ ]+ HTTP/(?!1\.[01])\d(?:\.\d)?")
_ABSOLUTE = re.compile(rb"https?://([^/?@]+)([/?].*)?", re.IGNORECASE)
_HOST = re.compile(rb"(?:[\w.~%!$&'()*+,;=-]*|\[[\w:.%]+\])(?::\d*)?")
_SANE_ID = re.compile(SANE_ID.encode())

# The fields that HTTP itself or an inference is about; all others wait in the raw head. A field
# that may come several times is joined, any other is refused when repeated, even with the same
# value: RFC 9112, 6.3 allows to accept two equal lengths, but nobody sends them in good faith, and
# whoever merges them trusts the others.
_LISTS = frozenset(b"accept connection content-encoding upgrade x-request-id".split())
_SINGLE = frozenset(
    b"authorization content-length content-type expect host transfer-encoding".split()
    + [b"x-request-timeout"]
)
_EAGER = _LISTS | _SINGLE


class Refused(ProtocolError):
    """The request cannot be read or accepted; after the answer its connection ends.

    Attributes:
        status: The HTTP status to answer with.
        head: Its head, if that could be read.
    """

    def __init__(self, status: int, detail: str, head: "Head | None" = None) -> None:
        super().__init__(detail)
        self.status = status
        self.head = head


class Head:
    """What the lines before a body say. Shared by all requests with the same bytes; not changed.

    Attributes:
        raw: The bytes, with the empty line.
        method: As sent, such as ``b"POST"``.
        target: Path and query as sent, such as ``b"/inference?a=b"``, or ``b"*"``.
        minor: 0 for HTTP/1.0, 1 for HTTP/1.1.
        fields: The header fields that most requests are about, by lower-case name; see ``headers``.
        length: The declared size of the body, or ``CHUNKED``.
        keep_alive: Whether the client wants the connection to go on.
        is_judged: Whether llhttp has found the end of a whole request with this head where the
            head says. Nothing in a body of a declared length can change that.
        note: What a handler wants to find again with the same bytes.
    """

    __slots__ = (
        "fields", "is_judged", "keep_alive", "length", "method", "minor", "note", "raw", "target",
    )  # fmt: skip

    def __init__(
        self,
        raw: bytes,
        method: bytes,
        target: bytes,
        minor: int,
        fields: dict[bytes, bytes],
        length: int,
        keep_alive: bool,
    ) -> None:
        self.raw = raw
        self.method = method
        self.target = target
        self.minor = minor
        self.fields = fields
        self.length = length
        self.keep_alive = keep_alive
        self.is_judged = False
        self.note: Any = None

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """All header fields as sent, names in lower case, in order. Parsed anew each time."""
        split = (line.partition(b":") for line in self.raw[:-4].split(b"\r\n")[1:])
        return [(name.lower(), value.strip(b" \t")) for name, _, value in split]

    @property
    def path(self) -> bytes:
        """The path as Flask sees it: decoded, ``%6C`` is ``l``, and with one slash in front.

        Clients whose base address ends in a slash send two.
        """
        path = self.target.partition(b"?")[0]
        if b"%" in path:
            path = unquote_to_bytes(path)
        return b"/" + path.lstrip(b"/")

    @property
    def request_id(self) -> bytes | None:
        """What the client calls the request, if it gave a sane id."""
        given = self.fields.get(b"x-request-id", b"")
        return given if _SANE_ID.fullmatch(given) else None


class Heads:
    """Heads by their bytes. When they are too many all are dropped: the common ones come back.

    Attributes:
        known: Approved heads, each with a body of a declared length.
    """

    _MOST: Final = 1024
    _LONGEST: Final = 2048  # a head with larger cookies than that is somebody's own

    def __init__(self) -> None:
        self.known: dict[bytes, Head] = {}

    def read(self, raw: bytes) -> Head:
        """Return the head in ``raw``, which ends with its empty line.

        Raises:
            Refused: It is malformed, ambiguous or of another protocol.
        """
        return self.known.get(raw) or read_head(raw)

    def keep(self, head: Head) -> None:
        """Remember a head of a declared length that llhttp has approved, too."""
        head.is_judged = True
        if len(head.raw) <= self._LONGEST:
            if len(self.known) >= self._MOST:
                self.known.clear()
            self.known[head.raw] = head


def read_head(raw: bytes) -> Head:
    """Return the head in ``raw``, which ends with its empty line.

    Raises:
        Refused: The head is malformed, ambiguous or of another protocol.
    """
    lines = raw[:-4].split(b"\r\n")
    if raw.translate(None, _TEXT) != b"\r\n" * (len(lines) + 1):
        raise Refused(400, "control character or bare line break in the head")
    line = _REQUEST_LINE.fullmatch(lines[0])
    if line is None:
        if _OTHER_VERSION.fullmatch(lines[0]):
            raise Refused(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
        raise Refused(400, "not an HTTP/1.1 request line")
    method, target, version = line.groups()
    minor = version == b"1"
    fields = _read_fields(lines)
    host = fields.get(b"host")
    if host is None and minor or host is not None and not _HOST.fullmatch(host):
        raise Refused(400, "exactly one Host is needed")
    if target[0] != 47 or method == b"CONNECT":  # not a path
        target = _path_of(method, target, fields)
    length = _length(fields, minor)
    if b"expect" in fields and fields[b"expect"].lower() != b"100-continue" and minor:
        raise Refused(417, "the only known expectation is 100-continue")
    keep_alive = _keeps_alive(fields, minor) if b"connection" in fields else minor
    return Head(raw, method, target, int(minor), fields, length, keep_alive)


def _read_fields(lines: list[bytes]) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name in _EAGER:
            value = value.strip(b" \t")
            if name in fields:
                if name in _SINGLE:
                    raise Refused(400, f"more than one {name.decode()}")
                value = fields[name] + b", " + value
            fields[name] = value
    return fields


def _path_of(method: bytes, target: bytes, fields: dict[bytes, bytes]) -> bytes:
    """Return path and query of another form; an absolute one overrides Host (RFC 9112, 3.2.2)."""
    if method == b"CONNECT":
        raise Refused(501, "this is not a proxy")
    if target == b"*" and method == b"OPTIONS":
        return target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None or not _HOST.fullmatch(absolute[1]):
        raise Refused(400, "the request target is not a path")
    if b"host" in fields:
        fields[b"host"] = absolute[1]
    path = absolute[2] or (b"*" if method == b"OPTIONS" else b"/")
    return path if path[0] != 63 else b"/" + path  # http://host?query


def _length(fields: dict[bytes, bytes], is_1_1: bool) -> int:
    length = fields.get(b"content-length")
    coding = fields.get(b"transfer-encoding")
    if coding is not None:
        if length is not None or not is_1_1:
            raise Refused(400, "Transfer-Encoding beside Content-Length or in HTTP/1.0")
        if coding.lower() != b"chunked":
            raise Refused(501, "the only known Transfer-Encoding is chunked")
        return CHUNKED
    if length is None:
        return 0
    if not length.isdigit() or len(length) > 18:
        raise Refused(400, "Content-Length is not a number")
    return int(length)


def _keeps_alive(fields: dict[bytes, bytes], is_1_1: bool) -> bool:
    options = {option.strip(b" \t") for option in fields[b"connection"].lower().split(b",")}
    return b"close" not in options and (is_1_1 or b"keep-alive" in options)
