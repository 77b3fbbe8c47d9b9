"""The supervisor, with tiny processes in place of workers."""

import asyncio
import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import TIMEOUT, short_directory
from waiting import turn_until

from ventu_lite.child import how
from ventu_lite.http.server import run
from ventu_lite.supervisor import Supervisor, next_delay

# Appends a line to the file "log" and waits for its end; signals are answered unless "deaf" exists.
WORKER = """
import os, signal, sys, time
say = lambda text: os.write(log, f"{os.getpid()} {text}\\n".encode())
log = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for signum in (signal.SIGTERM, signal.SIGUSR2):
    if os.path.exists("deaf"): signal.signal(signum, signal.SIG_IGN)
say(" ".join(["started", os.environ.get("CUDA_VISIBLE_DEVICES", "-"), os.environ.get("X", "-"),
              str(os.getsid(0) == os.getpid())]))
if os.path.exists("fail"): sys.exit(7)
while True: time.sleep(60)
"""


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with short_directory() as path:
        monkeypatch.chdir(path)
        yield path


@pytest.mark.parametrize(
    ("delays", "was_ready"),
    [
        pytest.param(
            [None, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0], False, id="never-ready"
        ),
        pytest.param([30.0, 0.0], True, id="was-ready"),
    ],
)
def test_delays_grow_while_a_worker_does_not_get_ready(
    delays: list[float | None], was_ready: bool
) -> None:
    for before, after in zip(delays, delays[1:], strict=False):
        assert next_delay(before, was_ready=was_ready) == after


class Lenient(Supervisor):
    """One that waits for those whom it has killed as long as a busy machine needs to end them."""

    def kill_all(self) -> None:
        self._patience = TIMEOUT
        super().kill_all()


def make(count: int = 1, **options: object) -> Supervisor:
    return Supervisor([sys.executable, "-c", WORKER], count, **options)  # type: ignore[arg-type]


async def started(count: int) -> list[tuple[int, list[str]]]:
    """Wait until so many workers have started; return the process and the words of each."""
    path = Path("log")
    while True:
        lines = path.read_text().splitlines() if path.exists() else []
        if len(lines) >= count:
            return [(int(pid), words) for pid, _, *words in map(str.split, lines)]
        await asyncio.sleep(0.01)


def main(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), TIMEOUT)

    run(bounded())


def test_workers_get_devices_in_turn_variables_and_a_session_of_their_own(directory: Path) -> None:
    async def test() -> None:
        supervisor = make(3, devices=["4", "7"], environment={"X": "y"})
        supervisor.start()
        workers = await started(3)
        assert sorted(words for _, words in workers) == [
            ["4", "y", "True"],
            ["4", "y", "True"],
            ["7", "y", "True"],
        ]
        await supervisor.stop()
        for pid, _ in workers:
            assert_gone(pid)

    main(test)


def children() -> set[str]:
    """Return the processes that this one has started, those included that nobody waited for."""
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended; others have its children
            found.update((task / "children").read_text().split())
    return found


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def assert_gone(pid: int) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_worker_that_was_ready_is_started_again_at_once(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        ended: list[tuple[int, bool]] = []
        supervisor = make(on_end=lambda pid, was_ready: ended.append((pid, was_ready)))
        supervisor.start()
        ((first, words),) = await started(1)
        assert words == ["-", "-", "True"]
        assert supervisor.worker_is_ready(first)
        supervisor.kill(os.getpid())  # none of ours
        supervisor.kill(first)
        (_, (second, _)) = await started(2)
        assert ended == [(first, True)]
        assert_gone(first)
        await supervisor.stop()
        assert ended == [(first, True), (second, False)]

    with caplog.at_level(logging.INFO):
        main(test)
    ready, again = caplog.messages
    assert re.fullmatch(r"worker 1, process \d+, is ready after \d\.\d\d s", ready)
    assert re.fullmatch(
        r"worker 1 \(process \d+\) was killed, as it held a batch for too long, after \d\.\d s;"
        " it is started again at once",
        again,
    )


def test_a_worker_that_is_deaf_is_cut_off_all_the_same(directory: Path) -> None:
    (directory / "deaf").touch()

    async def test() -> None:
        supervisor = Lenient([sys.executable, "-c", WORKER], 1)
        supervisor.start()
        ((first, _),) = await started(1)
        supervisor.kill(first)
        await started(2)
        assert_gone(first)
        supervisor.kill_all()
        await supervisor.stop()

    main(test)


def test_a_worker_that_cannot_start_is_tried_for_ever(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "fail").touch()

    async def test() -> None:
        supervisor = make()
        supervisor.start()
        await started(3)
        (directory / "fail").unlink()
        (*_, (pid, _)) = await started(4)
        assert supervisor.worker_is_ready(pid)
        await supervisor.stop()

    main(test)
    said = "ended with exit code 7 after .* before it was ready; it is started again"
    assert re.search(f"{said} at once", caplog.messages[0])
    assert re.search(f"{said} in 0.5 s", caplog.messages[1])
    assert re.search(f"{said} in 1 s", caplog.messages[2])


def test_it_fails_while_no_worker_gets_ready(directory: Path) -> None:
    async def test() -> None:
        told: list[bool] = []

        def note() -> None:
            told.append(supervisor.is_failing)

        supervisor: Supervisor = make(2, on_failure=note)
        supervisor.start()
        one, other = await pids(2)
        assert told_by(supervisor, told) == (False, [])
        assert supervisor.worker_is_ready(one)
        supervisor.kill(other)
        (*_, third) = await pids(3)
        assert told_by(supervisor, told) == (False, [False])  # the other one is ready
        supervisor.kill(one)
        (*_, fourth) = await pids(4)
        assert told_by(supervisor, told) == (False, [False])  # it was ready
        supervisor.kill(fourth)
        (*_, fifth) = await pids(5)
        assert told_by(supervisor, told) == (False, [False, False])  # both have failed, but once
        supervisor.kill(third)
        supervisor.kill(fifth)
        *_, sixth, seventh = await pids(7)
        assert told_by(supervisor, told) == (True, [False, False, False, True])
        assert supervisor.worker_is_ready(seventh)
        assert not supervisor.is_failing
        supervisor.kill(sixth)
        await pids(8)
        assert told_by(supervisor, told) == (False, [False, False, False, True, False])
        await supervisor.stop()
        assert len(told) == 5

    main(test)


async def pids(count: int) -> list[int]:
    return [pid for pid, _ in await started(count)]


def told_by(supervisor: Supervisor, told: list[bool]) -> tuple[bool, list[bool]]:
    return supervisor.is_failing, told


def test_a_delay_is_no_reason_to_stop_late(directory: Path) -> None:
    (directory / "fail").touch()

    async def test() -> None:
        before, supervisor = children(), make()
        supervisor.start()
        await started(3)
        await supervisor.stop()
        assert children() <= before

    main(test)


def test_a_command_that_cannot_be_run_is_tried_again(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        supervisor = Supervisor(["./nothing"], 1)
        supervisor.start()
        while len(caplog.messages) < 2:
            await asyncio.sleep(0.01)
        await supervisor.stop()

    main(test)
    said = "worker 1 cannot be started: No such file or directory; it is started again"
    assert caplog.messages[:2] == [f"{said} at once", f"{said} in 0.5 s"]


def test_what_a_worker_has_said_of_its_end_is_told(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "fail").touch()

    async def test() -> None:
        supervisor = make(last_words=lambda pid: f"{pid} has no weights")
        supervisor.start()
        await started(2)
        await supervisor.stop()

    main(test)
    assert re.fullmatch(
        r"worker 1 \(process (\d+)\) ended with exit code 7 after .* s before it was ready:"
        r" \1 has no weights; it is started again at once",
        caplog.messages[0],
    )


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("on_end", "what worker 1 has left cannot be cleared away"),
        ("last_words", "what worker 1 has left cannot be cleared away"),
        ("on_failure", "worker 1 is lost; it is started again at once"),
    ],
)
def test_trouble_after_a_workers_end_does_not_keep_the_next_from_starting(
    directory: Path, caplog: pytest.LogCaptureFixture, call: str, said: str
) -> None:
    def trouble(*told: object) -> None:
        raise OSError("disk full")

    async def test() -> None:
        supervisor = make(1, **{call: trouble})
        supervisor.start()
        ((pid, _),) = await started(1)
        supervisor.kill(pid)
        await started(2)
        await supervisor.stop()

    main(test)
    assert said in caplog.messages
    assert "OSError: disk full" in caplog.text


def test_what_a_worker_has_left_is_cleared_away_in_a_thread_before_the_next_starts(
    directory: Path,
) -> None:
    """It may have to wait for a thread that reads the files: all others go on meanwhile."""
    is_read, steps = threading.Event(), []

    def clear_away(pid: int, was_ready: bool) -> None:
        assert is_read.wait(TIMEOUT)
        steps.append(Path("log").read_text().count("started"))

    async def test() -> None:
        supervisor = make(on_end=clear_away)
        supervisor.start()
        ((pid, _),) = await started(1)
        supervisor.kill(pid)
        while supervisor.worker_is_ready(pid):  # it is ours until it has ended
            await asyncio.sleep(0.01)
        is_read.set()
        await started(2)
        assert steps == [1]
        await supervisor.stop()

    main(test)


def test_a_worker_is_started_again_although_all_threads_of_the_loop_are_busy(
    directory: Path,
) -> None:
    """They read the metrics, for anybody who asks."""
    is_over = threading.Event()

    async def test() -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as pool:
            loop.set_default_executor(pool)
            loop.run_in_executor(None, is_over.wait, TIMEOUT)
            supervisor = make()
            supervisor.start()
            ((pid, _),) = await started(1)
            supervisor.kill(pid)
            await started(2)
            is_over.set()
            await supervisor.stop()

    main(test)


def test_a_worker_that_loads_for_long_is_told_of_now_and_then(
    directory: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Reminders that grow rare would let a test wait for hours if a process is slow to start.
    monkeypatch.setattr("ventu_lite.child.LONGEST_REMINDER", 0.01)
    caplog.set_level(logging.INFO)

    async def test() -> None:
        supervisor = make(2, first_reminder=0.01)
        assert supervisor.loading == []
        supervisor.start()
        (one, _), (other, _) = await started(2)
        assert supervisor.loading == [1, 2]
        await turn_until(lambda: len(still_loading(caplog)) >= 6)
        supervisor.worker_is_ready(one)
        supervisor.worker_is_ready(other)
        assert supervisor.loading == []
        told = still_loading(caplog)
        supervisor.kill(one)
        # The next one in its place is told of until the other one would have been, too.
        await turn_until(lambda: len(still_loading(caplog)) > len(told) + 5)
        assert len(supervisor.loading) == 1
        later = {int(pid) for _, pid, _ in still_loading(caplog)[len(told) :]}
        await supervisor.stop()
        assert later.isdisjoint({one, other})

    main(test)
    told = still_loading(caplog)
    assert {number for number, _, _ in told} == {"1", "2"}
    assert len({pid for _, pid, _ in told}) == 3


def still_loading(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    said = r"worker (\d), process (\d+), is still loading after (\d+) s"
    return [found for one in caplog.messages for found in re.findall(said, one)]


def test_what_cannot_be_cleared_away_does_not_hold_up_the_end(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    is_over = threading.Event()

    async def test() -> None:
        supervisor = make(
            on_end=lambda pid, was_ready: is_over.wait(TIMEOUT) and None, patience=0.1
        )
        supervisor.start()
        await started(1)
        await supervisor.stop()
        assert not is_over.is_set()
        is_over.set()

    main(test)
    assert caplog.messages == [
        "1 worker(s) did not end in time and are killed",
        "1 worker(s) are not gone after SIGKILL; not waiting for them",
    ]


# Starts a worker and stops; what is to be done after its end takes far longer than anybody waits.
HANGING = """
import asyncio, sys, time
from ventu_lite.supervisor import Supervisor
async def main():
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    supervisor = Supervisor(command, 1, on_end=lambda pid, was_ready: time.sleep(600), patience=0.2)
    supervisor.start()
    while not supervisor.loading: await asyncio.sleep(0.01)
    await supervisor.stop()
asyncio.run(main())
"""


def test_what_cannot_be_cleared_away_does_not_keep_the_process_from_ending() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HANGING], timeout=TIMEOUT, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (0, "")
    *_, last = ended.stderr.splitlines()
    assert last == "1 worker(s) are not gone after SIGKILL; not waiting for them"


# A worker with shared memory and a helper, which appends the line to "log".
HELPED = """
import multiprocessing, os, signal, time
from multiprocessing.shared_memory import SharedMemory
def help():
    is_deaf = os.path.exists("deaf")
    signal.signal(signal.SIGTERM, signal.SIG_IGN if is_deaf else signal.SIG_DFL)
    log = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"{os.getpid()} started {os.getppid()} {memory.name}\\n".encode())
    time.sleep(300)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
memory = SharedMemory(create=True, size=1)
multiprocessing.get_context("fork").Process(target=help).start()
while True: time.sleep(0.01)
"""


@contextlib.asynccontextmanager
async def supervised() -> AsyncIterator[Supervisor]:
    """A supervisor of one of these, stopped at the end: a loop closes after its workers alone."""
    supervisor = Supervisor([sys.executable, "-c", HELPED], 1)
    supervisor.start()
    try:
        yield supervisor
    finally:
        await supervisor.stop()


async def helped(count: int) -> tuple[int, int, Path]:
    """Wait until so many workers have a helper; return the last, its worker and shared memory."""
    *_, (helper, (pid, memory)) = await started(count)
    return helper, int(pid), Path("/dev/shm", memory)


def test_what_a_worker_has_started_ends_with_it(directory: Path) -> None:
    """When it is killed as when it ends by itself; shared memory is given back each time."""

    async def test() -> None:
        async with supervised() as supervisor:
            helper, pid, memory = await helped(1)
            assert memory.exists()
            supervisor.kill(pid)
            await turn_until(lambda: not is_there(helper) and not memory.exists())
            helper, pid, memory = await helped(2)
            assert is_there(helper) and memory.exists()
        await turn_until(lambda: not is_there(helper) and not memory.exists())

    main(test)


def test_what_a_worker_has_started_is_killed_if_it_does_not_end(directory: Path) -> None:
    (directory / "deaf").touch()

    async def test() -> None:
        async with supervised():
            helper, _, memory = await helped(1)
        await turn_until(lambda: not is_there(helper))
        memory.unlink(missing_ok=True)  # who was to give it back may have been killed, too

    main(test)


# Inherits what workers leave behind, as the first process of a container does.
FIRST = """
import asyncio, ctypes, sys
from pathlib import Path
from ventu_lite.supervisor import Supervisor
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
async def main():
    supervisor = Supervisor([sys.executable, "-c", sys.argv[1]], 1)
    supervisor.start()
    while not Path("log").exists(): await asyncio.sleep(0.01)
    await supervisor.stop()
asyncio.run(main())
print(*[path.read_text() for path in Path("/proc/self/task").glob("*/children")])
"""


def test_the_first_process_of_a_container_keeps_no_dead_helper(directory: Path) -> None:
    """Nobody else would take them from the system, which allows only so many processes."""
    said = directory / "said"  # no pipe, which those that are left would hold open
    with said.open("w") as file:
        ended = subprocess.run([sys.executable, "-c", FIRST, HELPED], timeout=TIMEOUT, stdout=file)
    assert (ended.returncode, said.read_text().split()) == (0, [])


def test_a_worker_that_does_not_end_is_killed(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "deaf").touch()

    async def test() -> None:
        supervisor = Lenient([sys.executable, "-c", WORKER], 2, patience=0.1)
        supervisor.start()
        workers = await started(2)
        await supervisor.stop()
        for pid, _ in workers:
            assert_gone(pid)

    main(test)
    assert caplog.messages == ["2 worker(s) did not end in time and are killed"]


def test_all_can_be_killed_at_once(directory: Path) -> None:
    (directory / "deaf").touch()

    async def test() -> None:
        supervisor = make(2)
        supervisor.start()
        workers = await started(2)
        supervisor.kill_all()
        await supervisor.stop()
        for pid, _ in workers:
            assert_gone(pid)

    main(test)


def test_a_worker_that_is_being_started_when_the_end_comes_ends_too(directory: Path) -> None:
    async def test() -> None:
        before, supervisor = children(), make()
        supervisor.start()
        await asyncio.sleep(0)  # now the slot waits for the system to start it
        await supervisor.stop()
        assert children() <= before

    main(test)


def test_what_was_never_started_is_stopped_at_once() -> None:
    async def test() -> None:
        supervisor = make()
        await supervisor.stop()
        assert not supervisor.worker_is_ready(os.getpid())
        assert not supervisor.worker_is_ready(None)

    main(test)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (0, "ended with exit code 0"),
        (-signal.SIGSEGV, "was killed by SIGSEGV"),
        (-99, "was killed by signal 99"),
    ],
)
def test_how_a_process_has_ended_is_told(code: int, said: str) -> None:
    assert how(code) == said
