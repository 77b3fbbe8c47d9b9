"""Why our answer to some bytes is not that of other servers; for ``compare_http.py``."""

from typing import Final

_EARLY: Final = "a length over the limit is refused when it is announced, not waited for"
_BIG: Final = "18 digits are enough for any length; more are an overflow in some reader"
_BOTH: Final = (
    "RFC 9112, 6.3: a length beside a coding ought to be handled as an error;"
    " h11 lets the coding win"
)
_UNKNOWN: Final = "refused by all; RFC 9112, 6.1 has 501 for a coding that is not understood"
_OTHERS: Final = (
    "nothing but `chunked` is undone here; who passes other codings on leaves their meaning to"
    " somebody else"
)
_ONE_ZERO: Final = "RFC 9112, 6.1: a coding in HTTP/1.0 means faulty framing"
_LF: Final = "RFC 9112, 2.2 allows to take a bare LF for a line break, which others do not"
_FOLD: Final = "RFC 9112, 5.2: a server may refuse folded lines, and readers differ on them"
_CONTROL: Final = "RFC 9110, 5.5: no control characters; they are poison for logs and terminals"
_TAIL: Final = "RFC 9112, 7.1 has no such thing in a chunk's line; h11 skips it"
_FORBIDDEN: Final = "RFC 9110, 6.5.1: no framing in trailers"
_BULK: Final = "more around the chunks than in them only serves to keep a reader busy"
_CLAIM: Final = "more than 64 bits is refused at once; the others wait for so much"
_FORM: Final = "RFC 9112, 3.2: none of the four forms of a target for this method"
_HOST: Final = "RFC 9110, 7.2: not a host; it would end up in links and caches"
_ONE_HOST: Final = "RFC 9112, 3.2: exactly one Host, or 400"
_SPACES: Final = "RFC 9112, 3: single spaces; lenient readers disagree on where the target is"
_VERSION: Final = "505 says which versions are spoken; those who answer take it for another one"
_METHOD: Final = "501 for methods that nobody knows, and the connection ends: it may be no HTTP"
_TWICE: Final = "a field that may come once and matters here; two readers may take two values"
_HEAD: Final = "a bound on the head, so that idle clients cannot hold much memory"
_BODY: Final = "the connection ends, rather than reading on to find the next request"
_ABSOLUTE: Final = (
    "RFC 9112, 3.2.2: servers must accept the absolute form; h11 leaves it to the app"
)
_UPGRADE: Final = (
    "RFC 9110, 7.8: an offer that is not taken is ignored; Java's client makes it with every"
    " first request"
)
_OPTION: Final = "RFC 9112, 9.6: `close` ends it, whatever else is there; gunicorn reads no lists"
_KEPT: Final = "asked for, and given, as ApacheBench and old proxies expect; uvicorn always closes"
_BLANK: Final = (
    "RFC 9112, 2.2: empty lines before a request ought to be ignored; they take no memory here"
    " and gain no time"
)
_TRAILER: Final = (
    "RFC 9110, 6.5.1: trailers may be dropped, and all of them are, so none can matter"
)

_NAMES: Final = {
    _EARLY: ["length over the limit", "length of 10^18 - 1"],
    _BIG: ["length of 2^64 + 8", "length of 2^63"],
    "RFC 9112, 6.3 allows both; nobody repeats a length in good faith": [
        "two equal lengths",
        "three lengths",
        "list of equal lengths",
    ],
    "refused by all; the length beside it is the graver fault": [
        "length and xchunked",
        "length and an empty coding",
    ],
    _OTHERS: [
        "identity, chunked",
        "gzip, chunked",
        "a comma and chunked",
        "identity, then chunked",
    ],
    "llhttp refuses the tab, and nobody sends it": ["chunked and a tab"],
    _FOLD: ["folded chunked", "folded line", "folded line with a tab", "folded length"]
    + ["line of blanks", "blank line before the end", "space before the name of the coding"]
    + ["folded trailer"],
    _ONE_ZERO: [
        "chunked in HTTP/1.0",
        "length and chunked in HTTP/1.0",
        "chunked and kept alive in HTTP/1.0",
    ],
    _BOTH: ["length, then chunked", "chunked, then length", "length of nothing, then chunked"]
    + ["chunked, then length of nothing", "length that covers the chunks"]
    + ["chunked between two lengths"],
    _LF: ["coding behind a bare LF", "trailer with a bare LF", "LF at the end of the chunks"],
    _CONTROL: ["control character in a value", "DEL in a value", "escape sequence in a value"],
    _CLAIM: ["chunk size of 2^64 + 8", "chunk size of 17 digits"],
    _FORBIDDEN: ["trailer Content-Length", "trailer Transfer-Encoding"],
    _BULK: ["chunk size of 40,000 zeros", "trailers of 40,000 bytes", "10,000 trailers"]
    + ["body in 40,000 extensions"],
    "this is not a proxy, and says so": ["CONNECT", "CONNECT with a path"],
    _SPACES: ["two spaces before the target", "two spaces before the version"],
    _VERSION: [
        "HTTP/0.9",
        "HTTP/1.2",
        "HTTP/1.9",
        "HTTP/2.0",
        "HTTP/2",
        "HTTP/2 preface",
        "HTTP/1",
    ],
    "what names no version, or another protocol, is not for us": [
        "HTTP/0.9 without a version",
        "RTSP/1.0",
    ],
    _METHOD: ["lower-case method", "unknown method"],
    _ONE_HOST: ["no Host", "no Host in the absolute form", "two equal Hosts", "two Hosts"],
    "RFC 9110, 10.1.1: 417 for an expectation that cannot be met": ["unknown expectation"],
    _TWICE: ["two types", "two authorizations"],
    _BODY: ["chunk over the limit", "chunks over the limit"],
    "RFC 9112, 7.1 has no limit of zeros; their number is bounded with all that is around chunks": [
        "20 leading zeros of a chunk size"
    ],
    _TRAILER: ["trailer Host", "trailer Authorization"],
    _BLANK: ["empty line before the request", "100 empty lines before the request"],
    _ABSOLUTE: ["absolute form", "absolute form with another Host", "absolute form in capitals"]
    + ["absolute form with https", "absolute form with a body"],
    "Flask's answer, which ours is held to; the app that uvicorn runs says 200": ["OPTIONS *"],
    _KEPT: ["HTTP/1.0 kept alive", "HTTP/1.0 kept alive with a body"]
    + ["HEAD in HTTP/1.0 kept alive"],
    "RFC 9110, 10.1.1: no 100 is needed when the body is there": ["expectation with its body"],
    "HTTP/1.0 knows no expectations, so none is read there": ["expectation in HTTP/1.0"],
    _UPGRADE: ["offer of h2c", "offer of h2c with chunks", "offer of TLS"],
    _OPTION: ["close and keep-alive", "keep-alive and close", "keep-alive, then close"],
}
_BY_NAME: Final = {name: why for why, names in _NAMES.items() for name in names}
_BY_SECTION: Final = {
    "Codings": _UNKNOWN,
    "Lines": _LF,
    "Chunks": _TAIL,
    "Large": _HEAD,
}


def reason(section: str, name: str) -> str:
    """Return why we answer a request as we do, "" if that was not written down."""
    if name.startswith("Host ") and section == "Request line and Host":
        return _HOST
    default = _FORM if section == "Request line and Host" else _BY_SECTION.get(section, "")
    return _BY_NAME.get(name, default)


def unknown_names(names: set[str]) -> set[str]:
    """Return the requests that a reason was written for and that are not among ``names``."""
    return {*_BY_NAME} - names
