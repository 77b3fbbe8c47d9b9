"""The routes that are the user's own: his Flask app, in threads, behind our HTTP connections."""

import asyncio
import contextlib
import io
import logging
import threading
import time
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from werkzeug.datastructures import Headers
from werkzeug.test import run_wsgi_app

from ..http.request import BODILESS, Answer, Refuse, Request, encode_headers
from ..retries import Reminders

log = logging.getLogger(__name__)

# Pages and the user's own routes; inference does not come through here.
THREADS: Final = 16

# Requests that wait for one of them; beyond that 503. Where each takes a second, the last waits a
# minute, which is as long as proxies wait. Of each its head is kept, even if its client has gone
# meanwhile: with at most 32 KiB, those are 32 MiB.
MAX_WAITING: Final = 1024

# Lines that our connection writes itself, or that are about one hop only (RFC 9110, 7.6.1).
_OURS: Final = frozenset(
    {"connection", "content-length", "date", "keep-alive", "transfer-encoding", "upgrade"}
)


class WSGIRoutes:
    """Answers requests with a WSGI app, in a few threads.

    A response is sent when it is whole: an app that streams is read to its end before (or until
    its client has left), so a route that never ends is never answered.

    Args:
        app: The app; it is called in several threads at once.
        host: For ``SERVER_NAME``.
        refuse: Makes the answer where the app fails to.

    Attributes:
        port: For ``SERVER_PORT``; to be set when it is known.
    """

    def __init__(self, app: Callable[..., Any], host: str, refuse: Refuse) -> None:
        self.port = 0
        self._app = app
        self._host = host
        self._refuse = refuse
        # Nothing large: a request with the address of its client, which only this thread may ask.
        self._todo: SimpleQueue[tuple[Request, str] | None] = SimpleQueue()
        self._threads = 0
        self._reminders = Reminders(time.monotonic)
        self._loop = asyncio.get_running_loop()

    def __call__(self, request: Request) -> None:
        """Answer a request, later; in the thread of the event loop."""
        if self._threads < THREADS:
            self._start_thread()
        if not self._threads:
            request.respond(*self._refuse(503, "the app cannot be called now", request.head))
        elif self._todo.qsize() >= MAX_WAITING:
            request.respond(*self._refuse(503, "too many requests are waiting", request.head))
        else:
            self._todo.put((request, request.peer))

    def _start_thread(self) -> None:
        # Daemons: a route that hangs must not keep the process from its end.
        thread = threading.Thread(target=self._work, name="ventu_lite route", daemon=True)
        try:
            thread.start()
        except RuntimeError as exc:
            if self._reminders.is_due("no thread"):
                log.warning("a thread for the routes cannot start, %d run: %s", self._threads, exc)
            return
        self._reminders.forget()
        self._threads += 1

    def close(self) -> None:
        """Let the threads end; those that run are not waited for."""
        for _ in range(self._threads):
            self._todo.put(None)

    def _work(self) -> None:
        while self._answer_next():
            pass

    def _answer_next(self) -> bool:
        """Answer a request, and keep nothing of it while waiting; return False at the end."""
        task = self._todo.get()
        if task is None:
            return False
        request, peer = task
        answer = self._answer(request, peer)
        if answer is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(request.respond, *answer)
        return True

    def _answer(self, request: Request, peer: str) -> Answer | None:
        """Return the answer of the app, or None if nobody waits for it any more."""
        try:
            environ = _environ(request, peer, self._host, self.port)
            # Only now: a client that leaves takes the body along.
            return None if request.is_gone else self._call(request, environ)
        except BaseException:  # sys.exit() in a route must not cost a thread
            log.exception("the app failed on %r", request)
            return self._refuse(500, "the app failed; the log says why", request.head)

    def _call(self, request: Request, environ: dict[str, Any]) -> Answer:
        chunks, status_line, headers = run_wsgi_app(self._app, environ)
        body = _read(chunks, request)
        status = int(status_line.partition(" ")[0])
        if not 200 <= status <= 599:  # after a 1xx its client takes the next answer for this one
            log.error("the app answered %r with status %d, not one of 200 to 599", request, status)
            return self._refuse(500, "the app failed; the log says why", request.head)
        fields = [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in headers
            if name.lower() not in _OURS
        ]
        if body is None and status not in BODILESS:
            fields += _length(headers)
        return status, encode_headers(fields), body


def _read(chunks: Iterable[bytes], request: Request) -> bytes | None:
    """Return the body, None for HEAD, or whatever there is when the client leaves."""
    is_head = request.method == b"HEAD"
    body = []
    try:
        for chunk in chunks:
            if not is_head:
                body.append(chunk)
            if request.is_gone:
                break
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
    return None if is_head else b"".join(body)


def _length(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return the length that an app tells in its answer to HEAD, where it has left the body out."""
    length = headers.get("Content-Length", type=int)
    return [] if length is None else [(b"Content-Length", b"%d" % length)]


def _environ(request: Request, peer: str, host: str, port: int) -> dict[str, Any]:
    """Return the environment of a request, as PEP 3333 wants it."""
    path, _, query = request.target.partition(b"?")
    target = request.target.decode("latin-1")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request.method.decode("latin-1"),
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query.decode("latin-1"),
        "REQUEST_URI": target,
        "RAW_URI": target,
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": f"HTTP/1.{request.minor}",
        "REMOTE_ADDR": peer,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(request.body),
        "wsgi.input_terminated": True,
        "wsgi.errors": _Errors(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    if request.length:  # it has a body, or says that it has none
        environ["CONTENT_LENGTH"] = str(len(request.body))
    _add_headers(environ, request)
    return environ


def _add_headers(environ: dict[str, Any], request: Request) -> None:
    for raw_name, raw_value in request.headers:
        if b"_" in raw_name:  # X_Forwarded_For must not pass for X-Forwarded-For
            continue
        name, value = (
            raw_name.decode("latin-1").upper().replace("-", "_"),
            raw_value.decode("latin-1"),
        )
        if name == "CONTENT_TYPE":
            environ[name] = value
        elif name not in ("CONTENT_LENGTH", "TRANSFER_ENCODING"):
            key = f"HTTP_{name}"
            joint = "; " if name == "COOKIE" else ","
            environ[key] = f"{environ[key]}{joint}{value}" if key in environ else value
    if b"host" in request.fields:  # what an absolute target says beats the header
        environ["HTTP_HOST"] = request.fields[b"host"].decode("latin-1")


class _Errors(io.TextIOBase):
    """``wsgi.errors``: what an app writes there goes to the log."""

    def write(self, text: str) -> int:
        if text.strip():
            log.error("%s", text.rstrip())
        return len(text)
