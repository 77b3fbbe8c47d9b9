"""Bytes that a client may send: what two readers could understand differently, and what is legal.

Each entry is one request as it is on the wire. Behind it the tests put another one, which must run
only where the first is legal. No socket here.
"""

from typing import Final

POST: Final = b"POST /inference HTTP/1.1"
GET: Final = b"GET /livez HTTP/1.1"
HOST: Final = b"Host: a"
TE: Final = b"Transfer-Encoding: chunked"
CLOSE: Final = b"Connection: close"
ITEM: Final = "abcdef"
BODY: Final = b'"abcdef"'
SIZED: Final = b"Content-Length: 8"
CHUNKS: Final = b'8\r\n"abcdef"\r\n0\r\n\r\n'
EMPTY: Final = b"0\r\n\r\n"

Table = dict[str, tuple[int, bytes]]  # name: the status of the answer, the bytes


def head(*lines: bytes) -> bytes:
    """Return a head of these lines."""
    return b"\r\n".join(lines) + b"\r\n\r\n"


def sized(*fields: bytes, length: bytes = b"8") -> bytes:
    """Return a request with ``BODY`` whose length is written as given."""
    return head(POST, HOST, *fields, b"Content-Length:" + length) + BODY


def coded(*fields: bytes, body: bytes = CHUNKS) -> bytes:
    """Return a request with these fields and a body in chunks."""
    return head(POST, HOST, *fields) + body


def chunked(body: bytes) -> bytes:
    """Return a request with ``Transfer-Encoding: chunked`` and these bytes behind it."""
    return head(POST, HOST, TE) + body


def get(*lines: bytes) -> bytes:
    """Return a request without a body, with these lines after the first two."""
    return head(GET, HOST, *lines)


def asked(line: bytes) -> bytes:
    """Return a request with this first line."""
    return head(line, HOST)


def hosted(*fields: bytes) -> bytes:
    """Return a request with these fields alone."""
    return head(GET, *fields)


def post(item: str, *fields: bytes) -> bytes:
    """Return a good request with an item of letters."""
    body = f'"{item}"'.encode()
    return head(POST, HOST, *fields, b"Content-Length: %d" % len(body)) + body


def behind(marker: str) -> dict[str, bytes]:
    """Return what may stand behind a request; each leaves ``marker`` where it runs."""
    path = f"GET /smuggled/{marker} HTTP/1.1".encode()
    return {"GET": head(path, HOST, CLOSE), "POST": post(marker, CLOSE)}


LENGTHS: Final[Table] = {
    "two equal lengths": (400, sized(SIZED, length=b" 8")),
    "two lengths, the first smaller": (400, sized(b"Content-Length: 0", length=b" 8")),
    "two lengths, the second smaller": (400, sized(SIZED, length=b" 0")),
    "three lengths": (400, sized(SIZED, SIZED, length=b" 8")),
    "two lengths in other cases": (400, sized(b"CONTENT-LENGTH: 8", length=b" 0")),
    "list of equal lengths": (400, sized(length=b" 8, 8")),
    "list of different lengths": (400, sized(length=b" 8, 0")),
    "length and a comma": (400, sized(length=b" 8,")),
    "length +8": (400, sized(length=b" +8")),
    "length -8": (400, sized(length=b" -8")),
    "length -0": (400, sized(length=b" -0")),
    "length 0x8": (400, sized(length=b" 0x8")),
    "length 0o10": (400, sized(length=b" 0o10")),
    "length 8_0": (400, sized(length=b" 8_0")),
    "length 8.0": (400, sized(length=b" 8.0")),
    "length 8e0": (400, sized(length=b" 8e0")),
    'length "8"': (400, sized(length=b' "8"')),
    "length 8abc": (400, sized(length=b" 8abc")),
    "length 8;a=b": (400, sized(length=b" 8;a=b")),
    "length 0 8": (400, sized(length=b" 0 8")),
    "length in words": (400, sized(length=b" eight")),
    "empty length": (400, sized(length=b"")),
    "length of blanks": (400, sized(length=b" \t ")),
    "length with a vertical tab": (400, sized(length=b" \x0b8")),
    "length with a form feed": (400, sized(length=b" 8\x0c")),
    "length with a NUL": (400, sized(length=b" 8\0")),
    "length with a no-break space": (400, sized(length=b" \xa08")),
    "length in superscript": (400, sized(length=b" \xb2")),
    "length in full-width digits": (400, sized(length=b" \xef\xbc\x98")),
    "length of 2^64 + 8": (400, sized(length=b" 18446744073709551624")),
    "length of 2^63": (400, sized(length=b" 9223372036854775808")),
    "length of 5,000 digits": (400, sized(length=b" " + b"9" * 5000)),
    "length over the limit": (413, sized(length=b" 10485761")),
    "length of 10^18 - 1": (413, sized(length=b" " + b"9" * 18)),
}

CODINGS: Final[Table] = {
    "length, then chunked": (400, coded(SIZED, TE)),
    "chunked, then length": (400, coded(TE, SIZED)),
    "length of nothing, then chunked": (400, coded(b"Content-Length: 0", TE, body=EMPTY)),
    "chunked, then length of nothing": (400, coded(TE, b"Content-Length: 0", body=EMPTY)),
    "length that covers the chunks": (400, coded(b"Content-Length: 5", TE, body=EMPTY)),
    "chunked between two lengths": (400, coded(SIZED, TE, SIZED)),
    "length and identity": (400, coded(SIZED, b"Transfer-Encoding: identity", body=BODY)),
    "length and xchunked": (400, coded(SIZED, b"Transfer-Encoding: xchunked", body=BODY)),
    "length and an empty coding": (400, coded(SIZED, b"Transfer-Encoding:", body=BODY)),
    "chunked, identity": (501, coded(b"Transfer-Encoding: chunked, identity")),
    "identity, chunked": (501, coded(b"Transfer-Encoding: identity, chunked")),
    "chunked, chunked": (501, coded(b"Transfer-Encoding: chunked, chunked")),
    "gzip, chunked": (501, coded(b"Transfer-Encoding: gzip, chunked")),
    "chunked, gzip": (501, coded(b"Transfer-Encoding: chunked, gzip")),
    "identity": (501, coded(b"Transfer-Encoding: identity", body=BODY)),
    "gzip": (501, coded(b"Transfer-Encoding: gzip", body=BODY)),
    "xchunked": (501, coded(b"Transfer-Encoding: xchunked")),
    "chunkedx": (501, coded(b"Transfer-Encoding: chunkedx")),
    "chunk": (501, coded(b"Transfer-Encoding: chunk")),
    "chunked;q=1": (501, coded(b"Transfer-Encoding: chunked;q=1")),
    '"chunked"': (501, coded(b'Transfer-Encoding: "chunked"')),
    "chunked and a comma": (501, coded(b"Transfer-Encoding: chunked,")),
    "a comma and chunked": (501, coded(b"Transfer-Encoding: ,chunked")),
    "chun ked": (501, coded(b"Transfer-Encoding: chun ked")),
    "chunked with a Kelvin sign": (501, coded(b"Transfer-Encoding: chun\xe2\x84\xaaed")),
    "chunked with a no-break space": (501, coded(b"Transfer-Encoding: \xa0chunked")),
    "empty coding": (501, coded(b"Transfer-Encoding:", body=EMPTY)),
    "chunked and a tab": (400, coded(b"Transfer-Encoding: chunked\t")),
    "vertical tab and chunked": (400, coded(b"Transfer-Encoding: \x0bchunked")),
    "chunked and a form feed": (400, coded(b"Transfer-Encoding: chunked\x0c")),
    "chunked and a NUL": (400, coded(b"Transfer-Encoding: chunked\0")),
    "folded chunked": (501, coded(b"Transfer-Encoding:", b" chunked")),
    "quoted line break and chunked": (501, coded(b'X: "a', b'Transfer-Encoding: chunked"')),
    "space before the colon of the coding": (400, coded(b"Transfer-Encoding : chunked")),
    "tab before the colon of the coding": (400, coded(b"Transfer-Encoding\t: chunked")),
    "vertical tab before the colon of the coding": (400, coded(b"Transfer-Encoding\x0b: chunked")),
    "NUL before the colon of the coding": (400, coded(b"Transfer-Encoding\0: chunked")),
    "space before the name of the coding": (400, coded(b" Transfer-Encoding: chunked")),
    "coding behind a bare LF": (400, coded(b"X: y\nTransfer-Encoding: chunked")),
    "coding behind a bare CR": (400, coded(b"X: y\rTransfer-Encoding: chunked")),
    "chunked twice": (400, coded(TE, TE)),
    "chunked, then identity": (400, coded(TE, b"Transfer-Encoding: identity")),
    "identity, then chunked": (400, coded(b"Transfer-Encoding: identity", TE)),
    "chunked in HTTP/1.0": (400, head(b"POST /inference HTTP/1.0", HOST, TE) + CHUNKS),
    "length and chunked in HTTP/1.0": (
        400,
        head(b"POST /inference HTTP/1.0", HOST, SIZED, TE) + CHUNKS,
    ),
    "chunked and kept alive in HTTP/1.0": (
        400,
        head(b"POST /inference HTTP/1.0", HOST, b"Connection: keep-alive", TE) + CHUNKS,
    ),
}

LINES: Final[Table] = {
    "bare LF after the request line": (400, GET + b"\n" + head(HOST)),
    "bare LF in all lines": (400, GET + b"\nHost: a\n\n"),
    "bare LF after a field": (400, get(b"X: y\nZ: a")),
    "bare LF for the empty line": (400, GET + b"\r\nHost: a\r\n\n"),
    "bare LF, then CR LF": (400, GET + b"\r\nHost: a\n\r\n"),
    "bare CR after the request line": (400, GET + b"\r" + head(HOST)),
    "bare CR after a field": (400, get(b"X: y\rZ: a")),
    "bare CR in a value": (400, get(b"X: y\r z")),
    "bare CR for the empty line": (400, GET + b"\r\nHost: a\r\n\rX: y\r\n\r\n"),
    "CR CR LF after a field": (400, get(b"X: y\r")),
    "CR CR LF after the request line": (400, asked(GET + b"\r")),
    "CR CR LF for the empty line": (400, GET + b"\r\nHost: a\r\n\r\r\n"),
    "LF CR": (400, GET + b"\n\rHost: a\n\r\n\r"),
    "NUL in a value": (400, get(b"X: a\0b")),
    "NUL in a name": (400, get(b"X\0: a")),
    "NUL in the target": (400, asked(b"GET /live\0z HTTP/1.1")),
    "NUL in the method": (400, asked(b"G\0T /livez HTTP/1.1")),
    "NUL before the request": (400, b"\0" + get()),
    "control character in a value": (400, get(b"X: a\x01b")),
    "DEL in a value": (400, get(b"X: a\x7fb")),
    "vertical tab in a value": (400, get(b"X: a\x0bb")),
    "escape sequence in a value": (400, get(b"X: \x1b[2J")),
    "folded line": (400, get(b"X: y", b" z")),
    "folded line with a tab": (400, get(b"X: y", b"\tz")),
    "folded length": (400, head(POST, HOST, b"Content-Length:", b" 8") + BODY),
    "folded first line": (400, head(GET, b" X: y", HOST)),
    "line of blanks": (400, get(b"X: y", b" \t ")),
    "blank line before the end": (400, get(b" ")),
    "space before a colon": (400, get(b"X : y")),
    "tab before a colon": (400, get(b"X\t: y")),
    "space before the colon of the length": (400, coded(b"Content-Length : 8", body=BODY)),
    "space before the colon of Host": (400, hosted(b"Host : a")),
    "space in a name": (400, get(b"X Y: z")),
    "empty name": (400, get(b": y")),
    "colon alone": (400, get(b":")),
    "no colon": (400, get(b"X")),
    "bracket in a name": (400, get(b"X(y): z")),
    "quote in a name": (400, get(b'"X": z')),
    "at sign in a name": (400, get(b"X@y: z")),
    "slash in a name": (400, get(b"X/y: z")),
    "UTF-8 in a name": (400, get(b"X-\xc3\xa9: z")),
    "request in a field": (400, get(b"GET /livez HTTP/1.1")),
}

SIZES: Final[Table] = {
    "chunk size 0x8": (400, chunked(b'0x8\r\n"abcdef"\r\n0\r\n\r\n')),
    "chunk size +8": (400, chunked(b'+8\r\n"abcdef"\r\n0\r\n\r\n')),
    "chunk size -8": (400, chunked(b'-8\r\n"abcdef"\r\n0\r\n\r\n')),
    "chunk size -0": (400, chunked(b"-0\r\n\r\n")),
    "chunk size 0_8": (400, chunked(b'0_8\r\n"abcdef"\r\n0\r\n\r\n')),
    "chunk size with a space before": (400, chunked(b' 8\r\n"abcdef"\r\n0\r\n\r\n')),
    "chunk size with a space behind": (400, chunked(b'8 \r\n"abcdef"\r\n0\r\n\r\n')),
    "chunk size with a tab behind": (400, chunked(b'8\t\r\n"abcdef"\r\n0\r\n\r\n')),
    "chunk size with a vertical tab": (400, chunked(b'\x0b8\r\n"abcdef"\r\n0\r\n\r\n')),
    "chunk size with a NUL": (400, chunked(b'8\0\r\n"abcdef"\r\n0\r\n\r\n')),
    "chunk size of 2^64 + 8": (400, chunked(b'10000000000000008\r\n"abcdef"\r\n0\r\n\r\n')),
    "chunk size of 17 digits": (400, chunked(b"f" * 17 + b"\r\n" + BODY)),
    "chunk size of 40,000 zeros": (400, chunked(b"0" * 40_000 + CHUNKS)),
    "chunk size of no digits": (400, chunked(b"\r\n" + CHUNKS)),
    "chunk size of letters": (400, chunked(b"xyz\r\n" + CHUNKS)),
    "chunk size in full-width digits": (
        400,
        chunked(b"\xef\xbc\x98\r\n" + BODY + b"\r\n0\r\n\r\n"),
    ),
    "extension alone": (400, chunked(b";a=b\r\n" + CHUNKS)),
    "comma behind a chunk size": (400, chunked(b'8,8\r\n"abcdef"\r\n0\r\n\r\n')),
    "LF behind a chunk size": (400, chunked(b'8\n"abcdef"\r\n0\r\n\r\n')),
    "CR behind a chunk size": (400, chunked(b'8\r"abcdef"\r\n0\r\n\r\n')),
    "CR CR LF behind a chunk size": (400, chunked(b'8\r\r\n"abcdef"\r\n0\r\n\r\n')),
    "LF in an extension": (400, chunked(b'8;a\nb\r\n"abcdef"\r\n0\r\n\r\n')),
    "LF behind an extension": (400, chunked(b'8;a=b\n"abcdef"\r\n0\r\n\r\n')),
    "CR in an extension": (400, chunked(b'8;a\rb\r\n"abcdef"\r\n0\r\n\r\n')),
    "CR behind an extension": (400, chunked(b'8;a=b\r"abcdef"\r\n0\r\n\r\n')),
    "NUL in an extension": (400, chunked(b'8;a=\0\r\n"abcdef"\r\n0\r\n\r\n')),
    "no line break behind a chunk": (400, chunked(b'8\r\n"abcdef"0\r\n\r\n')),
    "LF behind a chunk": (400, chunked(b'8\r\n"abcdef"\n0\r\n\r\n')),
    "CR behind a chunk": (400, chunked(b'8\r\n"abcdef"\r0\r\n\r\n')),
    "two bytes for the line break behind a chunk": (400, chunked(b'8\r\n"abcdef"XX0\r\n\r\n')),
    "two line breaks behind a chunk": (400, chunked(b'8\r\n"abcdef"\r\n\r\n0\r\n\r\n')),
    "chunk longer than its size": (400, chunked(b'7\r\n"abcdef"\r\n0\r\n\r\n')),
    "chunk shorter than its size": (400, chunked(b'9\r\n"abcdef"\r\n0\r\n\r\n')),
    "LF behind the last chunk": (400, chunked(b'8\r\n"abcdef"\r\n0\n\r\n')),
    "LF at the end of the chunks": (400, chunked(b'8\r\n"abcdef"\r\n0\r\n\n')),
    "CR at the end of the chunks": (400, chunked(b'8\r\n"abcdef"\r\n0\r\n\rX')),
    "no empty line behind the chunks": (400, chunked(b'8\r\n"abcdef"\r\n0\r\n')),
    "trailer without a colon": (400, chunked(b"0\r\nX\r\n\r\n")),
    "trailer without a name": (400, chunked(b"0\r\n: a\r\n\r\n")),
    "trailer with a space before the colon": (400, chunked(b"0\r\nX : a\r\n\r\n")),
    "trailer with a NUL": (400, chunked(b"0\r\nX: \0\r\n\r\n")),
    "trailer with a bare LF": (400, chunked(b"0\r\nX: a\nY: b\r\n\r\n")),
    "trailer with a bare CR": (400, chunked(b"0\r\nX: a\rY: b\r\n\r\n")),
    "trailer with CR CR LF": (400, chunked(b"0\r\nX: a\r\r\n\r\n")),
    "folded trailer": (400, chunked(b"0\r\nX: a\r\n b\r\n\r\n")),
    "trailer Content-Length": (400, chunked(b"0\r\nContent-Length: 8\r\n\r\n")),
    "trailer Transfer-Encoding": (400, chunked(b"0\r\nTransfer-Encoding: chunked\r\n\r\n")),
    "trailers of 40,000 bytes": (400, chunked(b"0\r\nX: " + b"a" * 40_000 + b"\r\n\r\n")),
    "10,000 trailers": (400, chunked(b"0\r\n" + b"X: a\r\n" * 10_000 + b"\r\n")),
    "extension of 40,000 bytes": (400, chunked(b"8;" + b"a" * 40_000 + b"\r\n")),
    "body in 40,000 extensions": (400, chunked(b"1;" + b"a" * 50_000 + b"\r\n1\r\n0\r\n\r\n")),
}

TARGETS: Final[Table] = {
    "authority form": (400, asked(b"GET a:80 HTTP/1.1")),
    "CONNECT": (501, asked(b"CONNECT a:80 HTTP/1.1")),
    "CONNECT with a path": (501, asked(b"CONNECT /livez HTTP/1.1")),
    "GET *": (400, asked(b"GET * HTTP/1.1")),
    "two asterisks": (400, asked(b"OPTIONS ** HTTP/1.1")),
    "relative path": (400, asked(b"GET livez HTTP/1.1")),
    "other scheme": (400, asked(b"GET ftp://a/livez HTTP/1.1")),
    "absolute form with a user": (400, asked(b"GET http://b@a/livez HTTP/1.1")),
    "absolute form without a host": (400, asked(b"GET http:///livez HTTP/1.1")),
    "absolute form with a bad host": (400, asked(b'GET http://a"b/livez HTTP/1.1')),
    "absolute form with one slash": (400, asked(b"GET http:/livez HTTP/1.1")),
    "fragment": (400, asked(b"GET /livez#a HTTP/1.1")),
    "raw UTF-8 in the target": (400, asked(b"GET /livez?\xc3\xa9 HTTP/1.1")),
    "space in the target": (400, asked(b"GET /livez ?a HTTP/1.1")),
    "no target": (400, asked(b"GET HTTP/1.1")),
    "empty target": (400, asked(b"GET  HTTP/1.1")),
    "two spaces before the target": (400, asked(b"GET  /livez HTTP/1.1")),
    "two spaces before the version": (400, asked(b"GET /livez  HTTP/1.1")),
    "tab for a space": (400, asked(b"GET\t/livez HTTP/1.1")),
    "tab before the version": (400, asked(b"GET /livez\tHTTP/1.1")),
    "vertical tab for a space": (400, asked(b"GET\x0b/livez HTTP/1.1")),
    "space before the method": (400, asked(b" GET /livez HTTP/1.1")),
    "space at the end of the line": (400, asked(b"GET /livez HTTP/1.1 ")),
    "fourth word": (400, asked(b"GET /livez HTTP/1.1 a")),
    "HTTP/0.9 without a version": (400, b"GET /livez\r\n\r\n"),
    "HTTP/0.9": (505, asked(b"GET /livez HTTP/0.9")),
    "HTTP/1.2": (505, asked(b"GET /livez HTTP/1.2")),
    "HTTP/1.9": (505, asked(b"GET /livez HTTP/1.9")),
    "HTTP/2.0": (505, asked(b"GET /livez HTTP/2.0")),
    "HTTP/2": (505, asked(b"GET /livez HTTP/2")),
    "HTTP/2 preface": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/1.10": (400, asked(b"GET /livez HTTP/1.10")),
    "HTTP/01.1": (400, asked(b"GET /livez HTTP/01.1")),
    "HTTP/11.1": (400, asked(b"GET /livez HTTP/11.1")),
    "HTTP/1.": (400, asked(b"GET /livez HTTP/1.")),
    "HTTP/1": (505, asked(b"GET /livez HTTP/1")),
    "HTTP/1,1": (400, asked(b"GET /livez HTTP/1,1")),
    "HTTP/-1.1": (400, asked(b"GET /livez HTTP/-1.1")),
    "http/1.1": (400, asked(b"GET /livez http/1.1")),
    "XHTTP/1.1": (400, asked(b"GET /livez XHTTP/1.1")),
    "RTSP/1.0": (400, asked(b"OPTIONS /livez RTSP/1.0")),
    "lower-case method": (501, asked(b"get /livez HTTP/1.1")),
    "unknown method": (501, asked(b"SMUGGLE /livez HTTP/1.1")),
    "method with a bracket": (400, asked(b"G(T /livez HTTP/1.1")),
    "method with a colon": (400, asked(b"GET: /livez HTTP/1.1")),
    "TLS": (400, bytes.fromhex("16030100c8010000c40303")),
    "no Host": (400, hosted()),
    "no Host in the absolute form": (400, head(b"GET http://a/livez HTTP/1.1")),
    "two equal Hosts": (400, hosted(HOST, HOST)),
    "two Hosts": (400, hosted(HOST, b"Host: b")),
    "Host of two words": (400, hosted(b"Host: a b")),
    "Host with a path": (400, hosted(b"Host: a/b")),
    "Host with a user": (400, hosted(b"Host: b@a")),
    "Host with a scheme": (400, hosted(b"Host: http://a")),
    "Host with a query": (400, hosted(b"Host: a?b")),
    "Host with a fragment": (400, hosted(b"Host: a#b")),
    "Host with a backslash": (400, hosted(b"Host: a\\b")),
    "Host with two ports": (400, hosted(b"Host: a:80:80")),
    "Host with a port of letters": (400, hosted(b"Host: a:b")),
    "Host with an open bracket": (400, hosted(b"Host: [::1")),
    "Host with UTF-8": (400, hosted(b"Host: \xc3\xa9")),
    "Host with a NUL": (400, hosted(b"Host: a\0b")),
    "unknown expectation": (417, sized(b"Expect: 200-ok", length=b" 8")),
    "two types": (400, sized(b"Content-Type: a/b", b"Content-Type: c/d", length=b" 8")),
    "two authorizations": (400, get(b"Authorization: Bearer a", b"Authorization: Bearer b")),
}

LARGE: Final[Table] = {
    "target of 8 KiB": (414, asked(b"GET /" + b"a" * 8192 + b" HTTP/1.1")),
    "target of 1 MB": (414, asked(b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1")),
    "method of 9,000 letters": (414, asked(b"G" * 9000 + b" /livez HTTP/1.1")),
    "version of 9,000 digits": (414, asked(b"GET /livez HTTP/1." + b"1" * 9000)),
    "value of 32 KiB": (431, get(b"X: " + b"a" * 32_768)),
    "value of 1 MB": (431, get(b"X: " + b"a" * 1_000_000)),
    "name of 32 KiB": (431, get(b"a" * 32_768 + b": y")),
    "10,000 fields": (431, get(*[b"X: y"] * 10_000)),
    "10,000 empty fields": (431, get(*[b"X:"] * 10_000)),
    "Host of 32 KiB": (431, hosted(b"Host: " + b"a" * 32_768)),
    "chunk over the limit": (413, chunked(b"a00001\r\n" + b" " * 0xA00001 + b"\r\n" + EMPTY)),
    "chunks over the limit": (413, chunked((b"10000\r\n" + b" " * 65536 + b"\r\n") * 161 + EMPTY)),
}

REFUSED: Final = {
    "Lengths": LENGTHS,
    "Codings": CODINGS,
    "Lines": LINES,
    "Chunks": SIZES,
    "Request line and Host": TARGETS,
    "Large": LARGE,
}

USUAL: Final[Table] = {
    "sized body": (200, sized(length=b" 8")),
    "chunked body": (200, chunked(CHUNKS)),
    "leading zeros of a length": (200, sized(length=b" 008")),
    "no space behind a colon": (200, sized(length=b"8")),
    "many blanks around a value": (200, sized(length=b" \t  8 \t ")),
    "names in capitals": (200, head(POST, b"HOST: a", b"CONTENT-LENGTH: 8") + BODY),
    "names in mixed case": (200, head(POST, b"hOsT: a", b"cOnTeNt-LeNgTh: 8") + BODY),
    "names of all kinds of characters": (200, sized(b"!#$%&'*+-.^_`|~: y", length=b" 8")),
    "empty value": (200, sized(b"X:", length=b" 8")),
    "Latin-1 in a value": (200, sized(b"X: \xe9\xff", length=b" 8")),
    "tab in a value": (200, sized(b"X: a\tb", length=b" 8")),
    "colons in a value": (200, sized(b"X: a:b: c", length=b" 8")),
    "99 fields": (200, sized(*[b"X-%d: y" % n for n in range(97)], length=b" 8")),
    "CHUNKED": (200, coded(b"Transfer-Encoding: CHUNKED")),
    "blanks and chunked": (200, coded(b"Transfer-Encoding:  chunked")),
    "tab and chunked": (200, coded(b"Transfer-Encoding:\tchunked")),
    "chunked and a space": (200, coded(b"Transfer-Encoding: chunked ")),
    "no space and chunked": (200, coded(b"Transfer-Encoding:chunked")),
    "two chunks": (200, chunked(b'3\r\n"ab\r\n5\r\ncdef"\r\n0\r\n\r\n')),
    "leading zeros of a chunk size": (200, chunked(b'0008\r\n"abcdef"\r\n000\r\n\r\n')),
    "20 leading zeros of a chunk size": (200, chunked(b"0" * 20 + CHUNKS)),
    "capital chunk size": (200, chunked(b'A\r\n  "abcdef"\r\n0\r\n\r\n')),
    "chunk extension": (200, chunked(b'8;a\r\n"abcdef"\r\n0;b\r\n\r\n')),
    "chunk extension with a value": (200, chunked(b'8;a=b;c="d e"\r\n"abcdef"\r\n0\r\n\r\n')),
    "trailers": (200, chunked(b'8\r\n"abcdef"\r\n0\r\nX: a\r\nY:\r\n\r\n')),
    "trailer Host": (200, chunked(b'8\r\n"abcdef"\r\n0\r\nHost: b\r\n\r\n')),
    "trailer Authorization": (
        200,
        chunked(b'8\r\n"abcdef"\r\n0\r\nAuthorization: Bearer a\r\n\r\n'),
    ),
    "body of line breaks": (200, chunked(b'e\r\n\r\n\r\n"abcdef"\r\n\r\n0\r\n\r\n')),
    "empty line before the request": (200, b"\r\n" + sized(length=b" 8")),
    "100 empty lines before the request": (200, b"\r\n" * 100 + sized(length=b" 8")),
    "absolute form": (200, asked(b"GET http://a/livez HTTP/1.1")),
    "absolute form with another Host": (200, asked(b"GET http://b:80/livez HTTP/1.1")),
    "absolute form in capitals": (200, asked(b"GET HTTP://A/livez HTTP/1.1")),
    "absolute form with https": (200, asked(b"GET https://a/livez HTTP/1.1")),
    "absolute form with a body": (
        200,
        head(b"POST http://a/inference HTTP/1.1", HOST, SIZED) + BODY,
    ),
    "query": (200, asked(b"GET /livez?a=b&c HTTP/1.1")),
    "percent-encoded query": (200, asked(b"GET /livez?a=%20%0d%0a%00%C3%A9 HTTP/1.1")),
    "query with a question mark": (200, asked(b"GET /livez?a?b=/c HTTP/1.1")),
    "percent-encoded path": (200, asked(b"GET /%6Civez HTTP/1.1")),
    "percent-encoded path of an inference": (
        200,
        head(b"POST /infer%65nce HTTP/1.1", HOST, SIZED) + BODY,
    ),
    "HEAD": (200, asked(b"HEAD /livez HTTP/1.1")),
    "HEAD with a body": (200, head(b"HEAD /livez HTTP/1.1", HOST, SIZED) + BODY),
    "GET with a body": (200, get(SIZED) + BODY),
    "GET with a body in chunks": (200, get(TE) + CHUNKS),
    "OPTIONS": (200, asked(b"OPTIONS /inference HTTP/1.1")),
    "OPTIONS of a probe": (200, asked(b"OPTIONS /livez HTTP/1.1")),
    "OPTIONS *": (404, asked(b"OPTIONS * HTTP/1.1")),
    "empty Host": (200, hosted(b"Host:")),
    "Host with a port": (200, hosted(b"Host: a:80")),
    "Host with an empty port": (200, hosted(b"Host: a:")),
    "Host of an IPv6 address": (200, hosted(b"Host: [::1]:80")),
    "Host with blanks": (200, hosted(b"Host: \t a \t")),
    "HTTP/1.0 kept alive": (
        200,
        head(b"GET /livez HTTP/1.0", b"Connection: keep-alive"),
    ),
    "HTTP/1.0 kept alive with a body": (
        200,
        head(b"POST /inference HTTP/1.0", b"Connection: Keep-Alive", SIZED) + BODY,
    ),
    "HEAD in HTTP/1.0 kept alive": (
        200,
        head(b"HEAD /livez HTTP/1.0", b"Connection: keep-alive"),
    ),
    "Connection of a list": (200, get(b"Connection: X-A, keep-alive,, X-B")),
    "two Connections": (200, get(b"Connection: X-A", b"Connection: keep-alive")),
    "Connection names the length": (
        200,
        sized(b"Connection: Content-Length", length=b" 8"),
    ),
    "Connection names close in part": (200, get(b"Connection: closed, xclose")),
    "expectation with its body": (200, sized(b"Expect: 100-Continue", length=b" 8")),
    "expectation in HTTP/1.0": (
        200,
        head(b"GET /livez HTTP/1.0", b"Connection: keep-alive", b"Expect: 200-ok"),
    ),
    "offer of h2c": (
        200,
        sized(
            b"Connection: Upgrade, HTTP2-Settings",
            b"Upgrade: h2c",
            b"HTTP2-Settings: AAMAAABk",
            length=b" 8",
        ),
    ),
    "offer of h2c with chunks": (200, coded(b"Connection: Upgrade", b"Upgrade: h2c", TE)),
    "offer of TLS": (200, get(b"Connection: Upgrade", b"Upgrade: TLS/1.0")),
    "Keep-Alive": (200, get(b"Keep-Alive: timeout=5, max=1000")),
    "TE": (200, get(b"TE: trailers, deflate;q=0.5", b"Connection: TE")),
    "names with underscores": (
        200,
        sized(b"Content_Length: 0", b"Transfer_Encoding: chunked", length=b" 8"),
    ),
}

LAST: Final[Table] = {
    "HTTP/1.0": (200, head(b"GET /livez HTTP/1.0")),
    "HTTP/1.0 with a body": (200, head(b"POST /inference HTTP/1.0", SIZED) + BODY),
    "HTTP/1.0 with Connection: close": (200, head(b"GET /livez HTTP/1.0", CLOSE)),
    "close": (200, get(CLOSE)),
    "CLOSE": (200, get(b"Connection: CLOSE")),
    "close and keep-alive": (200, get(b"Connection: close, keep-alive")),
    "keep-alive and close": (200, get(b"Connection: keep-alive, close")),
    "keep-alive, then close": (200, get(b"Connection: keep-alive", CLOSE)),
    "close with a body": (200, sized(CLOSE, length=b" 8")),
    "close with chunks": (200, coded(CLOSE, TE)),
}

#: By section: requests after which the connection goes on, and those after which it does not.
ACCEPTED: Final = {"Legal": USUAL}
CLOSING: Final = {"Legal, and the last": LAST}
