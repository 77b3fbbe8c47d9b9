"""SIGTERM, SIGINT, SIGHUP: once and twice, to one process and to all, whatever they are doing."""

import contextlib
import http.client
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest
from crowds import at_once, samples
from deployments import (
    GUNICORN,
    SERVE,
    TCP,
    UNIX,
    behind_batching,
    children,
    deployed,
    other_limits,
    until,
)
from phases import (
    MODEL,
    SERVE_APP,
    WORK,
    all_left_in_order,
    come_to,
    hold,
    in_flight,
    name_of,
    python_after,
    signal_all,
    write_model,
)
from processes import (
    STUCK,
    TIMEOUT,
    Client,
    Process,
    Server,
    environment,
    flask_run,
    nothing_left,
)

TERM, INT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
COMMANDS = {"serve": SERVE_APP, "worker": WORK}
CHECK = ("-m", "ventu_lite", "--app", "app.py", "check")
LONG = {"VENTU_TIMEOUT": "60"}

# --------------------------------------------------------------------------------- the start


@pytest.mark.parametrize(
    ("command", "imported", "code"),
    [
        ("serve", "flask", 0),
        ("--app check --debug worker", "flask", 0),
        ("batching", "click", 0),
        ("check", "flask", 128 + TERM),
        ("-A serve check --service serve", "flask", 128 + TERM),
        ("--help", "flask", 128 + TERM),
    ],
)
def test_a_signal_while_a_command_is_imported(
    directory: Path, command: str, imported: str, code: int
) -> None:
    """Half a second in which the first process of a container would be deaf."""
    (directory / f"{imported}.py").write_text("print('imports', flush=True)\n" + STUCK)
    with nothing_left() as env:
        with Process("-m", "ventu_lite", *command.split(), cwd=directory, env=env) as process:
            process.wait_for("imports")
            process.signal(TERM)
            assert process.wait() == code
            assert process.lines == ["imports"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("phase", "signum"),
    [
        ("import", TERM),
        ("import", INT),
        ("import", HUP),
        ("setup", TERM),
        ("setup", HUP),
        ("warmup", INT),
        ("warmup", HUP),
    ],
    ids=name_of,
)
def test_a_signal_during_the_start(
    directory: Path, command: str, phase: str, signum: signal.Signals
) -> None:
    write_model(directory)
    hold(directory, phase)
    with nothing_left() as env:
        with Process(*COMMANDS[command], cwd=directory, env=env) as process:
            until(lambda: bool(come_to(directory, phase)))
            process.signal(signum)
            assert process.wait() == 0
            assert "Traceback" not in process.output
    assert all_left_in_order(directory)


@pytest.mark.parametrize("phase", ["import", "setup", "warmup", "batch"])
@pytest.mark.parametrize("signum", [TERM, INT, HUP], ids=name_of)
def test_a_check_that_is_interrupted_is_no_success(
    directory: Path, phase: str, signum: signal.Signals
) -> None:
    """Else `check && deploy` would deploy."""
    write_model(directory)
    hold(directory, phase)
    with nothing_left() as env:
        with Process(*CHECK, cwd=directory, env=env) as process:
            until(lambda: bool(come_to(directory, phase)))
            process.signal(signum)
            assert process.wait() == 128 + signum
            assert process.lines[-1] == f"Error: interrupted by {signum.name}"
    assert all_left_in_order(directory)


@pytest.mark.parametrize("signum", [TERM, INT], ids=name_of)
def test_a_signal_to_all_during_the_start(directory: Path, signum: signal.Signals) -> None:
    hold(directory, "setup")
    with deployed(SERVE, MODEL, directory, workers=2, is_ready=False) as deployment:
        until(lambda: len(come_to(directory, "setup")) == 2)
        signal_all(deployment, signum)
        assert deployment.server.process.wait() == 0
        assert not os.listdir(deployment.env["TMPDIR"])


STUBBORN = MODEL.replace(
    'come_to("import")\n',
    """
while True:
    try:
        come_to("import")
        while True:
            time.sleep(0.01)
    except BaseException:
        come_to("swallowed")
""",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_second_signal_ends_a_start_that_is_deaf_to_the_first(
    directory: Path, command: str
) -> None:
    write_model(directory, STUBBORN)
    with nothing_left(files=True) as env:
        with Process(*COMMANDS[command], cwd=directory, env=env) as process:
            until(lambda: bool(come_to(directory, "import")))
            process.signal(TERM)
            until(lambda: bool(come_to(directory, "swallowed")))
            process.signal(TERM)
            assert process.wait() == -TERM


def test_a_signal_during_the_set_up_under_gunicorn(directory: Path) -> None:
    """A request that waits for the set-up is answered."""
    gate = hold(directory, "setup")
    with deployed(GUNICORN, MODEL, directory, env=LONG, is_ready=False) as deployment:
        answers = at_once(deployment.server, ["x"])
        until(lambda: bool(come_to(directory, "setup")))
        deployment.server.process.signal(TERM)
        deployment.server.process.wait_for("Handling signal: term")
        gate.unlink()
        assert [answer.status for answer in answers()] == [200]
        assert deployment.server.process.wait() == 0
    assert all_left_in_order(directory)


# ------------------------------------------------------------------------------- in flight


@pytest.mark.parametrize(
    ("how", "signum", "whom"),
    [
        (SERVE, TERM, "alone"),
        (SERVE, INT, "alone"),
        (SERVE, HUP, "alone"),
        (SERVE, TERM, "all"),
        (SERVE, HUP, "all"),
        (SERVE, INT, "group"),
        (UNIX, TERM, "alone"),
        (UNIX, INT, "all"),
        (UNIX, HUP, "all"),
        (TCP, HUP, "alone"),
        (TCP, TERM, "all"),
        (GUNICORN, TERM, "alone"),
        (GUNICORN, TERM, "all"),
    ],
    ids=name_of,
)
def test_what_was_accepted_is_answered(
    directory: Path, how: str, signum: signal.Signals, whom: str
) -> None:
    """A worker that nobody starts again answers what it has; what only waits needs another."""
    queued = 0 if how in (UNIX, TCP) and whom == "all" else 3
    with deployed(how, MODEL, directory, env=LONG) as deployment:
        server = deployment.server.process
        gate, answers = in_flight(deployment, queued=queued)
        if whom == "all":
            signal_all(deployment, signum)
        elif whom == "group":
            os.killpg(server.pid, signum)
        else:
            server.signal(signum)
        server.wait_for("stopping: answering what was accepted|Handling signal: term")
        gate.unlink()
        assert [answer.status for answer in answers()] == [200] * (1 + queued)
        assert server.wait() == 0
        for worker in deployment.workers:
            assert (worker.wait() if whom == "all" else worker.stop()) == 0
        assert not os.listdir(deployment.env["TMPDIR"])
        assert not (directory / "s").exists()
    assert all_left_in_order(directory)


@pytest.mark.parametrize("signum", [TERM, HUP], ids=name_of)
def test_flask_run_is_ended_at_once(directory: Path, signum: signal.Signals) -> None:
    """It is for development: whoever waits for an answer gets none, and nothing is left."""
    write_model(directory)
    with nothing_left() as env, flask_run("app.py", cwd=directory, env=env) as server:
        until(lambda: server.get("/readyz").status == 200)
        hold(directory, "batch")
        answers = at_once(server, ["x"])
        until(lambda: bool(come_to(directory, "batch")))
        server.process.signal(signum)
        assert server.process.wait() == -signum
        with pytest.raises(ConnectionError):
            answers()


def test_ctrl_c_under_flask_run(directory: Path) -> None:
    write_model(directory)
    with nothing_left() as env, flask_run("app.py", cwd=directory, env=env | LONG) as server:
        gate = hold(directory, "batch")
        answers = at_once(server, ["x"])
        until(lambda: bool(come_to(directory, "batch")))
        os.killpg(server.process.pid, INT)
        gate.unlink()
        assert [answer.status for answer in answers()] == [200]
        assert server.process.wait() == 0
    assert all_left_in_order(directory)


# --------------------------------------------------------------------------------- the drain


def insist(worker: Process, signum: signal.Signals) -> None:
    """Send a signal until the process ends: two that it has not noticed yet are one."""

    def has_ended() -> bool:
        if worker.is_alive:
            worker.signal(signum)
        return not worker.is_alive

    until(has_ended)


@pytest.mark.parametrize(
    ("how", "first", "second", "whom"),
    [
        (SERVE, TERM, TERM, "all"),
        (SERVE, INT, INT, "group"),
        (SERVE, HUP, TERM, "alone"),
        (UNIX, INT, INT, "alone"),
        (UNIX, TERM, TERM, "all"),
        (TCP, TERM, INT, "alone"),
    ],
    ids=name_of,
)
def test_a_second_signal_ends_all_at_once(
    directory: Path, how: str, first: signal.Signals, second: signal.Signals, whom: str
) -> None:
    with deployed(how, MODEL, directory, env=LONG) as deployment:
        server = deployment.server.process
        gate, answers = in_flight(deployment, queued=0)
        for signum in (first, second):
            if whom == "all":
                signal_all(deployment, signum)
            elif whom == "group":
                os.killpg(server.pid, signum)
            else:
                server.signal(signum)
            server.wait_for("stopping")
        assert server.wait() == 128 + second
        if whom == "all":
            for worker in deployment.workers:
                insist(worker, second)
                assert worker.wait() == -second
        gate.unlink()
        with pytest.raises(ConnectionError):
            answers()
        if how == SERVE:
            assert not os.listdir(deployment.env["TMPDIR"])
        assert not (directory / "s").exists()


QUICK = """
from ventu_lite import Service

service = Service("quick", request=int, response=int)
service.add_stage("infer", list, batch=True)
app = service.app
"""


@behind_batching
def test_clients_that_keep_asking_are_told_that_an_answer_is_the_last(
    directory: Path, how: str
) -> None:
    """A request that is on its way when the signal comes is answered, too."""
    patient = other_limits(directory, parting_time=TIMEOUT)  # with clients that get no turn
    with deployed(how, QUICK, directory, env=patient) as deployment:
        server = deployment.server
        asked = threading.Semaphore(0)

        def keep_asking() -> bool:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as client:
                client.connect()
                while True:
                    client.request("POST", "/inference", b"1")
                    answer = client.getresponse()
                    assert (answer.status, answer.read()) == (200, b"1")
                    asked.release()
                    if answer.getheader("Connection") == "close":
                        return True

        with ThreadPoolExecutor(16) as pool:
            clients = [pool.submit(keep_asking) for _ in range(16)]
            for _ in range(200):
                assert asked.acquire(timeout=TIMEOUT)
            server.process.signal(TERM)
            assert [client.result(TIMEOUT) for client in clients] == [True] * 16
        assert server.process.wait() == 0


def test_a_worker_dies_during_the_drain(directory: Path) -> None:
    with deployed(SERVE, MODEL, directory, env=LONG) as deployment:
        server = deployment.server.process
        gate, answers = in_flight(deployment, queued=2)
        (worker,) = deployment.worker_pids()
        server.signal(TERM)
        server.wait_for("stopping")
        os.kill(worker, signal.SIGKILL)
        server.wait_for("it is started again at once")
        gate.unlink()
        assert [answer.status for answer in answers()] == [200] * 3
        assert server.wait() == 0
        assert not os.listdir(deployment.env["TMPDIR"])


@pytest.mark.parametrize("signum", [TERM, INT, HUP], ids=name_of)
def test_a_signal_between_death_and_restart(directory: Path, signum: signal.Signals) -> None:
    """A job that waits for a worker has its deadline, and the end waits for no worker."""
    (directory / "fail_in_setup").touch()
    gate = hold(directory, "setup")
    with deployed(SERVE, MODEL, directory, is_ready=False) as deployment:
        server = deployment.server.process
        answers = at_once(deployment.server, ["x"], X_Request_Timeout="3")
        until(lambda: samples(deployment.server)["ventu_queue_jobs"] == 1)
        gate.unlink()
        server.wait_for("it is started again in 0.5 s")
        server.signal(signum)
        assert [answer.status for answer in answers()] == [504]
        assert server.wait() == 0
        assert not os.listdir(deployment.env["TMPDIR"])


def test_workers_that_are_stopped_one_after_another_lose_nothing(directory: Path) -> None:
    """Each is replaced while requests come."""
    with deployed(SERVE, MODEL, directory, workers=2, env=LONG) as deployment:
        server = deployment.server
        server.process.wait_for("is ready after", count=2)
        for again in (1, 2):
            answers = at_once(server, [f"item{number}" for number in range(16)])
            os.kill(deployment.worker_pids()[0], TERM)
            assert [answer.status for answer in answers()] == [200] * 16
            server.process.wait_for(r"ended with exit code 0 after", count=again)
            server.process.wait_for("is ready after", count=2 + again)
    assert all_left_in_order(directory)


# ------------------------------------------------------------------- terminals and containers


def test_who_was_started_with_nohup_outlives_the_terminal(directory: Path) -> None:
    write_model(directory)
    ignoring = python_after("signal.signal(signal.SIGHUP, signal.SIG_IGN)", *SERVE_APP)
    with nothing_left() as env, Process(*ignoring, cwd=directory, env=env) as process:
        port = int(process.wait_for(r"ready on http://localhost:(\d+)")[1])
        os.killpg(process.pid, HUP)
        assert Server(process, port).infer(b'"x"').body == b'"X"'
        assert "stopping" not in process.output
        assert process.stop() == 0


def test_the_terminal_is_closed(directory: Path) -> None:
    """The window is gone, and what is written to it fails."""
    write_model(directory)
    gate = hold(directory, "batch")
    ours, theirs = pty.openpty()
    with nothing_left() as env, ThreadPoolExecutor(1) as pool, open(ours, "rb") as screen:
        process = subprocess.Popen(
            ["setsid", "--ctty", sys.executable, *SERVE_APP],
            cwd=directory,
            env=environment(env | LONG),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        try:
            with Client(_port_on(screen)) as client:
                answer = pool.submit(client.infer, b'"x"')
                until(lambda: bool(come_to(directory, "batch")))
                screen.close()
                gate.unlink()
                assert answer.result(TIMEOUT).body == b'"X"'
            assert process.wait(TIMEOUT) == 0
        finally:
            process.kill()
            process.wait(TIMEOUT)
    assert all_left_in_order(directory)


def _port_on(screen: IO[bytes]) -> int:
    """Read what a service says until it is ready; return the port."""
    for line in screen:
        if found := re.search(rb"ready on http://localhost:(\d+)", line):
            return int(found[1])
    raise AssertionError("it was never ready")


@contextlib.contextmanager
def first_of_a_container(*arguments: str, cwd: Path, env: Mapping[str, str]) -> Iterator[Process]:
    """Run Python as process 1 of a namespace of its own."""
    alone = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let us make a namespace")
    become = f"import os, sys; os.execvp('unshare', {alone} + [sys.executable, *sys.argv[1:]])"
    with Process("-c", become, *arguments, cwd=cwd, env=env) as process:
        yield process


@pytest.mark.parametrize(
    ("command", "code"),
    [(SERVE_APP, 0), (WORK, 0), (CHECK, 128 + TERM)],
    ids=["serve", "worker", "check"],
)
@pytest.mark.parametrize("phase", ["import", "setup"])
def test_docker_stop_during_the_start(
    directory: Path, command: tuple[str, ...], code: int, phase: str
) -> None:
    """The system keeps from process 1 each signal that it has no handler for."""
    write_model(directory)
    hold(directory, phase)
    with nothing_left() as env:
        with first_of_a_container(*command, cwd=directory, env=env) as process:
            until(lambda: bool(come_to(directory, phase)))
            os.kill(children(process.pid)[0], TERM)
            assert process.wait() == code


def test_docker_stop(directory: Path) -> None:
    write_model(directory)
    gate = hold(directory, "batch")
    with nothing_left() as env:
        with first_of_a_container(*SERVE_APP, cwd=directory, env=env | LONG) as process:
            port = int(process.wait_for(r"ready on http://localhost:(\d+)")[1])
            answers = at_once(Server(process, port), ["x"])
            until(lambda: bool(come_to(directory, "batch")))
            os.kill(children(process.pid)[0], TERM)
            process.wait_for("stopping")
            gate.unlink()
            assert [answer.status for answer in answers()] == [200]
            assert process.wait() == 0
