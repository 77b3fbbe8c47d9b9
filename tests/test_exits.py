"""How a process of ours ends."""

import subprocess
import sys

import pytest

START = "from ventu_lite.exits import quick_exit\nimport atexit, sys, threading, time\n"


@pytest.mark.parametrize(
    ("last", "code", "said"),
    [
        ("pass", 0, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('why')", 1, "why"),
        ("raise KeyError('lost')", 1, "KeyError: 'lost'"),
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt"),
        ("sys.stdout.close()", 0, ""),
    ],
)
def test_the_code_of_a_process_is_that_of_its_end(last: str, code: int, said: str) -> None:
    done = run(f"with quick_exit():\n    {last}")
    assert done.returncode == code
    assert (done.stderr.splitlines() or [""])[-1] == said


def test_what_was_begun_is_done() -> None:
    done = run(
        """
with quick_exit():
    atexit.register(print, "at exit")
    ends = threading.Event()
    threading.Thread(target=lambda: (ends.wait(), time.sleep(0.05), print("thread"))).start()
    print("block")
    ends.set()
"""
    )
    assert done.stdout.split("\n") == ["block", "thread", "at exit", ""]


def run(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", START + code], capture_output=True, text=True)
