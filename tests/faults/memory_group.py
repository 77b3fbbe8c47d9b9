"""A group of processes that may take so much memory together: beyond it the kernel kills one."""

import contextlib
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployments import until

_MOUNTED = Path("/sys/fs/cgroup")
# The controllers of this process in /proc/self/cgroup, where the groups are, and their limit.
_VERSIONS = [
    ("memory", _MOUNTED / "memory", "memory.limit_in_bytes"),
    ("", _MOUNTED, "memory.max"),
]


@contextlib.contextmanager
def memory_group(size: int) -> Iterator[Path]:
    """Make a group below that of this process, and yield the file that takes its processes.

    They must have ended when the block ends. Skips the test where the platform does not allow it.
    """
    for controllers, mounted, limit in _VERSIONS:
        own = _own_group(controllers)
        if own is None or not (group := mounted / own / f"test-{uuid.uuid4().hex}").parent.is_dir():
            continue
        try:
            group.mkdir()
        except OSError as exc:
            pytest.skip(f"no group of processes may be made here: {exc}")
        try:
            if not (group / limit).exists():
                continue  # the memory is not counted in groups of this version
            (group / limit).write_text(str(size))
            _skip_unless_killed(group / "cgroup.procs", 2 * size)
            yield group / "cgroup.procs"
            return
        finally:
            until(lambda group=group: _is_removed(group))  # type: ignore[misc]  # has a default
    pytest.skip("the kernel does not count the memory of groups of processes here")


def _own_group(controllers: str) -> str | None:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    groups = (line.split(":", 2)[1:] for line in lines)
    return next((path.lstrip("/") for names, path in groups if names == controllers), None)


def _skip_unless_killed(members: Path, size: int) -> None:
    """Try it with a process that takes too much: not every kernel that has the files does it."""
    pid = os.fork()
    if pid == 0:
        try:
            members.write_text(str(os.getpid()))
            bytearray(b"x") * size
        finally:
            os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != -signal.SIGKILL:
        pytest.skip("the kernel kills nobody who takes more memory than his group may")


def _is_removed(group: Path) -> bool:
    """Remove it, which takes until the last of its processes is buried."""
    try:
        group.rmdir()
    except OSError:
        return False
    return True
