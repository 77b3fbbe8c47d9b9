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
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

from flask import Blueprint, Response, abort, redirect, request, send_from_directory
from markupsafe import Markup
from openapi_ui_bundles import redoc, swagger_ui
from werkzeug.wrappers import Response as BaseResponse

__all__ = ["Endpoint", "add_pages", "home"]

_MAX_AGE = 3600  # seconds that an asset is kept; short, since an upgrade keeps the addresses
_KEPT_DOCUMENTS = 16  # a bound: behind a careless proxy clients can make up prefixes
_LONGEST_EXAMPLE = 1000  # characters that one likes to see on a command line


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
    _add_page(blueprint, "swagger", _SWAGGER_PAGE.format(title=title, icon=_ICON))
    _add_page(blueprint, "redoc", _REDOC_PAGE.format(title=title, icon=_ICON))
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
        response = _home_page(listed, title, version, command)
    else:
        lines = [asdict(endpoint) for endpoint in listed]
        text = json.dumps({"name": title, "version": version, "endpoints": lines})
        response = _answer(text, "application/json")
    response.vary.add("Accept")
    return response


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


def _add_page(blueprint: Blueprint, name: str, page: str) -> None:
    def view() -> Response:
        return _answer(page, "text/html", csp=_CSP)

    blueprint.add_url_rule(f"/apidoc/{name}", f"apidoc_{name}", view)


def _add_entrance(blueprint: Blueprint) -> None:
    def view() -> BaseResponse:
        return redirect("swagger" if request.path.endswith("/") else "apidoc/swagger")

    for rule in ("/apidoc", "/apidoc/"):  # relative, so that no proxy need be known
        blueprint.add_url_rule(rule, "apidoc", view)


def _asset(name: str) -> Response:
    if name in _FILES:
        response = send_from_directory(_FILES[name], name, max_age=_MAX_AGE)
    elif name in _SCRIPTS:
        response = _answer(_SCRIPTS[name](), "text/javascript")
        response.cache_control.max_age = _MAX_AGE
        response.cache_control.no_cache = None
    else:
        abort(404)
    return _secured(response)


def _swagger_script() -> str:
    return """\
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  queryConfigEnabled: false,  // or a link could show the document of somebody else
  validatorUrl: null,
});
"""


@lru_cache(maxsize=1)
def _redoc_script() -> bytes:
    """Return the bundle of ReDoc without its only request to another host, for a logo."""
    logo = (redoc.static_path / "logo-mini.svg").read_bytes()
    script: bytes = (redoc.static_path / "redoc.standalone.js").read_bytes()
    here = b"data:image/svg+xml;base64," + b64encode(logo)
    return script.replace(b"https://cdn.redoc.ly/redoc/logo-mini.svg", here)


_FILES = {name: swagger_ui.static_path for name in ("swagger-ui-bundle.js", "swagger-ui.css")}
_SCRIPTS: dict[str, Callable[[], str | bytes]] = {
    "swagger-start.js": _swagger_script,
    "redoc.standalone.js": _redoc_script,
}


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


def _home_page(endpoints: Sequence[Endpoint], title: str, version: str, command: str) -> Response:
    rows = Markup("\n").join(
        _ROW.format(
            method=endpoint.method,
            path=_LINK.format(endpoint.path) if endpoint.method == "GET" else endpoint.path,
            description=endpoint.description,
        )
        for endpoint in endpoints
    )
    page = _HOME_PAGE.format(
        title=title,
        version=version,
        icon=_ICON,
        style=_HOME_STYLE,
        rows=rows,
        command=_COMMAND.format(command) if command else "",
    )
    return _answer(page, "text/html", csp=_HOME_CSP)


_SWAGGER_PAGE = Markup("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="{icon}">
<link rel="stylesheet" href="static/swagger-ui.css">
<style>body {{ margin: 0 }}</style>
<div id="swagger-ui"></div>
<script src="static/swagger-ui-bundle.js"></script>
<script src="static/swagger-start.js"></script>
</html>
""")
_REDOC_PAGE = Markup("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="{icon}">
<style>body {{ margin: 0 }}</style>
<redoc spec-url="openapi.json" expand-responses="200" schema-expansion-level="2"></redoc>
<script src="static/redoc.standalone.js"></script>
</html>
""")
_HOME_PAGE = Markup("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="{icon}">
<style>{style}</style>
<main>
<header><h1>{title}</h1><span class="version">{version}</span></header>
{command}
<ul>
{rows}
</ul>
<footer>Served by ventu_lite</footer>
</main>
</html>
""")
_ROW = Markup(
    '<li><span class="method {method}">{method}</span><code>{path}</code><p>{description}</p></li>'
)
_LINK = Markup('<a href="{0}">{0}</a>')
_COMMAND = Markup("<h2>Try it</h2>\n<pre>{}</pre>\n<h2>Endpoints</h2>")
_ICON = (
    "data:image/svg+xml,"
    "%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E"
    "%3Crect width='8' height='8' rx='2' fill='%230d7a6f'/%3E"
    "%3Cpath d='M2 2.2 4 6l2-3.8' fill='none' stroke='white' stroke-width='1.1'/%3E%3C/svg%3E"
)
_HOME_STYLE = Markup("""
:root {
  color-scheme: light dark;
  --back: #f6f7f8; --card: #fff; --text: #1c2426; --dim: #5c6a6d; --line: #e2e6e7;
  --accent: #0b6b61; --post: #9a4b00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #14191a; --card: #1c2324; --text: #e5ebec; --dim: #98a7aa; --line: #2d3739;
    --accent: #5fd0c1; --post: #f0aa5f;
  }
}
* { box-sizing: border-box; margin: 0; padding: 0 }
body { background: var(--back); color: var(--text); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 46rem; margin: 0 auto; padding: 3.5rem 1.25rem 2rem }
header { display: flex; align-items: baseline; flex-wrap: wrap; gap: .75rem }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -.02em; overflow-wrap: anywhere }
h2 { margin: 2rem 0 .6rem; font-size: .8rem; text-transform: uppercase; letter-spacing: .08em;
  color: var(--dim) }
.version { padding: .05rem .6rem; border: 1px solid var(--line); border-radius: 1rem;
  font-size: .85rem; color: var(--dim) }
pre, ul { background: var(--card); border: 1px solid var(--line); border-radius: .6rem }
pre { padding: 1rem 1.1rem; overflow-x: auto; user-select: all }
pre, code, .method { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  font-size: .875rem }
ul { list-style: none; margin-top: 1rem }
h2 + ul { margin-top: 0 }
li { display: grid; grid-template-columns: 3.5rem 1fr 1.4fr; gap: 0 1rem; align-items: baseline;
  padding: .7rem 1.1rem }
li + li { border-top: 1px solid var(--line) }
li code { overflow-wrap: anywhere }
li p { color: var(--dim); font-size: .925rem }
.method { font-weight: 700; color: var(--accent) }
.POST { color: var(--post) }
a { color: inherit; text-decoration-color: var(--accent); text-underline-offset: .2em }
a:hover { color: var(--accent) }
footer { margin-top: 2rem; font-size: .85rem; color: var(--dim) }
@media (max-width: 40rem) {
  main { padding-top: 2rem }
  li { grid-template-columns: 3.5rem 1fr }
  li p { grid-column: 2 }
}
""")

# What the pages may load and do. Both bundles write style attributes; ReDoc searches in a worker.
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; font-src 'self' data:; connect-src 'self'; worker-src blob:;"
    " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HOME_STYLE_HASH = b64encode(sha256(_HOME_STYLE.encode()).digest()).decode()
_HOME_CSP = (
    f"default-src 'none'; style-src 'sha256-{_HOME_STYLE_HASH}'; img-src data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
