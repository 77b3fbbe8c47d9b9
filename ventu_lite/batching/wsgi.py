"""The routes that are the user's own: his Flask app, in threads, behind our HTTP connections."""

import asyncio
import io
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from werkzeug.test import run_wsgi_app

from .http_request import Request, encode_headers

log = logging.getLogger(__name__)

# Pages and the user's own routes; inference does not come through here.
THREADS: Final = 16

# Lines that our connection writes itself, or that are about one hop only (RFC 9110, 7.6.1).
_OURS: Final = frozenset(
    {"connection", "content-length", "date", "keep-alive", "transfer-encoding", "upgrade"}
)


class WSGIRoutes:
    """Answers requests with a WSGI app. Responses are collected before they are sent.

    Args:
        app: The app; it is called in several threads at once.
        server: Host and port, for ``SERVER_NAME`` and ``SERVER_PORT``.
    """

    def __init__(self, app: Callable[..., Any], server: tuple[str, int]) -> None:
        self._app = app
        self._server = server
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="ventu_lite route")

    def __call__(self, request: Request) -> None:
        """Answer a request, later; in the thread of the event loop."""
        environ = _environ(request, self._server)
        done = asyncio.get_running_loop().run_in_executor(self._pool, self._call, environ)
        done.add_done_callback(lambda done: _respond(request, done))

    def close(self) -> None:
        """Let no further request begin; those that run are not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _call(self, environ: dict[str, Any]) -> tuple[int, bytes, bytes]:
        chunks, status, headers = run_wsgi_app(self._app, environ, buffered=True)
        try:
            body = b"".join(chunks)
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()
        fields = [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in headers
            if name.lower() not in _OURS
        ]
        return int(status.partition(" ")[0]), encode_headers(fields), body


def _respond(request: Request, done: "asyncio.Future[tuple[int, bytes, bytes]]") -> None:
    if done.cancelled():
        request.respond(503, b"Retry-After: 1\r\n")
    elif exc := done.exception():
        log.error("the app failed on %r", request, exc_info=exc)
        request.respond(500)
    else:
        request.respond(*done.result())


def _environ(request: Request, server: tuple[str, int]) -> dict[str, Any]:
    """Return the environment of a request, as PEP 3333 wants it."""
    path, _, query = request.target.partition(b"?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request.method.decode("latin-1"),
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query.decode("latin-1"),
        "REQUEST_URI": request.target.decode("latin-1"),
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "SERVER_PROTOCOL": f"HTTP/1.{request.minor}",
        "REMOTE_ADDR": request.peer,
        "CONTENT_LENGTH": str(len(request.body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(request.body),
        "wsgi.input_terminated": True,
        "wsgi.errors": _Errors(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for name, value in request.headers:
        if b"_" not in name:  # X_Forwarded_For must not pass for X-Forwarded-For
            _add_header(environ, name.decode("latin-1"), value.decode("latin-1"))
    return environ


def _add_header(environ: dict[str, Any], name: str, value: str) -> None:
    key = name.upper().replace("-", "_")
    if key == "CONTENT_TYPE":
        environ[key] = value
    elif key not in ("CONTENT_LENGTH", "TRANSFER_ENCODING"):
        key = f"HTTP_{key}"
        environ[key] = f"{environ[key]},{value}" if key in environ else value


class _Errors(io.TextIOBase):
    """``wsgi.errors``: what an app writes there goes to the log."""

    def write(self, text: str) -> int:
        if text.strip():
            log.error("%s", text.rstrip())
        return len(text)
