"""What the commands share."""

import click
import pytest
from click.testing import CliRunner

from ventu_lite.addresses import TCPAddress, UnixAddress
from ventu_lite.errors import CannotListen, ConfigError, RegistrationError, ServiceNotFound
from ventu_lite.options import CANNOT_LISTEN, WRONG_USAGE, exits, listening_address


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError, WRONG_USAGE),
        (RegistrationError, WRONG_USAGE),
        (ServiceNotFound, WRONG_USAGE),
        (CannotListen, CANNOT_LISTEN),
    ],
)
def test_an_error_ends_a_command_with_one_line(error: type[Exception], code: int) -> None:
    @click.command
    @exits
    def command() -> None:
        raise error("what to do")

    result = CliRunner().invoke(command)
    assert (result.exit_code, result.output) == (code, "Error: what to do\n")


def test_an_unexpected_error_keeps_its_traceback() -> None:
    @click.command
    @exits
    def command() -> None:
        raise KeyError

    assert isinstance(CliRunner().invoke(command).exception, KeyError)


def test_workers_meet_at_one_place() -> None:
    assert listening_address(None, None, "default") == UnixAddress("default")
    assert listening_address("given", None, "default") == UnixAddress("given")
    assert listening_address(None, ":1", "default") == TCPAddress("127.0.0.1", 1)
    with pytest.raises(click.UsageError, match="exclude each other"):
        listening_address("given", ":1", "default")
