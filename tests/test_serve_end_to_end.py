"""Real processes: ``serve``, and ``batching`` with workers, whatever happens to them."""

import contextlib
import json
import math
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgpack
import pytest
from processes import (
    SAMPLE,
    STUCK,
    TIMEOUT,
    Answer,
    Client,
    Process,
    Server,
    batching,
    command,
    nothing_left,
    serve,
    short_directory,
    worker,
)
from prometheus_client.parser import text_string_to_metric_families
from sentences import JSON, MSGPACK, assert_answers, assert_routes, over_http
from waiting import until

from ventu_lite.options import CANNOT_LISTEN, WRONG_USAGE

# Writes down who runs what; files of the working directory say when it waits, fails or hangs.
MODEL = """
import os, time
from ventu_lite import Service

service = Service("odd", request=str, response=str)
log = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def wait_while(name):
    while os.path.exists(name):
        time.sleep(0.005)

@service.setup
def load():
    wait_while("wait_in_setup")
    if os.path.exists("fail_in_setup"):
        raise OSError("no weights")

@service.infer(batch=True, max_batch_size=16, retry=os.environ.get("RETRY") != "no")
def act(batch):
    os.write(log, f"{os.getpid()} {' '.join(batch)}\\n".encode())
    if "die" in batch:
        os._exit(1)
    wait_while("wait_in_first" if "first" in batch else "wait")
    if "hang" in batch and os.path.exists("hang"):
        os.unlink("hang")
        time.sleep(600)
    return [item.upper() for item in batch]

app = service.app

@app.get("/own/<name>")
def own(name):
    return f"hello {name}"
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with the file ``app.py``, short enough for a Unix socket in it."""
    with short_directory() as path:
        (path / "app.py").write_text(MODEL)
        yield path


def batches(directory: Path) -> list[tuple[int, list[str]]]:
    """Return the batches that were run so far, each with the process."""
    path = directory / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(pid), items) for pid, *items in map(str.split, lines)]


def samples(server: Server) -> Counter[str]:
    """Return the samples of ``/metrics``, by name and the values of their labels."""
    seen: Counter[str] = Counter()
    for family in text_string_to_metric_families(server.get("/metrics").body.decode()):
        for sample in family.samples:
            values = [v for k, v in sorted(sample.labels.items()) if k not in ("service", "le")]
            seen["/".join([sample.name, *values])] += int(sample.value)
    return seen


class Crowd:
    """Many clients at once; each asks once."""

    def __init__(self, server: Server, items: list[str], **headers: str) -> None:
        self._pool = ThreadPoolExecutor(len(items))
        self._answers = [
            self._pool.submit(server.infer, json.dumps(item).encode(), **headers) for item in items
        ]

    def answers(self) -> list[Answer]:
        answers = [answer.result(TIMEOUT) for answer in self._answers]
        self._pool.shutdown()
        return answers


def statuses(answers: list[Answer]) -> Counter[int]:
    return Counter(answer.status for answer in answers)


@contextlib.contextmanager
def held_back(server: Server, directory: Path, items: list[str], **headers: str) -> Iterator[Crowd]:
    """Let ``items`` wait behind a job that the only worker has; at the end it is let go."""
    gate = directory / "wait_in_first"
    gate.touch()
    first = Crowd(server, ["first"])
    until(lambda: any("first" in run for _, run in batches(directory)))
    crowd = Crowd(server, items, **headers)
    until(lambda: samples(server)["ventu_queue_jobs"] == len(items))
    yield crowd
    gate.unlink()
    assert statuses(first.answers()) == {200: 1}


# --------------------------------------------------------------------------- the sample


def test_the_sample_under_serve() -> None:
    """With a secret, too: workers of ``serve`` get it like the front."""
    env = {"VENTU_WORKER_SECRET": "hush"}
    with serve(SAMPLE, "--workers", "2", env=env) as server:
        server.process.wait_for("is ready after", count=2)
        for media_type in (JSON, MSGPACK):
            assert_answers(over_http(server, media_type), media_type)
        assert_routes(server)
        assert server.get("/").status == 200
        assert server.process.stop() == 0
        said = server.process.output
    assert said.count("ready on http://localhost:") == 1
    assert said.count("ready: set-up of service 'sentiment' took ") == 2
    assert "hush" not in said and "WARNING" not in said


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_the_sample_behind_batching_and_two_workers(directory: Path, tcp: bool) -> None:
    where = ["--tcp", "127.0.0.1:0"] if tcp else ["--unix", str(directory / "s")]
    env = {"VENTU_WORKER_SECRET": "hush"} if tcp else {}
    with nothing_left() as mark, contextlib.ExitStack() as stack:
        server = stack.enter_context(batching(*where, env=env | mark))
        if tcp:
            where[1] = server.process.wait_for(r"at tcp:(\S+) for workers")[1]
        workers = [stack.enter_context(worker(SAMPLE, *where, env=env | mark)) for _ in range(2)]
        server.process.wait_for("> is ready", count=2)
        for media_type in (JSON, MSGPACK):
            assert_answers(over_http(server, media_type), media_type)
        assert server.get("/health").status == server.get("/readyz").status == 200
        assert server.get("/apidoc/swagger").status == 404
        assert samples(server)[f"ventu_workers/{'tcp' if tcp else 'unix'}"] == 2
        assert [process.stop() for process in workers] == [0, 0]
        assert server.get("/readyz").status == 503
        assert server.process.stop() == 0
        assert not (directory / "s").exists()


def test_workers_take_up_a_batching_service_that_comes_back(directory: Path) -> None:
    with nothing_left() as mark:
        with worker("app", cwd=directory, env=mark) as process:
            for count in (1, 2):
                with batching(cwd=directory, env=mark) as server:
                    server.process.wait_for("> is ready")
                    assert server.infer(b'"x"').body == b'"X"'
                    if count == 1:
                        server.process.signal(signal.SIGKILL)  # leaves its socket file behind
                        server.process.wait()
                    else:
                        assert server.process.stop() == 0
                process.wait_for(f"lost unix:{directory}/batching.socket", count=count)
            assert process.stop() == 0


def test_while_the_workers_load_it_is_told_so(directory: Path) -> None:
    """By readiness and health as well as in the log; it is another thing than to have no worker."""
    (directory / "wait_in_setup").touch()
    with serve("app", "--workers=2", "--timeout=40", cwd=directory) as server:
        start = r"starting 2 worker\(s\) of 'odd', requests wait for one, at most 40 s"
        server.process.wait_for(start)
        why = "no worker is ready yet, still loading: worker 1, worker 2"
        until(lambda: json.loads(server.get("/readyz").body).get("detail") == why)
        readiness, health = server.get("/readyz"), server.get("/health")
        assert (readiness.status, health.status) == (503, 503)
        assert json.loads(health.body)["detail"] == why
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(server.infer, b'"x"')
            until(lambda: samples(server)["ventu_queue_jobs"] == 1)
            (directory / "wait_in_setup").unlink()
            server.process.wait_for("is ready after", count=2)
            assert waiting.result(TIMEOUT).body == b'"X"'
        assert server.get("/readyz").status == 200


# -------------------------------------------------------------------------- what may die


def test_the_jobs_of_a_killed_worker_are_answered(directory: Path) -> None:
    items = [f"item{number}" for number in range(16)]
    with serve("app", "--timeout", "30", cwd=directory) as server:
        with held_back(server, directory, items) as crowd:
            (directory / "wait").touch()
        until(lambda: set(items) in [set(run) for _, run in batches(directory)])
        pid, _ = batches(directory)[-1]
        os.kill(pid, signal.SIGKILL)
        server.process.wait_for(
            rf"worker 1 \(process {pid}\) was killed by SIGKILL after .* at once"
        )
        (directory / "wait").unlink()
        answers = crowd.answers()
        assert [answer.status for answer in answers] == [200] * 16
        assert [json.loads(answer.body) for answer in answers] == [i.upper() for i in items]
        assert server.process.stop() == 0


def test_an_input_that_kills_its_workers_fails_alone(directory: Path) -> None:
    items = [f"item{number}" for number in range(15)]
    items.insert(5, "die")
    with serve("app", "--timeout", "30", cwd=directory) as server:
        with held_back(server, directory, items) as crowd:
            pass
        answers = crowd.answers()
        assert [answer.status for answer in answers] == [500 if i == "die" else 200 for i in items]
        deaths = server.process.output.count("ended with exit code 1")
        assert deaths <= math.log2(16) + 3
        assert samples(server)["ventu_rejected_total/worker_died"] == 1
        assert server.process.stop() == 0


@pytest.mark.parametrize("how", ["decorator", "option"])
def test_what_must_not_run_twice_does_not(directory: Path, how: str) -> None:
    env = {"RETRY": "no"} if how == "decorator" else {}
    options = ["--no-retry"] if how == "option" else []
    with serve("app", "--timeout", "30", *options, cwd=directory, env=env) as server:
        assert statuses(Crowd(server, ["die"]).answers()) == {500: 1}
        assert server.infer(b'"x"').status == 200
        assert [items for _, items in batches(directory)] == [["die"], ["x"]]
        assert "--no-retry" not in server.process.output  # it is no advice for who runs `serve`


def test_a_worker_that_holds_a_batch_for_too_long_is_killed(directory: Path) -> None:
    (directory / "hang").touch()
    options = ["--timeout", "30", "--batch-timeout", "1", "--tcp", "127.0.0.1:0"]
    with serve("app", *options, cwd=directory) as server:
        assert server.infer(b'"hang"').body == b'"HANG"'
        (first, _), (second, _) = batches(directory)
        assert first != second
        server.process.wait_for(f"process {first}> is cut off: it held a batch for too long")
        server.process.wait_for(
            rf"\(process {first}\) was killed, as it held a batch for too long, after [\d.]+ s:"
            r" in act \(.*app.py:\d+\); it is started again at once"
        )


def test_workers_do_not_outlive_a_front_that_is_killed(directory: Path) -> None:
    """One is idle, one hangs in a batch."""
    (directory / "wait").touch()
    with nothing_left(files=True) as mark:
        arguments = ("-m", "ventu_lite", "serve", "--port", "0", "--workers", "2")
        with Process(*arguments, cwd=directory, env=mark) as process:
            process.wait_for("is ready after", count=2)
            port = int(process.wait_for(r"listening on http://localhost:(\d+)")[1])
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(
                    b'POST /inference HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n"x"'
                )
                until(lambda: bool(batches(directory)))
                process.signal(signal.SIGKILL)
                assert process.wait() == -signal.SIGKILL


def test_a_set_up_that_fails_is_tried_for_ever(directory: Path) -> None:
    (directory / "fail_in_setup").touch()
    with serve("app", cwd=directory) as server:
        server.process.wait_for("exit code 1 after .* ready: OSError: .*; .* again at once")
        server.process.wait_for("exit code 1 after .* ready: OSError: .*; .* again in 0.5 s")
        assert server.get("/livez").status == server.get("/own/you").status == 200
        assert server.get("/readyz").status == server.get("/health").status == 503
        answer = server.infer(b'"x"')
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert json.loads(answer.body)["detail"] == (
            "the workers fail before they are ready; the log says why"
        )
        assert samples(server)["ventu_rejected_total/invalid"] == 0
        (directory / "fail_in_setup").unlink()
        server.process.wait_for("ready on")
        assert server.infer(b'"x"').status == 200


def test_who_came_before_a_start_failed_waits_for_the_next(directory: Path) -> None:
    """Whoever comes later is told at once; what was accepted has its time."""
    (directory / "fail_in_setup").touch()
    (directory / "wait_in_setup").touch()
    with serve("app", cwd=directory, env={"VENTU_TIMEOUT": "40"}) as server:
        crowd = Crowd(server, ["early"])
        until(lambda: samples(server)["ventu_queue_jobs"] == 1)
        (directory / "wait_in_setup").unlink()
        server.process.wait_for("it is started again in 0.5 s")
        assert server.infer(b'"late"').status == 503
        (directory / "fail_in_setup").unlink()
        assert [answer.body for answer in crowd.answers()] == [b'"EARLY"']
        assert server.infer(b'"later"').status == 200


def test_as_long_as_one_worker_may_get_ready_requests_wait(directory: Path) -> None:
    text = MODEL.replace(
        "    wait_while",
        "    if os.environ['CUDA_VISIBLE_DEVICES'] == '0': 1 / 0\n    wait_while",
        1,
    )
    assert text != MODEL
    (directory / "app.py").write_text(text)
    (directory / "wait_in_setup").touch()
    options = ("--workers", "2", "--devices", "0,1")
    with serve("app", *options, cwd=directory, env={"VENTU_TIMEOUT": "40"}) as server:
        server.process.wait_for("ZeroDivisionError.* it is started again in")
        crowd = Crowd(server, ["x"])
        until(lambda: samples(server)["ventu_queue_jobs"] == 1)
        (directory / "wait_in_setup").unlink()
        assert [answer.status for answer in crowd.answers()] == [200]


# ------------------------------------------------------------------------- load and time


def test_more_than_the_capacity_is_told_to_come_again(directory: Path) -> None:
    options = ["--capacity", "16", "--max-batch-size", "4", "--timeout", "20"]
    items = [f"item{number}" for number in range(16)]
    with serve("app", *options, cwd=directory) as server:
        with held_back(server, directory, items) as crowd:
            late = Crowd(server, ["late"] * 32).answers()
        assert statuses(late) == {429: 32}
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in late)
        answers = crowd.answers()
        assert [json.loads(answer.body) for answer in answers] == [i.upper() for i in items]
        assert max(len(run) for _, run in batches(directory)) <= 4
        assert samples(server)["ventu_rejected_total/full"] == 32


def test_deadlines_are_kept_and_nobody_computes_for_those_who_have_left(directory: Path) -> None:
    with serve("app", cwd=directory, env={"VENTU_TIMEOUT": "30"}) as server:
        with held_back(server, directory, ["waits"]) as crowd:
            began_at = time.monotonic()
            late = server.infer(b'"late"', X_Request_Timeout="0.3")
            assert late.status == 504
            assert 0.3 <= time.monotonic() - began_at < 30
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                head = b"POST /inference HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\n"
                client.sendall(head + b'"left"')
                until(lambda: samples(server)["ventu_queue_jobs"] == 2)
            until(lambda: samples(server)["ventu_rejected_total/gone"] == 1)
        assert statuses(crowd.answers()) == {200: 1}
        assert [items for _, items in batches(directory)] == [["first"], ["waits"]]


# -------------------------------------------------------------------------------- its end


def test_what_was_accepted_is_answered_before_the_end(directory: Path) -> None:
    options = ["--timeout", "20", "--unix", str(directory / "s")]
    with serve("app", *options, cwd=directory) as server:
        with held_back(server, directory, [f"item{number}" for number in range(50)]) as crowd:
            server.process.signal(signal.SIGTERM)
            server.process.wait_for("stopping: answering what was accepted")
            with pytest.raises(OSError):
                server.get("/livez")
        assert statuses(crowd.answers()) == {200: 50}
        assert server.process.wait() == 0
        assert not (directory / "s").exists()


def test_an_end_waits_for_a_worker_that_loads_if_a_job_does(directory: Path) -> None:
    (directory / "wait_in_setup").touch()
    with serve("app", "--timeout", "20", cwd=directory) as server:
        crowd = Crowd(server, ["x"])
        until(lambda: samples(server)["ventu_queue_jobs"] == 1)
        server.process.signal(signal.SIGTERM)
        server.process.wait_for("stopping")
        (directory / "wait_in_setup").unlink()
        assert statuses(crowd.answers()) == {200: 1}
        assert server.process.wait() == 0


def test_an_end_does_not_wait_for_a_worker_that_nobody_needs(directory: Path) -> None:
    (directory / "wait_in_setup").touch()
    with serve("app", "--workers", "2", cwd=directory) as server:
        until(lambda: (directory / "log").exists())
        assert server.process.stop() == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_all_at_once(directory: Path, signum: int) -> None:
    (directory / "wait").touch()
    with serve("app", "--timeout", "60", cwd=directory) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(HTTP[0])
            until(lambda: bool(batches(directory)))
            server.process.signal(signum)
            server.process.wait_for("stopping")
            server.process.signal(signum)
            assert server.process.wait() == 128 + signum


def test_a_signal_while_the_app_is_loaded_ends_it(directory: Path) -> None:
    (directory / "app.py").write_text("print('loads', flush=True)\n" + STUCK)
    with nothing_left() as mark:
        with Process("-m", "ventu_lite", "serve", cwd=directory, env=mark) as process:
            process.wait_for("loads")
            assert process.stop() == 0


# ---------------------------------------------------------------------- what cannot be had


def test_an_address_that_is_taken_ends_the_start_with_what_to_do(directory: Path) -> None:
    (directory / "file").touch()
    with nothing_left() as mark, socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        tries = [
            (["--app", "app", "serve", "--port", port], "choose another port"),
            (["batching", "--port", port], "choose another port"),
            (["batching", "--port", "0", "--tcp", f"127.0.0.1:{port}"], "choose another port"),
            (["batching", "--port", "0", "--unix", "file"], "file is no socket; remove it or"),
            (["batching", "--port", "0", "--unix", "nowhere/s"], "choose another --unix"),
        ]
        for arguments, advice in tries:
            done = command(*arguments, cwd=directory, env=mark)
            assert done.returncode == CANNOT_LISTEN, done
            (line,) = done.stderr.splitlines()
            assert line.startswith("Error: ") and advice in line


HOOKED = MODEL + '\n@app.before_request\ndef check():\n    print("checked", flush=True)\n'


def test_hooks_that_would_be_skipped_are_refused(directory: Path) -> None:
    (directory / "app.py").write_text(HOOKED)
    with nothing_left() as mark:
        done = command("serve", "--port", "0", cwd=directory, env=mark)
    assert done.returncode == WRONG_USAGE
    assert "before_request check (" in done.stderr and "--bypass-hooks" in done.stderr
    with serve("app", "--bypass-hooks", cwd=directory) as server:
        assert server.infer(b'"x"').status == 200
        assert "checked" not in server.process.output
        assert server.get("/own/you").body == b"hello you"
        server.process.wait_for("checked")


# ---------------------------------------------------------------------- the rest of the app

SEVERAL = """
from flask import Flask, request
from ventu_lite import Service

app = Flask("several")
for name in ("cats", "dogs"):
    service = Service(name, request=int, response=int, examples=[(1, 3 if name == "dogs" else 2)])
    service.infer(lambda item, factor=2 if name == "cats" else 3: factor * item)
    app.register_blueprint(service.blueprint, url_prefix=f"/{name}")
    if name == "dogs":
        app.register_blueprint(service.blueprint, url_prefix="/more", name="more")

@app.route("/own", methods=["GET", "POST"])
def own():
    return f"{request.method} {len(request.get_data())} {request.remote_addr} {request.host_url}"
"""


def test_one_of_several_services_is_served_wherever_it_is(directory: Path) -> None:
    (directory / "app.py").write_text(SEVERAL)
    with serve("app", "--service", "dogs", cwd=directory) as server:
        server.process.wait_for("ready on")
        with Client(server.port) as client:
            for place in ("/dogs", "/more"):
                answer = client.ask("POST", f"{place}/inference", b"7", {"Content-Type": JSON})
                assert (answer.status, answer.body) == (200, b"21")
                assert json.loads(client.get(f"{place}/health").body)["inference"] == "OK"
                assert client.get(f"{place}/readyz").status == 200
                assert b'service="dogs"' in client.get(f"{place}/metrics").body
                assert client.get(f"{place}/apidoc/openapi.json").status == 200
            answer = client.ask("POST", "/cats/inference", b"7", {"Content-Type": JSON})
            assert answer.status == 503
            assert "this command serves 'dogs', not 'cats'" in json.loads(answer.body)["detail"]
            for path in ("health", "readyz"):
                assert client.get(f"/cats/{path}").status == 503
            answer = client.ask("POST", "/own", b"x" * 100_000, {})
            host = f"http://127.0.0.1:{server.port}/"
            assert answer.body.decode() == f"POST 100000 127.0.0.1 {host}"


def test_devices_go_round(directory: Path) -> None:
    text = MODEL.replace("item.upper()", "os.environ['CUDA_VISIBLE_DEVICES']")
    (directory / "app.py").write_text(text)
    with serve("app", "--workers", "2", "--devices", "3, 5", cwd=directory) as server:
        server.process.wait_for("is ready after", count=2)
        (directory / "wait").touch()
        crowd = Crowd(server, ["a"])
        until(lambda: len(batches(directory)) == 1)
        other = Crowd(server, ["b"])
        until(lambda: len(batches(directory)) == 2)
        (directory / "wait").unlink()
        assert {crowd.answers()[0].body, other.answers()[0].body} == {b'"3"', b'"5"'}


def test_workers_are_run_with_the_flags_of_the_front(directory: Path) -> None:
    text = "import sys\nprint('flags', sys.flags.optimize, sys.flags.dev_mode, sys.warnoptions)\n"
    (directory / "app.py").write_text(text + MODEL)
    flags = ("-O", "-X", "dev", "-W", "error::FutureWarning")
    serve = ("-m", "ventu_lite", "--app", "app", "serve", "--port", "0")
    with nothing_left() as mark, Process(*flags, *serve, cwd=directory, env=mark) as process:
        process.wait_for(r"flags 1 True \[.*'error::FutureWarning'\]", count=2)
        process.wait_for("ready on")
        assert process.stop() == 0


def test_a_file_may_change_the_directory(directory: Path) -> None:
    """What was said of paths was said before."""
    for name in ("elsewhere", "metrics"):
        (directory / name).mkdir()
    (directory / "key").write_text("hush")
    (directory / "app.py").write_text("import os\nos.chdir('elsewhere')\n" + MODEL)
    env = {"PROMETHEUS_MULTIPROC_DIR": "metrics", "VENTU_API_KEY_FILE": "key"}
    with serve("app.py", "--unix", "s", cwd=directory, env=env) as server:
        server.process.wait_for("ready on")
        with worker("app.py", "--unix", "s", cwd=directory, env=env) as guest:
            guest.wait_for(rf"connected to unix:{directory}/s\b")
        assert server.infer(b'"a"').status == 401
        assert server.infer(b'"a"', Authorization="Bearer hush").body == b'"A"'
        assert batches(directory / "elsewhere")
        assert samples(server)["ventu_stage_seconds_count/batch/infer"] > 0
        assert server.process.stop() == 0


# -------------------------------------------------------------------------------- metrics


def test_metrics_speak_for_all_processes(directory: Path) -> None:
    """Also for those that are gone, and the front that runs no stage counts no stage."""
    with serve("app", "--workers", "2", cwd=directory) as server:
        server.process.wait_for("is ready after", count=2)
        assert statuses(Crowd(server, ["x"] * 30).answers()) == {200: 30}
        with server.client() as client:
            bad = [client.infer(payload).status for payload in [b"1"] * 7 + [b"no"] * 3]
        assert Counter(bad) == {422: 7, 400: 3}
        victim = batches(directory)[0][0]
        os.kill(victim, signal.SIGKILL)
        server.process.wait_for("is ready after", count=3)
        assert statuses(Crowd(server, ["y"] * 20).answers()) == {200: 20}
        seen = samples(server)
        assert seen["ventu_request_seconds_count/200"] == 50
        assert seen["ventu_request_seconds_count/422"] == 7
        assert seen["ventu_request_seconds_count/400"] == 3
        assert seen["ventu_rejected_total/invalid"] == 10
        assert seen["ventu_batch_size_sum"] == seen["ventu_queue_seconds_count"] == 60
        runs = len(batches(directory))
        assert seen["ventu_stage_seconds_count/batch/infer"] == runs
        assert seen["ventu_workers/unix"] == 2
        assert seen["ventu_queue_jobs"] == 0


# ------------------------------------------------------------------------------- strangers

disturbed: list[object] = []
MUTATIONS = int(os.environ.get("MUTATIONS", "400"))
HTTP = [
    b'POST /inference HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n"x"',
    b"POST /inference HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'3\r\n"x"\r\n0\r\n\r\n',
    b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n",
]
ID = "0" * 36
BODY = msgpack.packb({ID: b"1", "error_ids": ID, "ventu_lite": msgpack.packb({"bye": True})})
MESSAGES = [bytes(4), bytes(4) + len(BODY).to_bytes(4, "big") + BODY]


def mutated(valid: bytes, chance: random.Random) -> bytes:
    """Change, remove, double or add a few bytes."""
    data = bytearray(valid)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(data) + 1)
        kind = chance.randrange(4)
        if kind == 0:
            data[place : place + 1] = chance.randbytes(1)
        elif kind == 1:
            del data[place : place + chance.randint(1, 8)]
        elif kind == 2:
            data[place:place] = data[place : place + chance.randint(1, 30)]
        else:
            data[place:place] = chance.randbytes(chance.randint(1, 8))
    return bytes(data)


def disturb(address: tuple[str, int] | str, valid: list[bytes], seed: int, count: int) -> None:
    chance = random.Random(seed)
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    for _ in range(count):
        with socket.socket(family) as sock, contextlib.suppress(ConnectionError):
            sock.settimeout(TIMEOUT)
            sock.connect(address)
            disturbed.append(address)
            sock.sendall(mutated(chance.choice(valid), chance))
            if chance.random() < 0.5:
                sock.shutdown(socket.SHUT_WR)
                sock.recv(100)


def test_strangers_who_talk_nonsense_disturb_nobody(directory: Path) -> None:
    """Honest clients are answered, and right, however others use the two doors.

    Without a secret whoever connects may be given a job, and a second one the same job again.
    """
    at = directory / "s"
    options = ["--unix", str(at), "--timeout", "20"]
    with nothing_left() as mark:
        mark |= {"VENTU_WORKER_SECRET": "known to honest workers"}
        with batching(*options, env=mark) as server:
            port, process = server.port, server.process
            with worker("app", "--unix", str(at), cwd=directory, env=mark):
                until(lambda: server.get("/readyz").status == 200)
                threads = [
                    threading.Thread(target=disturb, args=(*where, seed, MUTATIONS // 4))
                    for where in ((("127.0.0.1", port), HTTP), (str(at), MESSAGES))
                    for seed in range(2)
                ]
                for thread in threads:
                    thread.start()
                with server.client() as client:
                    asked = 0
                    while asked < 20 or any(thread.is_alive() for thread in threads):
                        asked += 1
                        answer = client.infer(b'"honest"')
                        assert (answer.status, answer.body) == (200, b'"HONEST"')
                for thread in threads:
                    thread.join(TIMEOUT)
                assert len(disturbed) == 4 * (MUTATIONS // 4)
                assert process.is_alive
                assert "Traceback" not in process.output
            assert process.stop() == 0
