"""The API document, drawn by Swagger UI and ReDoc.

The pages run no script but the two bundles and one file of ours, and may talk to nobody but this
server.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, Final

from flask import Blueprint, Response, abort, redirect, request, send_from_directory
from openapi_ui_bundles import redoc, swagger_ui
from werkzeug.wrappers import Response as BaseResponse

from .pages import STATIC, answer, data_uri, mounted_at, render, secured

_MAX_AGE: Final = 3600  # seconds that an asset is kept; short, since an upgrade keeps the addresses
_KEPT_DOCUMENTS: Final = 16  # a bound: behind a careless proxy clients can make up prefixes

_REDOC = "redoc.standalone.js"
_FOLDERS = {
    "swagger-ui-bundle.js": swagger_ui.static_path,
    "swagger-ui.css": swagger_ui.static_path,
    "swagger-start.js": STATIC,
}

# What the pages may load and do. Both bundles write style attributes; ReDoc searches in a worker.
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; font-src 'self' data:; connect-src 'self'; worker-src blob:;"
    " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


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


def _add_document(blueprint: Blueprint, document: Callable[[str], dict[str, Any]]) -> None:
    @lru_cache(maxsize=_KEPT_DOCUMENTS)
    def text(server: str) -> str:
        return json.dumps(_assemble(document(server)), ensure_ascii=False)

    def view() -> Response:
        server = mounted_at("/apidoc/openapi.json") or "/"
        return answer(text(server), "application/json")

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
        return answer(render(f"{name}.html", title=title), "text/html", csp=_CSP)

    blueprint.add_url_rule(f"/apidoc/{name}", f"apidoc_{name}", view)


def _add_entrance(blueprint: Blueprint) -> None:
    def view() -> BaseResponse:
        return redirect("swagger" if request.path.endswith("/") else "apidoc/swagger")

    for rule in ("/apidoc", "/apidoc/"):  # relative, so that no proxy need be known
        blueprint.add_url_rule(rule, "apidoc", view)


def _asset(name: str) -> Response:
    if name == _REDOC:
        response = answer(_redoc_script(), "text/javascript")
        response.cache_control.max_age = _MAX_AGE
        response.cache_control.no_cache = None
    elif name in _FOLDERS:
        response = send_from_directory(_FOLDERS[name], name, max_age=_MAX_AGE)
    else:
        abort(404)
    return secured(response)


@lru_cache(maxsize=1)
def _redoc_script() -> bytes:
    """Return the bundle of ReDoc without its only request to another host, for a logo."""
    script: bytes = (redoc.static_path / _REDOC).read_bytes()
    logo = data_uri(redoc.static_path / "logo-mini.svg")
    return script.replace(b"https://cdn.redoc.ly/redoc/logo-mini.svg", logo.encode())
