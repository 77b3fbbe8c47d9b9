"""Room on the disk for what processes write into ``PROMETHEUS_MULTIPROC_DIR``."""

import errno
import os
import struct
from typing import Final

from prometheus_client import values

from .errors import ConfigError

# What our series, those of the Flask routes and most users' own are written to.
_FILES: Final = ("counter", "histogram", "gauge_livesum", "gauge_max")
# Of each file: a histogram takes about 3 KB for each combination of its labels.
_ROOM: Final = 128 * 1024
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN: Final = (errno.EACCES, errno.EPERM, errno.EROFS)
_USED: Final = struct.Struct("i")  # what a file begins with: how much of it holds something
_HEAD: Final = 8  # bytes before the first value

_is_copy = False


def claim_room() -> None:
    """Have the disk give what this process will write, where processes share a directory.

    To be called before the first series is made, and as often as one likes. prometheus_client maps
    its files into memory: were the disk full when a page of one is first written to, the system
    would kill the process with SIGBUS, whatever it is doing.

    Raises:
        ConfigError: The directory cannot be used.
    """
    global _is_copy
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if directory and is_written_to():
        try:
            for name in _FILES:
                _claim(os.path.join(directory, f"{name}_{os.getpid()}.db"))
        except OSError as exc:
            raise ConfigError(_complaint(directory, exc)) from exc
    _is_copy = False


def claim_if_owed() -> None:
    """Claim room in a copy of a process, before it counts for the first time; cheap later.

    A copy does not claim it at once: most that a model makes of its process count nothing, and
    nobody would ever clear their files away.

    Raises:
        ConfigError: As ``claim_room``, each time until there is room; count nothing then.
    """
    if _is_copy:
        claim_room()


def _after_fork() -> None:
    global _is_copy
    _is_copy = True


os.register_at_fork(after_in_child=_after_fork)


def is_written_to() -> bool:
    """Whether the variable was there when prometheus_client was imported, which looks then."""
    return values.ValueClass is not values.MutexValue


def give_back_room(path: str) -> None:
    """Give back what a process that has ended did not use of its file."""
    with open(path, "r+b") as file:
        start = file.read(_USED.size)
        if len(start) == _USED.size:
            file.truncate(max(_USED.unpack(start)[0], _HEAD))


def _claim(path: str) -> None:
    with open(path, "ab") as file:
        if not hasattr(os, "posix_fallocate"):  # macOS
            return
        try:
            os.posix_fallocate(file.fileno(), 0, _ROOM)
        except OSError as exc:
            if exc.errno in _NO_ROOM:
                os.unlink(path)
                raise
            # a file system that cannot do it; it will do without


def _complaint(directory: str, exc: OSError) -> str:
    if exc.errno in _NO_ROOM:
        size = len(_FILES) * _ROOM // 1024
        return (
            f"PROMETHEUS_MULTIPROC_DIR={directory!r} is on a disk that is full: make room there,"
            f" {size} KiB for each process, or choose another one"
        )
    what_to_do = f"make it, empty, before each start of the whole service (mkdir -p {directory})"
    if os.path.isfile(directory):
        what_to_do = "it is a file; name a directory"
    elif exc.errno in _FORBIDDEN:
        what_to_do = "let this user write there, or choose another one"
    return (
        f"PROMETHEUS_MULTIPROC_DIR={directory!r} is no directory that can be written to:"
        f" {what_to_do}"
    )
