"""The user's file: find the app, load it and the service in it, or say what is wrong and where."""

import difflib
import inspect
import re
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click
from flask import Flask
from flask.cli import FlaskGroup, NoAppException, ScriptInfo

from .config import Config, LogFormat, LogLevel
from .errors import ConfigError, RegistrationError, ServiceNotFound
from .failures import shared_failures
from .options import CRASHED, WRONG_USAGE, fail
from .service import Service
from .tracebacks import beginning_with_the_users, first_place_of, place_of
from .variables import warn_of_unknown_variables

if TYPE_CHECKING:
    from .blueprint import Mounted

F = TypeVar("F", bound=Callable[..., Any])

_HOW_TO_HAVE_AN_APP: Final = (
    "Name the file that holds the service: `python -m ventu_lite --app FILE.py ...`."
    " It needs a line `app = service.app` below the decorated functions."
)
# How Python begins a TypeError for arguments that do not fit.
_BAD_CALL: Final = re.compile(rf"{Service.__name__}\.(\w+)\(\) ")


class AppGroup(FlaskGroup):
    """Flask's own group, so that an app is found as ``flask run`` finds it.

    It knows its commands without loading the app or the plugins of ``flask``: one of these
    alone takes as long to import as everything that a worker needs.
    """

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return one of our commands."""
        return click.Group.get_command(self, ctx, name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of our commands."""
        return click.Group.list_commands(self, ctx)


def _set_app(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.ensure_object(ScriptInfo).app_import_path = value


def app_options(fn: F) -> F:
    """Give a command the options that say what to run."""
    app = click.option(
        "-A",
        "--app",
        metavar="IMPORT",
        callback=_set_app,
        expose_value=False,
        allow_from_autoenv=False,
        help="The app, here or before the command.",
    )
    service = click.option("--service", "service_name", metavar="NAME", help="Which, of several.")
    return app(service(fn))


def find_service(app: Flask, name: str | None) -> "Mounted":
    """Return the service of an app, and where it is mounted.

    Raises:
        ServiceNotFound: There is none, none of that name, or several and no name was given.
    """
    from .blueprint import services_of

    mounted = services_of(app)
    if not mounted:
        raise ServiceNotFound(
            f"the app {app.name!r} holds no service; add"
            " `app.register_blueprint(service.blueprint)`, or use `app = service.app`"
        )
    if name is None and len(mounted) > 1:
        raise ServiceNotFound(
            f"the app {app.name!r} holds several services: {_names(mounted)};"
            f" choose one, such as --service {next(iter(mounted))!r}"
        )
    chosen = next(iter(mounted)) if name is None else name
    if chosen not in mounted:
        raise ServiceNotFound(
            f"the app {app.name!r} holds no service {chosen!r}; it has {_names(mounted)}"
        )
    return mounted[chosen]


def _names(mounted: dict[str, Any]) -> str:
    return ", ".join(repr(name) for name in mounted)


def load_service(
    info: ScriptInfo,
    name: str | None,
    *,
    log_level: LogLevel | None,
    log_format: LogFormat | None,
) -> "tuple[Flask, Mounted, Config]":
    """Return the app and the service that the user means, and its settings under the log flags.

    What the operator says of logs is heard before the user's file is imported, what the file
    itself says (a handler of its own, ``Service(log_format=...)``) afterwards.

    Raises:
        ConfigError, RegistrationError, ServiceNotFound: The user's file does
            not give a service that can be run.
    """
    from .logs import configure
    from .room import claim_room

    claim_room()  # the user's file may make series of its own
    operator = Config().override(log_level=log_level, log_format=log_format)
    if "log_format" in operator.model_fields_set:
        configure(operator.log_level, operator.log_format)
    app = _load_app(info, is_debugging=operator.log_level == "debug")
    mounted = find_service(app, name)
    config = mounted.service.config.override(log_level=log_level, log_format=log_format)
    configure(config.log_level, config.log_format)
    warn_of_unknown_variables()
    return app, mounted, config


def _load_app(info: ScriptInfo, *, is_debugging: bool) -> Flask:
    try:
        return info.load_app()
    except Exception as exc:
        if is_debugging:
            traceback.print_exc()
        _explain(exc, is_debugging=is_debugging)


def _explain(exc: Exception, *, is_debugging: bool) -> NoReturn:
    """Say what is wrong with the user's file, or with what we were told of it, and end."""
    if isinstance(exc, NoAppException):
        if isinstance(exc.__context__, ImportError) and first_place_of(exc.__context__):
            fail(_about_import(exc.__context__), WRONG_USAGE)
        fail(f"{exc.message}\n\n{_HOW_TO_HAVE_AN_APP}", WRONG_USAGE)
    if said := _about_misuse(exc):
        place = place_of(exc)
        fail(f"{place}: {said}" if place else said, WRONG_USAGE)
    if is_debugging:
        sys.exit(CRASHED)
    failures = shared_failures()
    failures.leave_note(exc)
    if failures.is_news(exc):
        traceback.print_exception(beginning_with_the_users(exc))
    sys.exit(CRASHED)


def _about_import(exc: ImportError) -> str:
    """Tell what the user's file imports in vain."""
    app_file, place = first_place_of(exc), place_of(exc)
    by = "" if place == app_file else f", by way of {place}"
    if not isinstance(exc, ModuleNotFoundError) or exc.name is None:
        return f"{app_file}: this import of the app fails{by}: {exc}"
    return (
        f"{app_file}: the app imports the module {exc.name!r}{by}, which {sys.executable} does not"
        " find. Install the package that has it, or correct the name."
    )


def _about_misuse(exc: Exception) -> str:
    """Tell how a service is used wrongly; "" if it is something else that failed."""
    if isinstance(exc, ConfigError | RegistrationError):
        return str(exc)
    if _is_method_of_the_class(exc):
        return 'this needs a service, not the class: say service = Service("name"), with brackets.'
    if isinstance(exc, AttributeError) and isinstance(exc.obj, Service):
        near = difflib.get_close_matches(exc.name or "", dir(Service), n=1)
        return f"{exc}." + (f" Did you mean {near[0]!r}?" if near else "")
    called = _BAD_CALL.match(str(exc)) if isinstance(exc, TypeError) else None
    method = getattr(Service, called[1], None) if called and _means_ours(exc) else None
    if method is None:
        return ""
    parameters = inspect.signature(method).parameters.values()
    options = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
    return f"{exc}. It takes " + (
        f"these options: {', '.join(options)}." if options else "no options."
    )


def _means_ours(exc: Exception) -> bool:
    """Whether ``Service``, where the exception comes from, is ours and not a class of the user."""
    step = exc.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    return step is None or step.tb_frame.f_globals.get("Service", Service) is Service


def _is_method_of_the_class(exc: Exception) -> bool:
    """Whether a decorator was used with ``Service`` itself, so that it took a function for it."""
    if isinstance(exc, TypeError):
        return bool(_BAD_CALL.match(str(exc))) and str(exc).endswith(": 'self'")
    return isinstance(exc, AttributeError) and exc.name == Service._decorate.__name__
