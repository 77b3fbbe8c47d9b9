"""What our pages have in common: templates, headers, and where they are.

Everything is served from here: the pages work without a network, and behind a proxy that moves
them, because they name their parts relative to themselves.
"""

from base64 import b64encode
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from flask import Response, request
from jinja2 import Environment, PackageLoader, StrictUndefined

STATIC: Final = Path(__file__).parent / "static"

# An environment of our own: the user's app may have templates of the same names.
_TEMPLATES = Environment(
    loader=PackageLoader(__package__), autoescape=True, trim_blocks=True, undefined=StrictUndefined
)


def data_uri(svg: Path) -> str:
    """Return a picture as a page can hold it."""
    return f"data:image/svg+xml;base64,{b64encode(svg.read_bytes()).decode()}"


_ICON: Final = data_uri(STATIC / "icon.svg")


def render(template: str, **values: Any) -> str:
    """Return a page."""
    return _TEMPLATES.get_template(template).render(icon=_ICON, **values)


def mounted_at(rule: str) -> str:
    """Return the path, quoted, below which the routes of the blueprint are for this request."""
    return quote((request.script_root + request.path).removesuffix(rule))


def answer(body: str | bytes, mimetype: str, *, csp: str | None = None) -> Response:
    """Return a response that a client may keep, but must ask about each time."""
    response = Response(body, mimetype=mimetype)
    response.cache_control.no_cache = True
    if csp is not None:
        response.headers["Content-Security-Policy"] = csp
    response.add_etag()
    response.make_conditional(request)
    del response.headers["Date"]  # each server adds its own, werkzeug's a second one
    return secured(response)


def secured(response: Response) -> Response:
    """Let browsers guess no types, and tell nobody where they were."""
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response
