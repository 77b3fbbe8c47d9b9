"""Room for metrics is taken at the start, and what a process did not use is given back."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict

from ventu_lite import ConfigError
from ventu_lite.room import _complaint, claim_if_owed, claim_room, give_back_room


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that processes share, as if it had been named before the start."""
    folder = tmp_path / "metrics"
    folder.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(folder))
    monkeypatch.setattr("prometheus_client.values.ValueClass", object)
    return folder


def sizes(folder: Path) -> set[int]:
    """Return what the files of a directory take on the disk, at least."""
    return {min(os.stat(path).st_size, os.stat(path).st_blocks * 512) for path in folder.iterdir()}


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot do it")
def test_room_is_taken_once_and_not_only_promised(folder: Path) -> None:
    claim_room()
    claim_room()
    assert sizes(folder) == {128 * 1024}
    names = {path.name.rpartition("_")[0] for path in folder.iterdir()}
    assert names == {"counter", "histogram", "gauge_livesum", "gauge_max"}


def exit_code(child: Callable[[], bool]) -> int:
    """Return the exit code of a copy of this process: 0 if ``child`` returns true there."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if child() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_copy_of_a_process_claims_room_once_before_it_counts(folder: Path) -> None:
    def child() -> bool:
        before = len(list(folder.iterdir()))
        claim_if_owed()
        mine = list(folder.glob(f"*_{os.getpid()}.db"))
        for path in mine:
            path.unlink()
        claim_if_owed()
        return (before, len(mine), len(list(folder.iterdir()))) == (4, 4, 4)

    claim_room()
    assert exit_code(child) == 0


def test_who_is_no_copy_owes_nothing(folder: Path) -> None:
    claim_if_owed()
    assert not list(folder.iterdir())


def test_a_copy_that_finds_no_room_goes_on_owing_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def child() -> bool:
        for _ in range(2):
            with pytest.raises(ConfigError, match="make room there"):
                claim_if_owed()
        return True

    monkeypatch.setattr("os.posix_fallocate", _fails_with(errno.ENOSPC), raising=False)
    assert exit_code(child) == 0


def test_what_is_written_is_kept(folder: Path) -> None:
    claim_room()
    path = folder / f"counter_{os.getpid()}.db"
    series = MmapedDict(str(path))  # type: ignore[no-untyped-call]  # it is not typed
    series.write_value("key", 3.0, 0.0)  # type: ignore[no-untyped-call]
    claim_room()
    series.close()  # type: ignore[no-untyped-call]
    give_back_room(str(path))
    assert os.stat(path).st_size < 100
    values = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
    assert [(key, value) for key, value, *_ in values] == [("key", 3.0)]


def test_a_file_that_was_never_used_becomes_small(folder: Path) -> None:
    claim_room()
    path = folder / f"counter_{os.getpid()}.db"
    give_back_room(str(path))
    give_back_room(str(path))
    assert os.stat(path).st_size == 8
    values = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
    assert list(values) == []


def test_an_empty_file_stays_so(folder: Path) -> None:
    (folder / "counter_7.db").touch()
    give_back_room(str(folder / "counter_7.db"))
    assert sizes(folder) == {0}


def _fails_with(number: int) -> object:
    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr("os.posix_fallocate", _fails_with(number), raising=False)
    with pytest.raises(ConfigError, match="full: make room there, 512 KiB for each process"):
        claim_room()
    assert not list(folder.iterdir())


def test_a_file_system_that_cannot_do_it_does_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.posix_fallocate", _fails_with(errno.EINVAL), raising=False)
    claim_room()
    assert sizes(folder) == {0}


def test_a_system_that_cannot_do_it_does_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.posix_fallocate", raising=False)
    claim_room()
    assert sizes(folder) == {0}


def test_without_a_directory_nothing_is_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR")
    claim_room()
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("state", "what_to_do"),
    [
        ("missing", r"make it, empty, before each start of the whole service \(mkdir -p \S+\)"),
        ("a file", "it is a file; name a directory"),
    ],
)
def test_a_directory_that_is_none_is_told_with_a_way_out(
    folder: Path, state: str, what_to_do: str
) -> None:
    folder.rmdir()
    if state == "a file":
        folder.touch()
    with pytest.raises(ConfigError, match=f"is no directory that can be written to: {what_to_do}$"):
        claim_room()


def test_a_directory_of_somebody_else_is_told_with_a_way_out() -> None:
    said = _complaint("/other", PermissionError(errno.EACCES, "Permission denied"))
    assert said.endswith("written to: let this user write there, or choose another one")
