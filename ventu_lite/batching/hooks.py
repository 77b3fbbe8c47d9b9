"""What Flask would run around the routes that the batching service answers itself."""

from collections.abc import Callable, Iterable
from typing import Any, Final

from flask import Flask

from ..blueprint import Mounted, blueprint_name
from ..exposition import flask_series
from ..inference import Inference

_STATUSES: Final = (400, 401, 404, 405, 406, 413, 415, 422, 429, 500, 503, 504)
# Attributes of app and blueprint: hooks by name of the blueprint, None for the app's own.
_HOOKS: Final = {
    "before_request_funcs": "before_request",
    "after_request_funcs": "after_request",
    "teardown_request_funcs": "teardown_request",
    "url_value_preprocessors": "url_value_preprocessor",
}
_OUR_ENDPOINTS: Final = ("inference", "health", "livez", "readyz", "metrics")


def skipped_by_serve(app: Flask, mounted: Mounted) -> list[str]:
    """Return what the user has put around the routes of a service and ``serve`` would skip.

    Each is one clause that names the thing and, if it can be told, its place.
    """
    ours = flask_series().hooks
    scopes = [None, *mounted.blueprints]
    found = []
    for attribute, label in _HOOKS.items():
        hooks: dict[str | None, list[Callable[..., Any]]] = getattr(app, attribute)
        for scope in scopes:
            found += [f"{label} {_place(fn)}" for fn in hooks.get(scope, ()) if fn not in ours]
    found += _error_handlers(app, scopes)
    found += _replaced_views(app, mounted)
    wsgi_app = app.wsgi_app
    if getattr(wsgi_app, "__func__", None) is not Flask.wsgi_app:
        found.append(f"wsgi_app {_place(wsgi_app)}")
    return found


def _error_handlers(app: Flask, scopes: Iterable[str | None]) -> list[str]:
    from ..blueprint import answer_problem

    found = []
    for scope in scopes:
        for code, handlers in app.error_handler_spec.get(scope, {}).items():
            if code is not None and code not in _STATUSES:
                continue
            found += [
                f"error handler {_place(fn)} for {error.__name__}"
                for error, fn in handlers.items()
                if fn is not answer_problem
            ]
    return found


def _replaced_views(app: Flask, mounted: Mounted) -> list[str]:
    found = []
    for name in mounted.blueprints:
        for endpoint in _OUR_ENDPOINTS:
            view = app.view_functions.get(f"{name}.{endpoint}")
            if view is None:
                continue
            is_ours = isinstance(view, Inference) or _module(view) == blueprint_name.__module__
            if not is_ours:
                found.append(f"view {_place(view)} of {name}.{endpoint}")
    return found


def _module(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__module__", "") or ""


def _place(fn: Any) -> str:
    from ..stages import where_is

    return where_is(fn)
