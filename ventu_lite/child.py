"""One worker process, as the process that has started it sees it."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Final

from .last_words import SHOW_AND_END
from .retries import FIRST_REMINDER, LONGEST_REMINDER, backoff

log = logging.getLogger(__name__)

# What ends the processes that a worker has left, and how often to look whether they are gone: those
# that are killed need a moment, or never go.
_ENDS: Final = ((signal.SIGTERM, 50), (signal.SIGKILL, 5))
_BETWEEN_LOOKS: Final = 0.02
# Seconds for one that is cut off to say where it was; the user's file may have other uses for the
# signal.
_PATIENCE: Final = 1.0


class Child:
    """A worker process, from its start to its end. Only for the thread of its event loop.

    Args:
        process: Just started.
        number: Its place among the workers.
        started_at: Just before.

    Attributes:
        number: As above.
        pid: Its process id.
        is_ready: Whether it has asked for a batch.
    """

    def __init__(self, process: asyncio.subprocess.Process, number: int, started_at: float) -> None:
        self.number = number
        self.pid = process.pid
        self.is_ready = False
        self._process = process
        self._started_at = started_at
        self._is_cut_off = False

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        number: int,
        environment: Mapping[str, str],
        directory: str | None = None,
    ) -> "Child":
        """Start one.

        Args:
            command: What it is.
            number: Its place among the workers.
            environment: All of its variables.
            directory: Where it runs; ``None`` for where this process is.

        Raises:
            OSError: There is no such program or directory, no memory, or there are too many
                processes or files.
        """
        started_at = time.monotonic()
        # A session of its own: Ctrl-C in a terminal is for us, workers are told when it is time.
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, cwd=directory, start_new_session=True
        )
        return cls(process, number, started_at)

    def signal(self, signum: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signum)

    def cut_off(self) -> None:
        """End it at once, as it held a batch for too long; it says where it was, if it can."""
        self._is_cut_off = True
        self.signal(SHOW_AND_END)
        asyncio.get_running_loop().call_later(_PATIENCE, self.signal, signal.SIGKILL)

    def note_ready(self) -> None:
        """Take note that it has asked for its first batch."""
        self.is_ready = True
        self._tell(f"is ready after {self._age():.2f} s")

    async def wait(self, first_reminder: float = FIRST_REMINDER) -> str:
        """Wait for its end, and say now and then that it is not ready yet; return how it ended.

        Args:
            first_reminder: Seconds until that is said for the first time.
        """
        end = asyncio.ensure_future(self._process.wait())
        for seconds in backoff(first_reminder, LONGEST_REMINDER):
            await asyncio.wait([end], timeout=seconds)
            if end.done() or self.is_ready:
                break
            self._tell(f"is still loading after {self._age():.0f} s")
        code = await end
        before = "" if self.is_ready else " before it was ready"
        said = "was killed, as it held a batch for too long," if self._is_cut_off else how(code)
        return f"(process {self.pid}) {said} after {self._age():.1f} s{before}"

    async def end_helpers(self) -> None:
        """End the processes that it has left behind; to be called after its own end.

        SIGTERM comes first: the helper of ``multiprocessing`` that gives back shared memory ignores
        it, and ends when all others have.
        """
        # Nobody else can have this number: the system gives it to no process while the group has
        # members, and again only when all other numbers have had their turn.
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says so of zombies
            for signum, looks in _ENDS:
                os.killpg(self.pid, signum)
                for _ in range(looks):
                    await asyncio.sleep(_BETWEEN_LOOKS)
                    _bury(self.pid)
                    os.killpg(self.pid, 0)

    def _tell(self, what: str) -> None:
        log.info("worker %d, process %d, %s", self.number, self.pid, what)

    def _age(self) -> float:
        return time.monotonic() - self._started_at


def _bury(group: int) -> None:
    """Take the dead of a group from the system: in a container its first process inherits them."""
    with contextlib.suppress(ChildProcessError):  # those that live are not ours
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass


def how(code: int) -> str:
    """Say how a process has ended that ``asyncio`` gives this exit code."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
