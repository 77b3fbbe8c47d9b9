"""A look at the environment, for what somebody has meant to set and has not."""

import logging
import os

from .config import unknown_variables
from .parent import PARENT_VARIABLE

log = logging.getLogger(__name__)


def warn_of_unknown_variables() -> None:
    """Warn of variables that look like settings and are none, unless ``serve`` has done so."""
    if PARENT_VARIABLE in os.environ:
        return
    for name, near in unknown_variables().items():
        hint = f"; did you mean {near}?" if near else ""
        log.warning("%s is ignored: there is no such setting%s", name, hint)
