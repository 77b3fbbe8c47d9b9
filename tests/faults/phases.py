"""A service whose processes stop wherever a test wants them to, and say where they are."""

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from crowds import at_once, samples
from deployments import Deployment, children, until, whole_lines
from processes import Answer

#: Appends a line to the file ``phases`` for each phase that a process comes to, and waits there as
#: long as there is a file ``wait_in_PHASE``. An answer is its item in capitals.
MODEL = """
import os, time

phases = os.open("phases", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def come_to(phase):
    os.write(phases, f"{os.getpid()} {phase}\\n".encode())
    while os.path.exists(f"wait_in_{phase}"):
        time.sleep(0.005)

come_to("import")
from ventu_lite import Service

service = Service("odd", request=str, response=str, examples=["example"], warmup_batch_size=1)

@service.setup
def load():
    come_to("setup")
    if os.path.exists("fail_in_setup"):
        raise OSError("no weights")
    come_to("loaded")

@service.infer(batch=True)
def act(batch):
    come_to("warmup" if batch == ["example"] else "batch")
    return [item.upper() for item in batch]

@service.teardown
def leave():
    come_to("teardown")

app = service.app
"""

SERVE_APP = ("-m", "ventu_lite", "--app", "app.py", "serve", "--port", "0")
WORK = ("-m", "ventu_lite", "--app", "app.py", "worker", "--unix", "nobody")


def write_model(directory: Path, text: str = MODEL) -> None:
    """Put the model where processes find it."""
    (directory / "app.py").write_text(text)


def hold(directory: Path, phase: str) -> Path:
    """Let every process wait in a phase, until the file is removed."""
    gate = directory / f"wait_in_{phase}"
    gate.touch()
    return gate


def come_to(directory: Path, phase: str) -> list[int]:
    """Return the processes that have come to a phase, a process once for each time."""
    lines = whole_lines(directory / "phases")
    return [int(pid) for pid, came in map(str.split, lines) if came == phase]


def all_left_in_order(directory: Path) -> bool:
    """Whether each process that was set up was also torn down."""
    return sorted(come_to(directory, "loaded")) == sorted(come_to(directory, "teardown"))


def signal_all(deployment: Deployment, signum: int) -> None:
    """Send a signal to every process of a deployment, as systemd does, parents first."""
    server = deployment.server.process
    pids = [server.pid, *children(server.pid), *deployment.worker_pids()]
    for pid in dict.fromkeys(pids):
        with suppress(ProcessLookupError):  # the parents have ended it meanwhile
            os.kill(pid, signum)


def in_flight(deployment: Deployment, *, queued: int) -> tuple[Path, Callable[[], list[Answer]]]:
    """Let the worker have one job and others wait for it.

    Returns:
        The gate to remove, and a function that returns the answers.
    """
    directory, server = deployment.directory, deployment.server
    gate = hold(directory, "batch")
    first = at_once(server, ["first"])
    until(lambda: bool(come_to(directory, "batch")))
    if not queued:
        return gate, first
    others = at_once(server, [f"item{number}" for number in range(queued)])
    until(lambda: samples(server)["ventu_queue_jobs"] == queued)
    return gate, lambda: first() + others()


def python_after(statements: str, *arguments: str) -> Sequence[str]:
    """Return arguments for Python that do something and then become another Python."""
    start = f"import os, resource, signal, sys; {statements}"
    then = "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    return ("-c", f"{start}; {then}", *arguments)


def name_of(value: object) -> str | None:
    """Name a parameter of a test."""
    return value.name if isinstance(value, signal.Signals) else None
