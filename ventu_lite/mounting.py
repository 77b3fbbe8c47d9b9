"""Which services an app holds, and where: what a blueprint tells the app that registers it."""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from flask import Blueprint, Flask
from flask.blueprints import BlueprintSetupState
from flask.sansio.app import App
from werkzeug.routing import Rule

from .config import is_set_outside
from .errors import RegistrationError

if TYPE_CHECKING:
    from .service import Service

EXTENSION: Final = "ventu_lite"


@dataclass(frozen=True, slots=True)
class Mounted:
    """A service that an app holds.

    Attributes:
        service: The service.
        prefix: Where its routes are, "" at the root; the first place, if there are several.
        blueprints: The names under which the app knows its routes, one for each place.
    """

    service: "Service"
    prefix: str
    blueprints: list[str] = field(default_factory=list)


def services_of(app: Flask) -> dict[str, Mounted]:
    """Return the services of an app by name."""
    mounted: dict[str, Mounted] = app.extensions.get(EXTENSION, {})
    return mounted


class ServiceBlueprint(Blueprint):
    """The routes of one service; the app that registers them knows that it holds the service."""

    def __init__(self, service: "Service") -> None:
        super().__init__(f"ventu_{identifier(service.name)}", __name__)
        self._service = service
        self.record(self._hold)

    def register(self, app: App, options: dict[str, Any]) -> None:
        """Refuse a second service of the same name, which would share its metrics."""
        service = self._service
        for other in app.blueprints.values():
            if not isinstance(other, ServiceBlueprint) or other._service is service:
                continue
            if other._service.name == service.name:
                raise RegistrationError(_about_twins(service.name))
        super().register(app, options)

    def _hold(self, state: BlueprintSetupState) -> None:
        service, prefix = self._service, state.url_prefix or ""
        mounted: dict[str, Mounted] = state.app.extensions.setdefault(EXTENSION, {})
        for other in mounted.values():
            if other.service is service or other.prefix != prefix or state.subdomain:
                continue
            raise RegistrationError(
                f"service {service.name!r} comes to a place where already {other.service.name!r}"
                " is, and would never be asked; register its blueprint with another url_prefix"
            )
        here = mounted.setdefault(service.name, Mounted(service, prefix))
        here.blueprints.append(f"{state.name_prefix}.{state.name}".lstrip("."))


def is_ours(app: Flask, rule: Rule) -> bool:
    """Tell whether a route of an app is one of a service."""
    blueprint = app.blueprints.get(rule.endpoint.rpartition(".")[0])
    return isinstance(blueprint, ServiceBlueprint)


def _about_twins(name: str) -> str:
    if is_set_outside("name"):
        return (
            f"VENTU_NAME calls every service of this app {name!r}; unset it, so that each has the"
            " name of its Service(...)"
        )
    return f"two services of this app are called {name!r}; give each Service(...) a name of its own"


def identifier(name: str) -> str:
    """Return the name of a service as Python and Flask take names."""
    return re.sub(r"\W", "_", name).lower()
