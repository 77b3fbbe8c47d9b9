"""Real processes for tests: started, waited for by what they say, and always gone at the end."""

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from waiting import TIMEOUT as TIMEOUT
from waiting import until

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "samples" / "sentiment.py"

# A module that takes its time, in short naps: a signal that comes just as a nap begins is acted on
# at its end.
STUCK = "import time\nwhile True: time.sleep(0.01)\n"

# What a developer has in his shell must not choose the app or the settings of a test.
_OURS = re.compile("FLASK_|VENTU_|PROMETHEUS_|XDG_RUNTIME_DIR|GUNICORN_")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a process, without what could change its behaviour."""
    kept = {name: value for name, value in os.environ.items() if not _OURS.match(name)}
    return kept | {"PYTHONUNBUFFERED": "1"} | dict(extra or {})


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A temporary directory whose path leaves room for the name of a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="v", dir="/tmp") as path:
        yield Path(path)


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port of this machine at which services may listen, also again, but no other program can.

    The system gives it to nobody who wants any port: it is bound, although nobody listens.
    """
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as services do
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


class Process:
    """A Python program in a process group of its own; ended when the block ends.

    Args:
        args: What follows ``python`` on the command line.
        cwd: Where it runs.
        env: Variables to add to its environment.

    Attributes:
        lines: What it has written so far, to standard output and error.
    """

    def __init__(
        self, *args: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        self.lines: list[str] = []
        self._args = [sys.executable, *map(str, args)]
        self._cwd = cwd
        self._env = environment(env)
        self._grown = threading.Condition()
        self._is_over = False

    def __enter__(self) -> "Process":
        self._popen = subprocess.Popen(
            self._args,
            cwd=self._cwd,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="reads a process")
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._popen.poll() is None:
            self.signal(signal.SIGTERM)  # so that its coverage is counted
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(TIMEOUT if kind is None else 5)  # killed, it could not clear up
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # its children, too, or the reader never ends
        self._popen.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        if kind is not None:
            print(f"--- {self}\n{self.output}")

    def __str__(self) -> str:
        return " ".join(self._args)

    @property
    def pid(self) -> int:
        """Its process id, which is also that of its group."""
        return self._popen.pid

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._popen.poll() is None

    @property
    def output(self) -> str:
        """What it has written so far."""
        return "\n".join(self.lines)

    def wait_for(self, pattern: str, *, count: int = 1) -> re.Match[str]:
        """Return the ``count``-th match of ``pattern`` in the output, as soon as it is there."""

        def matches() -> list[re.Match[str]]:
            return list(re.finditer(pattern, self.output))

        with self._grown:
            self._grown.wait_for(lambda: len(matches()) >= count or self._is_over, TIMEOUT)
        found = matches()
        assert len(found) >= count, f"no {pattern!r} from {self}:\n{self.output}"
        return found[count - 1]

    def signal(self, signum: int) -> None:
        """Send a signal to it, and not to its children."""
        self._popen.send_signal(signum)

    def wait(self) -> int:
        """Return the exit code when it has ended and all its output is read."""
        code = self._popen.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        return code

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as stream:
            for line in stream:
                with self._grown:
                    self.lines.append(line.rstrip("\n"))
                    self._grown.notify_all()
        with self._grown:
            self._is_over = True
            self._grown.notify_all()


def command(
    *args: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m ventu_lite ...`` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "ventu_lite", *map(str, args)],
        cwd=cwd,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def worker(
    app: str | Path, *options: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Process:
    """Return a worker that can be entered."""
    return Process("-m", "ventu_lite", "--app", app, "worker", *options, cwd=cwd, env=env)


@contextlib.contextmanager
def nothing_left(*, files: bool = False) -> Iterator[dict[str, str]]:
    """Variables for processes that must have ended when the block ends, and cleared up, too.

    Args:
        files: Whether files may be left: a process that is killed cannot clear up.
    """
    mark = f"MARK_OF_A_TEST={uuid.uuid4()}"
    name, _, value = mark.partition("=")
    with short_directory() as directory:
        yield {name: value, "TMPDIR": str(directory)}
        until(lambda: not any(_processes(mark)), pause=0.01)
        assert files or not os.listdir(directory), "files are left behind"


def _processes(mark: str) -> Iterator[int]:
    """Yield the processes with this line in their environment, as far as the system tells."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes().split(b"\0"):
                yield int(path.parent.name)


@dataclass(frozen=True)
class Answer:
    """What an HTTP server said."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Client:
    """One kept connection to a server on this machine; for one thread."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.close()

    def get(self, path: str) -> Answer:
        """Ask for ``path``."""
        return self.ask("GET", path, None, {})

    def infer(self, payload: bytes, media_type: str = "application/json", **headers: str) -> Answer:
        """Post ``payload`` to ``/inference``; underscores in names of headers are hyphens."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", "/inference", payload, {"Content-Type": media_type} | fields)

    def ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        """Send any request."""
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        answer = Answer(response.status, response.headers, response.read())
        if response.will_close:
            self._connection.close()
        return answer


@dataclass(frozen=True)
class Server:
    """An HTTP server in a process of its own."""

    process: Process
    port: int

    def client(self) -> Client:
        """Return a new connection, to be entered."""
        return Client(self.port)

    def get(self, path: str) -> Answer:
        """Ask once for ``path``."""
        with self.client() as client:
            return client.get(path)

    def infer(self, payload: bytes, media_type: str = "application/json", **headers: str) -> Answer:
        """Post ``payload`` once."""
        with self.client() as client:
            return client.infer(payload, media_type, **headers)


@contextlib.contextmanager
def flask_run(
    app: str | Path, *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """``flask run`` on a free port."""
    arguments = ("-m", "flask", "--app", app, "run", "--port", "0")
    with Process(*arguments, cwd=cwd, env=env) as process:
        yield Server(process, int(process.wait_for(r"Running on http://127.0.0.1:(\d+)")[1]))


@contextlib.contextmanager
def gunicorn(
    app: str, *options: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """``gunicorn`` on a free port."""
    with short_directory() as directory:
        control = {"XDG_RUNTIME_DIR": str(directory)}  # where newer versions have a socket
        # It closes a kept connection after two seconds, also on a client that is about to ask.
        arguments = ("-m", "gunicorn", "--bind=127.0.0.1:0", "--keep-alive=75", *options, app)
        with Process(*arguments, cwd=cwd, env=control | dict(env or {})) as process:
            match = process.wait_for(r"Listening at: http://127.0.0.1:(\d+)")
            yield Server(process, int(match[1]))


@contextlib.contextmanager
def serve(
    app: str | Path,
    *options: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    files: bool = False,
) -> Iterator[Server]:
    """``serve`` on a free port; every process and file of it must be gone at the end.

    Args:
        app: What to serve.
        options: More of the command line.
        cwd: Where it runs.
        env: Variables to add to its environment.
        files: Whether temporary files may be left: some libraries do that.
    """
    arguments = ("-m", "ventu_lite", "--app", app, "serve", "--port", "0", *options)
    with nothing_left(files=files) as mark:
        with Process(*arguments, cwd=cwd, env=mark | dict(env or {})) as process:
            yield Server(process, int(process.wait_for(r"listening on http://localhost:(\d+)")[1]))


@contextlib.contextmanager
def batching(
    *options: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """``batching`` on a free port."""
    arguments = ("-m", "ventu_lite", "batching", "--port", "0", *options)
    with Process(*arguments, cwd=cwd, env=env) as process:
        yield Server(process, int(process.wait_for(r"ready on http://localhost:(\d+)")[1]))
