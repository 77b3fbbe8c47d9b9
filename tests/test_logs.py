"""Log records as lines for people and as JSON for machines."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from ventu_lite.logs import JSONFormatter, configure, show_to_developer


@contextlib.contextmanager
def bare_logging() -> Iterator[io.StringIO]:
    """Catch standard error and take the handlers away, pytest's own included, until the end."""
    stream = io.StringIO()
    loggers = logging.getLogger(), logging.getLogger("ventu_lite")
    before = [(logger.handlers[:], logger.level) for logger in loggers]
    try:
        for logger in loggers:
            logger.handlers[:] = []
            logger.setLevel(logging.WARNING if logger is loggers[0] else logging.NOTSET)
        with contextlib.redirect_stderr(stream):
            yield stream
    finally:
        for logger, (handlers, level) in zip(loggers, before, strict=True):
            logger.handlers[:] = handlers
            logger.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_hold_what_a_search_asks_for() -> None:
    with bare_logging() as stderr:
        configure("info", "json")
        logging.getLogger("ventu_lite.worker").warning(
            "lost %s",
            "unix:x",
            extra={"job_id": ["a"], "request_id": "b", "service": "c", "other": 1},
        )
        (line,) = lines(stderr)
        assert line.pop("time").endswith("Z")
        assert isinstance(line.pop("process"), int)
        assert line == {
            "level": "warning",
            "logger": "ventu_lite.worker",
            "message": "lost unix:x",
            "job_id": ["a"],
            "request_id": "b",
            "service": "c",
        }


def test_a_text_line_that_is_not_indented_begins_a_record() -> None:
    with bare_logging() as stderr:
        configure("info", "text")
        try:
            raise ValueError("no\n2030-01-01 forged \x1b[2K \x9b \u2028")
        except ValueError:
            logging.getLogger("ventu_lite").exception("one\r\ntwo\tthree")
        first, *others = stderr.getvalue().split("\n")[:-1]
    assert first.endswith("ventu_lite: one\\r")
    assert others[0] == "  two\tthree"
    assert others[-1] == "  2030-01-01 forged \\x1b[2K \\x9b \\u2028"
    assert all(line.startswith("  ") for line in others)


def test_a_json_line_stays_one_line_whatever_it_says() -> None:
    with bare_logging() as stderr:
        configure("info", "json")
        try:
            raise ValueError("two\nlines \u2028 and \ud800")
        except ValueError:
            logging.getLogger("x").exception("one\ntwo\u2028three", stack_info=True)
        assert stderr.getvalue().isascii()
        (line,) = lines(stderr)
        assert line["message"] == "one\ntwo\u2028three"
        assert line["traceback"].startswith("Traceback (most recent call last)")
        assert line["traceback"].endswith("ValueError: two\nlines \u2028 and \ud800")
        assert line["stack"].startswith("Stack (most recent call last)")


def test_the_time_of_a_json_line_is_utc() -> None:
    record = logging.makeLogRecord({"created": 1.25, "msecs": 250.0, "msg": "x"})
    assert json.loads(JSONFormatter().format(record))["time"] == "1970-01-01T00:00:01.250Z"


def test_text_lines_are_for_people() -> None:
    with bare_logging() as stderr:
        configure("info", "text")
        logging.getLogger("ventu_lite.worker").info("connected to %s", "unix:x")
        assert stderr.getvalue().endswith(" ventu_lite.worker: connected to unix:x\n")
        assert " INFO " in stderr.getvalue()


def test_the_level_is_heeded() -> None:
    with bare_logging() as stderr:
        configure("error", "text")
        logging.getLogger("ventu_lite.worker").warning("quiet")
        logging.getLogger("someone").warning("quiet")
        assert not stderr.getvalue()


def test_our_level_holds_where_the_handlers_are_someone_elses() -> None:
    with bare_logging() as stderr:
        stream = io.StringIO()
        logging.basicConfig(format="mine: %(message)s", stream=stream)
        configure("debug", "json")
        logging.getLogger("ventu_lite.worker").debug("heard")
        assert stream.getvalue() == "mine: heard\n"
        assert not stderr.getvalue()


def test_warnings_of_python_are_log_records_too() -> None:
    """Otherwise they would stand between the JSON lines as they are."""
    with bare_logging() as stderr:
        configure("info", "json")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning("old", DeprecationWarning, "model.py", 3)
        (line,) = lines(stderr)
        assert line["logger"] == "py.warnings"
        assert "DeprecationWarning: old" in line["message"]


def shown() -> logging.Handler | None:
    """Return the handler that shows our lines to a developer, if there is one."""
    show_to_developer()
    show_to_developer()
    logging.getLogger("ventu_lite.runtime").info("ready")
    logging.getLogger("someone").info("not ours")
    ours = logging.getLogger("ventu_lite")
    assert len(ours.handlers) <= 1
    return ours.handlers[0] if ours.handlers else None


def test_a_developer_sees_our_lines_without_setting_anything_up() -> None:
    with bare_logging() as stderr:
        assert shown()
        (line,) = stderr.getvalue().splitlines()
        assert line.endswith(" ventu_lite.runtime: ready")


@pytest.mark.parametrize("is_set_up_by", ["root", "level"])
def test_who_has_set_logging_up_keeps_it(is_set_up_by: str) -> None:
    with bare_logging() as stderr:
        if is_set_up_by == "root":
            logging.basicConfig(level="WARNING")
        if is_set_up_by == "level":
            logging.getLogger("ventu_lite").setLevel("ERROR")
        assert shown() is None
        assert not stderr.getvalue()
