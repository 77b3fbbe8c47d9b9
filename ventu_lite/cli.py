"""The commands. They parse, call one function of a shell, and turn its errors into exit codes."""

import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
from flask.cli import ScriptInfo, pass_script_info

from .addresses import Address, TCPAddress, UnixAddress
from .batching.command import batching, warn_if_open
from .config import Config, LogFormat, LogLevel
from .errors import ConfigError
from .failures import shared_failures
from .loading import AppGroup, app_options, load_service
from .options import (
    CANNOT_LISTEN,
    CRASHED,
    Command,
    Number,
    batching_options,
    examples,
    exits,
    fail,
    listening_address,
    log_options,
)
from .signals import ended_by_signals
from .tracebacks import in_one_line, traceback_for

if TYPE_CHECKING:
    from .health import Readiness
    from .service import Service

log = logging.getLogger(__name__)

group = AppGroup(
    name="ventu_lite",
    help="Serve the model of a Flask app that holds a ventu_lite service.",
    epilog=examples(
        "flask --app samples/sentiment.py run",
        "python -m ventu_lite --app samples/sentiment.py serve --workers 2",
        "python -m ventu_lite batching --unix batching.socket",
        "python -m ventu_lite --app samples/sentiment.py worker --unix batching.socket",
        "python -m ventu_lite --app samples/sentiment.py check",
    ),
    add_default_commands=False,
    add_version_option=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
group = click.version_option(package_name="ventu-lite", prog_name="ventu_lite")(group)


group.add_command(batching)


@group.command(
    cls=Command,
    short_help="Run the stages for a batching service.",
    epilog=examples(
        "python -m ventu_lite worker --unix batching.socket",
        "python -m ventu_lite --app samples/sentiment.py worker --tcp 127.0.0.1:8765",
    ),
    with_appcontext=False,
)
@click.option(
    "--unix", metavar="PATH", help="Where the batching service is.  [default: batching.socket]"
)
@click.option("--tcp", metavar="HOST:PORT", help="Where it is, on this or another machine.")
@click.option("--max-message", metavar="SIZE", help="Largest message to read.  [default: 256MiB]")
@click.option(
    "--metrics-port",
    type=Number(0, 65535),
    help="Serve metrics and probes.  [default: off]",
)
@click.option("--metrics-host", default="127.0.0.1", show_default=True, help="Where to serve them.")
@app_options
@log_options
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
    """
    if unix is not None and tcp is not None:
        raise click.UsageError("--unix and --tcp exclude each other: a worker joins one service")
    directory = os.getcwd()
    with ended_by_signals():
        _, mounted, config = load_service(
            info, service_name, log_level=log_level, log_format=log_format
        )
        from .health import Readiness

        config = config.override(max_message=max_message)
        address = _peer(_seen_from(directory, config.socket if unix is None else unix), tcp)
        readiness = Readiness(str(address))
        if metrics_port is not None:
            _serve_metrics(metrics_host, metrics_port, readiness)
        _run_worker(mounted.service, address, config, readiness)


def _seen_from(directory: str, path: str) -> str:
    """Return a path that was given in a directory; the user's file may have changed to another."""
    return path if os.getcwd() == directory else os.path.join(directory, path)


def _peer(unix: str, tcp: str | None) -> Address:
    if tcp is None:
        return UnixAddress(unix)
    address = TCPAddress.parse(tcp)
    if not address.port:
        raise ConfigError(f"--tcp {tcp}: nobody listens on port 0; which port is it?")
    return address


def _run_worker(
    service: "Service", address: Address, config: Config, readiness: "Readiness"
) -> None:
    from .worker_process import run_worker

    try:
        run_worker(service, address, config, readiness)
    except (Exception, SystemExit) as exc:  # sys.exit() in a set-up must not pass for success
        _tell_why_it_ends(exc)
        sys.exit(CRASHED)


def _tell_why_it_ends(exc: BaseException) -> None:
    """Log a traceback, unless another worker of the same ``serve`` has logged it."""
    failures = shared_failures()
    failures.leave_note(exc)
    if failures.is_news(exc) or log.isEnabledFor(logging.DEBUG):
        log.error("the worker ends: %s", in_one_line(exc), exc_info=traceback_for(exc, log))


def _serve_metrics(host: str, port: int, readiness: "Readiness") -> None:
    from .metrics_port import serve

    try:
        port = serve(host, port, readiness.why_not)
    except OSError as exc:
        fail(f"cannot serve metrics on {host}:{port}: {exc.strerror or exc}", CANNOT_LISTEN)
    log.info("metrics on http://%s/metrics", TCPAddress(host, port).authority)


@group.command(
    cls=Command,
    short_help="Run everything: batching service and workers.",
    epilog=examples(
        "python -m ventu_lite serve --workers 2",
        "python -m ventu_lite --app samples/sentiment.py serve --port 8000 --timeout 30",
    ),
    with_appcontext=False,
)
@click.option(
    "--workers",
    type=Number(1),
    default=1,
    show_default=True,
    help="Processes, each with a model of its own.",
)
@click.option(
    "--devices", metavar="0,1", default="", help="CUDA_VISIBLE_DEVICES of the workers, in turn."
)
@click.option("--bypass-hooks", is_flag=True, help="Serve although hooks of the app are skipped.")
@click.option("--unix", metavar="PATH", help="Where workers that you start may connect, too.")
@click.option("--tcp", metavar="HOST:PORT", help="Where workers that you start may connect, too.")
@batching_options
@app_options
@log_options
@pass_script_info
@exits
def serve(
    info: ScriptInfo,
    /,
    workers: int,
    devices: str,
    bypass_hooks: bool,
    unix: str | None,
    tcp: str | None,
    no_retry: bool,
    service_name: str | None,
    log_level: LogLevel | None,
    log_format: LogFormat | None,
    **flags: Any,
) -> None:
    """Take HTTP, form batches, and run the stages in supervised worker processes.

    The routes of the service are answered without Flask; all others are those of the app.
    SIGTERM answers what was accepted, then ends.
    """
    directory = os.getcwd()
    with ended_by_signals(), _shared_metrics():
        app, mounted, config = load_service(
            info, service_name, log_level=log_level, log_format=log_format
        )
        from .serve import Plan, refuse_skipped_hooks
        from .serve import serve as run

        if not bypass_hooks:
            refuse_skipped_hooks(app, mounted)
        config = config.override(**flags)
        guests_at = None
        if unix is not None or tcp is not None:
            unix = None if unix is None else _seen_from(directory, unix)
            guests_at = listening_address(unix, tcp, config.socket)
            warn_if_open(guests_at, config)
        listed = [device.strip() for device in devices.split(",") if device.strip()]
        if len(listed) > workers:
            log.warning("device(s) %s not used: say --workers %d", listed[workers:], len(listed))
        plan = Plan(
            app,
            mounted,
            info.app_import_path,
            directory,
            workers,
            devices=listed,
            guests_at=guests_at,
            no_retry=no_retry,
            environment=_as_environment(log_level=log_level, log_format=log_format, **flags),
        )
        sys.exit(run(plan, config))


@group.command(
    cls=Command,
    short_help="Try the examples alone and in batches, measure batches.",
    epilog=examples(
        "python -m ventu_lite check",
        "python -m ventu_lite --app samples/sentiment.py check",
    ),
    with_appcontext=False,
)
@app_options
@log_options
@pass_script_info
@exits
def check(
    info: ScriptInfo,
    service_name: str | None,
    log_level: LogLevel | None,
    log_format: LogFormat | None,
) -> None:
    """Run the examples alone and in batches, compare the answers, and measure batches.

    Exit code 1 means that an answer is wrong, or depends on what is asked beside it; 2 that nothing
    could be asked.
    """
    _, mounted, _ = load_service(info, service_name, log_level=log_level, log_format=log_format)
    from .check import check as run

    log.info("setting up service %r, then running its examples", mounted.service.name)
    try:
        report = run(mounted.service)
    except ConfigError:
        raise
    except Exception as exc:
        said, shown = in_one_line(exc), traceback_for(exc, log)
        log.error("the service cannot be checked: %s", said, exc_info=shown)
        sys.exit(CRASHED)
    for line in report.lines():
        click.echo(line)
    sys.exit(CRASHED if report.complaints else 0)


def _as_environment(**flags: Any) -> dict[str, str]:
    """Return flags as variables, so that the workers have the settings of the front."""
    return {f"VENTU_{name.upper()}": str(flag) for name, flag in flags.items() if flag is not None}


@contextlib.contextmanager
def _shared_metrics() -> Iterator[None]:
    """Give all processes of a service one directory for metrics, unless there is one.

    To be entered before prometheus_client is imported, which looks for it then.
    """
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        yield
        return
    folder = tempfile.mkdtemp(prefix="ventu-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Run the command line and exit."""
    group.main(prog_name="python -m ventu_lite")
