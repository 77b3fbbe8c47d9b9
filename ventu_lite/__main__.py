"""``python -m ventu_lite``."""

import os
import sys
from collections.abc import Callable

from .exits import quick_exit
from .signals import ended_by_signals


def main() -> None:
    """Run the command line and exit."""
    with quick_exit():
        run()


def run() -> None:
    """Run the command line; a process that has an end of its own calls this."""
    _take_standard_streams()
    command: Callable[[], None] | None = None
    with ended_by_signals():  # what is imported here takes longer than Python itself
        command = _command()
    if command is not None:
        command()


def _take_standard_streams() -> None:
    """Open the null device where a standard stream is closed, before a socket gets its number.

    What a library of C prints would else be written to a client.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest number that is free
        os.set_inheritable(number, True)
    os.close(number)


def _command() -> Callable[[], None]:
    if sys.argv[1:2] != ["batching"]:
        from .cli import main

        return main
    from .batching.command import batching  # it has no app, so it starts without Flask

    return lambda: batching.main(args=sys.argv[2:], prog_name="python -m ventu_lite batching")


if __name__ == "__main__":
    main()
