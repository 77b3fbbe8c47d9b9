"""The commands. They parse, call one function of a shell, and turn its errors into exit codes."""

import functools
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click
from flask import Flask
from flask.cli import FlaskGroup, NoAppException, ScriptInfo, pass_script_info

from .addresses import Address, TCPAddress, UnixAddress
from .config import Config, LogFormat, LogLevel
from .errors import ConfigError, RegistrationError, ServiceNotFound

if TYPE_CHECKING:
    from .service import Service

log = logging.getLogger(__name__)

CRASHED: Final = 1  # the service, or the contract that `check` looks after, is broken
WRONG_USAGE: Final = 2  # as click has it: a bad option, no such app, no such service
CANNOT_LISTEN: Final = 3  # an address is taken, or cannot be reached for good

F = TypeVar("F", bound=Callable[..., Any])


class _Group(FlaskGroup):
    """Flask's own group, so that an app is found as ``flask run`` finds it.

    It knows its commands without loading the app or the plugins of ``flask``: one of these
    alone takes as long to import as everything that a worker needs.
    """

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return click.Group.get_command(self, ctx, name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return click.Group.list_commands(self, ctx)


_EPILOG = """\b
Examples:
  flask --app samples/sentiment.py run
  python -m ventu_lite --app samples/sentiment.py worker --unix batching.socket
  python -m ventu_lite --app samples/sentiment.py worker --tcp 127.0.0.1:8765
"""

group = _Group(
    name="ventu_lite",
    help="Serve the model of a Flask app that holds a ventu_lite service.",
    epilog=_EPILOG,
    add_default_commands=False,
    add_version_option=False,
)
group = click.version_option(package_name="ventu-lite", prog_name="ventu_lite")(group)


def common_options(fn: F) -> F:
    """Give a command the options that all have."""
    options = [
        click.option("--service", "service_name", metavar="NAME", help="Which, of several."),
        click.option(
            "--log-level",
            type=click.Choice(["debug", "info", "warning", "error", "critical"]),
            help="What is worth a line.  [default: info]",
        ),
        click.option(
            "--log-format",
            type=click.Choice(["text", "json"]),
            help="For people or for machines.  [default: text]",
        ),
    ]
    for option in reversed(options):
        fn = option(fn)
    return fn


def exits(fn: F) -> F:
    """Turn the errors of a command into one line and an exit code."""

    @functools.wraps(fn)
    def command(*args: Any, **kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        except (ConfigError, RegistrationError, ServiceNotFound) as exc:
            _exit(str(exc), WRONG_USAGE)
        except NoAppException as exc:
            _exit(f"{exc.message}\n\n{_HOW_TO_HAVE_AN_APP}", WRONG_USAGE)

    return command  # type: ignore[return-value]  # it has the signature of fn


_HOW_TO_HAVE_AN_APP = (
    "A file with a service needs a line `app = service.app` below the decorated functions;"
    " name it with `python -m ventu_lite --app FILE.py ...`."
)


def _exit(message: str, code: int) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)


def find_service(app: Flask, name: str | None) -> "Service":
    """Return the service of an app.

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
    return mounted[chosen].service


def _names(mounted: dict[str, Any]) -> str:
    return ", ".join(repr(name) for name in mounted)


def _set_up_logging(config: Config) -> None:
    from .logs import configure

    configure(config.log_level, config.log_format)


@group.command(short_help="Run the stages for a batching service.")
@click.option("--unix", metavar="PATH", help="Where it listens.  [default: batching.socket]")
@click.option("--tcp", metavar="HOST:PORT", help="Where it listens, on this or another machine.")
@click.option("--max-message", metavar="SIZE", help="Largest message to read.  [default: 256MiB]")
@click.option(
    "--metrics-port", type=click.IntRange(0, 65535), help="Serve metrics.  [default: off]"
)
@click.option("--metrics-host", default="127.0.0.1", show_default=True, help="Where to serve them.")
@common_options
@pass_script_info
@exits
def worker(
    info: ScriptInfo,
    unix: str | None,
    tcp: str | None,
    max_message: str | None,
    metrics_port: int | None,
    metrics_host: str,
    service_name: str | None,
    log_level: LogLevel | None,
    log_format: LogFormat | None,
) -> None:
    """Load the model, then take batches from a batching service until SIGTERM.

    The batching service may be started before or after; the worker waits for it.

    \b
    Examples:
      python -m ventu_lite worker --unix batching.socket
      python -m ventu_lite --app samples/sentiment.py worker --tcp 127.0.0.1:8765
    """  # noqa: D301  # \b is click's mark for lines that it must not wrap
    if unix and tcp:
        raise click.UsageError("--unix and --tcp exclude each other: a worker joins one service")
    service = find_service(info.load_app(), service_name)
    config = service.config.override(
        max_message=max_message, log_level=log_level, log_format=log_format
    )
    _set_up_logging(config)
    address: Address = TCPAddress.parse(tcp) if tcp else UnixAddress(unix or config.socket)
    if metrics_port is not None:
        _serve_metrics(metrics_host, metrics_port)
    _run_worker(service, address, config)


def _run_worker(service: "Service", address: Address, config: Config) -> None:
    from .worker_process import run_worker

    try:
        run_worker(service, address, config)
    except Exception:
        log.exception("the worker ends")
        sys.exit(CRASHED)


def _serve_metrics(host: str, port: int) -> None:
    from .exposition import serve

    try:
        port = serve(host, port)
    except OSError as exc:
        _exit(f"cannot serve metrics on {host}:{port}: {exc.strerror or exc}", CANNOT_LISTEN)
    log.info("metrics on http://%s:%d/metrics", host, port)


def main() -> NoReturn:
    """Run the command line."""
    group.main(prog_name="python -m ventu_lite")
    raise AssertionError("click exits by itself")
