"""What every test may count on: no setting of the machine reaches it."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from processes import short_directory

# A busy machine must not fail a property.
settings.register_profile("ventu_lite", deadline=None)
settings.load_profile("ventu_lite")

# nohup, and a shell that starts the tests in the background, have them ignored, and all processes
# would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("VENTU_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("FLASK_RUN_FROM_CLI", raising=False)  # flask's command leaves it behind


@pytest.fixture(autouse=True)
def _no_logging_of_other_tests() -> Iterator[None]:
    """Take back what a command that ran in this process did to logging."""
    root, package = logging.getLogger(), logging.getLogger("ventu_lite")
    levels = root.level, package.level
    yield
    root.setLevel(levels[0])
    package.setLevel(levels[1])
    logging.captureWarnings(False)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory to run processes in, short enough for a Unix socket in it."""
    with short_directory() as path:
        yield path
