"""What people see in a browser: the API document, drawn by Swagger UI and ReDoc, and the home page.

Everything is served from here: the pages work without a network, and behind a proxy that moves
them, because they name their parts relative to themselves. They run no script but the two bundles
and one file of ours, and may talk to nobody but this server.
"""

import json
import shlex
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

from flask import Blueprint, Response, abort, redirect, request, send_from_directory
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from openapi_ui_bundles import redoc, swagger_ui
from werkzeug.wrappers import Response as BaseResponse

__all__ = ["Endpoint", "add_pages", "home"]

_MAX_AGE = 3600  # seconds that an asset is kept; short, since an upgrade keeps the addresses
_KEPT_DOCUMENTS = 16  # a bound: behind a careless proxy clients can make up prefixes
_LONGEST_EXAMPLE = 1000  # characters that one likes to see on a command line


def _data_uri(svg: Path) -> str:
    return f"data:image/svg+xml;base64,{b64encode(svg.read_bytes()).decode()}"


_STATIC = Path(__file__).parent / "static"
_ICON = _data_uri(_STATIC / "icon.svg")
_STYLE = Markup((_STATIC / "home.css").read_text("utf-8"))
_REDOC = "redoc.standalone.js"
_FOLDERS = {
    "swagger-ui-bundle.js": swagger_ui.static_path,
    "swagger-ui.css": swagger_ui.static_path,
    "swagger-start.js": _STATIC,
}

# An environment of our own: the user's app may have templates of the same names.
_TEMPLATES = Environment(
    loader=PackageLoader(__package__), autoescape=True, trim_blocks=True, undefined=StrictUndefined
)

# What the pages may load and do. Both bundles write style attributes; ReDoc searches in a worker.
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; font-src 'self' data:; connect-src 'self'; worker-src blob:;"
    " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
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


def add_pages(
    blueprint: Blueprint, *, title: str, document: Callable[[str], dict[str, Any]]
) -> None:
    """Give a blueprint the routes below ``/apidoc``, wherever and however often it is registered.

    Args:
        blueprint: Not registered yet.
        title: The title of the pages.
        document: Returns the OpenAPI document, a fresh map each time, for the path below which the
            routes of the blueprint are. It is called by the first reader of the document, perhaps
            by two at once, and not again for the same path.
    """
    _add_document(blueprint, document)
    for page in ("swagger", "redoc"):
        _add_page(blueprint, page, title)
    _add_entrance(blueprint)
    blueprint.add_url_rule("/apidoc/static/<name>", "apidoc_asset", _asset)


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
    base = _mounted_at("/")
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
    page = _render("home.html", endpoints=endpoints, style=_STYLE, **values)
    return _answer(page, "text/html", csp=_HOME_CSP)


def _home_document(endpoints: list[Endpoint], *, title: str, version: str) -> Response:
    lines = [asdict(endpoint) for endpoint in endpoints]
    text = json.dumps({"name": title, "version": version, "endpoints": lines})
    return _answer(text, "application/json")


def _add_document(blueprint: Blueprint, document: Callable[[str], dict[str, Any]]) -> None:
    @lru_cache(maxsize=_KEPT_DOCUMENTS)
    def text(server: str) -> str:
        return json.dumps(_assemble(document(server)), ensure_ascii=False)

    def view() -> Response:
        server = _mounted_at("/apidoc/openapi.json") or "/"
        return _answer(text(server), "application/json")

    blueprint.add_url_rule("/apidoc/openapi.json", "apidoc_document", view)


def _assemble(document: dict[str, Any]) -> Any:
    """Let flasgger put the document together, in the middle of a request.

    It is not told of the app, as it would wrap the app's methods, add a hook to every request,
    clash with a flasgger of the user and obey his configuration. Nor does it look at his views,
    where one bad docstring would be the end of the whole document.
    """
    from flasgger import Swagger  # here, as it takes as long to import as Flask itself

    nothing = {"endpoint": "openapi", "rule_filter": lambda rule: False}
    swagger = Swagger(template=document, config={"openapi": "3.1.0", "specs": [nothing]})
    swagger.app = SimpleNamespace(debug=False)
    return swagger.get_apispecs("openapi")


def _add_page(blueprint: Blueprint, name: str, title: str) -> None:
    def view() -> Response:
        return _answer(_render(f"{name}.html", title=title), "text/html", csp=_CSP)

    blueprint.add_url_rule(f"/apidoc/{name}", f"apidoc_{name}", view)


def _add_entrance(blueprint: Blueprint) -> None:
    def view() -> BaseResponse:
        return redirect("swagger" if request.path.endswith("/") else "apidoc/swagger")

    for rule in ("/apidoc", "/apidoc/"):  # relative, so that no proxy need be known
        blueprint.add_url_rule(rule, "apidoc", view)


def _asset(name: str) -> Response:
    if name == _REDOC:
        response = _answer(_redoc_script(), "text/javascript")
        response.cache_control.max_age = _MAX_AGE
        response.cache_control.no_cache = None
    elif name in _FOLDERS:
        response = send_from_directory(_FOLDERS[name], name, max_age=_MAX_AGE)
    else:
        abort(404)
    return _secured(response)


@lru_cache(maxsize=1)
def _redoc_script() -> bytes:
    """Return the bundle of ReDoc without its only request to another host, for a logo."""
    script: bytes = (redoc.static_path / _REDOC).read_bytes()
    logo = _data_uri(redoc.static_path / "logo-mini.svg")
    return script.replace(b"https://cdn.redoc.ly/redoc/logo-mini.svg", logo.encode())


def _render(template: str, **values: Any) -> str:
    return _TEMPLATES.get_template(template).render(icon=_ICON, **values)


def _mounted_at(rule: str) -> str:
    """Return the path, quoted, below which the routes of the blueprint are for this request."""
    return quote((request.script_root + request.path).removesuffix(rule))


def _answer(body: str | bytes, mimetype: str, *, csp: str | None = None) -> Response:
    """Return a response that a client may keep, but must ask about each time."""
    response = Response(body, mimetype=mimetype)
    response.cache_control.no_cache = True
    if csp is not None:
        response.headers["Content-Security-Policy"] = csp
    response.add_etag()
    response.make_conditional(request)
    return _secured(response)


def _secured(response: Response) -> Response:
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


def _command(url: str, example: Any, *, api_key: bool) -> str:
    """Return a line for a shell that sends an example."""
    body = json.dumps(example, ensure_ascii=False)
    if len(body) > _LONGEST_EXAMPLE:
        body = "@request.json"
    words = [f"curl {shlex.quote(url)}", "-H 'Content-Type: application/json'"]
    if api_key:
        words.append('-H "Authorization: Bearer $API_KEY"')
    return " \\\n  ".join([*words, f"-d {shlex.quote(body)}"])
