"""``python -m ventu_lite``."""

import os
import sys
from collections.abc import Callable
from itertools import pairwise
from types import FrameType
from typing import Final

from .exits import quick_exit
from .signals import on_stop_signals

# The commands that run until they are told to stop.
_SERVICES: Final = ("serve", "batching", "worker")
# What has a value, as the next word, and may stand before the command.
_VALUED: Final = ("-A", "--app", "-e", "--env-file")


def main() -> None:
    """Run the command line and exit."""
    with quick_exit():
        run()


def run() -> None:
    """Run the command line; a process that has an end of its own calls this."""
    _take_standard_streams()
    with on_stop_signals(_leave):  # what is imported here takes longer than Python itself
        _command()()


def _leave(signum: int, frame: FrameType | None) -> None:
    """End a service without an error, another command as shells expect of one that was cut short.

    At once, as nothing is begun yet: Python now and then drops what is raised while it imports,
    and click has an exit code of its own for it.
    """
    os._exit(0 if _command_name() in _SERVICES else 128 + signum)


def _command_name() -> str:
    """Return the word that will be taken for the command, "" if there is none."""
    words = (word for before, word in pairwise(sys.argv) if before not in _VALUED)
    return next((word for word in words if not word.startswith("-")), "")


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
