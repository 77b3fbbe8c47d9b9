"""A worker that crashes or is cut off shows where it was."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Process

from ventu_lite import last_words
from ventu_lite.last_words import SHOW_AND_END, in_short

CRASH = "def guilty(): ctypes.string_at(0)\nguilty()"
# In C code that does not come back to Python: the only thread waits for a lock that it holds.
HANG = (
    "lock = threading.Lock()\ndef guilty():\n with lock: print('hangs'); lock.acquire()\nguilty()"
)
IMPORTS = (
    "import ctypes, faulthandler, os, signal, sys, threading\n"
    "from ventu_lite.last_words import enable_last_words\n"
)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Where a program may be written."""
    yield tmp_path / "program.py"


def run(path: Path, *, before: str = "", then: str) -> Process:
    """Return a process, to be entered, that says what it does when it crashes."""
    path.write_text(f"{IMPORTS}{before}\nenable_last_words()\n{then}\n")
    return Process(path)


def test_a_crash_is_shown(path: Path) -> None:
    with run(path, then=CRASH) as process:
        assert process.wait() == -signal.SIGSEGV
        assert "Fatal Python error: Segmentation fault" in process.output
        process.wait_for(r'program.py", line \d+ in guilty')


def test_who_hangs_is_shown_and_ends(path: Path) -> None:
    with run(path, then=HANG) as process:
        process.wait_for("hangs")
        process.signal(SHOW_AND_END)
        assert process.wait() == -SHOW_AND_END
        process.wait_for(r'program.py", line \d+ in guilty')


def test_all_threads_are_shown(path: Path) -> None:
    other = "def other(): print('waits'); threading.Event().wait()"
    with run(path, before=other, then=f"threading.Thread(target=other).start()\n{HANG}") as process:
        process.wait_for("waits")
        process.wait_for("hangs")
        process.signal(SHOW_AND_END)
        assert process.wait() == -SHOW_AND_END
        for name in ("other", "guilty"):
            process.wait_for(rf'program.py", line \d+ in {name}')


def test_a_crash_of_a_forked_process_is_shown(path: Path) -> None:
    with run(path, then=f"if os.fork(): os.wait(); sys.exit()\n{CRASH}") as process:
        assert process.wait() == 0
        process.wait_for(r'program.py", line \d+ in guilty')


@pytest.mark.parametrize("closed", ["sys.stderr.close()", "sys.stderr = None", "sys.stderr = {}"])
def test_without_standard_error_it_ends_all_the_same(path: Path, closed: str) -> None:
    with run(path, before=closed, then=HANG) as process:
        process.wait_for("hangs")
        process.signal(SHOW_AND_END)
        assert process.wait() == -SHOW_AND_END


def test_what_the_user_has_set_up_stays(path: Path) -> None:
    before = (
        "faulthandler.enable(open('crash', 'w'))\n"
        "signal.signal(signal.SIGUSR2, lambda *_: print('mine'))"
    )
    then = f"signal.raise_signal(signal.SIGUSR2)\n{CRASH}"
    with run(
        path, before=before.replace("'crash'", repr(str(path) + ".crash")), then=then
    ) as process:
        assert process.wait() == -signal.SIGSEGV
        assert process.output == "mine"
    assert "in guilty" in Path(f"{path}.crash").read_text()


def test_a_file_may_take_them_but_for_those_of_forked_processes(path: Path) -> None:
    code = f"enable_last_words(open({str(path)!r} + '.note', 'a'))"
    then = f"if not os.fork():\n {CRASH.replace(chr(10), chr(10) + ' ')}\nos.wait()\n{HANG}"
    path.write_text(f"{IMPORTS}{code}\n{then}\n")
    with Process(path) as process:
        process.wait_for("hangs")
        assert "Segmentation fault" in process.output
        process.signal(SHOW_AND_END)
        assert process.wait() == -SHOW_AND_END
    said = in_short(Path(f"{path}.note").read_text())
    assert re.fullmatch(rf"in <module> \({path}:\d+\) at guilty \({path}:\d+\)", said)


OURS = str(Path(last_words.__file__).with_name("isolation.py"))
THREAD = 'Thread 0x01 (most recent call first):\n  File "/lib/threading.py", line 5 in wait\n'


@pytest.mark.parametrize(
    ("stacks", "said"),
    [
        pytest.param(
            f"Fatal Python error: Bus error\n\n{THREAD}\nCurrent thread 0x02 (most recent call"
            ' first):\n  File "/lib/ai.py", line 1 in run\n  File "/lib/ai.py", line 7 in call\n'
            f'  File "/my/app.py", line 9 in act\n  File "{OURS}", line 3 in _call\n'
            '  File "<frozen runpy>", line 2 in main\n\nExtension modules: ai (total: 1)\n',
            "Bus error in act (/my/app.py:9) at run (/lib/ai.py:1)",
            id="crash",
        ),
        pytest.param(
            'Current thread 0x02 (most recent call first):\n  File "/my/app.py", line 9 in act\n'
            f'  File "{OURS}", line 3 in _call\n\n{THREAD}',
            "in act (/my/app.py:9)",
            id="the current thread is not the last",
        ),
        pytest.param(THREAD, "in wait (/lib/threading.py:5)", id="no thread is current"),
        pytest.param(
            "Current thread 0x02 (most recent call first):\n  <no Python frame>\n",
            "",
            id="no frame",
        ),
        pytest.param("Fatal Python error: Abor", "Abor", id="cut short"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_stacks_in_short(stacks: str, said: str) -> None:
    assert in_short(stacks) == said
