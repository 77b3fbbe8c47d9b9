"""Processes that die, stop or never start: nobody else loses anything, and all heals by itself."""

import contextlib
import json
import math
import os
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import pytest
from deployments import (
    GUNICORN,
    SERVE,
    TCP,
    UNIX,
    Deployment,
    behind_batching,
    deployed,
    everywhere,
    until,
)
from memory_group import memory_group
from mortal import (
    MODEL,
    Said,
    answers,
    asked,
    batches,
    kept_alive,
    only_worker,
    resident,
    runs_of,
    samples,
    say,
    state_of,
    stopped,
    successor,
)
from processes import TIMEOUT, batching

# Only a full batch is sent, so the test knows who is in it.
FULL = {"VENTU_MAX_WAIT_POLICY": "fixed", "VENTU_MAX_WAIT": "60", "VENTU_TIMEOUT": "60"}
SIXTEEN = FULL | {"VENTU_MAX_BATCH_SIZE": "16"}
FOUR = FULL | {"VENTU_MAX_BATCH_SIZE": "4"}
PATIENT = {"VENTU_TIMEOUT": "60"}

ITEMS = [f"item{number}" for number in range(16)]


def assert_each_has_its_own(said: list[Said], items: list[str]) -> None:
    assert [(one.status, one.item) for one in said] == [(200, item) for item in items]


# ------------------------------------------------------------------------------------ killed


@behind_batching
def test_a_worker_killed_before_its_batch(how: str, directory: Path) -> None:
    with deployed(how, MODEL, directory, env=SIXTEEN) as deployment:
        dead = only_worker(deployment)
        os.kill(dead, signal.SIGKILL)
        with asked(deployment.server, ITEMS) as waiting, successor(deployment):
            said = answers(waiting)
        assert_each_has_its_own(said, ITEMS)
        assert dead not in {one.pid for one in said}


@behind_batching
def test_a_worker_killed_in_the_middle_of_its_batch(how: str, directory: Path) -> None:
    """The next one gets it in two halves."""
    with deployed(how, MODEL, directory, env=SIXTEEN) as deployment:
        (directory / "hold").touch()
        with asked(deployment.server, ITEMS) as waiting:
            until(lambda: len(batches(directory)) == 1)
            dead = only_worker(deployment)
            os.kill(dead, signal.SIGKILL)
            (directory / "hold").unlink()
            with successor(deployment):
                said = answers(waiting)
        assert_each_has_its_own(said, ITEMS)
        assert dead not in {one.pid for one in said}
        assert [len(items) for _, items in batches(directory)] == [16, 8, 8]


@behind_batching
def test_a_worker_killed_right_after_its_batch(how: str, directory: Path) -> None:
    with deployed(how, MODEL, directory, env=SIXTEEN) as deployment:
        with asked(deployment.server, ITEMS) as waiting:
            first = answers(waiting)
        os.kill(first[0].pid, signal.SIGKILL)
        with asked(deployment.server, ITEMS) as waiting, successor(deployment):
            second = answers(waiting)
        for said in (first, second):
            assert_each_has_its_own(said, ITEMS)
        assert {one.pid for one in first}.isdisjoint({one.pid for one in second})


@behind_batching
def test_a_worker_killed_in_the_middle_of_its_results(how: str, directory: Path) -> None:
    """Half a message is no answer."""
    env = PATIENT | {"VENTU_LOG_LEVEL": "debug"}
    with deployed(how, MODEL, directory, env=env) as deployment:
        (directory / "hold").touch()
        with asked(deployment.server, ["large"]) as waiting:
            until(lambda: len(batches(directory)) == 1)
            dead = only_worker(deployment)
            process = [deployment.server.process, *deployment.workers][-1]
            with stopped(deployment.server.process.pid):
                (directory / "hold").unlink()
                process.wait_for("answered a batch of 1 jobs")
                until(lambda: state_of(dead) == "S")  # nobody reads what it writes
                os.kill(dead, signal.SIGKILL)
            with successor(deployment):
                (said,) = answers(waiting)
        assert (said.status, set(said.item), len(said.item)) == (200, {"x"}, 8_000_000)
        assert said.pid not in (0, dead)


@behind_batching
def test_workers_killed_again_and_again(how: str, directory: Path) -> None:
    """Who kills waits for one answer of each worker, so that no job dies alone twice."""
    lock, over, seen = threading.Lock(), threading.Event(), Counter[int]()
    wrong: list[tuple[str, Said]] = []

    def ask(client: int) -> None:
        number = 0
        while not over.is_set():
            number += 1
            item = f"item-{client}-{number}"
            said = say(deployment.server, item)
            with lock:
                seen[said.pid] += 1
                if (said.status, said.item) != (200, item):
                    wrong.append((item, said))

    with contextlib.ExitStack() as stack:
        deployment = stack.enter_context(deployed(how, MODEL, directory, env=PATIENT))
        deaths = stack.enter_context(kept_alive(deployment))
        pool = stack.enter_context(ThreadPoolExecutor(8))
        stack.callback(over.set)
        done = [pool.submit(ask, client) for client in range(8)]
        victims: set[int] = set()
        for count in range(1, 4):
            until(lambda: bool(set(seen) - victims - {0}))
            (victim,) = set(seen) - victims - {0}
            victims.add(victim)
            os.kill(victim, signal.SIGKILL)
            until(lambda count=count: deaths() == count)  # type: ignore[misc]  # it is int
        until(lambda: bool(set(seen) - victims))
        over.set()
        for future in done:
            future.result(TIMEOUT)
        assert not wrong
        answered = samples(deployment.server)["ventu_request_seconds_count/200"]
        assert answered == sum(seen.values())


@pytest.mark.parametrize(
    ("how", "deadly", "size"),
    [(SERVE, "segfault", 16), (SERVE, "exits", 4), (UNIX, "killed", 4), (TCP, "aborts", 4)],
)
def test_an_input_that_kills_its_worker_fails_alone(
    how: str, deadly: str, size: int, directory: Path
) -> None:
    env = FULL | {"VENTU_MAX_BATCH_SIZE": str(size)}
    with deployed(how, MODEL, directory, workers=2, env=env) as deployment:
        assert_it_fails_alone(deployment, deadly, size)


def assert_it_fails_alone(deployment: Deployment, deadly: str, size: int) -> None:
    """Ask for a batch of this size with a deadly input in it."""
    items = [deadly if number == 2 else f"item{number}" for number in range(size)]
    with kept_alive(deployment) as deaths:
        with asked(deployment.server, items) as waiting:
            said = answers(waiting)
        until(lambda: deployment.server.get("/readyz").status == 200)
        assert 1 < deaths() <= math.log2(size) + 3
    assert [one.item for one in said] == ["" if item == deadly else item for item in items]
    assert Counter(one.status for one in said) == {200: size - 1, 500: 1}
    assert samples(deployment.server)["ventu_rejected_total/worker_died"] == 1


def test_a_killed_process_of_gunicorn_takes_its_own_jobs_alone(directory: Path) -> None:
    with deployed(GUNICORN, MODEL, directory, env=FOUR) as deployment:
        (directory / "hold").touch()
        with asked(deployment.server, ITEMS[:4]) as waiting:
            until(lambda: len(batches(directory)) == 1)
            dead = only_worker(deployment)
            os.kill(dead, signal.SIGKILL)
            lost = answers(waiting)
        (directory / "hold").unlink()
        assert lost == [Said(0)] * 4
        with asked(deployment.server, ITEMS[:4]) as waiting:
            said = answers(waiting)
        assert_each_has_its_own(said, ITEMS[:4])
        assert dead not in {one.pid for one in said}


# ------------------------------------------------------------------------------------ memory


@everywhere
def test_no_memory_for_one_item(how: str, directory: Path) -> None:
    """The others of its batch have enough, and nobody dies."""
    env = FOUR | {"MEMORY": str(1 << 29), "MALLOC_ARENA_MAX": "1"}
    with deployed(how, MODEL, directory, env=env) as deployment:
        for _ in range(3):
            with asked(deployment.server, ["a", "allocate", "b", "c"]) as waiting:
                said = answers(waiting)
            assert [one.status for one in said] == [200, 500, 200, 200]
            assert [one.item for one in said] == ["a", "", "b", "c"]
            assert {one.pid for one in said} == {0, only_worker(deployment)}


def test_an_input_that_takes_all_memory_fails_alone(directory: Path) -> None:
    """The kernel kills its worker without a word; two workers share what there is."""
    with memory_group(1 << 27) as members:
        env = FOUR | {"MEMORY_GROUP": str(members)}
        with deployed(SERVE, MODEL, directory, workers=2, env=env) as deployment:
            assert_it_fails_alone(deployment, "devours", 4)
            assert "SIGKILL" in deployment.server.process.output


def test_a_worker_that_cannot_be_imported_any_more_says_why(directory: Path) -> None:
    """In the line of the front as well, at every log level."""
    with deployed(SERVE, MODEL, directory, env={"VENTU_LOG_LEVEL": "debug"}) as deployment:
        with open(directory / "app.py", "a") as file:
            file.write('raise OSError("no licence")\n')
        os.kill(only_worker(deployment), signal.SIGKILL)
        deployment.server.process.wait_for(
            r"before it was ready: OSError: no licence \(.*app.py:\d+\)"
        )


def test_dead_workers_leave_no_memory_behind(directory: Path) -> None:
    """What a batch weighs is given back by the batching process, however often it is lost."""
    items = [f"{item}-{'x' * 1_000_000}" for item in ITEMS]
    env = SIXTEEN | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # or the allocator keeps what is free
    with deployed(SERVE, MODEL, directory, env=env) as deployment:
        sizes = [lose_a_batch(deployment, items) for _ in range(3)]
    assert sizes[-1] - sizes[0] < sum(map(len, items))  # two more batches, if any stayed


def lose_a_batch(deployment: Deployment, items: list[str]) -> int:
    """Kill a worker in its batch; return the memory of the batching process afterwards."""
    directory = deployment.directory
    done = len(batches(directory))
    (directory / "hold").touch()
    with asked(deployment.server, items) as waiting:
        until(lambda: len(batches(directory)) > done)
        os.kill(batches(directory)[-1][0], signal.SIGKILL)
        (directory / "hold").unlink()
        assert_each_has_its_own(answers(waiting), items)
    return resident(deployment.server.process.pid)


# ----------------------------------------------------------------------------------- stopped


@behind_batching
def test_the_late_answer_of_a_worker_that_was_stopped(how: str, directory: Path) -> None:
    """Another answers its jobs. It goes on, is heard by nobody, comes back, and is of use again."""
    items = ITEMS[:4]
    with contextlib.ExitStack() as stack:
        options = ("--batch-timeout", "4")  # of the one that takes over, too
        running = deployed(how, MODEL, directory, *options, workers=2, env=FOUR)
        deployment = stack.enter_context(running)
        clients = [stack.enter_context(deployment.server.client()) for _ in items]

        def ask(items: list[str]) -> list[Said]:
            with ThreadPoolExecutor(len(items)) as pool:
                payloads = [json.dumps(item).encode() for item in items]
                answers = pool.map(lambda client, it: client.infer(it), clients, payloads)
                return [Said.of(answer) for answer in answers]

        (directory / "hold").touch()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(ask, items)
            until(lambda: len(batches(directory)) == 1)
            late = batches(directory)[0][0]
            with stopped(late):
                (directory / "hold").unlink()
                said = waiting.result(TIMEOUT)
        assert_each_has_its_own(said, items)
        assert late not in {one.pid for one in said}
        deployment.server.process.wait_for("is cut off: it held a batch for too long")
        if how == SERVE:
            deployment.server.process.wait_for(
                rf"\(process {late}\) was killed, as it held a batch for too long,"
            )
        else:
            (process,) = [one for one in deployment.workers if one.pid == late]
            process.wait_for("connected to", count=2)
            for other in deployment.workers:
                if other.pid != late:
                    other.stop()
        again = [f"{item}-again" for item in items]
        said = ask(again)
        assert_each_has_its_own(said, again)
        assert (how == SERVE) == (late not in {one.pid for one in said})
        assert samples(deployment.server)["ventu_request_seconds_count/200"] == 8


@behind_batching
def test_an_answer_after_the_deadline_reaches_nobody(how: str, directory: Path) -> None:
    """Its worker is not to blame, and stays."""
    options = ("--batch-timeout", "60")
    with deployed(how, MODEL, directory, *options) as deployment:
        (directory / "hold").touch()
        with deployment.server.client() as client, ThreadPoolExecutor(1) as pool:
            first = pool.submit(client.infer, b'"first"', X_Request_Timeout="0.5")
            until(lambda: len(batches(directory)) == 1)
            pid = only_worker(deployment)
            with stopped(pid):
                (directory / "hold").unlink()
                assert first.result(TIMEOUT).status == 504
                second = pool.submit(client.infer, b'"second"', X_Request_Timeout="60")
                until(lambda: samples(deployment.server)["ventu_queue_jobs"] == 1)
            assert Said.of(second.result(TIMEOUT)) == Said(200, "second", pid)
        assert samples(deployment.server)["ventu_rejected_total/expired"] == 1
        assert "WARNING" not in deployment.server.process.output


@behind_batching
def test_a_batching_service_that_was_stopped(how: str, directory: Path) -> None:
    """Its worker has not left, and who has asked meanwhile is answered."""
    with deployed(how, MODEL, directory, env=PATIENT) as deployment:
        pid = only_worker(deployment)
        (directory / "hold").touch()
        with asked(deployment.server, ["before"]) as before:
            until(lambda: len(batches(directory)) == 1)
            client = HTTPConnection("127.0.0.1", deployment.server.port, timeout=TIMEOUT)
            with stopped(deployment.server.process.pid):
                (directory / "hold").unlink()
                client.request("POST", "/inference", b'"meanwhile"')
            with client.getresponse() as response:
                assert json.loads(response.read()) == f"meanwhile {pid}"
            client.close()
        assert answers(before) == [Said(200, "before", pid)]
        processes = [deployment.server.process, *deployment.workers]
        assert "lost" not in "".join(process.output for process in processes)


# --------------------------------------------------------------------------- never started


@pytest.mark.parametrize(("where", "delays"), [("set-up", ["0.5", "1"]), ("warm-up", ["0.5"])])
def test_a_start_that_fails_is_tried_again_later_and_later(
    where: str, delays: list[str], directory: Path
) -> None:
    env = PATIENT | {"FAILS": "1" + "1" * len(delays) + "0", "FAILS_IN": where}
    (directory / "keep-from-loading").touch()
    (directory / "keep-from-being-ready").touch()
    with deployed(SERVE, MODEL, directory, env=env, is_ready=False) as deployment:
        server = deployment.server
        with asked(server, ["patient"]) as patient:
            until(lambda: samples(server)["ventu_queue_jobs"] == 1)
            (directory / "keep-from-loading").unlink()
            server.process.wait_for("before it was ready: .*; it is started again at once")
            assert server.get("/livez").status == 200
            assert server.get("/readyz").status == server.get("/health").status == 503
            for delay in delays:
                server.process.wait_for(
                    f"before it was ready: .*; it is started again in {delay} s"
                )
                assert say(server, "hasty") == Said(503)
            (directory / "keep-from-being-ready").unlink()
            assert answers(patient)[0].item == "patient"
        assert server.get("/readyz").status == 200
        assert len((directory / "starts").read_text()) == len(delays) + 2


def test_a_start_that_fails_every_second_time(directory: Path) -> None:
    env = PATIENT | {"FAILS": "10", "FAILS_IN": "set-up"}
    with deployed(SERVE, MODEL, directory, env=env) as deployment:
        for count in (2, 4):
            while (said := say(deployment.server, "item")) == Said(503):
                assert deployment.server.process.is_alive
            assert (said.status, said.item) == (200, "item")
            assert (directory / "starts").read_text() == "x" * count
            os.kill(said.pid, signal.SIGKILL)
            deployment.server.process.wait_for("SIGKILL .* at once", count=count // 2)


@pytest.mark.parametrize("where", ["set-up", "warm-up"])
def test_a_worker_that_cannot_start_ends_with_its_code(where: str, directory: Path) -> None:
    env = PATIENT | {"FAILS": "10", "FAILS_IN": where}
    with deployed(UNIX, MODEL, directory, env=env, is_ready=False) as deployment:
        (process,) = deployment.workers
        assert process.wait() == 1
        assert "connected to" not in process.output
        assert deployment.server.get("/readyz").status == 503
        assert say(deployment.server, "hasty", X_Request_Timeout="0.1") == Said(504)
        with asked(deployment.server, ["patient"]) as patient, successor(deployment) as another:
            assert another
            assert answers(patient) == [Said(200, "patient", another.pid)]
        assert deployment.server.process.is_alive


#: Stands before a service: its clock is as many seconds ahead as the file ``ahead`` says.
AHEAD = r"""
import os, time

def ahead(monotonic=time.monotonic):
    try:
        return monotonic() + float(open("ahead").read())
    except FileNotFoundError:
        return monotonic()

time.monotonic = ahead
"""


def test_a_start_that_fails_under_gunicorn_is_tried_again_after_ten_seconds(
    directory: Path,
) -> None:
    env = {"FAILS": "10", "FAILS_IN": "set-up"}
    with deployed(GUNICORN, AHEAD + MODEL, directory, env=env, is_ready=False) as deployment:
        server = deployment.server
        answer = server.infer(b'"first"')
        assert answer.status == 503
        assert 1 <= int(answer.headers["Retry-After"]) <= 10
        assert server.get("/livez").status == 200
        assert server.get("/readyz").status == server.get("/health").status == 503
        assert (directory / "starts").read_text() == "x"
        (directory / "ahead.new").write_text("10")
        (directory / "ahead.new").rename(directory / "ahead")
        until(lambda: server.get("/readyz").status == 200)
        assert say(server, "second").item == "second"
        assert (directory / "starts").read_text() == "xx"


# --------------------------------------------------------------------- the batching process


@pytest.mark.parametrize("how", [UNIX, TCP])
def test_a_batching_service_killed_under_its_workers(how: str, directory: Path) -> None:
    """Its clients lose their connections and get no wrong answer; its workers find the next."""
    with deployed(how, MODEL, directory, env=FOUR) as deployment:
        (process,) = deployment.workers
        (directory / "hold").touch()
        with asked(deployment.server, ITEMS[:4]) as waiting:
            until(lambda: len(batches(directory)) == 1)
            deployment.server.process.signal(signal.SIGKILL)
            assert answers(waiting) == [Said(0)] * 4
        stale = (directory / "s").stat() if how == UNIX else None
        (directory / "hold").unlink()
        process.wait_for("lost .*; trying again in")
        again = batching(*deployment.address, cwd=directory, env=dict(deployment.env))
        with again as server:
            assert stale is None or stale.st_ctime_ns != (directory / "s").stat().st_ctime_ns
            until(lambda: server.get("/readyz").status == 200)
            others = [f"other{number}" for number in range(4)]
            with asked(server, others) as waiting:
                said = answers(waiting)
            assert said == [Said(200, item, process.pid) for item in others]
            assert samples(server)["ventu_request_seconds_count/200"] == 4
        assert runs_of(directory, "item0") == [process.pid]


def test_a_killed_front_takes_its_workers_with_it(directory: Path) -> None:
    """One is in the middle of a batch, one is idle; that none is left is looked at in the end."""
    with deployed(SERVE, MODEL, directory, workers=2, env=FOUR) as deployment:
        (directory / "hold").touch()
        with asked(deployment.server, ITEMS[:4]) as waiting:
            until(lambda: len(batches(directory)) == 1)
            pids = deployment.worker_pids()
            deployment.server.process.signal(signal.SIGKILL)
            assert answers(waiting) == [Said(0)] * 4
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
