"""Secrets and doors: who gets in where, and what nobody gets to see."""

import ast
import contextlib
import hmac
import json
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import pytest
from browser import open_browser, requested_urls, wait_for_text
from browser import serve as flask_server
from deployments import (
    BATCHING,
    GUNICORN,
    SERVE,
    TCP,
    UNIX,
    Deployment,
    deployed,
    doors_of,
    until,
)
from flask import Flask
from lines import READY, Line, addition, connect, message
from processes import (
    TIMEOUT,
    Client,
    Process,
    batching,
    command,
    flask_run,
    nothing_left,
    serve,
    short_directory,
    worker,
)

import ventu_lite
from ventu_lite import Config, Service

JSON = "application/json"
SHOUT = """
import os
from ventu_lite import Service

service = Service(os.environ.get("NAME", "shout"), request=str, response=str, examples=["x"])

@service.infer(batch=True)
def shout(texts):
    return [ValueError(text) if "raise" in text else text.upper() for text in texts]

app = service.app

@app.get("/own/<path:what>")
def own(what):
    raise KeyError(what, "inmost")
"""


# ------------------------------------------------------------------------------- addresses


def listening(process: Process) -> set[str]:
    """Return the addresses, without ports, at which a process and its children listen by TCP."""
    return {host for host, _ in doors_of(process)}


@pytest.mark.parametrize("how", BATCHING)
def test_nobody_listens_for_other_machines_unless_told(directory: Path, how: str) -> None:
    with deployed(how, SHOUT, directory) as deployment:
        assert {"127.0.0.1"} <= listening(deployment.server.process) <= {"127.0.0.1", "::1"}
        for process in deployment.workers:
            assert not listening(process)
    with worker("app.py", "--unix", "s", "--metrics-port", "0", cwd=directory) as process:
        process.wait_for("metrics on")
        assert listening(process) == {"127.0.0.1"}


def test_a_port_without_an_address_is_for_this_machine(directory: Path) -> None:
    with batching("--tcp", ":0", cwd=directory) as server:
        assert listening(server.process) <= {"127.0.0.1", "::1"}
        assert "WARNING" not in server.process.output


@pytest.mark.parametrize("kind", [SERVE, "batching"])
@pytest.mark.parametrize(
    ("secret", "said"),
    [
        ("", "anybody who reaches tcp:0.0.0.0:.* can join as a worker.*VENTU_WORKER_SECRET"),
        ("hush", "pass tcp:0.0.0.0:.* unencrypted"),
    ],
    ids=["open", "secret"],
)
def test_a_door_to_other_machines_names_its_risk(
    directory: Path, kind: str, secret: str, said: str
) -> None:
    env = {"VENTU_WORKER_SECRET": secret} if secret else {}
    (directory / "app.py").write_text(SHOUT)
    door = ("--tcp", "0.0.0.0:0")
    with contextlib.ExitStack() as stack:
        if kind == SERVE:
            server = stack.enter_context(serve("app.py", *door, cwd=directory, env=env))
        else:
            server = stack.enter_context(batching(*door, cwd=directory, env=env))
        server.process.wait_for(f"WARNING .*{said}")
        assert "hush" not in server.process.output


# -------------------------------------------------------------------------------- the socket

OPEN_HANDED = "import os\nos.umask(0)\nfrom ventu_lite.__main__ import main\nmain()\n"
KNOCK = """
import os, socket, sys
if sys.argv[2:]:
    os.setuid(int(sys.argv[2]))
socket.socket(socket.AF_UNIX).connect(sys.argv[1])
"""
NOBODY = 65534


def test_only_this_user_may_connect_to_a_unix_socket(directory: Path) -> None:
    """Even under a lax umask, and in a directory in which everybody may write."""
    (directory / "main.py").write_text(OPEN_HANDED)
    place = directory / "open"
    place.mkdir()
    directory.chmod(0o777)
    place.chmod(0o777)
    with Process("main.py", "batching", "--port=0", "--unix=open/s", cwd=directory) as process:
        process.wait_for("ready on")
        mode = (place / "s").stat().st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
        # Without site-packages: nobody else may write what coverage counts.
        knock = [sys.executable, "-S", "-c", KNOCK, str(place / "s")]
        subprocess.run(knock, check=True, timeout=TIMEOUT)
        if os.getuid() == 0:  # nobody else may become somebody else
            knock.append(str(NOBODY))
            done = subprocess.run(knock, capture_output=True, text=True, timeout=TIMEOUT)
            assert done.stderr.splitlines()[-1].startswith("PermissionError")


def test_the_workers_of_serve_meet_where_nobody_else_gets(directory: Path) -> None:
    with deployed(SERVE, "import os\nos.umask(0)\n" + SHOUT, directory) as deployment:
        temporary = Path(deployment.env["TMPDIR"])
        (door,) = temporary.glob("*/workers.socket")
        assert stat.S_IMODE(door.stat().st_mode) == 0o600
        assert stat.S_IMODE(door.parent.stat().st_mode) == 0o700


# ------------------------------------------------------------------------ the worker secret


def challenged(line: Line) -> bytes:
    """Say ready, and return the challenge that comes."""
    line.say(READY)
    (addition,) = line.hear().values()
    nonce = msgpack.unpackb(addition)["challenge"]
    assert isinstance(nonce, bytes) and len(nonce) == 32
    return nonce


def proof(secret: bytes, nonce: bytes) -> bytes:
    return message(addition(proof=hmac.digest(secret, nonce, "sha256")))


SECRET = "geheim-ü-5f2a"

doors = pytest.mark.parametrize("how", (UNIX, TCP))


@doors
@pytest.mark.parametrize(
    ("other", "said", "logged"),
    [
        ("loud", "check VENTU_WORKER_SECRET", "worker does not know the secret"),
        (
            "",
            "batching service asks for a secret, set VENTU_WORKER_SECRET",
            "left when asked for a proof; is VENTU_WORKER_SECRET set there?",
        ),
    ],
    ids=["wrong", "none"],
)
def test_only_workers_that_know_the_secret_are_given_jobs(
    directory: Path, how: str, other: str, said: str, logged: str
) -> None:
    with deployed(how, SHOUT, directory, env={"VENTU_WORKER_SECRET": SECRET}) as deployment:
        server = deployment.server
        env = {"VENTU_WORKER_SECRET": other} if other else {}
        with worker("app.py", *deployment.address, cwd=directory, env=env) as process:
            process.wait_for(said)
            assert {server.infer(b'"x"').body for _ in range(4)} == {b'"X"'}
            assert re.search(rb"\nventu_workers\{[^}]*\} 1\.0\n", server.get("/metrics").body)
        until(lambda: logged in server.process.output)
        shown = server.process.output + deployment.workers[0].output + process.output
        assert not secrets_in(shown) and "loud" not in shown and "Traceback" not in shown


@doors
@pytest.mark.parametrize("secret", ["loud", ""], ids=["wrong", "none"])
def test_a_worker_that_is_not_let_in_never_says_that_it_is_ready(
    directory: Path, how: str, secret: str
) -> None:
    """A connection alone is not enough; and what keeps it out is told once, not at each try."""
    with deployed(
        how, SHOUT, directory, workers=0, is_ready=False, env={"VENTU_WORKER_SECRET": SECRET}
    ) as deployment:
        options = (*deployment.address, "--metrics-port", "0", "--log-level", "debug")
        env = {"VENTU_WORKER_SECRET": secret} if secret else {}
        with worker("app.py", *options, cwd=directory, env=env) as process:
            port = int(process.wait_for(r"metrics on http://127.0.0.1:(\d+)")[1])
            with Client(port) as client:
                said = {client.get("/readyz").status}
                while process.output.count("trying again") < 4 and process.is_alive:
                    said.add(client.get("/readyz").status)
                assert said == {503}
                assert b"ventu_workers" not in client.get("/metrics").body
            assert process.output.count("WARNING") == 1


@doors
def test_a_worker_with_a_secret_serves_where_none_is_asked(directory: Path, how: str) -> None:
    with deployed(how, SHOUT, directory, workers=0, is_ready=False) as deployment:
        env = {"VENTU_WORKER_SECRET": SECRET}
        with worker("app.py", *deployment.address, cwd=directory, env=env):
            until(lambda: deployment.server.get("/readyz").status == 200)
            assert deployment.server.infer(b'"x"').body == b'"X"'


def challenging(how: str, directory: Path) -> "contextlib.AbstractContextManager[Deployment]":
    """Return a service with a secret, which tells at this level of each that is shut out."""
    env = {"VENTU_WORKER_SECRET": SECRET}
    return deployed(how, SHOUT, directory, "--log-level", "debug", env=env)


@doors
def test_what_keeps_a_worker_out_is_told_once_on_both_sides(directory: Path, how: str) -> None:
    env = {"VENTU_WORKER_SECRET": SECRET}
    with deployed(how, SHOUT, directory, workers=0, is_ready=False, env=env) as deployment:
        options = (*deployment.address, "--log-level", "debug")
        with contextlib.ExitStack() as stack:
            for secret in ({"VENTU_WORKER_SECRET": "loud"}, {}):
                process = worker("app.py", *options, cwd=directory, env=secret)
                stack.enter_context(process)
                process.wait_for("trying again", count=4)
        process = deployment.server.process
        process.wait_for("WARNING.* worker does not know the secret")
        process.wait_for("WARNING.* left when asked for a proof")
        assert process.output.count("WARNING") == 2


@doors
def test_what_is_no_proof_ends_a_connection_without_a_word(directory: Path, how: str) -> None:
    with challenging(how, directory) as deployment, contextlib.ExitStack() as stack:
        server = deployment.server
        first = stack.enter_context(connect(deployment))
        nonce = challenged(first)
        right = proof(SECRET.encode(), nonce)
        answers = [
            right,  # of another connection
            proof(SECRET.encode(), bytes(32)),
            proof(b"", nonce),
            message(addition(proof=b"")),
            message(addition(proof=SECRET)),
            message(addition(challenge=nonce)),  # an echo
            message(addition(bye=True)),
            message({"ventu_lite": b"an old worker takes it for a job"}),
            READY,
            message({"j" * 36: b"result"}),
        ]
        nonces = {nonce}
        for answer in answers:
            with connect(deployment) as sock:
                nonces.add(challenged(sock))
                sock.say(answer)
                assert sock.is_closed()
        assert len(nonces) == 1 + len(answers)
        for unasked in (right, message({"j" * 36: b"result"})):
            with connect(deployment) as sock:
                sock.say(unasked)
                assert sock.is_closed()
        complaints = len(answers) + 2
        until(lambda: server.process.output.count("broke the protocol") == complaints)
        first.say(right)
        server.process.wait_for("is ready", count=2)
        with ThreadPoolExecutor(1) as pool:  # the second goes to the one that is idle longer
            asked = [pool.submit(server.infer, b'"x"') for _ in range(2)]
            assert set(first.hear().values()) == {b'"x"'}
            first.sock.close()
            assert [each.result(TIMEOUT).body for each in asked] == [b'"X"', b'"X"']


@doors
def test_who_never_answers_the_challenge_is_shut_out(directory: Path, how: str) -> None:
    with challenging(how, directory) as deployment, contextlib.ExitStack() as stack:
        silent, mute, slow = (stack.enter_context(connect(deployment)) for _ in range(3))
        challenged(mute)
        challenged(slow)
        slow.say(b"\0\0\0\x30\x81")
        for line in (silent, mute, slow):
            assert line.is_closed()
        process = deployment.server.process
        process.wait_for("no proof of the worker secret within 5 s", count=3)
        assert deployment.server.infer(b'"x"').body == b'"X"'


# ------------------------------------------------------------------------------ the API key

KEY = "schlüssel-81b0-ÿà"


@contextlib.contextmanager
def keyed(how: str) -> Iterator[Deployment]:
    env = {"VENTU_API_KEY": KEY, "VENTU_WORKER_SECRET": SECRET}
    with short_directory() as directory:
        with deployed(how, SHOUT, directory, env=env) as deployment:
            yield deployment


@pytest.fixture(scope="module", params=[*BATCHING, GUNICORN])
def locked(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """A service with a key, for several tests."""
    with keyed(request.param) as deployment:
        yield deployment


def raw(deployment: Deployment, data: bytes) -> tuple[int, bytes, bytes]:
    """Send bytes to the port of clients; return status, head and body of the answer."""
    with socket.create_connection(("127.0.0.1", deployment.server.port), TIMEOUT) as sock:
        answer = b""
        with contextlib.suppress(ConnectionError):  # also before all is sent, if it is too long
            sock.sendall(data)
            while more := sock.recv(65536):
                answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), head, body


def ask(
    deployment: Deployment, *lines: bytes, target: bytes = b"/inference", body: bytes = b'"x"'
) -> tuple[int, bytes, bytes]:
    """Post a body, with further lines of a head; the connection is closed afterwards."""
    head = [b"POST " + target + b" HTTP/1.1", b"Host: h", b"Connection: close", *lines]
    head += [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    return raw(deployment, b"\r\n".join(head) + b"\r\n\r\n" + body)


def get(deployment: Deployment, target: bytes, *lines: bytes) -> tuple[int, bytes, bytes]:
    head = [b"GET " + target + b" HTTP/1.1", b"Connection: close", *lines]
    if not any(line.startswith(b"Host:") for line in lines):
        head.append(b"Host: h")
    return raw(deployment, b"\r\n".join(head) + b"\r\n\r\n")


BEARER = b"Authorization: Bearer "


@pytest.mark.parametrize(
    "line",
    [BEARER, b"Authorization: bearer ", b"authorization: BEARER   ", b"Authorization:Bearer "],
)
def test_the_key_opens(locked: Deployment, line: bytes) -> None:
    status, _, body = ask(locked, line + KEY.encode())
    assert (status, body) == (200, b'"X"')


WRONG: dict[str, list[bytes]] = {
    "missing": [],
    "empty": [b"Authorization:"],
    "only the scheme": [b"Authorization: Bearer"],
    "an empty key": [BEARER],
    "another key": [BEARER + b"letmein"],
    "the key in capitals": [BEARER + KEY.upper().encode()],
    "a part": [BEARER + KEY.encode()[:-1]],
    "more": [BEARER + KEY.encode() + b"x"],
    "something behind it": [BEARER + KEY.encode() + b" x"],
    "no scheme": [b"Authorization: " + KEY.encode()],
    "another scheme": [b"Authorization: Basic " + KEY.encode()],
    "in Latin-1": [BEARER + KEY.encode("latin-1")],
    "any bytes": [BEARER + b"\xff\xfe\x80"],
    "another header": [b"X-API-Key: " + KEY.encode()],
    "a cookie": [b"Cookie: api_key=" + KEY.encode()],
    "long": [BEARER + b"x" * 7000],
}


@pytest.mark.parametrize("what", WRONG)
def test_nothing_else_opens(locked: Deployment, what: str) -> None:
    status, head, body = ask(locked, *WRONG[what])
    assert status == 401
    assert re.search(rb"(?im)^www-authenticate: bearer\r?$", head)
    problem = json.loads(body)
    assert problem["status"] == 401 and "X" not in problem.values()
    for told in (KEY, KEY[:9], "letmein", "xxxx"):
        assert told.encode() not in head + body


@pytest.mark.parametrize(
    ("lines", "statuses"),
    [
        ([BEARER + KEY.encode(), BEARER + b"x"], {400, 401}),
        ([BEARER + b"x", BEARER + KEY.encode()], {400, 401}),
        ([BEARER + KEY.encode()] * 2, {400, 401}),
        ([BEARER + b"x" * 100_000], {400, 431}),
    ],
    ids=["right and wrong", "wrong and right", "right twice", "very long"],
)
def test_an_ambiguous_key_does_not_open(
    locked: Deployment, lines: list[bytes], statuses: set[int]
) -> None:
    status, _, body = ask(locked, *lines)
    assert status in statuses and body != b'"X"'


@pytest.mark.parametrize(
    "target",
    [
        b"/inference?x=1",
        b"/%69nference",
        b"/inference/",
        b"//inference",
        b"/./inference",
        b"/x/../inference",
        b"/INFERENCE",
        b"/inference;x",
        b"/inference%2f",
        b"/inference%00",
        b"http://h/inference",
    ],
)
def test_no_other_spelling_of_the_route_gets_around_the_key(
    locked: Deployment, target: bytes
) -> None:
    status, _, body = ask(locked, target=target)
    assert status in (308, 400, 401, 404, 405) and b'"X"' not in body


def test_another_method_gets_around_no_key(locked: Deployment) -> None:
    for method in (b"GET", b"PUT", b"HEAD", b"TRACE", b"post"):
        head = method + b" /inference HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
        head += b"X-HTTP-Method-Override: POST\r\nContent-Length: 3\r\n\r\n"
        status, _, body = raw(locked, head + b'"x"')
        assert status in (400, 401, 405, 501) and b'"X"' not in body


def test_probes_and_pages_need_no_key(locked: Deployment) -> None:
    paths = ["/health", "/livez", "/readyz", "/metrics", "/"]
    if locked.how in (SERVE, GUNICORN):
        paths += ["/apidoc/swagger", "/apidoc/redoc", "/apidoc/openapi.json"]
    assert {path: locked.server.get(path).status for path in paths} == dict.fromkeys(paths, 200)


PREFIXED = """
from flask import Flask
from ventu_lite import Service

app = Flask("several")
for name in ("cats", "dogs"):
    service = Service(name, request=str, response=str, api_key=f"{name}-key")
    service.infer(str.upper)
    app.register_blueprint(service.blueprint, url_prefix=f"/{name}")
    app.register_blueprint(service.blueprint, url_prefix=f"/more/{name}", name=f"more {name}")
"""


@pytest.mark.parametrize("how", [SERVE, GUNICORN])
def test_every_inference_route_wants_the_key_of_its_service(directory: Path, how: str) -> None:
    options = ["--service", "cats"] if how == SERVE else []
    with deployed(how, PREFIXED, directory, *options, is_ready=False) as deployment:
        until(lambda: deployment.server.get("/cats/readyz").status == 200)
        good = 200 if how == GUNICORN else 503  # `serve` runs one service
        for place in ("", "/more"):
            for name, other, status in (("cats", "dogs", 200), ("dogs", "cats", good)):
                target = f"{place}/{name}/inference".encode()
                assert ask(deployment, target=target)[0] == 401
                assert ask(deployment, BEARER + f"{other}-key".encode(), target=target)[0] == 401
                right = ask(deployment, BEARER + f"{name}-key".encode(), target=target)
                assert right[0] == status


def comparisons(path: Path) -> Iterator[str]:
    """Yield the source of each comparison by ``==`` or ``in`` of something named as a secret."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
            names |= {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
            is_equality = any(isinstance(op, ast.Eq | ast.NotEq | ast.In) for op in node.ops)
            if is_equality and any(re.search("secret|proof|api_key|given_key", n) for n in names):
                yield f"{path.name}: {ast.unparse(node)}"


def test_secrets_are_compared_in_constant_time() -> None:
    """By the structure of the code: times cannot be measured on a machine that does other work."""
    package = Path(ventu_lite.__file__).parent
    sources = {str(path.relative_to(package)): path for path in package.rglob("*.py")}
    calls = {name for name, path in sources.items() if "compare_digest(" in path.read_text()}
    assert calls == {"headers.py", "protocol.py"}
    assert not [found for path in sources.values() for found in comparisons(path)]


# --------------------------------------------------------------------------- what is not told


def everything_shown(deployment: Deployment) -> str:
    """Provoke what can be provoked, and return all that anybody was told."""
    shown: list[bytes] = []
    key = BEARER + KEY.encode()
    for lines in ([], [key], [key, b"X-Request-Timeout: no"], [BEARER + b"x"], [key, b"Accept: a"]):
        for body in (b'"x"', b'"raise"', b"{", b"1"):
            shown += ask(deployment, *lines, body=body)[1:]
    paths = [b"/", b"/health", b"/readyz", b"/metrics", b"/apidoc/openapi.json", b"/nowhere"]
    for target in [*paths, b"/own/x", b"/apidoc/swagger"]:
        for accept in (b"text/html", b"application/json", b"application/openmetrics-text"):
            shown += get(deployment, target, b"Accept: " + accept)[1:]
    texts = [part.decode("utf-8", "replace") for part in shown]
    processes = [deployment.server.process, *deployment.workers]
    texts += [process.output for process in processes]
    groups = {process.pid for process in processes}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if os.getpgid(int(path.parent.name)) in groups:
                texts.append(path.read_text(errors="replace"))
    return "\n".join(texts)


@pytest.mark.parametrize("how", [*BATCHING, GUNICORN])
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_secret_is_shown_anywhere(directory: Path, how: str, log_format: str) -> None:
    env = {
        "VENTU_API_KEY": KEY,
        "VENTU_WORKER_SECRET": SECRET,
        "VENTU_LOG_LEVEL": "debug",
        "VENTU_LOG_FORMAT": log_format,
    }
    with deployed(how, SHOUT, directory, env=env) as deployment:
        shown = everything_shown(deployment)
        if how in (UNIX, TCP):
            with connect(deployment) as sock:
                challenged(sock)
                sock.say(proof(b"wrong", bytes(32)))
                assert sock.is_closed()
        shown += deployment.server.process.output
    assert "ventu_request_seconds" in shown and "401" in shown
    assert not secrets_in(shown)


def secrets_in(text: str) -> list[str]:
    """Return the forms in which a secret of these tests is in a text."""
    return [
        form
        for secret in (KEY, SECRET)
        for form in (secret, repr(secret.encode())[2:-1], json.dumps(secret)[1:-1])
        if form in text
    ]


@pytest.mark.parametrize(
    ("arguments", "port"),
    [
        (["--help"], ""),
        (["serve", "--help"], ""),
        (["batching", "--help"], ""),
        (["worker", "--help"], ""),
        (["check"], ""),
        (["serve", "--port", "none"], ""),
        (["batching", "--timeout", "-1"], ""),
        (["batching", "--unix", "x" * 200], ""),
        (["batching"], "none"),
        (["serve"], "none"),
    ],
)
def test_no_help_or_error_shows_a_secret(directory: Path, arguments: list[str], port: str) -> None:
    (directory / "app.py").write_text(SHOUT)
    env = {"VENTU_API_KEY": KEY, "VENTU_WORKER_SECRET": SECRET, "VENTU_PORT": port}
    done = command(*arguments, cwd=directory, env=env)
    assert done.stdout + done.stderr
    assert not secrets_in(done.stdout + done.stderr)


def test_no_repr_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"VENTU_API_KEY": KEY, "VENTU_WORKER_SECRET": SECRET}.items():
        monkeypatch.setenv(name, value)
    config = Config()
    service = Service("x", request=str, response=str, api_key=KEY)
    service.infer(str.upper)
    shown = f"{config!r} {config!s} {config.model_dump()} {config.model_dump_json()}"
    assert "**********" in shown
    assert not secrets_in(f"{shown} {service!r} {service.config!r} {vars(service)!r}")


# ------------------------------------------------------------------- request ids and logs

FORGED = "2030-01-01 00:00:00,000 CRITICAL 1 forged"
IDS: dict[str, bytes] = {
    "a line break": b"a\r\nX-Forged: yes",
    "a line feed": b"a\nX-Forged: yes",
    "a carriage return": b"a\rX-Forged: yes",
    "a folded line": b"a\r\n X-Forged: yes",
    "NUL": b"a\0b",
    "an escape": b"a\x1b[2Kb",
    "DEL": b"a\x7fb",
    "not ASCII": "naïve".encode(),
    "C1": b"a\x9b2Kb",
    "a line separator": "a\u2028b".encode(),
    "very long": b"a" * 5000,
    "a space": b"a b",
    "quotes": b"a\"b'c",
    "markup": b"<script>alert(1)</script>",
    "percents": b"%s%n%0d%0aX-Forged:%20yes",
    "empty": b"",
}


@pytest.fixture(scope="module", params=[SERVE, UNIX, GUNICORN])
def unlocked(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """A service for several tests; that it still serves afterwards is part of them."""
    with short_directory() as directory, deployed(request.param, SHOUT, directory) as deployment:
        yield deployment
        assert ask(deployment)[2] == b'"X"'


@pytest.mark.parametrize("what", IDS)
def test_a_request_id_cannot_forge_a_header_or_a_line_of_the_log(
    unlocked: Deployment, what: str
) -> None:
    given = IDS[what]
    for body in (b'"x"', b'"raise"', b"{"):
        status, head, said = ask(unlocked, b"X-Request-ID: " + given, body=body)
        if what == "a line break":  # that is a header of its own, and no part of the id
            given = b"a"
        names = [line.partition(b":")[0].strip().lower() for line in re.split(b"[\r\n]+", head)]
        assert b"x-forged" not in names
        ids = re.findall(rb"(?im)^x-request-id: (.*?)\r?$", head)
        if status in (200, 422, 500):
            (id,) = ids
            assert re.fullmatch(rb"[A-Za-z0-9._:/+=@~-]{1,128}", id)
        if given != b"a" and given:
            assert given not in head + said
    output = "".join(process.output for process in (unlocked.server.process, *unlocked.workers))
    assert "\x1b" not in output and "\0" not in output and "\x9b" not in output


def test_a_sane_request_id_is_returned(unlocked: Deployment) -> None:
    for sane in (b"a", b"a" * 128, b"trace/1.2:3=4+5~6@7_8-9"):
        status, head, _ = ask(unlocked, b"X-Request-ID: " + sane)
        assert status == 200
        assert re.findall(rb"(?im)^x-request-id: (.*?)\r?$", head) == [sane]


@pytest.mark.parametrize("how", BATCHING)
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_a_client_sends_cannot_forge_a_line_of_the_log(
    directory: Path, how: str, log_format: str
) -> None:
    """Not through the text of an exception, nor through a path of the user's own."""
    body = json.dumps(f"raise\r\n{FORGED} \x1b[2K\x9b").encode()
    env = {"VENTU_LOG_FORMAT": log_format}
    with deployed(how, SHOUT, directory, env=env) as deployment:
        assert ask(deployment, body=body)[0] == 500
        if how == SERVE:
            target = b"/own/x%0d" + FORGED.replace(" ", "%20").encode() + b"%1b[2K%c2%9b"
            assert get(deployment, target)[0] == 500
    processes = [deployment.server.process, *deployment.workers]
    lines = [line for process in processes for line in process.lines]
    assert not any(character in "".join(lines) for character in "\x1b\x9b\r")
    if log_format == "json":
        records = [json.loads(line) for line in lines if line.startswith("{")]
        assert len(records) == len(lines)
        assert "critical" not in {record["level"] for record in records}
    else:
        assert any(line.startswith("  ") and FORGED in line for line in lines)
        assert not any(line.startswith("2030") for line in lines)


# ------------------------------------------------------------------------------- the pages

PAGES = (b"/apidoc/swagger", b"/apidoc/redoc")
EVIL = b"https://evil.example/openapi.json"
with_pages = pytest.mark.parametrize("unlocked", [SERVE, GUNICORN], indirect=True)


@with_pages
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("parameter", [b"url", b"configUrl", b"spec-url", b"urls", b"spec"])
def test_a_query_changes_nothing_in_a_page(
    unlocked: Deployment, page: bytes, parameter: bytes
) -> None:
    plain = get(unlocked, page)
    asked = get(unlocked, page + b"?" + parameter + b"=" + EVIL)
    assert plain[0] == asked[0] == 200 and plain[2] == asked[2]
    assert b"evil" not in asked[1] + asked[2]


@with_pages
def test_pages_say_what_a_browser_may_do(unlocked: Deployment) -> None:
    for path in (*PAGES, b"/"):
        status, head, body = get(unlocked, path, b"Accept: text/html")
        assert status == 200
        (policy,) = re.findall(rb"(?im)^content-security-policy: (.*?)\r?$", head)
        assert b"default-src 'none'" in policy and b"frame-ancestors 'none'" in policy
        assert b"base-uri 'none'" in policy and b"unsafe-eval" not in policy
        assert not re.search(rb"script-src[^;]*('unsafe-inline'|https?:|\*)", policy)
        assert not re.search(rb"<script(?! src=\"static/)|\son\w+=|javascript:", body)
    for path in (*PAGES, b"/", b"/apidoc/openapi.json", b"/apidoc/static/swagger-ui.css"):
        _, head, _ = get(unlocked, path)
        assert re.search(rb"(?im)^x-content-type-options: nosniff\r?$", head)
        assert re.search(rb"(?im)^referrer-policy: no-referrer\r?$", head)


@pytest.mark.parametrize("link", ["swagger?url={}", "swagger?configUrl={}", "swagger#/?url={}",
                                  "swagger#/?configUrl={}", "swagger?urls.primaryName={}",
                                  "redoc?url={}", "redoc?spec-url={}", "redoc#url={}"])  # fmt: skip
def test_a_link_cannot_show_the_document_of_somebody_else(
    chromium: Any, link: str, unlocked_pages: Deployment, evil: str
) -> None:
    chromium.get("about:blank")
    requested_urls(chromium)
    chromium.get(f"http://127.0.0.1:{unlocked_pages.server.port}/apidoc/{link.format(evil)}")
    wait_for_text(chromium, "shout", "Run the model on one request")
    assert not [url for url in requested_urls(chromium) if url.startswith(evil)]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with open_browser() as driver:
        yield driver


@pytest.fixture(scope="module")
def unlocked_pages() -> Iterator[Deployment]:
    with short_directory() as directory, deployed(SERVE, SHOUT, directory) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def evil() -> Iterator[str]:
    with flask_server(Flask("evil")) as address:
        yield f"{address}/openapi.json"


NAME = "</title><script>alert(1)</script>\"'{{7*7}}{0}%s\\"


@pytest.mark.parametrize("how", [*BATCHING, GUNICORN])
def test_the_name_of_a_service_stays_a_text(directory: Path, how: str) -> None:
    env = {"NAME": NAME, "VENTU_NAME": NAME, "VENTU_VERSION": NAME}
    with deployed(how, SHOUT, directory, env=env) as deployment:
        assert ask(deployment)[2] == b'"X"'
        status, _, text = get(deployment, b"/metrics")
        label = NAME.replace("\\", "\\\\").replace('"', '\\"')
        assert status == 200 and f'service="{label}"' in text.decode()
        assert json.loads(get(deployment, b"/", b"Accept: application/json")[2])["name"] == NAME
        if how in (SERVE, GUNICORN):
            for path in (*PAGES, b"/"):
                status, _, body = get(deployment, path, b"Accept: text/html")
                assert status == 200 and b"<script>" not in body and b"49" not in body[:2000]
                assert b"&lt;/title&gt;&lt;script&gt;" in body
            _, head, body = get(deployment, b"/apidoc/openapi.json")
            assert json.loads(body)["info"]["title"] == NAME
            assert b"content-type: application/json" in head.lower()


@with_pages
@pytest.mark.parametrize(
    "host", [b'"><script>alert(1)</script>', b"evil.example/x?", b"a b", b"a\tb", b"evil@h", b""]
)
def test_a_host_cannot_put_markup_into_the_home_page(unlocked: Deployment, host: bytes) -> None:
    status, head, body = get(unlocked, b"/", b"Host: " + host, b"Accept: text/html")
    assert status in (200, 400)
    assert b"<script>" not in body and b"Location" not in head


@with_pages
@pytest.mark.parametrize(
    "target",
    [b"/<script>alert(1)</script>", b"/%3Cscript%3Ealert(1)%3C/script%3E", b"/x\"onload='alert(1)"],
)
def test_a_path_comes_back_as_data(unlocked: Deployment, target: bytes) -> None:
    status, head, body = get(unlocked, target, b"Accept: text/html")
    assert status in (400, 404)
    assert b"text/html" not in head or b"<script>" not in body
    assert b"onload='" not in body


@with_pages
@pytest.mark.parametrize(
    "path",
    [
        b"../../../../../../etc/passwd",
        b"..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
        b"%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        b"..%5c..%5cetc%5cpasswd",
        b"%2fetc%2fpasswd",
        b"/etc/passwd",
        b"//etc/passwd",
        b"..%252f..%252fetc%252fpasswd",
        b"%c0%ae%c0%ae/etc/passwd",
        b"../pages.py",
        b"..%2fpages.py",
        b"swagger-ui.css/../../app.py",
        b"swagger-ui.css%00.py",
        b"home.css",
        b"index.html",
        b".",
        b"..",
        b"%2e%2e",
        b"~root",
    ],
)
def test_nothing_but_the_parts_of_the_pages_is_served(unlocked: Deployment, path: bytes) -> None:
    for place in (b"/apidoc/static/", b"/static/", b"/apidoc/"):
        status, _, body = get(unlocked, place + path)
        assert status in (302, 308, 400, 404)
        assert b"root:" not in body and b"import " not in body


# ------------------------------------------------------------------------------- debugging


@pytest.mark.parametrize("how", [SERVE, GUNICORN])
def test_no_page_for_debugging_can_be_reached(directory: Path, how: str) -> None:
    """Even where somebody has left ``FLASK_DEBUG`` on."""
    with deployed(how, SHOUT, directory, env={"FLASK_DEBUG": "1"}) as deployment:
        for path in (
            b"/own/x",
            b"/console",
            b"/?__debugger__=yes&cmd=resource&f=debugger.js",
            b"/own/x?__debugger__=yes&cmd=paste&s=x",
            b"/own/x?__debugger__=yes&cmd=pinauth&pin=1",
        ):
            status, _, body = get(deployment, path, b"Accept: text/html")
            assert status in (200, 404, 500)
            for sign in (b"Traceback", b"ebugger", b"KeyError", b"inmost", b"EVALEX"):
                assert sign not in body
        status, _, body = ask(deployment, body=b'"raise inmost"')
        assert status == 500 and b"inmost" not in body and b"ValueError" not in body


RUN = SHOUT + '\nif __name__ == "__main__":\n    service.run_http(port=0)\n'


@pytest.mark.parametrize("how", ["flask run", "run_http"])
def test_a_development_server_debugs_only_when_told(directory: Path, how: str) -> None:
    (directory / "app.py").write_text(RUN)
    with nothing_left(files=True) as env, contextlib.ExitStack() as stack:
        if how == "flask run":
            server = stack.enter_context(flask_run("app.py", cwd=directory, env=env))
            process, port = server.process, server.port
        else:
            env["FLASK_DEBUG"] = "1"
            process = stack.enter_context(Process("app.py", cwd=directory, env=env))
            port = int(process.wait_for(r"Running on http://\S+?:(\d+)")[1])
        assert listening(process) <= {"127.0.0.1", "::1"}
        with socket.create_connection(("127.0.0.1", port), TIMEOUT) as sock:
            sock.sendall(b"GET /own/x HTTP/1.0\r\nAccept: text/html\r\n\r\n")
            with sock.makefile("rb") as stream:
                answer = stream.read()
        assert b" 500 " in answer.splitlines()[0]
        assert b"inmost" not in answer and b"Debugger" not in answer
