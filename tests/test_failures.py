"""A failure that comes again and again is told at length once."""

import faulthandler
import os
import re
import signal
from pathlib import Path

import pytest
from processes import serve, short_directory

from ventu_lite.failures import FAILURES_VARIABLE, Failures, shared_failures, take_note

FAILS = """
import os
from ventu_lite import Service

{top}

service = Service("fails", {examples})

@service.setup
def load() -> None:
    {set_up}

@service.infer
def infer(item: int) -> int:
    {infer}

app = service.app
"""


FINE = {"top": "", "examples": "", "set_up": "return", "infer": "return item"}


def failure(message: str = "no weights") -> OSError:
    """Return an exception that was raised, always at the same line."""
    try:
        raise OSError(message)
    except OSError as exc:
        return exc


def other() -> OSError:
    try:
        raise OSError("no weights")
    except OSError as exc:
        return exc


@pytest.mark.parametrize("shared", [False, True])
def test_a_failure_is_news_once_for_each_line_whatever_it_says(
    tmp_path: Path, shared: bool
) -> None:
    failures = Failures(str(tmp_path) if shared else "")
    assert failures.is_news(failure())
    assert not failures.is_news(failure("no weights at 0x7f00"))
    assert failures.is_news(other())


def test_what_was_said_is_news_once(tmp_path: Path) -> None:
    failures = Failures(str(tmp_path))
    assert failures.is_news("no such service")
    assert not failures.is_news("no such service")
    assert not Failures(str(tmp_path)).is_news("no such service")
    assert failures.is_news("another")


def test_a_note_is_one_line(tmp_path: Path) -> None:
    Failures(str(tmp_path)).leave_note("two\n lines")
    assert take_note(str(tmp_path), os.getpid()) == "two lines"


def test_a_cause_makes_a_difference() -> None:
    failures = Failures()
    outer = ValueError("warm-up failed")
    assert failures.is_news(outer)
    outer.__cause__ = failure()
    assert failures.is_news(outer)
    outer.__cause__ = failure()
    assert not failures.is_news(outer)


def test_what_one_process_has_told_is_no_news_in_another(tmp_path: Path) -> None:
    assert Failures(str(tmp_path)).is_news(failure())
    assert not Failures(str(tmp_path)).is_news(failure())


def test_without_the_shared_directory_it_is_told_twice_rather_than_never(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    assert Failures(gone).is_news(failure())
    assert Failures(gone).is_news(failure())
    Failures(gone).leave_note(failure())
    assert take_note(gone, os.getpid()) == ""


def test_a_note_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAILURES_VARIABLE, str(tmp_path))
    shared_failures().leave_note(failure())
    said = take_note(str(tmp_path), os.getpid())
    assert said.startswith(f"OSError: no weights ({__file__}:")
    assert take_note(str(tmp_path), os.getpid()) == ""


def test_stacks_of_a_crash_are_told_in_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAILURES_VARIABLE, str(tmp_path))
    with shared_failures().open_note() as note:  # type: ignore[union-attr]  # there is a directory
        faulthandler.dump_traceback(note)
    here = test_stacks_of_a_crash_are_told_in_short.__name__
    assert f" at {here} ({__file__}:" in take_note(str(tmp_path), os.getpid())


def test_a_process_alone_leaves_no_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(FAILURES_VARIABLE, raising=False)
    shared_failures().leave_note(failure())
    assert shared_failures().open_note() is None
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        pytest.param(
            {"set_up": 'raise OSError("no weights")'},
            r"OSError: no weights \(\S+/app.py:11\)",
            id="set-up",
        ),
        pytest.param(
            {"infer": 'raise OSError("no device")', "examples": "examples=[1]"},
            r"warm-up with example 1 failed: OSError: no device \(\S+/app.py:15\)",
            id="warm-up",
        ),
        pytest.param(
            {"top": 'if "VENTU_PARENT_PROCESS" in os.environ: raise OSError("not here")'},
            r"OSError: not here \(\S+/app.py:5\)",
            id="import",
        ),
    ],
)
def test_workers_that_fail_show_one_traceback_and_a_line_for_each_restart(
    parts: dict[str, str], reason: str
) -> None:
    with short_directory() as directory:
        (directory / "app.py").write_text(FAILS.format(**(FINE | parts)))
        with serve("app.py", "--workers", "2", cwd=directory) as server:
            restarts = rf"WARNING .* before it was ready: {reason}; it is started again (at|in) "
            server.process.wait_for(restarts, count=4)
            assert server.process.stop() == 0
            output = server.process.output
    assert output.count("Traceback (most recent call last)") == 1
    assert "/ventu_lite/" not in output


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        pytest.param(
            "import nowhere_to_be_found",
            r"\S+/app.py:\d+: the app imports the module 'nowhere_to_be_found', which ",
            id="module",
        ),
        pytest.param("service.infer(int)", r"\S+/app.py:\d+: int .* too late: .*; it", id="misuse"),
        pytest.param("app = Service('b', request=int, response=int)", "", id="no app"),
        pytest.param("def broken(:", r"SyntaxError: .* \(\S+/app.py:\d+\)", id="syntax"),
    ],
)
def test_a_file_that_was_broken_after_the_start_is_told_once_and_in_a_line_for_each_restart(
    last: str, reason: str
) -> None:
    with short_directory() as directory:
        file = directory / "app.py"
        file.write_text(FAILS.format(**FINE))
        with serve("app.py", cwd=directory) as server:
            pid = int(server.process.wait_for(r"process (\d+), is ready")[1])
            file.write_text(file.read_text() + last)
            os.kill(pid, signal.SIGKILL)
            server.process.wait_for(f"WARNING .* before it was ready: {reason}", count=2)
            assert server.infer(b"1").status == 503
            assert server.process.stop() == 0
            output = server.process.output
    assert len(re.findall("^Error: |^SyntaxError: ", output, re.MULTILINE)) == 1
    assert "Traceback" not in output
