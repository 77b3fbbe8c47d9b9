"""What ``GET /metrics`` shows: our series, the Flask routes', and the user's own.

One prometheus-flask-exporter serves all services of a process: two of them would overwrite each
other's totals in ``PROMETHEUS_MULTIPROC_DIR``. It has a registry of its own, because one on the
default registry keeps a user's own exporter from registering its hooks, silently.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, Protocol, cast

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import REGISTRY
from prometheus_flask_exporter import PrometheusMetrics

Hook = Callable[..., Any]


class Measurable(Protocol):
    """A Flask app or a blueprint."""

    def before_request(self, fn: Hook) -> Any:
        """Register a function that runs before each request."""

    def after_request(self, fn: Hook) -> Any:
        """Register a function that runs after each request."""

    def teardown_request(self, fn: Hook) -> Any:
        """Register a function that runs when a request is over."""


class FlaskSeries:
    """The hooks and the registry of the one exporter, to be attached to several blueprints."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._hooks: dict[str, Hook] = {}
        # path=None: the exporter's own route does not exist under Flask's reloader.
        exporter = PrometheusMetrics(None, path=None, registry=self.registry, group_by="endpoint")
        exporter.init_app(self)

    def before_request(self, fn: Hook) -> None:
        """Take a hook from the exporter."""
        self._hooks["before_request"] = fn

    def after_request(self, fn: Hook) -> None:
        """Take a hook from the exporter."""
        self._hooks["after_request"] = fn

    def teardown_request(self, fn: Hook) -> None:
        """Take a hook from the exporter."""
        self._hooks["teardown_request"] = fn

    def measure(self, routes: Measurable) -> None:
        """Measure the requests of an app, or those of one blueprint."""
        for when, hook in self._hooks.items():
            getattr(routes, when)(hook)


@cache
def flask_series() -> FlaskSeries:
    """Return the exporter of this process, the same one each time."""
    return FlaskSeries()


class _Together:
    """Several registries as one, each family once, restricted to some names if there are any."""

    def __init__(self, registries: Iterable[CollectorRegistry], names: Sequence[str]) -> None:
        self._registries = registries
        self._names = frozenset(names)

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for registry in self._registries:
            for family in registry.collect():
                known = families.setdefault(family.name, family)
                if known is not family:
                    known.samples = [*known.samples, *family.samples]
        return [family for family in map(self._restricted, families.values()) if family.samples]

    def _restricted(self, family: Metric) -> Metric:
        if not self._names or family.name in self._names:
            return family
        kept = Metric(family.name, family.documentation, family.type)
        kept.samples = [sample for sample in family.samples if sample.name in self._names]
        return kept


def exposition(accept: str | None, names: Sequence[str] = ()) -> tuple[bytes, str]:
    """Return the metrics of this process, or of all processes that share the directory.

    Args:
        accept: The ``Accept`` header: OpenMetrics if it is asked for, else Prometheus text.
        names: Families or samples to show; all if there are none.

    Returns:
        The body and its content type.
    """
    encode, content_type = choose_encoder(accept or "")
    return encode(_Together(_registries(), names)), content_type


def serve(host: str, port: int) -> int:
    """Serve the metrics of a process without Flask, in a thread of its own.

    Returns:
        The port; another than was asked for if that was 0.

    Raises:
        OSError: The address is taken or is none of this machine's.
    """
    server, _ = start_http_server(port, host, registry=cast(CollectorRegistry, _Everything()))
    return int(server.server_port)


def _registries() -> list[CollectorRegistry]:
    if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        return [REGISTRY, flask_series().registry]
    shared = CollectorRegistry()
    MultiProcessCollector(shared)  # type: ignore[no-untyped-call]  # it is not typed
    return [shared]


class _Everything:
    """All registries, looked up each time: those of other processes come and go."""

    def collect(self) -> Iterable[Metric]:
        return _Together(_registries(), ()).collect()

    def restricted_registry(self, names: Iterable[str]) -> _Together:
        return _Together(_registries(), list(names))
