"""Machines that are gone without a word: nobody waits longer than his deadline, all heals."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployments import until
from mortal import MODEL, Said, answers, asked, batches, say
from processes import TIMEOUT, Process, Server, nothing_left
from silent import Line

# Twenty seconds are longer than tests should wait; all but the number is as it is.
SHORT = """
from ventu_lite import silence
silence.SILENCE = {}
from ventu_lite.__main__ import main
main()
"""
# Beyond it a worker is cut off, also the one that is to take over: it must get a turn by then.
TAKEN_AWAY = ("--batch-timeout", "4", "--timeout", "60")
LONG = ("--batch-timeout", "60", "--timeout", "60")  # so that only the silence itself is noticed


class Net:
    """A batching service, and workers at the other end of lines that can fall silent.

    Attributes:
        silence: After how many seconds processes that are started from now on notice it.
    """

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self.directory = directory
        self.silence = 2.0
        self._stack = stack
        self._lines: list[Line] = []
        self._env = stack.enter_context(nothing_left(files=True))
        (directory / "app.py").write_text(MODEL)

    def batching(self, *options: str) -> Server:
        """Start the batching service."""
        said = ("batching", "--port", "0", "--tcp", "127.0.0.1:0", *options)
        process = self._run(*said)
        found = process.wait_for(r"ready on http://localhost:(\d+) for clients, at tcp:\S+:(\d+)")
        self.server, self.port = Server(process, int(found[1])), int(found[2])
        return self.server

    def line(self) -> Line:
        """Return a new line to the batching service."""
        self._lines.append(self._stack.enter_context(Line(self.port)))
        return self._lines[-1]

    def heal(self) -> None:
        """Let workers connect: one that is about to has to try to the end before it stops."""
        for line in self._lines:
            line.take_again()

    def worker(self, line: Line) -> Process:
        """Start a worker at the end of a line."""
        return self._run("--app", "app.py", "worker", *line.address)

    def ready_worker(self) -> tuple[Line, Process]:
        """Start a worker at the end of a new line, and wait until it is ready."""
        before = self.server.process.output.count("> is ready")
        line = self.line()
        process = self.worker(line)
        self.server.process.wait_for("> is ready", count=before + 1)
        return line, process

    def _run(self, *args: str) -> Process:
        process = Process(
            "-c", SHORT.format(self.silence), *args, cwd=self.directory, env=self._env
        )
        return self._stack.enter_context(process)


@pytest.fixture
def net(directory: Path) -> Iterator[Net]:
    with contextlib.ExitStack() as stack:
        net = Net(directory, stack)
        yield net
        net.heal()


@contextlib.contextmanager
def in_a_batch(net: Net, item: str, **headers: str) -> Iterator[list[Said]]:
    """Ask for an item and hold its batch; the list has the answer when the block has ended."""
    said: list[Said] = []
    before = len(batches(net.directory))
    (net.directory / "hold").touch()
    with asked(net.server, [item], **headers) as waiting:
        until(lambda: len(batches(net.directory)) > before)
        yield said
        said += answers(waiting)


def let_go(net: Net) -> None:
    (net.directory / "hold").unlink()


# ------------------------------------------------------------------- the machine of a worker


def test_a_job_at_a_lost_machine_goes_to_another_after_the_batch_timeout(net: Net) -> None:
    net.silence = TIMEOUT
    server = net.batching(*TAKEN_AWAY)
    line, first = net.ready_worker()
    with in_a_batch(net, "item") as said:
        line.fall_silent()
        let_go(net)
        _, second = net.ready_worker()
    assert said == [Said(200, "item", second.pid)]
    assert "is cut off: it held a batch for too long" in server.process.output


@pytest.mark.parametrize("moment", ["before it is sent", "while it is run"])
def test_a_job_at_a_lost_machine_goes_to_another_when_nothing_is_confirmed(
    net: Net, moment: str
) -> None:
    """However long a batch may take."""
    server = net.batching(*LONG)
    line, first = net.ready_worker()
    if moment == "before it is sent":
        line.fall_silent()
        with asked(server, ["item"]) as waiting:
            _, second = net.ready_worker()
            said = answers(waiting)
    else:
        with in_a_batch(net, "item") as said:
            line.fall_silent()
            let_go(net)
            _, second = net.ready_worker()
    assert said == [Said(200, "item", second.pid)]
    assert "held a batch" not in server.process.output


def test_nobody_waits_for_a_lost_machine_beyond_his_deadline(net: Net) -> None:
    server = net.batching(*LONG)
    line, _ = net.ready_worker()
    line.fall_silent()
    assert say(server, "item", X_Request_Timeout="0.5") == Said(504)
    _, second = net.ready_worker()
    assert say(server, "item") == Said(200, "item", second.pid)


def test_a_lost_machine_that_idles_is_no_longer_counted_on(net: Net) -> None:
    server = net.batching()
    line, _ = net.ready_worker()
    assert server.get("/readyz").status == 200
    line.fall_silent()
    until(lambda: server.get("/readyz").status == 503)
    server.process.wait_for("> has left")


def test_the_batching_service_ends_while_a_job_is_at_a_lost_machine(net: Net) -> None:
    server = net.batching("--timeout", "1")
    line, _ = net.ready_worker()
    line.fall_silent()
    with asked(server, ["item"]) as waiting:
        until(lambda: b"ventu_batch_size_count{" in server.get("/metrics").body)
        server.process.signal(signal.SIGTERM)
        assert answers(waiting) == [Said(504)]
        assert server.process.wait() == 0


# -------------------------------------------------------- the machine of the batching service


@pytest.mark.parametrize("moment", ["idle", "with results to send"])
def test_a_worker_takes_up_a_batching_service_whose_machine_was_lost(net: Net, moment: str) -> None:
    server = net.batching(*LONG)
    line, process = net.ready_worker()
    if moment == "idle":
        line.fall_silent()
    else:
        with in_a_batch(net, "item", X_Request_Timeout="0.5") as said:
            line.fall_silent()
            let_go(net)
        assert said == [Said(504)]
    process.wait_for("lost tcp:.* trying again")
    line.take_again()
    process.wait_for("connected to", count=2)
    until(lambda: line.taken == 2)
    assert say(server, "again") == Said(200, "again", process.pid)


def test_a_worker_waits_for_a_machine_that_is_not_there_yet(net: Net) -> None:
    server = net.batching("--timeout", "60")
    line = net.line()
    line.fall_silent()
    process = net.worker(line)
    process.wait_for("cannot connect to tcp:.*: timed out .*; trying again in 0.1 s")
    line.take_again()
    assert say(server, "item") == Said(200, "item", process.pid)


def test_a_worker_ends_while_the_machine_of_its_batching_service_is_lost(net: Net) -> None:
    net.batching(*LONG)
    line, process = net.ready_worker()
    line.fall_silent()
    assert process.stop() == 0


# ----------------------------------------------------------------------------- only the cable


def test_a_cable_that_was_pulled_for_a_moment_costs_nothing(net: Net) -> None:
    """What was not confirmed is sent again by the system, and answered once."""
    server = net.batching(*LONG)
    line, process = net.ready_worker()
    with in_a_batch(net, "item") as said:
        line.fall_silent()
        let_go(net)
        line.come_back()
    assert said == [Said(200, "item", process.pid)]
    assert "lost" not in process.output
    assert "WARNING" not in server.process.output


def test_a_late_answer_over_a_cable_that_is_back_reaches_nobody(net: Net) -> None:
    """The job has long gone to another; whoever asks now gets his own answer."""
    net.silence = TIMEOUT
    server = net.batching(*TAKEN_AWAY)
    line, first = net.ready_worker()
    with in_a_batch(net, "item") as said:
        line.fall_silent()
        let_go(net)
        _, second = net.ready_worker()
    assert said == [Said(200, "item", second.pid)]
    line.come_back()
    first.wait_for("connected to", count=2)
    second.stop()
    assert say(server, "again") == Said(200, "again", first.pid)
    assert [items for _, items in batches(net.directory)] == [["item"], ["item"], ["again"]]
