"""The user's file: find the app, load it and the service in it, or say what is wrong and where."""

import difflib
import glob
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from flask import Flask
from flask.cli import FlaskGroup, ScriptInfo, prepare_import

from .config import Config, LogFormat, LogLevel
from .errors import ServiceNotFound
from .misuse import explain_failure
from .options import how_to_name
from .service import Service
from .variables import warn_of_unknown_variables

if TYPE_CHECKING:
    from .mounting import Mounted

F = TypeVar("F", bound=Callable[..., Any])

# They lead to what is read when the user's file was imported, which may change the directory.
_PATHS: Final = ("PROMETHEUS_MULTIPROC_DIR", "VENTU_API_KEY_FILE", "VENTU_WORKER_SECRET_FILE")

# What stands between a path and the name of an app in it, as Flask has it.
_BEFORE_NAME: Final = re.compile(r":(?![\\/])")


class AppGroup(FlaskGroup):
    """Flask's own group, so that an app is found as ``flask run`` finds it.

    It knows its commands without loading the app or the plugins of ``flask``: one of these
    alone takes as long to import as everything that a worker needs.
    """

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return one of our commands."""
        if name.endswith(".py"):
            raise click.UsageError(how_to_name(name, "serve"), ctx)
        command = click.Group.get_command(self, ctx, name)
        if command is None and not (name.startswith("-") or ctx.resilient_parsing):
            there_are = ", ".join(self.list_commands(ctx))
            ctx.fail(f"No such command {name!r}. There are {there_are}; on a laptop, `flask run`.")
        return command

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
    service = click.option(
        "--service", "service_name", metavar="NAME", help="Which service, if the app has several."
    )
    return app(service(fn))


def find_service(app: Flask, name: str | None, module: ModuleType | None = None) -> "Mounted":
    """Return the service of an app, and where it is mounted.

    Args:
        app: The app.
        name: That of the service, ``None`` for the only one.
        module: Where the app was found, for messages.

    Raises:
        ServiceNotFound: There is none, none of that name, or several and no name was given.
    """
    from .mounting import services_of

    mounted = services_of(app)
    file = getattr(module, "__file__", None)
    holder = f"the app in {file}" if file else f"the app {app.name!r}"
    if not mounted:
        raise ServiceNotFound(
            f"{holder} holds no service; add"
            " `app.register_blueprint(service.blueprint)`, or use `app = service.app`"
        )
    if name is None and len(mounted) > 1:
        raise ServiceNotFound(
            f"{holder} holds several services: {_names(mounted)};"
            f" choose one, such as --service {next(iter(mounted))!r}"
        )
    chosen = next(iter(mounted)) if name is None else name
    if chosen not in mounted:
        raise ServiceNotFound(
            f"{holder} holds no service {chosen!r}; it has {_names(mounted)}"
            + _about_one_beside_the_app(chosen, module)
        )
    return mounted[chosen]


def _about_one_beside_the_app(name: str, module: ModuleType | None) -> str:
    """Tell how to have a service that the file makes, but that is not in its app."""
    made = [key for key, one in vars(module).items() if _is_service(one, name)] if module else []
    if not made:
        return ""
    return (
        f". The service {name!r} is in the file, but not in the app: add"
        f" `app.register_blueprint({made[0]}.blueprint, url_prefix=...)`"
    )


def _is_service(one: object, name: str) -> bool:
    return isinstance(one, Service) and one.name == name


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

    _pin_paths()
    claim_room()  # the user's file may make series of its own
    operator = Config().override(log_level=log_level, log_format=log_format)
    if "log_format" in operator.model_fields_set:
        configure(operator.log_level, operator.log_format)
    app = _load_app(info, is_debugging=operator.log_level == "debug")
    mounted = find_service(app, name, _module_of(info))
    config = mounted.service.config.override(log_level=log_level, log_format=log_format)
    configure(config.log_level, config.log_format)
    warn_of_unknown_variables()
    return app, mounted, config


def _pin_paths() -> None:
    for name in _PATHS:
        if path := os.environ.get(name):
            os.environ[name] = os.path.abspath(path)


def _module_of(info: ScriptInfo) -> ModuleType | None:
    """Return the module in which Flask has found the app: named, or one of the usual two."""
    given = info.app_import_path
    paths = [_path_in(given)] if given else ["wsgi.py", "app.py"]
    return next(filter(None, map(sys.modules.get, map(prepare_import, paths))), None)


def _path_in(given: str) -> str:
    return _BEFORE_NAME.split(given, maxsplit=1)[0]


def _require_file(given: str) -> None:
    """Check that a path leads to a file: Flask would import any other module of its name.

    Raises:
        ServiceNotFound: It does not.
    """
    path = _path_in(given)
    is_path = path.endswith(".py") or os.path.dirname(path)
    if not is_path or os.path.exists(path) or _leads_to_module(path):
        return
    wanted = Path(os.path.abspath(path))
    folder = next(one for one in wanted.parents if os.path.isdir(one))
    missing = wanted.relative_to(folder).parts[0]
    near = " or ".join(_similar(missing, folder))
    hint = f"; did you mean {near}?" if near else ""
    raise ServiceNotFound(f"cannot find the app {given}: {folder} has no {missing}{hint}")


def _leads_to_module(path: str) -> bool:
    """Whether a path without ``.py`` may be one of a module: ``src/app``, ``src/package.app``.

    Its file may be compiled, and may say for which Python: ``app.cpython-311-darwin.so``.
    """
    folder, name = os.path.split(path)
    head = os.path.join(folder, name.partition(".")[0])
    is_there = os.path.exists(head) or bool(glob.glob(f"{glob.escape(head)}.*"))
    return is_there and not path.endswith(".py")


def _similar(name: str, folder: Path) -> list[str]:
    """Return the names of directories and Python files that this one may have been meant for."""
    if not os.access(folder, os.R_OK):
        return []
    there = [one for one in folder.iterdir() if one.suffix == ".py" or os.path.isdir(one)]
    # That all end in .py makes none of them alike.
    near = difflib.get_close_matches(Path(name).stem, {one.stem for one in there})
    return [one.name for stem in near for one in there if one.stem == stem]


def _load_app(info: ScriptInfo, *, is_debugging: bool) -> Flask:
    if info.app_import_path:
        _require_file(info.app_import_path)
    try:
        return info.load_app()
    except Exception as exc:
        if is_debugging:
            traceback.print_exc()
        explain_failure(exc, is_debugging=is_debugging)
