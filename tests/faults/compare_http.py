"""What we, gunicorn and uvicorn say to the same bytes, as Markdown.

Run ``PYTHONPATH=tests python tests/faults/compare_http.py > tests/faults/http_differences.md``;
gunicorn, uvicorn, h11 and httptools have to be installed. Behind each request there is a second
one: two numbers are two answers, so the second request ran.
"""

import contextlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from deployments import GUNICORN, SERVE, deployed
from http_reasons import reason
from processes import Process, short_directory
from requests_on_the_wire import ACCEPTED, CLOSING, REFUSED, Table, behind
from wire import APP, connect

# As much of an app as there is in ours: a body is read and answered, the rest is a matter of paths.
ASGI = """
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return
        body += message.get("body", b"")
        more = message.get("more_body", False)
    method, path = scope["method"], scope["path"]
    if method == "OPTIONS":
        status = 200
    elif path == "/inference":
        status = 405 if method != "POST" else 200 if body else 400
    elif path == "/livez" or path.startswith("/smuggled/"):
        status = 200 if method in ("GET", "HEAD") else 405
    else:
        status = 404
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""

#: Long enough for an answer that is still to come, on a machine that is not busy.
QUIET = 1.5
GROUPS: dict[str, Table] = {**REFUSED, **ACCEPTED, **CLOSING}


def said(port: int, data: bytes, patience: float) -> str:
    """Return the statuses of the answers to ``data`` and the request behind it.

    "…" stands for a connection that was still open, with nothing coming, and "-" for one that
    ended without an answer.
    """
    stream, is_open = b"", False
    with connect(port, patience) as sock:
        try:
            sock.sendall(data + behind("marker")["POST"])
            while piece := sock.recv(65536):
                stream += piece
        except TimeoutError:
            is_open = True
        except ConnectionError:
            pass
    statuses = [status.decode() for status in re.findall(rb"HTTP/1\.[01] (\d{3})\b", stream)]
    return " ".join(statuses + ["…"] * is_open) or "-"


def column(port: int, patience: float = QUIET) -> dict[str, str]:
    """Return what a server says to each request, by its name."""
    requests = {name: data for table in GROUPS.values() for name, (_, data) in table.items()}
    with ThreadPoolExecutor(8) as pool:
        seen = pool.map(lambda data: said(port, data, patience), requests.values())
        return dict(zip(requests, seen, strict=True))


@contextlib.contextmanager
def uvicorn(parser: str, directory: Path) -> Iterator[int]:
    """``uvicorn`` on a free port."""
    (directory / "asgi.py").write_text(ASGI)
    arguments = ("-m", "uvicorn", "asgi:app", "--port=0", f"--http={parser}", "--lifespan=off")
    with Process(*arguments, cwd=directory) as process:
        yield int(process.wait_for(r"running on http://127\.0\.0\.1:(\d+)")[1])


def columns() -> dict[str, dict[str, str]]:
    """Return what everybody says, by the name of the server."""
    found = {}
    for name, how in {"ours": SERVE, f"gunicorn {version('gunicorn')}": GUNICORN}.items():
        with short_directory() as directory, deployed(how, APP, directory) as deployment:
            found[name] = column(deployment.server.port)
    for parser in ("h11", "httptools"):
        with short_directory() as directory, uvicorn(parser, directory) as port:
            found[f"uvicorn {version('uvicorn')}, {parser} {version(parser)}"] = column(port)
    return found


def main() -> None:
    """Print the page."""
    found = columns()
    print(INTRODUCTION)
    for section, table in GROUPS.items():
        print(f"## {section}\n")
        print("| request |", " | ".join(found), "| why |")
        print("|" + " --- |" * (len(found) + 2))
        for name in table:
            row = [column[name] for column in found.values()]
            why = reason(section, name) if len({*row}) > 1 else ""
            print("|", " | ".join([name, *row, why]), "|")
        print()


INTRODUCTION = """# The same bytes, four readers

Written by `compare_http.py`; `requests_on_the_wire.py` has the bytes. Behind each request stands
`POST /inference` with `Connection: close`. The numbers are the statuses of all answers: where there
is one, what stood behind it did not run, which is right for all but *Legal*; where there are two,
it did, if the second is 200. "…" is a connection on which the server waits for more, "-" one that
it has ended without an answer.

Ours is `serve`; `batching` says the same. Behind gunicorn (`gthread`) is the Flask app of the same
service, behind uvicorn a small app with the same routes, so a 404 or 405 there is the app's. Where
we are stricter, another reader could understand the bytes in another way, and somebody in front of
us may be that reader. *Why* is there where not all say the same.
"""

if __name__ == "__main__":
    main()
