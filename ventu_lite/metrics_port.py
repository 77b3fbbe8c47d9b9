"""The port of a process without Flask: its metrics, and probes."""

import json
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from flask import Response
from prometheus_client import Metric, make_wsgi_app
from prometheus_client.registry import Collector

from .exposition import collectors
from .families import Together
from .media_types import PROBLEM_TYPE
from .problems import encode_problem, problem

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

PATIENCE: Final = 10.0  # seconds; each client has a thread, and must not keep it by saying nothing
_PROBES: Final = frozenset(("/livez", "/readyz"))


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
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Log it, where the base class prints it; most often a client is gone or says nothing."""
        is_lost = isinstance(sys.exc_info()[1], OSError)
        log.log(logging.DEBUG if is_lost else logging.ERROR, "lost a client", exc_info=True)


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: probes come every few seconds."""


class _App:
    """The WSGI app: probes, and metrics.

    Args:
        why_not_ready: See ``serve``.
    """

    def __init__(self, why_not_ready: Callable[[], str]) -> None:
        self._metrics: WSGIApplication = make_wsgi_app(_Everything())
        self._why_not_ready = why_not_ready

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return self._metrics(environ, start_response)
        if path not in _PROBES:
            answer = _problem(404, "no such route")
        elif environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            answer = _problem(405, "ask with GET", Allow="GET, HEAD")
        else:
            answer = self._probe(path)
        return answer(environ, start_response)

    def _probe(self, path: str) -> Response:
        body, status = {"status": "alive"}, 200
        if path == "/readyz":
            why = self._why_not_ready()
            body = {"status": "not ready", "detail": why} if why else {"status": "ready"}
            status = 503 if why else 200
        headers = {"Cache-Control": "no-store"}
        return Response(json.dumps(body), status, headers, content_type="application/json")


def _problem(status: int, detail: str, **headers: str) -> Response:
    document = problem(status, detail)
    del document["instance"]  # there is nothing to find in the log
    body = encode_problem(document, "json")
    return Response(body, status, headers, content_type=PROBLEM_TYPE["json"])


class _Everything(Collector):
    """All registries, looked up each time: those of other processes come and go."""

    def collect(self) -> Iterable[Metric]:
        return Together(collectors()).collect()

    def restricted_registry(self, names: Iterable[str]) -> Together:
        """Return the series of these names alone, as ``?name[]=`` asks."""
        return Together(collectors(), list(names))
