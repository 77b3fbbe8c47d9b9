"""What a machine does to a service: its files, its disk, its clock, its pipes, its limits."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from crowds import many, post, read_all, samples
from deployments import GUNICORN, SERVE, UNIX, children, deployed, doors_of, everywhere, until
from phases import (
    MODEL,
    SERVE_APP,
    all_left_in_order,
    hold,
    in_flight,
    python_after,
    write_model,
)
from processes import (
    TIMEOUT,
    Client,
    Process,
    Server,
    command,
    environment,
    gunicorn,
    nothing_left,
)

from ventu_lite.options import CANNOT_LISTEN, WRONG_USAGE

BATCHING = ("-m", "ventu_lite", "batching", "--port", "0", "--unix", "s")

# -------------------------------------------------------------------------- the socket's file


def test_the_socket_of_a_killed_service_is_replaced(directory: Path) -> None:
    with nothing_left() as env:
        with Process(*BATCHING, cwd=directory, env=env) as process:
            process.wait_for("ready on")
            process.signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        assert (directory / "s").is_socket()
        with Process(*BATCHING, cwd=directory, env=env) as process:
            process.wait_for("ready on")
            assert process.stop() == 0
    assert not (directory / "s").exists()


@contextlib.contextmanager
def taken_by(what: str, path: Path) -> Iterator[None]:
    """Let something of somebody else be in the socket's place."""
    if what == "a file":
        path.write_text("precious")
    elif what == "a directory":
        path.mkdir()
    elif what == "a link to a file":
        (path.parent / "file").write_text("precious")
        path.symlink_to("file")
    with contextlib.ExitStack() as stack:
        if what == "a socket":
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(path))
            listener.listen()
        yield


@pytest.mark.parametrize("service", ["batching", "serve"])
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("a file", "{} is no socket; remove it or choose another --unix"),
        ("a directory", "{} is no socket; remove it or choose another --unix"),
        ("a link to a file", "{} is no socket; remove it or choose another --unix"),
        ("a socket", "another program listens at unix:{}; stop it or choose another --unix"),
    ],
)
def test_what_is_in_the_place_of_the_socket_stays(
    directory: Path, service: str, what: str, said: str
) -> None:
    write_model(directory)
    path = directory / "s"
    with taken_by(what, path), nothing_left() as env:
        before = os.lstat(path)[:6]
        done = command(service, "--port", "0", "--unix", "s", cwd=directory, env=env)
        assert (done.returncode, done.stderr) == (CANNOT_LISTEN, f"Error: {said.format(path)}\n")
        assert os.lstat(path)[:6] == before


@pytest.mark.parametrize("what", ["missing", "a file", "not ours to write to"])
def test_a_directory_where_no_socket_can_be(directory: Path, what: str) -> None:
    folder = directory / "folder"
    with contextlib.ExitStack() as stack:
        if what == "a file":
            folder.touch()
        elif what != "missing":
            folder.mkdir()
            stack.enter_context(unwritable(folder))
        env = stack.enter_context(nothing_left())
        done = command("batching", "--port=0", "--unix=folder/s", cwd=directory, env=env)
        assert done.returncode == CANNOT_LISTEN
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"Error: cannot listen at unix:{folder}/s: ")
        assert line.endswith("choose another --unix, in a directory that this user may write to")


def test_the_file_of_the_socket_is_removed_under_a_service(directory: Path) -> None:
    """Those who are connected stay, new ones say where they look, and the end is in order."""
    with deployed(UNIX, MODEL, directory) as deployment:
        server = deployment.server
        (directory / "s").unlink()
        assert server.infer(b'"x"').body == b'"X"'
        with deployment.another_worker() as late:
            late.wait_for("cannot connect to unix:.*/s: No such file or directory .*; trying again")
            assert late.stop() == 0
        (directory / "s").write_text("precious")
        assert server.process.stop() == 0
        assert "Traceback" not in server.process.output
        assert (directory / "s").read_text() == "precious"
        assert deployment.workers[0].stop() == 0


# ------------------------------------------------------------------------------- the disk


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Put a small disk in the place of a directory, where the system lets us."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip("this machine does not let us mount a disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """Let nobody write to a directory, not even root."""
    if os.geteuid() == 0:
        with mounted(folder, "ro,size=64k"):
            yield
        return
    folder.chmod(0o500)
    try:
        yield
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize("service", ["serve", "worker", "gunicorn"])
@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("full", "is on a disk that is full: make room there, 512 KiB for each process"),
        ("not ours to write to", "is no directory that can be written to"),
        ("missing", "is no directory that can be written to"),
    ],
)
def test_no_room_for_metrics_at_the_start(
    directory: Path, service: str, state: str, said: str
) -> None:
    """A process that came to the end of the disk later would be killed by the system, SIGBUS."""
    write_model(directory)
    folder = directory / "metrics"
    with contextlib.ExitStack() as stack:
        if state != "missing":
            folder.mkdir()
            full = mounted(folder, "size=64k")
            stack.enter_context(full if state == "full" else unwritable(folder))
        env = stack.enter_context(nothing_left()) | {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
        if service != "gunicorn":
            done = command("--app=app.py", service, cwd=directory, env=env)
            assert done.returncode == WRONG_USAGE
            (line,) = done.stderr.splitlines()
            assert line.startswith("Error: PROMETHEUS_MULTIPROC_DIR=") and said in line
            return
        control = {"XDG_RUNTIME_DIR": str(directory)}
        arguments = ("-m", "gunicorn", "--bind=127.0.0.1:0", "app:app")
        with Process(*arguments, cwd=directory, env=env | control) as process:
            assert process.wait() == 3  # gunicorn's own: a worker failed to boot
            assert re.search(f"PROMETHEUS_MULTIPROC_DIR=.*{said}", process.output)


@everywhere
def test_the_disk_for_metrics_fills_up(directory: Path, how: str) -> None:
    """What a process needs it has from the start; nobody waits for an answer in vain."""
    folder = directory / "metrics"
    folder.mkdir()
    with mounted(folder, "size=8m"):
        env = {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
        with deployed(how, MODEL, directory, env=env) as deployment:
            server = deployment.server
            with contextlib.suppress(OSError), open(folder / "fill", "wb", 0) as fill:
                while True:
                    fill.write(bytes(4096))
            statuses = [server.infer(body).status for body in [b'"x"', b"1", b"{", b'"y"'] * 8]
            assert statuses == [200, 422, 400, 200] * 8
            assert server.get("/health").status == 200
            shown = samples(server)
            assert sum(shown[f"ventu_request_seconds_count/{code}"] for code in (200, 422, 400))
            assert server.process.stop() == 0
    assert "SIG" not in server.process.output


@contextlib.contextmanager
def preloaded(directory: Path, folder: Path) -> Iterator[Server]:
    """A master that has loaded the app, and two copies of it that share a directory."""
    write_model(directory)
    with nothing_left() as env:
        env |= {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
        options = ("--preload", "--workers=2", "--threads=2")
        with gunicorn("app:app", *options, cwd=directory, env=env) as server:
            until(lambda: len(children(server.process.pid)) == 2)
            yield server
            assert server.process.stop() == 0
    assert "SIGBUS" not in server.process.output


def claimed(folder: Path) -> dict[int, int]:
    """Return how many files of a directory have room for more, by process."""
    found: dict[int, int] = {}
    for path in folder.glob("*.db"):
        if path.stat().st_size == path.stat().st_blocks * 512 == 128 * 1024:
            pid = int(path.stem.rpartition("_")[2])
            found[pid] = found.get(pid, 0) + 1
    return found


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot do it")
def test_copies_of_a_loaded_process_claim_room_of_their_own(directory: Path) -> None:
    """With their first request, before they count it."""
    folder = directory / "metrics"
    folder.mkdir()
    with preloaded(directory, folder) as server:
        master, copies = server.process.pid, children(server.process.pid)
        assert claimed(folder) == {master: 4}
        all_have = dict.fromkeys([master, *copies], 4)
        until(lambda: server.get("/readyz").status == 200 and claimed(folder) == all_have)


def test_copies_of_a_loaded_process_without_room_say_so(directory: Path) -> None:
    """They answer nothing, but nobody kills them; with room again they are well."""
    folder = directory / "metrics"
    folder.mkdir()
    with mounted(folder, "size=8m"), preloaded(directory, folder) as server:
        copies = children(server.process.pid)
        with contextlib.suppress(OSError), open(folder / "fill", "wb", 0) as fill:
            while True:
                fill.write(bytes(4096))
        assert {server.infer(b'"x"').status for _ in range(8)} == {500}
        server.process.wait_for("is on a disk that is full: make room there, 512 KiB")
        (folder / "fill").unlink()
        until(lambda: server.infer(b'"x"').status == 200)
        assert children(server.process.pid) == copies


#: A model makes copies of its process that ask the service, and count something of their own.
FORKS = """
import multiprocessing, os, sys
from prometheus_client import Counter
from ventu_lite import Service
from ventu_lite.exposition import exposition

service = Service("forks", request=int, response=int, examples=[1])
service.add_stage("infer", lambda item: item)
mine = Counter("mine_total", "Of the user.")
app = service.app

def count(times):
    for _ in range(times):
        service.ask(1)
        mine.inc()

def fill(folder):
    try:
        with open(f"{folder}/fill", "wb", 0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        pass

count(1)
if "full" in sys.argv:
    fill(os.environ["PROMETHEUS_MULTIPROC_DIR"])
context = multiprocessing.get_context("fork")
copies = [context.Process(target=count, args=(10,)) for _ in range(3)]
for copy in copies:
    copy.start()
for copy in copies:
    copy.join()
print("exit codes", [copy.exitcode for copy in copies])
print(exposition(None)[0].decode())
"""


@pytest.mark.parametrize("state", ["empty", "full"])
def test_copies_that_a_model_makes_of_its_process_count_as_well(
    directory: Path, state: str
) -> None:
    """Without Flask; what they count is neither lost nor written over that of their parent."""
    (directory / "forks.py").write_text(FORKS)
    folder = directory / "metrics"
    folder.mkdir()
    with mounted(folder, "size=4m"):
        env = {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
        with Process("forks.py", state, cwd=directory, env=env) as process:
            assert process.wait() == 0
    counted, codes = (31, [0] * 3) if state == "empty" else (1, [1] * 3)
    assert f"exit codes {codes}" in process.output
    assert f"\nmine_total {counted}.0" in process.output
    stage = r'ventu_stage_seconds_count\{mode="single",service="forks",stage="infer"\}'
    assert re.search(rf"{stage} {counted}\.0", process.output)
    assert ("is on a disk that is full: make room" in process.output) == (state == "full")


# ------------------------------------------------------------------------------- the clock

# Stands before every program that Python starts here: the clock on the wall goes as the file says.
JUMPING = """
import os, time

real, real_ns, path = time.time, time.time_ns, os.environ.get("CLOCK", "")

def offset():
    try:
        with open(path) as file:
            return int(file.read() or 0)
    except FileNotFoundError:
        return 0

time.time = lambda: real() + offset()
time.time_ns = lambda: real_ns() + offset() * 10**9
"""


TEN_YEARS = 10 * 365 * 86400


@everywhere
def test_the_clock_jumps(directory: Path, how: str) -> None:
    """Deadlines are kept on another one; only what is shown to people follows it."""
    (directory / "sitecustomize.py").write_text(JUMPING)
    clock = directory / "clock"
    env = {"CLOCK": str(clock), "PYTHONPATH": str(directory), "VENTU_TIMEOUT": "60"}
    with deployed(how, MODEL, directory, env=env) as deployment:
        server = deployment.server
        for jump in (TEN_YEARS, -TEN_YEARS):
            gate, answers = in_flight(deployment, queued=2)
            write_at_once(clock, str(jump))
            until(lambda: abs(seconds_from_now(server) - jump) < 60)  # noqa: B023  # called here
            gate.unlink()
            assert [answer.status for answer in answers()] == [200] * 3
            gate = hold(directory, "batch")
            assert server.infer(b'"late"', X_Request_Timeout="0.3").status == 504
            gate.unlink()
            assert server.infer(b'"next"').status == 200  # no process is at the gate any more
            assert server.get("/health").status == 200
            (directory / "phases").write_text("")
        assert server.process.stop() == 0


def write_at_once(path: Path, text: str) -> None:
    """Write a file so that nobody sees half of it."""
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    draft.rename(path)


def seconds_from_now(server: Server) -> float:
    """Return how far the Date of an answer is from the time."""
    date = parsedate_to_datetime(server.get("/livez").headers["Date"])
    return date.timestamp() - time.time()


# ------------------------------------------------------------------------------- the pipes


class Muted:
    """A program that nobody listens to any more: its output was read up to one line.

    Args:
        arguments: What follows ``python`` on the command line.
        pattern: What the last line has that is read.
        cwd: Where it runs.
        env: Variables to add to its environment.

    Attributes:
        found: Where the pattern was found.
        pid: The process.
    """

    def __init__(
        self, arguments: Sequence[str], pattern: str, cwd: Path, env: Mapping[str, str]
    ) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            env=environment(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.pid = self._popen.pid
        assert self._popen.stdin and self._popen.stdout
        self._popen.stdin.close()
        read = ""
        while not (found := re.search(pattern, read)):
            line = self._popen.stdout.readline()
            assert line, f"no {pattern!r} in:\n{read}"
            read += line
        self.found = found
        self._popen.stdout.close()

    def __enter__(self) -> "Muted":
        return self

    def __exit__(self, *exc: object) -> None:
        self._popen.kill()
        self._popen.wait(TIMEOUT)

    def stop(self) -> int:
        self._popen.terminate()
        return self._popen.wait(TIMEOUT)


HTTP_SIDES = {
    SERVE: (SERVE_APP, r"ready on http://localhost:(\d+)"),
    UNIX: (BATCHING, r"ready on http://localhost:(\d+)"),
    GUNICORN: (
        ("-m", "gunicorn", "--bind=127.0.0.1:0", "--access-logfile=-", "app:app"),
        r"Listening at: http://127.0.0.1:(\d+)",
    ),
}
TALKATIVE = {"VENTU_LOG_LEVEL": "debug"}


@pytest.mark.parametrize("how", HTTP_SIDES)
def test_nobody_reads_the_log_any_more(directory: Path, how: str) -> None:
    write_model(directory)
    arguments, pattern = HTTP_SIDES[how]
    with contextlib.ExitStack() as stack:
        env = stack.enter_context(nothing_left()) | TALKATIVE | {"XDG_RUNTIME_DIR": str(directory)}
        front = stack.enter_context(Muted(arguments, pattern, directory, env))
        running = [front]
        if how == UNIX:
            work = ("-m", "ventu_lite", "worker", "--unix", "s")
            running.append(stack.enter_context(Muted(work, "connected to", directory, env)))
        with Client(int(front.found[1])) as client:
            until(lambda: client.get("/readyz").status == 200)
            for _ in range(20):
                assert client.infer(b'"x"').body == b'"X"'
            assert client.infer(b"1").status == 422
        assert [process.stop() for process in running] == [0] * len(running)
    assert all_left_in_order(directory)


@pytest.mark.parametrize("how", HTTP_SIDES)
def test_standard_streams_are_closed_at_the_start(directory: Path, how: str) -> None:
    """No socket and no file gets their numbers: libraries of C would print into it."""
    write_model(directory)
    closed = "os.close(0); os.close(1); os.close(2)"
    with contextlib.ExitStack() as stack:
        env = stack.enter_context(nothing_left()) | {"XDG_RUNTIME_DIR": str(directory)}
        arguments = python_after(closed, *HTTP_SIDES[how][0])
        front = stack.enter_context(Process(*arguments, cwd=directory, env=env))
        running = [front]
        if how == UNIX:
            work = python_after(closed, "-m", "ventu_lite", "worker", "--unix", "s")
            running.append(stack.enter_context(Process(*work, cwd=directory, env=env)))
        until(lambda: bool(doors_of(front)))  # nobody hears at which port
        server = Server(front, doors_of(front).pop()[1])
        until(lambda: server.get("/readyz").status == 200)
        assert server.infer(b'"x"').body == b'"X"'
        if how != GUNICORN:
            for pid in [process.pid for process in running] + children(front.pid):
                ends = {os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)}
                assert ends == {"/dev/null"}
        assert [process.stop() for process in running] == [0] * len(running)
    assert all_left_in_order(directory)


# ------------------------------------------------------------------------------- the limits


def test_too_few_files_for_all_clients(directory: Path) -> None:
    """Those who are in are served, the others are turned away, and nobody spins."""
    write_model(directory)
    limit = "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))"
    with nothing_left() as env:
        env["VENTU_TIMEOUT"] = str(TIMEOUT)
        arguments = python_after(limit, *SERVE_APP)
        with Process(*arguments, cwd=directory, env=env) as process:
            server = Server(process, int(process.wait_for(r"ready on http://localhost:(\d+)")[1]))
            process.wait_for("at most 32 clients can connect, not 10000: .* only 64 files")
            with server.client() as early, contextlib.ExitStack() as stack:
                assert early.infer(b'"early"').body == b'"EARLY"'
                crowd = stack.enter_context(many(server.port, 200))
                assert early.infer(b'"early"').body == b'"EARLY"'
                before = _cpu_seconds(process.pid)
                time.sleep(1.5)
                assert _cpu_seconds(process.pid) - before < 0.75
                for sock in crowd:
                    with contextlib.suppress(OSError):  # it was turned away
                        sock.sendall(post("x", b"Connection: close\r\n"))
                (pid,) = children(process.pid)
                os.kill(pid, signal.SIGKILL)
                process.wait_for("is ready after", count=2)
                assert early.infer(b'"early"').body == b'"EARLY"'
                answers = [read_all(sock) for sock in crowd]
                served = [one for one in answers if one.startswith(b"HTTP/1.1 200 ")]
                assert served and all(one.endswith(b'"X"') for one in served)
                assert {one[:13] for one in answers} <= {b"HTTP/1.1 200 ", b"HTTP/1.1 503 ", b""}
            until(lambda: server.get("/readyz").status == 200)
            assert server.infer(b'"late"').body == b'"LATE"'
            assert process.stop() == 0


def _cpu_seconds(pid: int) -> float:
    """Return the time that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
