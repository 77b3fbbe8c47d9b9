"""A look at the environment: who runs us, and what somebody has meant to set and has not."""

import logging
import os
from typing import Final

from .config import PREFIX, unknown_variables
from .parent import PARENT_VARIABLE

log = logging.getLogger(__name__)

# What commands know as an option alone.
_OPTIONS: Final = frozenset(("WORKERS", "DEVICES", "APP", "SERVICE", "UNIX", "TCP"))


def is_imported_by_command() -> bool:
    """Whether the ``flask`` command, or one of ours, has imported the user's file."""
    return os.environ.get("FLASK_RUN_FROM_CLI") == "true"


def warn_of_unknown_variables() -> None:
    """Warn of variables that look like settings and are none, unless ``serve`` has done so."""
    if PARENT_VARIABLE in os.environ:
        return
    for name, near in unknown_variables().items():
        hint = f"; did you mean {near}?" if near else ""
        option = name.upper().removeprefix(PREFIX)
        if option in _OPTIONS:
            hint = f"; say --{option.lower()} on the command line"
        log.warning("%s is ignored: there is no such setting%s", name, hint)
