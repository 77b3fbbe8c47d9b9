"""How much CPU does ``POST /inference`` cost, compared with the barest view that Flask can have?

Measures the WSGI call alone, without a server: our whole app (validation both ways, the exporter's
hooks, our metrics, request id and ``Server-Timing``) against ``return "ok"``. Goal: at most 2.2
times as much. Run it with ``python tests/benchmarks/wsgi_call.py``.
"""

import io
import sys
from collections.abc import Callable

from flask import Flask
from measuring import in_turns, medians, ratio, small_service, verdict

GOAL = 2.2
BODY = b'{"text": "my cat is very cute"}'


def bare_app() -> Flask:
    """Return an app with one view that does nothing."""
    app = Flask("bare")
    app.add_url_rule("/inference", "inference", lambda: "ok", methods=["POST"])
    return app


def call_of(app: Flask) -> Callable[[], bytes]:
    """Return a function that makes one request, as a WSGI server would."""

    def call() -> bytes:
        environ = {
            "REQUEST_METHOD": "POST",
            "SCRIPT_NAME": "",
            "PATH_INFO": "/inference",
            "QUERY_STRING": "",
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(BODY)),
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "8000",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": "localhost",
            "HTTP_ACCEPT": "*/*",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(BODY),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        answer = app.wsgi_app(environ, lambda status, headers, exc_info=None: check(status))
        body = b"".join(answer)
        if hasattr(answer, "close"):
            answer.close()
        return body

    return call


def check(status: str) -> Callable[[bytes], object]:
    """Stop at anything but 200: it would not be what is to be measured."""
    assert status == "200 OK", status
    return lambda data: None


def main() -> None:
    """Measure and print."""
    single = small_service("single", batch=False)
    batch = small_service("batch", batch=True)
    calls = [call_of(bare_app()), call_of(single.app), call_of(batch.app)]
    for call in calls:
        for _ in range(200):  # the first ones set up and fill caches
            call()
    rounds = in_turns(calls, times=500, rounds=15)
    for name, seconds in zip(("bare view", "single", "batch"), medians(rounds), strict=True):
        print(f"{name:10} {seconds * 1e6:7.1f} µs of CPU for one request")
    print(verdict("a single function", ratio(rounds, 1, 0), GOAL, " ×"))
    print(verdict("a batch function", ratio(rounds, 2, 0), GOAL, " ×"))


if __name__ == "__main__":
    main()
