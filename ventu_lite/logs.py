"""How log records look: lines for people, or one JSON object each for machines."""

import json
import logging
import re
import sys
import time
from typing import Final

from .config import LogFormat, LogLevel

TEXT: Final = "%(asctime)s %(levelname)-7s %(process)d %(name)s: %(message)s"
# What a log call may hang on its record with extra={...}.
_FIELDS: Final = ("request_id", "job_id", "service")


# What could hide or forge a line of a log on a terminal: control characters but tab and line feed,
# and what some programs take for the end of a line.
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


class TextFormatter(logging.Formatter):
    """Write a record as one line and, where it has more, further lines that are indented.

    A line that is not indented begins a record, so no text of a stranger, such as the message of an
    exception, can pass for one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines."""
        text = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], super().format(record))
        return text.replace("\n", "\n  ")


class JSONFormatter(logging.Formatter):
    """Write a record as one line of JSON, its traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        line |= {name: record.__dict__[name] for name in _FIELDS if name in record.__dict__}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line, default=str)  # in ASCII, right in every locale

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the time in UTC, as RFC 3339 wants it."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{seconds}.{int(record.msecs):03d}Z"


def configure(level: LogLevel, format: LogFormat) -> None:
    """Send all log records and warnings to standard error; only the command line calls this.

    Whoever has set logging up before, such as a user's file, keeps his handlers.
    """
    logging.basicConfig(level=level.upper(), handlers=[_to_stderr(format)])
    logging.getLogger(__package__).setLevel(level.upper())
    logging.captureWarnings(True)


def show_to_developer() -> None:
    """Show our own lines in a server for development, where nobody has set logging up.

    Werkzeug does so with its own. Else a model that loads for a minute gives no sign of life.
    """
    ours = logging.getLogger(__package__)
    if not ours.hasHandlers() and ours.level == logging.NOTSET:
        ours.addHandler(_to_stderr("text"))
        ours.setLevel(logging.INFO)


def _to_stderr(format: LogFormat) -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if format == "json" else TextFormatter(TEXT))
    return handler
