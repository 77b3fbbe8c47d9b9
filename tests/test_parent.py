"""A worker knows whether the process that has started it is still there."""

import os
import subprocess
import sys

import pytest

from ventu_lite.parent import PARENT_VARIABLE, end_with_parent, is_orphan


@pytest.mark.parametrize(
    ("variable", "orphan"),
    [
        pytest.param(None, False, id="started-alone"),
        pytest.param(str(os.getppid()), False, id="parent-lives"),
        pytest.param("1999999999", True, id="parent-is-gone"),
        pytest.param("me", False, id="no-number"),
    ],
)
def test_an_orphan_is_known(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, orphan: bool
) -> None:
    monkeypatch.delenv(PARENT_VARIABLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(PARENT_VARIABLE, variable)
    assert is_orphan() == orphan


def test_who_was_started_alone_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of the system: without its C library it would be told."""
    monkeypatch.delenv(PARENT_VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "ctypes", None)  # to import it fails
    end_with_parent()
    monkeypatch.setenv(PARENT_VARIABLE, str(os.getppid()))
    if sys.platform.startswith("linux"):
        with pytest.raises(ImportError):
            end_with_parent()


CHILD = """
import os, sys, time
from ventu_lite.parent import PARENT_VARIABLE, end_with_parent
if os.fork():
    sys.stdin.read()
    os._exit(0)
os.environ[PARENT_VARIABLE] = str(os.getppid())
end_with_parent()
print("ready", flush=True)
while True: time.sleep(60)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can")
def test_a_process_ends_with_its_parent() -> None:
    """Even one that hangs: the pipe is closed when the child, too, is gone."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None and parent.stdin is not None
        assert parent.stdout.readline() == "ready\n"
        parent.stdin.close()
        assert parent.stdout.read() == ""
