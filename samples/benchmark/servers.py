"""Install the servers of ``benchmark.peers``, run them, check their answers.

Each has an environment of its own, made once from PyPI and kept in a cache directory.
"""

import contextlib
import json
import os
import re
import signal
import socket
import string
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmark.peers import MODELS, TEXT, Peer

ROOT = Path(__file__).resolve().parents[2]
# Generous: Ray starts half a dozen processes, and the machine may be slow.
_START_SECONDS = 90.0
_STOP_SECONDS = 20.0
# What the user has in his shell must not choose the settings of a server.
_SETTINGS = re.compile("FLASK_|VENTU_|GUNICORN_|UVICORN_|BENTOML_|RAY_|LIT_|PROMETHEUS_|PYTHONPATH")
_MARK = "BENCH_OF_VENTU_LITE"

Say = Callable[[str], None]


class NotMeasured(Exception):
    """A server cannot be measured; the message says why, for the table."""


def default_cache() -> Path:
    """Return where the environments are kept unless the user says otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ventu_lite" / "bench"


def requirements(peer: Peer) -> list[str]:
    """Return what pip is asked for; ventu_lite is the one of this checkout."""
    here = f"--editable={ROOT}"
    return [here if name == "ventu_lite" else name for name in peer.requirements]


def environment(cache: Path, peer: Peer, say: Say) -> Path:
    """Return the Python of a peer's environment, which is made if it is not there.

    Raises:
        NotMeasured: It cannot be installed.
    """
    folder = cache / f"{peer.name}-{sys.version_info.major}.{sys.version_info.minor}"
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    wanted = "\n".join(requirements(peer))
    if stamp.is_file() and stamp.read_text() == wanted and python.exists():
        return python
    say(f"{peer.title}: installing {', '.join(peer.requirements)} into {folder}")
    _install([sys.executable, "-m", "venv", "--clear", str(folder)])
    _install([str(python), "-m", "pip", "install", "--quiet", *requirements(peer)])
    stamp.write_text(wanted)  # only now is it whole
    return python


def _install(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise NotMeasured(f"does not install: {_last_line(done.stderr or done.stdout)}")


def _last_line(output: str) -> str:
    """Return its last exception, else what a failed program said last; short, for a table."""
    lines = [line.strip() for line in output.splitlines() if re.search(r"\w", line)]
    raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return [*lines, *raised][-1][:160] if lines else "it said nothing"


def version_of(python: Path, peer: Peer) -> str:
    """Return the version of the first requirement, with that of the checkout where it is one."""
    name = re.split(r"[\[=]", peer.requirements[0])[0]
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    version = _output([str(python), "-c", code])
    if name == "ventu_lite":
        commit = _output(["git", "-C", str(ROOT), "describe", "--always", "--dirty"])
        version += f" ({commit})" if commit else ""
    return version


def _output(command: list[str]) -> str:
    """Return what a program prints, nothing if it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@dataclass(frozen=True)
class Running:
    """A server that runs.

    Attributes:
        peer: Which.
        port: Where it takes HTTP.
        process: The process that was started.
        log: What it and its children write.
        mark: The line in the environment of all its processes.
    """

    peer: Peer
    port: int
    process: "subprocess.Popen[bytes]"
    log: Path
    mark: str

    def ask(self, text: str) -> bytes:
        """Return the body of the answer for one text."""
        body = string.Template(self.peer.payload).substitute(text=text).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/inference", data=body)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=30) as response:
            data = response.read()
        assert isinstance(data, bytes)
        return data

    def died(self) -> NotMeasured:
        """Return the end of a server as a reason."""
        code = self.process.poll()
        return NotMeasured(f"ended with {code}: {_last_line(self.log.read_text(errors='replace'))}")


def program(peer: Peer, model: str, values: Mapping[str, str]) -> str:
    """Return the file that a server runs."""
    words = {**peer.words.get(model, {}), **values}
    return string.Template(peer.program).substitute(words)


@contextlib.contextmanager
def running(peer: Peer, model: str, variant: str, python: Path) -> Iterator[Running]:
    """Run a server until the block ends; it answers when the block begins.

    Raises:
        NotMeasured: It does not start.
    """
    mark = f"{_MARK}={uuid.uuid4()}"
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder, port = Path(name), _free_port()
        values = {"port": str(port), "folder": name, **peer.variants[model][variant]}
        (folder / "model.py").write_text(MODELS[model])
        (folder / "app.py").write_text(program(peer, model, values))
        command = [string.Template(part).substitute(values) for part in peer.command]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [str(python), *command],
                cwd=folder,
                env=_environment(peer, mark, folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        server = Running(peer, port, process, folder / "log", mark)
        try:
            _wait_for(server)
            yield server
        finally:
            _stop(server)


def _environment(peer: Peer, mark: str, folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not _SETTINGS.match(name)}
    places = {"XDG_RUNTIME_DIR": str(folder), "BENTOML_HOME": str(folder / "home")}
    name, _, value = mark.partition("=")
    return kept | places | dict(peer.environment) | {name: value}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])


def _wait_for(server: Running) -> None:
    give_up_at = time.monotonic() + _START_SECONDS
    while True:
        try:
            server.ask(TEXT)
            return
        except (OSError, urllib.error.HTTPError) as exc:
            if server.process.poll() is not None:
                raise server.died() from exc
            if time.monotonic() > give_up_at:
                why = _last_line(server.log.read_text(errors="replace"))
                raise NotMeasured(f"no answer in {_START_SECONDS:g} s: {exc}; {why}") from exc
            time.sleep(0.05)


def _stop(server: Running) -> None:
    """End a server kindly, then whatever is left of it."""
    server.process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.process.wait(_STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait(_STOP_SECONDS)
    for pid in processes(server.mark):  # those in sessions of their own, as Ray's
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes(mark: str) -> list[int]:
    """Return the processes with this line in their environment; none where it cannot be read."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def cpu_seconds(mark: str) -> float:
    """Return the CPU time that all processes of a server have used."""
    ticks = 0
    for pid in processes(mark):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def check(server: Running) -> None:
    """Make sure that each of many clients at once gets its own answer.

    Raises:
        NotMeasured: An answer is wrong, or none came.
    """
    wrong: list[str] = []

    def ask(text: str) -> None:
        wanted = json.loads(string.Template(server.peer.answer).substitute(length=len(text)))
        try:
            found = json.loads(server.ask(text))
        except (OSError, ValueError) as exc:
            found = exc
        if found != wanted:
            wrong.append(f"{found!r} instead of {wanted!r}")

    threads = [threading.Thread(target=ask, args=("x" * size,)) for size in range(2, 34)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise NotMeasured(f"wrong answer: {wrong[0][:160]}")
