"""The port of a process without Flask: its metrics, and probes."""

import contextlib
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from flask import Response

from .exposition import exposition
from .media_types import PROBLEM_TYPE
from .problems import encode_problem, problem

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger(__name__)

# Each client has a thread. One that is slow, or many at a time, must not keep the probes out.
PATIENCE: Final = 10.0  # seconds from the connection to the end of the answer
MOST_CLIENTS: Final = 16
_ROOM_WITHIN: Final = 1.0  # seconds, until a thread of those who are cut off has ended
_NO_STORE: Final = {"Cache-Control": "no-store"}
_ROUTES: Final = frozenset(("/livez", "/readyz", "/metrics"))


def serve(host: str, port: int, why_not_ready: Callable[[], str]) -> int:
    """Serve metrics and probes in a thread of its own, for as long as the process lives.

    prometheus_client's own server shows the metrics under every path, to a probe as well.

    Args:
        host: Where to listen.
        port: Likewise; 0 to let the system choose.
        why_not_ready: Called in any thread; returns why the process is not ready, "" if it is.

    Returns:
        The port.

    Raises:
        OSError: The address is taken or is none of this machine's.
    """
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    kind = type("Server", (_Server,), {"address_family": family})
    server = kind(address[:2], _Handler)
    server.set_app(_App(why_not_ready))
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return int(server.server_port)


class _Server(ThreadingMixIn, WSGIServer):
    """Cuts off whoever takes too long, and those who came first when there are too many."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._since: dict[Any, float] = {}  # of each client, oldest first
        self._places = threading.Semaphore(MOST_CLIENTS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, as soon as there may be one more."""
        if not self._find_place():  # they all wait for the same disk
            self.shutdown_request(request)
            return
        self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def _find_place(self) -> bool:
        """Take a place; where there is none, cut off clients until one of them leaves his."""
        if self._places.acquire(blocking=False):
            return True
        for client in self._since.copy():
            _cut_off(client)
            if self._places.acquire(timeout=_ROOM_WITHIN / MOST_CLIENTS):
                return True
        return False

    def shutdown_request(self, request: Any) -> None:
        """End a connection, whatever became of it."""
        super().shutdown_request(request)
        if self._since.pop(request, None) is not None:
            self._places.release()

    def service_actions(self) -> None:
        """Cut off the slow ones; called twice a second."""
        latest = time.monotonic() - PATIENCE
        for client, since in self._since.copy().items():
            if since < latest:
                _cut_off(client)

    def handle_error(self, request: object, client_address: object) -> None:
        """Log it, where the base class prints it; most often a client is gone or says nothing."""
        is_lost = isinstance(sys.exc_info()[1], OSError)
        log.log(logging.DEBUG if is_lost else logging.ERROR, "lost a client", exc_info=True)


def _cut_off(client: socket.socket) -> None:
    """End a connection, so that the thread that reads or writes it ends, too."""
    with contextlib.suppress(OSError):  # it has ended
        client.shutdown(socket.SHUT_RDWR)


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: probes come every few seconds."""


class _App:
    """The WSGI app: probes, and metrics.

    Args:
        why_not_ready: See ``serve``.
    """

    def __init__(self, why_not_ready: Callable[[], str]) -> None:
        self._why_not_ready = why_not_ready

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path not in _ROUTES:
            answer = _problem(404, "no such route")
        elif environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            answer = _problem(405, "ask with GET", Allow="GET, HEAD")
        elif path == "/metrics":
            answer = _metrics(environ)
        else:
            answer = self._probe(path)
        return answer(environ, start_response)

    def _probe(self, path: str) -> Response:
        body, status = {"status": "alive"}, 200
        if path == "/readyz":
            why = self._why_not_ready()
            body = {"status": "not ready", "detail": why} if why else {"status": "ready"}
            status = 503 if why else 200
        return Response(json.dumps(body), status, _NO_STORE, content_type="application/json")


def _metrics(environ: "WSGIEnvironment") -> Response:
    names = parse_qs(environ.get("QUERY_STRING", "")).get("name[]", [])
    body, content_type = exposition(environ.get("HTTP_ACCEPT"), names)
    return Response(body, headers=_NO_STORE, content_type=content_type)


def _problem(status: int, detail: str, **headers: str) -> Response:
    document = problem(status, detail)
    del document["instance"]  # there is nothing to find in the log
    body = encode_problem(document, "json")
    return Response(body, status, headers, content_type=PROBLEM_TYPE["json"])
