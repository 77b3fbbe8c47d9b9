"""What ``GET /metrics`` shows: our series, the Flask routes', and the user's own.

One prometheus-flask-exporter serves all services of a process: two of them would overwrite each
other's totals in ``PROMETHEUS_MULTIPROC_DIR``. It has a registry of its own, because one on the
default registry keeps a user's own exporter from registering its hooks, silently. A label of its
own, because the two would write to the same series of that directory.
"""

from collections.abc import Callable, Sequence
from functools import cache
from time import perf_counter
from typing import Any, Final, Protocol

from flask import Request, Response, request
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_flask_exporter import PrometheusMetrics

from .errors import ConfigError
from .families import Collector, expose, is_shared, process_collectors
from .room import claim_if_owed, claim_room

Hook = Callable[..., Any]

_LABEL: Final = "exporter"
_OURS: Final = "ventu_lite"
_METHODS: Final = frozenset(
    ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
)
# What a request carries in its environment.
_STARTED: Final = "ventu_lite.started"
_COUNTED: Final = "ventu_lite.counted"
_FAILED: Final = "ventu_lite.failed"


class Measurable(Protocol):
    """A Flask app or a blueprint."""

    def before_request(self, fn: Hook) -> Any:
        """Register a function that runs before each request."""

    def after_request(self, fn: Hook) -> Any:
        """Register a function that runs after each request."""

    def teardown_request(self, fn: Hook) -> Any:
        """Register a function that runs when a request is over."""


class FlaskSeries:
    """The series of the one exporter, and hooks that count for several apps and blueprints.

    The hooks do what the exporter's own do, which took a quarter of the whole time of a request:
    they look each series up by keywords, twice, and each name in the request through a proxy.

    Attributes:
        hooks: What runs before, after and at the end of each request.
    """

    def __init__(self) -> None:
        claim_room()
        self.registry = _Listing()
        # path=None: the exporter's own route does not exist under Flask's reloader.
        exporter = PrometheusMetrics(
            None,
            path=None,
            registry=self.registry,
            group_by="endpoint",
            default_labels={_LABEL: _OURS},
        )
        exporter.init_app(_NoHooks())
        series = {family.name: one for one in self.registry.collectors for family in one.describe()}
        self._seconds: Histogram = series["flask_http_request_duration_seconds"]
        self._requests: Counter = series["flask_http_request"]
        self._exceptions: Counter = series["flask_http_request_exceptions"]
        self.hooks: tuple[Hook, Hook, Hook] = (self._start, self._finish, self._fail)
        self._children: dict[tuple[str, str | None, int], tuple[Histogram, Counter]] = {}

    def measure(self, routes: Measurable) -> None:
        """Count the requests of an app, or those of one blueprint, none of them twice."""
        start, finish, fail = self.hooks
        routes.before_request(start)
        routes.after_request(finish)
        routes.teardown_request(fail)

    def _start(self) -> None:
        claim_if_owed()  # the server has copied a process that had loaded the app
        request.environ[_STARTED] = perf_counter()

    def _finish(self, response: Response) -> Response:
        current: Request = request._get_current_object()  # type: ignore[attr-defined]  # no stub
        self._count(current, response.status_code)
        return response

    def _count(self, current: Request, status: int) -> None:
        if current.environ.get(_COUNTED) or not _is_tracked(current) or not _has_room():
            return
        current.environ[_COUNTED] = True
        key = (_method(current), current.endpoint, status)
        children = self._children.get(key)
        if children is None:
            method, endpoint, status = key
            children = self._children[key] = (
                self._seconds.labels(method, endpoint, status, _OURS),
                self._requests.labels(method, status, _OURS),
            )
        seconds, requests = children
        requests.inc()
        started = current.environ.get(_STARTED)
        if started is not None:  # a hook before ours may have answered
            seconds.observe(perf_counter() - started)

    def _fail(self, exc: BaseException | None) -> None:
        """Count an exception that nobody handled, and its request if that was not done."""
        if exc is None or not _has_room():
            return
        current: Request = request._get_current_object()  # type: ignore[attr-defined]  # no stub
        if _is_tracked(current) and current.environ.get(_FAILED) is not exc:
            current.environ[_FAILED] = exc
            self._exceptions.labels(_method(current), 500, _OURS).inc()
            self._count(current, 500)


class _Listing(CollectorRegistry):
    """A registry that tells what was registered."""

    def __init__(self) -> None:
        super().__init__()
        self.collectors: list[Any] = []

    def register(self, collector: Any) -> None:
        super().register(collector)
        self.collectors.append(collector)


class _NoHooks:
    """An app, for the exporter, that does without its hooks."""

    def before_request(self, fn: Hook) -> None: ...

    def after_request(self, fn: Hook) -> None: ...

    def teardown_request(self, fn: Hook) -> None: ...


def _has_room() -> bool:
    """Whether counting is safe; a hook of the app may have answered before ours claimed room."""
    try:
        claim_if_owed()
    except ConfigError:
        return False
    return True


def _is_tracked(current: Request) -> bool:
    """Tell whether the route has none of the exporter's decorators that exclude it."""
    known = vars(current)
    return "prom_do_not_track" not in known and "prom_exclude_all" not in known


def _method(current: Request) -> str:
    """Return the method; clients may make up others, but no series."""
    return current.method if current.method in _METHODS else "OTHER"


@cache
def flask_series() -> FlaskSeries:
    """Return the exporter of this process, the same one each time."""
    return FlaskSeries()


def exposition(accept: str | None, names: Sequence[str] = ()) -> tuple[bytes, str]:
    """Return the metrics of this process, or of all processes that share the directory.

    Args:
        accept: The ``Accept`` header: OpenMetrics if it is asked for, else Prometheus text.
        names: Families or samples to show; all if there are none.

    Returns:
        The body and its content type.
    """
    return expose(collectors(), accept or "", names)


def collectors() -> list[Collector]:
    """Return all that has metrics now; series of other processes come and go."""
    return [*process_collectors(), *([] if is_shared() else [flask_series().registry])]
