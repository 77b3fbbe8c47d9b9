"""A service whose processes can be made to die, hang and fail, and those who ask it."""

import contextlib
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from deployments import SERVE, TCP, UNIX, Deployment, until, whole_lines
from processes import TIMEOUT, Answer, Process, Server
from prometheus_client.parser import text_string_to_metric_families

#: An answer is its item and the process that made it. The file ``log`` has a line for each batch:
#: the process and the items. A file ``hold`` keeps every batch from its end, ``hold-PID`` those of
#: one process. FAILS says for each start, in turn, whether it fails, and FAILS_IN where; a file
#: ``keep-from-loading`` keeps each start before that, ``keep-from-being-ready`` those that succeed.
MODEL = r"""
import ctypes, os, resource, signal, time
from ventu_lite import Service

service = Service(
    "mortal",
    request=str,
    response=str,
    examples=["example"] if os.environ.get("FAILS_IN") == "warm-up" else None,
)
log = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
fails = False

@service.setup
def load():
    global fails
    starts = os.open("starts", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(starts, b"x")
    pattern = os.environ.get("FAILS", "0")
    fails = pattern[(os.fstat(starts).st_size - 1) % len(pattern)] == "1"
    while os.path.exists("keep-from-loading"):
        time.sleep(0.005)
    while not fails and os.path.exists("keep-from-being-ready"):
        time.sleep(0.005)
    if fails and os.environ["FAILS_IN"] == "set-up":
        raise OSError("no weights")
    if "MEMORY_GROUP" in os.environ:
        with open(os.environ["MEMORY_GROUP"], "w") as members:
            members.write(str(os.getpid()))
    if "MEMORY" in os.environ:
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + int(os.environ["MEMORY"])
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

DEADLY = {
    "segfault": lambda: ctypes.string_at(0),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exits": lambda: os._exit(0),
    "aborts": os.abort,
    "devours": lambda: bytearray(b"x") * (1 << 29),
}

@service.infer(batch=True)
def act(batch):
    os.write(log, f"{os.getpid()} {' '.join(item[:20] for item in batch)}\n".encode())
    if fails:
        raise OSError("no luck")
    for item in batch:
        if item in DEADLY:
            DEADLY[item]()
    while os.path.exists("hold") or os.path.exists(f"hold-{os.getpid()}"):
        time.sleep(0.005)
    return [answer(item) for item in batch]

def answer(item):
    if item == "allocate":
        item = str(len(bytes(1 << 30)))
    if item == "large":
        item = "x" * 8_000_000
    return f"{item} {os.getpid()}"

app = service.app
"""


@dataclass(frozen=True)
class Said:
    """The answer to one item.

    Attributes:
        status: The HTTP status, 0 when the connection ended instead.
        item: What the worker repeated, "" of an error.
        pid: Who answered, 0 for an error.
    """

    status: int
    item: str = ""
    pid: int = 0

    @classmethod
    def of(cls, answer: Answer) -> "Said":
        """Take an answer apart."""
        if answer.status != 200:
            return cls(answer.status)
        item, _, pid = json.loads(answer.body).rpartition(" ")
        return cls(200, item, int(pid))


def say(server: Server, item: str, **headers: str) -> Said:
    """Ask once, on a connection of its own."""
    try:
        return Said.of(server.infer(json.dumps(item).encode(), **headers))
    except ConnectionError:  # http.client's RemoteDisconnected is one, too
        return Said(0)


@contextlib.contextmanager
def asked(server: Server, items: Sequence[str], **headers: str) -> Iterator[list[Future[Said]]]:
    """Ask for all items at once, each in a thread; all are answered when the block has ended."""
    with ThreadPoolExecutor(len(items)) as pool:
        yield [pool.submit(say, server, item, **headers) for item in items]


def answers(asked: Sequence[Future[Said]]) -> list[Said]:
    """Wait for all answers."""
    return [future.result(TIMEOUT) for future in asked]


def batches(directory: Path) -> list[tuple[int, list[str]]]:
    """Return the batches that were run so far, each with its process."""
    lines = whole_lines(directory / "log")
    return [(int(pid), items) for pid, *items in map(str.split, lines)]


def runs_of(directory: Path, item: str) -> list[int]:
    """Return the processes that began a batch with this item, in order."""
    return [pid for pid, items in batches(directory) if item in items]


def samples(server: Server) -> Counter[str]:
    """Return what ``/metrics`` shows, by name and the values of the labels but the service."""
    seen: Counter[str] = Counter()
    for family in text_string_to_metric_families(server.get("/metrics").body.decode()):
        for sample in family.samples:
            values = [v for k, v in sorted(sample.labels.items()) if k not in ("service", "le")]
            seen["/".join([sample.name, *values])] += int(sample.value)
    return seen


@contextlib.contextmanager
def successor(deployment: Deployment) -> Iterator[Process | None]:
    """Start another worker where nobody else would."""
    if deployment.how not in (UNIX, TCP):
        yield None
        return
    with deployment.another_worker() as process:
        deployment.workers.append(process)
        yield process


@contextlib.contextmanager
def kept_alive(deployment: Deployment) -> Iterator[Callable[[], int]]:
    """Start a worker for each that ends, as ``serve`` does by itself.

    Yields:
        A function that returns how many have ended.
    """
    if deployment.how == SERVE:
        yield lambda: deployment.server.process.output.count("; it is started again")
        return
    over = threading.Event()
    dead: list[Process] = []

    def keep() -> None:
        with contextlib.ExitStack() as stack:
            while not over.wait(0.01):
                for process in [one for one in deployment.workers if not one.is_alive]:
                    dead.append(process)
                    deployment.workers.remove(process)
                    another = stack.enter_context(deployment.another_worker())
                    deployment.workers.append(another)

    thread = threading.Thread(target=keep, name="keeps workers alive")
    thread.start()
    try:
        yield lambda: len(dead)
    finally:
        over.set()
        thread.join(TIMEOUT)


def only_worker(deployment: Deployment) -> int:
    """Return the process of the one worker."""
    (pid,) = deployment.worker_pids()
    return pid


def state_of(pid: int) -> str:
    """Return what the system says that a process does: "S" sleeps, "T" is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process as SIGSTOP does; it goes on at the end if it is still there."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: state_of(pid) == "T")
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def resident(pid: int) -> int:
    """Return the bytes of memory that a process has."""
    (line,) = [
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmRSS:")
    ]
    return int(line.split()[1]) * 1024
