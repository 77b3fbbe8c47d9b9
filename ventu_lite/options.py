"""What the commands share: options, exit codes, errors that end in one line.

No Flask here: ``batching`` needs none, and starts in half the time without.
"""

import functools
import re
import sys
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar

import click

from .addresses import Address, TCPAddress, UnixAddress
from .errors import CannotListen, ConfigError, RegistrationError, ServiceNotFound
from .failures import shared_failures
from .signals import Stopped, left_by_signals

CRASHED: Final = 1  # the service is broken, or `check` found an answer that is
WRONG_USAGE: Final = 2  # as click has it: a bad option, no such app, no such service
CANNOT_LISTEN: Final = 3  # an address is taken, or cannot be reached for good

F = TypeVar("F", bound=Callable[..., Any])


# What is no option here, but is looked for, and what to say instead.
_NO_SECRETS: Final = "Others could read a secret here: set {} in the environment."
_ELSEWHERE: Final = {
    "--api-key": _NO_SECRETS.format("VENTU_API_KEY"),
    "--worker-secret": _NO_SECRETS.format("VENTU_WORKER_SECRET"),
    "--bind": "Say --host and --port.",
    "--debug": "`flask run --debug` is for that; --log-level debug tells more here.",
    "--host": "Clients ask the batching service: say --host there.",
    "--port": "Clients ask the batching service: say --port there.",
    "-p": "Say --port.",
    "--reload": "`flask run --debug` loads the file again when it has changed.",
    "--threads": "Stages run in worker processes: say `serve --workers`.",
    "--workers": "Start as many workers as you like, or let `serve --workers` start them.",
    "-w": "Say `serve --workers`.",
}


_BATCHING_OPTIONS: Final = (
    click.option("--host", help="Where clients connect.  [default: localhost]"),
    click.option("--port", type=int, help="0 lets the system choose.  [default: 8000]"),
    click.option(
        "--max-batch-size",
        type=int,
        metavar="N",
        help="Jobs in a batch.  [default: 32; of serve, what the app says]",
    ),
    click.option(
        "--max-wait",
        type=float,
        metavar="SECONDS",
        help="Longest that an idle worker waits for more jobs.  [default: 0.01]",
    ),
    click.option(
        "--max-wait-policy",
        type=click.Choice(["adaptive", "fixed"]),
        help="Wait while it is worth it, or always.  [default: adaptive]",
    ),
    click.option(
        "--capacity",
        type=int,
        metavar="N",
        help="Jobs that wait; beyond it 429.  [default: 1024]",
    ),
    click.option(
        "--timeout", type=float, metavar="SECONDS", help="From request to 504.  [default: 5]"
    ),
    click.option(
        "--batch-timeout",
        type=float,
        metavar="SECONDS",
        help="A worker that holds a batch longer is cut off.  [default: as --timeout]",
    ),
    click.option(
        "--max-body", metavar="SIZE", help="Largest body of one request.  [default: 10MiB]"
    ),
    click.option(
        "--max-message", metavar="SIZE", help="Largest batch, or its results.  [default: 256MiB]"
    ),
    click.option(
        "--max-held", metavar="SIZE", help="All bodies that wait; beyond it 429.  [default: 1GiB]"
    ),
    click.option("--max-connections", type=int, metavar="N", help="Clients.  [default: 10000]"),
    click.option("--no-retry", is_flag=True, help="Never run the jobs of a dead worker again."),
)


class Number(click.IntRange):
    """An integer in a range, which click is to call an integer."""

    name = "integer"


class Command(click.Command):
    """A command that tells where to say what is not said here: a secret, the name of the app."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the options.

        Raises:
            click.UsageError: There is something else.
        """
        ctx.allow_extra_args = True
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as exc:
            if exc.option_name in _ELSEWHERE:
                ctx.fail(f"No such option {exc.option_name!r}. {_ELSEWHERE[exc.option_name]}")
            raise
        if not rest:
            return rest
        if re.search(r"\.py$|:", rest[0]) and any("--app" in one.opts for one in self.params):
            ctx.fail(how_to_name(rest[0], self.name or ""))
        ctx.fail(f"Got unexpected extra argument ({' '.join(rest)})")


def how_to_name(file: str, command: str) -> str:
    """Say how a command learns which file to run."""
    return f"Name the app with --app: python -m ventu_lite --app {file} {command}"


def examples(*commands: str) -> str:
    """Return the end of a help text: commands that work."""
    lines = "\n".join(f"  {command}" for command in commands)
    return f"\b\nExamples:\n{lines}"  # \b is click's mark for lines that it must not wrap


def fail(message: str, code: int) -> NoReturn:
    """End the process with one line on standard error.

    ``serve`` logs why one of its workers ends; then the line is there only for the first.
    """
    failures = shared_failures()
    failures.leave_note(message)
    if failures.is_news(message):
        click.echo(f"Error: {message}", err=True)
    sys.exit(code)


def exits(fn: F) -> F:
    """Turn the errors of a command, and a signal, into one line and an exit code."""

    @functools.wraps(fn)
    def command(*args: Any, **kwargs: Any) -> Any:
        try:
            with left_by_signals():
                return fn(*args, **kwargs)
        except Stopped as exc:  # not from a service, which is done when it is told to stop
            fail(f"interrupted by {exc.signum.name}", 128 + exc.signum)
        except (ConfigError, RegistrationError, ServiceNotFound) as exc:
            fail(str(exc), WRONG_USAGE)
        except CannotListen as exc:
            fail(str(exc), CANNOT_LISTEN)

    return command  # type: ignore[return-value]  # it has the signature of fn


def log_options(fn: F) -> F:
    """Give a command the options of logging."""
    levels = click.Choice(["debug", "info", "warning", "error", "critical"], case_sensitive=False)
    formats = click.Choice(["text", "json"], case_sensitive=False)
    return _with(
        fn,
        click.option("--log-level", type=levels, help="What is worth a line.  [default: info]"),
        click.option(
            "--log-format", type=formats, help="For people or for machines.  [default: text]"
        ),
    )


def worker_address_options(fn: F) -> F:
    """Give a command the two ways to say where batching service and workers meet."""
    return _with(
        fn,
        click.option(
            "--unix", metavar="PATH", help="Where workers connect.  [default: batching.socket]"
        ),
        click.option("--tcp", metavar="HOST:PORT", help="Where workers connect, also from afar."),
    )


def batching_options(fn: F) -> F:
    """Give a command the options of the batching service; unset ones are ``None``."""
    return _with(fn, *_BATCHING_OPTIONS)


def listening_address(unix: str | None, tcp: str | None, default: str) -> Address:
    """Return where workers are to connect.

    Raises:
        ConfigError: It is no address.
        click.UsageError: Both were given.
    """
    if unix is not None and tcp is not None:
        raise click.UsageError("--unix and --tcp exclude each other: workers meet at one place")
    return UnixAddress(default if unix is None else unix) if tcp is None else TCPAddress.parse(tcp)


def _with(fn: F, *options: Callable[[F], F]) -> F:
    for option in reversed(options):
        fn = option(fn)
    return fn
