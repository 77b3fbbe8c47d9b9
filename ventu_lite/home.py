"""The home page of a service: what there is, and a command line to try it."""

import json
import shlex
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from flask import Response, request
from markupsafe import Markup

from .pages import STATIC, answer, mounted_at, render

_LONGEST_EXAMPLE = 1000  # characters that one likes to see on a command line
_STYLE = Markup((STATIC / "home.css").read_text("utf-8"))
_STYLE_HASH = b64encode(sha256(_STYLE.encode()).digest()).decode()
_HOME_CSP = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One line of the home page.

    Attributes:
        method: The HTTP method.
        path: Relative to the home page, with a leading slash.
        description: One line.
    """

    method: str
    path: str
    description: str


def home(
    endpoints: Sequence[Endpoint],
    *,
    title: str,
    version: str,
    examples: Sequence[Any] = (),
    api_key: bool = False,
) -> Response:
    """Answer ``GET /`` of a blueprint: JSON for programs, a page for browsers.

    Args:
        endpoints: What there is, in the order to show it.
        title: The name of the service.
        version: The version of the service.
        examples: Requests, as JSON values; the page offers the first as a command line.
        api_key: Whether that command line needs a key.
    """
    base = mounted_at("/")
    listed = [Endpoint(e.method, base + e.path, e.description) for e in endpoints]
    accept = request.accept_mimetypes
    if accept["text/html"] > accept["application/json"]:
        url = request.host_url.rstrip("/") + base + "/inference"
        command = _command(url, examples[0], api_key=api_key) if examples else ""
        response = _home_page(listed, title=title, version=version, command=command)
    else:
        response = _home_document(listed, title=title, version=version)
    response.vary.add("Accept")
    return response


def _home_page(endpoints: list[Endpoint], **values: str) -> Response:
    page = render("home.html", endpoints=endpoints, style=_STYLE, **values)
    return answer(page, "text/html", csp=_HOME_CSP)


def _home_document(endpoints: list[Endpoint], *, title: str, version: str) -> Response:
    lines = [asdict(endpoint) for endpoint in endpoints]
    text = json.dumps({"name": title, "version": version, "endpoints": lines})
    return answer(text, "application/json")


def _command(url: str, example: Any, *, api_key: bool) -> str:
    """Return a line for a shell that sends an example."""
    body = json.dumps(example, ensure_ascii=False)
    if len(body) > _LONGEST_EXAMPLE:
        body = "@request.json"
    words = [f"curl {shlex.quote(url)}", "-H 'Content-Type: application/json'"]
    if api_key:
        words.append('-H "Authorization: Bearer $API_KEY"')
    return " \\\n  ".join([*words, f"-d {shlex.quote(body)}"])
