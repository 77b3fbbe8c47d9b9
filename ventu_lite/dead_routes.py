"""Routes of the user's that are never reached, as ours are at their places and came before them."""

import logging
from collections.abc import Collection, Iterator
from typing import Final

from flask import Flask, request_started
from flask.sansio.app import App
from werkzeug.exceptions import HTTPException
from werkzeug.routing import MapAdapter, Rule

from .functions import where_is
from .mounting import is_ours

log = logging.getLogger(__name__)

_OF_ITSELF: Final = {"HEAD", "OPTIONS"}  # what Flask adds to the methods of a route


def watch(app: App) -> None:
    """Have an app warn of its dead routes at its first request: by then it has them all."""
    request_started.connect(warn_of_dead_routes, app)


def warn_of_dead_routes(app: Flask, served: Collection[str] = ()) -> None:
    """Warn of each dead route of an app, and not again at its first request.

    Args:
        app: The app.
        served: Paths that are answered without Flask, whatever the method.
    """
    request_started.disconnect(warn_of_dead_routes, app)
    for rule in _dead_routes(app, served):
        log.warning(
            "the route %s of %s is never reached: ventu_lite answers there; choose another path",
            rule.rule,
            where_is(app.view_functions[rule.endpoint]),
        )


def _dead_routes(app: Flask, served: Collection[str]) -> Iterator[Rule]:
    routes = app.url_map.bind("localhost")
    for rule in app.url_map.iter_rules():
        if not is_ours(app, rule) and (rule.rule in served or _is_covered(app, routes, rule)):
            yield rule


def _is_covered(app: Flask, routes: MapAdapter, rule: Rule) -> bool:
    """Tell whether Flask takes one of our routes for some method of this one."""
    if rule.arguments or rule.subdomain or rule.host:
        return False
    for method in (rule.methods or set()) - _OF_ITSELF:
        try:
            taken, _ = routes.match(rule.rule, method, return_rule=True)
        except HTTPException:  # it is for WebSockets
            continue
        if is_ours(app, taken) and not taken.endpoint.endswith(".home"):  # which gives way
            return True
    return False
